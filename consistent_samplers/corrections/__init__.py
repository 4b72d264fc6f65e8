"""Corrections of a sampler's draws towards the target: each exact in its limit."""

from consistent_samplers.corrections.annealing import AnnealedDraws, annealed
from consistent_samplers.corrections.chains import Chains, latent_chains
from consistent_samplers.corrections.expectations import Expectation, expectation
from consistent_samplers.corrections.feynman_kac import product_paths
from consistent_samplers.corrections.guidance import guided
from consistent_samplers.corrections.metropolis import MetropolisResult, independence_metropolis
from consistent_samplers.corrections.moves import move
from consistent_samplers.corrections.other_density import Reweighted, reweight, reweight_chains
from consistent_samplers.corrections.perturbation import perturbed
from consistent_samplers.corrections.resampling import resampled_paths
from consistent_samplers.corrections.reweighting import (
    resample,
    systematic_indices,
    weighted_moments,
)

__all__ = [
    "AnnealedDraws",
    "Chains",
    "Expectation",
    "MetropolisResult",
    "Reweighted",
    "annealed",
    "expectation",
    "guided",
    "independence_metropolis",
    "latent_chains",
    "move",
    "perturbed",
    "product_paths",
    "resample",
    "resampled_paths",
    "reweight",
    "reweight_chains",
    "systematic_indices",
    "weighted_moments",
]
