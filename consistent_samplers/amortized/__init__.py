"""Families of data sets."""
