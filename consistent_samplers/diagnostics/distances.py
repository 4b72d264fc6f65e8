"""Distances between two samples: maximum mean discrepancy and optimal transport.

Both compare equally weighted draws; resample weighted ones first. Where the distributions agree
only ``mmd`` centres on zero, so quote beside a distance the one between two independent reference
samples.
"""

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.types import Array

MAX_MEDIAN_POINTS = 500
"""Points of each sample that the median heuristic looks at (all pairs of 1,000 in all)."""


def mmd(x: Array, y: Array, bandwidth: float | Array | None = None) -> Array:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723, eq. 3).

    For equal distributions 0 in expectation: it may be slightly negative. Time grows as the square
    of the sample size, memory as 256 times the sample size.

    Args:
      x: ``[n, dim]``, n >= 2.
      y: ``[m, dim]``, m >= 2.
      bandwidth: of the kernel ``exp(-|x - y|^2 / (2 bandwidth^2))``; if None, the median distance
        between the pooled points (evenly spaced rows, at most `MAX_MEDIAN_POINTS` of each sample).

    Raises:
      ValueError: shapes that do not fit, or fewer than 2 points in a sample.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (200, 2))
      >>> y = jax.random.normal(jax.random.key(1), (200, 2))
      >>> bool(abs(cs.diagnostics.mmd(x, y)) < 0.02), bool(cs.diagnostics.mmd(x, y + 3.0) > 0.5)
      (True, True)
    """
    return _mmd(*_checked_pair("mmd", x, y, min_points=2), bandwidth)


def wasserstein2(x: Array, y: Array) -> float:
    """Exact 2-Wasserstein distance between two concrete samples of one size, ``[n, dim]``.

    The root of the least mean squared Euclidean distance over all pairings, in float64 on the host.
    Time grows as up to the cube of the size (seconds for 2,000 points), memory as its square.

    Raises:
      ValueError: shapes that do not fit, different sizes, or points that are not finite.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> x = np.random.default_rng(0).normal(size=(50, 1))
      >>> round(cs.diagnostics.wasserstein2(x, x + 3.0), 3)
      3.0
    """
    x, y = _checked_pair("wasserstein2", x, y, finite=True)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"wasserstein2 pairs samples of one size, got {x.shape[0]} and {y.shape[0]} points. "
            "Take as many of the larger sample."
        )
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    cost = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    return float(np.sqrt(np.mean(cost[linear_sum_assignment(cost)])))


def squared_distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances ``[n, m]`` between ``x [n, dim]`` and ``y [m, dim]``."""
    # Differences are squared, not squares subtracted: near points far from the origin keep their
    # digits in float32. A few rows at a time: those of all pairs take dim times the memory.
    size = min(16, x.shape[0])
    return jax.lax.map(lambda point: jnp.sum((point - y) ** 2, axis=1), x, batch_size=size)


def check_finite(points: Array, what: str, consequence: str) -> None:
    """Refuses points ``[n, dim]`` that are not finite, unless traced."""
    if isinstance(points, jax.core.Tracer):
        return
    num_bad = int(np.sum(~np.all(np.isfinite(np.asarray(points)), axis=1)))
    if num_bad > 0:
        raise ValueError(
            f"{num_bad} of {points.shape[0]} {what} are NaN or infinite, and {consequence}. "
            "Drop them and say how many, or find out why the sampler diverged."
        )


def _checked_pair(
    name: str, x: Array, y: Array, min_points: int = 1, finite: bool = False
) -> tuple[Array, Array]:
    """Both samples as floating-point arrays whose shapes fit."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    got = f"got shapes {x.shape} and {y.shape}"
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name} compares samples [n, dim] and [m, dim], {got}. Reshape scalars to [n, 1]."
        )
    if min(x.shape[0], y.shape[0]) < min_points:
        least = "1 point" if min_points == 1 else f"{min_points} points"
        raise ValueError(f"{name} needs at least {least} in each sample, {got}.")
    if finite:
        check_finite(x, "points of x", f"{name} has no distance to them")
        check_finite(y, "points of y", f"{name} has no distance to them")
    dtype = jnp.result_type(x, y, float)
    return x.astype(dtype), y.astype(dtype)


@jax.jit
def _mmd(x: Array, y: Array, bandwidth: float | Array | None) -> Array:
    """``mmd`` of checked samples."""
    n, m = x.shape[0], y.shape[0]
    # Distances do not care about the origin; float32 does, when squares are subtracted.
    centre = 0.5 * (jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True))
    x, y = x - centre, y - centre
    if bandwidth is None:
        some = [z[:: -(-z.shape[0] // MAX_MEDIAN_POINTS)] for z in (x, y)]
        bandwidth = _median_distance(jnp.concatenate(some))
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
    column, row = jnp.arange(y.shape[0]), jnp.arange(x.shape[0])

    def row_sum(inputs: tuple[Array, Array]) -> Array:
        index, point = inputs
        kernel = jnp.exp(-_squared_distance(point, y, squared_norm) / (2.0 * bandwidth**2))
        return jnp.sum(jnp.where(skip_diagonal & (column == index), 0.0, kernel))

    return jnp.sum(jax.lax.map(row_sum, (row, x), batch_size=min(256, x.shape[0])))


def _median_distance(points: Array) -> Array:
    """Median distance between ``points [n, dim]``; 1 if most coincide or there is one."""
    if points.shape[0] < 2:
        return jnp.ones((), points.dtype)
    points = points - jnp.mean(points, axis=0, keepdims=True)  # as in `_mmd`
    squared_norm = jnp.sum(points**2, axis=1)
    squared = jax.vmap(_squared_distance, (0, None, None))(points, points, squared_norm)
    median = jnp.sqrt(jnp.median(squared[jnp.triu_indices(points.shape[0], 1)]))
    return jnp.where(median > 0, median, 1.0)
