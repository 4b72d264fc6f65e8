"""What distillation shares: where consistency is asked for, and how a single step fares."""

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms.protocol import Evaluate, Now
from consistent_samplers.sharding import shard_batch
from consistent_samplers.types import Array, Params, PRNGKey

_NUM_ELBO_SAMPLES = 16
_MAX_ELBO_DIM = 64


def draw_steps(
    rng_key: PRNGKey, paths: Array, num_steps: Array | int, max_level: Array | int
) -> tuple[Array, Array, Array]:
    """Draws one big step for each path: of size d = 2^k / N, from the path's point at time t.

    k is uniform in 1 .. ``max_level`` and t uniform on the multiples of d in [0, 1).

    Args:
      rng_key: key.
      paths: ``[num, num_points, dim]``, of which the first N + 1 points are the path.
      num_steps: N, a power of two.
      max_level: largest k.

    Returns:
      x ``[num, dim]``, t ``[num]`` and d ``[num]``.
    """
    num = paths.shape[0]
    key_level, key_time = jax.random.split(rng_key)
    stride = 2 ** jax.random.randint(key_level, (num,), 1, max_level + 1)
    num_starts = jnp.maximum(num_steps // stride, 1)
    start = jnp.floor(jax.random.uniform(key_time, (num,)) * num_starts).astype(jnp.int32)
    # A uniform draw may round up to 1 in float32.
    index = stride * jnp.minimum(start, num_starts - 1)
    return shard_batch((paths[jnp.arange(num), index], index / num_steps, stride / num_steps))


def one_step_elbo(now: Now, params: Params, x0: Array, evaluate: Evaluate) -> Array:
    """Exact ELBO of the one-step map on a few base draws, for progress: ``[]``; no gradient.

    NaN above 64 dimensions, where it would cost more than the iteration it reports on.

    Args:
      now: what is known of the iteration; its base has one frame.
      params: parameters of the control.
      x0: ``[num, dim]``; the first 16 are used.
      evaluate: log densities.
    """
    if x0.shape[1] > _MAX_ELBO_DIM:
        return jnp.full((), jnp.nan)
    control = now.control
    u = control.bind(jax.lax.stop_gradient(params), (), now.gradient)

    def one(x: Array) -> tuple[Array, Array]:
        path = simulate.flow_path(u, control.process, x, 1)
        log_ratio = path.log_abs_det.sum() - simulate.standard_normal_log_prob(x)
        place = control.base.unwhiten(path.position[-1], ())
        return place, log_ratio + control.base.log_correction(place, ())

    place, log_ratio = jax.vmap(one)(x0[:_NUM_ELBO_SAMPLES])
    return jax.lax.stop_gradient(evaluate(place) + log_ratio).mean()
