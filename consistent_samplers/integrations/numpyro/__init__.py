"""NumPyro models: one-step posterior draws, and Markov chains that propose them."""

from consistent_samplers.integrations.numpyro.mcmc import OneStepMH, OneStepMHState
from consistent_samplers.integrations.numpyro.run import MAX_OVERSAMPLING, MIN_RESAMPLED_EFFECTIVE
from consistent_samplers.integrations.numpyro.sampler import OneStepSampler

__all__ = [
    "MAX_OVERSAMPLING",
    "MIN_RESAMPLED_EFFECTIVE",
    "OneStepMH",
    "OneStepMHState",
    "OneStepSampler",
]
