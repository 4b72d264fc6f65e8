"""The Ornstein-Uhlenbeck noising process and the Gaussian kernels that discretise it.

Everything lives in the base's whitened coordinates, where the base is N(0, I) (the papers'
prior scale s is part of the base, so s = 1 and σ(t) = √β(t) here). Times are generative. The
network's output, the control u, stands for the score v = ∇ log p_t through

    v = -x + a(t) u,        a(t) = exp(-½ ∫_t^1 β),

so that by Tweedie's formula u = (E[x_1 | x_t] - a x_t) / (1 - a²): of order one at every t for
a whitened target, and zero where the target is the base. The reversal of the noising reads

    generative SDE          dx = (½ β x + β v) dt + √β dW = (-½ β x + β a u) dt + √β dW
    probability flow        dx = (½ β x + ½ β v) dt       = ½ β a u dt

(Song et al., 2021, eqs. 6 and 13, with time reversed).
"""

import dataclasses
import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers.checks import check_choice
from consistent_samplers.schedules import NoisingRate, linear
from consistent_samplers.types import Array, PRNGKey

Integrator: TypeAlias = Literal["exponential", "denoising", "euler_maruyama"]
"""How a step of the process is discretised; see `OrnsteinUhlenbeck`."""

INTEGRATORS: tuple[Integrator, ...] = ("exponential", "denoising", "euler_maruyama")
"""All values of `Integrator`."""


class GaussianKernel(NamedTuple):
    """A Gaussian transition with diagonal covariance.

    Attributes:
      mean: ``[dim]``.
      std: ``[]``, or ``[dim]`` where it was learned.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> kernel = cs.processes.GaussianKernel(mean=jnp.zeros(2), std=jnp.asarray(1.0))
      >>> round(float(kernel.log_prob(jnp.zeros(2))), 4)  # -log 2π
      -1.8379
    """

    mean: Array
    std: Array

    def sample(self, rng_key: PRNGKey) -> Array:
        """A reparametrised draw: ``[dim]``."""
        noise = jax.random.normal(rng_key, self.mean.shape, self.mean.dtype)
        return self.mean + self.std * noise

    def log_prob(self, x: Array) -> Array:
        """Log density of the transition to ``x``: ``[dim] -> []``."""
        return jax.scipy.stats.norm.logpdf(x, self.mean, self.std).sum()


@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """Noising towards N(0, I) at rate β(t), and its reversal.

    Attributes:
      schedule: the rate β.
      integrator: how generative, backward and flow steps are taken: ``"exponential"`` (exact for a
        control u frozen over the step), ``"denoising"`` (the same with the pull a(t) u frozen
        instead: DDS) or ``"euler_maruyama"`` (the other papers' choice).

    Raises:
      ValueError: no such integrator, or one that is not exact with a rate that is infinite at t = 0
        (`schedules.brownian`, `schedules.geometric`).

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck(cs.schedules.cosine())
      >>> x, no_control = jnp.ones(2), jnp.zeros(2)
      >>> process.flow_step(x, no_control, t=0.5, d=0.25).tolist()  # the flow stands still
      [1.0, 1.0]
    """

    schedule: NoisingRate = dataclasses.field(default_factory=linear)
    integrator: Integrator = "exponential"

    def __post_init__(self) -> None:
        check_choice("integrator", self.integrator, INTEGRATORS)
        if self.integrator == "exponential":
            return
        with jax.ensure_compile_time_eval():
            zero, one = jnp.zeros(()), jnp.ones(())
            at_base = float(self.schedule.rate(zero)), float(self.schedule.integral(zero, one))
        if not all(map(math.isfinite, at_base)):
            raise ValueError(
                f"integrator={self.integrator!r} needs a schedule of finite rates, such as "
                f"cs.schedules.cosine(); {self.schedule} is infinite at the base, t = 0. "
                "Take integrator='exponential', whose kernels are exact there too."
            )

    def signal(self, t: Array | float) -> Array:
        """Share a(t) of a target point left at time t: x_t | x_1 ~ N(a x_1, (1 - a²) I)."""
        return jnp.exp(-0.5 * self.schedule.integral(t, 1.0))

    def score(self, x: Array, control: Array, t: Array) -> Array:
        """The score that a control stands for: v = -x + a(t) u."""
        return -x + self.signal(t) * control

    def forward_kernel(self, x: Array, control: Array, t: Array, d: Array) -> GaussianKernel:
        """Generative kernel F(x_{t+d} | x_t).

        ``"exponential"``: mean e^{-b/2} x + a(t+d) (1 - e^{-b}) u, variance 1 - e^{-b}, with
        b = ∫β over the step. For u = 0 it is the exact reversal of the noising at any step size.
        ``"denoising"``: 2 a(t) (1 - e^{-b/2}) u in the mean instead (Vargas et al., 2023).
        """
        if self.integrator != "euler_maruyama":
            b = self.schedule.integral(t, t + d)
            variance = -jnp.expm1(-b)
            if self.integrator == "exponential":
                pull = self.signal(t + d) * variance
            else:
                pull = -2.0 * self.signal(t) * jnp.expm1(-0.5 * b)
            return GaussianKernel(jnp.exp(-0.5 * b) * x + pull * control, jnp.sqrt(variance))
        beta = self.schedule.rate(t)
        drift = 0.5 * beta * x + beta * self.score(x, control, t)
        return GaussianKernel(x + drift * d, jnp.sqrt(beta * d))

    def backward_kernel(self, x_next: Array, t: Array, d: Array) -> GaussianKernel:
        """Noising kernel B(x_t | x_{t+d}): mean e^{-b/2} x, variance 1 - e^{-b}, or by Euler."""
        if self.integrator != "euler_maruyama":
            b = self.schedule.integral(t, t + d)
            return GaussianKernel(jnp.exp(-0.5 * b) * x_next, jnp.sqrt(-jnp.expm1(-b)))
        beta = self.schedule.rate(t)
        return GaussianKernel(x_next * (1.0 - 0.5 * beta * d), jnp.sqrt(beta * d))

    def flow_step(self, x: Array, control: Array, t: Array, d: Array) -> Array:
        """One step of the probability flow, x_t -> x_{t+d}.

        ``"exponential"``: x + (a(t+d) - a(t)) u, which equals e^{b/2} x + (e^{b/2} - 1) v.
        ``"denoising"``: x + ½ b a(t) u.
        """
        if self.integrator == "exponential":
            return x + (self.signal(t + d) - self.signal(t)) * control
        if self.integrator == "denoising":
            return x + 0.5 * self.schedule.integral(t, t + d) * self.signal(t) * control
        beta = self.schedule.rate(t)
        return x + (0.5 * beta * x + 0.5 * beta * self.score(x, control, t)) * d

    def flow_weights(self, t: Array, d: Array) -> tuple[Array, Array]:
        """What a step of the probability flow takes of position and control: ``[]`` each."""
        zero, one = jnp.zeros(()), jnp.ones(())
        return self.flow_step(one, zero, t, d), self.flow_step(zero, one, t, d)

    def flow_divergence(self, control_divergence: Array, t: Array, d: Array) -> Array:
        """The OSDS paper's d · tr ∂(drift)/∂x of the probability flow at time t, given tr ∂u/∂x."""
        return 0.5 * self.schedule.rate(t) * self.signal(t) * control_divergence * d
