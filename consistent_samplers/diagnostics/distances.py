"""Distances between two samples: maximum mean discrepancy and optimal transport.

All of them compare equally weighted draws; resample weighted ones first. A distance between
finite samples is not zero even where the distributions agree (only ``mmd`` and, nearly, the
debiased ``sinkhorn`` centre on zero there), so quote beside it the same distance between two
independent reference samples.
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

_ANNEALING_RATE = 0.95
"""Factor of the regularisation per iteration on its way down. Heavy tails want it slow: at 0.7
Neal's funnel (2,000 points) takes over four times as many iterations in all."""

_OVERRELAXATION = 1.8
"""Step length once annealed: saves about a third of the iterations of plain ones, at 1."""


class SinkhornResult(NamedTuple):
    """Entropic transport between two samples.

    Attributes:
      value: ``[]``, the transport cost or, if debiased, the Sinkhorn divergence; in squared units
        of the samples.
      regularisation: ``[]``, that was used, in the same units.
      marginal_error: ``[]``, total variation between the marginals of the plan and the samples;
        the largest over the plans involved.
      num_iterations: ``[]``, of the plan that took the most.
      converged: ``[]`` bool, whether ``marginal_error`` is within the tolerance.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> x = jnp.array([[0.0], [1.0]])
      >>> result = cs.diagnostics.sinkhorn(x, x + 1.0)
      >>> bool(result.converged), result.value.shape
      (True, ())
    """

    value: Array
    regularisation: Array
    marginal_error: Array
    num_iterations: Array
    converged: Array


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

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (200, 2))
      >>> y = jax.random.normal(jax.random.key(1), (200, 2))
      >>> bool(abs(cs.diagnostics.mmd(x, y)) < 0.02), bool(cs.diagnostics.mmd(x, y + 3.0) > 0.5)
      (True, True)
    """
    x, y = _checked_pair("mmd", x, y, min_points=2)
    return _mmd(x, y, bandwidth)


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
    (Cuturi 2013, arXiv:1306.0895), by Sinkhorn iterations on log scale: the regularisation is
    annealed from the largest cost (Schmitzer 2019, arXiv:1610.06519), then the iterations are
    over-relaxed (Thibault et al. 2021, arXiv:1711.01851). Two numbers are on offer:

    - The transport cost <P, C> is what the diffusion-sampler literature calls Sinkhorn distance
      (some papers add the entropy term). It exceeds `wasserstein2` squared, by up to the order of
      regularisation * dim, even for equal samples.
    - The Sinkhorn divergence (Feydy et al. 2019, arXiv:1810.08278) takes off the entropic cost of
      each sample to itself: zero for equal samples, and positive otherwise.

    Either depends on the regularisation and, through its noise, on the sample sizes: only figures
    that share both compare. The default depends on ``y`` alone, so give the reference sample as
    ``y`` and one number serves every method that is compared with it.

    Memory and the time of an iteration grow as ``n * m``. It can be jitted and vmapped, but not
    differentiated in reverse mode: a diagnostic, no training loss.

    Args:
      x: ``[n, dim]``.
      y: ``[m, dim]``, the reference sample.
      regularisation: positive, in squared units of the samples; if None, `RELATIVE_REGULARISATION`
        times the median squared distance between points of ``y`` (evenly spaced rows, at most 500).
      max_iterations: at least 10; at most half of them anneal.
      tolerance: stop at this ``marginal_error``; the default leaves the value about 1 % off. Heavy
        tails in float32 do not reach 1e-4.
      debiased: whether to return the divergence instead of the cost (about twice the time).

    Returns:
      The value, and how well it converged.

    Raises:
      ValueError: shapes that do not fit, an argument out of range, and (unless traced) points that
        are not finite.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (100, 2))
      >>> result = cs.diagnostics.sinkhorn(x, x + jnp.array([3.0, 0.0]), debiased=True)
      >>> round(float(result.value), 1), bool(result.converged)  # the shift, squared
      (9.0, True)
    """
    x, y = _checked_pair("sinkhorn", x, y, min_points=1)
    _check_finite("sinkhorn", x, y)
    if max_iterations < 10:
        raise ValueError(f"max_iterations must be at least 10, got {max_iterations}.")
    for name, value in (("regularisation", regularisation), ("tolerance", tolerance)):
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        if not (np.ndim(value) == 0 and 0 < float(value) < float("inf")):
            raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return _sinkhorn(x, y, regularisation, tolerance, max_iterations, debiased)


def wasserstein2(x: Array, y: Array) -> float:
    """Exact 2-Wasserstein distance between two samples of one size.

    The root of the least mean squared Euclidean distance over all pairings, by the Hungarian
    method (``scipy.optimize.linear_sum_assignment``) in float64 on the host. Time grows as up to
    the cube of the size (seconds for 2,000 points), memory as its square.

    Args:
      x: ``[n, dim]``, concrete (not traced).
      y: ``[n, dim]``, concrete (not traced).

    Returns:
      The distance, in units of the samples.

    Raises:
      ValueError: shapes that do not fit, different sizes, or points that are not finite.

    Example:
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> x = np.random.default_rng(0).normal(size=(50, 2))
      >>> round(float(cs.diagnostics.wasserstein2(x, x + np.array([3.0, 0.0]))), 3)
      3.0
    """
    x, y = _checked_pair("wasserstein2", x, y, min_points=1)
    _check_finite("wasserstein2", x, y)
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
    """Squared Euclidean distances ``[n, m]`` between ``x [n, dim]`` and ``y [m, dim]``.

    Differences are squared, not squares subtracted: near points far from the origin keep their
    digits in float32.
    """
    # A few rows at a time, since the differences of all pairs would take dim times the memory.
    return jax.lax.map(
        lambda point: jnp.sum((point[None, :] - y) ** 2, axis=1), x, batch_size=min(16, x.shape[0])
    )


def _checked_pair(name: str, x: Array, y: Array, min_points: int) -> tuple[Array, Array]:
    """Both samples as floating-point arrays whose shapes fit."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name} compares samples of shapes [n, dim] and [m, dim], "
            f"got {x.shape} and {y.shape}. Reshape scalars to [n, 1]."
        )
    if min(x.shape[0], y.shape[0]) < min_points:
        points = "point" if min_points == 1 else "points"
        raise ValueError(
            f"{name} needs at least {min_points} {points} in each sample, "
            f"got shapes {x.shape} and {y.shape}."
        )
    dtype = jnp.result_type(x, y, float)
    return x.astype(dtype), y.astype(dtype)


def _check_finite(name: str, x: Array, y: Array) -> None:
    """Refuses points that are not finite, unless traced."""
    for label, sample in (("x", x), ("y", y)):
        if isinstance(sample, jax.core.Tracer):
            continue
        num_bad = int(np.sum(~np.all(np.isfinite(np.asarray(sample)), axis=1)))
        if num_bad > 0:
            raise ValueError(
                f"{num_bad} of {sample.shape[0]} points of {label} are NaN or infinite, and "
                f"{name} has no distance to them. Drop them and say how many, or find out why the "
                "sampler diverged."
            )


@jax.jit
def _mmd(x: Array, y: Array, bandwidth: float | Array | None) -> Array:
    """``mmd`` of checked samples: one compiled computation."""
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
    column = jnp.arange(y.shape[0])

    def row_sum(row: tuple[Array, Array]) -> Array:
        index, point = row
        kernel = jnp.exp(-_squared_distance(point, y, squared_norm) / (2.0 * bandwidth**2))
        return jnp.sum(jnp.where(skip_diagonal & (column == index), 0.0, kernel))

    rows = (jnp.arange(x.shape[0]), x)
    return jnp.sum(jax.lax.map(row_sum, rows, batch_size=min(256, x.shape[0])))


def _median_distance(points: Array) -> Array:
    """Median distance between ``points [n, dim]``; 1 if most coincide or there is one."""
    if points.shape[0] < 2:
        return jnp.ones((), points.dtype)
    # Distances do not care about the origin; float32 does, when squares are subtracted.
    points = points - jnp.mean(points, axis=0, keepdims=True)
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
    """``sinkhorn`` of checked samples: one compiled computation."""
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
    return SinkhornResult(
        value=value,
        regularisation=epsilon,
        marginal_error=marginal_error,
        num_iterations=jnp.max(jnp.stack([plan.num_iterations for plan in plans])),
        converged=marginal_error <= tolerance,
    )


class _Plan(NamedTuple):
    """Potentials ``f [n]``, ``g [m]`` of the plan exp((f + g - cost) / epsilon) / (n m).

    Its columns add up to 1 / m; ``marginal_error`` is that of its rows.
    """

    f: Array
    g: Array
    row_update: Array
    previous_error: Array
    marginal_error: Array
    num_iterations: Array


def _potentials(
    cost: Array,
    regularisation: Array,
    tolerance: float | Array,
    max_iterations: int,
    symmetric: bool,
) -> _Plan:
    """Sinkhorn iterations for ``cost [n, m]``; ``symmetric`` for a sample with itself."""
    n, m = cost.shape
    start = jnp.maximum(jnp.max(cost), regularisation)
    # Faster where the iterations would not suffice otherwise, so that annealing always ends.
    span = jnp.log(regularisation / start) / (max_iterations // 2)
    rate = jnp.minimum(_ANNEALING_RATE, jnp.exp(span))

    def row_update(g: Array, epsilon: Array) -> Array:
        exponent = (g[None, :] - cost) / epsilon
        return epsilon * (jnp.log(float(m)) - jax.nn.logsumexp(exponent, axis=1))

    def column_update(f: Array, epsilon: Array) -> Array:
        exponent = (f[:, None] - cost) / epsilon
        return epsilon * (jnp.log(float(n)) - jax.nn.logsumexp(exponent, axis=0))

    def iterate(plan: _Plan) -> _Plan:
        step = plan.num_iterations
        epsilon = jnp.maximum(start * rate**step, regularisation)
        epsilon = jnp.where(step < max_iterations // 2, epsilon, regularisation)
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
        error = jnp.where(epsilon > regularisation, jnp.inf, error)
        return _Plan(f, g, update, plan.marginal_error, error, step + 1)

    def unfinished(plan: _Plan) -> Array:
        return (plan.marginal_error > tolerance) & (plan.num_iterations < max_iterations)

    f, infinity = jnp.zeros(n, cost.dtype), jnp.asarray(jnp.inf, cost.dtype)
    g = jnp.zeros(m, cost.dtype)
    first = _Plan(f, g, row_update(g, start), infinity, infinity, jnp.asarray(0))
    plan = jax.lax.while_loop(unfinished, iterate, first)
    # With g = T(f) the pair is feasible for the dual, which bounds the entropic cost from below.
    return plan._replace(g=plan.row_update) if symmetric else plan


def _transport_cost(cost: Array, epsilon: Array, plan: _Plan) -> Array:
    """<P, C> of the plan, with the mass that its rows and columns lack at its dual price.

    That is the dual objective less epsilon * KL: unconverged it is far closer than the bare sum,
    which misses outliers, and than the cost of a plan rounded to a coupling, which sends the
    missing mass anywhere.
    """
    n, m = cost.shape
    coupling = jnp.exp((plan.f[:, None] + plan.g[None, :] - cost) / epsilon) / (n * m)
    rows, columns = jnp.sum(coupling, axis=1), jnp.sum(coupling, axis=0)
    missing = jnp.sum((1.0 / n - rows) * plan.f) + jnp.sum((1.0 / m - columns) * plan.g)
    return jnp.sum(coupling * cost) + missing
