"""Distances between two samples: maximum mean discrepancy and optimal transport.

All compare equally weighted draws; resample weighted ones first. Even where the distributions agree
only ``mmd`` and, nearly, the debiased ``sinkhorn`` centre on zero, so quote beside a distance the
one between two independent reference samples.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.types import Array

MAX_MEDIAN_POINTS = 500
"""Points of each sample that the median heuristic looks at (all pairs of 1,000 in all)."""

RELATIVE_REGULARISATION = 0.01
"""Default of `sinkhorn`, in median squared distances between the points of the reference."""

# Factor of the regularisation per iteration on its way down. Heavy tails want it slow: at 0.7
# Neal's funnel (2,000 points) takes over four times as many iterations in all.
_ANNEALING_RATE = 0.95
# Step length once annealed: saves about a third of the iterations of plain ones, at 1.
_OVERRELAXATION = 1.8


class SinkhornResult(NamedTuple):
    """Entropic transport between two samples; every entry is a scalar ``[]``.

    Attributes:
      value: transport cost or, if debiased, Sinkhorn divergence, in squared units of the samples.
      regularisation: that was used, in the same units.
      marginal_error: total variation between samples and the plan's marginals; the largest plan's.
      num_iterations: of the plan that took the most.
      converged: whether ``marginal_error`` is within the tolerance.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> x = jnp.array([[0.0], [1.0]])
      >>> bool(cs.diagnostics.sinkhorn(x, x + 1.0).converged)
      True
    """

    value: Array
    regularisation: Array
    marginal_error: Array
    num_iterations: Array
    converged: Array


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


def sinkhorn(
    x: Array,
    y: Array,
    *,
    regularisation: float | Array | None = None,
    max_iterations: int = 2_000,
    tolerance: float | Array = 2e-3,
    debiased: bool = False,
) -> SinkhornResult:
    """Entropic optimal transport between two samples, with squared Euclidean cost.

    The plan P minimises <P, C> + regularisation * KL(P | product of the samples) over couplings
    (Cuturi 2013, arXiv:1306.0895), by Sinkhorn iterations on log scale: annealed from the largest
    cost (Schmitzer 2019, arXiv:1610.06519), then over-relaxed (Thibault et al. 2021,
    arXiv:1711.01851). The transport cost <P, C>, which the diffusion-sampler literature calls
    Sinkhorn distance, exceeds `wasserstein2` squared by up to the order of regularisation * dim.
    The Sinkhorn divergence (Feydy et al. 2019, arXiv:1810.08278) takes off the entropic cost of
    each sample to itself: zero for equal samples, and positive otherwise.

    Only figures of one regularisation and one pair of sample sizes compare. Memory and the time of
    an iteration grow as ``n * m``. It cannot be differentiated in reverse mode.

    Args:
      x: ``[n, dim]``.
      y: ``[m, dim]``, the reference sample.
      regularisation: positive, in squared units of the samples; if None, `RELATIVE_REGULARISATION`
        times the median squared distance between at most `MAX_MEDIAN_POINTS` points of ``y``.
      max_iterations: at least 10; at most half of them anneal.
      tolerance: stop at this ``marginal_error``; the default leaves the value about 1 % off. Heavy
        tails in float32 do not reach 1e-4.
      debiased: whether to return the divergence instead of the cost (about twice the time).

    Raises:
      ValueError: wrong shapes, an argument out of range, or (unless traced) points not finite.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (100, 1))
      >>> round(float(cs.diagnostics.sinkhorn(x, x + 3.0, debiased=True).value), 1)
      9.0
    """
    x, y = _checked_pair("sinkhorn", x, y, finite=True)
    if max_iterations < 10:
        raise ValueError(f"max_iterations must be at least 10, got {max_iterations}.")
    for name, value in (("regularisation", regularisation), ("tolerance", tolerance)):
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        if not (np.ndim(value) == 0 and 0 < float(value) < float("inf")):
            raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return _sinkhorn(x, y, regularisation, tolerance, max_iterations, debiased)


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
            "Take as many of the larger sample, or use sinkhorn."
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


@functools.partial(jax.jit, static_argnames=("max_iterations", "debiased"))
def _sinkhorn(
    x: Array,
    y: Array,
    regularisation: float | Array | None,
    tolerance: float | Array,
    max_iterations: int,
    debiased: bool,
) -> SinkhornResult:
    """``sinkhorn`` of checked samples."""
    if regularisation is None:
        every = -(-y.shape[0] // MAX_MEDIAN_POINTS)
        regularisation = RELATIVE_REGULARISATION * _median_distance(y[::every]) ** 2
    epsilon = jnp.asarray(regularisation, x.dtype)

    cost = squared_distances(x, y)
    plans = [_potentials(cost, epsilon, tolerance, max_iterations, symmetric=False)]
    if debiased:
        for sample in (x, y):
            own = squared_distances(sample, sample)
            plans.append(_potentials(own, epsilon, tolerance, max_iterations, symmetric=True))
        # The dual objective: its error is of second order in that of the potentials.
        entropic = [jnp.mean(plan.f) + jnp.mean(plan.g) for plan in plans]
        value = entropic[0] - 0.5 * (entropic[1] + entropic[2])
    else:
        value = _transport_cost(cost, epsilon, plans[0])
    marginal_error = jnp.max(jnp.stack([plan.marginal_error for plan in plans]))
    num_iterations = jnp.max(jnp.stack([plan.num_iterations for plan in plans]))
    converged = marginal_error <= tolerance
    return SinkhornResult(value, epsilon, marginal_error, num_iterations, converged)


class _Plan(NamedTuple):
    """Potentials of the plan exp((f + g - cost) / epsilon) / (n m); its columns add up to 1 / m."""

    f: Array  # [n]
    g: Array  # [m]
    row_update: Array  # the next f
    previous_error: Array
    marginal_error: Array  # of the rows
    num_iterations: Array


def _potentials(
    cost: Array, final: Array, tolerance: float | Array, max_iterations: int, symmetric: bool
) -> _Plan:
    """Iterations for ``cost [n, m]``, annealed to ``final``; ``symmetric``: of one sample."""
    n, m = cost.shape
    start = jnp.maximum(jnp.max(cost), final)
    # Faster where the iterations would not suffice otherwise, so that annealing always ends.
    span = jnp.log(final / start) / (max_iterations // 2)
    rate = jnp.minimum(_ANNEALING_RATE, jnp.exp(span))

    def row_update(g: Array, epsilon: Array) -> Array:
        exponent = (g[None, :] - cost) / epsilon
        return epsilon * (jnp.log(float(m)) - jax.nn.logsumexp(exponent, axis=1))

    def column_update(f: Array, epsilon: Array) -> Array:
        exponent = (f[:, None] - cost) / epsilon
        return epsilon * (jnp.log(float(n)) - jax.nn.logsumexp(exponent, axis=0))

    def iterate(plan: _Plan) -> _Plan:
        step = plan.num_iterations
        epsilon = jnp.maximum(start * rate**step, final)
        epsilon = jnp.where(step < max_iterations // 2, epsilon, final)
        if symmetric:
            # Averaging both updates keeps f = g and settles within a few iterations.
            f = 0.5 * (plan.f + plan.row_update)
            g = f
        else:
            # An over-relaxed iteration may lose ground, a plain one never does.
            gains = plan.marginal_error < plan.previous_error
            length = jnp.where(gains & jnp.isfinite(plan.previous_error), _OVERRELAXATION, 1.0)
            f = plan.f + length * (plan.row_update - plan.f)
            g = column_update(f, epsilon)
        update = row_update(g, epsilon)
        # Row i of the plan adds up to exp((f_i - update_i) / epsilon) / n.
        error = 0.5 * jnp.mean(jnp.abs(jnp.expm1((f - update) / epsilon)))
        error = jnp.where(epsilon > final, jnp.inf, error)
        return _Plan(f, g, update, plan.marginal_error, error, step + 1)

    def unfinished(plan: _Plan) -> Array:
        return (plan.marginal_error > tolerance) & (plan.num_iterations < max_iterations)

    f, g = jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype)
    infinity = jnp.asarray(jnp.inf, cost.dtype)
    first = _Plan(f, g, row_update(g, start), infinity, infinity, jnp.asarray(0))
    plan = jax.lax.while_loop(unfinished, iterate, first)
    # With g = T(f) the pair is feasible for the dual, which bounds the entropic cost from below.
    return plan._replace(g=plan.row_update) if symmetric else plan


def _transport_cost(cost: Array, epsilon: Array, plan: _Plan) -> Array:
    """<P, C> of the plan, with the mass that its rows and columns lack at its dual price."""
    # That is the dual objective less epsilon * KL: unconverged it is far closer than the bare sum,
    # which misses outliers, and than a plan rounded to a coupling, which sends that mass anywhere.
    n, m = cost.shape
    coupling = jnp.exp((plan.f[:, None] + plan.g[None, :] - cost) / epsilon) / (n * m)
    rows, columns = jnp.sum(coupling, axis=1), jnp.sum(coupling, axis=0)
    missing = jnp.sum((1.0 / n - rows) * plan.f) + jnp.sum((1.0 / m - columns) * plan.g)
    return jnp.sum(coupling * cost) + missing
