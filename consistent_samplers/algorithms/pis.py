"""PIS: the path integral sampler (Zhang & Chen, 2022).

"Path integral sampler: a stochastic control approach for sampling", ICLR 2022, arXiv:2111.15141.
A controlled Brownian motion dX = u dt + dW from X_0 = 0, weighed against the uncontrolled one,
whose end X_1 ~ N(0, I) is the base. In the coordinates x_t = X_t / √t the pinned Brownian motion
is an Ornstein-Uhlenbeck process with signal a(t) = √t (`schedules.brownian`): the Euler-Maruyama
steps of PIS, which are exact for a control frozen over the step, are our exponential kernels, and
the first step forgets where it started, which is the pinning. In these coordinates PIS also has a
probability flow, x + (√(t+d) - √t) u, and may be distilled.
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


def _pis(
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
) -> Algorithm:
    """Path integral sampler, with defaults of ours.

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

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps with stochastic weights unless told
      otherwise.

    Raises:
      ValueError: base and target differ in dimension, or a setting is out of range.
    """
    process = OrnsteinUhlenbeck(schedules.brownian())
    return stochastic_sampler(
        "pis",
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
        bounds=("lower", "lower-if-injective"),
    )


def _paper(target: Target, *, base: GaussianBase | None = None, **overrides: Any) -> Algorithm:
    """PIS with the settings of its paper: reverse KL, 100 or more uniform steps.

    Reference N(0, I) unless a base is given; the paper's network is an embedding of time plus the
    gated ∇ log ρ.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      **overrides: any setting of ``cs.pis``.
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
    }
    algorithm = _pis(target, base=base, **(settings | overrides))
    return dataclasses.replace(algorithm, name="pis.paper")


pis = WithPaperPreset(_pis, _paper)
