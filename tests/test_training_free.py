"""Samplers that train nothing: their laws against closed forms, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import consistent_samplers as cs
from consistent_samplers.training_free import polar_slice

KEY = jax.random.key(0)


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
