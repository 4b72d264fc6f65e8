"""Maps from a base to a target, and the stochastic paths beside them, without a density inside."""

from consistent_samplers.maps.annealed import AnnealedControl, StochasticFlow
from consistent_samplers.maps.control import Control, Guidance, LearnedKernels
from consistent_samplers.maps.denoising import Denoiser, DenoisingProcess
from consistent_samplers.maps.hierarchical import HierarchicalMap, hierarchical_map
from consistent_samplers.maps.identity import Identity, Proposal
from consistent_samplers.maps.laplace import LaplaceMap, laplace_map
from consistent_samplers.maps.marginals import has_density, marginal

__all__ = [
    "AnnealedControl",
    "Control",
    "Denoiser",
    "DenoisingProcess",
    "Guidance",
    "HierarchicalMap",
    "Identity",
    "LaplaceMap",
    "LearnedKernels",
    "Proposal",
    "StochasticFlow",
    "has_density",
    "hierarchical_map",
    "laplace_map",
    "marginal",
]
