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

import optax

from consistent_samplers import schedules
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor
from consistent_samplers.algorithms.stochastic import Stochastic, build_on_paths
from consistent_samplers.bases import Base, standard_normal
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDS(Stochastic):
    """Settings of DDS: those of `Stochastic`. The noising rate is 10 to 0.01 as cos² if None."""

    integrator: Integrator = "denoising"

    name: ClassVar[str] = "dds"

    def process(self) -> OrnsteinUhlenbeck:
        """The noising process."""
        return OrnsteinUhlenbeck(self.schedule or schedules.cosine(), self.integrator)


def _dds(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "general",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """Denoising diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `DDS`.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps of the stochastic path unless told
      otherwise.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.dds(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.control.process.integrator, algorithm.max_steps
      ('denoising', 8)
      >>> cs.dds.paper(target).max_steps
      128
    """
    return build_on_paths(target, DDS(**settings), base, network, optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """Reverse KL, cos² schedule; the paper has a learning rate that falls from 5e-3."""
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
        "schedule": schedules.cosine(0.01, 10.0),
    }


dds = Constructor(_dds, DDS, _paper)
