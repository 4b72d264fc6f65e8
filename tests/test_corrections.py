"""Corrections: resampling and weighted moments against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consistent_samplers.corrections import (
    independence_metropolis,
    move,
    resample,
    weighted_moments,
)
from consistent_samplers.types import Draws, FlowDiagnostics

PROPOSAL_STD = 2.0

jit_resample = jax.jit(resample, static_argnums=2)


def proposal_draws(seed: int, n: int, dim: int = 1) -> Draws:
    """Draws from N(0, 2^2), weighted for the target N(0.3, 1) in every coordinate."""
    x = PROPOSAL_STD * np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    log_density = np.sum(-0.5 * (x - 0.3) ** 2, axis=1)
    log_proposal = np.sum(-0.5 * (x / PROPOSAL_STD) ** 2, axis=1)
    arrays = map(jnp.asarray, (x, log_density - log_proposal, log_density))
    return Draws(*arrays, bound="lower")


def test_resampled_draws_follow_the_target():
    n = 20_000
    result = resample(jax.random.key(1), proposal_draws(0, n, dim=2))
    x = np.sort(np.asarray(result.position[:, 0]))
    assert x.mean() == pytest.approx(0.3, abs=0.04)
    assert x.std() == pytest.approx(1.0, abs=0.03)
    cdf = np.array([0.5 * math.erfc((0.3 - value) / math.sqrt(2)) for value in x])
    assert np.max(np.abs(cdf - (np.arange(n) + 0.5) / n)) < 0.02


def test_resampled_draws_are_unweighted_and_consistent():
    draws = proposal_draws(2, 400, dim=2)
    draws = draws.replace(flow=FlowDiagnostics(jnp.zeros(400, bool), jnp.zeros(400)))
    result = jit_resample(jax.random.key(3), draws, 200)
    assert result.position.shape == (200, 2)
    assert result.log_weight is None and result.bound is None and result.flow is None
    expected = np.sum(-0.5 * (np.asarray(result.position) - 0.3) ** 2, axis=1)
    np.testing.assert_allclose(result.log_density, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.position, resample(jax.random.key(3), draws, 200).position)
    without = draws.replace(log_density=None)
    assert resample(jax.random.key(3), without, 200).log_density is None


@pytest.mark.parametrize("n", [1, 4_097])
@pytest.mark.parametrize("level", [0.0, 512.3])
def test_equal_weights_leave_exact_draws_exact(n, level):
    draws = Draws(jnp.arange(float(n))[:, None], jnp.full((n,), level), bound="lower")
    for seed in range(5):
        result = resample(jax.random.key(seed), draws)
        assert np.array_equal(np.sort(result.position, axis=0), draws.position)
    if n > 10:
        assert not np.array_equal(result.position, draws.position)  # random order


def test_copies_are_the_expected_number_rounded():
    weight = jnp.array([0.0, 0.5, 0.2, 0.3, 0.0])
    draws = Draws(jnp.arange(5.0)[:, None], jnp.log(weight), bound="lower")
    counts = []
    for key in jax.random.split(jax.random.key(4), 50):
        index = resample(key, draws, 7).position[:, 0].astype(int)
        counts.append(np.bincount(np.asarray(index), minlength=5))
    counts = np.stack(counts)
    expected = 7 * np.asarray(weight)
    assert np.all(counts >= np.floor(expected)) and np.all(counts <= np.ceil(expected))
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.25)


def test_weighted_moments_match_the_target():
    mean, std = weighted_moments(proposal_draws(5, 20_000, dim=2))
    assert mean.shape == std.shape == (2,)
    np.testing.assert_allclose(mean, 0.3, atol=0.05)
    np.testing.assert_allclose(std, 1.0, atol=0.04)


def test_weighted_moments_under_jit():
    draws = proposal_draws(5, 400, dim=2)
    for eager, jitted in zip(
        weighted_moments(draws), jax.jit(weighted_moments)(draws), strict=True
    ):
        np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-6)


def test_weighted_moments_of_equal_weights_are_plain():
    x = (1e3 + np.random.default_rng(6).normal(size=(400, 3))).astype(np.float32)
    mean, std = weighted_moments(Draws(jnp.asarray(x), jnp.full((400,), -7.0), bound="lower"))
    np.testing.assert_allclose(mean, np.mean(x, axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, np.std(x, axis=0), rtol=1e-3)


def test_weightless_outliers_do_not_spoil_moments():
    draws = Draws(
        jnp.array([[0.0], [2.0], [jnp.inf]]), jnp.array([0.0, 0.0, -jnp.inf]), bound="lower"
    )
    mean, std = weighted_moments(draws)
    assert mean[0] == 1.0 and std[0] == 1.0


@pytest.mark.parametrize("use", [lambda d: resample(jax.random.key(0), d), weighted_moments])
def test_draws_without_weights_are_refused(use):
    with pytest.raises(ValueError, match="Sample with weights"):
        use(Draws(position=jnp.zeros((5, 2))))


def test_num_samples_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        resample(jax.random.key(0), proposal_draws(0, 10), 0)


# ---- Markov moves


def exact_draws(seed: int, n: int, dim: int = 1) -> np.ndarray:
    """Exact draws of the same target."""
    return (0.3 + np.random.default_rng(seed).normal(size=(n, dim))).astype(np.float32)


def check_follows_target(x: np.ndarray, error_scale: float = 1.0) -> None:
    """Mean, spread and a Kolmogorov-Smirnov distance of ``x [n]``, at four standard errors."""
    n = len(x)
    assert abs(x.mean() - 0.3) < 4 * error_scale / n**0.5
    assert abs(x.std() - 1.0) < 4 * error_scale / (2 * n) ** 0.5
    x = np.sort(x)
    cdf = np.array([0.5 * math.erfc((0.3 - value) / math.sqrt(2)) for value in x])
    # The Kolmogorov-Smirnov distance exceeds 1.95 / √n once in a thousand times.
    assert np.max(np.abs(cdf - (np.arange(n) + 0.5) / n)) < 1.95 * error_scale / n**0.5


def weighted(x: np.ndarray) -> Draws:
    """Points with their weights against N(0, 2^2)."""
    log_density = np.sum(-0.5 * (x - 0.3) ** 2, axis=1)
    log_proposal = np.sum(-0.5 * (x / PROPOSAL_STD) ** 2, axis=1)
    arrays = map(jnp.asarray, (x, log_density - log_proposal, log_density))
    return Draws(*arrays, bound="lower")


def test_independence_metropolis_keeps_exact_draws_exact():
    num_chains = 4_000
    start = weighted(exact_draws(1, num_chains))
    draws = proposal_draws(0, 5 * num_chains)
    result = independence_metropolis(jax.random.key(1), draws, num_chains=num_chains, initial=start)
    assert result.position.shape == (num_chains, 5, 1)
    for step in range(5):
        check_follows_target(np.asarray(result.position[:, step, 0]))
    # Closed form of the mean acceptance is near 0.6 here: neither stuck nor always moving.
    assert 0.4 < float(result.acceptance.mean()) < 0.8


def test_independence_metropolis_reaches_the_target():
    result = independence_metropolis(jax.random.key(2), proposal_draws(3, 80_000), num_chains=2_000)
    check_follows_target(np.asarray(result.position[:, -1, 0]))
    first = np.asarray(result.position[:, 0, 0])
    assert first.std() > 1.7, "chains start from the proposal"


def test_independence_metropolis_leaves_states_of_weight_zero():
    draws = proposal_draws(4, 100)
    start = weighted(exact_draws(5, 2)).replace(log_weight=jnp.array([-jnp.inf, 0.0]))
    result = independence_metropolis(jax.random.key(3), draws, num_chains=2, initial=start)
    assert result.position[0, 0, 0] == draws.position[0, 0]
    assert np.isfinite(result.position).all()


def test_independence_metropolis_refuses():
    with pytest.raises(ValueError, match="at least two"):
        independence_metropolis(jax.random.key(0), proposal_draws(0, 10), num_chains=6)
    with pytest.raises(ValueError, match="one state a chain"):
        initial = weighted(exact_draws(0, 3))
        independence_metropolis(
            jax.random.key(0), proposal_draws(0, 10), num_chains=2, initial=initial
        )


def test_moves_keep_exact_draws_exact_and_part_copies():
    def log_density(x):
        return -0.5 * jnp.sum((x - 0.3) ** 2)

    x = exact_draws(6, 6_000, dim=2)
    moved, rate = move(jax.random.key(4), jnp.asarray(x), log_density)
    assert float(rate) > 0.8
    assert np.abs(np.asarray(moved) - x).mean() > 0.5
    for coordinate in range(2):
        check_follows_target(np.asarray(moved[:, coordinate]))
    copies = jnp.asarray(np.repeat(x[:1_000], 6, axis=0))
    apart, _ = move(jax.random.key(5), copies, log_density)
    assert len(np.unique(np.asarray(apart), axis=0)) == 6_000


def test_move_refuses_a_single_point():
    with pytest.raises(ValueError, match="at least two"):
        move(jax.random.key(0), jnp.zeros((1, 2)), lambda x: -jnp.sum(x**2))
