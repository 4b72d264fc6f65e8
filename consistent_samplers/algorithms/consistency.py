"""What distillation shares: where consistency is asked for, and how a single step fares."""

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms.control import Control
from consistent_samplers.sharding import shard_batch
from consistent_samplers.types import Array, Params, PRNGKey

_NUM_ELBO_SAMPLES = 16
_MAX_ELBO_DIM = 64


def draw_steps(
    rng_key: PRNGKey, paths: Array, max_level: Array | int
) -> tuple[Array, Array, Array]:
    """Draws one big step for each path: of size d = 2^k / N, from the path's point at time t.

    k is uniform in 1 .. ``max_level`` and t uniform on the multiples of d in [0, 1).

    Args:
      rng_key: key.
      paths: ``[num, N + 1, dim]``, N a power of two.
      max_level: largest k.

    Returns:
      x ``[num, dim]``, t ``[num]`` and d ``[num]``.
    """
    num, num_steps = paths.shape[0], paths.shape[1] - 1
    key_level, key_time = jax.random.split(rng_key)
    stride = 2 ** jax.random.randint(key_level, (num,), 1, max_level + 1)
    num_starts = num_steps // stride
    start = jnp.floor(jax.random.uniform(key_time, (num,)) * num_starts).astype(jnp.int32)
    # A uniform draw may round up to 1 in float32.
    index = stride * jnp.minimum(start, num_starts - 1)
    return shard_batch((paths[jnp.arange(num), index], index / num_steps, stride / num_steps))


def one_step_elbo(control: Control, params: Params, x0: Array) -> Array:
    """Exact ELBO of the one-step map on a few base draws, for progress: ``[]``.

    NaN above 64 dimensions, where it would cost more than the iteration it reports on.

    Args:
      control: the control.
      params: its parameters.
      x0: ``[num, dim]``; the first 16 are used.
    """
    if x0.shape[1] > _MAX_ELBO_DIM:
        return jnp.full((), jnp.nan)
    u = control.bind(params)

    def log_weight(x: Array) -> Array:
        return simulate.flow_log_weight(
            simulate.flow_path(u, control.process, x, 1), control.log_density
        )

    return jax.vmap(log_weight)(x0[:_NUM_ELBO_SAMPLES]).mean()
