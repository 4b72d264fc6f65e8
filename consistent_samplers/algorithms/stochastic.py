"""What the iterative samplers share: DIS, DDS and PIS differ in process, guidance and settings.

All simulate a controlled diffusion from the base to the target and train its control by a loss
on the weights of whole paths (or stretches of them).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from consistent_samplers import schedules
from consistent_samplers.algorithms import objectives, replay
from consistent_samplers.algorithms.base import (
    Algorithm,
    SamplerState,
    apply_gradients,
    check_base,
    init_and_restart,
)
from consistent_samplers.algorithms.control import (
    Guidance,
    LearnedKernels,
    NetworkKind,
    build_control,
)
from consistent_samplers.algorithms.objectives import ON_POLICY, ControlLoss
from consistent_samplers.algorithms.sampling import build_sample
from consistent_samplers.bases import Base, GaussianBase, standard_normal
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Bound, Params, PRNGKey


class PathInfo(NamedTuple):
    """What one training iteration reports, all ``[]``.

    Attributes:
      loss: what was minimised.
      elbo: mean log weight of this batch's paths.
      num_steps: steps of the paths.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    num_steps: Array
    gradient_norm: Array


class StochasticSettings(TypedDict, total=False):
    """Settings that every iterative sampler takes, with the defaults of `stochastic_sampler`.

    Attributes:
      max_steps: number N of finest steps, a power of two.
      train_steps: numbers of steps of the training paths, one drawn at random an iteration (what
        is repeated, more often), powers of two up to ``max_steps``. By default an eighth, a
        quarter and all of ``max_steps``: the control hardly changes with d there, and coarse
        paths cost less.
      batch_size: paths of one iteration.
      learning_rate: Adam's.
      loss: ``"reverse_kl"`` back-propagates through the paths, ``"path_gradient"`` as well but
        without the score term; ``"log_variance"``, ``"trajectory_balance"`` and
        ``"sub_trajectory_balance"`` do not (see `objectives.build_objective`).
      anneal_iterations: over which the training target passes from the base to ρ, so that modes
        are shared out before they part; 0 for none.
      replay_share: share of further paths, relative to the batch, that end at points of a replay
        buffer; for losses without back-propagation.
      replay_capacity: end points that the buffer holds.
      ema_decay: of the parameters that sample.
      gradient_clip: on the global norm.
      hidden: widths of the networks' hidden layers.
      guidance: target gradient inside the control: ``"ratio"`` ∇ log(ρ/p0), ``"interpolated"``
        lerp(∇ log p0, ∇ log ρ, t), or None.
      elementwise_gain: let the network also scale each coordinate of x.
      network: ``"general"``, or ``"structured"`` for many dimensions: no guidance, and exact
        determinants of the deterministic map as products (`networks.structured`).
      path_dtype: precision of the paths of training, see `control.build_control`.
      learned_kernels: ``"backward"`` learns mean and scale of the backward kernels, bounded;
        ``"both"`` the scale of the generative ones as well; None keeps the process's own. Train
        such kernels at the numbers of steps that will be sampled (``train_steps``).
    """

    max_steps: int
    train_steps: Sequence[int] | None
    batch_size: int
    learning_rate: float | optax.Schedule
    loss: ControlLoss
    anneal_iterations: int
    replay_share: float
    replay_capacity: int
    ema_decay: float
    gradient_clip: float
    hidden: tuple[int, ...]
    guidance: Guidance
    elementwise_gain: bool
    network: NetworkKind
    path_dtype: DTypeLike | None
    learned_kernels: LearnedKernels


def stochastic_sampler(
    name: str,
    target: Target,
    process: OrnsteinUhlenbeck,
    *,
    base: Base | None = None,
    max_steps: int = 128,
    train_steps: Sequence[int] | None = None,
    batch_size: int = 256,
    learning_rate: float | optax.Schedule = 5e-3,
    loss: ControlLoss = "log_variance",
    anneal_iterations: int = 500,
    replay_share: float = 0.0,
    replay_capacity: int = 8_192,
    ema_decay: float = 0.99,
    gradient_clip: float = 1.0,
    hidden: tuple[int, ...] = (64, 64),
    guidance: Guidance = None,
    elementwise_gain: bool = True,
    network: NetworkKind = "general",
    path_dtype: DTypeLike | None = None,
    learned_kernels: LearnedKernels = None,
    bounds: tuple[Bound, ...] = ("lower", "lower-if-injective", "heuristic"),
) -> Algorithm:
    """An iterative sampler of a process, with defaults of ours.

    Args:
      name: its name.
      target: what to sample.
      process: noising process.
      base: where samples start; a standard normal if None.
      max_steps: this and what follows: see `StochasticSettings`.
      train_steps: see there.
      batch_size: see there.
      learning_rate: see there.
      loss: see there.
      anneal_iterations: see there.
      replay_share: see there.
      replay_capacity: see there.
      ema_decay: see there.
      gradient_clip: see there.
      hidden: see there.
      guidance: see there.
      elementwise_gain: see there.
      network: see there.
      path_dtype: see there.
      learned_kernels: see there.
      bounds: kinds of weight it can give.

    Raises:
      ValueError: a setting out of range, or settings that do not go together.
    """
    base = standard_normal(target.dim) if base is None else base
    check_base(target, base)
    schedules.check_max_steps(max_steps)
    if train_steps is None:
        train_steps = [max(1, max_steps // share) for share in (8, 4, 1)]
    if not train_steps:
        raise ValueError("train_steps must name at least one number of steps.")
    for num_steps in train_steps:
        schedules.check_num_steps(num_steps, max_steps)
    # Repeated numbers are drawn more often; each is compiled once.
    step_counts = sorted(set(train_steps))
    choices = [step_counts.index(num_steps) for num_steps in train_steps]
    num_replayed = round(replay_share * batch_size)
    if replay_share < 0 or (num_replayed and loss in ON_POLICY):
        raise ValueError(
            f"replay_share={replay_share} with loss={loss!r}: a share must not be negative, and "
            f"the losses {ON_POLICY} need paths of their own. Take loss='log_variance' or "
            "'trajectory_balance' to train on replayed paths."
        )
    if num_replayed and not isinstance(base, GaussianBase):
        raise ValueError(
            "replay_share needs a base of one component: the buffer holds points in its frame. "
            "Take a Gaussian base, or replay_share=0."
        )
    if num_replayed and replay_capacity < batch_size:
        raise ValueError(
            f"replay_capacity must be at least the batch size {batch_size}, got {replay_capacity}."
        )
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
        # The control of the continuous process has no step size, and a network that is shown one
        # may go anywhere at a size it was not trained at. Learned kernels depend on the size.
        step_conditioned=learned_kernels is not None,
    )
    objective = objectives.build_objective(
        control, target.dim, loss=loss, batch_size=batch_size, hidden=hidden
    )
    optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optax.adam(learning_rate))

    def init_params(rng_key: PRNGKey) -> Params:
        key_control, key_loss = jax.random.split(rng_key)
        return control.init(key_control) | objective.init(key_loss)

    def init_memory(params: Params) -> replay.ReplayBuffer | tuple[()]:
        return replay.init(replay_capacity, target.dim) if num_replayed else ()

    init, restart = init_and_restart(init_params, optimizer, init_memory)

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, PathInfo]:
        key_count, key_replay, key_path = jax.random.split(rng_key, 3)
        which = jax.random.choice(key_count, jnp.asarray(choices))
        replayed = None
        if num_replayed:
            # While the buffer is empty its points are zeros: paths like any other.
            drawn = replay.draw(key_replay, state.memory, num_replayed)
            replayed = jnp.where(state.memory.num_added > 0, drawn, 0.0)

        temper = objectives.annealing(state.iteration, anneal_iterations)

        def branch(num_steps: int, params: Params) -> tuple[Array, tuple[Array, Array]]:
            value, batch = objective.path_loss(
                params, key_path, num_steps, temper=temper, replayed=replayed
            )
            return value, (batch.position[:, -1], batch.log_weight)

        def total(params: Params) -> tuple[Array, tuple[Array, Array]]:
            branches = [lambda p, n=n: branch(n, p) for n in step_counts]
            return jax.lax.switch(which, branches, params)

        (value, (position, log_weight)), grads = jax.value_and_grad(total, has_aux=True)(
            state.params
        )
        num_steps = jnp.asarray(step_counts)[which]
        info = PathInfo(value, log_weight.mean(), num_steps, optax.tree.norm(grads))
        new_state = apply_gradients(optimizer, state, grads, ema_decay)
        if num_replayed:
            new_state = new_state._replace(memory=replay.add(state.memory, position, log_weight))
        return new_state, info

    sample, reverse, per_draw = build_sample(base, control, max_steps, bounds, max_steps)
    return Algorithm(
        name,
        target,
        base,
        max_steps,
        control,
        init,
        restart,
        step,
        sample,
        reverse,
        bounds,
        per_draw,
    )
