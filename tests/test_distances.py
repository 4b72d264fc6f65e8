"""Optimal transport against exact and closed-form solutions; coverage of modes against counts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import logsumexp
from scipy.stats import binom

from consistent_samplers.diagnostics import (
    mode_coverage,
    nearest_mode,
    sign_modes,
    sinkhorn,
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


# ---- entropic transport


def reference_transport(x: np.ndarray, y: np.ndarray, epsilon: float) -> tuple[float, float]:
    """Transport cost and entropic cost by 5,000 plain iterations in float64."""
    cost = np.sum((x[:, None, :] - y[None, :, :]).astype(np.float64) ** 2, axis=2)
    n, m = cost.shape
    g = np.zeros(m)
    for _ in range(5_000):
        f = epsilon * (math.log(m) - logsumexp((g[None, :] - cost) / epsilon, axis=1))
        g = epsilon * (math.log(n) - logsumexp((f[:, None] - cost) / epsilon, axis=0))
    plan = np.exp((f[:, None] + g[None, :] - cost) / epsilon) / (n * m)
    assert np.abs(plan.sum(axis=1) - 1 / n).sum() < 1e-8
    return np.sum(plan * cost), np.mean(f) + np.mean(g)


def test_sinkhorn_matches_plain_iterations_for_samples_of_two_sizes():
    x, y = normal(5, 30, 2), 1.5 * normal(6, 45, 2) + 0.3
    epsilon = 0.4
    cost, entropic = reference_transport(x, y, epsilon)
    own = [reference_transport(z, z, epsilon)[1] for z in (x, y)]
    plain = sinkhorn(x, y, regularisation=epsilon, tolerance=1e-5)
    debiased = sinkhorn(x, y, regularisation=epsilon, tolerance=1e-5, debiased=True)
    assert plain.value == pytest.approx(cost, rel=1e-4)
    assert debiased.value == pytest.approx(entropic - 0.5 * sum(own), rel=1e-4)
    for result in (plain, debiased):
        assert result.converged and result.marginal_error <= 1e-5
        assert result.regularisation == pytest.approx(epsilon)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_sinkhorn_tends_to_exact_transport(shift):
    # Equal but for noise, and far apart: both ends of what a table shows.
    x, y = normal(7, SIZE, 2), normal(8, SIZE, 2) + np.float32(shift)
    exact = wasserstein2(x, y) ** 2
    costs = [float(sinkhorn(x, y, regularisation=e).value) for e in (0.3, 0.03, 0.01)]
    assert costs[0] > costs[1] > costs[2] > 0.99 * exact
    # The entropic plan spreads by about epsilon per dimension at most.
    assert costs[2] < exact + 2 * 0.01


def gaussian_entropic_cost(shift, a, b, epsilon: float) -> float:
    """Entropic cost of N(0, diag a) and N(shift, diag b): Janati et al. 2020, arXiv:2006.02572."""
    s = epsilon / 2
    root = np.sqrt(4 * a * b + s**2)
    terms = a + b - root + s * (1 - math.log(2 * s)) + s * np.log(root + s)
    return float(np.sum(np.square(shift)) + np.sum(terms))


def standardised(points: np.ndarray) -> np.ndarray:
    """Points [k, n, dim] with exact mean 0 and covariance 1: most of the Monte Carlo error gone."""
    points = points - points.mean(axis=1, keepdims=True)
    covariance = np.einsum("kni,knj->kij", points, points) / points.shape[1]
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    return np.einsum("kij,knj->kni", whiten, points).astype(np.float32)


def test_sinkhorn_divergence_matches_gaussians():
    # Measured over 72 pairs of 400 standardised points: 0.0122 too large (0.0066 for 800: a bias
    # of order 1 / n), with standard deviation 0.0039. The mean of 12 pairs leaves the bounds for
    # less than one seed in 10^9; half the regularisation (+0.0205) would.
    epsilon, shift = 1.0, np.array([0.8, -0.5])
    a, b = np.array([1.0, 0.5]), np.array([0.3, 1.5])
    expected = gaussian_entropic_cost(shift, a, b, epsilon)
    expected -= 0.5 * gaussian_entropic_cost(np.zeros(2), a, a, epsilon)
    expected -= 0.5 * gaussian_entropic_cost(np.zeros(2), b, b, epsilon)
    x, y = (standardised(normal(seed, 12 * SIZE, 2).reshape(12, SIZE, 2)) for seed in (9, 10))
    x, y = x * np.sqrt(a), y * np.sqrt(b) + shift
    compare = functools.partial(sinkhorn, regularisation=epsilon, debiased=True)
    # Jitted and vmapped: one converges before the other and must then stand still.
    result = jax.jit(jax.vmap(compare))(x.astype(np.float32), y.astype(np.float32))
    assert bool(jnp.all(result.converged))
    assert 0.004 < np.mean(result.value) - expected < 0.02


def test_sinkhorn_on_heavy_tails():
    x, y = funnel(11, SIZE), funnel(12, SIZE)
    assert np.abs(y).max() > 100
    exact = wasserstein2(x, y) ** 2
    result, debiased = sinkhorn(x, y), sinkhorn(x, y, debiased=True)
    assert result.converged and result.num_iterations < 1_000
    assert result.value == pytest.approx(exact, rel=0.02)
    assert debiased.value == pytest.approx(exact, rel=0.02)
    # The regularisation is the reference's alone, and the order of its points does not matter.
    other = sinkhorn(0.1 * x, y)
    assert other.regularisation == result.regularisation


def test_sinkhorn_divergence_ranks_samplers():
    y = normal(13, SIZE, 2) + 5 * np.random.default_rng(0).integers(0, 2, (SIZE, 1))
    y = y.astype(np.float32)
    fresh = normal(14, SIZE, 2) + 5 * np.random.default_rng(1).integers(0, 2, (SIZE, 1))
    collapsed, wide = normal(15, SIZE, 2), 1.5 * (fresh - 2.5) + 2.5
    values = [
        float(sinkhorn(jnp.asarray(x, jnp.float32), y, debiased=True).value)
        for x in (y, fresh, wide, collapsed)
    ]
    assert values[0] == pytest.approx(0.0, abs=0.01)
    assert values[0] < values[1] < values[2] < values[3]


def test_sinkhorn_says_when_it_has_not_converged():
    x, y = normal(7, SIZE, 2), normal(8, SIZE, 2)
    result = sinkhorn(x, y, regularisation=0.01, tolerance=1e-6, max_iterations=20)
    assert not result.converged and result.num_iterations == 20
    assert np.isfinite(result.value) and result.marginal_error > 1e-6


def test_sinkhorn_of_coinciding_points():
    for debiased in (False, True):
        result = sinkhorn(jnp.ones((5, 2)), jnp.ones((4, 2)), debiased=debiased)
        assert result.converged and result.value == pytest.approx(0.0, abs=1e-6)
    single = sinkhorn(jnp.zeros((1, 2)), jnp.ones((1, 2)))
    assert single.converged and single.value == pytest.approx(2.0, rel=1e-5)


def test_sinkhorn_matches_pot():
    ot = pytest.importorskip("ot", reason="POT is not installed")
    x, y = normal(5, 30, 2), 1.5 * normal(6, 45, 2) + 0.3
    cost = ot.dist(x.astype(np.float64), y.astype(np.float64))
    plan = ot.sinkhorn(np.full(30, 1 / 30), np.full(45, 1 / 45), cost, 0.4, stopThr=1e-12)
    result = sinkhorn(x, y, regularisation=0.4, tolerance=1e-5)
    assert result.value == pytest.approx(np.sum(plan * cost), rel=1e-4)


POINTS = jnp.zeros((5, 2))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sinkhorn(jnp.zeros(5), jnp.zeros(5)), r"Reshape scalars to \[n, 1\]"),
        (lambda: sinkhorn(POINTS, jnp.zeros((5, 3))), "shapes"),
        (lambda: sinkhorn(POINTS, jnp.zeros((0, 2))), "at least 1 point "),
        (lambda: sinkhorn(POINTS.at[1, 0].set(jnp.nan), POINTS), "1 of 5 points of x are NaN"),
        (lambda: sinkhorn(POINTS, POINTS.at[:2].set(jnp.inf)), "2 of 5 points of y are NaN"),
        (lambda: sinkhorn(POINTS, POINTS, regularisation=0.0), "regularisation must be a positive"),
        (lambda: sinkhorn(POINTS, POINTS, tolerance=math.nan), "tolerance must be a positive"),
        (lambda: sinkhorn(POINTS, POINTS, max_iterations=0), "at least 10"),
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
