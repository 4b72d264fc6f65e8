"""Denoising diffusion sampler, DDS (Vargas, Grathwohl & Doucet, 2023)."""

import dataclasses
from typing import ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.on_paths import all_steps, on_paths
from consistent_samplers.algorithms.stochastic import Stochastic
from consistent_samplers.processes import Integrator
from consistent_samplers.schedules import NoisingRate


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDS(Stochastic):
    """Denoising diffusion sampler: a `Stochastic` one, β from 10 to 0.01 as cos² by default.

    Vargas, Grathwohl & Doucet, "Denoising diffusion samplers", ICLR 2023, arXiv:2302.13834: the
    reversal of DIS relative to the base's stationary process. A path is weighed against the
    uncontrolled reversal, whose exact kernels the integrator keeps,

        x_{k+1} = √(1 - α) x_k + 2 (1 - √(1 - α)) f(x_k, t_k) + √α ε,        1 - α = e^{-b},

    with f = a(t) u the pull of our control over the step.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.dds(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.control.process.integrator, algorithm.max_steps
      ('denoising', 8)
    """

    integrator: Integrator = "denoising"

    name: ClassVar[str] = "dds"
    own_schedule: ClassVar[NoisingRate] = schedules.cosine()


# The paper's learning rate falls from 5e-3.
dds = on_paths(
    DDS,
    all_steps(
        batch_size=300,
        loss="reverse_kl",
        guidance="ratio",
        schedule=schedules.cosine(0.01, 10.0),
    ),
)
