"""Draws with the number of density evaluations that they took."""

from typing import NamedTuple

from consistent_samplers.types import Draws


class CountedDraws(NamedTuple):
    """Draws of a sampler that trains nothing, and what they cost.

    Attributes:
      draws: ``position [num_samples, dim]``, with weights where the sampler has any.
      num_evaluations: log densities evaluated for all draws together; one with its gradient counts
        once.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> counted = cs.training_free.CountedDraws(cs.Draws(jnp.zeros((4, 1))), num_evaluations=80)
      >>> counted.num_evaluations / len(counted.draws.position)
      20.0
    """

    draws: Draws
    num_evaluations: int
