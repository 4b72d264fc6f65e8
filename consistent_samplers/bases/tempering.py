"""Tempered sequential Monte Carlo, for a look at where a target's mass lies.

The density is met between our compiled steps; BlackJAX's own kernel compiles it with them. What
needs no density is BlackJAX's: the search for the temperature and the resampling.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases.iterating import Evaluated, evaluated, normals, split
from consistent_samplers.bases.limits import affordable
from consistent_samplers.bases.modes import Modes, covering
from consistent_samplers.kernels import kernel
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

NUM_PARTICLES = 2_000
"""Particles of the tempered SMC."""

_MIN_PARTICLES = 512
_MAX_ROUNDS = 60
_USUAL_ROUNDS = 20  # temperatures that most targets take
_TARGET_ESS = 0.7  # share of effective particles that a step of the temperature leaves
_ACCEPTANCE = 0.65
_MAX_EXCESS = 10.0  # times the budget: where the smallest look would cost more, there is none

# Mean and standard deviations ``[dim]`` of the Gaussian that tempering starts from.
_Wide: TypeAlias = tuple[Array, Array]


class _Level(NamedTuple):
    """What the moves at one temperature are made with."""

    tempering: Array  # from 0, the wide Gaussian, to 1, the target
    wide: _Wide
    spread: Array  # the population's standard deviations ``[dim]``
    step_size: Array


def tempered_particles(
    rng_key: PRNGKey,
    target: Target,
    modes: Modes,
    *,
    num_particles: int = NUM_PARTICLES,
    num_moves: int = 5,
    num_leapfrog: int = 5,
) -> tuple[np.ndarray, float]:
    """Particles ``[n, dim]`` at the target and an estimate of log Z, by adaptive tempered SMC.

    It starts from a wide Gaussian around the optima that carry mass (N(0, I) where there are none),
    lowers the temperature by steps that leave 70 % of the particles effective, and moves them by
    Hamiltonian Monte Carlo, its steps and masses taken from the population (Del Moral et al., 2006;
    Buchholz et al., 2021). Without particles (see `smc_size`) log Z is NaN.
    """
    import blackjax.smc  # noqa: F401  not while tracing, where it would count as compiling

    num_particles, num_moves = smc_size(target, num_particles, num_moves, num_leapfrog)
    if num_particles == 0:
        return np.zeros((0, target.dim)), float("nan")
    wide = covering(modes, target.dim)
    key_start, key_run, *_ = split(rng_key)
    x: Any = wide[0] + wide[1] * normals(key_start, num_particles, target.dim)
    particles = evaluated(target, x)
    tempering: Any = np.zeros((), x.dtype)
    step_size, log_z = 0.5 * target.dim**-0.25, 0.0
    for i in range(_MAX_ROUNDS):
        first = i * (num_moves + 1)
        particles, tempering, increment, spread = _resample(
            key_run, np.int32(first), particles, tempering, wide
        )
        level, accepted = _Level(tempering, wide, spread, x.dtype.type(step_size)), []
        for index in np.arange(first + 1, first + 1 + num_moves, dtype=np.int32):
            x, momentum = _set_out(key_run, index, particles, level)
            for _ in range(num_leapfrog - 1):
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
    return np.asarray(particles[0]), log_z


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
    step = ess.ess_solver(
        lambda log_ratio: log_ratio, log_ratio, _TARGET_ESS, 1.0 - tempering, solver.dichotomy
    )
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
    """Of a move: in units of the population's spread ``[n, dim]``; uniform numbers ``[n]``."""
    key_momentum, key_accept = jax.random.split(jax.random.fold_in(rng_key, index))
    return (
        jax.random.normal(key_momentum, x.shape, x.dtype),
        jax.random.uniform(key_accept, x.shape[:1], x.dtype),
    )


def _kicked(momentum: Array, particles: Evaluated, level: _Level, share: float = 1.0) -> Array:
    """Momenta after a leapfrog step's push by the tempered density, or a share of it."""
    x, _, grad = particles
    grad = jnp.where(jnp.isfinite(grad), grad, 0.0)
    score = (level.wide[0] - x) / level.wide[1] ** 2
    slope = (1.0 - level.tempering) * score + level.tempering * grad
    return momentum + share * level.step_size * level.spread * slope


def _log_tempered(particles: Evaluated, level: _Level) -> Array:
    """Log density ``[n]`` between the wide Gaussian and the target."""
    x, value, _ = particles
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    # Where the density counts nothing, -inf times zero would.
    value = jnp.where(level.tempering > 0.0, level.tempering * value, 0.0)
    return (1.0 - level.tempering) * _log_wide(x, level.wide) + value


@kernel(effort="least")
def _set_out(
    rng_key: PRNGKey, index: Array, particles: Evaluated, level: _Level
) -> tuple[Array, Array]:
    """Half a kick and a drift: positions and momenta."""
    momentum, _ = _momentum(rng_key, index, particles[0])
    momentum = _kicked(momentum, particles, level, 0.5)
    return particles[0] + level.step_size * level.spread * momentum, momentum


@kernel(effort="least")
def _go_on(particles: Evaluated, momentum: Array, level: _Level) -> tuple[Array, Array]:
    """A kick and a drift."""
    momentum = _kicked(momentum, particles, level)
    return particles[0] + level.step_size * level.spread * momentum, momentum


@kernel(effort="least")
def _arrive(
    rng_key: PRNGKey,
    index: Array,
    old: Evaluated,
    new: Evaluated,
    momentum: Array,
    level: _Level,
) -> tuple[Evaluated, Array]:
    """The last half kick, and the particles after what is accepted; its share."""
    first, uniform = _momentum(rng_key, index, old[0])
    momentum = _kicked(momentum, new, level, 0.5)
    gain = _log_tempered(new, level) - _log_tempered(old, level)
    gain = gain + 0.5 * ((first**2).sum(-1) - (momentum**2).sum(-1))
    probability = jnp.where(jnp.isnan(gain), 0.0, jnp.exp(jnp.minimum(gain, 0.0)))
    accepted = uniform < probability

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(accepted if new.ndim == 1 else accepted[:, None], new, old)

    return jax.tree.map(chosen, new, old), probability.mean()
