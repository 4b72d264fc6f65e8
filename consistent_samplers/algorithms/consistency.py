"""What distillation shares: its teacher, where it is asked for, how a single step fares."""

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.batches import PathBatch, batch_elbo
from consistent_samplers.algorithms.protocol import Evaluate, Now
from consistent_samplers.bases import Component
from consistent_samplers.bases.base import one_frame
from consistent_samplers.sharding import shard_batch
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Params, PRNGKey

_NUM_ELBO_SAMPLES = 16
_MAX_ELBO_DIM = 64


def draw_steps(
    rng_key: PRNGKey, paths: PathBatch, num: int, max_level: Array | int
) -> tuple[Component, Array, Array, Array]:
    """One big step on each of the first ``num`` paths: its frame, x ``[num, dim]``, t and d.

    Of size d = 2^k / N, from the path's point at time t; k is uniform in 1 .. ``max_level`` and t
    on the multiples of d in [0, 1).
    """
    position, num_steps = paths.position[:num], paths.num_steps
    num = position.shape[0]
    key_level, key_time = jax.random.split(rng_key)
    stride = 2 ** jax.random.randint(key_level, (num,), 1, max_level + 1)
    num_starts = jnp.maximum(num_steps // stride, 1)
    start = jnp.floor(jax.random.uniform(key_time, (num,)) * num_starts).astype(jnp.int32)
    # A uniform draw may round up to 1 in float32.
    index = stride * jnp.minimum(start, num_starts - 1)
    steps = (position[jnp.arange(num), index], index / num_steps, stride / num_steps)
    return jax.tree.map(lambda c: c[:num], paths.component), *shard_batch(steps)


def one_step_elbo(now: Now, params: Params, x0: Array, evaluate: Evaluate) -> Array:
    """Exact ELBO ``[]`` of the one-step map on a few of the base draws x0, for progress.

    NaN above 64 dimensions, where it would cost more than the iteration it reports on.
    """
    if x0.shape[1] > _MAX_ELBO_DIM:
        return jnp.full((), jnp.nan)
    control, u = now.control, now.bind(jax.lax.stop_gradient(params))

    def one(x0: Array) -> tuple[Array, Array]:
        path = simulate.flow_path(u, control.process, x0, 1)
        log_ratio = path.log_abs_det.sum() - simulate.standard_normal_log_prob(x0)
        x, correction = control.place(path.position[-1])
        return x, log_ratio + correction

    x, log_ratio = jax.vmap(one)(x0[:_NUM_ELBO_SAMPLES])
    return batch_elbo(evaluate(x) + log_ratio)


def check_teacher(target: Target, teacher: Algorithm) -> None:
    """Raises unless a teacher has a probability flow of several steps to the target."""
    if target.dim != teacher.target.dim:
        raise ValueError(
            f"The teacher samples {teacher.target.name!r} in {teacher.target.dim} dimensions, but "
            f"the target {target.name!r} has {target.dim}. Distil a teacher of this target."
        )
    if teacher.control.max_flow_steps < 2:
        raise ValueError(
            f"The teacher {teacher.name!r} has no probability flow of several steps to distil. "
            "Take one of cs.dis, cs.dds, cs.pis, cs.scds or cs.osds."
        )
    if not one_frame(teacher.base):
        raise ValueError(
            f"The teacher {teacher.name!r} starts from a base of several components, which "
            "distillation of a teacher does not follow. Train the teacher on a Gaussian base, or "
            "use cs.osds or cs.scds, which distil themselves on any base."
        )
