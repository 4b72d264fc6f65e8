"""A replay buffer of end points, for the losses that may train on paths of any origin.

Points that weigh much are drawn more often: those are where the sampler falls short of the
target. Paths are made up anew each time by the backward kernels (Sendera et al., 2024, Improved
off-policy training of diffusion samplers). Pure functions over arrays of fixed size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.types import Array, PRNGKey


class ReplayBuffer(NamedTuple):
    """The most recent end points."""

    position: Array  # [capacity, dim]
    log_weight: Array  # [capacity], when they were put in; -inf where nothing is yet
    num_added: Array  # [] int, points ever added


def init(capacity: int, dim: int) -> ReplayBuffer:
    """An empty buffer."""
    log_weight = jnp.full(capacity, -jnp.inf)
    return ReplayBuffer(jnp.zeros((capacity, dim)), log_weight, jnp.zeros((), jnp.int32))


def add(buffer: ReplayBuffer, position: Array, log_weight: Array) -> ReplayBuffer:
    """The buffer with n points, at most its capacity, in place of the oldest.

    Those without a finite weight are never drawn.
    """
    capacity = buffer.position.shape[0]
    slots = (buffer.num_added + jnp.arange(position.shape[0])) % capacity
    good = jnp.isfinite(log_weight) & jnp.isfinite(position).all(axis=1)
    return ReplayBuffer(
        buffer.position.at[slots].set(jnp.where(good[:, None], position, 0.0)),
        buffer.log_weight.at[slots].set(jnp.where(good, log_weight, -jnp.inf)),
        buffer.num_added + position.shape[0],
    )


def draw(
    rng_key: PRNGKey, buffer: ReplayBuffer, num_samples: int, rank_offset: float = 0.01
) -> Array:
    """Points ``[num_samples, dim]`` drawn with replacement, by the rank of their weight.

    With probability 1 / (rank_offset · capacity + rank), the heaviest first (Tripp et al., 2020);
    ranks, since weights early in training span hundreds of nats.
    """
    capacity = buffer.log_weight.shape[0]
    order, rank = jnp.argsort(-buffer.log_weight), jnp.arange(capacity)
    # Slots without a weight are the last ones.
    filled = rank < jnp.sum(~jnp.isneginf(buffer.log_weight))
    share = jnp.where(filled, 1.0 / (rank_offset * capacity + rank), 0.0)
    # One uniform number a draw, where a categorical one takes as many as there are slots.
    return buffer.position[order[jax.random.choice(rng_key, rank, (num_samples,), p=share)]]
