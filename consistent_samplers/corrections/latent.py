"""A sampler's target as seen from its base: p0(z) w(z), which is flat in w where it is good."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Component
from consistent_samplers.types import Array


class LatentPoint(NamedTuple):
    """What a point of the latent space stands for.

    Attributes:
      position: ``[dim]``, where the map takes it.
      log_weight: ``[]``, exact log ρ(T(z)) - log p0(z) + log |det ∂T|; -inf in place of NaN.
      log_density: ``[]``, log ρ there.
      folded: ``[]`` bool, whether a step's determinant is not positive.
    """

    position: Array
    log_weight: Array
    log_density: Array
    folded: Array


WeighFn: TypeAlias = Callable[[Array, Component], LatentPoint]


def weigh_latent(algorithm: Algorithm, state: SamplerState, num_steps: int = 1) -> WeighFn:
    """The map of a sampler and its exact weight, as a function of latent point and component.

    Args:
      algorithm: a trained sampler with a deterministic map.
      state: its state.
      num_steps: steps of the map.

    Returns:
      ``(z [dim], component) -> LatentPoint``, pure and differentiable. With z and component drawn
      together, ``p0(z) w(z)`` is the density of the target there.
    """
    base = algorithm.base

    def weigh(z: Array, component: Component) -> LatentPoint:
        here = algorithm.control.at(component)
        path = simulate.flow_path(here.bind(state.ema_params), here.process, z, num_steps)
        log_weight = simulate.flow_log_weight(path, here.log_density)
        z1 = path.position[-1]
        x = base.unwhiten(z1, component)
        log_rho = here.log_density(z1) - base.log_correction(x, component)
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        return LatentPoint(x, log_weight, log_rho, jnp.any(path.sign <= 0))

    return weigh
