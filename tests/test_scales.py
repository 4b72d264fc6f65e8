"""Mass farther out than all draws, without an optimum of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import consistent_samplers as cs
from consistent_samplers.bases.scales import mass_farther

KEY = jax.random.key(0)


def contaminated(share, wide, num_wide=None):
    """N(0, I) with a share of the mass ``wide`` times as far out in the first coordinates."""

    def log_density(x):
        num = len(x) if num_wide is None else num_wide
        near = jnp.log1p(-share) + norm.logpdf(x[:num]).sum()
        far = jnp.log(share) + norm.logpdf(x[:num], 0.0, wide).sum()
        return jnp.logaddexp(near, far) + norm.logpdf(x[num:]).sum()

    return log_density


@pytest.mark.parametrize(
    ("dim", "share", "wide", "num_wide"),
    [(1, 0.5, 100.0, None), (3, 0.35, 20.0, None), (30, 0.3, 8.0, None), (6, 0.35, 20.0, 1)],
)
def test_the_mass_farther_out_is_measured(dim, share, wide, num_wide):
    """Around a Gaussian that is exact near the mode, off by a covariance."""
    root = np.tril(np.random.default_rng(0).normal(size=(dim, dim)), -1) * 0.3 + np.eye(dim)
    log_density = contaminated(share, wide, num_wide)

    def moved(x):
        z = jax.scipy.linalg.solve_triangular(jnp.asarray(root, jnp.float32), x - 3.0, lower=True)
        return log_density(z)

    target = cs.Target(moved, dim)
    found = mass_farther(KEY, target, np.full(dim, 3.0), root, np.log1p(-share))
    assert found.is_there and found.error < 0.2
    # Of the wide part a little lies within.
    expected = share / (1.0 - share)
    assert -0.25 * expected < found.share - expected < 4.0 * found.error


def test_where_the_mass_farther_out_lies_is_told_from_few_draws():
    """Fewer are effective than there are dimensions."""
    dim, wide = 120, 8.0
    target = cs.Target(contaminated(0.5, wide), dim)
    found = mass_farther(KEY, target, np.zeros(dim), np.eye(dim), np.log(0.5))
    assert abs(found.share - 1.0) < 4.0 * found.error < 1.0
    eigenvalues = np.linalg.eigvalsh(found.covariance) / wide**2
    assert eigenvalues.min() > 0.5 and eigenvalues.max() < 3.0


@pytest.mark.parametrize("dim", [1, 5, 40, 300])
def test_no_mass_is_found_where_there_is_none(dim):
    target = cs.Target(lambda x: norm.logpdf(x).sum(), dim)
    factor = np.ones(dim) if dim > 200 else np.eye(dim)
    for seed in range(3):
        found = mass_farther(jax.random.key(seed), target, np.zeros(dim), factor, 0.0)
        assert not found.is_there and found.share < 0.01


@pytest.mark.parametrize(
    ("dim", "share", "wide"), [(3, 0.35, 20.0), pytest.param(20, 0.1, 10.0, marks=pytest.mark.slow)]
)
def test_a_base_takes_in_mass_of_another_scale(dim, share, wide):
    """Tempered particles that set out near the mode, or from far out, meet one of the two."""
    found = cs.bases.fit_base(KEY, cs.Target(contaminated(share, wide), dim))
    assert found.kind == "mixture"
    assert found.fits["gaussian"].ess > 0.99 and found.fits["gaussian"].elbo < -0.1 + 0.01
    assert abs(found.fits["mixture"].elbo) < 0.01


def test_draws_that_lack_another_scale_are_flagged():
    target = cs.Target(contaminated(0.3, 30.0), 2)
    narrow = jax.random.normal(KEY, (4_000, 2))
    check = cs.diagnostics.exploration_check(KEY, target, narrow, np.log(0.7), num_starts=16)
    assert not check.passed and 0.25 < check.farther < 0.6
    assert "farther out than all of the sampler's" in str(check)
    wide = 30.0 * jax.random.normal(jax.random.key(1), (4_000, 2))
    both = jnp.where(jax.random.uniform(KEY, (4_000, 1)) < 0.3, wide, narrow)
    check = cs.diagnostics.exploration_check(KEY, target, both, 0.0, num_starts=16)
    assert check.passed and check.farther == 0.0


def test_the_outermost_draws_of_many_dimensions_are_no_sign_of_more():
    """Of 500 draws in 100 dimensions a fifth of the mass is beyond the outermost along one."""
    target = cs.Target(lambda x: norm.logpdf(x).sum(), 100)
    draws = jax.random.normal(KEY, (500, 100))
    check = cs.diagnostics.exploration_check(KEY, target, draws, 0.0, num_starts=4)
    assert check.farther == 0.0
