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
from typing import Any, Unpack

from consistent_samplers import schedules
from consistent_samplers.algorithms.base import Algorithm, WithPaperPreset
from consistent_samplers.algorithms.stochastic import StochasticSettings, stochastic_sampler
from consistent_samplers.bases import Base
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target


def _pis(
    target: Target,
    *,
    base: Base | None = None,
    **settings: Unpack[StochasticSettings],
) -> Algorithm:
    """Path integral sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      **settings: see `stochastic.StochasticSettings`.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps with stochastic weights unless told
      otherwise.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import consistent_samplers as cs
      >>> algorithm = cs.pis(cs.targets.funnel(3), max_steps=8, hidden=(8,))
      >>> algorithm.bounds
      ('lower', 'lower-if-injective')
      >>> round(float(algorithm.control.process.signal(0.25)), 3)  # √t: a Brownian motion
      0.5
      >>> cs.pis.paper(cs.targets.funnel(3)).name
      'pis.paper'
    """
    process = OrnsteinUhlenbeck(schedules.brownian())
    return stochastic_sampler(
        "pis",
        target,
        process,
        base=base,
        **settings,
        bounds=("lower", "lower-if-injective"),
    )


def _paper(target: Target, *, base: Base | None = None, **overrides: Any) -> Algorithm:
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
