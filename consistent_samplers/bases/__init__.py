"""Bases: tractable distributions p0 that the samplers start from, and how they are fitted."""

from consistent_samplers.bases.base import Base, Component
from consistent_samplers.bases.exploration import Exploration, Modes, explore, find_modes
from consistent_samplers.bases.fitting import (
    Fit,
    FittedBase,
    fit_base,
    fit_mixture,
    fit_product,
    judge,
    refit_base,
)
from consistent_samplers.bases.gaussian import GaussianBase, standard_normal
from consistent_samplers.bases.gaussian_fit import fit_gaussian
from consistent_samplers.bases.mixture import MixtureBase, ProductMixtureBase, mixture

__all__ = [
    "Base",
    "Component",
    "Exploration",
    "Fit",
    "FittedBase",
    "GaussianBase",
    "MixtureBase",
    "Modes",
    "ProductMixtureBase",
    "explore",
    "find_modes",
    "fit_base",
    "fit_gaussian",
    "fit_mixture",
    "fit_product",
    "judge",
    "mixture",
    "refit_base",
    "standard_normal",
]
