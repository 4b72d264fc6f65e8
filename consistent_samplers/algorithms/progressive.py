"""Progressive distillation by halving (Salimans & Ho, 2022), for comparison with CDDS.

"Progressive distillation for fast sampling of diffusion models", arXiv:2202.00512. In rounds: the
student's step of size d learns to land where two steps of d/2 of the last round's student land;
the first round's teacher is a trained sampler. After log2 N rounds one step does it all. Unlike
self-consistency, a round's teacher stays as it is; unlike CDDS, errors add up over the rounds.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import losses, simulate
from consistent_samplers.algorithms.base import (
    Algorithm,
    SamplerState,
    apply_gradients,
    check_one_frame,
    init_and_restart,
)
from consistent_samplers.algorithms.consistency import one_step_elbo
from consistent_samplers.algorithms.sampling import build_sample
from consistent_samplers.sharding import shard_batch
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Bound, Params, PRNGKey

_BOUNDS: tuple[Bound, ...] = ("lower-if-injective", "lower")


class ProgressiveInfo(NamedTuple):
    """What one training iteration reports, all ``[]``.

    Attributes:
      loss: mean squared distance between one step and two of the teacher.
      elbo: exact ELBO of a few draws in one step, which only the last round aims at; NaN above
        64 dimensions.
      step_size: d of this round.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    step_size: Array
    gradient_norm: Array


def progressive_distillation(
    target: Target,
    *,
    teacher: Algorithm,
    teacher_state: SamplerState,
    iterations_per_round: int = 300,
    batch_size: int = 256,
    learning_rate: float | optax.Schedule = 1e-3,
    ema_decay: float = 0.99,
    gradient_clip: float = 1.0,
) -> Algorithm:
    """Halves a trained sampler's steps, round by round.

    The student of all rounds is one step-conditioned network, which starts as the teacher's.

    Args:
      target: what to sample; the teacher's target.
      teacher: any algorithm with a probability flow of several steps.
      teacher_state: its trained state.
      iterations_per_round: iterations until the step size doubles; log2 N rounds reach one step.
      batch_size: points of one iteration.
      learning_rate: Adam's.
      ema_decay: of the parameters that sample, and that teach the next round.
      gradient_clip: on the global norm.

    Raises:
      ValueError: target and teacher differ, or the teacher has no flow to distil.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.targets.funnel(2)
      >>> teacher = cs.dis(target, max_steps=4, hidden=(8,))
      >>> teacher_state = teacher.init(jax.random.key(0))  # train it: cs.fit
      >>> student = cs.progressive_distillation(
      ...     target, teacher=teacher, teacher_state=teacher_state
      ... )
      >>> state = student.init(jax.random.key(1))
      >>> _, info = jax.eval_shape(student.step, jax.random.key(2), state)
      >>> info._fields
      ('loss', 'elbo', 'step_size', 'gradient_norm')
    """
    if target.dim != teacher.target.dim:
        raise ValueError(
            f"The teacher samples {teacher.target.dim} dimensions, but the target has "
            f"{target.dim}. Distil a teacher of this target."
        )
    max_steps = teacher.control.max_flow_steps
    if max_steps < 2:
        raise ValueError(
            f"The teacher {teacher.name!r} has no probability flow of several steps to distil. "
            "Take one of cs.dis, cs.dds, cs.pis, cs.scds or cs.osds."
        )
    check_one_frame(teacher)
    # Steps of all sizes to learn, also from a teacher whose network knows the finest only: that is
    # what the first round's teacher takes.
    control = dataclasses.replace(teacher.control, shown_step=None)
    process = control.process
    num_rounds = max_steps.bit_length() - 1
    optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optax.adam(learning_rate))
    # The memory holds the parameters that teach this round.
    init, restart = init_and_restart(
        lambda _: teacher_state.ema_params, optimizer, lambda params: params
    )

    def carry(u: simulate.ControlFn, x: Array, num_steps: Array, d: Array) -> Array:
        """The flow's point after some steps of size d."""
        return jax.lax.fori_loop(
            0, num_steps, lambda k, x: simulate.flow_step(u, process, x, k * d, d), x
        )

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, ProgressiveInfo]:
        key_base, key_start = jax.random.split(rng_key)
        level = jnp.minimum(state.iteration // iterations_per_round, num_rounds - 1)
        new_round = (state.iteration % iterations_per_round == 0) & (
            state.iteration // iterations_per_round < num_rounds
        )
        teacher_params = jax.tree.map(
            lambda new, old: jnp.where(new_round, new, old), state.ema_params, state.memory
        )
        d = 2.0 ** (level + 1) / max_steps
        # Points where the teacher's own steps lead, at a multiple of the student's.
        start = jax.random.randint(key_start, (), 0, max_steps // 2 ** (level + 1))
        x0 = shard_batch(jax.random.normal(key_base, (batch_size, target.dim)))
        u_teacher = control.bind(teacher_params)
        x = jax.vmap(lambda x: carry(u_teacher, x, 2 * start, 0.5 * d))(x0)
        t = start * d

        def objective(params: Params) -> Array:
            u = control.bind(params)

            def one(x: Array) -> Array:
                pair = losses.step_pair(u, u_teacher, process, x, t, d, with_jacobians=False)
                # By the length of the step: otherwise short steps hardly count.
                return losses.state_consistency(pair) / d**2

            return jax.vmap(one)(x).mean()

        loss, grads = jax.value_and_grad(objective)(state.params)
        elbo = one_step_elbo(control, state.params, x0)
        info = ProgressiveInfo(loss, elbo, d, optax.tree.norm(grads))
        new_state = apply_gradients(optimizer, state, grads, ema_decay)
        return new_state._replace(memory=teacher_params), info

    sample, reverse, per_draw = build_sample(teacher.base, control, max_steps, _BOUNDS, 1)
    return dataclasses.replace(
        teacher,
        name="progressive",
        target=target,
        control=control,
        max_steps=max_steps,
        init=init,
        restart=restart,
        step=step,
        sample=sample,
        reverse_log_weight=reverse,
        bounds=_BOUNDS,
        per_draw=per_draw,
    )
