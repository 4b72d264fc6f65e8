"""A sampler's target as seen from its base: p0(z) w(z), which is flat in w where it is good."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.bases import Base, Component
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target, evaluation, rounding
from consistent_samplers.types import Array


class LatentPoint(NamedTuple):
    """What a point of the latent space stands for."""

    position: Array  # [dim], where the map takes it
    log_weight: Array  # exact log ρ(T(z)) - log p0(z) + log |det ∂T|; -inf in place of NaN
    log_density: Array
    folded: Array  # whether a step's determinant is not positive


WeighFn: TypeAlias = Callable[[Array, Component], LatentPoint]


def warn_of_rounding(base: Base, target: Target) -> None:
    """Warns where chains would move on the noise of single precision, which they cannot mend."""
    points = base.sample(jax.random.key(0), 64)
    rounding.constant(target.log_density, points, evaluation.values(target.log_density, points))


def weigh_latent(sampler: Sampler, target: Target, num_steps: int = 1) -> WeighFn:
    """A sampler's deterministic map and its exact weight, of latent point and component.

    With z and component drawn together, ``p0(z) w(z)`` is the density of the target there.
    """
    base, control, params = sampler.base, sampler.control, sampler.params

    def weigh(z: Array, component: Component) -> LatentPoint:
        gradient = jax.grad(target.log_density) if control.guided else None
        z1, log_abs_det, folded = control.carry(params, z, component, num_steps, gradient)
        x = base.unwhiten(z1, component)
        log_rho = target.log_density(x)
        log_weight = log_rho + base.log_correction(x, component) + log_abs_det
        log_weight -= simulate.standard_normal_log_prob(z)
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        return LatentPoint(x, log_weight, log_rho, folded)

    return weigh
