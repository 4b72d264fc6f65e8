"""Samplers that train nothing: a paper a file, pure functions of a key and a target."""

from consistent_samplers.training_free.polar_slice import PolarSliceChains, polar_slice

__all__ = [
    "PolarSliceChains",
    "polar_slice",
]
