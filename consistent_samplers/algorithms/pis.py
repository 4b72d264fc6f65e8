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
from typing import Any, ClassVar

import optax

from consistent_samplers import schedules
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor
from consistent_samplers.algorithms.stochastic import Stochastic, build_on_paths
from consistent_samplers.bases import Base, standard_normal
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.targets import Target
from consistent_samplers.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class PIS(Stochastic):
    """Settings of PIS: those of `Stochastic`, but for the process, which is given."""

    name: ClassVar[str] = "pis"
    methods: ClassVar[tuple[Method, ...]] = ("path", "map")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule is not None or self.integrator != "exponential":
            raise ValueError("cs.pis is a Brownian motion: it takes no schedule and no integrator.")

    def process(self) -> OrnsteinUhlenbeck:
        """The noising process."""
        return OrnsteinUhlenbeck(schedules.brownian())


def _pis(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "general",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """Path integral sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `PIS`.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps of the stochastic path unless told
      otherwise.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.pis(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.methods
      ('path', 'map')
      >>> round(float(algorithm.control.process.signal(0.25)), 3)  # √t: a Brownian motion
      0.5
      >>> cs.pis.paper(target).name
      'pis.paper'
    """
    return build_on_paths(target, PIS(**settings), base, network, optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """Reverse KL, 128 uniform steps; an embedding of time plus the gated ∇ log ρ."""
    return {
        "base": standard_normal(target.dim),
        "max_steps": 128,
        "anneal_iterations": 0,
        "train_steps": (overrides.get("max_steps", 128),),
        "batch_size": 300,
        "learning_rate": 5e-3,
        "loss": "reverse_kl",
        "guidance": "ratio",
        "elementwise_gain": False,
    }


pis = Constructor(_pis, PIS, _paper)
