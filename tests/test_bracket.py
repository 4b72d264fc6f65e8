"""Log Z from both sides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import consistent_samplers as cs
from consistent_samplers.bracket import bracket
from consistent_samplers.diagnostics import Mixing
from consistent_samplers.integrations.numpyro import OneStepSampler

LOC, SCALE, LOG_Z = 0.7, 0.8, 3.0
# KL between N(LOC, SCALE²) and N(0, 1), in closed form.
LOWER = LOG_Z - (np.log(SCALE) + (1.0 + LOC**2) / (2.0 * SCALE**2) - 0.5)
UPPER = LOG_Z - np.log(SCALE) + (SCALE**2 + LOC**2) / 2.0 - 0.5


def log_weight(x):
    return LOG_Z - 0.5 * ((x - LOC) / SCALE) ** 2 - np.log(SCALE) + 0.5 * x**2


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_intervals_cover(correlation):
    rng, num, covered = np.random.default_rng(0), 300, np.zeros(3)
    for _ in range(num):
        chain = rng.normal(size=(4, 500))
        for i in range(1, 500):
            step = np.sqrt(1.0 - correlation**2) * chain[:, i]
            chain[:, i] = correlation * chain[:, i - 1] + step
        found = bracket(log_weight(rng.normal(size=2_000)), log_weight(LOC + SCALE * chain))
        error = np.array([found.lower - LOWER, found.log_z - LOG_Z, found.upper - UPPER])
        covered += np.abs(error) < 1.96 * np.array(
            [found.lower_stderr, found.stderr, found.upper_stderr]
        )
    assert (covered / num > 0.95 - 3.0 * np.sqrt(0.05 * 0.95 / num)).all(), covered / num


def trained():
    target = cs.targets.gaussian(jnp.full(2, 0.3), jnp.ones(2))
    base = cs.Sampler.of_base(cs.bases.standard_normal(2))
    return cs.TrainedSampler(target, base, base)


def test_a_trained_sampler_brackets_log_z():
    sampler = trained()
    found = sampler.bracket(jax.random.key(0))
    assert abs(found.log_z - sampler.target.log_z) < 4.0 * found.stderr + 1e-3
    assert found.upper is not None and found.lower < sampler.target.log_z < found.upper
    assert abs(found.upper - found.lower - 0.18) < 0.05  # both divergences are 0.09
    assert found.num_target_draws == 4_000


def test_chains_that_did_not_mix_give_no_upper_bound():
    sampler = trained()
    chains = cs.corrections.latent_chains(
        jax.random.key(0), sampler.target, sampler.one_step, num_warmup=50, num_samples=50
    )
    chains = chains._replace(mixing=Mixing(1.5, 9.0, 9.0, 0.0))
    found = dataclasses.replace(sampler, chains=chains).bracket(jax.random.key(0))
    assert found.upper is None and found.method == "importance"
    assert "r-hat of 1.500" in found.note and "no bound above" in str(found)


def test_a_numpyro_model_is_bracketed():
    """A normal mean with a normal prior: log Z in closed form."""
    y = np.array([0.3, -0.2, 0.9, 1.1])

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    sampler = OneStepSampler(model, num_samples=1_000, effort="base", progress_bar=False)
    with pytest.raises(RuntimeError, match=r"call run\(rng_key"):
        sampler.bracket(jax.random.key(0))
    sampler.run(jax.random.PRNGKey(0), y)
    found = sampler.bracket(jax.random.PRNGKey(1))
    covariance = np.eye(4) + 4.0
    true = multivariate_normal.logpdf(y, np.zeros(4), covariance)
    assert found.lower - 1e-3 < true < found.upper + 1e-3
    assert abs(found.log_z - true) < 4.0 * found.stderr + 1e-3
