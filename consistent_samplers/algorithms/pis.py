"""PIS: the path integral sampler (Zhang & Chen, 2022).

"Path integral sampler: a stochastic control approach for sampling", ICLR 2022, arXiv:2111.15141.
A controlled Brownian motion dX = u dt + dW from X_0 = 0, weighed against the uncontrolled one,
whose end X_1 ~ N(0, I) is the base. In the coordinates x_t = X_t / √t the pinned Brownian motion
is an Ornstein-Uhlenbeck process with signal a(t) = √t (`schedules.brownian`): its Euler-Maruyama
steps, exact for a control frozen over the step, are our exponential kernels, and the first step
forgets where it started. So PIS has a probability flow, x + (√(t+d) - √t) u, and may be distilled.
"""

import dataclasses
from typing import Any, ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.stochastic import Stochastic, on_paths, paper_settings
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target
from consistent_samplers.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class PIS(Stochastic):
    """Path integral sampler: a `Stochastic` one, whose process is given.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.pis(target, base=base, max_steps=8, hidden=(8,))
      >>> round(float(algorithm.control.process.signal(0.25)), 3)  # √t: a Brownian motion
      0.5
    """

    name: ClassVar[str] = "pis"
    methods: ClassVar[tuple[Method, ...]] = ("path", "map")
    own_schedule: ClassVar[NoisingRate] = schedules.brownian()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule is not None or self.integrator != "exponential":
            raise ValueError("cs.pis is a Brownian motion: it takes no schedule and no integrator.")


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """Reverse KL, 128 uniform steps; an embedding of time plus the gated ∇ log ρ."""
    return paper_settings(
        target,
        train_steps=(overrides.get("max_steps", 128),),
        batch_size=300,
        learning_rate=5e-3,
        loss="reverse_kl",
        guidance="ratio",
    )


pis = on_paths(PIS, _paper)
