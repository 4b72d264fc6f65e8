"""Weighted particles that are resampled between steps: what sequential Monte Carlo shares."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from consistent_samplers.algorithms import Algorithm
from consistent_samplers.corrections.reweighting import systematic_indices
from consistent_samplers.estimate import effective_sample_size
from consistent_samplers.schedules import check_num_steps, time_grid
from consistent_samplers.types import Array, ArrayTree, PRNGKey

_Particle = TypeVar("_Particle", bound=ArrayTree)
Advance: TypeAlias = Callable[[PRNGKey, _Particle, Array, Array], tuple[_Particle, Array]]


def check_paths(algorithm: Algorithm, num_steps: int) -> None:
    """Raises a ValueError unless a sampler has stochastic paths of ``num_steps``."""
    check_num_steps(num_steps, algorithm.max_steps)
    if "path" not in algorithm.methods:
        raise ValueError(
            f"{algorithm.name!r} has no stochastic paths to resample: its methods are "
            f"{algorithm.methods}. Take an iterative sampler, cs.osds or cs.scds."
        )


def resampled_steps(
    rng_key: PRNGKey,
    particles: _Particle,
    advance: Advance[_Particle],
    num_steps: int,
    resample_below: float,
) -> tuple[_Particle, Array, Array]:
    """Particles after ``num_steps`` equal steps d of [0, 1], resampled systematically.

    Where the share of effective particles falls below ``resample_below`` after any step but the
    last, those of little weight are dropped for copies of others.

    Args:
      rng_key: PRNG key.
      particles: pytree of arrays ``[n, ...]``, of equal weight.
      advance: ``(rng_key, particle, t [], d []) -> (particle, log weight gained [])``; NaN counts
        as none.
      num_steps: number of steps.
      resample_below: never if it is 0.

    Returns:
      Particles, their log weights ``[n]``, and the share of effective ones after each step, before
      its resampling: ``[num_steps]``.
    """
    num, d = jax.tree.leaves(particles)[0].shape[0], jnp.asarray(1.0 / num_steps)

    def step(
        carry: tuple[_Particle, Array], inputs: tuple[Array, PRNGKey]
    ) -> tuple[tuple[_Particle, Array], Array]:
        particles, log_weight = carry
        t, key = inputs
        key_move, key_choose = jax.random.split(key)
        keys = jax.random.split(key_move, num)
        particles, gained = jax.vmap(advance, (0, 0, None, None))(keys, particles, t, d)
        log_weight = log_weight + jnp.where(jnp.isnan(gained), -jnp.inf, gained)
        effective = effective_sample_size(log_weight)
        # The last step's weights are the result.
        due = (effective < resample_below) & (t + d < 1.0 - 0.5 * d)
        chosen = systematic_indices(key_choose, log_weight, num)
        index = jnp.where(due, chosen, jnp.arange(num))
        even = jnp.full(num, logsumexp(log_weight) - jnp.log(num))
        particles = jax.tree.map(lambda leaf: leaf[index], particles)
        return (particles, jnp.where(due, even, log_weight)), effective

    inputs = (time_grid(num_steps), jax.random.split(rng_key, num_steps))
    start = (particles, jnp.zeros(num))
    (particles, log_weight), effective = jax.lax.scan(step, start, inputs)
    return particles, log_weight, effective
