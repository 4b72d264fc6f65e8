"""Draws under another density: log Z, verdicts, other priors, powers of prior and likelihood."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import consistent_samplers as cs
from consistent_samplers.bridge import Bridge
from consistent_samplers.corrections import Chains, reweight_chains
from consistent_samplers.diagnostics import ExplorationCheck, Mixing, Verdict
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.integrations.numpyro.model import flatten_model

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


def test_a_sampler_that_is_not_to_be_used_gives_no_better_draws_of_another_density():
    """It sits in one of two modes, which the weights cannot show; and it has missed modes."""
    missed = dataclasses.replace(trained(), exploration=ExplorationCheck(2, 1, 1.0, math.nan))
    found = missed.reweight(missed.target)
    assert found.verdict.level == "not to be used"
    assert missed.verdict(found.evidence).findings in found.verdict.words
    # Of which the corrections know what they are told.
    own = Verdict("usable", "A heavy tail.\nTo improve: train longer.")
    of = cs.corrections.reweight(KEY, missed.one_step, missed.target, judged=own)
    assert of.verdict.level == "usable" and "A heavy tail." in of.verdict.findings
    assert of.verdict.words.endswith("To improve: train longer.")


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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"guided control .* guide=target"):
        cs.corrections.reweight(KEY, guided, sampler.target)


# --- chains -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chained():
    """A sampler whose one step is far too narrow, and chains that are not."""
    target = trained().target
    wide, narrow = (cs.Sampler.of_base(cs.bases.standard_normal(2, scale)) for scale in (1.2, 0.2))
    chains = cs.corrections.latent_chains(KEY, target, wide, num_warmup=200, num_samples=1_000)
    return cs.TrainedSampler(target, narrow, narrow, chains=chains)


def test_chains_are_reweighted_where_these_are_what_to_go_by(chained):
    other = cs.targets.gaussian(jnp.full(2, 0.4), jnp.full(2, 0.7))
    found = chained.reweight(lambda x: other.log_density(x) + 3.0)
    np.testing.assert_array_equal(found.draws.position, chained.chains.position.reshape(-1, 2))
    evidence = found.evidence
    assert abs(evidence.log_z - other.log_z - 3.0) < 4.0 * evidence.log_z_stderr < 0.2
    assert evidence.elbo < evidence.log_z and found.verdict.level == "trusted"
    mean, std = cs.corrections.weighted_moments(found.draws)
    np.testing.assert_allclose(mean, 0.4, atol=0.08)
    np.testing.assert_allclose(std**2, 0.7, atol=0.08)
    # Of the same density log Z is the chains' own.
    same = chained.reweight(chained.target).evidence
    assert abs(same.log_z - chained.chains.log_z.log_z) < 1e-5
    assert abs(same.log_z_stderr - chained.chains.log_z.log_z_stderr) < 1e-5
    far = chained.reweight(lambda x: -0.5 * jnp.sum((x - 6.0) ** 2))
    assert far.verdict.level == "not to be used"


def test_reweighted_chains_are_worth_no_more_than_the_chains(chained):
    poor = chained.chains._replace(mixing=Mixing(1.03, 900.0, 800.0, 0.0))
    found = dataclasses.replace(chained, chains=poor).reweight(chained.target)
    assert found.verdict.level == "usable" and "r-hat of 1.030" in found.verdict.words
    # Chains that are worth less than one step are left alone.
    worse = chained.chains._replace(mixing=Mixing(1.3, 9.0, 8.0, 0.0))
    found = dataclasses.replace(trained(), chains=worse).reweight(chained.target, KEY, 500)
    assert found.draws.position.shape == (500, 2)
    with pytest.raises(ValueError, match="have 2 dimensions, and target 'other' has 3"):
        chained.reweight(cs.Target(lambda x: -0.5 * jnp.sum(x**2), 3, "other"))


def test_neighbours_of_a_chain_count_as_what_they_are():
    """Autoregressions of N(0, 1), weighted for N(0.3, 1)."""
    rng, errors = np.random.default_rng(0), []
    old, new = (cs.targets.gaussian(jnp.full(1, loc), jnp.ones(1)) for loc in (0.0, 0.3))
    for _ in range(60):
        x = rng.normal(size=(4, 500, 1))
        for i in range(1, 500):
            x[:, i] = 0.9 * x[:, i - 1] + np.sqrt(1.0 - 0.9**2) * x[:, i]
        position = jnp.asarray(x, jnp.float32)
        mixed, log_z = Mixing(1.0, 400.0, 400.0, 0.0), Bridge(old.log_z, 0.0)
        chains = Chains(position, position[..., 0], position[..., 0] > 9, mixed, log_z, None)
        found = reweight_chains(chains, Verdict("trusted", ""), old, new).evidence
        errors.append(float((found.log_z - new.log_z) / found.log_z_stderr))
    assert 0.6 < np.std(errors) < 1.4


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


@pytest.mark.slow
def test_chains_of_a_model_are_reweighted():
    made = OneStepSampler(of_mean, **BASE | {"effort": "chains"})
    made.run(KEY, Y)
    found = made.reweight(of_mean, Y, width=1.0)
    mean, std, log_z = conjugate(Y, 1.0)
    drawn = made.get_samples()["mu"]
    assert found.samples["mu"].shape == drawn.shape == (4_000,)
    assert set(np.asarray(found.samples["mu"])) <= set(np.asarray(drawn))
    assert abs(found.evidence.log_z - log_z) < 4.0 * found.evidence.log_z_stderr + 2e-3
    assert abs(found.samples["mu"].mean() - mean) < 0.1 * std
    assert abs(found.samples["mu"].std() / std - 1.0) < 0.1


def test_another_prior_and_other_data_of_the_model(sampler):
    check(sampler.reweight(of_mean, Y, width=1.0), *conjugate(Y, 1.0))
    check(sampler.reweight(None, Y[:-1]), *conjugate(Y[:-1]))  # one observation left out


def test_a_model_with_a_smaller_support(sampler):
    found = sampler.reweight(positive)
    own = sampler.get_samples()["mu"]
    # Twice the density where there is any.
    log_z = conjugate(Y)[2] + np.log(2.0) + np.log((own > 0.0).mean())
    assert abs(found.evidence.log_z - log_z) < 0.02 and (found.samples["mu"] > 0.0).all()


SUPPORTS = {
    "half-normal": (dist.HalfNormal(2.0), dist.Normal(0.0, 2.0), "'mu' of the new model"),
    "uniform": (dist.Uniform(0.0, 1.0), dist.Uniform(0.0, 1.01), "'mu' of the new model"),
    "ordered": (
        dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)),
        dist.Normal(0.0, 1.0).expand([2]).to_event(1),
        "'mu' of the new model",
    ),
    "simplex": (
        dist.Dirichlet(jnp.ones(3)),
        dist.Normal(0.0, 1.0).expand([3]).to_event(1),
        "unconstrained ones too",
    ),
    "same": (dist.Uniform(1e6, 1e6 + 1.0), dist.Uniform(1e6, 1e6 + 1.0), None),
    "same, far out": (dist.LKJCholesky(4, 2.0), dist.LKJCholesky(4, 1.0), None),
    "smaller": (dist.Normal(0.0, 1.0), dist.TruncatedNormal(0.0, 1.0, low=0.5), None),
}


def of_prior(prior):
    def model(y):
        mu = numpyro.sample("mu", prior)
        numpyro.sample("y", dist.Normal(jnp.mean(mu), 1.0), obs=y)

    return model


def as_drawn(model, *args, **kwargs):
    """A sampler of a model that has its draws from a standard normal base."""
    flat = flatten_model(model, args, kwargs)
    base = cs.Sampler.of_base(cs.bases.standard_normal(flat.target.dim))
    made = OneStepSampler(model, effort="base", progress_bar=False, num_samples=500)
    made._training = flat, cs.TrainedSampler(flat.target, base, base)
    made.run(KEY, *args, **kwargs)
    return made


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_larger_support_is_refused(name):
    old, new, words = SUPPORTS[name]
    made = as_drawn(of_prior(old), Y)
    if words is None:
        assert np.isfinite(made.reweight(of_prior(new)).evidence.log_z)
        return
    with pytest.raises(ValueError, match=words):
        made.reweight(of_prior(new))


def test_a_support_that_grows_with_the_data_is_refused():
    def model(most):
        numpyro.sample("x", dist.Uniform(0.0, most))

    made = as_drawn(model, jnp.asarray(2.0))
    assert abs(made.reweight(None, jnp.asarray(1.0)).evidence.log_z) < 0.3
    with pytest.raises(ValueError, match="'x' of the new model has a larger support"):
        made.reweight(None, jnp.asarray(3.0))


def test_a_smaller_support_of_several_axes_is_held(sampler):
    """A vector and its order: of the draws those in order have a density."""
    old = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    found = as_drawn(of_prior(old), Y).reweight(
        of_prior(dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    )
    assert abs(found.evidence.outside - 0.5) < 0.1
    assert (np.diff(found.samples["mu"]) > 0.0).all()


def test_a_run_that_is_not_to_be_used_stays_so():
    missed = ExplorationCheck(2, 1, 1.0, math.nan)
    made = as_drawn(of_prior(dist.Normal(0.0, 1.0)), Y[:1])
    flat, known = made._training
    made._training = flat, dataclasses.replace(known, exploration=missed)
    made.run(KEY, Y[:1])
    found = made.reweight(prior_power=1.01)
    assert found.verdict.level == "not to be used" and made.verdict.findings in found.verdict.words
    pytest.importorskip("arviz_stats")
    with pytest.warns(UserWarning, match="rests on draws that are not to be used"):
        made.sensitivity()


@pytest.mark.parametrize("power", [np.float32(0.5), jnp.asarray(0.5), np.int64(1), 1])
def test_powers_are_numbers_of_any_kind(sampler, power):
    assert sampler.reweight(prior_power=power).draws.position.shape == (4_000, 1)


def test_a_keyword_with_the_name_of_a_power_is_told_apart():
    def model(y, prior_power=1.0):
        mu = numpyro.sample("mu", dist.Normal(0.0, prior_power))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    made = as_drawn(model, Y[:2])
    with pytest.raises(ValueError, match=r"'model' has an argument 'prior_power'.*lambda y: model"):
        made.reweight(None, Y[:2], prior_power=2.0)
    found = made.reweight(lambda y: model(y, prior_power=2.0), Y[:2]).evidence
    assert abs(found.log_z - conjugate(Y[:2], 2.0)[2]) < 4.0 * found.log_z_stderr


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
    with pytest.raises(ValueError, match="prior_power must be a number"):
        sampler.reweight(prior_power="0.5")
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
