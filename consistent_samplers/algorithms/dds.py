"""DDS: the denoising diffusion sampler (Vargas, Grathwohl & Doucet, 2023).

"Denoising diffusion samplers", ICLR 2023, arXiv:2302.13834. The same time reversal as DIS, written
relative to the stationary process of the base: the weight of a path compares it with the
uncontrolled reversal, whose exact kernels the integrator keeps,

    x_{k+1} = √(1 - α) x_k + 2 (1 - √(1 - α)) f(x_k, t_k) + √α ε,        1 - α = e^{-b},

with f = a(t) u the pull of our control over the step. Trained by reverse KL, with the gradient of
the target as a gated input.
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
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target


def _dds(
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
) -> Algorithm:
    """Denoising diffusion sampler, with defaults of ours.

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
      schedule: noising rate; 10 to 0.01 as cos² if None.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps with stochastic weights unless told
      otherwise.

    Raises:
      ValueError: base and target differ in dimension, or a setting is out of range.
    """
    process = OrnsteinUhlenbeck(schedule or schedules.cosine(), "denoising")
    return stochastic_sampler(
        "dds",
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
    """DDS with the settings of its paper: reverse KL, cos² schedule.

    N(0, I) unless a base is given. The paper takes batches of 300, a learning rate that falls
    from 5e-3, and 64 to 256 steps.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      **overrides: any setting of ``cs.dds``.
    """
    settings: dict[str, Any] = {
        "max_steps": 128,
        "anneal_iterations": 0,
        "train_steps": (overrides.get("max_steps", 128),),
        "batch_size": 300,
        "learning_rate": 5e-3,
        "loss": "reverse_kl",
        "guidance": "ratio",
        "elementwise_gain": False,
        "schedule": schedules.cosine(0.01, 10.0),
    }
    algorithm = _dds(target, base=base, **(settings | overrides))
    return dataclasses.replace(algorithm, name="dds.paper")


dds = WithPaperPreset(_dds, _paper)
