"""Looking for a target's mass before a base is fitted: many optimiser starts, tempered SMC.

The two fail in different ways. Optimisers find every mode whose basin a start meets, in any
dimension, but say nothing of mass that has no mode (a ring, a funnel's neck) and weigh a mode by
its curvature alone. Tempered particles weigh what they reach, but in many dimensions a population
reaches few of many modes.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
import scipy.optimize
from jax.typing import ArrayLike

from consistent_samplers.bases.gaussian_fit import (
    MAX_DENSE_DIM,
    OUTSIDE,
    hessian_of,
    host_objective,
)
from consistent_samplers.compilation import jit, jit_with
from consistent_samplers.targets.base import Target, check_density, log_densities
from consistent_samplers.types import Array, LogDensityFn, PRNGKey

NUM_PARTICLES = 2_000
"""Particles of the tempered SMC."""
MAX_MODES = 128
"""Optima kept."""

# Two optima are one if they lie within this many standard deviations a dimension.
_SAME_MODE = 0.5
# Relative to the largest curvature; flatter directions have no Laplace width of their own.
_MIN_CURVATURE = 1e-6
_MAX_ROUNDS = 60
_MAX_DROP = 200.0
# Ends in a row that are no new mode, after which the rest is left.
_MAX_IN_VAIN = 16


class Modes(NamedTuple):
    """Distinct optima, the best Laplace evidence first; host arrays.

    Attributes:
      loc: ``[num_modes, dim]``.
      scale_tril: ``[num_modes, dim, dim]``, Cholesky factors of the Laplace covariances.
      log_evidence: ``[num_modes]``, log of the Laplace approximation to each mode's mass, in
        nats.

    Example:
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> modes = cs.bases.Modes(
      ...     loc=np.zeros((1, 2)), scale_tril=np.eye(2)[None], log_evidence=np.zeros(1)
      ... )
      >>> len(modes.loc)  # one mode of mass one
      1
    """

    loc: np.ndarray
    scale_tril: np.ndarray
    log_evidence: np.ndarray


class Exploration(NamedTuple):
    """What a look around found.

    Attributes:
      modes: optima; there may be none.
      particles: ``[num_particles, dim]``, of a tempered SMC that ended at the target; none above
        200 dimensions, where too few could be afforded to tell anything.
      log_z: its estimate of log Z in nats, or NaN without particles.

    Example:
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> modes = cs.bases.Modes(np.zeros((1, 2)), np.eye(2)[None], np.zeros(1))
      >>> found = cs.bases.Exploration(modes, particles=np.zeros((0, 2)), log_z=float("nan"))
      >>> found.particles.shape
      (0, 2)
    """

    modes: Modes
    particles: np.ndarray
    log_z: float


def explore(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = 512,
    num_particles: int = NUM_PARTICLES,
) -> Exploration:
    """Looks for the target's mass by optimiser starts and tempered SMC.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points known to have mass.
      num_starts: optimiser starts; at most 16 above 200 dimensions.
      num_particles: particles of the SMC; 0 leaves it out, and the second climb with it.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(1), jnp.ones(1))
      >>> found = cs.bases.explore(jax.random.key(0), target, num_starts=8, num_particles=200)
      >>> found.modes.loc.round(2).tolist(), found.particles.shape
      ([[1.0]], (200, 1))
      >>> bool(abs(found.log_z - target.log_z) < 0.5)
      True
    """
    key_modes, key_particles, key_again = jax.random.split(rng_key, 3)
    modes = find_modes(key_modes, target, init_position=init_position, num_starts=num_starts)
    if target.dim > MAX_DENSE_DIM or num_particles == 0:
        return Exploration(modes, np.zeros((0, target.dim)), math.nan)
    particles, log_z = tempered_particles(key_particles, target, modes, num_particles=num_particles)
    # Again from where the particles are, and around what was found at its own scale. As many as
    # before, for what is compiled.
    loc, scale = _wide_start(modes, target.dim)
    starts = _starts_around(
        key_again,
        jnp.asarray(particles),
        jnp.asarray(modes.loc[:num_starts], particles.dtype),
        jnp.asarray(loc, particles.dtype),
        jnp.asarray(scale, particles.dtype),
        num_starts,
    )
    step = np.full(num_starts, np.linalg.norm(scale) / math.sqrt(target.dim), particles.dtype)
    found = _distinct(target, *_climb(target, starts, step))
    return Exploration(found, particles, log_z)


@jit(effort="least", static_argnames="num")
def _starts_around(
    rng_key: PRNGKey, particles: Array, modes: Array, loc: Array, scale: Array, num: int
) -> Array:
    """Starts ``[num, dim]``: the modes, half of the rest particles, the others N(loc, scale²)."""
    key_choose, key_wide = jax.random.split(rng_key)
    num_chosen = (num - len(modes)) // 2
    chosen = jax.random.choice(key_choose, particles, (num_chosen,))
    wide = jax.random.normal(key_wide, (num - len(modes) - num_chosen, len(loc)), loc.dtype)
    return jnp.concatenate([modes, chosen, loc + scale * wide])


def find_modes(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = 512,
    num_iterations: int = 400,
    max_modes: int = MAX_MODES,
) -> Modes:
    """Distinct optima of the density, from starts at scales of 0.1 to 100.

    Adam climbs from all starts at once, each at steps in proportion to its scale; the distinct
    ends are polished by L-BFGS and given their Laplace covariances on the host.

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
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> modes = cs.bases.find_modes(jax.random.key(0), target, num_starts=16)
      >>> sorted(modes.loc.round(1).ravel().tolist())
      [-2.0, 2.0]
    """
    dim = target.dim
    if dim > MAX_DENSE_DIM:
        num_starts = min(num_starts, 16)
    # The rest on the host: every small operation on arrays would be compiled by itself.
    starts, scale = map(np.asarray, _starts_at_all_scales(rng_key, num_starts, dim))
    if init_position is not None:
        given = np.atleast_2d(np.asarray(init_position, starts.dtype))
        if given.shape[1] != dim:
            raise ValueError(f"init_position must have {dim} columns, got {given.shape}.")
        starts = np.concatenate([given, starts])
        scale = np.concatenate([np.ones(len(given), scale.dtype), scale])
    # Far out a density may overflow; it has to be usable somewhere.
    usable = np.isfinite(np.asarray(log_densities(target, jnp.asarray(starts))))
    if not usable.any():
        check_density(target, jnp.asarray(starts))
    # As many as before, for what is compiled: the first usable one stands in for the others.
    first = np.argmax(usable)
    starts = np.where(usable[:, None], starts, starts[first])
    scale = np.where(usable, scale, scale[first])
    return _distinct(target, *_climb(target, starts, scale, num_iterations), max_modes)


@jit(effort="least", static_argnames=("num", "dim"))
def _starts_at_all_scales(rng_key: PRNGKey, num: int, dim: int) -> tuple[Array, Array]:
    """Starts ``[num, dim]`` and the scale of each, ``[num]``."""
    scale = jnp.geomspace(0.1, 100.0, num)
    return scale[:, None] * jax.random.normal(rng_key, (num, dim)), scale


def _climb(
    target: Target, starts: ArrayLike, scale: ArrayLike, num_iterations: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Where Adam ends from starts ``[n, dim]``, and the log densities there, the highest first.

    From far away to the nearest mode takes about the start's ``scale [n]``; the decay of the step
    to zero settles.
    """
    climb = jit_with(
        _climb_all, target.log_density, effort="less", static_argnames="num_iterations"
    )
    arrived = climb(jnp.asarray(starts), jnp.asarray(scale), num_iterations=num_iterations)
    ends, values = map(np.asarray, arrived)
    good = np.isfinite(values) & np.isfinite(ends).all(axis=1)
    ends, values = ends[good], values[good]
    order = np.argsort(-values)
    return ends[order], values[order]


def _climb_all(
    log_density: LogDensityFn, starts: Array, scale: Array, num_iterations: int
) -> tuple[Array, Array]:
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, num_iterations))
    value_and_grad = jax.vmap(jax.value_and_grad(lambda x: -log_density(x)))
    # In all up to five times the scale, whatever the number of iterations.
    step_size = (10.0 * jnp.maximum(scale, 0.5) / num_iterations)[:, None]

    def body(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        x, state = carry
        gradient = value_and_grad(x)[1]
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        updates, state = optimizer.update(gradient, state)
        return (x + updates * step_size, state), None

    (x, _), _ = jax.lax.scan(body, (starts, optimizer.init(starts)), None, length=num_iterations)
    return x, -value_and_grad(x)[0]


def _distinct(
    target: Target, points: np.ndarray, values: np.ndarray, max_modes: int = MAX_MODES
) -> Modes:
    """Optima from points in order of their densities ``values``, polished, one of each."""
    # An end far below the best carries no mass, and every end costs a Hessian.
    points = points[values > values.max(initial=-np.inf) - _MAX_DROP]
    hessian = jit_with(hessian_of, target.log_density, effort="least")
    dim, dtype = target.dim, points.dtype

    objective = host_objective(target, dtype)
    locs: list[np.ndarray] = []
    factors: list[np.ndarray] = []
    log_evidence: list[float] = []
    left, in_vain = points, 0
    while len(left) and len(locs) < max_modes and in_vain < _MAX_IN_VAIN:
        in_vain += 1
        found = scipy.optimize.minimize(
            objective,
            left[0].astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 50},
        )
        loc, left = found.x, left[1:]
        precision = -np.asarray(hessian(jnp.asarray(loc, dtype)), np.float64)
        if not np.isfinite(precision).all() or not np.isfinite(found.fun) or found.fun >= OUTSIDE:
            continue
        curvature, vectors = np.linalg.eigh(0.5 * (precision + precision.T))
        if curvature[-1] <= 0:
            continue
        # A flat direction (a ring, a ridge) has a width that curvature does not tell.
        floor = max(_MIN_CURVATURE * curvature[-1], 0.05 * float(np.median(curvature.clip(0))))
        curvature = np.maximum(curvature, max(floor, 1e-12))
        root = np.sqrt(curvature)[:, None] * vectors.T
        near = np.linalg.norm((left - loc) @ root.T, axis=1) < _SAME_MODE * np.sqrt(dim)
        left = left[~near]
        if any(
            np.linalg.norm(np.linalg.solve(f, loc - other)) < _SAME_MODE * np.sqrt(dim)
            for other, f in zip(locs, factors, strict=True)
        ):
            continue
        covariance = (vectors / curvature) @ vectors.T
        in_vain = 0
        locs.append(loc)
        factors.append(scipy.linalg.cholesky(covariance, lower=True))
        half_log_det = -0.5 * float(np.log(curvature).sum())
        log_evidence.append(-found.fun + 0.5 * dim * np.log(2.0 * np.pi) + half_log_det)
    if not locs:
        return Modes(np.zeros((0, dim)), np.zeros((0, dim, dim)), np.zeros(0))
    order = np.argsort(-np.asarray(log_evidence))
    return Modes(np.stack(locs)[order], np.stack(factors)[order], np.asarray(log_evidence)[order])


def tempered_particles(
    rng_key: PRNGKey,
    target: Target,
    modes: Modes,
    *,
    num_particles: int = NUM_PARTICLES,
    num_moves: int = 5,
    num_leapfrog: int = 5,
) -> tuple[np.ndarray, float]:
    """Particles ``[n, dim]`` at the target and log Z, by BlackJAX's adaptive tempered SMC.

    It starts from a wide Gaussian around the optima that carry mass (N(0, I) where there are
    none), and moves the particles by Hamiltonian Monte Carlo, its steps and masses taken from
    the population.

    Args:
      rng_key: key.
      target: the target.
      modes: optima found before.
      num_particles: number of particles.
      num_moves: HMC transitions at each temperature.
      num_leapfrog: leapfrog steps of a transition.
    """
    import blackjax  # not while tracing, where it would count as compiling

    loc, scale = map(jnp.asarray, _wide_start(modes, target.dim))
    advance = jit_with(
        _advance,
        target.log_density,
        effort="less",
        static_argnames=("num_moves", "num_leapfrog"),
    )
    key_start, key_run = jax.random.split(rng_key)
    start = _wide_draws(key_start, loc, scale, num_particles)
    # As `init` makes it, without compiling its small operations one by one.
    weights = np.full(num_particles, 1.0 / num_particles, start.dtype)
    state = blackjax.smc.tempered.TemperedSMCState(start, weights, 0.0)
    step_size, log_z = 0.5 * target.dim**-0.25, 0.0
    for i in range(_MAX_ROUNDS):
        state, increment, accepted = advance(
            key_run,
            np.int32(i),
            state,
            loc.dtype.type(step_size),
            loc,
            scale,
            num_moves=num_moves,
            num_leapfrog=num_leapfrog,
        )
        log_z += float(increment)
        # Towards two thirds of the moves accepted.
        step_size *= float(np.exp(np.clip(float(accepted) - 0.65, -0.5, 0.5)))
        if float(state.tempering_param) >= 1.0 or not np.isfinite(log_z):
            break
    return np.asarray(state.particles), log_z


@jit(effort="least", static_argnames="num")
def _wide_draws(rng_key: PRNGKey, loc: Array, scale: Array, num: int) -> Array:
    """Draws ``[num, dim]`` of N(loc, scale²)."""
    return loc + scale * jax.random.normal(rng_key, (num, len(loc)), loc.dtype)


def _advance(
    log_density: LogDensityFn,
    rng_key: PRNGKey,
    index: Array,
    state: Any,
    step_size: Array,
    loc: Array,
    scale: Array,
    num_moves: int,
    num_leapfrog: int,
) -> tuple[Any, Array, Array]:
    """One temperature further: state, increment of log Z, share of the moves accepted."""
    import blackjax

    def log_start(x: Array) -> Array:
        return jax.scipy.stats.norm.logpdf(x, loc, scale).sum()

    def log_likelihood(x: Array) -> Array:
        value = log_density(x) - log_start(x)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    smc = blackjax.adaptive_tempered_smc(
        log_start,
        log_likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": step_size[None],
            "inverse_mass_matrix": jnp.maximum(state.particles.var(0), 1e-12)[None],
            "num_integration_steps": jnp.full((1,), num_leapfrog),
        },
        blackjax.smc.resampling.systematic,
        target_ess=0.7,
        num_mcmc_steps=num_moves,
    )
    state, info = smc.step(jax.random.fold_in(rng_key, index), state)
    accepted = jnp.mean(info.update_info.acceptance_rate)
    return state, info.log_likelihood_increment, accepted


def _wide_start(modes: Modes, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviations of a Gaussian that covers the optima that carry mass."""
    if len(modes.loc) == 0:
        return np.zeros(dim), np.ones(dim)
    kept = modes.log_evidence > modes.log_evidence[0] - 10.0
    loc = modes.loc[kept]
    within = np.einsum("kij,kij->ki", modes.scale_tril[kept], modes.scale_tril[kept])
    # A single optimum may be the tip of a funnel: never narrower than a standard normal around it.
    scale = np.sqrt(loc.var(axis=0) + np.minimum(within.mean(axis=0), 1e4))
    return loc.mean(axis=0), np.maximum(1.5 * scale, 1e-3)
