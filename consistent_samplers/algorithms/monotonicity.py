"""A penalty that keeps a map injective: what its steps' Jacobians lack of positive definiteness."""

import functools

import jax
import jax.numpy as jnp

from consistent_samplers import losses, simulate
from consistent_samplers.algorithms.protocol import Now
from consistent_samplers.bases import Component
from consistent_samplers.log_det import Jacobian
from consistent_samplers.schedules import time_grid
from consistent_samplers.sharding import shard_batch
from consistent_samplers.types import Array, Params, PRNGKey


def shortfall_of_monotonicity(
    params: Params,
    now: Now,
    rng_key: PRNGKey,
    x0: Array,
    component: Component,
    *,
    num_steps: int,
    wide_scale: float,
    margin: float,
) -> Array:
    """Mean shortfall ``[]`` of the steps' smallest eigenvalues, at base draws and wider ones.

    Args:
      params: of the control.
      now: the iteration's control and gradient.
      rng_key: PRNG key of the directions that are tried.
      x0: ``[n, dim]``, base draws.
      component: of each of them.
      num_steps: of the map.
      wide_scale: the wider ones are the base draws times this.
      margin: smallest eigenvalue asked for of a Jacobian's symmetric part.
    """
    process = now.control.process
    held = shard_batch(jnp.concatenate([x0, wide_scale * x0]))
    probe = jax.random.normal(rng_key, held.shape)
    twice = jax.tree.map(lambda c: jnp.concatenate([c, c]), component)
    still, size = jax.lax.stop_gradient(params), jnp.asarray(1.0 / num_steps)

    def one(x0: Array, probe: Array, component: Component) -> Array:
        u, moving = now.bind(still, component), now.bind(params, component)
        position, jacobians = simulate.flow_jacobians(u, process, x0, num_steps)

        def shortfall(x: Array, t: Array, jacobian: Jacobian) -> Array:
            step = functools.partial(simulate.flow_step, moving, process, t=t, d=size)
            v = losses.least_direction(jacobian, probe)
            _, product = jax.jvp(step, (x,), (v,))
            return losses.shortfall(v, product, margin)

        return jax.vmap(shortfall)(position[:-1], time_grid(num_steps), jacobians).sum()

    return jax.vmap(one)(held, probe, twice).mean()
