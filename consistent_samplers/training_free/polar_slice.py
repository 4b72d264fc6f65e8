"""Gibbsian polar slice sampling: chains for heavy tails, with nothing to tune but a width.

Schär, Habeck & Rudolf, "Gibbsian polar slice sampling", ICML 2023, arXiv:2302.03945. With x = r θ,
r > 0 and |θ| = 1, a target ρ has the density ρ₁(r, θ) = r^(d-1) ρ(r θ) in r and θ. One transition
draws a level t ~ U(0, ρ₁(r, θ)) and then, inside of the slice {ρ₁ > t},

1. θ along a random great circle through it at the same r, by shrinkage of the whole circle;
2. r along the ray of the new θ, by stepping out and shrinkage (Neal, "Slice sampling", 2003).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases import Base
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, is_traced, jit
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.training_free.frame import choose_frame, whitened
from consistent_samplers.training_free.slices import shrink, step_out
from consistent_samplers.types import Array, LogDensityFn, PRNGKey


class PolarSliceChains(NamedTuple):
    """Chains of `polar_slice`.

    Attributes:
      position: ``[num_chains, num_samples, dim]``.
      num_evaluations: ``[num_chains]``, log densities that each chain asked for. Chains run side by
        side, and every loop waits for the longest of them.

    Example:
      >>> from consistent_samplers.training_free import PolarSliceChains
      >>> PolarSliceChains._fields
      ('position', 'num_evaluations')
    """

    position: Array
    num_evaluations: Array


def polar_slice(
    rng_key: PRNGKey,
    target: Target,
    initial: Array,
    num_samples: int,
    *,
    base: Base | None = None,
    width: float = 2.0,
    max_expansions: int = 32,
    max_shrinkages: int = 64,
) -> PolarSliceChains:
    """Chains of Gibbsian polar slice sampling, which leave the target exactly invariant.

    No gradients, no rejections, no step size: radii change by orders of magnitude in one transition
    where tails are heavy. Far from spherical targets, and those of modes in several directions,
    need a base that is close to them or many samples: chains do not leave modes more easily here.

    All loops are bounded. The expansions of an interval are shared out between its ends at random,
    as Neal has it; where a shrinkage finds nothing, the coordinate stays. Both keep the law.

    Args:
      rng_key: PRNG key.
      target: the target, of two dimensions or more; no gradients are taken of it.
      initial: ``[num_chains, dim]``, where chains begin; positive density at each.
      num_samples: transitions of each chain, all of them returned.
      base: centre and scales of the polar coordinates; N(0, I) if None.
      width: width of the first interval of radii, in the base's standard deviations.
      max_expansions: most of these widths that an interval of radii has.
      max_shrinkages: most points tried for each of direction and radius.

    Raises:
      ValueError: numbers out of range, shapes that do not go together, a base of several frames,
        or a chain that begins at the centre or where there is no density.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -2.0 * jnp.log1p(x @ x), dim=2)  # a Student t
      >>> initial = jax.random.normal(jax.random.key(0), (64, 2))
      >>> chains = cs.training_free.polar_slice(jax.random.key(1), target, initial, 50)
      >>> radius = jnp.linalg.norm(chains.position, axis=-1)
      >>> chains.position.shape, round(float((radius < 1.0).mean()), 1)
      ((64, 50, 2), 0.5)
    """
    for name, value in (
        ("num_samples", num_samples),
        ("max_expansions", max_expansions),
        ("max_shrinkages", max_shrinkages),
    ):
        check_integer(name, value)
    if target.dim < 2:
        raise ValueError("Polar coordinates need a target of two dimensions or more, got one.")
    if not 0.0 < width < np.inf:
        raise ValueError(f"width must be positive and finite, got {width!r}.")
    initial = jnp.asarray(initial, jnp.result_type(float))
    if initial.ndim != 2 or initial.shape[1] != target.dim:
        raise ValueError(f"initial must be [num_chains, {target.dim}], got {initial.shape}.")
    frame = choose_frame(target, base)
    start = jax.vmap(lambda x: frame.whiten(x, ()))(initial)
    _check_start(target, initial, start)
    chains: PolarSliceChains = _chains(
        jax.random.split(rng_key, len(initial)),
        start,
        frame,
        as_partial(target.log_density),
        width,
        num_samples=int(num_samples),
        max_expansions=int(max_expansions),
        max_shrinkages=int(max_shrinkages),
    )
    return chains


@functools.partial(jit, static_argnames=("num_samples", "max_expansions", "max_shrinkages"))
def _chains(
    keys: Array,
    start: Array,
    frame: Base,
    density: LogDensityFn,
    width: Array | float,
    *,
    num_samples: int,
    max_expansions: int,
    max_shrinkages: int,
) -> PolarSliceChains:
    """Chains of one key and starting point ``[n, dim]`` in the frame each."""
    log_density = whitened(density, frame)

    def log_polar(r: Array, theta: Array) -> Array:
        value = (frame.dim - 1) * jnp.log(r) + log_density(r * theta)
        return jnp.where(r > 0.0, value, -jnp.inf)

    def transition(state: Any, key: PRNGKey) -> tuple[Any, Any]:
        r, theta, value = state
        key_level, key_axis, key_angle, key_radius = jax.random.split(key, 4)
        level = value - jax.random.exponential(key_level, dtype=value.dtype)

        axis = jax.random.normal(key_axis, theta.shape, theta.dtype)
        axis = axis - (axis @ theta) * theta
        axis = axis / jnp.linalg.norm(axis)

        def turned(angle: Array) -> Array:
            towards = jnp.cos(angle) * theta + jnp.sin(angle) * axis
            return towards / jnp.linalg.norm(towards)

        key_first, key_angle = jax.random.split(key_angle)
        first = jax.random.uniform(key_first, dtype=r.dtype, maxval=2.0 * np.pi)
        angle, value, num_turns = shrink(
            key_angle,
            lambda angle: log_polar(r, turned(angle)),
            level,
            (first - 2.0 * np.pi, first, first),
            (jnp.zeros_like(r), value),
            max_shrinkages,
        )
        theta = turned(angle)

        def along(r: Array) -> Array:
            return log_polar(r, theta)

        key_place, key_share, key_first, key_radius = jax.random.split(key_radius, 4)
        low = r - width * jax.random.uniform(key_place, dtype=r.dtype)
        below = jax.random.randint(key_share, (), 0, max_expansions)
        ends, num_out = jax.vmap(lambda *end: step_out(along, level, *end))(
            jnp.stack([low, low + width]),
            jnp.asarray([-width, width], r.dtype),
            jnp.stack([below, max_expansions - 1 - below]),
        )
        # Below zero there is no density, which needs no trial.
        low, high = jnp.maximum(ends[0], 0.0), ends[1]
        first = jax.random.uniform(key_first, dtype=r.dtype, minval=low, maxval=high)
        r, value, num_radii = shrink(
            key_radius, along, level, (low, high, first), (r, value), max_shrinkages
        )
        return (r, theta, value), (r * theta, num_turns + num_radii + num_out.sum())

    def chain(key: PRNGKey, z: Array) -> PolarSliceChains:
        r = jnp.linalg.norm(z)
        state = (r, z / r, log_polar(r, z / r))
        _, (path, spent) = jax.lax.scan(transition, state, jax.random.split(key, num_samples))
        return PolarSliceChains(jax.vmap(lambda z: frame.unwhiten(z, ()))(path), 1 + spent.sum())

    return jax.vmap(chain)(keys, start)


def _check_start(target: Target, initial: Array, start: Array) -> None:
    if is_traced((initial, start)):
        return
    if not (jnp.linalg.norm(start, axis=-1) > 0.0).all():
        raise ValueError("A chain begins at the centre, where it has no direction: move it.")
    if not np.isfinite(np.asarray(evaluation.values(target.log_density, initial))).all():
        raise ValueError("The density is not positive and finite where a chain begins: move it.")
