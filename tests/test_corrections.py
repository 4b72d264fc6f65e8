"""Corrections: resampling and weighted moments against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consistent_samplers.corrections import resample, weighted_moments
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
