"""Answers of a family against closed forms, in all its forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from amortized_models import TINY, bare, column, designs, regression
from scipy.special import logsumexp

import consistent_samplers as cs
from consistent_samplers.amortized import calibration, escalation
from consistent_samplers.amortized.answering import Answers


def linear_sets(sizes, seed=0):
    random, found = np.random.default_rng(seed), []
    for num in sizes:
        X = random.normal(size=(num, 2))
        y = X @ random.normal(size=2) + 0.5 * random.normal(size=num)
        found.append(((X,), {"y": y}))
    return found


def school_sets(sizes, seed=0):
    random, found = np.random.default_rng(seed), []
    for num in sizes:
        sigma = random.uniform(2.0, 6.0, num)
        y = 5.0 * random.normal() + 3.0 * random.normal(size=num) + sigma * random.normal(size=num)
        found.append(((sigma,), {"y": y}))
    return found


def log_normal(y, covariance):
    return -0.5 * (
        y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    )


def test_linear_regression_has_its_closed_form(linear):
    sets = linear_sets((4, 6, 9, 5))
    many = linear.condition_many(jax.random.key(1), sets, progress_bar=False)
    for i, ((X,), kwargs) in enumerate(sets):
        y = kwargs["y"]
        exact = log_normal(y, 0.25 * np.eye(len(y)) + X @ X.T)
        stderr = float(many.evidence.log_z_stderr[i])
        np.testing.assert_allclose(many.evidence.log_z[i], exact, atol=5.0 * stderr + 1e-3)
        precision = np.eye(2) + X.T @ X / 0.25
        mean, covariance = np.linalg.solve(precision, X.T @ y / 0.25), np.linalg.inv(precision)
        drawn = many.get_samples()["b"][i]
        spread = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(drawn.mean(0), mean, atol=5.0 * spread.max() / 2_000**0.5)
        np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.15 * spread.max() ** 2)
    assert many.trusted.all() and not many.escalated.any() and not many.unlike.any()
    assert (np.asarray(many.evidence.ess) > 0.9).all()


@pytest.mark.slow
def test_members_drop_out_of_padded_data_sets(members):
    sets = school_sets((3, 6, 4))
    many = members.condition_many(jax.random.key(1), sets, progress_bar=False)
    for i, ((sigma,), kwargs) in enumerate(sets):
        exact = log_normal(kwargs["y"], np.diag(9.0 + sigma**2) + 25.0)
        np.testing.assert_allclose(many.evidence.log_z[i], exact, atol=0.02)
    # Members given globals are Gaussian, and so are globals: next to nothing is left to learn.
    assert (np.asarray(many.evidence.ess) > 0.9).all()
    theta = many.samples["theta"]
    assert theta.shape == (3, 2_000, 6)
    assert np.isnan(theta[0, :, 3:]).all() and np.isfinite(theta[0, :, :3]).all()


@pytest.mark.slow
def test_one_data_set_answers_as_a_sampler_does(linear):
    ((X,), kwargs), *_ = linear_sets((6,))
    one = linear.condition(jax.random.PRNGKey(3), X=X, **kwargs)
    again = linear.condition(jax.random.PRNGKey(3), X, **kwargs)
    np.testing.assert_array_equal(one.log_weight, again.log_weight)
    assert one.get_samples()["b"].shape == (2_000, 2)
    assert one.get_weighted_samples()[1].shape == (2_000,)
    assert one.route.name == "amortized" and one.escalated is None
    assert one.verdict.level == "trusted"
    assert one.evidence.bound == "lower"


def test_more_rows_than_were_simulated_are_weighed_exactly_and_said(linear):
    ((X,), kwargs), *_ = sets = linear_sets((20,))
    many = linear.condition_many(jax.random.key(0), sets, progress_bar=False)
    exact = log_normal(kwargs["y"], 0.25 * np.eye(20) + X @ X.T)
    np.testing.assert_allclose(many.evidence.log_z[0], exact, atol=0.02)
    assert many.unlike.all() and "of 20 rows, 4 to 9 were simulated" in many.verdicts[0].words


def test_data_unlike_the_simulated_are_said_to_be(linear):
    ((X,), kwargs), *_ = linear_sets((6,))
    far = linear.condition(jax.random.key(0), X, y=1_000.0 * kwargs["y"], escalate=False)
    assert "unlike the simulated ones" in far.verdict.words


@pytest.mark.slow
def test_a_family_that_is_saved_answers_the_same(members, tmp_path):
    sets = school_sets((5, 3))
    members.save(tmp_path)
    again = cs.load_family(tmp_path, members.model.model)
    first, second = (
        f.condition_many(jax.random.key(1), sets, progress_bar=False) for f in (members, again)
    )
    np.testing.assert_allclose(first.log_weight, second.log_weight, atol=1e-4)
    assert members.map.heavy  # whatever its training drew from

    def other(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        with numpyro.plate("schools", sigma.shape[0]):
            theta = numpyro.sample("theta", dist.Normal(mu, 3.1))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    with pytest.raises(ValueError, match="another one: its log density is"):
        cs.load_family(tmp_path, other)
    with pytest.raises(ValueError, match="another one"):
        cs.load_family(tmp_path, regression)


@pytest.mark.slow
def test_ranks_are_uniform_with_weights(linear):
    check = linear.calibration_check(jax.random.key(5), 300, progress_bar=False)
    assert list(check.ranks) == ["b[0]", "b[1]"]
    assert check.is_uniform_weighted and check.num_used == 300
    # Of draws that are too narrow they are not.
    narrow = {name: np.clip(2.0 * (x - 0.5) + 0.5, 0.0, 1.0) for name, x in check.ranks.items()}
    wrong = cs.amortized.CalibrationCheck(narrow, narrow, 300, check.limit, check.limit)
    assert not wrong.is_uniform


def test_entries_that_are_constant_have_uniform_ranks(monkeypatch):
    def correlated(x, y=None):
        root = numpyro.sample("L", dist.LKJCholesky(2, 2.0))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(2), scale_tril=root), obs=y)

    def answered(keys, family, given, num_samples):  # of no data: draws of the prior
        shape = len(given), num_samples
        drawn = dist.LKJCholesky(2, 2.0).sample(jax.random.key(1), shape)
        return Answers({"L": np.asarray(drawn)}, np.zeros(shape), np.zeros(len(given)))

    monkeypatch.setattr(calibration, "answered", answered)
    family = bare(correlated, column, (4, 4))
    check = family.calibration_check(jax.random.key(2), 300, num_samples=200, progress_bar=False)
    assert list(check.ranks) == ["L[0,0]", "L[0,1]", "L[1,0]", "L[1,1]"]
    assert check.is_uniform and check.is_uniform_weighted


def test_data_sets_may_come_one_by_one(linear):
    sets = linear_sets((4, 5))
    together = linear.condition_many(jax.random.key(0), sets, progress_bar=False)
    pairs = zip([args for args, _ in sets], [kwargs for _, kwargs in sets], strict=True)
    again = linear.condition_many(jax.random.key(0), pairs, progress_bar=False)
    np.testing.assert_array_equal(together.log_weight, again.log_weight)


def moved(family, shift):
    """The same family with its draws of globals moved by standard deviations."""
    last = family.params["globals"]["params"]["Dense_2"]
    params = jax.tree.map(lambda x: x, family.params)
    params["globals"]["params"]["Dense_2"] = last | {"bias": last["bias"].at[:, 0].add(shift)}
    return dataclasses.replace(family, params=params)


@pytest.mark.slow
def test_data_sets_that_are_not_to_be_used_have_a_short_training_of_the_map(linear):
    wrong, sets = moved(linear, 2.5), linear_sets((4, 6))
    before = wrong.condition_many(jax.random.key(1), sets, progress_bar=False)
    assert not before.trusted.any() and not before.escalated.any()
    many = wrong.condition_many(jax.random.key(1), sets, escalate=True, progress_bar=False)
    assert many.escalated.all() and many.trusted.all()
    for i, ((X,), kwargs) in enumerate(sets):
        exact = log_normal(kwargs["y"], 0.25 * np.eye(len(X)) + X @ X.T)
        np.testing.assert_allclose(many.evidence.log_z[i], exact, atol=0.02)
        assert many.routes[i].name == "short"
        assert list(many.routes[i].stages) == ["amortized", "short"]
        assert many.evidence.ess[i] > 0.8 > 0.2 > before.evidence.ess[i]
    # One that can be used stays as it is beside one that cannot.
    again = linear.condition_many(jax.random.key(1), sets, progress_bar=False, escalate=True)
    assert not again.escalated.any()
    ((X,), kwargs), *_ = sets
    one = wrong.condition(jax.random.key(2), X, **kwargs)
    assert one.route.name == "short" and one.escalated is None and one.verdict.level == "trusted"


@pytest.mark.slow
def test_a_short_training_that_loses_mass_is_not_taken(linear, monkeypatch):
    monkeypatch.setattr(escalation, "_MAX_SHORT", -1e6)  # as if log Z had fallen
    ((X,), kwargs), *_ = linear_sets((6,))
    one = moved(linear, 2.5).condition(jax.random.key(2), X, **kwargs)
    assert one.escalated is not None and one.verdict.level == "trusted"
    assert list(one.route.stages)[:3] == ["amortized", "short", "base"]


def several(waves, noise):
    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(waves(a) + 0.0 * x, noise), obs=y)

    def log_z(y):
        grid = np.linspace(-8.0, 8.0, 400_001)
        log_rho = st.norm.logpdf(grid)
        log_rho += st.norm.logpdf(y[:, None], np.asarray(waves(grid)), noise).sum(0)
        return logsumexp(log_rho) + np.log(grid[1] - grid[0])

    return model, lambda rng_key, num_rows: ((jnp.zeros(num_rows),), {}), log_z


@pytest.mark.slow
def test_a_map_has_a_frame_at_each_of_several_modes():
    model, covariates, log_z = several(lambda a: 20.0 * jnp.abs(a), 1.0)
    family = cs.amortize(
        jax.random.key(0), model, covariates, num_rows=5, observed={"y": "y"}, **TINY
    )
    assert family.map.num_modes == 2 and family.missed < 0.01
    x, y = jnp.zeros(5), np.full(5, 30.0)
    one = family.condition(jax.random.key(1), x, y=y)
    assert one.verdict.level == "trusted" and one.route.name == "amortized"
    np.testing.assert_allclose(one.evidence.log_z, log_z(y), atol=0.02)
    drawn = one.get_samples()["a"]
    assert np.mean(drawn > 0) == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(np.abs(drawn).mean(), 1.5, atol=0.02)


@pytest.mark.slow
def test_data_sets_of_more_modes_than_a_map_can_have_are_trained_on_by_themselves():
    model, covariates, log_z = several(lambda a: jnp.sin(8.0 * a), 0.2)
    settings = TINY | dict(num_iterations=(0, 0))
    with pytest.warns(RuntimeWarning, match="this family hardly draws"):
        family = cs.amortize(
            jax.random.key(0), model, covariates, num_rows=5, observed={"y": "y"}, **settings
        )
    assert family.missed > 0.05
    x, y = jnp.zeros(5), np.full(5, 0.3)
    alone = family.condition(jax.random.key(1), x, y=y, escalate=False)
    assert alone.verdict.level == "not to be used"
    assert "a mode may be missing" in alone.verdict.words
    many = family.condition_many(
        jax.random.key(1), [((x,), {"y": y})], escalate=True, progress_bar=False
    )
    assert many.escalated[0] and many.trusted[0] and many.routes[0].name != "amortized"
    np.testing.assert_allclose(many.evidence.log_z[0], log_z(y), atol=0.05)


@pytest.mark.slow
def test_old_and_new_keys_train_alike():
    settings = dict(num_rows=5, observed={"y": "y"}, **TINY | dict(num_iterations=(0, 0)))
    first, second = (
        cs.amortize(key, regression, designs, **settings)
        for key in (jax.random.key(7), jax.random.PRNGKey(7))
    )
    np.testing.assert_array_equal(first.standard.data_set, second.standard.data_set)
