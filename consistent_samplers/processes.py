"""The Ornstein-Uhlenbeck noising process and the Gaussian kernels that discretise it.

Everything lives in the base's whitened coordinates, where the base is N(0, I) (the papers'
prior scale s is part of the base, so s = 1 and σ(t) = √β(t) here). Times are generative. With
v standing for the score ∇log p_t and b = ∫β over a step:

    generative SDE          dx = (½ β x + β v) dt + √β dW
    probability flow        dx = (½ β x + ½ β v) dt

(Song et al., 2021, eqs. 6 and 13, with time reversed.) ``"exponential"`` solves each of them
exactly for a frozen v; ``"euler_maruyama"`` is the choice of the OSDS and SCDS papers.
"""

import dataclasses
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers.schedules import Schedule, linear
from consistent_samplers.types import Array

Integrator: TypeAlias = Literal["exponential", "euler_maruyama"]


class GaussianKernel(NamedTuple):
    """A Gaussian transition with isotropic covariance.

    Attributes:
      mean: ``[dim]``.
      std: ``[]``.
    """

    mean: Array
    std: Array

    def log_prob(self, x: Array) -> Array:
        """Log density of the transition to ``x``: ``[dim] -> []``."""
        return jax.scipy.stats.norm.logpdf(x, self.mean, self.std).sum()


@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """Noising towards N(0, I) at rate β(t), and its reversal.

    Attributes:
      schedule: the rate β.
      integrator: ``"exponential"`` (exact transitions for a frozen score) or
        ``"euler_maruyama"``; used for generative, backward and flow steps alike.
    """

    schedule: Schedule = dataclasses.field(default_factory=linear)
    integrator: Integrator = "exponential"

    def __post_init__(self) -> None:
        if self.integrator not in ("exponential", "euler_maruyama"):
            raise ValueError(
                "integrator must be 'exponential' or 'euler_maruyama', "
                f"got {self.integrator!r}."
            )

    def signal(self, t: Array | float) -> Array:
        """Share a(t) of a target point left at time t: x_t | x_1 ~ N(a x_1, (1 - a²) I)."""
        return jnp.exp(-0.5 * self.schedule.integral(t, 1.0))

    def score(self, x: Array, control: Array, t: Array) -> Array:
        """The score that a network's output stands for: v = -x + a(t) · control.

        In this parametrisation control = (E[x_1 | x_t] - a x_t) / (1 - a²), by Tweedie's
        formula: of order one at every t for a whitened target, zero when the target is the
        base, and a step of the probability flow moves by (a(t + d) - a(t)) · control.
        """
        return -x + self.signal(t) * control

    def forward_kernel(self, x: Array, score: Array, t: Array, d: Array) -> GaussianKernel:
        """Generative kernel F(x_{t+d} | x_t)."""
        if self.integrator == "exponential":
            b = self.schedule.integral(t, t + d)
            grow = jnp.exp(0.5 * b)
            return GaussianKernel(grow * x + 2.0 * (grow - 1.0) * score, jnp.sqrt(jnp.expm1(b)))
        beta = self.schedule.rate(t)
        return GaussianKernel(x + (0.5 * beta * x + beta * score) * d, jnp.sqrt(beta * d))

    def backward_kernel(self, x_next: Array, t: Array, d: Array) -> GaussianKernel:
        """Noising kernel B(x_t | x_{t+d})."""
        if self.integrator == "exponential":
            b = self.schedule.integral(t, t + d)
            return GaussianKernel(jnp.exp(-0.5 * b) * x_next, jnp.sqrt(-jnp.expm1(-b)))
        beta = self.schedule.rate(t)
        return GaussianKernel(x_next * (1.0 - 0.5 * beta * d), jnp.sqrt(beta * d))

    def flow_step(self, x: Array, score: Array, t: Array, d: Array) -> Array:
        """One step of the probability flow, x_t -> x_{t+d}."""
        if self.integrator == "exponential":
            grow = jnp.exp(0.5 * self.schedule.integral(t, t + d))
            return grow * x + (grow - 1.0) * score
        beta = self.schedule.rate(t)
        return x + (0.5 * beta * x + 0.5 * beta * score) * d

    def flow_divergence(self, score_divergence: Array, dim: int, t: Array, d: Array) -> Array:
        """d · tr ∂(drift)/∂x of the probability flow at time t, given tr ∂v/∂x.

        What the OSDS paper adds up in place of a log-determinant.
        """
        return 0.5 * self.schedule.rate(t) * (dim + score_divergence) * d
