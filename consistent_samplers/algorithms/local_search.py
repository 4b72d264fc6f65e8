"""Chains on the target beside training: a Metropolis-adjusted Langevin step of each an iteration.

In units of the base's frame, with the step size ε and the log density ℓ there,

    z' = z + ½ ε² ∇ℓ(z) + ε ξ,    accepted with probability min(1, ρ(z') q(z | z') / ρ(z) q(z' | z))

(Roberts & Rosenthal, 1998). The drift ½ ε² ∇ℓ is bounded by twice the size of the noise: with light
tails it would lead from the outside over to the other side and beyond, to be refused for ever
(Roberts & Tweedie, 1996). A proposal is made from what is kept of the last iteration, so that an
iteration asks for the density of all of them once, with whatever else it asks for. Pure functions
over arrays of fixed size.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.networks import clip_norm
from consistent_samplers.types import Array, PRNGKey

ACCEPTANCE = 0.574
"""The acceptance that the step size is adapted to: the best one in many dimensions."""


class Chains(NamedTuple):
    """Where chains stand, in the base's frame."""

    position: Array  # [num, dim]
    log_density: Array  # [num] in nats; -inf for a chain that has not started
    gradient: Array  # [num, dim], of the log density
    age: Array  # [num] int, moves since the start
    log_step: Array  # [], of the step size


class Proposals(NamedTuple):
    """Where chains may go, in the base's frame."""

    position: Array  # [num, dim]
    is_start: Array  # [num] bool, taken in any case


def init(num: int, dim: int, lifetime: int) -> Chains:
    """Chains without a start, of different ages, so that they do not all start anew together."""
    age = jnp.arange(num) * lifetime // num
    # Made of arrays of zeros: of numbers alone they would be of a weak type, and compiled twice.
    zeros, log_step = jnp.zeros((num, dim)), jnp.zeros(()) - math.log(dim) / 6.0
    return Chains(zeros, zeros[:, 0] - jnp.inf, zeros, age, log_step)


def propose(rng_key: PRNGKey, chains: Chains, starts: Array, lifetime: int) -> Proposals:
    """A move of each chain; those that have made ``lifetime`` of them start from ``starts``."""
    step = jnp.exp(chains.log_step)
    noise = jax.random.normal(rng_key, chains.position.shape)
    moved = _drifted(chains.position, chains.gradient, step) + step * noise
    is_start = (chains.age >= lifetime) | jnp.isneginf(chains.log_density)
    return Proposals(jnp.where(is_start[:, None], starts, moved), is_start)


def accept(
    rng_key: PRNGKey,
    chains: Chains,
    proposals: Proposals,
    log_density: Array,
    gradient: Array,
    *,
    lifetime: int,
    gain: Array,
) -> Chains:
    """Chains after their proposals, given log densities ``[num]`` and gradients there.

    ``gain []`` is how far the log step size moves for a share of acceptances off its aim.
    """
    step, (position, is_start) = jnp.exp(chains.log_step), proposals
    log_density = jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)

    def log_move(start: Array, gradient: Array, end: Array) -> Array:
        gap = end - _drifted(start, gradient, step)
        return -0.5 * jnp.sum(gap**2, axis=1) / step**2

    back = log_move(position, gradient, chains.position)
    there = log_move(chains.position, chains.gradient, position)
    log_ratio = log_density - chains.log_density + back - there
    chance = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    taken = is_start | (jax.random.uniform(rng_key, chance.shape) < chance)

    num_moved = jnp.sum(~is_start)
    rate = jnp.where(is_start, 0.0, chance).sum() / jnp.maximum(num_moved, 1)
    change = jnp.where(num_moved > 0, gain * (rate - ACCEPTANCE), 0.0)
    return Chains(
        jnp.where(taken[:, None], position, chains.position),
        jnp.where(taken, log_density, chains.log_density),
        jnp.where(taken[:, None], gradient, chains.gradient),
        jnp.where(chains.age >= lifetime, 0, chains.age + 1),
        chains.log_step + change,
    )


def _drifted(position: Array, gradient: Array, step: Array) -> Array:
    limit = 2.0 * step * position.shape[1] ** 0.5
    return position + jax.vmap(clip_norm, (0, None))(0.5 * step**2 * gradient, limit)
