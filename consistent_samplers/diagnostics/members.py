"""Mass of a hierarchical target that its map leaves out, where modes are too many to be found.

Of a hundred members with two modes each no mode of the whole holds mass to speak of. But given all
else, members of a group are independent: moved together along a line, the gradient of each shows
its own conditional density, all of them at the price of one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import simulate
from consistent_samplers.bases.diagonal import fit_diagonal
from consistent_samplers.compilation import as_partial
from consistent_samplers.kernels import kernel
from consistent_samplers.maps import HierarchicalMap, LaplaceMap
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Array, Params, PRNGKey

# Draws whose conditionals are looked at; points of a line to either side; how far it goes, in
# standard deviations and beyond the mirror image of the draw.
_NUM_LOOKED, _NUM_POINTS = 4, 200
_ON_LINE = 2 * _NUM_POINTS + 1
_LEAST_REACH, _MOST_REACH, _BEYOND_MIRROR, _PAST = 40.0, 200.0, 2.5, 10.0
# Nats by which the target's conditional exceeds the map's where the map hardly goes, and the share
# of a member's mass that may lie there.
_HARDLY, _MAX_SHARE = 7.0, 0.02
# Signs that are turned back, one after the other; draws of the second fit; latent standard
# deviations off where the map does not come; nats that its ELBO may be lower for it to count.
_NUM_SWEEPS, _NUM_DRAWS, _FAR, _AS_MUCH = 64, 64, 6.0, 4.6
# Points of a line between two places, lines, and the nats that a barrier between modes has.
_NUM_BETWEEN, _NUM_PATHS, _HIGH = 64, 8, 10.0


class MembersFound(NamedTuple):
    """What the map leaves out.

    Attributes:
      num_members: members with more than 2 % of their conditional mass where the map hardly goes.
      share: the largest such part, to within a factor of five where a dip is narrow.

    Example:
      >>> from consistent_samplers.diagnostics.members import MembersFound
      >>> MembersFound(100, 0.5).num_members
      100
    """

    num_members: int
    share: float


def members_left_out(target: Target, sampler: Sampler, position: Array) -> MembersFound:
    """Members whose conditional density has mass where the map's has none.

    For a few draws, each coordinate of all members of a group moves along its axis, and members of
    several coordinates through the origin as well, where a change of all their signs is met. The
    gradients along the way add up to the log densities of target and map, given all other
    coordinates.

    Args:
      target: the target.
      sampler: of a `maps.HierarchicalMap` or a `maps.LaplaceMap`.
      position: ``[n, dim]``, draws, equally weighted as far as it goes.

    Raises:
      TypeError: the sampler is of another map.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.diagnostics.members import members_left_out
      >>> def log_density(x):  # a mean, and nine members at +-2
      ...     return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] ** 2 - 4.0) ** 2 + x[0] * x[1:]))
      >>> target = cs.Target(log_density, dim=10)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(10).at[1:].set(2.0), jnp.full(10, 0.25))
      >>> algorithm = cs.algorithms.hierarchical(target, base=base)
      >>> sampler = algorithm.sampler(algorithm.init(jax.random.key(0)))
      >>> draws = sampler.sample(jax.random.key(1), target, 64)
      >>> members_left_out(target, sampler, draws.position).num_members
      9
    """
    control = sampler.control
    if not isinstance(control, HierarchicalMap | LaplaceMap):
        raise TypeError(
            "Members are known of a HierarchicalMap or a LaplaceMap, not of a "
            f"{type(control).__name__}."
        )
    x = np.asarray(position, np.float64)
    x = x[np.isfinite(x).all(axis=1)]
    if not len(x):
        return MembersFound(0, 0.0)
    low, high = np.quantile(x, [0.25, 0.75], axis=0)
    spread = np.maximum((high - low) / 1.349, 1e-12 * (1.0 + np.abs(x).max(axis=0)))
    num, largest = 0, 0.0
    for members in map(np.asarray, control.members):
        beyond = np.zeros(len(members))
        for draw in x[:_NUM_LOOKED]:
            for way in _ways(members, draw, spread):
                share = _share_beyond(target, control, sampler.params, members, draw, way)
                beyond = np.maximum(beyond, share)
        num += int((beyond > _MAX_SHARE).sum())
        largest = max(largest, float(beyond.max(initial=0.0)))
    return MembersFound(num, largest if num else 0.0)


def _ways(members: np.ndarray, draw: np.ndarray, spread: np.ndarray) -> list[np.ndarray]:
    """Lines through a draw, ``[dim]`` each: to their ends, half of the points on either side."""
    ways = []
    size = members.shape[1]
    for along in members.T:
        way = np.zeros_like(draw)
        mirror = _BEYOND_MIRROR * np.abs(draw[along]) + _PAST * spread[along]
        way[along] = np.clip(mirror, _LEAST_REACH * spread[along], _MOST_REACH * spread[along])
        ways.append(way)
    if size > 1:
        way = np.zeros_like(draw)
        way[members] = _BEYOND_MIRROR * draw[members]
        ways.append(way)
    return ways


def _share_beyond(
    target: Target,
    control: HierarchicalMap | LaplaceMap,
    params: Params,
    members: np.ndarray,
    draw: np.ndarray,
    way: np.ndarray,
) -> np.ndarray:
    """Part of the mass along a line, of each member, where the map hardly goes: ``[J]``."""
    steps = np.linspace(-1.0, 1.0, _ON_LINE)
    points = (draw + steps[:, None] * way).astype(jnp.result_type(float))
    theirs = evaluation.values_and_grads(target.log_density, points)[1]
    own = _seen(_guide(target, control), control, params, jnp.asarray(points))[1]
    logs = []
    for grads in (theirs, own):
        slope = (np.asarray(grads, np.float64) * way)[:, members].sum(2)  # [points, J]
        log = _integral(slope) / _NUM_POINTS
        log -= log.max(axis=0)
        logs.append(log - np.log(np.exp(log).sum(axis=0)))
    share: np.ndarray = (np.exp(logs[0]) * (logs[0] - logs[1] > _HARDLY)).sum(axis=0)
    return share


def _integral(slope: np.ndarray) -> np.ndarray:
    """From the middle to either end by trapezoids; -inf from where a slope is not finite."""
    finite = np.isfinite(slope)
    slope = np.where(finite, slope, 0.0)
    centre = len(slope) // 2
    between = 0.5 * (slope[1:] + slope[:-1])
    total = np.zeros_like(slope)
    total[centre + 1 :] = np.cumsum(between[centre:], axis=0)
    total[:centre] = -np.cumsum(between[:centre][::-1], axis=0)[::-1]
    reached = np.concatenate(
        [
            np.logical_and.accumulate(finite[: centre + 1][::-1], axis=0)[::-1],
            np.logical_and.accumulate(finite[centre:], axis=0)[1:],
        ]
    )
    return np.where(reached, total, -np.inf)


def _guide(target: Target, control: Any) -> Any:
    """The density that a map takes to be inverted, if any."""
    return as_partial(target.log_density) if control.guided else None


@kernel(effort="least")
def _seen(density: Any, control: Any, params: Params, points: Array) -> tuple[Array, Array]:
    """Where the inverse takes points, and gradients of the map's log density by members.

    Both ``[n, dim]``; of a map with a density in it the gradients by the globals are left out.
    """
    gradient = None if density is None else jax.grad(lambda x: density(x))

    def one(x: Array) -> tuple[Array, Array]:
        y = control.base.whiten(x, ())
        if gradient is not None:
            y = y.at[control.globals].set(jax.lax.stop_gradient(y[control.globals]))
        z, log_det = control.inverse(params, y, gradient)
        return simulate.standard_normal_log_prob(z) - log_det, z

    gradients, latent = jax.vmap(jax.grad(one, has_aux=True))(points)
    return latent, gradients


def compile_look(sampler: Sampler) -> None:
    """Compiles what a look at the members asks of a map."""
    _seen(None, sampler.control, sampler.params, jnp.zeros((_ON_LINE, sampler.base.dim)))


def mass_elsewhere(rng_key: PRNGKey, target: Target, sampler: Sampler, position: Array) -> float:
    """Log of the mass that a fit holds where the map does not come, less that of one where it does.

    By the ELBOs of two mean-field fits: one that sets out from the median of the map's draws, and
    one from the mirror image of that, as a change of signs of a global and all its members would
    have it. The map may have left the base that it was started on, which a symmetry can hold.
    -inf where it came back to where the map is, where no barrier lies between the two along
    straight lines of the latent space, or where it is worse by more than 4.6 nats.

    Args:
      rng_key: key.
      target: the target.
      sampler: of a `maps.HierarchicalMap` or a `maps.LaplaceMap`.
      position: ``[n, dim]``, draws of it.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.diagnostics.members import mass_elsewhere
      >>> def log_density(x):  # a factor of +-2, and nine members of its sign
      ...     near = -0.5 * jnp.sum((x[0] * x[1:] - 4.0) ** 2 + x[1:] ** 2)
      ...     return near - 0.5 * (x[0] / 2.0) ** 2
      >>> target = cs.Target(log_density, dim=10)
      >>> start = jnp.full(10, 1.5)
      >>> base = cs.bases.fit_diagonal(jax.random.key(0), target, init_position=start)
      >>> algorithm = cs.algorithms.hierarchical(target, base=base)
      >>> sampler = algorithm.sampler(algorithm.init(jax.random.key(0)))
      >>> draws = sampler.sample(jax.random.key(1), target, 64).position
      >>> abs(mass_elsewhere(jax.random.key(1), target, sampler, draws)) < 1.0
      True
    """
    control: Any = sampler.control
    x = np.asarray(position)
    middle = np.median(x[np.isfinite(x).all(axis=1)], axis=0)
    start = _mirrored(target, middle, np.asarray(control.globals))
    try:
        other = fit_diagonal(rng_key, target, init_position=jnp.asarray(start))
    except ValueError:  # the mirror image lies outside of the support
        return -np.inf
    draws = Sampler.of_base(other).sample(rng_key, target, _NUM_DRAWS)
    # As many as the points of a line, for what is compiled.
    points = np.resize(draws.position, (_ON_LINE, target.dim))
    guide = _guide(target, control)
    seen = _seen(guide, control, sampler.params, jnp.asarray(points))
    latent = np.asarray(seen[0])[:_NUM_DRAWS]
    away = np.abs(np.median(latent, axis=0)).max()
    if not away > _FAR or not _barrier(target, sampler, latent) > _HIGH:
        return -np.inf
    first = fit_diagonal(rng_key, target, init_position=jnp.asarray(middle))
    own = Sampler.of_base(first).sample(rng_key, target, _NUM_DRAWS)
    elbos = [float(np.median(np.asarray(d.log_weight, np.float64))) for d in (draws, own)]
    excess = elbos[0] - elbos[1]
    return excess if excess > -_AS_MUCH else -np.inf


def _barrier(target: Target, sampler: Sampler, latent: np.ndarray) -> float:
    """Nats by which the density falls between latent points ``[n, dim]`` and the map's mean.

    The median over some of the points. Along an arm of the same mode it rises all the way.
    """
    share = np.linspace(1.0, 0.0, _NUM_BETWEEN)
    paths = (share[:, None] * latent[:_NUM_PATHS, None]).astype(latent.dtype)
    points = jnp.asarray(paths.reshape(-1, target.dim))
    weighed = np.asarray(sampler.weigh(target, points).log_weight, np.float64)
    log_base = -0.5 * (paths.astype(np.float64) ** 2).sum(2)
    log = weighed.reshape(log_base.shape) + log_base
    log = np.where(np.isnan(log), -np.inf, log)
    return float(np.median(log[:, 0] - log.min(axis=1)))


def _mirrored(target: Target, x: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The mirror image of a point, but for globals that are better as they were: ``[dim]``.

    A scale, say, does not change with the signs of the rest.
    """
    mirrored = -x
    for _ in range(_NUM_SWEEPS):
        tried = np.tile(mirrored, (len(of) + 1, 1))
        tried[np.arange(len(of)), of] *= -1.0
        values = np.asarray(evaluation.values(target.log_density, tried), np.float64)
        values = np.where(np.isnan(values), -np.inf, values)
        best = int(np.argmax(values))
        if best == len(of):
            break
        mirrored = tried[best]
    return mirrored
