"""DIS: the time-reversed diffusion sampler (Berner, Richter & Ullrich, 2024).

"An optimal control perspective on diffusion-based generative modeling", arXiv:2211.01364. The
target is noised by an Ornstein-Uhlenbeck process towards the base; the control of its reversal
minimises the reverse KL between path measures, or their log-variance divergence (Richter &
Berner, "Improved sampling via learned diffusions", arXiv:2307.01198). It steers by a network plus
the gated score lerp(∇ log p0, ∇ log ρ, t).
"""

import dataclasses
from typing import Any, Unpack

from consistent_samplers import schedules
from consistent_samplers.algorithms.base import Algorithm, WithPaperPreset
from consistent_samplers.algorithms.stochastic import StochasticSettings, stochastic_sampler
from consistent_samplers.bases import Base
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target


def _dis(
    target: Target,
    *,
    base: Base | None = None,
    schedule: schedules.Schedule | None = None,
    integrator: Integrator = "exponential",
    **settings: Unpack[StochasticSettings],
) -> Algorithm:
    """Time-reversed diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      schedule: noising rate; from 10 to 0.01 as cos² if None.
      integrator: discretisation of the SDE and the flow.
      **settings: see `stochastic.StochasticSettings`.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps with stochastic weights unless told
      otherwise.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> algorithm = cs.dis(
      ...     cs.targets.funnel(3), max_steps=8, hidden=(8,), learned_kernels="backward"
      ... )
      >>> state = algorithm.init(jax.random.key(0))
      >>> algorithm.bounds[0], sorted(state.params)
      ('lower', ['backward', 'control'])
      >>> cs.dis.paper(cs.targets.funnel(3), max_steps=64).name
      'dis.paper'
    """
    process = OrnsteinUhlenbeck(schedule or schedules.cosine(), integrator)
    return stochastic_sampler(
        "dis",
        target,
        process,
        base=base,
        **settings,
    )


def _paper(target: Target, *, base: Base | None = None, **overrides: Any) -> Algorithm:
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
