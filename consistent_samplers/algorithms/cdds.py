"""CDDS: consistency distillation of a trained diffusion sampler (Jutras-Dubé et al., 2025).

"Single-Step Consistent Diffusion Samplers", arXiv:2502.07579. The student maps a point of the
teacher's probability flow to where the flow ends,

    f(x, t) = c_skip(τ) x + c_out(τ) F(x, t),        τ = 1 - t the time that remains,

with f(x, 1) = x. Neighbouring points of one teacher path must end alike: with 18 points a path,

    loss = ‖ stop_grad f(x_{n+1}, t_{n+1}) - f(x_n, t_n) ‖².

The teacher runs only as far as point n + 1, afresh every iteration: paths stay incomplete, and no
data set is stored. F starts as the teacher's network. A draw is one evaluation of f, or several
with noise put back in between (denoise, renoise).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import log_det, schedules, simulate
from consistent_samplers.algorithms.base import (
    Algorithm,
    PerDraw,
    ReverseFn,
    SampleFn,
    SamplerState,
    WithPaperPreset,
    apply_gradients,
    check_choice,
    check_one_frame,
    init_and_restart,
)
from consistent_samplers.algorithms.consistency import one_step_elbo
from consistent_samplers.algorithms.control import Control
from consistent_samplers.algorithms.sampling import MAX_INVERSION_ERROR, batched
from consistent_samplers.bases import Base
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.schedules import time_grid
from consistent_samplers.sharding import shard_batch
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Bound, Draws, FlowDiagnostics, Params, PRNGKey

_BOUNDS: tuple[Bound, ...] = ("lower-if-injective",)


class CDDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``.

    Attributes:
      loss: mean squared distance between the ends of neighbouring points.
      elbo: exact ELBO of a few one-step draws; NaN above 64 dimensions, where it would cost more
        than the iteration.
      time: t of the earlier point.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    time: Array
    gradient_norm: Array


@dataclasses.dataclass(frozen=True)
class DenoisingProcess(OrnsteinUhlenbeck):
    """The noising process with a flow "step" that goes from t all the way to the target.

    Attributes:
      skip: ``"flow"`` x + (1 - a(t)) F, one step of the probability flow with the control F, or
        ``"paper"`` c_skip x + c_out F with c_skip = σ_d² / (τ² + σ_d²) and c_out = τ σ_d /
        √(τ² + σ_d²).
      data_std: the paper's σ_d.
    """

    skip: Literal["flow", "paper"] = "flow"
    data_std: float = 0.5

    def flow_step(self, x: Array, control: Array, t: Array, d: Array) -> Array:
        """The student f(x, t); the size d of the step is what remains."""
        if self.skip == "flow":
            return x + (1.0 - self.signal(t)) * control
        remaining, variance = 1.0 - t, self.data_std**2
        total = remaining**2 + variance
        return variance / total * x + remaining * self.data_std / jnp.sqrt(total) * control


def _cdds(
    target: Target,
    *,
    teacher: Algorithm,
    teacher_state: SamplerState,
    teacher_steps: int | None = None,
    teacher_params: Literal["ema", "last"] = "ema",
    teacher_paths: Literal["flow", "stochastic"] = "flow",
    num_points: int = 18,
    target_network: Literal["student", "ema"] = "student",
    skip: Literal["flow", "paper"] = "flow",
    max_steps: int = 16,
    batch_size: int = 256,
    learning_rate: float | optax.Schedule = 1e-3,
    ema_decay: float = 0.99,
    gradient_clip: float = 1.0,
) -> Algorithm:
    """Consistency distillation of a diffusion sampler, with defaults of ours.

    Args:
      target: what to sample; the teacher's target.
      teacher: any algorithm with a probability flow.
      teacher_state: its trained state.
      teacher_steps: fine steps of the teacher's path; its ``max_steps`` if None.
      teacher_params: the teacher's moving average or its last parameters.
      teacher_paths: where the points lie: on the teacher's probability flow, or on its stochastic
        paths, from each of which the flow leads to the neighbour.
      num_points: points of a path, both ends included.
      target_network: whose f(x_{n+1}) is aimed at, the student's or its moving average's.
      skip: scalings of the student, see `DenoisingProcess`.
      max_steps: most steps of denoising and renoising, a power of two.
      batch_size: teacher paths of one iteration.
      learning_rate: Adam's.
      ema_decay: of the parameters that sample.
      gradient_clip: on the global norm.

    Returns:
      An `Algorithm`. With one step its weights are those of the map f(·, 0); with more, of the
      chain of renoising kernels and the last map (`"lower-if-injective"` throughout).

    Raises:
      ValueError: target and teacher differ, the teacher has no flow to distil, or a setting is
        out of range.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gmm9()
      >>> teacher = cs.dis(target, max_steps=4, hidden=(8,))
      >>> teacher_state = teacher.init(jax.random.key(0))  # train it: cs.fit
      >>> student = cs.cdds(
      ...     target, teacher=teacher, teacher_state=teacher_state, num_points=3, max_steps=2
      ... )
      >>> state = student.init(jax.random.key(1))
      >>> _, info = jax.eval_shape(student.step, jax.random.key(2), state)
      >>> info._fields
      ('loss', 'elbo', 'time', 'gradient_norm')
    """
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
    check_one_frame(teacher)
    check_choice("teacher_params", teacher_params, ("ema", "last"))
    check_choice("teacher_paths", teacher_paths, ("flow", "stochastic"))
    check_choice("target_network", target_network, ("student", "ema"))
    check_choice("skip", skip, ("flow", "paper"))
    teacher_steps = teacher.max_steps if teacher_steps is None else teacher_steps
    schedules.check_num_steps(teacher_steps, teacher.max_steps)
    schedules.check_max_steps(max_steps)
    if not 2 <= num_points <= teacher_steps + 1:
        raise ValueError(
            f"num_points must be 2 to {teacher_steps + 1} for {teacher_steps} teacher steps, got "
            f"{num_points}."
        )
    base, dim = teacher.base, target.dim
    process = DenoisingProcess(teacher.control.process.schedule, skip=skip)
    fine = jnp.asarray(1.0 / teacher_steps)
    # As the teacher was used: F starts as its control, and the size of the jump is in t.
    control = dataclasses.replace(
        teacher.control,
        shown_step=1.0 / teacher_steps,
        process=process,
        max_flow_steps=1,
        backward=None,
        forward_scale=None,
    )
    frozen = teacher_state.ema_params if teacher_params == "ema" else teacher_state.params
    # Teacher steps at which the points lie: as evenly as they divide.
    point = jnp.round(jnp.linspace(0, teacher_steps, num_points)).astype(jnp.int32)
    optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optax.adam(learning_rate))

    init, restart = init_and_restart(lambda _: {"control": frozen["control"]}, optimizer)

    def neighbours(rng_key: PRNGKey, x0: Array, index: Array) -> tuple[Array, Array]:
        """A teacher path's point ``index`` and the next one: ``[dim]`` each."""
        u, kernels = teacher.control.bind(frozen), teacher.control.kernels(frozen)

        def flow(k: Array, x: Array) -> Array:
            return simulate.flow_step(u, teacher.control.process, x, k / teacher_steps, fine)

        def noisy(k: Array, x: Array) -> Array:
            kernel = kernels.forward(x, k / teacher_steps, fine)
            return kernel.sample(jax.random.fold_in(rng_key, k))

        advance = flow if teacher_paths == "flow" else noisy
        x = jax.lax.fori_loop(0, point[index], advance, x0)
        return x, jax.lax.fori_loop(point[index], point[index + 1], flow, x)

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, CDDSInfo]:
        key_base, key_index, key_path = jax.random.split(rng_key, 3)
        x0 = shard_batch(jax.random.normal(key_base, (batch_size, dim)))
        keys = jax.random.split(key_path, batch_size)
        # One index for the whole batch: the loop over teacher steps ends where it ends.
        index = jax.random.randint(key_index, (), 0, num_points - 1)
        x, x_next = jax.vmap(neighbours, (0, 0, None))(keys, x0, index)
        t, t_next = point[index] / teacher_steps, point[index + 1] / teacher_steps
        aim = state.params if target_network == "student" else state.ema_params
        ends = jax.vmap(lambda x: _denoise(control, aim, x, t_next))(x_next)

        def objective(params: Params) -> Array:
            reached = jax.vmap(lambda x: _denoise(control, params, x, t))(x)
            return jnp.sum((reached - ends) ** 2, axis=-1).mean()

        loss, grads = jax.value_and_grad(objective)(state.params)
        elbo = one_step_elbo(control, state.params, x0)
        info = CDDSInfo(loss, elbo, t, optax.tree.norm(grads))
        return apply_gradients(optimizer, state, grads, ema_decay), info

    sample, reverse, per_draw = _build_sample(base, control, max_steps)
    return Algorithm(
        "cdds",
        target,
        base,
        max_steps,
        control,
        init,
        restart,
        step,
        sample,
        reverse,
        _BOUNDS,
        per_draw,
    )


def _denoise(control: Control, params: Params, x: Array, t: Array) -> Array:
    """The student f(x, t): ``[dim] -> [dim]``."""
    return simulate.flow_step(control.bind(params), control.process, x, t, 1.0 - t)


def _kernels(control: Control, params: Params) -> simulate.PathKernels:
    """Denoise and renoise to t + d; and the noising from there back to t."""
    schedule = control.process.schedule

    def forward(x: Array, t: Array, d: Array) -> GaussianKernel:
        remaining = schedule.integral(t + d, 1.0)
        mean = jnp.exp(-0.5 * remaining) * _denoise(control, params, x, t)
        return GaussianKernel(mean, jnp.sqrt(-jnp.expm1(-remaining)))

    return simulate.PathKernels(forward, control.process.backward_kernel)


def _build_sample(
    base: Base, control: Control, max_steps: int
) -> tuple[SampleFn, ReverseFn, PerDraw]:
    """Sampling by all but the last step of denoising and renoising, and a last denoising.

    The weight has the kernels of the chain against their noising, and the determinant of the
    last map: E[w] = Z wherever that map is injective.
    """
    process, log_density = control.process, control.log_density

    def chain(params: Params, key: PRNGKey, num_steps: int) -> Array:
        """Points from the base up to the last map: ``[num_steps, dim]``."""
        key_base, key_path = jax.random.split(key)
        z0 = jax.random.normal(key_base, (base.dim,))
        kernels, d = _kernels(control, params), jnp.asarray(1.0 / num_steps)

        def step(x: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
            t, key = inputs
            x_next = kernels.forward(x, t, d).sample(key)
            return x_next, x_next

        inputs = (time_grid(num_steps)[:-1], jax.random.split(key_path, num_steps)[:-1])
        _, path = jax.lax.scan(step, z0, inputs)
        return jnp.concatenate([z0[None], path])

    def weigh(params: Params, path: Array, num_steps: int) -> tuple[Array, Array, Array]:
        """End point, log weight and sign of the last map's determinant, of a chain."""
        last = jnp.asarray(1.0 - 1.0 / num_steps)
        z1, jacobian = simulate.flow_step_and_jacobian(
            control.bind(params), process, path[-1], last, 1.0 - last
        )
        det = log_det.slogdet(jacobian)
        log_ratio = simulate.path_log_ratio(path, _kernels(control, params), num_steps)
        log_p0 = simulate.standard_normal_log_prob(path[0])
        return z1, log_density(z1) - log_p0 + log_ratio.sum() + det.log_abs_det, det.sign

    def one_draw(params: Params, key: PRNGKey, num_steps: int, bound: Bound | None) -> Draws:
        path = chain(params, key, num_steps)
        if bound is None:
            last = jnp.asarray(1.0 - 1.0 / num_steps)
            return Draws(base.unwhiten(_denoise(control, params, path[-1], last), ()))
        z1, log_weight, sign = weigh(params, path, num_steps)
        log_rho = log_density(z1)
        log_weight = jnp.where(jnp.isneginf(log_rho), -jnp.inf, log_weight)
        flow = FlowDiagnostics(sign <= 0, jnp.full((), jnp.nan))
        x = base.unwhiten(z1, ())
        log_correction = base.log_correction(x, ())
        return Draws(x, log_weight, log_rho - log_correction, flow, bound)

    def undo_last(params: Params, z1: Array, num_steps: int) -> Array:
        last = jnp.asarray(1.0 - 1.0 / num_steps)
        return simulate.invert_step(control.bind(params), process, z1, last, 1.0 - last)

    def one_reverse(params: Params, key: PRNGKey, x: Array, num_steps: int, bound: Bound) -> Array:
        z1, d = base.whiten(x, ()), jnp.asarray(1.0 / num_steps)
        end = undo_last(params, z1, num_steps)

        def step(x_next: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
            t, key = inputs
            x = process.backward_kernel(x_next, t, d).sample(key)
            return x, x

        inputs = (time_grid(num_steps)[:-1], jax.random.split(key, num_steps)[:-1])
        _, path = jax.lax.scan(step, end, inputs, reverse=True)
        reached, log_weight, _ = weigh(params, jnp.concatenate([path, end[None]]), num_steps)
        error = jnp.sqrt(jnp.mean((reached - z1) ** 2))
        return jnp.where(error < MAX_INVERSION_ERROR, log_weight, jnp.nan)

    def one_round_trip(params: Params, key: PRNGKey, num_steps: int) -> Array:
        end = chain(params, key, num_steps)[-1]
        z1 = _denoise(control, params, end, jnp.asarray(1.0 - 1.0 / num_steps))
        return jnp.sqrt(jnp.mean((undo_last(params, z1, num_steps) - end) ** 2))

    per_draw = PerDraw(one_draw, one_reverse, one_round_trip)
    return *batched(control, base.dim, max_steps, _BOUNDS, 1, per_draw), per_draw


def _paper(
    target: Target, *, teacher: Algorithm, teacher_state: SamplerState, **overrides: Any
) -> Algorithm:
    """CDDS with the settings of its paper: its skip scalings, 18 points a path.

    Args:
      target: what to sample.
      teacher: a trained sampler, DIS in the paper (``cs.dis.paper``).
      teacher_state: its state.
      **overrides: any setting of ``cs.cdds``.
    """
    settings: dict[str, Any] = {"skip": "paper", "num_points": 18, "batch_size": 512}
    algorithm = _cdds(
        target, teacher=teacher, teacher_state=teacher_state, **(settings | overrides)
    )
    return dataclasses.replace(algorithm, name="cdds.paper")


cdds = WithPaperPreset(_cdds, _paper)
