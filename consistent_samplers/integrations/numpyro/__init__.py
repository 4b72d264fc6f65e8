"""NumPyro models: one-step posterior draws, chains that propose them, posteriors as priors."""

from consistent_samplers.integrations.numpyro.mcmc import OneStepMH, OneStepMHState
from consistent_samplers.integrations.numpyro.prior import Prior
from consistent_samplers.integrations.numpyro.prior_choice import as_prior
from consistent_samplers.integrations.numpyro.run import MAX_OVERSAMPLING, MIN_RESAMPLED_EFFECTIVE
from consistent_samplers.integrations.numpyro.sampler import OneStepSampler

__all__ = [
    "MAX_OVERSAMPLING",
    "MIN_RESAMPLED_EFFECTIVE",
    "OneStepMH",
    "OneStepMHState",
    "OneStepSampler",
    "Prior",
    "as_prior",
]
