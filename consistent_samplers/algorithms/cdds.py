"""CDDS: consistency distillation of a trained diffusion sampler (Jutras-Dubé et al., 2025).

"Single-Step Consistent Diffusion Samplers", arXiv:2502.07579. The student maps a point of the
teacher's probability flow to where the flow ends,

    f(x, t) = c_skip(τ) x + c_out(τ) F(x, t),        τ = 1 - t the time that remains,

with f(x, 1) = x. Neighbouring points of one teacher path must end alike: with 18 points a path,

    loss = ‖ stop_grad f(x_{n+1}, t_{n+1}) - f(x_n, t_n) ‖².

The teacher runs only as far as point n + 1, afresh every iteration: paths stay incomplete, and no
data set is stored. F starts as the teacher's network. A draw is one evaluation of f, or several
with noise put back in between (denoise, renoise): see `maps.Denoiser`.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import schedules, simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor, build
from consistent_samplers.algorithms.consistency import check_teacher, one_step_elbo
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective, SamplerState
from consistent_samplers.checks import check_choice, check_integer
from consistent_samplers.maps import Denoiser, DenoisingProcess
from consistent_samplers.sharding import shard_batch
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Method, Params, PRNGKey


class CDDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array  # mean squared distance between the ends of neighbouring points
    elbo: Array  # exact, of a few one-step draws; NaN above 64 dimensions
    time: Array  # t of the earlier point
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class CDDS(Objective):
    """Settings of CDDS, beside those of `Objective`.

    Attributes:
      teacher_steps: fine steps of the teacher's path; its ``max_steps`` if None.
      teacher_params: the teacher's moving average or its last parameters.
      teacher_paths: where the points lie: on the teacher's probability flow, or on its stochastic
        paths, from each of which the flow leads to the neighbour.
      num_points: points of a path, both ends included.
      target_network: which parameters give the aim f(x_{n+1}): the student's own, or their moving
        average.
      skip: scalings of the student, see `maps.DenoisingProcess`.
      max_steps: most steps of denoising and renoising, a power of two.
    """

    max_steps: int = 16
    batch_size: int = 256
    teacher_steps: Any = None
    teacher_params: Literal["ema", "last"] = "ema"
    teacher_paths: Literal["flow", "stochastic"] = "flow"
    num_points: int = 18
    target_network: Literal["student", "ema"] = "student"
    skip: Literal["flow", "paper"] = "flow"

    name: ClassVar[str] = "cdds"
    methods: ClassVar[tuple[Method, ...]] = ("map",)

    def __post_init__(self) -> None:
        check_choice("teacher_params", self.teacher_params, ("ema", "last"))
        check_choice("teacher_paths", self.teacher_paths, ("flow", "stochastic"))
        check_choice("target_network", self.target_network, ("student", "ema"))
        check_choice("skip", self.skip, ("flow", "paper"))

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The squared distance between where two neighbours of a teacher path end."""
        key_base, key_index, key_path = jax.random.split(now.rng_key, 3)
        control, num_steps = now.control, self.teacher_steps
        assert isinstance(control, Denoiser) and num_steps is not None
        # Teacher steps at which the points lie: as evenly as they divide.
        point = jnp.round(jnp.linspace(0, num_steps, self.num_points)).astype(jnp.int32)
        x0 = shard_batch(jax.random.normal(key_base, (self.batch_size, control.dim)))
        keys = jax.random.split(key_path, self.batch_size)
        # One index for the whole batch: the loop over teacher steps ends where it ends.
        index = jax.random.randint(key_index, (), 0, self.num_points - 1)
        begin, end = point[index], point[index + 1]
        x, x_next = jax.vmap(lambda k, x: self._neighbours(now, k, x, begin, end))(keys, x0)
        aim = params if self.target_network == "student" else now.state.ema_params

        def ends(params: Params, x: Array, t: Array) -> Array:
            return jax.vmap(lambda x: control.denoise(params, x, t, now.gradient))(x)

        aims = jax.lax.stop_gradient(ends(aim, x_next, end / num_steps))
        reached = ends(params, x, begin / num_steps)
        loss = jnp.sum((reached - aims) ** 2, axis=-1).mean()
        elbo = one_step_elbo(now, params, x0, evaluate)
        return Loss((loss,), CDDSInfo(loss, elbo, begin / num_steps, loss))

    def _neighbours(
        self, now: Now, rng_key: PRNGKey, x0: Array, begin: Array, end: Array
    ) -> tuple[Array, Array]:
        """A teacher path's points after ``begin`` and ``end`` fine steps: ``[dim]`` each."""
        teacher, frozen = now.extra
        u = teacher.bind(frozen, (), now.gradient)
        kernels = teacher.kernels(frozen, (), now.gradient)
        num_steps, fine = self.teacher_steps, jnp.asarray(1.0 / self.teacher_steps)

        def flow(k: Array, x: Array) -> Array:
            return simulate.flow_step(u, teacher.process, x, k / num_steps, fine)

        def noisy(k: Array, x: Array) -> Array:
            kernel = kernels.forward(x, k / num_steps, fine)
            return kernel.sample(jax.random.fold_in(rng_key, k))

        advance = flow if self.teacher_paths == "flow" else noisy
        x = jax.lax.fori_loop(0, begin, advance, x0)
        return x, jax.lax.fori_loop(begin, end, flow, x)


def _cdds(
    target: Target,
    *,
    teacher: Algorithm,
    teacher_state: SamplerState,
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """The algorithm of consistency distillation of a diffusion sampler, with defaults of ours.

    With one step its weights are those of the map f(·, 0); with more, of the chain of renoising
    kernels and the last map.

    Args:
      target: what to sample; the teacher's target.
      teacher: any algorithm with a probability flow; the student takes its base and its network.
      teacher_state: its trained state.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `CDDS`.

    Raises:
      TypeError: no such setting.
      ValueError: target and teacher differ, the teacher has no flow to distil, or a setting is
        out of range.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.gmm9(), cs.bases.standard_normal(2, scale=5.0)
      >>> teacher = cs.dis(target, base=base, max_steps=4, hidden=(8,))
      >>> taught = {"teacher": teacher, "teacher_state": teacher.init(jax.random.key(0))}
      >>> student = cs.cdds(target, **taught, num_points=3, max_steps=2)
      >>> student.max_steps, student.methods
      (2, ('map',))
    """
    objective = CDDS(**settings)
    check_teacher(target, teacher)
    own_steps = objective.teacher_steps is None
    num_steps = teacher.max_steps if own_steps else objective.teacher_steps
    schedules.check_num_steps(num_steps, teacher.max_steps, "teacher_steps")
    check_integer("num_points", objective.num_points)
    if not 2 <= objective.num_points <= num_steps + 1:
        raise ValueError(
            f"num_points must be 2 to {num_steps + 1} for {num_steps} teacher steps, got "
            f"{objective.num_points}."
        )
    objective = dataclasses.replace(objective, teacher_steps=num_steps)
    last = objective.teacher_params == "last"
    own, frozen = teacher.control, teacher_state.params if last else teacher_state.ema_params
    # As the teacher was used: F starts as its control, and the size of the jump is in t.
    process, size = DenoisingProcess(own.process.schedule, skip=objective.skip), 1.0 / num_steps
    student = Denoiser(own.base, own.network, process, 1, own.guidance, own.gate, shown_step=size)
    built = build(target, objective, control=student, optimizer=optimizer, extra=(own, frozen))
    start = {name: frozen[name] for name in ("control", "gate") if name in frozen}
    return dataclasses.replace(built, start=start)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The paper's skip scalings, 18 points a path; its teacher is DIS (``cs.dis.paper``)."""
    return {"skip": "paper", "num_points": 18, "batch_size": 512}


cdds = Constructor(_cdds, CDDS, _paper)
