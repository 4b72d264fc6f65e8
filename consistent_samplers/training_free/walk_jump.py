"""Walk-jump sampling by a chain of log-concave densities.

Saremi, Park & Bach, "Chain of log-concave Markov chains", ICLR 2024, arXiv:2305.19473. Measurements
y_k = x + σ ε_k of one x ~ p, with independent ε_k ~ N(0, I), are drawn one after the other:

    ∇_{y_m} log p(y_m | y_1, ..., y_{m-1}) = (E[x | y_1, ..., y_m] - y_m) / σ²,
    p(x | y_1, ..., y_m) ∝ ρ(x) N(x; ȳ_m, (σ² / m) I),   ȳ_m their mean,

is the score of a density that is log-concave where the covariance of x given the first m
measurements is below σ², for all of them where σ is large enough. Underdamped Langevin dynamics
walk in y_m; in the end comes the jump, to E[x | y_1, ..., y_M]. The posterior means are weighted
means of points x_i ~ N(ȳ_m, (σ² / m) I) with the weights ρ(x_i): no gradients.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers.bases import Base
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.targets import Target
from consistent_samplers.training_free.counted import CountedDraws
from consistent_samplers.training_free.frame import choose_frame, whitened
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey


def walk_jump(
    rng_key: PRNGKey,
    target: Target,
    num_samples: int,
    *,
    base: Base | None = None,
    noise: float = 1.0,
    num_measurements: int = 16,
    num_walk_steps: int = 32,
    num_points: int = 64,
    step_size: float = 0.7,
    friction: float = 1.0,
) -> CountedDraws:
    """Draws by walking on noisy measurements and jumping to a posterior mean; they have no weights.

    Biases remain, and the draws cannot say how large they are. A posterior mean varies less than
    the target: of a Gaussian with variance s², s⁴ / (s² + σ² / M) is left after M measurements.
    Means of a few points stay too close to ȳ_m, which widens the law again. Walks are short, and
    their steps are not adjusted. In many dimensions, or where σ is large beside the target, one
    point has all the weight.

    A walk in y_m begins at x̂ + σ ε with the posterior mean x̂ of the measurements before, where y_m
    is to be if x is x̂; the first of them at a draw of the base and noise.

    Args:
      rng_key: PRNG key.
      target: the target; only its values are used.
      num_samples: number of draws.
      base: the coordinates, and where the walks begin; N(0, I) if None.
      noise: σ, in the base's standard deviations.
      num_measurements: their number M.
      num_walk_steps: Langevin steps in each measurement.
      num_points: points of a posterior mean.
      step_size: of the walk, in units of σ.
      friction: of the walk, per unit of its time.

    Returns:
      Draws without weights, and their evaluations: of each draw ``num_points`` times
      ``num_measurements * (num_walk_steps + 1) + 1``.

    Raises:
      ValueError: numbers out of range, or a base of another dimension or of several frames.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(2), 0.5)
      >>> draws, num_evaluations = cs.training_free.walk_jump(
      ...     jax.random.key(0), target, 500, num_measurements=8, num_walk_steps=8
      ... )
      >>> draws.position.mean(0).round().tolist(), num_evaluations // 500
      ([1.0, 1.0], 4672)
    """
    for name, value in (
        ("num_samples", num_samples),
        ("num_measurements", num_measurements),
        ("num_walk_steps", num_walk_steps),
        ("num_points", num_points),
    ):
        check_integer(name, value)
    for name, number in (("noise", noise), ("step_size", step_size), ("friction", friction)):
        if not number > 0.0:
            raise ValueError(f"{name} must be positive, got {number!r}.")
    position = _walked(
        jax.random.split(rng_key, num_samples),
        choose_frame(target, base),
        as_partial(target.log_density),
        noise,
        step_size,
        friction,
        num_measurements=int(num_measurements),
        num_walk_steps=int(num_walk_steps),
        num_points=int(num_points),
    )
    evaluations = num_points * (num_measurements * (num_walk_steps + 1) + 1)
    return CountedDraws(Draws(position), num_samples * evaluations)


@functools.partial(jit, static_argnames=("num_measurements", "num_walk_steps", "num_points"))
def _walked(
    keys: Array,
    frame: Base,
    density: LogDensityFn,
    noise: Array | float,
    step_size: Array | float,
    friction: Array | float,
    *,
    num_measurements: int,
    num_walk_steps: int,
    num_points: int,
) -> Array:
    """Where the walks of one key each jump to: ``[n, dim]``."""
    log_density = whitened(density, frame)
    keep = jnp.exp(-friction * step_size)

    def posterior_mean(key: PRNGKey, mean: Array, m: Array) -> Array:
        """E[x | y_1, ..., y_m] from the mean ȳ_m: ``[dim]``."""
        points = jax.random.normal(key, (num_points, *mean.shape), mean.dtype)
        points = mean + noise / jnp.sqrt(m) * points
        log_weight = jax.vmap(log_density)(points)
        log_weight = jnp.where((log_weight == -jnp.inf).all(), 0.0, log_weight)
        return jax.nn.softmax(log_weight) @ points

    def one(key: PRNGKey) -> Array:
        key_base, key_walks, key_jump = jax.random.split(key, 3)

        def measure(carry: tuple[Array, Array], inputs: Any) -> tuple[Any, None]:
            before, guess = carry  # mean of the measurements so far, and of x given them
            m, key = inputs
            key_place, key_speed, key_mean, key_walk = jax.random.split(key, 4)

            def mean_with(y: Array) -> Array:
                return before + (y - before) / m

            def step(state: tuple[Array, Array, Array], key: PRNGKey) -> tuple[Any, None]:
                # Kick, drift, friction, drift, kick: positions of a Gaussian are exact but for the
                # noise of the score. The speed is in units of σ.
                y, speed, found = state
                key_noise, key_mean = jax.random.split(key)
                speed = speed + 0.5 * step_size * (found - y) / noise
                y = y + 0.5 * step_size * noise * speed
                fresh = jax.random.normal(key_noise, y.shape, y.dtype)
                speed = keep * speed + jnp.sqrt(1.0 - keep**2) * fresh
                y = y + 0.5 * step_size * noise * speed
                found = posterior_mean(key_mean, mean_with(y), m)
                return (y, speed + 0.5 * step_size * (found - y) / noise, found), None

            y = guess + noise * jax.random.normal(key_place, guess.shape)
            found = posterior_mean(key_mean, mean_with(y), m)
            state = (y, jax.random.normal(key_speed, guess.shape), found)
            keys = jax.random.split(key_walk, num_walk_steps)
            (y, _, guess), _ = jax.lax.scan(step, state, keys)
            return (mean_with(y), guess), None

        start = jax.random.normal(key_base, (frame.dim,))
        numbers = 1.0 + jnp.arange(num_measurements)
        keys = jax.random.split(key_walks, num_measurements)
        (mean, _), _ = jax.lax.scan(measure, (jnp.zeros_like(start), start), (numbers, keys))
        last = jnp.asarray(float(num_measurements))
        return frame.unwhiten(posterior_mean(key_jump, mean, last), ())

    position: Array = jax.lax.map(one, keys, batch_size=256)
    return position
