"""Looking for a target's mass before a base is fitted: many optimiser starts, tempered SMC.

Optimisers find every mode whose basin a start meets, but say nothing of mass that has no mode (a
ring, a funnel's neck) and weigh a mode by its curvature alone. Tempered particles weigh what they
reach, but in many dimensions a population reaches few of many modes.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from consistent_samplers.bases import iterating
from consistent_samplers.bases.iterating import MAX_DENSE_DIM, Evaluated, affordable, evaluated
from consistent_samplers.bases.masses import weighed
from consistent_samplers.bases.modes import (
    NUM_STARTS,
    Modes,
    climb,
    climb_size,
    covering,
    distinct,
    find_modes,
    merged,
)
from consistent_samplers.kernels import kernel
from consistent_samplers.progress import counted
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

NUM_PARTICLES = 2_000
"""Particles of the tempered SMC."""

_MIN_PARTICLES = 512
_NUM_MOVES, _NUM_LEAPFROG = 5, 5  # at each temperature, and gradients of each move
_MAX_ROUNDS = 60
_USUAL_ROUNDS = 20  # temperatures that most targets take
_TARGET_ESS = 0.7  # share of effective particles that a step of the temperature leaves
_ACCEPTANCE = 0.65
# Points of a density without optima, their scales, and the fewest effective ones that tell where it
# lies, from which particles set out a little wider.
_NUM_POINTS, _SCALES, _NUM_SCALES, _FEWEST_POINTS, _WIDER = 32_768, (0.1, 100.0), 64, 8, 1.5
_MAX_EXCESS = 10.0  # times the budget: where the smallest look would cost more, there is none

# Mean and standard deviations ``[dim]`` of the Gaussian that tempering starts from.
_Wide: TypeAlias = tuple[Array, Array]


class Exploration(NamedTuple):
    """What a look for a target's mass found.

    Attributes:
      modes: optima; there may be none. The evidence of several is the mass around each, measured
        by draws.
      particles: ``[num_particles, dim]``, of a tempered SMC that ended at the target; none above
        200 dimensions, for very expensive densities, or where tempering came to no end.
      log_z: its estimate of log Z in nats, or NaN without particles.
      inside: share of the particles that set out inside of the support; 1 without particles.
      extent: ``[2, dim]``, least and largest coordinates of all that was found on the way, or None.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> modes = cs.bases.Modes(np.zeros((1, 2)), np.eye(2)[None], np.zeros(1))
      >>> cs.bases.Exploration(modes, np.zeros((0, 2)), log_z=float("nan")).particles.shape
      (0, 2)
    """

    modes: Modes
    particles: np.ndarray
    log_z: float
    inside: float = 1.0
    extent: Any = None


def explore(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = NUM_STARTS,
    num_particles: int = NUM_PARTICLES,
) -> Exploration:
    """Where a target has mass: its optima, and particles of a tempered SMC.

    Expensive densities get fewer starts, as in `find_modes`, and 512 particles at least, or none
    where even these would take more than 400 Gflop.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points known to have mass.
      num_starts: optimiser starts; at most 16 above 200 dimensions.
      num_particles: particles of the SMC; 0 leaves it out, and the second climb with it.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 1.0) ** 2), dim=1)
      >>> found = cs.bases.explore(jax.random.key(0), target, num_starts=8, num_particles=200)
      >>> found.modes.loc.round(2).tolist(), found.particles.shape
      ([[1.0]], (200, 1))
    """
    key_modes, key_particles, key_again, key_weigh, _ = iterating.split(rng_key)
    modes = find_modes(key_modes, target, init_position=init_position, num_starts=num_starts)
    if target.dim > MAX_DENSE_DIM or num_particles == 0:
        modes = weighed(key_weigh, target, modes)
        return Exploration(modes, np.zeros((0, target.dim)), math.nan)
    particles, log_z, inside = tempered_particles(
        key_particles, target, modes, num_particles=num_particles
    )
    if not len(particles):
        return Exploration(weighed(key_weigh, target, modes), particles, log_z)
    # Again from where the particles are, and around what was found at its own scale: the modes,
    # half of the rest particles, the others wide.
    num_starts, num_iterations = climb_size(target, num_starts)
    loc, scale = _covering(key_particles, target, modes)
    known = modes.loc[:num_starts].astype(loc.dtype)
    num_chosen = (num_starts - len(known)) // 2
    # Resampled particles are in an order: at even distances of it.
    chosen = particles[np.linspace(0, len(particles) - 1, num_chosen).astype(int)]
    wide = loc + scale * iterating.normals(
        key_again, num_starts - len(known) - num_chosen, target.dim
    )
    starts = np.concatenate([known, chosen, wide])
    step = max(np.linalg.norm(scale) / math.sqrt(target.dim), 0.5)
    step = np.full(num_starts, step, loc.dtype)
    # A long step may lead out of a narrow mode: what was known stays.
    found = merged(distinct(target, *climb(target, starts, step, num_iterations)), modes)
    # Of many optima the best are kept: of a mode in each of many coordinates they may lack one.
    around = np.concatenate([modes.loc, found.loc, particles])
    extent = np.stack([around.min(0), around.max(0)])
    if not np.isfinite(log_z):
        particles = particles[:0]
    return Exploration(weighed(key_weigh, target, found), particles, log_z, inside, extent)


class _Level(NamedTuple):
    """What the moves at one temperature are made with."""

    tempering: Array  # from 0, the wide Gaussian, to 1, the target
    wide: _Wide
    spread: Array  # the population's standard deviations ``[dim]``
    step_size: Array


def tempered_particles(
    rng_key: PRNGKey, target: Target, modes: Modes, *, num_particles: int = NUM_PARTICLES
) -> tuple[np.ndarray, float, float]:
    """Particles ``[n, dim]`` at the target, log Z, and the share that set out inside the support.

    An adaptive tempered SMC: from a wide Gaussian around the optima that carry mass, by
    temperatures that leave 70 % of the particles inside effective, and moves of Hamiltonian Monte
    Carlo, its steps and masses taken from the population (Del Moral et al., 2006; Buchholz et al.,
    2021). Log Z is NaN without particles, and where the temperatures do not reach the target: the
    particles are then those of the last one.
    """
    # The density is met between compiled steps of our own, as BlackJAX's kernel compiles it with
    # them. BlackJAX's are the search for the temperature and the resampling.
    import blackjax.smc  # noqa: F401  not while tracing, where it would count as compiling

    num_particles, num_moves = smc_size(target, num_particles, _NUM_MOVES, _NUM_LEAPFROG)
    if num_particles == 0:
        return np.zeros((0, target.dim)), float("nan"), 1.0
    wide: Any = _covering(rng_key, target, modes)
    key_start, key_run, *_ = iterating.split(rng_key)
    x: Any = wide[0] + wide[1] * iterating.normals(key_start, num_particles, target.dim)
    particles = evaluated(target, x)
    inside = float(np.isfinite(np.asarray(particles[1])).mean())
    tempering: Any = np.zeros((), x.dtype)
    step_size, log_z = 0.5 * target.dim**-0.25, 0.0
    for i in counted("particles, by temperatures", range(_MAX_ROUNDS), _USUAL_ROUNDS):
        first = i * (num_moves + 1)
        particles, tempering, increment, spread = _resample(
            key_run, np.int32(first), particles, tempering, wide
        )
        level, accepted = _Level(tempering, wide, spread, x.dtype.type(step_size)), []
        for index in np.arange(first + 1, first + 1 + num_moves, dtype=np.int32):
            x, momentum = _set_out(key_run, index, particles, level)
            for _ in range(_NUM_LEAPFROG - 1):
                x, momentum = _go_on(evaluated(target, x), momentum, level)
            moved = evaluated(target, x)
            particles, rate = _arrive(key_run, index, particles, moved, momentum, level)
            accepted.append(rate)
        log_z += float(increment)
        # Towards two thirds of the moves accepted.
        excess = float(np.mean([np.asarray(rate) for rate in accepted])) - _ACCEPTANCE
        step_size *= float(np.exp(np.clip(excess, -0.5, 0.5)))
        if float(tempering) >= 1.0 or not np.isfinite(log_z):
            break
    # Of a temperature on the way log Z says nothing.
    return np.asarray(particles[0]), log_z if float(tempering) >= 1.0 else math.nan, inside


def _covering(rng_key: PRNGKey, target: Target, modes: Modes) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviations ``[dim]`` of a wide Gaussian over the mass, optima or none.

    A density that is flat where it is positive has none: points at all scales tell where that is.
    """
    if len(modes.loc):
        return covering(modes, target.dim)
    num = int(min(_NUM_POINTS, affordable(target)))
    random = iterating.normals(iterating.split(rng_key)[2], num, target.dim)
    scales = np.geomspace(*_SCALES, _NUM_SCALES).astype(random.dtype)
    points = np.resize(scales, num)[:, None] * random
    values = np.asarray(evaluation.values(target.log_density, points), np.float64)
    # Their log density is that of the mixture of all scales, by the distance.
    square = (points.astype(np.float64) ** 2).sum(1)[:, None]
    log_prob = logsumexp(-0.5 * square / scales**2 - target.dim * np.log(scales), axis=1)
    log_weight = np.where(np.isfinite(values), values, -np.inf) - log_prob
    weight = np.exp(log_weight - log_weight.max(initial=-1e300))
    if not weight.sum() ** 2 > _FEWEST_POINTS * (weight**2).sum():  # nor where all are outside
        return covering(modes, target.dim)
    loc = np.average(points, axis=0, weights=weight)
    scale = np.sqrt(np.average((points - loc) ** 2, axis=0, weights=weight))
    return loc.astype(random.dtype), (_WIDER * scale).astype(random.dtype)


def smc_size(
    target: Target, num_particles: int, num_moves: int, num_leapfrog: int
) -> tuple[int, int]:
    """Numbers of particles and of moves at each temperature that the budget allows.

    Where those asked for are too many, first the particles become fewer, then the moves. There are
    none where even the fewest cost far too much.
    """
    most = affordable(target) / (_USUAL_ROUNDS * num_leapfrog)
    if num_particles * num_moves > most:
        num_particles = min(num_particles, max(int(most / num_moves), _MIN_PARTICLES))
        num_moves = min(num_moves, max(int(most / num_particles), 1))
    return (0, 0) if num_particles * num_moves > _MAX_EXCESS * most else (num_particles, num_moves)


def _log_wide(x: Array, wide: _Wide) -> Array:
    return jax.scipy.stats.norm.logpdf(x, *wide).sum(-1)


@kernel(effort="least")
def _resample(
    rng_key: PRNGKey, index: Array, particles: Evaluated, tempering: Array, wide: _Wide
) -> tuple[Evaluated, Array, Array, Array]:
    """One temperature further: particles, temperature, what log Z grows by, standard deviations."""
    from blackjax.smc import ess, resampling, solver

    x, value, _ = particles
    log_ratio = jnp.where(jnp.isnan(value), -jnp.inf, value) - _log_wide(x, wide)
    rest = 1.0 - tempering
    # Those outside of the support are lost at any temperature: of the others, 70 %.
    target_ess = _TARGET_ESS * jnp.mean(log_ratio > -jnp.inf)
    step = ess.ess_solver(lambda x: x, log_ratio, target_ess, rest, solver.dichotomy)
    step = jnp.clip(step, 0.0, 1.0 - tempering)
    log_weight = jnp.where(step > 0.0, step * log_ratio, 0.0)
    log_total = jax.nn.logsumexp(log_weight)
    chosen = resampling.systematic(
        jax.random.fold_in(rng_key, index), jnp.exp(log_weight - log_total), len(x)
    )
    particles = jax.tree.map(lambda part: part[chosen], particles)
    spread = jnp.sqrt(jnp.maximum(particles[0].var(0), 1e-12))
    return particles, tempering + step, log_total - jnp.log(len(x)), spread


def _momentum(rng_key: PRNGKey, index: Array, x: Array) -> tuple[Array, Array]:
    """Momenta ``[n, dim]`` of a move, in spreads of the population; uniform numbers ``[n]``."""
    key_momentum, key_accept = jax.random.split(jax.random.fold_in(rng_key, index))
    momentum = jax.random.normal(key_momentum, x.shape, x.dtype)
    return momentum, jax.random.uniform(key_accept, x.shape[:1], x.dtype)


def _log_tempered(particles: Evaluated, level: _Level) -> Array:
    """Log density ``[n]`` between the wide Gaussian and the target."""
    x, value, _ = particles
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    # Where the density counts nothing, -inf times zero would.
    value = jnp.where(level.tempering > 0.0, level.tempering * value, 0.0)
    return (1.0 - level.tempering) * _log_wide(x, level.wide) + value


def _leapfrog(
    particles: Evaluated, momentum: Array, level: _Level, share: float = 1.0
) -> tuple[Array, Array]:
    """Positions and momenta after a kick, or a share of it, and a drift."""
    x, _, grad = particles
    grad = jnp.where(jnp.isfinite(grad), grad, 0.0)
    score = (level.wide[0] - x) / level.wide[1] ** 2
    slope = (1.0 - level.tempering) * score + level.tempering * grad
    momentum = momentum + share * level.step_size * level.spread * slope
    return x + level.step_size * level.spread * momentum, momentum


_go_on = kernel(effort="least")(_leapfrog)


@kernel(effort="least")
def _set_out(
    rng_key: PRNGKey, index: Array, particles: Evaluated, level: _Level
) -> tuple[Array, Array]:
    """Half a kick and a drift: positions and momenta."""
    momentum, _ = _momentum(rng_key, index, particles[0])
    return _leapfrog(particles, momentum, level, 0.5)


@kernel(effort="least")
def _arrive(
    rng_key: PRNGKey, index: Array, old: Evaluated, new: Evaluated, momentum: Array, level: _Level
) -> tuple[Evaluated, Array]:
    """The last half kick, and the particles after what is accepted; its share."""
    first, uniform = _momentum(rng_key, index, old[0])
    _, momentum = _leapfrog(new, momentum, level, 0.5)
    gain = _log_tempered(new, level) - _log_tempered(old, level)
    gain = gain + 0.5 * ((first**2).sum(-1) - (momentum**2).sum(-1))
    probability = jnp.where(jnp.isnan(gain), 0.0, jnp.exp(jnp.minimum(gain, 0.0)))
    accepted = uniform < probability

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(accepted if new.ndim == 1 else accepted[:, None], new, old)

    return jax.tree.map(chosen, new, old), probability.mean()
