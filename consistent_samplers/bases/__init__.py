"""Bases: tractable distributions p0 that the samplers start from, and how they are fitted."""

from consistent_samplers.bases.base import Base, Component
from consistent_samplers.bases.diagonal import DiagonalBase, fit_diagonal
from consistent_samplers.bases.exploration import Exploration, explore
from consistent_samplers.bases.fitting import FittedBase, fit, fit_base, refit_base
from consistent_samplers.bases.gaussian import GaussianBase, standard_normal
from consistent_samplers.bases.gaussian_fit import fit_gaussian
from consistent_samplers.bases.judging import Fit, judge
from consistent_samplers.bases.mixture import MixtureBase, ProductMixtureBase, mixture
from consistent_samplers.bases.mixture_fit import fit_mixture, fit_to_draws
from consistent_samplers.bases.modes import Modes, find_modes
from consistent_samplers.bases.product_fit import fit_product, fit_product_mixture
from consistent_samplers.bases.symmetric import SymmetricBase, fit_symmetric, symmetric

__all__ = [
    "Base",
    "Component",
    "DiagonalBase",
    "Exploration",
    "Fit",
    "FittedBase",
    "GaussianBase",
    "MixtureBase",
    "Modes",
    "ProductMixtureBase",
    "SymmetricBase",
    "explore",
    "find_modes",
    "fit",
    "fit_base",
    "fit_diagonal",
    "fit_gaussian",
    "fit_mixture",
    "fit_product",
    "fit_product_mixture",
    "fit_symmetric",
    "fit_to_draws",
    "judge",
    "mixture",
    "refit_base",
    "standard_normal",
    "symmetric",
]
