"""Samplers that train nothing: their laws against closed forms, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import consistent_samplers as cs
from consistent_samplers.training_free import (
    ensemble_score,
    polar_slice,
    reverse_diffusion,
    walk_jump,
)

KEY = jax.random.key(0)
MEAN, COVARIANCE = np.array([0.8, -0.5]), np.array([[0.8, 0.3], [0.3, 0.5]])
GAUSSIAN = cs.targets.gaussian(MEAN, COVARIANCE)


@jax.custom_jvp
def without_gradient(x):
    return x


@without_gradient.defjvp
def _refuse(primals, tangents):
    raise AssertionError("a gradient was taken")


def two_modes(dim=2, share=0.3, place=2.0, scale=0.5):
    """Two Gaussians at ± place in the first coordinate, a share of the mass on the right."""
    loc = np.zeros(dim)
    loc[0] = place

    def log_density(x):
        right = jax.scipy.stats.norm.logpdf(x, loc, scale).sum() + np.log(share)
        left = jax.scipy.stats.norm.logpdf(x, -loc, scale).sum() + np.log(1.0 - share)
        return jnp.logaddexp(left, right)

    return cs.Target(log_density, dim, log_z=0.0)


def student(dim, degrees, loc=0.0):
    """A multivariate Student t: |x - loc|² / dim has the law F(dim, degrees)."""

    def log_density(x):
        return -0.5 * (degrees + dim) * jnp.log1p(((x - loc) ** 2).sum() / degrees)

    def sample(rng_key, num_samples):
        key_normal, key_gamma = jax.random.split(rng_key)
        normal = jax.random.normal(key_normal, (num_samples, dim))
        gamma = jax.random.gamma(key_gamma, degrees / 2, (num_samples, 1)) / (degrees / 2)
        return loc + normal / jnp.sqrt(gamma)

    return cs.Target(log_density, dim, sample=sample)


@pytest.mark.parametrize("bounds", [{}, {"max_expansions": 2, "max_shrinkages": 2}])
def test_polar_slices_leave_heavy_tails_as_they_are(bounds):
    target, loc = student(10, 2.0, 0.3), 0.3
    initial = target.sample(KEY, 4_000)
    base = cs.bases.GaussianBase(jnp.full(10, 0.1), 1.5 * jnp.eye(10))
    chains = polar_slice(jax.random.key(1), target, initial, 4, base=base, width=4.0, **bounds)
    end = np.asarray(chains.position[:, -1], float)
    assert np.mean(np.abs(end - np.asarray(initial)) > 0.0) > 0.5  # they moved
    # Independent draws before and after: each test fails by chance once in 10,000 seeds.
    radius = ((end - loc) ** 2).mean(1)
    assert scipy.stats.kstest(radius, scipy.stats.f(10, 2).cdf).pvalue > 1e-4
    first = (end[:, 0] - loc).astype(float)
    assert scipy.stats.kstest(first, scipy.stats.t(2).cdf).pvalue > 1e-4
    if bounds:
        assert int(chains.num_evaluations.max()) <= 1 + 4 * (2 * 2 + 2)


def test_polar_slices_find_the_radii_of_heavy_tails_from_afar():
    target = student(10, 3.0)
    initial = 0.05 * jax.random.normal(KEY, (64, 10))
    chains = polar_slice(jax.random.key(1), target, initial, 500)
    assert chains.position.shape == (64, 500, 10)
    radius = np.asarray((chains.position[:, 100:] ** 2).mean(-1), float)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        # Chains are independent: the standard error is that of 64 means.
        inside = (radius < scipy.stats.f(10, 3).ppf(share)).mean(1)
        assert abs(inside.mean() - share) < 4.0 * inside.std(ddof=1) / 64**0.5
    # Of 15 or so a transition.
    assert 5 < float(chains.num_evaluations.mean()) / 500 < 25


def test_polar_slices_take_old_keys_and_refuse_bad_input():
    target = student(2, 3.0)
    old = polar_slice(jax.random.PRNGKey(0), target, jnp.ones((3, 2)), 2)
    assert old.position.shape == (3, 2, 2) and old.num_evaluations.shape == (3,)
    usual = {"target": target, "initial": jnp.ones((3, 2)), "num_samples": 2}
    for settings, words in (
        ({"initial": jnp.zeros((3, 2))}, "at the centre"),
        ({"initial": jnp.ones(2)}, "initial must be"),
        ({"initial": jnp.full((1, 2), jnp.nan)}, "centre|not positive"),
        ({"width": 0.0}, "width must be positive"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"base": cs.bases.standard_normal(3)}, "3 dimensions"),
        ({"target": student(1, 3.0), "initial": jnp.ones((1, 1))}, "two dimensions or more"),
    ):
        with pytest.raises(ValueError, match=words):
            polar_slice(KEY, **(usual | settings))
    bounded = cs.Target(lambda x: jnp.where(x[0] > 0.0, -x @ x, -jnp.inf), 2)
    with pytest.raises(ValueError, match="not positive and finite"):
        polar_slice(KEY, bounded, -jnp.ones((1, 2)), 2)


@pytest.mark.slow
def test_an_ensemble_of_any_size_has_weights_of_mean_z():
    def mean_weight(key):
        settings = {"ensemble_size": 8, "num_rounds": 2, "num_steps": 4, "base_share": 0.2}
        draws = ensemble_score(key, GAUSSIAN, 4, **settings).draws
        return jnp.exp(draws.log_weight - GAUSSIAN.log_z).mean()

    means = np.asarray(jax.jit(jax.vmap(mean_weight))(jax.random.split(KEY, 2_000)), float)
    # Four standard errors, of 2,000 independent runs: one seed in 15,000 fails by chance.
    assert abs(means.mean() - 1.0) < 4.0 * means.std(ddof=1) / 2_000**0.5 < 0.2


@pytest.mark.slow
def test_an_ensemble_finds_both_modes_without_gradients():
    modes = two_modes(5)
    target = cs.Target(lambda x: modes.log_density(without_gradient(x)), 5)
    with pytest.raises(AssertionError, match="a gradient"):
        jax.grad(target.log_density)(jnp.ones(5))
    settings = {"base": cs.bases.standard_normal(5, 2.0), "ensemble_size": 512}
    one = ensemble_score(KEY, target, 2_000, num_rounds=1, **settings)
    draws, num_evaluations = ensemble_score(jax.random.PRNGKey(1), target, 2_000, **settings)
    assert num_evaluations == 2_000 + 4 * 512 and one.num_evaluations == 2_000 + 512
    e = cs.evidence(draws)
    assert draws.bound == "lower" and abs(float(e.log_z)) < 4.0 * float(e.log_z_stderr) < 0.3
    assert float(e.elbo) < 4.0 * float(e.elbo_stderr)
    # The next ensembles are better: 0.5 against 0.02.
    assert float(e.ess) > 0.3 > 0.15 > float(cs.evidence(one.draws).ess)
    weight = np.exp(np.asarray(draws.log_weight, float))
    right = np.asarray(draws.position[:, 0] > 0.0)
    # Of a ratio, by the delta method.
    stderr = np.std(weight * (right - 0.3)) / weight.mean() / 2_000**0.5
    assert abs((weight * right).sum() / weight.sum() - 0.3) < 4.0 * stderr < 0.1
    np.testing.assert_allclose(
        draws.log_density, jax.vmap(modes.log_density)(draws.position), atol=1e-4
    )


def test_an_ensemble_takes_support_and_refuses_bad_input():
    cut = cs.Target(lambda x: jnp.log(x[0]) - 0.5 * x @ x, 1)  # NaN on the left
    draws = ensemble_score(KEY, cut, 500, ensemble_size=64, num_rounds=1, num_steps=1).draws
    assert not np.isnan(draws.log_weight).any() and np.isneginf(draws.log_weight).any()
    e = cs.evidence(draws)  # Z = ∫ x exp(-x²/2) over x > 0 = 1
    assert abs(float(e.log_z)) < 4.0 * float(e.log_z_stderr)
    mixture = cs.bases.mixture(jnp.zeros(2), jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)))
    for settings, words in (
        ({"base_share": 1.0}, "base_share must be"),
        ({"ensemble_size": 0}, "ensemble_size must be"),
        ({"num_rounds": 0}, "num_rounds must be"),
        ({"base": mixture}, "one frame"),
    ):
        with pytest.raises(ValueError, match=words):
            ensemble_score(KEY, cut, 10, **settings)


@pytest.mark.slow
def test_reverse_diffusion_has_the_moments_of_a_gaussian():
    draws, num_evaluations = reverse_diffusion(jax.random.PRNGKey(1), GAUSSIAN, 2_000, num_steps=16)
    assert draws.log_weight is None and num_evaluations == 2_000 * 32 * (32 + 8 * 9)
    # Five standard errors, and the biases that its docstring names.
    error = 5.0 * np.sqrt(np.diag(COVARIANCE) / 2_000)
    assert (np.abs(np.asarray(draws.position.mean(0)) - MEAN) < error + 0.03).all()
    np.testing.assert_allclose(np.cov(draws.position.T), COVARIANCE, atol=0.12)


def test_reverse_diffusion_from_the_base_has_no_first_steps():
    small = {"num_steps": 2, "num_candidates": 4, "num_chains": 2, "chain_length": 2}
    draws, num_evaluations = reverse_diffusion(KEY, GAUSSIAN, 10, start=0.0, **small)
    assert num_evaluations == 10 * 2 * (4 + 2 * 3)
    same, _ = reverse_diffusion(KEY, GAUSSIAN, 10, start=0.0, num_start_steps=0, **small)
    np.testing.assert_array_equal(draws.position, same.position)


@pytest.mark.slow
def test_reverse_diffusion_weighs_modes_apart_and_takes_the_support():
    draws, _ = reverse_diffusion(KEY, two_modes(), 1_000, start=0.3, num_candidates=128)
    share = float((draws.position[:, 0] > 0).mean())
    assert abs(share - 0.3) < 0.08  # four standard errors are 0.06
    half = cs.Target(lambda x: jnp.where(x[0] > 0, -0.5 * x @ x, jnp.nan), 1)
    draws, _ = reverse_diffusion(KEY, half, 1_000)
    assert float((draws.position > 0).mean()) > 0.98
    for wrong in ({"start": 1.0}, {"step_size": 0.0}, {"num_chains": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            reverse_diffusion(KEY, half, 10, **wrong)


@pytest.mark.parametrize("num_measurements", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_walk_jump_leaves_the_variance_that_its_docstring_says(num_measurements):
    target = cs.targets.gaussian(jnp.array([0.7]), 0.6 * jnp.eye(1))
    draws, num_evaluations = walk_jump(
        jax.random.PRNGKey(1), target, 2_000, num_measurements=num_measurements
    )
    assert draws.log_weight is None
    assert num_evaluations == 2_000 * 64 * (num_measurements * 33 + 1)
    left = 0.6**2 / (0.6 + 1.0 / num_measurements)
    assert abs(float(draws.position.mean()) - 0.7) < 5.0 * (0.6 / 2_000) ** 0.5 + 0.02
    # Means of 64 points and noisy scores add a little to it.
    np.testing.assert_allclose(draws.position.var(), left, rtol=0.2)


@pytest.mark.slow
def test_walk_jump_weighs_modes_without_gradients():
    modes = two_modes()
    target = cs.Target(lambda x: modes.log_density(without_gradient(x)), 2)
    base = cs.bases.standard_normal(2, 2.0)
    draws, _ = walk_jump(KEY, target, 600, base=base, num_walk_steps=48)
    share = float((draws.position[:, 0] > 0).mean())
    assert abs(share - 0.3) < 0.1  # four standard errors are 0.075
    with pytest.raises(ValueError, match="noise"):
        walk_jump(KEY, target, 10, noise=0.0)
    with pytest.raises(ValueError, match="one frame"):
        walk_jump(KEY, target, 10, base=cs.bases.fit_mixture(KEY, two_modes()))
