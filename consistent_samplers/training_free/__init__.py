"""Samplers that train nothing: a paper a file, pure functions of a key and a target."""

from consistent_samplers.training_free.counted import CountedDraws
from consistent_samplers.training_free.ensemble_score import ensemble_score
from consistent_samplers.training_free.polar_slice import PolarSliceChains, polar_slice
from consistent_samplers.training_free.reverse_diffusion import reverse_diffusion
from consistent_samplers.training_free.walk_jump import walk_jump

__all__ = [
    "CountedDraws",
    "PolarSliceChains",
    "ensemble_score",
    "polar_slice",
    "reverse_diffusion",
    "walk_jump",
]
