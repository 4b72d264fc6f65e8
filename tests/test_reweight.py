"""Draws under another density: log Z, verdicts, other priors, powers of prior and likelihood."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import consistent_samplers as cs
from consistent_samplers.integrations.numpyro import OneStepSampler

KEY = jax.random.key(0)
BASE = {"effort": "base", "explore": False, "progress_bar": False, "num_samples": 4_000}


def trained():
    base = cs.Sampler.of_base(cs.bases.standard_normal(2))
    return cs.TrainedSampler(cs.targets.gaussian(jnp.zeros(2), jnp.ones(2)), base, base)


@pytest.mark.parametrize("key", [None, KEY, jax.random.PRNGKey(0)], ids=["none", "new", "old"])
def test_log_z_and_moments_of_another_gaussian(key):
    other = cs.targets.gaussian(jnp.full(2, 0.4), jnp.full(2, 0.7))
    found = trained().reweight(lambda x: other.log_density(x) + 3.0, key)
    evidence = found.evidence
    assert abs(evidence.log_z - other.log_z - 3.0) < 4.0 * evidence.log_z_stderr
    assert found.verdict.level == "trusted" and found.samples is None
    mean, std = cs.corrections.weighted_moments(found.draws)
    np.testing.assert_allclose(mean, 0.4, atol=0.05)
    np.testing.assert_allclose(std**2, 0.7, atol=0.05)
    assert found.draws.bound == "lower" and evidence.num_samples == 10_000


def test_they_are_the_draws_of_the_key():
    sampler = trained()
    same = sampler.reweight(sampler.target, KEY, 500)
    own = sampler.sample(KEY, 500)
    np.testing.assert_array_equal(same.draws.position, own.position)
    np.testing.assert_allclose(same.draws.log_weight, own.log_weight, atol=1e-6)


def test_a_smaller_support_is_counted():
    found = trained().reweight(lambda x: jnp.where(x[0] > 0.0, -0.5 * jnp.sum(x**2), -jnp.inf))
    assert abs(found.evidence.log_z - np.log(np.pi)) < 4.0 * found.evidence.log_z_stderr
    assert abs(found.evidence.outside - 0.5) < 0.02 and found.verdict.level != "not to be used"


@pytest.mark.parametrize("shift, scale", [(5.0, 1.0), (0.0, 4.0)], ids=["beside", "wider"])
def test_mass_beyond_the_draws_is_told(shift, scale):
    found = trained().reweight(lambda x: -0.5 * jnp.sum(((x - shift) / scale) ** 2))
    assert found.verdict.level == "not to be used"
    assert "cs.train_sampler(rng_key, target, start=trained)" in found.verdict.words


def test_what_cannot_be_reweighted_says_so():
    sampler = trained()
    with pytest.raises(ValueError, match="have 2 dimensions, and target 'other' has 3"):
        sampler.reweight(cs.Target(lambda x: -0.5 * jnp.sum(x**2), 3, "other"))
    with pytest.raises(ValueError, match="Every weight is zero"):
        sampler.reweight(lambda x: jnp.where(x[0] > 99.0, 0.0, -jnp.inf))
    with pytest.raises(TypeError, match="rng_key"):
        sampler.reweight(lambda x: 0.0 * x[0], 3)
    algorithm = cs.osds(sampler.target, base=cs.bases.standard_normal(2), hidden=(8,))
    guided = algorithm.sampler(algorithm.init(KEY))
    with pytest.raises(ValueError, match="guided control"):
        dataclasses.replace(sampler, one_step=guided).reweight(sampler.target)


# --- models ------------------------------------------------------------------------------------

Y = np.random.default_rng(1).normal(1.0, 1.0, 8).astype(np.float32)


def of_mean(y, width=2.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, width))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def positive(y):
    mu = numpyro.sample("mu", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def conjugate(y, width=2.0):
    """Posterior mean and standard deviation, and log Z."""
    precision = width**-2 + len(y)
    log_z = multivariate_normal(np.zeros(len(y)), np.eye(len(y)) + width**2).logpdf(y)
    return y.sum() / precision, precision**-0.5, log_z


@pytest.fixture(scope="module")
def sampler():
    made = OneStepSampler(of_mean, **BASE)
    made.run(KEY, Y)
    return made


def check(found, mean, std, log_z):
    assert abs(found.evidence.log_z - log_z) < 4.0 * found.evidence.log_z_stderr + 2e-3
    assert found.samples["mu"].shape == (BASE["num_samples"],)
    assert abs(found.samples["mu"].mean() - mean) < 0.08 * std
    assert abs(found.samples["mu"].std() / std - 1.0) < 0.08


def test_its_own_model_changes_nothing(sampler):
    found = sampler.reweight()
    check(found, *conjugate(Y))
    np.testing.assert_allclose(found.draws.log_weight, sampler.get_weighted_samples()[1], atol=1e-4)


def test_another_prior_and_other_data_of_the_model(sampler):
    check(sampler.reweight(of_mean, Y, width=1.0), *conjugate(Y, 1.0))
    check(sampler.reweight(None, Y[:-1]), *conjugate(Y[:-1]))  # one observation left out


def test_a_model_with_a_smaller_support(sampler):
    found = sampler.reweight(positive)
    own = sampler.get_samples()["mu"]
    # Twice the density where there is any.
    log_z = conjugate(Y)[2] + np.log(2.0) + np.log((own > 0.0).mean())
    assert abs(found.evidence.log_z - log_z) < 0.02 and (found.samples["mu"] > 0.0).all()


def test_powers_of_prior_and_likelihood(sampler):
    prior_power, likelihood_power = 1.3, 0.8
    found = sampler.reweight(prior_power=prior_power, likelihood_power=likelihood_power)
    grid = np.linspace(-6.0, 6.0, 20_001)
    log_prior = -0.5 * (grid / 2.0) ** 2 - np.log(2.0) - 0.5 * np.log(2.0 * np.pi)
    log_likelihood = (-0.5 * (Y[:, None] - grid) ** 2 - 0.5 * np.log(2.0 * np.pi)).sum(0)
    density = np.exp(prior_power * log_prior + likelihood_power * log_likelihood)
    step = grid[1] - grid[0]
    mean = np.average(grid, weights=density)
    std = np.sqrt(np.average((grid - mean) ** 2, weights=density))
    check(found, mean, std, np.log(density.sum() * step))
    assert found.verdict.level == "trusted"


def test_constraint_transforms_are_those_of_the_draws():
    """A scale with a log-normal prior, powered: the Jacobian is of neither."""

    def model():
        numpyro.sample("scale", dist.LogNormal(0.0, 0.5))

    made = OneStepSampler(model, **BASE)
    made.run(KEY)
    found = made.reweight(prior_power=2.0)
    # LogNormal(0, s)² is proportional to x^-2 exp(-(log x / s)²): log-normal around -s²/2.
    expected = np.log(1.0 / (2.0 * 0.5 * np.sqrt(np.pi))) + 0.5**2 / 4.0
    assert abs(found.evidence.log_z - expected) < 4.0 * found.evidence.log_z_stderr + 2e-3
    assert abs(np.log(found.samples["scale"]).mean() + 0.5**2 / 2.0) < 0.03


def test_what_a_model_cannot_be_reweighted_to_says_so(sampler):
    def renamed(y):
        numpyro.sample("nu", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match=r"call run\(rng_key"):
        OneStepSampler(of_mean).reweight()
    with pytest.raises(ValueError, match="names and shapes must be the same"):
        sampler.reweight(renamed)
    with pytest.raises(ValueError, match="likelihood_power must be a number"):
        sampler.reweight(likelihood_power=-1.0)
    far = sampler.reweight(None, Y + 50.0)
    assert far.verdict.level == "not to be used" and "OneStepSampler" in far.verdict.words


def test_sensitivity_to_powers_is_arvizs():
    """A prior far from the data: both matter. A flat one: only the data."""
    pytest.importorskip("arviz_stats")

    def table(loc, width):
        def model(y):
            mu = numpyro.sample("mu", dist.Normal(loc, width))
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        made = OneStepSampler(model, **BASE)
        made.run(KEY, Y)
        return made.sensitivity().loc["mu"]

    flat, conflict = table(0.0, 100.0), table(6.0, 0.5)
    assert flat["prior"] < 0.05 < flat["likelihood"] and flat["diagnosis"].strip() in ("-", "✓")
    assert conflict["prior"] > 0.05 and "conflict" in conflict["diagnosis"]
