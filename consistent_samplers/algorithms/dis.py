"""DIS: the time-reversed diffusion sampler (Berner, Richter & Ullrich, 2024).

"An optimal control perspective on diffusion-based generative modeling", arXiv:2211.01364. The
target is noised by an Ornstein-Uhlenbeck process towards the base; the control of its reversal
minimises the reverse KL between path measures, or their log-variance divergence (Richter &
Berner, "Improved sampling via learned diffusions", arXiv:2307.01198). It steers by a network plus
the gated score lerp(∇ log p0, ∇ log ρ, t).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax

from consistent_samplers import schedules
from consistent_samplers.algorithms.base import Algorithm, WithPaperPreset
from consistent_samplers.algorithms.control import Guidance, LearnedKernels
from consistent_samplers.algorithms.objectives import ControlLoss
from consistent_samplers.algorithms.stochastic import stochastic_sampler
from consistent_samplers.bases import GaussianBase
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target


def _dis(
    target: Target,
    *,
    base: GaussianBase | None = None,
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
    learned_kernels: LearnedKernels = None,
    schedule: schedules.Schedule | None = None,
    integrator: Integrator = "exponential",
) -> Algorithm:
    """Time-reversed diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      max_steps: number N of finest steps, a power of two.
      train_steps: numbers of steps of the training paths, one drawn at random an iteration (what
        is repeated, more often); ``(max_steps,)`` if None.
      batch_size: paths of one iteration.
      learning_rate: Adam's.
      loss: ``"reverse_kl"`` back-propagates through the paths, ``"path_gradient"`` as well but
        without the score term; ``"log_variance"``, ``"trajectory_balance"`` and
        ``"sub_trajectory_balance"`` do not.
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
      learned_kernels: ``"backward"`` learns mean and scale of the backward kernels, bounded;
        ``"both"`` the scale of the generative ones as well; None keeps the process's own. Train
        such kernels at the numbers of steps that will be sampled (``train_steps``).
      schedule: noising rate; from 10 to 0.01 as cos² if None.
      integrator: discretisation of the SDE and the flow.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps with stochastic weights unless told
      otherwise.

    Raises:
      ValueError: base and target differ in dimension, or a setting is out of range.
    """
    process = OrnsteinUhlenbeck(schedule or schedules.cosine(), integrator)
    return stochastic_sampler(
        "dis",
        target,
        process,
        base=base,
        max_steps=max_steps,
        train_steps=train_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        anneal_iterations=anneal_iterations,
        replay_share=replay_share,
        replay_capacity=replay_capacity,
        ema_decay=ema_decay,
        gradient_clip=gradient_clip,
        hidden=hidden,
        guidance=guidance,
        elementwise_gain=elementwise_gain,
        learned_kernels=learned_kernels,
    )


def _paper(target: Target, *, base: GaussianBase | None = None, **overrides: Any) -> Algorithm:
    """DIS with the settings of its paper.

    N(0, I) unless a base is given, Euler-Maruyama steps, β from 10 to 0.1 linearly, log-variance
    divergence at batch 2,048 and learning rate 5e-3.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      **overrides: any setting of ``cs.dis``.
    """
    settings: dict[str, Any] = {
        "max_steps": 128,
        "anneal_iterations": 0,
        "train_steps": (overrides.get("max_steps", 128),),
        "batch_size": 2_048,
        "learning_rate": 5e-3,
        "loss": "log_variance",
        "guidance": "interpolated",
        "elementwise_gain": False,
        "schedule": schedules.linear(0.1, 10.0),
        "integrator": "euler_maruyama",
    }
    algorithm = _dis(target, base=base, **(settings | overrides))
    return dataclasses.replace(algorithm, name="dis.paper")


dis = WithPaperPreset(_dis, _paper)
