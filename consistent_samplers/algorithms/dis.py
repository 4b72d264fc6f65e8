"""DIS: the time-reversed diffusion sampler (Berner, Richter & Ullrich, 2024).

"An optimal control perspective on diffusion-based generative modeling", arXiv:2211.01364. The
target is noised by an Ornstein-Uhlenbeck process towards the base; the control of its reversal
minimises the reverse KL between path measures, or their log-variance divergence (Richter &
Berner, "Improved sampling via learned diffusions", arXiv:2307.01198). It steers by a network plus
the gated score lerp(∇ log p0, ∇ log ρ, t).
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIS(Stochastic):
    """Settings of DIS: those of `Stochastic`. The noising rate is 10 to 0.01 as cos² if None."""

    name: ClassVar[str] = "dis"

    def process(self) -> OrnsteinUhlenbeck:
        """The noising process."""
        return OrnsteinUhlenbeck(self.schedule or schedules.cosine(), self.integrator)


def _dis(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "general",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """Time-reversed diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `DIS`.

    Returns:
      An `Algorithm`; it samples in ``max_steps`` steps of the stochastic path unless told
      otherwise.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.dis(
      ...     target, base=base, max_steps=8, hidden=(8,), learned_kernels="backward"
      ... )
      >>> state = algorithm.init(jax.random.key(0))
      >>> algorithm.methods[0], sorted(state.params)
      ('path', ['backward', 'control'])
      >>> cs.dis.paper(target, max_steps=64).name
      'dis.paper'
    """
    return build_on_paths(target, DIS(**settings), base, network, optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """Euler-Maruyama steps, β from 10 to 0.1 linearly, log-variance divergence at batch 2,048."""
    return {
        "base": standard_normal(target.dim),
        "max_steps": 128,
        "anneal_iterations": 0,
        "train_steps": (overrides.get("max_steps", 128),),
        "batch_size": 2_048,
        "learning_rate": 5e-3,
        "loss": "log_variance",
        "guidance": "interpolated",
        "elementwise_gain": False,
        "schedule": schedules.linear(0.1, 10.0),
        "integrator": "euler_maruyama",
    }


dis = Constructor(_dis, DIS, _paper)
