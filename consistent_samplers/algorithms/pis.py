"""Path integral sampler, PIS (Zhang & Chen, 2022)."""

import dataclasses
from typing import ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.on_paths import all_steps, on_paths
from consistent_samplers.algorithms.stochastic import Stochastic
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class PIS(Stochastic):
    """Path integral sampler: a `Stochastic` one, whose process is given.

    Zhang & Chen, "Path integral sampler: a stochastic control approach for sampling", ICLR 2022,
    arXiv:2111.15141. A controlled Brownian motion dX = u dt + dW from X_0 = 0, weighed against the
    uncontrolled one, whose end X_1 ~ N(0, I) is the base. In the coordinates x_t = X_t / √t it is
    an Ornstein-Uhlenbeck process with signal a(t) = √t (`schedules.brownian`), and its
    Euler-Maruyama steps are our exponential kernels. So PIS has a probability flow,
    x + (√(t+d) - √t) u, and may be distilled.

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
            what = f"{self.name} is a Brownian motion: it takes no schedule and no integrator."
            raise ValueError(what)


# The paper's learning rate falls from 5e-3.
pis = on_paths(PIS, all_steps(batch_size=300, loss="reverse_kl", guidance="ratio"))
