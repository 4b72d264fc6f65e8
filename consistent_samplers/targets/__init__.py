"""Target densities: the class, and ready-made ones with what is known of them."""

from consistent_samplers.targets.base import Target, check_density
from consistent_samplers.targets.mixtures import gaussian, gmm9
from consistent_samplers.targets.posteriors import cancer, seeds
from consistent_samplers.targets.synthetic import double_wells, funnel

__all__ = [
    "Target",
    "cancer",
    "check_density",
    "double_wells",
    "funnel",
    "gaussian",
    "gmm9",
    "seeds",
]
