"""The whole recipe with good defaults, and the trained sampler that it gives."""

from consistent_samplers.recipe.chain_stage import with_chains
from consistent_samplers.recipe.loading import load
from consistent_samplers.recipe.route import Effort, Route
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.recipe.training import train_sampler

__all__ = ["Effort", "Route", "TrainedSampler", "load", "train_sampler", "with_chains"]
