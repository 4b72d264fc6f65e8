"""Time-reversed diffusion sampler, DIS (Berner, Richter & Ullrich, 2024)."""

import dataclasses
from typing import ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.on_paths import all_steps, on_paths
from consistent_samplers.algorithms.stochastic import Stochastic
from consistent_samplers.schedules import NoisingRate


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIS(Stochastic):
    """Time-reversed diffusion sampler: a `Stochastic` one, β from 10 to 0.01 as cos² by default.

    Berner, Richter & Ullrich, "An optimal control perspective on diffusion-based generative
    modeling", 2024, arXiv:2211.01364. The control of the noising's reversal minimises the reverse
    KL between path measures, or their log-variance divergence (Richter & Berner, "Improved sampling
    via learned diffusions", arXiv:2307.01198). The paper steers by a network plus the gated score
    lerp(∇ log p0, ∇ log ρ, t).

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


dis = on_paths(
    DIS,
    all_steps(
        batch_size=2_048,
        loss="log_variance",
        guidance="interpolated",
        schedule=schedules.linear(0.1, 10.0),
        integrator="euler_maruyama",
    ),
)
