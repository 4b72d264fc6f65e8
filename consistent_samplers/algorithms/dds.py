"""DDS: the denoising diffusion sampler (Vargas, Grathwohl & Doucet, 2023).

"Denoising diffusion samplers", ICLR 2023, arXiv:2302.13834. The same time reversal as DIS, written
relative to the stationary process of the base: the weight of a path compares it with the
uncontrolled reversal, whose exact kernels the integrator keeps,

    x_{k+1} = √(1 - α) x_k + 2 (1 - √(1 - α)) f(x_k, t_k) + √α ε,        1 - α = e^{-b},

with f = a(t) u the pull of our control over the step. Trained by reverse KL, with the gradient of
the target as a gated input.
"""

import dataclasses
from typing import Any, ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.stochastic import Stochastic, on_paths, paper_settings
from consistent_samplers.processes import Integrator
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDS(Stochastic):
    """Denoising diffusion sampler: a `Stochastic` one, β from 10 to 0.01 as cos² by default.

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


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """Reverse KL, cos² schedule; the paper has a learning rate that falls from 5e-3."""
    return paper_settings(
        target,
        train_steps=(overrides.get("max_steps", 128),),
        batch_size=300,
        learning_rate=5e-3,
        loss="reverse_kl",
        guidance="ratio",
        schedule=schedules.cosine(0.01, 10.0),
    )


dds = on_paths(DDS, _paper)
