"""Mass that a target has beyond the ends of a sampler's draws, in a neck or a mouth.

Where the scale of a hierarchy goes to zero, its members do too: a corner that holds a few per cent
of Z may be too narrow for a map, and for chains, to come to. Neither then shows in its draws that
anything is missing. Laplace's method does, as what is left there is Gaussian given the scale.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, LogDensityFn

# The outermost draws of a coordinate by whose mean weight an end is looked at, relative to that of
# all draws, and the most ends.
_NUM_OUTERMOST, _RISING, _MOST_ENDS = 20, 1.5, 4
# Share of the mass beyond where the inner part begins; its points; those farther out, in spreads.
_INNER, _NUM_INNER = 0.02, 4
_OUTER = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
# Draws that a climb starts from the middle of; its steps, and the nats that end it; draws by which
# Laplace's integral is mended.
_NUM_NEAR, _NUM_STEPS, _SMALL, _NUM_DRAWS = 40, 30, 1e-2, 512
# Nats by which the marginal that is followed may rise above the draws' own, where these are.
_MOST_OFF = 3.0
# Parts of a Newton step that are tried.
_STEPS = np.array([1.0, 0.5, 0.2, 0.05, 0.0])
# Relative to the largest curvature; below it a direction has no width of its own.
_LEAST = 1e-6
_MAX_DIM, _FEWEST_DRAWS = 128, 400


class _End(NamedTuple):
    """One side of a coordinate."""

    coordinate: int
    side: float  # 1 or -1


def mass_in_necks(
    target: Target, position: Array, log_weight: Array, *, of_target: bool = False
) -> float:
    """Mass beyond the outermost draws along single coordinates, relative to Z.

    From the ends where the outermost draws weigh more than others, as those of a map do whose tail
    is too thin, the target's marginal is followed outwards: the density at its maximum over all
    other coordinates, over the root of the determinant of their curvature (Tierney & Kadane, 1986,
    equation 4.1), mended by importance sampling. What lies beyond is in proportion to what the
    draws have in the last two per cent before; mostly within a factor of three, and more often too
    much. 0 where no end is looked at, in one dimension, and above 128.

    Args:
      target: the target.
      position: ``[n, dim]``, draws.
      log_weight: ``[n]``, of the draws.
      of_target: the draws follow the target, as those of chains do, and count alike; their weights
        then only say where the map's tail is thin.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.funnel(4)
      >>> base = cs.bases.GaussianBase(jnp.zeros(4), jnp.diag(jnp.array([1.0, 1.5, 1.5, 1.5])))
      >>> draws = cs.Sampler.of_base(base).sample(jax.random.key(0), target, 4_000)
      >>> share = cs.diagnostics.mass_in_necks(target, draws.position, draws.log_weight)
      >>> share > 0.1  # beyond v = -3.5
      True
    """
    x, log = np.asarray(position, np.float64), np.asarray(log_weight, np.float64)
    usable = np.isfinite(x).all(axis=1) & np.isfinite(log)
    x, log = x[usable], log[usable]
    if len(x) < _FEWEST_DRAWS or not 1 < target.dim <= _MAX_DIM:
        return 0.0
    # Of draws of the target Z is the harmonic mean of the weights.
    total = -np.logaddexp.reduce(-log) if of_target else np.logaddexp.reduce(log)
    log -= total + 2.0 * np.log(len(x)) if of_target else total
    weight = np.exp(np.minimum(log, 600.0))
    ends = _ends(x, weight)
    mass = np.full(len(x), 1.0 / len(x)) if of_target else weight
    beyond = [_mass_beyond(target, x, mass, end) for end in ends]
    return float(min(sum(beyond), 1.0))


def _ends(x: np.ndarray, weight: np.ndarray) -> list[_End]:
    """Those where the outermost draws weigh the most."""
    order = np.argsort(x, axis=0)
    found = []
    for side, outermost in ((-1.0, order[:_NUM_OUTERMOST]), (1.0, order[-_NUM_OUTERMOST:])):
        mean = len(x) * weight[outermost].mean(axis=0)
        found += [(mean[i], _End(int(i), side)) for i in np.flatnonzero(mean > _RISING)]
    found.sort(key=lambda of: -of[0])
    return [end for _, end in found[:_MOST_ENDS]]


def _mass_beyond(target: Target, x: np.ndarray, weight: np.ndarray, end: _End) -> float:
    """Mass beyond one end, relative to Z; 0 where Laplace's method has nothing to say."""
    along = end.side * x[:, end.coordinate]
    order = np.argsort(-along)
    mass = np.cumsum(weight[order])
    begin = max(int(np.searchsorted(mass, _INNER)), 2 * _NUM_OUTERMOST)
    if begin >= len(x) // 2:  # a few draws are all the mass
        return 0.0
    last, first = along[order[0]], along[order[begin]]
    low, high = np.quantile(along, [0.25, 0.75])
    spread = (high - low) / 1.349
    if not 0.0 < spread < np.inf or not last > first:
        return 0.0
    inner = np.linspace(first, last, _NUM_INNER)
    grid = np.concatenate([inner, last + spread * _OUTER])
    near = np.argsort(np.abs(along - first))[:_NUM_NEAR]
    start = np.average(x[near], axis=0, weights=weight[near])
    logs = _profile(target.log_density, start, end, grid)
    if not _rise(logs, along, weight, inner) < _MOST_OFF:
        return 0.0
    inside = _integral(grid[:_NUM_INNER], logs[:_NUM_INNER])
    outside = _integral(grid[_NUM_INNER - 1 :], logs[_NUM_INNER - 1 :])
    with np.errstate(over="ignore", invalid="ignore"):
        share = float(mass[begin] * np.exp(outside - inside))
    # As much lies beyond the outermost of so many draws.
    return max(share - 1.0 / len(x), 0.0) if np.isfinite(share) else 0.0


def _rise(logs: np.ndarray, along: np.ndarray, weight: np.ndarray, inner: np.ndarray) -> float:
    """Nats by which a marginal rises above that of the draws between the inner points.

    inf where it is not followed so far. A climb that ended elsewhere than the draws are shows.
    """
    last = len(inner) - 1
    if not np.isfinite(logs[: last + 1]).all():
        return np.inf
    part = np.digitize(along, inner) - 1
    first, outermost = weight[part == 0].sum(), weight[part >= last - 1].sum()
    own = np.log(max(outermost, 1e-300)) - np.log(max(first, 1e-300))
    return float(logs[last - 1 : last + 1].mean() - logs[:2].mean() - own)


def _profile(log_density: LogDensityFn, x: np.ndarray, end: _End, grid: np.ndarray) -> np.ndarray:
    """Log marginal density up to a constant at points of a coordinate, one after the other.

    -inf from where the maximum is none, or the density not finite.
    """
    logs = np.full(len(grid), -np.inf)
    rest = np.arange(len(x)) != end.coordinate
    for k, at in enumerate(end.side * grid):
        x = x.copy()
        x[end.coordinate] = at
        found = _climbed(log_density, x, rest)
        if found is None:
            break
        x, logs[k] = found
    return logs


def _climbed(
    log_density: LogDensityFn, x: np.ndarray, rest: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """The maximum over some coordinates by damped Newton steps, and the log integral around it.

    None where there is no maximum, or the density is not finite.
    """
    dtype = jnp.result_type(float)
    for step in range(_NUM_STEPS + 1):
        point = x[None].astype(dtype)
        found = evaluation.values_and_grads(log_density, point)
        value, grad = (np.asarray(part[0], np.float64) for part in found)
        curvature = -np.asarray(next(iter(evaluation.hessians(log_density, point))), np.float64)
        curvature = 0.5 * (curvature + curvature.T)[np.ix_(rest, rest)]
        if not (np.isfinite(value) and np.isfinite(grad).all() and np.isfinite(curvature).all()):
            return None
        sizes, axes = scipy.linalg.eigh(curvature)
        floor = _LEAST * max(np.abs(sizes).max(), 1e-300)
        move = axes @ (axes.T @ grad[rest] / np.maximum(np.abs(sizes), floor))
        gain = 0.5 * move @ grad[rest]
        if gain < _SMALL or step == _NUM_STEPS:
            if not (gain < 0.5 and sizes.min() > floor):
                return None
            return x, _weighed(log_density, x, rest, axes / np.sqrt(sizes))
        tried = np.tile(x, (len(_STEPS), 1))
        tried[:, rest] += _STEPS[:, None] * move
        values = np.asarray(evaluation.values(log_density, tried.astype(dtype)), np.float64)
        x = tried[int(np.argmax(np.where(np.isnan(values), -np.inf, values)))]
    return None


def _weighed(log_density: LogDensityFn, x: np.ndarray, rest: np.ndarray, root: np.ndarray) -> float:
    """Log integral over some coordinates, by draws of Laplace's Gaussian and their weights."""
    z = np.random.default_rng(0).normal(size=(_NUM_DRAWS // 2, root.shape[1]))
    z = np.concatenate([z, -z])
    points = np.tile(x, (len(z), 1))
    points[:, rest] += z @ root.T
    values = evaluation.values(log_density, points.astype(jnp.result_type(float)))
    log = np.asarray(values, np.float64) + 0.5 * (z**2).sum(axis=1)
    log = np.where(np.isnan(log), -np.inf, log)
    return float(np.logaddexp.reduce(log) + np.linalg.slogdet(root)[1])


def _integral(at: np.ndarray, logs: np.ndarray) -> float:
    """Logarithm of the integral of a function that is exponential between points."""
    parts = []
    for width, a, b in zip(np.diff(at), logs, logs[1:], strict=False):
        if not np.isfinite(a + b):
            break
        top, fall = max(a, b), abs(a - b)
        mean = (1.0 - np.exp(-fall)) / fall if fall > 1e-9 else 1.0
        parts.append(top + np.log(width * mean))
    return float(np.logaddexp.reduce(parts)) if parts else -np.inf
