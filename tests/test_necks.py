"""Mass beyond the ends of draws, where a scale goes to zero, is seen by Laplace's method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import consistent_samplers as cs
from consistent_samplers.diagnostics import mass_in_necks, necks
from consistent_samplers.recipe import chain_stage, looking

KEY = jax.random.key(0)
NUM = 6


def hierarchy(units=1.0, edge=-np.inf):
    """A log scale that is normal with deviation 2, and members of that scale, in any units."""

    def log_density(x):
        scale, members = x[0] / units, x[1:] / units
        inside = norm.logpdf(scale, 0.0, 2.0) + norm.logpdf(members, 0.0, jnp.exp(scale)).sum()
        return jnp.where(scale > edge, inside, -jnp.inf)

    return cs.Target(log_density, NUM)


def drawn(limit, num=4_000, units=1.0):
    """Exact draws given a log scale above a limit, and their weights: rising towards it."""
    rng = np.random.default_rng(0)
    scale = 2.0 * rng.normal(size=4 * num)
    scale = scale[scale > limit][:num]
    x = np.c_[scale, np.exp(scale)[:, None] * rng.normal(size=(len(scale), NUM - 1))]
    return jnp.asarray(units * x, jnp.float32), jnp.asarray(np.where(scale < limit + 0.3, 1.0, 0.0))


@pytest.mark.parametrize(("limit", "share"), [(-4.0, 0.0233), (-3.0, 0.0716), (-2.0, 0.1886)])
@pytest.mark.parametrize("units", [1.0, 1e3])
def test_the_mass_of_a_neck(limit, share, units):
    """Relative to what the draws have, in closed form, and in any units."""
    target = hierarchy(units)
    found = mass_in_necks(target, *drawn(limit, units=units), of_target=True)
    assert found == pytest.approx(share, rel=0.5)


def test_what_draws_reach_is_no_neck():
    target = hierarchy()
    position, _ = drawn(-np.inf)
    assert mass_in_necks(target, position, jnp.zeros(len(position))) == 0.0
    assert mass_in_necks(target, position[:, :1], jnp.arange(len(position)) * 1.0) == 0.0


def test_a_neck_that_ends_where_the_draws_do_has_none():
    target = hierarchy(edge=-3.0)
    position, log_weight = drawn(-3.0)
    assert mass_in_necks(target, position, log_weight, of_target=True) < 1e-3


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_draws_without_numbers_are_left_out(bad):
    target = hierarchy()
    position, log_weight = drawn(-3.0)
    known = mass_in_necks(target, position, log_weight)
    assert known > 0.01
    more = jnp.concatenate([position, jnp.full((3, NUM), bad)])
    weights = jnp.concatenate([log_weight, jnp.full(3, -jnp.inf)])
    assert mass_in_necks(target, more, weights) == pytest.approx(known, rel=0.1)


@pytest.mark.slow
def test_all_intervals_of_log_z_take_a_neck_in(monkeypatch):
    """Those of one step, of chains, of the bridge between both and of the bound above."""
    for module in (looking, chain_stage):
        monkeypatch.setattr(module, "mass_in_necks", lambda *_, **__: 0.03)
    target = cs.targets.gaussian(jnp.zeros(2), jnp.ones(2))
    trained = cs.train_sampler(KEY, target, effort="base", progress_bar=False)
    assert trained.exploration.hidden == 0.03
    assert float(trained.evidence(KEY, 1_000).log_z_stderr) >= 0.0299
    trained = cs.with_chains(KEY, trained, num_samples=1, progress_bar=False)
    assert trained.chains.log_z.log_z_stderr >= 0.0299
    assert trained.chains_verdict().level == "usable"
    assert "in a neck" in trained.chains_verdict().words
    found = trained.bracket(KEY, 1_000)
    assert found.stderr >= 0.0299 and found.upper_stderr >= 0.0299


@pytest.mark.parametrize(("slope", "is_seen"), [(-1.0, True), (4.0, False)])
def test_a_marginal_that_rises_where_draws_fall_is_not_believed(monkeypatch, slope, is_seen):
    x = np.random.default_rng(0).exponential(size=(4_096, 3))  # whose log density falls by x

    def profile(log_density, start, end, grid):
        inner = slope * np.minimum(grid, grid[3])
        return inner + 2.0 * np.maximum(grid - grid[3], 0.0)  # much mass far out

    monkeypatch.setattr(necks, "_profile", profile)
    target = cs.Target(lambda x: -x.sum(), 3)
    weight = np.full(4_096, 1.0 / 4_096)
    found = necks._mass_beyond(target, x, weight, necks._End(0, 1.0))
    assert (found > 0.1) == is_seen
