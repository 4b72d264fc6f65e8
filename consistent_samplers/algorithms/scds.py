"""SCDS: the self-consistent diffusion sampler (Jutras-Dubé, Zhang & Zhang, 2025).

"Single-Step Consistent Diffusion Samplers", arXiv:2502.07579. One network u(x, t, d) learns, from
scratch and without a data set,

- at d = 1/N to control the reversal of the noising: log-variance divergence of SDE paths;
- at d = 2^k/N to land where two steps of d/2 land (of the same network, held constant), from
  points of those paths: self-consistency of the probability flow.

Two curricula: over the number N of finest steps, which starts small and doubles, and over d,
whose largest value grows from 2/N to 1, since a big step has nothing to learn from before the
steps of half its size are right.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from consistent_samplers import losses, schedules
from consistent_samplers.algorithms import objectives
from consistent_samplers.algorithms.base import (
    Algorithm,
    SamplerState,
    WithPaperPreset,
    apply_gradients,
    check_base,
    init_and_restart,
)
from consistent_samplers.algorithms.consistency import draw_steps
from consistent_samplers.algorithms.control import (
    Guidance,
    LearnedKernels,
    NetworkKind,
    build_control,
)
from consistent_samplers.algorithms.objectives import ControlLoss
from consistent_samplers.algorithms.sampling import build_sample
from consistent_samplers.bases import Base, Component, standard_normal
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Bound, Params, PRNGKey

_BOUNDS: tuple[Bound, ...] = ("lower-if-injective", "lower", "heuristic")


class SCDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``.

    Attributes:
      loss: what was minimised.
      elbo: mean log weight of this batch's paths.
      state_consistency: mean squared gap between one step and two.
      num_steps: N of this iteration.
      max_step: largest d of this iteration.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    state_consistency: Array
    num_steps: Array
    max_step: Array
    gradient_norm: Array


def _scds(
    target: Target,
    *,
    base: Base | None = None,
    max_steps: int = 32,
    first_steps: int = 16,
    steps_iterations: int = 500,
    size_iterations: int = 700,
    batch_size: int = 256,
    learning_rate: float | optax.Schedule = 3e-3,
    control_loss: ControlLoss = "log_variance",
    anneal_iterations: int = 700,
    consistency_weight: float = 1.0,
    clip_aims: bool = True,
    num_consistency_samples: int = 256,
    ema_decay: float = 0.99,
    gradient_clip: float = 1.0,
    hidden: tuple[int, ...] = (64, 64),
    guidance: Guidance = None,
    elementwise_gain: bool = True,
    network: NetworkKind = "general",
    path_dtype: DTypeLike | None = None,
    schedule: schedules.Schedule | None = None,
    integrator: Integrator = "exponential",
    learned_kernels: LearnedKernels = None,
) -> Algorithm:
    """Self-consistent diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      max_steps: number N of finest steps at the end of its curriculum, a power of two.
      first_steps: N at the start, a power of two.
      steps_iterations: over which N doubles from ``first_steps`` to ``max_steps``, for equal
        times each.
      size_iterations: over which the largest step size of the consistency loss doubles from 2/N
        to 1, for equal times each.
      batch_size: paths of one iteration.
      learning_rate: Adam's.
      control_loss: see `objectives.build_objective`.
      anneal_iterations: over which the training target passes from the base to ρ, so that modes
        are shared out before they part; 0 for none.
      consistency_weight: weight of self-consistency.
      clip_aims: hold what two half steps aim at inside the box that the batch's stochastic paths
        visit. Half steps of the network itself may leave it, and what leaves is the next big
        step's aim: without a limit, such aims grew without end on the funnel.
      num_consistency_samples: paths of each batch on which self-consistency is taken.
      ema_decay: of the parameters that sample.
      gradient_clip: on the global norm, of each loss by itself: log-variance gradients are large
        at first, and would leave self-consistency nothing.
      hidden: widths of the network's hidden layers.
      guidance: target gradient inside the control: ``"ratio"`` ∇ log(ρ/p0), ``"interpolated"``
        the paper's, or None.
      elementwise_gain: let the network also scale each coordinate of x.
      network: ``"general"``, or ``"structured"`` for many dimensions, with determinants of the
        map that are products (`networks.structured`).
      path_dtype: precision of the stochastic paths of training, see `control.build_control`.
      schedule: noising rate; linear from 10 to 0.1 if None.
      integrator: discretisation of the SDE and the flow.
      learned_kernels: corrections to the kernels of the stochastic paths, see
        `control.build_control`.

    Returns:
      An `Algorithm`.

    Raises:
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> algorithm = cs.scds(cs.targets.gmm9(), max_steps=4, first_steps=2, hidden=(8,))
      >>> state = algorithm.init(jax.random.key(0))
      >>> _, info = jax.eval_shape(algorithm.step, jax.random.key(1), state)
      >>> info._fields
      ('loss', 'elbo', 'state_consistency', 'num_steps', 'max_step', 'gradient_norm')
      >>> cs.scds.paper(cs.targets.gmm9()).max_steps
      128
    """
    base = standard_normal(target.dim) if base is None else base
    check_base(target, base)
    schedules.check_max_steps(max_steps)
    first_steps = min(first_steps, max_steps)
    schedules.check_num_steps(first_steps, max_steps)
    process = OrnsteinUhlenbeck(schedule or schedules.linear(), integrator)
    control = build_control(
        target,
        base,
        process,
        max_steps=max_steps,
        hidden=hidden,
        guidance=guidance,
        elementwise_gain=elementwise_gain,
        learned_kernels=learned_kernels,
        network=network,
        path_dtype=path_dtype,
    )
    objective = objectives.build_objective(
        control, target.dim, loss=control_loss, batch_size=batch_size, hidden=hidden
    )
    step_counts = [2**k for k in range(max_steps.bit_length()) if 2**k >= first_steps]
    optimizer = optax.adam(learning_rate)
    clip = optax.clip_by_global_norm(gradient_clip)

    def init_params(rng_key: PRNGKey) -> Params:
        key_control, key_loss = jax.random.split(rng_key)
        return control.init(key_control) | objective.init(key_loss)

    init, restart = init_and_restart(init_params, optimizer)

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, SCDSInfo]:
        key_path, key_pair = jax.random.split(rng_key)
        which = _stage(state.iteration, steps_iterations, len(step_counts))
        temper = objectives.annealing(state.iteration, anneal_iterations)
        params = state.params

        def branch(num_steps: int) -> tuple[Array, ...]:
            (loss, paths), control_grads = jax.value_and_grad(objective.path_loss, has_aux=True)(
                params, key_path, num_steps, temper=temper
            )
            num_levels = num_steps.bit_length() - 1
            if num_levels:
                level = 1 + _stage(state.iteration, size_iterations, num_levels)
                num = min(num_consistency_samples, batch_size)
                points = draw_steps(key_pair, paths.position[:num], level)
                component = jax.tree.map(lambda c: c[:num], paths.component)
                visited = paths.position.reshape(-1, target.dim)
                box = visited.min(0), visited.max(0)
                gap, gap_grads = jax.value_and_grad(consistency)(params, box, component, *points)
            else:
                level, gap = jnp.zeros((), jnp.int32), jnp.zeros(())
                gap_grads = jax.tree.map(jnp.zeros_like, params)
            max_step = 2.0**level / num_steps
            norms = optax.tree.norm(control_grads), optax.tree.norm(gap_grads)
            control_grads, gap_grads = (
                clip.update(g, optax.EmptyState())[0] for g in (control_grads, gap_grads)
            )
            grads = jax.tree.map(lambda a, b: a + consistency_weight * b, control_grads, gap_grads)
            return loss, paths.log_weight.mean(), gap, max_step, norms[0] + norms[1], grads

        def consistency(
            params: Params,
            box: tuple[Array, Array],
            component: Component,
            x: Array,
            t: Array,
            d: Array,
        ) -> Array:
            def one(component: Component, x: Array, t: Array, d: Array) -> Array:
                u = control.at(component).bind(params)
                pair = losses.step_pair(u, u, process, x, t, d, with_jacobians=False)
                if clip_aims:
                    pair = pair._replace(teacher=jnp.clip(pair.teacher, *box))
                return losses.state_consistency(pair)

            return jax.vmap(one)(component, x, t, d).mean()

        loss, elbo, gap, max_step, norm, grads = jax.lax.switch(
            which, [lambda n=n: branch(n) for n in step_counts]
        )
        num_steps = jnp.asarray(step_counts)[which]
        info = SCDSInfo(loss + consistency_weight * gap, elbo, gap, num_steps, max_step, norm)
        return apply_gradients(optimizer, state, grads, ema_decay), info

    sample, reverse, per_draw = build_sample(base, control, max_steps, _BOUNDS, 1)
    return Algorithm(
        "scds",
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


def _stage(iteration: Array, num_iterations: int, num_stages: int) -> Array:
    """Stage of a curriculum, 0 .. num_stages - 1: the last one is reached at num_iterations."""
    stage = iteration * (num_stages - 1) // max(num_iterations, 1)
    return jnp.minimum(stage, num_stages - 1)


def _paper(target: Target, *, base: Base | None = None, **overrides: Any) -> Algorithm:
    """SCDS with the settings of its paper, its curricula at work.

    N(0, I) unless a base is given, N = 128 Euler-Maruyama steps, β from 10 to 0.1, log-variance
    divergence, the interpolated score, Adam at 5e-3, batch 512. (In the authors' release the
    curricula are configured but not read.)

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      **overrides: any setting of ``cs.scds``.
    """
    settings: dict[str, Any] = {
        "max_steps": 128,
        "batch_size": 512,
        "learning_rate": 5e-3,
        "control_loss": "log_variance",
        "anneal_iterations": 0,
        "clip_aims": False,
        "guidance": "interpolated",
        "elementwise_gain": False,
        "schedule": schedules.linear(0.1, 10.0),
        "integrator": "euler_maruyama",
    }
    algorithm = _scds(target, base=base, **(settings | overrides))
    return dataclasses.replace(algorithm, name="scds.paper")


scds = WithPaperPreset(_scds, _paper)
