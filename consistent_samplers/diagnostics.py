"""Distances between samples, and a plain-language verdict on an ``Evidence``."""

import math

import jax
import jax.numpy as jnp

from consistent_samplers.estimate import Evidence
from consistent_samplers.types import Array

MAX_MEDIAN_POINTS = 500
"""Points of each sample that the median heuristic looks at: all pairs of 1,000 in all."""

MIN_EFFECTIVE = 100
"""Effective samples below which the estimates are called noisy."""

MAX_ROUND_TRIP_ERROR = 0.1
"""Round-trip error, in base standard deviations, above which a map is called not invertible."""


EVEN_ESS = 0.99
"""Share of effective samples from which on the weights are even: their tail is close to rounding,
and its Pareto k means nothing."""


def pareto_k_threshold(num_samples: int) -> float:
    """Largest Pareto k that can be trusted: min(1 - 1 / log10 n, 0.7) (Vehtari et al. 2024)."""
    return min(1.0 - 1.0 / math.log10(max(num_samples, 11)), 0.7)


def weights_are_reliable(evidence: Evidence) -> bool:
    """Whether the importance weights support a correction of the draws and a standard error.

    They do if Pareto k is at most `pareto_k_threshold`, or at least `EVEN_ESS` of the samples are
    effective.

    Args:
      evidence: concrete (not traced) evidence.
    """
    threshold = pareto_k_threshold(evidence.num_samples)
    return float(evidence.pareto_k) <= threshold or float(evidence.ess) >= EVEN_ESS


def mmd(x: Array, y: Array, bandwidth: float | Array | None = None) -> Array:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723, eq. 3).

    The kernel is ``exp(-|x - y|^2 / (2 bandwidth^2))``. Rows go in chunks, so memory grows as
    256 times the sample size; time grows as its square.

    Args:
      x: ``[n, dim]``, n >= 2.
      y: ``[m, dim]``, m >= 2.
      bandwidth: of the kernel; if None, the median distance between the pooled points
        (evenly spaced rows of ``x`` and ``y``, at most 500 of each).

    Returns:
      ``[]``; 0 in expectation for equal distributions, and may be slightly negative.

    Raises:
      ValueError: shapes that do not fit, or fewer than 2 points in a sample.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            "mmd compares samples of shapes [n, dim] and [m, dim], "
            f"got {x.shape} and {y.shape}. Reshape scalars to [n, 1]."
        )
    if min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(
            f"mmd needs at least 2 points in each sample, got shapes {x.shape} and {y.shape}."
        )
    return _mmd(x, y, bandwidth)


def verdict(evidence: Evidence) -> str:
    """What the numbers are worth and what to try, in two plain sentences.

    Args:
      evidence: concrete (not traced) evidence.

    Returns:
      One paragraph: the findings, then the remedies.
    """
    n = evidence.num_samples
    k, ess = float(evidence.pareto_k), float(evidence.ess)
    k_threshold = pareto_k_threshold(n)
    findings: list[str] = []
    remedies: list[str] = []

    if evidence.bound == "heuristic":
        findings.append("these weights are heuristic, so neither figure bounds log Z")
        remedies.append('sample with bound="lower" or "lower-if-injective"')
    folded = 0.0 if evidence.folded is None else float(evidence.folded)
    error = 0.0 if evidence.round_trip_error is None else float(evidence.round_trip_error)
    if folded > 0:
        findings.append(
            f"the map folds at {100 * folded:.2g} % of the samples, so the figures may exceed log Z"
        )
    elif error > MAX_ROUND_TRIP_ERROR:
        findings.append(
            f"the map is not inverted (round-trip error {error:.2g} base standard deviations), "
            "so it may fold and the figures may exceed log Z"
        )
    if folded > 0 or error > MAX_ROUND_TRIP_ERROR:
        remedies.append('take more, smaller steps or sample with bound="lower"')
    if math.isnan(k):
        findings.append("the weights are not numbers, so nothing can be said")
        remedies.append("check the target's log_density")
    elif math.isinf(k):
        findings.append(
            f"{n} samples show too little of the weights' tail to judge the standard errors"
        )
        remedies.append("draw at least a few hundred samples")
    elif not weights_are_reliable(evidence):
        findings.append(
            f"a few large weights decide log Z (Pareto k {k:.2f}, above {k_threshold:.2f} for "
            f"{n} samples), so it is probably too low and its standard error too small"
        )
        remedies.append("train longer, take more steps or fit a richer base")
    if not math.isnan(k) and ess * n < MIN_EFFECTIVE:
        findings.append(f"only about {max(ess * n, 1.0):.0f} of {n} samples are effective")
        # With a heavy tail more samples hardly help; its own remedy is already listed.
        if math.isinf(k) or weights_are_reliable(evidence):
            remedies.append("draw more samples or train longer")

    if not findings:
        return (
            f"The weights are well behaved ({100 * ess:.0f} % of {n} samples effective): log Z and "
            "its standard error can be trusted for the region the sampler visits. Weights "
            "cannot reveal modes that no sample reaches, so compare with fresh optimiser starts or "
            "an independent sampler."
        )
    first, second = "; ".join(findings), "; ".join(dict.fromkeys(remedies))
    return f"{first[0].upper()}{first[1:]}. To improve: {second}."


@jax.jit
def _mmd(x: Array, y: Array, bandwidth: float | Array | None) -> Array:
    """``mmd`` of checked samples: one compiled computation."""
    n, m = x.shape[0], y.shape[0]
    # Distances do not care about the origin; float32 does, when squares are subtracted.
    centre = 0.5 * (jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True))
    x, y = x - centre, y - centre
    if bandwidth is None:
        bandwidth = _median_distance(x, y)
    within_x = _kernel_sum(x, x, bandwidth, skip_diagonal=True) / (n * (n - 1))
    within_y = _kernel_sum(y, y, bandwidth, skip_diagonal=True) / (m * (m - 1))
    between = _kernel_sum(x, y, bandwidth, skip_diagonal=False) / (n * m)
    return within_x + within_y - 2.0 * between


def _squared_distance(point: Array, points: Array, squared_norm: Array) -> Array:
    """Squared distances ``[m]`` from ``point [dim]`` to ``points [m, dim]``."""
    product = jnp.matmul(points, point, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(point**2) + squared_norm - 2.0 * product, 0.0)


def _kernel_sum(x: Array, y: Array, bandwidth: float | Array, skip_diagonal: bool) -> Array:
    """Sum of the kernel over all pairs, without i = j if asked."""
    squared_norm = jnp.sum(y**2, axis=1)
    column = jnp.arange(y.shape[0])

    def row_sum(row: tuple[Array, Array]) -> Array:
        index, point = row
        kernel = jnp.exp(-_squared_distance(point, y, squared_norm) / (2.0 * bandwidth**2))
        return jnp.sum(jnp.where(skip_diagonal & (column == index), 0.0, kernel))

    rows = (jnp.arange(x.shape[0]), x)
    return jnp.sum(jax.lax.map(row_sum, rows, batch_size=min(256, x.shape[0])))


def _median_distance(x: Array, y: Array) -> Array:
    """Median distance between the pooled points; 1 if they all coincide."""
    some = [z[:: -(-z.shape[0] // MAX_MEDIAN_POINTS)] for z in (x, y)]
    points = jnp.concatenate(some)
    squared_norm = jnp.sum(points**2, axis=1)
    squared = jax.vmap(_squared_distance, (0, None, None))(points, points, squared_norm)
    median = jnp.sqrt(jnp.median(squared[jnp.triu_indices(points.shape[0], 1)]))
    return jnp.where(median > 0, median, 1.0)
