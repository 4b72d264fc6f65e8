"""Tempered sequential Monte Carlo, for a look at where a target's mass lies.

The density is met between our compiled steps; BlackJAX's own kernel compiles it with them. What
needs no density is BlackJAX's: the search for the temperature and the resampling.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases.iterating import normals, split
from consistent_samplers.bases.limits import affordable
from consistent_samplers.bases.modes import Modes, covering
from consistent_samplers.kernels import kernel
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

NUM_PARTICLES = 2_000
"""Particles of the tempered SMC."""

_MIN_PARTICLES = 512
_MAX_ROUNDS = 60
# Temperatures that most targets take.
_USUAL_ROUNDS = 20
# Share of effective particles that a step of the temperature leaves.
_TARGET_ESS = 0.7
_ACCEPTANCE = 0.65
# The smallest look may cost this many times the budget; above it there is none.
_MAX_EXCESS = 10.0


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

    It starts from a wide Gaussian around the optima that carry mass (N(0, I) where there are
    none), lowers the temperature by steps that leave 70 % of the particles effective, and moves
    the particles by Hamiltonian Monte Carlo, its steps and masses taken from the population (Del
    Moral et al., 2006; Buchholz et al., 2021).

    Where 20 temperatures would take more than 40 Gflop there are fewer particles, 512 at least,
    then fewer moves, one at least. Where even these take more than ten times as much, there are no
    particles, and log Z is NaN.

    Args:
      rng_key: key.
      target: the target.
      modes: optima found before.
      num_particles: number of particles.
      num_moves: HMC transitions at each temperature.
      num_leapfrog: leapfrog steps of a transition.
    """
    import blackjax.smc  # noqa: F401  not while tracing, where it would count as compiling

    num_particles, num_moves = smc_size(target, num_particles, num_moves, num_leapfrog)
    if num_particles == 0:
        return np.zeros((0, target.dim)), float("nan")
    wide = covering(modes, target.dim)
    key_start, key_run, *_ = split(rng_key)
    x: Any = wide[0] + wide[1] * normals(key_start, num_particles, target.dim)
    value, grad = evaluation.values_and_grads(target.log_density, x)
    tempering: Any = np.zeros((), x.dtype)
    step_size, log_z = 0.5 * target.dim**-0.25, 0.0
    for i in range(_MAX_ROUNDS):
        index = np.int32(i * (num_moves + 1))
        x, value, grad, tempering, increment, spread = _resample(
            key_run, index, x, value, grad, tempering, wide
        )
        step, accepted = x.dtype.type(step_size), []
        for j in range(num_moves):
            index = np.int32(i * (num_moves + 1) + 1 + j)
            y, momentum = _set_out(key_run, index, x, grad, tempering, wide, spread, step)
            new = evaluation.values_and_grads(target.log_density, y)
            for _ in range(num_leapfrog - 1):
                y, momentum = _go_on(y, momentum, new[1], tempering, wide, spread, step)
                new = evaluation.values_and_grads(target.log_density, y)
            x, value, grad, rate = _arrive(
                key_run, index, (x, value, grad), (y, *new), momentum, tempering, wide, spread, step
            )
            accepted.append(rate)
        log_z += float(increment)
        # Towards two thirds of the moves accepted.
        excess = float(np.mean([np.asarray(rate) for rate in accepted])) - _ACCEPTANCE
        step_size *= float(np.exp(np.clip(excess, -0.5, 0.5)))
        if float(tempering) >= 1.0 or not np.isfinite(log_z):
            break
    return np.asarray(x), log_z


def smc_size(
    target: Target, num_particles: int, num_moves: int, num_leapfrog: int
) -> tuple[int, int]:
    """Numbers of particles and of moves at each temperature that the budget allows.

    Args:
      target: the target.
      num_particles: particles asked for.
      num_moves: moves asked for.
      num_leapfrog: leapfrog steps of a move.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.bases.tempering import smc_size
      >>> smc_size(cs.Target(lambda x: -jnp.sum(x**2), dim=2), 2_000, 5, 5)
      (2000, 5)
    """
    most = affordable(target) / (_USUAL_ROUNDS * num_leapfrog)
    if num_particles * num_moves > most:
        num_particles = min(num_particles, max(int(most / num_moves), _MIN_PARTICLES))
        num_moves = min(num_moves, max(int(most / num_particles), 1))
    return (0, 0) if num_particles * num_moves > _MAX_EXCESS * most else (num_particles, num_moves)


def _log_wide(x: Array, wide: tuple[Array, Array]) -> Array:
    return jax.scipy.stats.norm.logpdf(x, *wide).sum(-1)


def _tempered(
    x: Array, value: Array, grad: Array, tempering: Array, wide: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Log density ``[n]`` between the wide Gaussian and the target, and its gradient."""
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    grad = jnp.where(jnp.isfinite(grad), grad, 0.0)
    log_wide, score = _log_wide(x, wide), (wide[0] - x) / wide[1] ** 2
    # Where the density counts nothing, -inf times zero would.
    value = jnp.where(tempering > 0.0, tempering * value, 0.0)
    return (1.0 - tempering) * log_wide + value, (1.0 - tempering) * score + tempering * grad


@kernel(effort="least")
def _resample(
    rng_key: PRNGKey,
    index: Array,
    x: Array,
    value: Array,
    grad: Array,
    tempering: Array,
    wide: tuple[Array, Array],
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """One temperature further.

    Returns:
      Positions, values, gradients; the temperature; what log Z grows by; the population's
      standard deviations ``[dim]``.
    """
    from blackjax.smc import ess, resampling, solver

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
    x = x[chosen]
    spread = jnp.sqrt(jnp.maximum(x.var(0), 1e-12))
    increment = log_total - jnp.log(len(x))
    return x, value[chosen], grad[chosen], tempering + step, increment, spread


def _momentum(rng_key: PRNGKey, index: Array, x: Array) -> tuple[Array, Array]:
    """Of a move: in units of the population's spread ``[n, dim]``; uniform numbers ``[n]``."""
    key_momentum, key_accept = jax.random.split(jax.random.fold_in(rng_key, index))
    return (
        jax.random.normal(key_momentum, x.shape, x.dtype),
        jax.random.uniform(key_accept, x.shape[:1], x.dtype),
    )


@kernel(effort="least")
def _set_out(
    rng_key: PRNGKey,
    index: Array,
    x: Array,
    grad: Array,
    tempering: Array,
    wide: tuple[Array, Array],
    spread: Array,
    step: Array,
) -> tuple[Array, Array]:
    """Half a kick and a drift: positions and momenta."""
    momentum, _ = _momentum(rng_key, index, x)
    _, slope = _tempered(x, jnp.zeros(len(x)), grad, tempering, wide)
    momentum = momentum + 0.5 * step * spread * slope
    return x + step * spread * momentum, momentum


@kernel(effort="least")
def _go_on(
    x: Array,
    momentum: Array,
    grad: Array,
    tempering: Array,
    wide: tuple[Array, Array],
    spread: Array,
    step: Array,
) -> tuple[Array, Array]:
    """A kick and a drift."""
    _, slope = _tempered(x, jnp.zeros(len(x)), grad, tempering, wide)
    momentum = momentum + step * spread * slope
    return x + step * spread * momentum, momentum


@kernel(effort="least")
def _arrive(
    rng_key: PRNGKey,
    index: Array,
    old: tuple[Array, Array, Array],
    new: tuple[Array, Array, Array],
    momentum: Array,
    tempering: Array,
    wide: tuple[Array, Array],
    spread: Array,
    step: Array,
) -> tuple[Array, Array, Array, Array]:
    """The last half kick, and what is accepted: positions, values, gradients, and the share."""
    first, uniform = _momentum(rng_key, index, old[0])
    before, _ = _tempered(*old, tempering, wide)
    after, slope = _tempered(*new, tempering, wide)
    momentum = momentum + 0.5 * step * spread * slope
    gain = after - before + 0.5 * ((first**2).sum(-1) - (momentum**2).sum(-1))
    probability = jnp.where(jnp.isnan(gain), 0.0, jnp.exp(jnp.minimum(gain, 0.0)))
    accepted = uniform < probability
    position = jnp.where(accepted[:, None], new[0], old[0])
    value = jnp.where(accepted, new[1], old[1])
    grad = jnp.where(accepted[:, None], new[2], old[2])
    return position, value, grad, probability.mean()
