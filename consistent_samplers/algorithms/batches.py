"""What an iteration simulates: latent points, and paths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.bases import Component
from consistent_samplers.maps import Control
from consistent_samplers.sharding import shard_batch
from consistent_samplers.types import Array, GradientFn, Params, PRNGKey


def antithetic_draws(
    rng_key: PRNGKey, batch_size: int, dim: int, *, wider: Array, tail_share: float
) -> tuple[Array, Array]:
    """Latent points ``[batch_size, dim]`` in pairs z and -z, and which are the base's own draws.

    The others, a part ``tail_share`` of them, are ``wider`` times the base's: for its tails.
    """
    half = jax.random.normal(rng_key, ((batch_size + 1) // 2, dim))
    own = jnp.arange(len(half)) >= round(tail_share * len(half))
    half = jnp.where(own[:, None], half, wider * half)
    points = shard_batch(jnp.concatenate([half, -half])[:batch_size])
    return points, jnp.concatenate([own, own])[:batch_size]


class PathBatch(NamedTuple):
    """Paths simulated for one iteration; no gradient."""

    position: Array  # [batch_size, most_steps + 1, dim]: the first num_steps + 1 are the path
    log_weight: Array  # [batch_size], of ρ whatever the training target, but for stretches
    component: Component  # of the base, in whose frame each path runs
    num_steps: Array  # []


def batch_elbo(log_weight: Array, own: Array | bool = True) -> Array:
    """A lower bound of log Z from the log weights ``[n]`` of a batch: ``[]``, without a gradient.

    The mean log weight of the draws that have a density, plus the log of their share: Z is that
    share times their mean weight. It is the ELBO where all have one, and -inf where none has.

    Args:
      log_weight: ``[n]``; -inf or NaN where the density is zero.
      own: ``[n]``, which draws count.
    """
    log_weight = jax.lax.stop_gradient(log_weight)
    counted = jnp.broadcast_to(own, log_weight.shape)
    inside = counted & jnp.isfinite(log_weight)
    mean = jnp.where(inside, log_weight, 0.0).sum() / jnp.maximum(inside.sum(), 1)
    return mean + jnp.log(inside.sum() / jnp.maximum(counted.sum(), 1))


def simulated_paths(
    control: Control,
    params: Params,
    rng_key: PRNGKey,
    num_steps: int,
    *,
    batch_size: int,
    most_steps: int,
    gradient: GradientFn | None,
    still: bool,
) -> tuple[Array, Array, Component]:
    """Paths ``[n, most_steps + 1, dim]``, their summed log ratios ``[n]``, and their frames.

    Args:
      control: what is simulated.
      params: its parameters.
      rng_key: PRNG key.
      num_steps: of each path.
      batch_size: paths.
      most_steps: steps that there is room for.
      gradient: of the target, for a guided control.
      still: whether the log ratios' own dependence on the parameters has no gradient.
    """
    key_base, key_path = jax.random.split(rng_key)
    x0 = shard_batch(jax.random.normal(key_base, (batch_size, control.dim)))
    keys = jax.random.split(key_path, batch_size)
    component = control.draw_components(jax.random.fold_in(key_base, 1), batch_size)

    def one(key: PRNGKey, x: Array, component: Component) -> tuple[Array, Array]:
        kernels, weighing = control.kernels(params, component, gradient), None
        if still:
            held = control.kernels(jax.lax.stop_gradient(params), component, gradient)
            weighing = kernels._replace(forward=held.forward)
        moved = simulate.simulate_path(key, x, kernels, num_steps, density_kernels=weighing)
        return moved[0], moved[1].sum()

    position, log_ratio = jax.vmap(one)(keys, x0, component)
    room = most_steps - num_steps
    return jnp.pad(position, ((0, 0), (0, room), (0, 0))), log_ratio, component


def paths_back(
    control: Control,
    params: Params,
    rng_key: PRNGKey,
    num_steps: int,
    ends: Array,
    *,
    most_steps: int,
    gradient: GradientFn | None,
) -> Array:
    """Paths ``[n, most_steps + 1, dim]`` to end points ``[n, dim]``, simulated backwards."""
    kernels = control.kernels(params, (), gradient)
    keys = jax.random.split(rng_key, ends.shape[0])
    back = jax.vmap(lambda k, x: simulate.backward_path(k, x, kernels, num_steps))(keys, ends)
    return jnp.pad(back, ((0, 0), (0, most_steps - num_steps), (0, 0)))
