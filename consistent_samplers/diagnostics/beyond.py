"""What lies beyond a sampler's draws: larger weights, mass farther out, open directions."""

import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases.iterating import MAX_DENSE_DIM
from consistent_samplers.bases.scales import mass_farther, robust_covariance
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Draws, PRNGKey

# Share of the draws' mass that the largest weights make up, and nats that weights elsewhere may
# exceed the others by.
_TOP, _MARGIN = 0.01, 0.5
# More draws than this, and times those seen, are too many to be expected: 1 in 10,000 by chance.
_FEW_SEEN, _TIMES_SEEN = 10.0, 2.0
# Distances along a ray, in spreads of the draws: where the draws are, and far out.
_NEAR = np.array([0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
_FAR = 1e6 * np.array([1.0, 1.37, 2.11])
# Nats that the mass has to fall by in between.
_FALL = 5.0
_NUM_OUTERMOST = 8


def share_beyond(draws: Draws, log_weight: np.ndarray, *, of_target: bool = False) -> float:
    """Share of points of the target that lie beyond where a sampler's draws come.

    A point does if its log weight exceeds those of 99 % of the draws' mass by more than half a nat,
    or is NaN, as where the sampler cannot reach it at all. Points do not count that stand for draws
    which are not there, as those of a tempered SMC that ended too near to a mode. 1 % is taken off
    the share: so many exact draws may lie there.

    Args:
      draws: weighted draws of the sampler.
      log_weight: ``[n]``, of the points, by `Sampler.log_weight`.
      of_target: the draws follow the target, as those of chains do, and count alike.

    Example:
      >>> import jax.numpy as jnp, numpy as np, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower")
      >>> cs.diagnostics.share_beyond(draws, np.array([0.0, 0.0, 5.0, np.nan]))
      0.49
    """
    own = np.sort(np.asarray(draws.log_weight, np.float64))
    mass = np.cumsum(np.ones(len(own)) if of_target else np.exp(own - own[-1]))
    top = own[np.searchsorted(mass, (1.0 - _TOP) * mass[-1])]
    beyond = np.isnan(log_weight) | (log_weight > top + _MARGIN)
    if not of_target:
        beyond &= _may_be(own, log_weight)
    return max(float(np.mean(beyond)) - _TOP, 0.0)


def share_unseen(draws: Draws, log_weight: np.ndarray) -> float:
    """Share of points of the target whose log weights exceed those of all draws.

    So much of Z the draws leave out, whatever the Pareto distribution fitted to their tail says. A
    point that the sampler cannot reach at all has NaN, and counts; one that stands for draws which
    are not there does not.

    Args:
      draws: weighted draws of the sampler.
      log_weight: ``[n]``, of the points, by `Sampler.log_weight`.

    Example:
      >>> import jax.numpy as jnp, numpy as np, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower")
      >>> cs.diagnostics.share_unseen(draws, np.array([-1.0, 0.0, 5.0, np.nan]))
      0.5
    """
    own = np.sort(np.asarray(draws.log_weight, np.float64))
    return float(np.mean(~(log_weight <= own[-1]) & _may_be(own, log_weight)))


def _may_be(own: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
    """Which points ``[n]`` draws with sorted log weights ``own`` do not show to be too many.

    A point of the target with a weight w stands for Z / w of a draw's probability. From the largest
    weights on, points are believed until they stand for more draws than were seen to weigh as much.
    """
    log_z = own[-1] + np.log(np.mean(np.exp(own - own[-1])))
    order = np.argsort(-np.where(np.isnan(log_weight), np.inf, log_weight))
    sorted_weight = log_weight[order]
    with np.errstate(over="ignore"):
        part = np.nan_to_num(np.exp(log_z - sorted_weight), posinf=len(own))
    expected = len(own) / len(log_weight) * np.cumsum(part)
    seen = len(own) - np.searchsorted(own, sorted_weight)
    too_many = np.logical_or.accumulate(expected > _FEW_SEEN + _TIMES_SEEN * seen)
    believed = np.ones(len(log_weight), bool)
    believed[order] = ~too_many
    return believed


def open_directions(target: Target, position: Array, log_density: Array) -> np.ndarray:
    """Directions ``[n, dim]`` along which the mass far out is as large as where the draws are.

    Along a ray from the best draw, by coordinate axes, principal axes of the draws and towards the
    outermost of them, log density plus log distance tells the mass at each scale. A million times
    as far out as the draws spread it must have fallen by 5 nats; along a power law it does so from
    an exponent of 1.4 on.

    Args:
      target: the target.
      position: ``[n, dim]``, draws.
      log_density: ``[n]``, of the target there.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.diagnostics import open_directions
      >>> target = cs.Target(lambda x: -0.5 * x[0] ** 2, dim=2)  # flat in the second coordinate
      >>> x = jax.random.normal(jax.random.key(0), (200, 2))
      >>> bool(len(open_directions(target, x, jax.vmap(target.log_density)(x))))
      True
    """
    points = np.asarray(position, np.float64)
    values = np.asarray(log_density, np.float64)
    centre = points[np.argmax(np.where(np.isnan(values), -np.inf, values))]
    away = points - np.median(points, axis=0)
    directions = [away[np.argsort(-(away**2).sum(1))[:_NUM_OUTERMOST]]]
    if target.dim <= MAX_DENSE_DIM:
        # Ranks of the coordinates apart from their scales: a heavy tail has no covariance.
        directions += [np.eye(target.dim), np.linalg.svd(away, full_matrices=False)[2]]
    along = np.concatenate(directions)
    length = np.linalg.norm(along, axis=1, keepdims=True)
    along = np.unique(np.round(along[length[:, 0] > 0] / length[length > 0][:, None], 6), axis=0)
    along = np.concatenate([along, -along])
    spread = np.quantile(np.abs(away @ along.T), 0.75, axis=0)
    distance = spread[:, None] * np.concatenate([_NEAR, _FAR])
    rays = centre + distance[..., None] * along[:, None]
    flat = rays.reshape(-1, target.dim).astype(jnp.result_type(float))
    found = np.asarray(evaluation.values(target.log_density, flat), np.float64)
    found = np.where(np.isnan(found), -np.inf, found).reshape(distance.shape)
    with np.errstate(divide="ignore"):
        mass = found + np.log(distance)
    near, far = mass[:, : len(_NEAR)].max(1), mass[:, len(_NEAR) :].max(1)
    is_open: np.ndarray = along[(far > near - _FALL) & np.isfinite(far)]
    return is_open


def mass_beyond(rng_key: PRNGKey, target: Target, position: Array, log_z: float) -> float:
    """Mass farther out than all draws ``[n, dim]``, relative to Z; 0 where there is none."""
    points = np.asarray(position, np.float64)
    loc, scale = points.mean(0), points.std(0)
    if not (np.isfinite(scale).all() and (scale > 0.0).all()):
        return 0.0
    factor = scale
    if target.dim <= MAX_DENSE_DIM:
        correlation = robust_covariance((points - loc) / scale)
        factor = scale[:, None] * np.linalg.cholesky(correlation + 1e-6 * np.eye(target.dim))
    found = mass_farther(rng_key, target, loc, factor, log_z, points)
    # As much lies beyond the outermost of so many draws, along one of the columns or in all.
    found = found._replace(share=found.share - (target.dim + 1) / len(points))
    return found.share if found.is_there else 0.0
