"""Pareto-smoothed importance weights: what the largest weights say of those not yet drawn.

Pure functions of log weights ``[n]``, safe in float32, free of LAPACK, usable under ``jax.jit``.
"""

import math

import jax
import jax.numpy as jnp

from consistent_samplers.kernels import kernel
from consistent_samplers.types import Array

MIN_TAIL = 5
"""Fewest tail weights a generalised Pareto distribution is fitted to (as in loo and ArviZ)."""

MAX_TAIL_K = 0.95
"""Pareto k that the mean beyond the largest weight is computed with at most; infinite at 1."""

# Nats of rounding in log weights above which nothing is said of a tail that it covers.
_MAX_ROUNDING = 0.5


@kernel(effort="least")
def pareto_smooth(log_weight: Array) -> tuple[Array, Array]:
    """Smoothed log weights and Pareto k, by the method of Vehtari et al. (2024, JMLR 25:72).

    The `tail_size` largest weights are replaced by the expected order statistics of a generalised
    Pareto distribution fitted to them, capped at the largest raw weight. The weights keep their
    scale. Weights that span hundreds of nats do not underflow. ``arviz_stats.psislw`` takes the
    negated log weights; the sign of k is the same.

    Returns:
      ``(smoothed [n], pareto_k [])``. Above k = 0.7 the mean of the weights is unreliable. Two
      cases leave the weights as they are: k = 0 if the tail is constant up to rounding (exact
      draws), and k = +inf ("cannot be judged") if fewer than 25 weights, or fewer than `MIN_TAIL`
      distinct from the threshold, are given.

    Example:
      >>> import jax
      >>> from consistent_samplers import pareto
      >>> smoothed, k = pareto.pareto_smooth(0.5 * jax.random.normal(jax.random.key(0), (400,)))
      >>> smoothed.shape, bool(k < 0.7)
      ((400,), True)
    """
    n = log_weight.shape[0]
    num = tail_size(n)
    if num < MIN_TAIL:
        return log_weight, jnp.full((), jnp.inf, log_weight.dtype)
    shifted, largest = shift_by_max(log_weight)
    order = jnp.argsort(shifted)
    where = order[n - num :]
    k, tail, fitted, _ = _smooth_tail(shifted[where], shifted[order[n - num - 1]], largest)
    return log_weight.at[where].set(jnp.where(fitted, tail + largest, log_weight[where])), k


def tail_size(num_samples: int) -> int:
    """How many of n weights make the tail, the largest ones: min(n/5, 3 √n), as in loo and ArviZ.

    Example:
      >>> from consistent_samplers import pareto
      >>> pareto.tail_size(10_000)
      300
    """
    return int(min(num_samples / 5.0, 3.0 * math.sqrt(num_samples)))


@kernel(effort="least")
def judge_tail(tail: Array, cutoff: Array) -> tuple[Array, Array]:
    """Pareto k of n weights, as `pareto_smooth` finds it, and log of what their sum lacks.

    One draw in n is expected to exceed the largest weight. By how much it is expected to, under the
    fitted distribution, is (σ + k x) / (1 - k), where x is the excess of the largest weight over
    the cutoff: so much of the sum of the weights is not seen yet.

    Args:
      tail: ``[tail_size(n)]``, the largest log weights, ascending.
      cutoff: ``[]``, the next smaller log weight.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers import pareto
      >>> weight = jnp.linspace(1.0, 2.0, 400)  # a tail of 60
      >>> k, log_beyond = pareto.judge_tail(jnp.log(weight[-60:]), jnp.log(weight[-61]))
      >>> bool(k < 0.0), bool(log_beyond < 0.0)
      (True, True)
    """
    if tail.shape[0] < MIN_TAIL:
        return jnp.full((), jnp.inf, tail.dtype), jnp.full((), -jnp.inf, tail.dtype)
    k, _, _, log_beyond = _smooth_tail(tail - tail[-1], cutoff - tail[-1], tail[-1])
    return k, log_beyond + tail[-1]


def _smooth_tail(tail: Array, cutoff: Array, largest: Array) -> tuple[Array, ...]:
    """``(k [], smoothed tail [m], where it is smoothed [m], log excess [])`` of m log weights.

    The excess is what the tail expects beyond the largest weight, see `judge_tail`. The ascending
    ``tail`` and ``cutoff``, the next smaller one, are relative to ``largest``.
    """
    num = tail.shape[0]
    # Weights tied with the threshold stay in the body, so the tail's length is only known at
    # run time: a mask over the static tail.
    above = tail > cutoff
    length = jnp.sum(above)
    rounding = 8.0 * jnp.finfo(tail.dtype).eps * jnp.maximum(1.0, jnp.abs(largest))
    # Weights that differ by rounding only are even, unless rounding hides what they differ by.
    even = (tail[-1] - cutoff <= rounding) & (rounding <= _MAX_ROUNDING)
    constant = jnp.isfinite(cutoff) & even
    fitted = ~constant & (length >= MIN_TAIL)
    # Any harmless numbers where nothing is fitted: their results are discarded below.
    ramp = jnp.linspace(0.5, 1.0, num, dtype=tail.dtype)
    above = jnp.where(fitted, above, True)
    length = jnp.where(fitted, length, num)
    gap = jnp.where(fitted & above, cutoff - jnp.where(above, tail, 0.0), -1.0)
    log_exceedance = jnp.where(fitted, tail + jnp.log(-jnp.expm1(gap)), jnp.log(ramp))

    k, log_sigma = _fit_generalised_pareto(log_exceedance, above, length)
    rank = jnp.arange(num) - (num - length)
    probability = jnp.where(above, (rank + 0.5) / length, 0.5)
    log_quantile = log_sigma + _log_standard_quantile(probability, k)
    smoothed_tail = jnp.minimum(jnp.logaddexp(cutoff, log_quantile), 0.0)
    positive = jnp.clip(k, 1e-6, MAX_TAIL_K)
    log_excess = jnp.log(positive) + jnp.log(-jnp.expm1(jnp.where(fitted, cutoff, -1.0)))
    log_beyond = jnp.logaddexp(log_sigma, log_excess) - jnp.log1p(-positive)
    k = jnp.where(fitted, k, jnp.where(constant, 0.0, jnp.inf))
    return k, smoothed_tail, fitted & above, jnp.where(fitted, log_beyond, -jnp.inf)


def shift_by_max(log_weight: Array) -> tuple[Array, Array]:
    """Log weights less the largest, which keeps the digits of differences, and the largest.

    The largest counts as 0 if every weight is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers import pareto
      >>> shifted, largest = pareto.shift_by_max(jnp.array([-3.0, -1.0]))
      >>> shifted.tolist(), float(largest)
      ([-2.0, 0.0], -1.0)
    """
    largest = jnp.max(log_weight)
    largest = jnp.where(largest == -jnp.inf, 0.0, largest)
    return log_weight - largest, largest


def _fit_generalised_pareto(
    log_exceedance: Array, mask: Array, length: Array
) -> tuple[Array, Array]:
    """``(k, log sigma)`` fitted to the last ``length`` of ascending ``log_exceedance [m]``.

    Posterior mean of Zhang & Stephens (2009, Technometrics 51:316), with the prior on k of Vehtari
    et al. (2024), as in loo and ArviZ: 10 observations at k = 0.5, not for sigma.
    """
    m = log_exceedance.shape[0]
    num_grid = 30 + int(math.sqrt(m))
    first_quartile = log_exceedance[m - length + (length / 4.0 + 0.5).astype(int) - 1]
    # In units of the first quartile theta stays O(1); theta > 0 only for short tails.
    log_x = jnp.where(mask, log_exceedance - first_quartile, 0.0)
    grid = (1.0 - jnp.sqrt(num_grid / (jnp.arange(1, num_grid + 1) - 0.5))) / 3.0
    theta = jnp.exp(-log_x[-1]) + grid.astype(log_x.dtype)
    theta = jnp.where(theta == 0.0, jnp.finfo(log_x.dtype).eps, theta)

    def shape(theta: Array) -> Array:
        # Mean of log(1 - theta x), without forming x where it is large.
        negative = theta < 0
        heavy = jnp.logaddexp(0.0, jnp.log(jnp.where(negative, -theta, 1.0)) + log_x)
        light = jnp.log1p(-jnp.where(negative, 0.0, theta) * jnp.exp(jnp.minimum(log_x, 20.0)))
        return jnp.sum(jnp.where(mask, jnp.where(negative, heavy, light), 0.0)) / length

    k_grid = jax.vmap(shape)(theta)
    log_likelihood = length * (jnp.log(-theta / k_grid) - k_grid - 1.0)
    theta_mean = jnp.sum(theta * jax.nn.softmax(log_likelihood))
    theta_mean = jnp.where(theta_mean == 0.0, jnp.finfo(log_x.dtype).eps, theta_mean)
    k = shape(theta_mean)
    log_sigma = jnp.log(-k / theta_mean) + first_quartile
    return (length * k + 5.0) / (length + 10.0), log_sigma


def _log_standard_quantile(probability: Array, k: Array) -> Array:
    """Log quantile of the generalised Pareto distribution with sigma = 1."""
    # log(expm1(k a) / k), arranged to neither overflow for large k nor lose digits around k = 0.
    a = -jnp.log1p(-probability)
    size = jnp.abs(k) * a
    safe = jnp.maximum(size, 1e-4)
    log_ratio = jnp.where(size < 1e-4, -size / 2.0, jnp.log(-jnp.expm1(-safe) / safe))
    return jnp.log(a) + log_ratio + jnp.maximum(k, 0.0) * a
