"""Progressive distillation by halving (Salimans & Ho, 2022), for comparison with CDDS.

"Progressive distillation for fast sampling of diffusion models", arXiv:2202.00512. In rounds: the
student's step of size d learns to land where two steps of d/2 of the last round's student land,

    loss = ‖ Φ_{d/2}(Φ_{d/2}(x)) - Φ_d(x) ‖² / d²;

the first round's teacher is a trained sampler. After log2 N rounds one step does it all. Unlike
self-consistency, a round's teacher stays as it is; unlike CDDS, errors add up over the rounds.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import losses, simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import build
from consistent_samplers.algorithms.consistency import check_teacher, one_step_elbo
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective, SamplerState
from consistent_samplers.checks import check_integer
from consistent_samplers.maps import Control
from consistent_samplers.sharding import shard_batch
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, ArrayTree, Method, Params


class ProgressiveInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array  # mean squared distance between one step and two of the teacher
    # Exact, of a few draws in one step, which only the last round aims at; NaN above 64 dimensions.
    elbo: Array
    step_size: Array  # d of this round
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(Objective):
    """Settings of progressive distillation, beside those of `Objective`.

    Attributes:
      iterations_per_round: iterations until the step size doubles; log2 N rounds reach one step.
    """

    batch_size: int = 256
    iterations_per_round: int = 300

    name: ClassVar[str] = "progressive"
    methods: ClassVar[tuple[Method, ...]] = ("map", "path")

    def __post_init__(self) -> None:
        check_integer("iterations_per_round", self.iterations_per_round)

    def init_memory(self, control: Control, params: Params) -> ArrayTree:
        """The parameters that teach this round."""
        return params

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The squared distance between one step and two of the teacher's, by the step's length."""
        key_base, key_start = jax.random.split(now.rng_key)
        control, state, num_rounds = now.control, now.state, self.max_steps.bit_length() - 1
        finished = state.iteration // self.iterations_per_round
        level = jnp.minimum(finished, num_rounds - 1)
        new_round = (state.iteration % self.iterations_per_round == 0) & (finished < num_rounds)
        teaching = jax.tree.map(
            lambda new, old: jnp.where(new_round, new, old), state.ema_params, state.memory
        )
        d = 2.0 ** (level + 1) / self.max_steps
        # Points where the teacher's own steps lead, at a multiple of the student's.
        start = jax.random.randint(key_start, (), 0, self.max_steps // 2 ** (level + 1))
        x0 = shard_batch(jax.random.normal(key_base, (self.batch_size, control.dim)))
        process, student, teacher = control.process, now.bind(params), now.bind(teaching)

        def half_step(k: Array, x: Array) -> Array:
            return simulate.flow_step(teacher, process, x, 0.5 * k * d, 0.5 * d)

        def gap(x: Array) -> Array:
            t = start * d
            pair = losses.step_pair(student, teacher, process, x, t, d, with_jacobians=False)
            # By the length of the step: otherwise short steps hardly count.
            return losses.state_consistency(pair) / d**2

        carried = jax.vmap(lambda x: jax.lax.fori_loop(0, 2 * start, half_step, x))(x0)
        x = jax.lax.stop_gradient(carried)
        loss = jax.vmap(gap)(x).mean()
        elbo = one_step_elbo(now, params, x0, evaluate)
        return Loss((loss,), ProgressiveInfo(loss, elbo, d, loss), teaching)


def progressive_distillation(
    target: Target,
    *,
    teacher: Algorithm,
    teacher_state: SamplerState,
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """The algorithm that halves a trained sampler's steps, round by round.

    The student of all rounds is one step-conditioned network, which starts as the teacher's.

    Args:
      target: what to sample; the teacher's target.
      teacher: any algorithm with a probability flow of several steps.
      teacher_state: its trained state.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `Progressive`.

    Raises:
      ValueError: target and teacher differ, the teacher has no flow to distil, or a setting is out
        of range.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> teacher = cs.dis(target, base=base, max_steps=4, hidden=(8,))
      >>> taught = {"teacher": teacher, "teacher_state": teacher.init(jax.random.key(0))}
      >>> student = cs.progressive_distillation(target, **taught, iterations_per_round=100)
      >>> student.max_steps, student.methods
      (4, ('map', 'path'))
    """
    check_teacher(target, teacher)
    objective = Progressive(max_steps=teacher.control.max_flow_steps, **settings)
    # Steps of all sizes to learn, also from a teacher whose network knows the finest only: that is
    # what the first round's teacher takes.
    control = dataclasses.replace(teacher.control, shown_step=None)
    built = build(target, objective, control=control, optimizer=optimizer)
    return dataclasses.replace(built, start=teacher_state.ema_params)
