"""DDS: the denoising diffusion sampler (Vargas, Grathwohl & Doucet, 2023).

"Denoising diffusion samplers", ICLR 2023, arXiv:2302.13834. The same time reversal as DIS, written
relative to the stationary process of the base: the weight of a path compares it with the
uncontrolled reversal, whose exact kernels the integrator keeps,

    x_{k+1} = √(1 - α) x_k + 2 (1 - √(1 - α)) f(x_k, t_k) + √α ε,        1 - α = e^{-b},

with f = a(t) u the pull of our control over the step. Trained by reverse KL, with the gradient of
the target as a gated input.
"""

import dataclasses
from typing import Any, Unpack

from consistent_samplers import schedules
from consistent_samplers.algorithms.base import Algorithm, WithPaperPreset
from consistent_samplers.algorithms.stochastic import StochasticSettings, stochastic_sampler
from consistent_samplers.bases import Base
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target


def _dds(
    target: Target,
    *,
    base: Base | None = None,
    schedule: schedules.Schedule | None = None,
    **settings: Unpack[StochasticSettings],
) -> Algorithm:
    """Denoising diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      schedule: noising rate; 10 to 0.01 as cos² if None.
      **settings: see `stochastic.StochasticSettings`.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps with stochastic weights unless told
      otherwise.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import consistent_samplers as cs
      >>> algorithm = cs.dds(cs.targets.funnel(3), max_steps=8, hidden=(8,))
      >>> algorithm.control.process.integrator, algorithm.max_steps
      ('denoising', 8)
      >>> cs.dds.paper(cs.targets.funnel(3)).max_steps
      128
    """
    process = OrnsteinUhlenbeck(schedule or schedules.cosine(), "denoising")
    return stochastic_sampler(
        "dds",
        target,
        process,
        base=base,
        **settings,
    )


def _paper(target: Target, *, base: Base | None = None, **overrides: Any) -> Algorithm:
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
