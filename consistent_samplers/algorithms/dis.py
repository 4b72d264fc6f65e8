"""DIS: the time-reversed diffusion sampler (Berner, Richter & Ullrich, 2024).

"An optimal control perspective on diffusion-based generative modeling", arXiv:2211.01364. The
target is noised by an Ornstein-Uhlenbeck process towards the base; the control of its reversal
minimises the reverse KL between path measures, or their log-variance divergence (Richter &
Berner, "Improved sampling via learned diffusions", arXiv:2307.01198). It steers by a network plus
the gated score lerp(∇ log p0, ∇ log ρ, t).
"""

import dataclasses
from typing import Any, ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.stochastic import Stochastic, on_paths, paper_settings
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIS(Stochastic):
    """Time-reversed diffusion sampler: a `Stochastic` one, β from 10 to 0.01 as cos² by default.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.dis(target, base=base, max_steps=8, learned_kernels="backward")
      >>> algorithm.methods[0], sorted(algorithm.init(jax.random.key(0)).params)
      ('path', ['backward', 'control'])
      >>> cs.dis.paper(target, max_steps=64).name
      'dis.paper'
    """

    name: ClassVar[str] = "dis"
    own_schedule: ClassVar[NoisingRate] = schedules.cosine()


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """Euler-Maruyama steps, β from 10 to 0.1 linearly, log-variance divergence at batch 2,048."""
    return paper_settings(
        target,
        train_steps=(overrides.get("max_steps", 128),),
        batch_size=2_048,
        learning_rate=5e-3,
        loss="log_variance",
        guidance="interpolated",
        schedule=schedules.linear(0.1, 10.0),
        integrator="euler_maruyama",
    )


dis = on_paths(DIS, _paper)
