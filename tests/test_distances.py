"""Optimal transport against exact and closed-form solutions; coverage of modes against counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom

from consistent_samplers.diagnostics import (
    mode_coverage,
    nearest_mode,
    sign_modes,
    wasserstein2,
)

SIZE = 400  # of most samples: one compilation serves several tests


def normal(seed: int, n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def funnel(seed: int, n: int, dim: int = 10) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(n, dim))
    return np.append(3 * noise[:, :1], np.exp(1.5 * noise[:, :1]) * noise[:, 1:], axis=1).astype(
        np.float32
    )


# ---- exact transport


def test_wasserstein2_is_sorting_in_one_dimension():
    x, y = normal(0, 500, 1), 2 * normal(1, 500, 1) + 1
    expected = np.sqrt(np.mean((np.sort(x, axis=0) - np.sort(y, axis=0)).astype(np.float64) ** 2))
    assert wasserstein2(x, y) == pytest.approx(expected, rel=1e-6)


def test_wasserstein2_matches_a_linear_programme():
    x, y = normal(2, 8, 3), normal(3, 8, 3)
    cost = np.sum((x[:, None, :] - y[None, :, :]).astype(np.float64) ** 2, axis=2)
    marginals = np.concatenate([np.kron(np.eye(8), np.ones(8)), np.kron(np.ones(8), np.eye(8))])
    best = linprog(cost.ravel(), A_eq=marginals, b_eq=np.full(16, 1 / 8)).fun
    assert wasserstein2(x, y) == pytest.approx(math.sqrt(best), rel=1e-6)


def test_wasserstein2_knows_permutations_and_shifts():
    x = normal(4, 200, 5)
    assert wasserstein2(x, np.random.default_rng(0).permutation(x)) == 0.0
    # No coupling beats the shift itself.
    assert wasserstein2(x, x + np.float32(0.5)) == pytest.approx(0.5 * math.sqrt(5), rel=1e-5)


POINTS = jnp.zeros((5, 2))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: wasserstein2(POINTS, POINTS[:4]), "samples of one size, got 5 and 4"),
        (lambda: wasserstein2(POINTS, POINTS * jnp.nan), "5 of 5 points of y"),
        (lambda: wasserstein2(POINTS, jnp.zeros(5)), "wasserstein2 compares"),
    ],
)
def test_distance_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# ---- modes


def entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return -np.sum(share * np.log(share))


def test_mode_coverage_matches_the_definition():
    counts, truth = np.array([50, 30, 20, 0]), np.array([0.4, 0.3, 0.2, 0.1])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    result = mode_coverage(labels, 4, mode_weight=7 * truth)
    share = counts / 100
    np.testing.assert_allclose(result.share, share, rtol=1e-6)
    assert result.entropic_coverage == pytest.approx(entropy(share) / math.log(4), rel=1e-5)
    divergence = entropy((share + truth) / 2) - (entropy(share) + entropy(truth)) / 2
    assert result.jensen_shannon == pytest.approx(divergence / math.log(2), rel=1e-4)
    assert result.num_missed == 1


def test_mode_coverage_at_its_ends():
    even = mode_coverage(jnp.arange(6) % 3, 3)
    assert even.entropic_coverage == pytest.approx(1.0)
    assert even.jensen_shannon == pytest.approx(0.0, abs=1e-6) and even.num_missed == 0
    one = mode_coverage(jnp.zeros(6, int), 3)
    assert one.entropic_coverage == pytest.approx(0.0, abs=1e-6) and one.num_missed == 2
    apart = mode_coverage(jnp.zeros(6, int), 2, mode_weight=jnp.array([0.0, 1.0]))
    assert apart.jensen_shannon == pytest.approx(1.0) and apart.num_missed == 1
    single = mode_coverage(jnp.zeros(6, int), 1)
    assert single.entropic_coverage == 1.0 and single.num_missed == 0


def test_mode_coverage_by_nearest_centre():
    centres = 10 * normal(16, 40, 50)
    component = np.random.default_rng(1).integers(0, 40, 2_000)
    position = centres[component] + normal(17, 2_000, 50)
    np.testing.assert_array_equal(nearest_mode(position, centres), component)
    result = mode_coverage(position, centres)
    np.testing.assert_allclose(result.share, np.bincount(component, minlength=40) / 2_000)
    # 2 n log K (1 - coverage) is chi-squared with K - 1 = 39 degrees of freedom (the G test):
    # outside the bounds for one seed in 79,000.
    statistic = 2 * 2_000 * math.log(40) * (1 - float(result.entropic_coverage))
    assert 10 < statistic < 88
    assert result.num_missed == 0
    # The first seven modes only: what exploration lost, with even weights within them.
    few = mode_coverage(position[component < 7], centres)
    assert few.num_missed == 33
    assert few.entropic_coverage == pytest.approx(math.log(7) / math.log(40), abs=0.02)


def test_importance_weights_restore_the_shares():
    # Draws of two modes at 0.9 and 0.1, weighted to 0.5 and 0.5. With mean weight 1 the weighted
    # share has variance 0.25 E[w^2] / n (delta method), E[w^2] = 2.78: standard deviation 0.0118
    # at n = 5,000. Within 4.5 of them: fails by chance once in 150,000 seeds.
    labels = (np.random.default_rng(2).random(5_000) < 0.1).astype(int)
    log_weight = np.where(labels == 1, math.log(5.0), math.log(5 / 9)) + 300.0
    result = mode_coverage(labels, 2, log_weight=jnp.asarray(log_weight, jnp.float32))
    np.testing.assert_allclose(result.share, [0.5, 0.5], atol=0.053)
    plain = mode_coverage(labels, 2)
    assert plain.share[1] < 0.15 and plain.jensen_shannon > result.jensen_shannon
    # A mode that only draws of weight zero reach is missed.
    gone = jnp.where(labels == 1, -jnp.inf, 0.0)
    assert mode_coverage(labels, 2, log_weight=gone).num_missed == 1


def test_missed_share():
    labels = np.repeat(np.arange(3), [55, 44, 1])
    assert mode_coverage(labels, 3).num_missed == 1  # 0.01 < 0.1 / 3
    assert mode_coverage(labels, 3, missed_share=0.0).num_missed == 0
    assert mode_coverage(labels, 3, mode_weight=jnp.array([0.5, 0.45, 0.05])).num_missed == 0
    # The false alarms that the docstring states, from the binomial at K = 40.
    for expected_draws, rate in ((10, 5e-5), (20, 5e-8)):
        n = 40 * expected_draws
        alarm = binom.cdf(math.ceil(0.1 * expected_draws) - 1, n, 1 / 40)
        assert alarm < rate


def test_sign_modes():
    position = jnp.array([[-1.0, -1.0, 9.0], [1.0, -1.0, 9.0], [-1.0, 1.0, -9.0], [2.0, 3.0, 0.0]])
    np.testing.assert_array_equal(sign_modes(position, 2), [0, 1, 2, 3])
    np.testing.assert_array_equal(sign_modes(position[:, ::2], 2), [2, 3, 0, 1])
    draws = normal(18, 4_000, 5)
    result = mode_coverage(sign_modes(draws, 5), 32)
    assert result.num_missed == 0 and result.entropic_coverage > 0.99
    halved = mode_coverage(sign_modes(np.abs(draws), 5), 32)
    assert halved.num_missed == 31
    # 20 wells are a million modes, and int32 holds them.
    assert sign_modes(jnp.ones((1, 20)), 20)[0] == 2**20 - 1


def test_modes_under_jit():
    draws, centres = normal(19, 100, 2), normal(20, 4, 2)
    traced = jax.jit(mode_coverage)(draws, centres)
    for got, expected in zip(traced, mode_coverage(draws, centres), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


LABELS = jnp.arange(4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mode_coverage(POINTS, 4), r"give centres \[K, dim\] instead"),
        (lambda: mode_coverage(LABELS, POINTS), "give the number of modes instead"),
        (lambda: mode_coverage(POINTS, jnp.zeros((4, 3))), "are needed, got"),
        (lambda: mode_coverage(POINTS * jnp.nan, POINTS), "5 of 5 draws are NaN"),
        (lambda: mode_coverage(LABELS, 3), "from 0 to 2, got 0 to 3"),
        (lambda: mode_coverage(LABELS, 0), "at least 1, got 0"),
        (lambda: mode_coverage(LABELS[:0], 3), "at least one draw"),
        (lambda: mode_coverage(LABELS, 4, missed_share=2.0), "from 0 to 1"),
        (lambda: mode_coverage(LABELS, 4, mode_weight=jnp.ones(3)), "one entry a mode"),
        (lambda: mode_coverage(LABELS, 4, mode_weight=-jnp.ones(4)), "not their logarithms|not n"),
        (lambda: mode_coverage(LABELS, 4, log_weight=jnp.ones(3)), "one entry a draw"),
        (lambda: mode_coverage(LABELS, 4, log_weight=jnp.full(4, jnp.nan)), "4 of 4 log weights"),
        (lambda: sign_modes(POINTS, 3), "from 1 to 2"),
        (lambda: sign_modes(LABELS, 1), r"shape \[n, dim\]"),
    ],
)
def test_mode_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_labels_must_be_integers():
    with pytest.raises(TypeError, match="must be integers"):
        mode_coverage(jnp.zeros(4), 2)
