"""The iterative samplers DIS, DDS and PIS: what each paper adds to `Stochastic`."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from consistent_samplers import schedules
from consistent_samplers.algorithms.stochastic import Stochastic, on_paths, paper_settings
from consistent_samplers.processes import Integrator
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target
from consistent_samplers.types import Method


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
            raise ValueError("cs.pis is a Brownian motion: it takes no schedule and no integrator.")


def _paper(**own: Any) -> Callable[[Target, dict[str, Any]], dict[str, Any]]:
    """The preset of one paper, whose training paths take all steps."""

    def settings(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
        train_steps = (overrides.get("max_steps", 128),)
        return paper_settings(target, learning_rate=5e-3, train_steps=train_steps, **own)

    return settings


dis = on_paths(
    DIS,
    _paper(
        batch_size=2_048,
        loss="log_variance",
        guidance="interpolated",
        schedule=schedules.linear(0.1, 10.0),
        integrator="euler_maruyama",
    ),
)
# The paper has a learning rate that falls from 5e-3.
_by_reverse_kl = {"batch_size": 300, "loss": "reverse_kl", "guidance": "ratio"}
dds = on_paths(DDS, _paper(**_by_reverse_kl, schedule=schedules.cosine(0.01, 10.0)))
pis = on_paths(PIS, _paper(**_by_reverse_kl))
