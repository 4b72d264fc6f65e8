"""Expectations with control variates: exact where they must be, and covered where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import consistent_samplers as cs
from consistent_samplers.corrections.expectations import stein_terms

KEY = jax.random.key(0)
MEAN, SCALE = jnp.array([1.0, -2.0]), jnp.array([[1.0, 0.0], [0.8, 0.5]])
GAUSSIAN = cs.targets.gaussian(MEAN, SCALE @ SCALE.T)


def banana(x):
    """x_0 ~ N(0, 1), x_1 | x_0 ~ N(x_0² / 2, 1/4)."""
    normal = jax.scipy.stats.norm.logpdf
    return normal(x[0]) + normal(x[1], 0.5 * x[0] ** 2, 0.5)


BANANA = cs.Target(banana, 2)


def weighted(key, target, width, num=2_000):
    """Draws of a wide Gaussian."""
    x = width * jax.random.normal(key, (num, target.dim))
    log_q = jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, width), 1)
    return cs.Draws(x, jax.vmap(target.log_density)(x) - log_q, bound="lower")


def moments(x):
    return jnp.concatenate([x, jnp.outer(x, x).ravel()])


def test_functions_up_to_second_order_of_a_gaussian_are_exact():
    draws = weighted(KEY, GAUSSIAN, 3.0)
    found = cs.expectation(draws, moments, GAUSSIAN)
    second = SCALE @ SCALE.T + jnp.outer(MEAN, MEAN)
    exact = jnp.concatenate([MEAN, second.ravel()])
    np.testing.assert_allclose(found.value, exact, atol=2e-3)
    assert (found.variance_ratio < 1e-4).all() and (found.stderr < 1e-3).all()
    plain = cs.expectation(draws, moments)
    assert np.abs(plain.value - exact).max() > 0.02
    assert (plain.variance_ratio == 1.0).all()
    np.testing.assert_allclose(
        found.stderr, plain.stderr * np.sqrt(found.variance_ratio), rtol=1e-3
    )


@pytest.mark.parametrize("target", [BANANA, None], ids=["control variates", "none"])
def test_intervals_cover(target):
    """Of E[x_1] = 1/2 and E[exp(x_0 / 2)], over sets of draws; neither is a quadratic's."""
    num = 300

    def functions(x):
        return jnp.array([x[1], jnp.exp(0.5 * x[0])])

    def one(key):
        return cs.expectation(weighted(key, BANANA, 2.0, 1_000), functions, target)

    found = jax.lax.map(one, jax.random.split(KEY, num))
    value, stderr, ratio = map(np.asarray, found[:3])
    exact = np.array([0.5, np.exp(0.125)])
    inside = (np.abs(value - exact) < 1.96 * stderr).sum(0)
    assert (inside >= st.binom(num, 0.95).ppf(1e-3)).all()
    # Standard errors are those of the estimates, and smaller by what is said.
    np.testing.assert_allclose(value.std(0), stderr.mean(0), rtol=0.15)
    assert (ratio.mean(0) < [0.5, 0.9]).all() if target is not None else (ratio == 1.0).all()


def test_terms_have_expectation_zero():
    x = jax.random.normal(KEY, (200_000, 2))
    x = x.at[:, 1].set(0.5 * x[:, 0] ** 2 + 0.5 * x[:, 1])
    terms = np.asarray(stein_terms(x, jax.vmap(jax.grad(banana))(x), 5), float)
    assert terms.shape[1] == 5
    assert (np.abs(terms.mean(0)) < 5.0 * terms.std(0) / len(x) ** 0.5).all()


def test_it_goes_through_jit_and_keeps_shapes():
    draws = weighted(KEY, BANANA, 2.0)

    def of(draws):
        return cs.expectation(draws, lambda x: jnp.outer(x, x), BANANA)

    plain, compiled = of(draws), jax.jit(of)(draws)
    assert plain.value.shape == plain.stderr.shape == plain.variance_ratio.shape == (2, 2)
    np.testing.assert_allclose(plain.value, compiled.value, atol=1e-4)


def test_what_has_no_score_counts_for_nothing():
    def half(x):
        return jnp.where(x[0] > 0, -0.5 * jnp.sum(x**2), -jnp.inf)

    draws = weighted(KEY, cs.Target(half, 2), 1.5)
    found = cs.expectation(draws, lambda x: x[1] ** 2, cs.Target(half, 2))
    assert abs(float(found.value) - 1.0) < 5.0 * float(found.stderr) + 1e-3


def test_what_cannot_be_used_is_refused():
    draws = weighted(KEY, BANANA, 2.0)
    with pytest.raises(ValueError, match="2 dimensions, target 'funnel' has 3"):
        cs.expectation(draws, lambda x: x[0], cs.targets.funnel(3))
    resampled = cs.corrections.resample(KEY, draws)
    with pytest.raises(ValueError, match=r"no importance weights.*resampled.* take plain means"):
        cs.expectation(resampled, lambda x: x[0])
    for function in (lambda x: jnp.exp(1j * x[0]), lambda x: None):
        with pytest.raises(TypeError, match="must return real numbers"):
            cs.expectation(draws, function)
    for weight in (-1e4, -jnp.inf):  # of all but one
        alone = draws.replace(log_weight=jnp.where(jnp.arange(2_000) == 0, 0.0, weight))
        with pytest.raises(ValueError, match="1 of 2000 draws has a weight"):
            cs.expectation(alone, lambda x: x[0])


def test_few_effective_draws_are_no_worse_with_control_variates():
    target = cs.targets.gaussian(jnp.zeros(8), jnp.eye(8))
    draws = weighted(KEY, target, 4.0, 1_000)

    def judged_by_itself(draws):  # under jit nothing is judged
        plain, found = (cs.expectation(draws, jnp.cos, to) for to in (None, target))
        return plain, found

    plain, found = jax.jit(judged_by_itself)(draws)
    assert (found.stderr <= plain.stderr).all() and (found.variance_ratio <= 1.0).all()
    assert (found.variance_ratio == 1.0).any() and np.isfinite(found.stderr).all()
    assert found.level is None and found.ess < 0.1


FAR = jax.random.normal(KEY, (2_000, 1))
UNUSABLE = {
    "far": cs.Draws(FAR, 6.0 * FAR[:, 0] - 18.0, bound="lower"),  # of N(0, 1), for N(6, 1)
    "of no kind": cs.Draws(FAR, 6.0 * FAR[:, 0] - 18.0),
    "few": cs.Draws(FAR[:20], jnp.zeros(20), bound="lower"),
    "heuristic": cs.Draws(FAR, jnp.zeros(2_000), bound="heuristic"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_weights_that_are_not_to_be_used_have_no_standard_error(name):
    draws = UNUSABLE[name]
    with pytest.warns(RuntimeWarning, match="weights of these draws are not to be used"):
        found = cs.expectation(draws, lambda x: {"x": x[0], "both": jnp.array([x[0], 1.0])})
    assert found.level == "not to be used" and np.isinf(found.stderr["both"]).all()
    assert np.isinf(found.stderr["x"]) and np.isfinite(found.value["x"])
    assert 0.0 < found.ess <= 1.0


def test_the_worth_of_weights_is_in_the_result():
    draws = weighted(KEY, BANANA, 2.0)
    found, expected = cs.expectation(draws, lambda x: x[0], BANANA), cs.evidence(draws)
    assert found.level == cs.diagnostics.verdict(expected).level != "not to be used"
    np.testing.assert_allclose([found.ess, found.pareto_k], [expected.ess, expected.pareto_k], 1e-5)


def test_trees_of_values_have_expectations_each():
    draws = weighted(KEY, BANANA, 2.0)
    found = cs.expectation(draws, lambda x: {"a": x[0], "b": (jnp.outer(x, x), x[1] > 0.0)}, BANANA)
    assert found.value["a"].shape == () and found.stderr["b"][0].shape == (2, 2)
    each = [cs.expectation(draws, f, BANANA) for f in (lambda x: x[0], lambda x: x[1] > 0.0)]
    for one, of_tree in zip(each, (found.value["a"], found.value["b"][1]), strict=True):
        np.testing.assert_allclose(one.value, of_tree, rtol=1e-4, atol=1e-5)
