"""Optima of a density, found by many optimiser starts."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

from consistent_samplers.bases import iterating
from consistent_samplers.bases.iterating import MAX_DENSE_DIM, affordable, one_thread
from consistent_samplers.bases.laplace import check_starts, maximise
from consistent_samplers.kernels import kernel
from consistent_samplers.progress import counted
from consistent_samplers.targets import evaluation, rounding
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

NUM_STARTS = 512
"""Optimiser starts."""
MAX_MODES = 128
"""Optima kept."""

# Of the starts an eighth are further out than the rest, where a prior may be very wide.
_SCALES, _FAR_SCALES, _FAR_SHARE = (0.1, 100.0), (1e2, 1e5), 0.125
_MIN_SCALE = 0.5  # for the steps of a climb
# Of the starts as many at most lie on the line of equal coordinates, each of which is 3 % further
# out than the one before it; a batch of values.
_EQUAL_SHARE, _LINE_RATIO = 0.0625, 0.03
_LINE = (0.03, 1e5)
# A climb of fewer starts than these costs as much: batches of gradients are filled up.
_MIN_BATCH = 128
_FEW_STARTS = 32
_MIN_ITERATIONS = 150
# Two optima are one if they lie within this many standard deviations a dimension.
_SAME_MODE = 0.5
# Relative to the largest curvature; flatter directions have no Laplace width of their own.
_MIN_CURVATURE = 1e-6
_MAX_DROP = 200.0
# Polishes in a row that end in no new mode, after which the rest is left.
_MAX_IN_VAIN = 8
_POLISH = 50
# An end is on its way to an optimum if on the line to it the density falls by no more than this, in
# nats, below its own.
_FALL = 0.1
_NUM_BETWEEN = 15
_OPTIMIZER = optax.scale_by_adam()


class Modes(NamedTuple):
    """Distinct optima, the best Laplace evidence first; host arrays.

    Attributes:
      loc: ``[num_modes, dim]``.
      scale_tril: ``[num_modes, dim, dim]``, Cholesky factors of the Laplace covariances.
      log_evidence: ``[num_modes]``, log of the Laplace approximation to each mode's mass, in
        nats.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> modes = cs.bases.Modes(np.zeros((1, 2)), np.eye(2)[None], log_evidence=np.zeros(1))
      >>> len(modes.loc)  # one mode of mass one
      1
    """

    loc: np.ndarray
    scale_tril: np.ndarray
    log_evidence: np.ndarray


def find_modes(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = NUM_STARTS,
    num_iterations: int = 400,
    max_modes: int = MAX_MODES,
) -> Modes:
    """Distinct optima of the density, from starts at scales of 0.1 to 100, and a few to 100,000.

    Some are the peaks of the density along the line on which all coordinates are equal, where
    exchangeable parameters have modes that random starts miss in many dimensions. Adam climbs from
    all starts at once, each at steps in proportion to its scale; the distinct ends are polished by
    L-BFGS and given their Laplace covariances on the host.

    A climb of more than 40 Gflop is cut down to 256 starts and 300 iterations or 128 and 225; where
    these are too many, L-BFGS climbs from 32 starts, 150 evaluations each at most.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points to start from as well.
      num_starts: number of starts; at most 16 above 200 dimensions.
      num_iterations: Adam iterations.
      max_modes: optima kept, the highest densities first.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> modes = cs.bases.find_modes(jax.random.key(0), target, num_starts=16)
      >>> sorted(modes.loc.round(1).ravel().tolist())
      [-2.0, 2.0]
    """
    dim = target.dim
    if dim > MAX_DENSE_DIM:
        num_starts = min(num_starts, 16)
    num_starts, num_iterations = climb_size(target, num_starts, num_iterations)
    random = iterating.normals(rng_key, num_starts, dim)
    num_far = round(_FAR_SHARE * num_starts)
    scale = np.geomspace(*_SCALES, num_starts - num_far)
    scale = np.concatenate([scale, np.geomspace(*_FAR_SCALES, num_far)]).astype(random.dtype)
    starts = scale[:, None] * random
    if init_position is not None:
        given = np.atleast_2d(np.asarray(init_position, starts.dtype))
        if given.shape[1] != dim:
            raise ValueError(f"init_position must have {dim} columns, got {given.shape}.")
        starts = np.concatenate([given, starts])
        scale = np.concatenate([np.ones(len(given), scale.dtype), scale])
    scale = np.maximum(scale, _MIN_SCALE)
    peaks = _peaks_of_equal_coordinates(target, math.ceil(_EQUAL_SHARE * num_starts))
    # In place of the widest random ones that are not far out.
    own = slice(len(starts) - num_far - len(peaks), len(starts) - num_far)
    starts[own] = peaks[:, None]
    scale[own] = _LINE_RATIO * np.abs(peaks)
    # Far out a density may overflow; it has to be usable somewhere.
    usable = np.isfinite(check_starts(target, starts, lambda values: np.isfinite(values).any()))
    # As many as before, for what is compiled: the first usable one stands in for the others.
    first = np.argmax(usable)
    starts = np.where(usable[:, None], starts, starts[first])
    scale = np.where(usable, scale, scale[first])
    return distinct(target, *climb(target, starts, scale, num_iterations), max_modes)


def _peaks_of_equal_coordinates(target: Target, most: int) -> np.ndarray:
    """Coordinates ``[n]``, ``n <= most``, of the density's highest peaks where all are equal."""
    along = _LINE[0] * (1.0 + _LINE_RATIO) ** np.arange(math.log(_LINE[1] / _LINE[0]) / _LINE_RATIO)
    along = np.concatenate([-along[::-1], along]).astype(jnp.result_type(float))
    points = np.repeat(along[:, None], target.dim, axis=1)
    values = np.asarray(evaluation.values(target.log_density, points), np.float64)
    values = np.where(np.isfinite(values), values, -np.inf)
    padded = np.concatenate([[-np.inf], values, [-np.inf]])
    is_peak = (values > padded[:-2]) & (values >= padded[2:])
    (peaks,) = np.nonzero(is_peak)
    return along[peaks[np.argsort(-values[peaks])][:most]]


def climb_size(target: Target, num_starts: int, num_iterations: int = 400) -> tuple[int, int]:
    """Numbers of starts and of Adam iterations that the budget allows; 0 of these for L-BFGS."""
    most = affordable(target)
    while max(num_starts, _MIN_BATCH) * num_iterations > most:
        if num_starts <= _MIN_BATCH:
            return min(num_starts, _FEW_STARTS), 0
        num_starts, num_iterations = num_starts // 2, max(_MIN_ITERATIONS, num_iterations * 3 // 4)
    return num_starts, num_iterations


@one_thread
def climb(
    target: Target, starts: np.ndarray, scale: np.ndarray, num_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where Adam or L-BFGS ends from starts, and the log densities there, the highest first.

    Adam's steps are in proportion to each start's ``scale [n]``, which is about the distance to the
    nearest mode. They shrink to zero, so that the climb settles.
    """
    if num_iterations:
        # In all up to five times the scale, whatever the number of iterations.
        step_size = 10.0 * scale.astype(starts.dtype)[:, None] / num_iterations
        x: Any = starts
        state = iterating.fresh(_OPTIMIZER, starts)
        rates = iterating.cosine(1.0, num_iterations)
        for rate in counted("climbs from many starts", rates, num_iterations):
            gradient = evaluation.values_and_grads(target.log_density, x)[1]
            x, state = _ascend(x, state, gradient, rate * step_size)
        ends, values = np.asarray(x), np.asarray(evaluation.values(target.log_density, x))
    else:
        one_by_one = counted("climbs from a few starts", starts, len(starts))
        reached = [maximise(target, start, maxfun=_MIN_ITERATIONS) for start in one_by_one]
        ends = np.stack([x for x, _ in reached]).astype(starts.dtype)
        values = np.asarray([value for _, value in reached])
    good = np.isfinite(values) & np.isfinite(ends).all(axis=1)
    ends, values = ends[good], values[good]
    order = np.argsort(-values)
    return ends[order], values[order]


@kernel(effort="least")
def _ascend(x: Array, state: Any, gradient: Array, rate: Array) -> tuple[Array, Any]:
    """One step of Adam, at each start's own rate ``[n, 1]``."""
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    updates, state = _OPTIMIZER.update(gradient, state)
    return x + rate * updates, state


@one_thread
def distinct(
    target: Target, points: np.ndarray, values: np.ndarray, max_modes: int = MAX_MODES
) -> Modes:
    """Optima from points ``[n, dim]``, the highest log density first, polished, one of each."""
    # An end far below the best carries no mass, and every end costs a Hessian.
    left = points[values > values.max(initial=-np.inf) - _MAX_DROP]
    nearest = np.full(len(left), np.inf)
    dim = target.dim
    locs: list[np.ndarray] = []
    factors: list[np.ndarray] = []
    log_evidence: list[float] = []
    # A polish, and a Hessian of a product a dimension; at most a quarter of the budget in vain.
    most = min(_MAX_IN_VAIN, 1 + affordable(target) / (4 * (_POLISH + 2 * dim)))
    in_vain = 0
    while len(left) and len(locs) < max_modes and in_vain < most:
        in_vain += 1
        loc, value = maximise(target, left[0], maxiter=_POLISH)
        left, nearest = left[1:], nearest[1:]
        hessian = evaluation.hessians(target.log_density, loc[None].astype(points.dtype))[0]
        if not np.isfinite(hessian).all() or not np.isfinite(value):
            continue
        curvature, vectors = np.linalg.eigh(-0.5 * (hessian + hessian.T))
        if curvature[-1] <= 0:
            continue
        # A flat direction (a ring, a ridge) has a width that curvature does not tell.
        floor = max(_MIN_CURVATURE * curvature[-1], 0.05 * float(np.median(curvature.clip(0))))
        curvature = np.maximum(curvature, max(floor, 1e-12))
        root = np.sqrt(curvature)[:, None] * vectors.T
        distance = np.linalg.norm((left - loc) @ root.T, axis=1)
        here = distance < _SAME_MODE * np.sqrt(dim)
        # Of the others, those on the way to it; each end is compared with ever nearer optima.
        further = ~here & (distance < nearest)
        if further.any():
            here[further] = fall_between(target, left[further], loc) <= _FALL
        left, nearest = left[~here], np.minimum(distance, nearest)[~here]
        if any(
            np.linalg.norm(np.linalg.solve(f, loc - other)) < _SAME_MODE * np.sqrt(dim)
            for other, f in zip(locs, factors, strict=True)
        ):
            continue
        in_vain = 0
        given = np.array([value], points.dtype)
        value = float(rounding.mended(target.log_density, loc[None], given)[0])
        locs.append(loc)
        factors.append(scipy.linalg.cholesky((vectors / curvature) @ vectors.T, lower=True))
        half_log_det = -0.5 * float(np.log(curvature).sum())
        log_evidence.append(value + 0.5 * dim * math.log(2.0 * math.pi) + half_log_det)
    if not locs:
        return Modes(np.zeros((0, dim)), np.zeros((0, dim, dim)), np.zeros(0))
    order = np.argsort(-np.asarray(log_evidence))
    return Modes(np.stack(locs)[order], np.stack(factors)[order], np.asarray(log_evidence)[order])


def merged(modes: Modes, others: Modes) -> Modes:
    """Modes of two looks, each once: ``modes``, and of the others those that are not among them."""
    dim = modes.loc.shape[1]
    new = np.ones(len(others.loc), bool)
    for loc, factor in zip(modes.loc, modes.scale_tril, strict=True):
        z = np.linalg.solve(factor, (others.loc - loc).T)
        new &= np.linalg.norm(z, axis=0) >= _SAME_MODE * np.sqrt(dim)
    both = Modes(*(np.concatenate([a, b[new]]) for a, b in zip(modes, others, strict=True)))
    order = np.argsort(-both.log_evidence)[:MAX_MODES]
    return Modes(*(part[order] for part in both))


def fall_between(target: Target, points: np.ndarray, loc: np.ndarray) -> np.ndarray:
    """How far the density falls on the way to ``loc``, in nats below the lower end: ``[n]``."""
    if not len(points):
        return np.zeros(0)
    part = np.linspace(0.0, 1.0, _NUM_BETWEEN + 2)[:, None]
    line = (1.0 - part) * points[:, None] + part * loc
    flat = line.reshape(-1, target.dim).astype(jnp.result_type(float))
    values = np.asarray(evaluation.values(target.log_density, flat), np.float64)
    values = np.where(np.isnan(values), -np.inf, values).reshape(line.shape[:2])
    fall: np.ndarray = np.minimum(values[:, 0], values[:, -1]) - values.min(axis=1)
    return fall


def covering(modes: Modes, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviations of a Gaussian over the optima that carry mass, or of N(0, I)."""
    dtype = jnp.result_type(float)
    if len(modes.loc) == 0:
        return np.zeros(dim, dtype), np.ones(dim, dtype)
    kept = modes.log_evidence > modes.log_evidence[0] - 10.0
    loc = modes.loc[kept]
    within = np.einsum("kij,kij->ki", modes.scale_tril[kept], modes.scale_tril[kept])
    # A single optimum may be the tip of a funnel: never narrower than a standard normal around it.
    scale = np.sqrt(loc.var(axis=0) + np.minimum(within.mean(axis=0), 1e4))
    return loc.mean(axis=0).astype(dtype), np.maximum(1.5 * scale, 1e-3).astype(dtype)
