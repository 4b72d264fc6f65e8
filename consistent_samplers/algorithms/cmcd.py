"""Controlled Monte Carlo diffusions, CMCD (Vargas, Padhy, Blessing & Nüsken, 2024)."""

import dataclasses
from typing import Any, ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.on_paths import all_steps, on_paths
from consistent_samplers.algorithms.stochastic import Stochastic
from consistent_samplers.bases import Base
from consistent_samplers.maps import AnnealedControl, Control
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMCD(Stochastic):
    """Controlled Monte Carlo diffusion: a `Stochastic` one along densities that are given.

    Vargas, Padhy, Blessing & Nüsken, "Transport meets variational inference: controlled Monte Carlo
    diffusions", ICLR 2024, arXiv:2307.01050. Langevin dynamics along π_t ∝ p0^{1-λ(t)} ρ^{λ(t)}
    lags behind π_t; the control makes up for that, with opposite signs in both directions of time,

        forwards     dx = (½β ∇ log π_t(x) + ½β u(x, t)) dt + √β dW
        backwards    dx = (½β ∇ log π_t(x) - ½β u(x, t)) dt + √β dW

    (the paper's σ² = ½β and ∇φ = ½β u), so that at the optimum the paths have the marginals π_t and
    all weights are Z. The loss is the log-variance divergence between both (Richter & Berner,
    arXiv:2307.01198), or with ``loss="reverse_kl"`` the paper's other choice. E[w] = Z for any
    control, also the untrained one u = 0, which is unadjusted annealed Langevin. λ and a factor of
    β are learned too.

    Every step evaluates the target's gradient, so the density is compiled into the training. There
    is no deterministic map: neither ``method="map"`` nor calibration and distillation.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.algorithms.cmcd(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.methods, algorithm.control.guided
      (('path',), True)
    """

    # The intermediate densities are there from the start.
    anneal_iterations: int = 0

    name: ClassVar[str] = "cmcd"
    methods: ClassVar[tuple[Method, ...]] = ("path",)
    own_schedule: ClassVar[NoisingRate] = schedules.constant(1.0)

    def control(self, base: Base, network: Any) -> Control:
        """What is trained."""
        made = super().control(base, network)
        fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        return AnnealedControl(**fields | {"max_flow_steps": 0})


cmcd = on_paths(
    CMCD,
    all_steps(
        batch_size=300,
        loss="log_variance",
        schedule=schedules.constant(1.0),
        integrator="euler_maruyama",
    ),
)
