"""A control beside annealed Langevin dynamics: stochastic paths along given densities."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers import log_det, simulate
from consistent_samplers.bases import Component
from consistent_samplers.maps.control import MAX_INVERSION_ERROR, Control
from consistent_samplers.maps.identity import Proposal
from consistent_samplers.processes import GaussianKernel
from consistent_samplers.simulate import PathKernels
from consistent_samplers.simulate.controls import scan_steps
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey

# Of the exponent of ρ, which is linear in t between them.
_NUM_KNOTS = 16
# Bound on each coordinate of ∇ log(ρ/p0), as on the papers' guidance.
_MAX_RATIO = 1e2


@flax.struct.dataclass
class AnnealedControl(Control):
    """A control that corrects Langevin dynamics along π_t ∝ p0^{1-λ(t)} ρ^{λ(t)}.

    In the base's frame, with b = κ ∫β over a step from t to t + d of the process's schedule,

        forward     N(e^{-b/2} x  + (1 - e^{-b/2}) [λ(t) r(x) + u(x, t)],           1 - e^{-b})
        backward    N(e^{-b/2} x' + (1 - e^{-b/2}) [λ(t+d) r(x') - u(x', t+d)],     1 - e^{-b})

    with r = ∇ log(ρ/p0): -x + λ r is the score of π_t. ``"euler_maruyama"`` has 1 - b/2 in place of
    e^{-b/2} and b in place of 1 - e^{-b}. Parameters beside those of `Control`: the increments of λ
    (``"annealing"``, logits) and ``"log_rate"`` log κ. Untrained, λ(t) = t, κ = 1 and u = 0:
    unadjusted Langevin steps. There is no deterministic map (``max_flow_steps`` is 0), and every
    step evaluates the target's gradient.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> base, network = cs.bases.standard_normal(2), cs.networks.StepConditionedMLP(2, (8,))
      >>> control = cs.maps.AnnealedControl(base, network, cs.processes.OrnsteinUhlenbeck(), 0)
      >>> params, t = control.init(jax.random.key(0)), jnp.asarray(0.5)
      >>> control.draw(params, jax.random.key(1), 4, "path", gradient=jnp.negative).position.shape
      (2,)
      >>> float(control.target_share(params, t))
      0.5
    """

    @property
    def guided(self) -> bool:
        """Yes, with or without a guidance."""
        return True

    @property
    def injective(self) -> bool:
        """No: it has no map."""
        return False

    def init(self, rng_key: PRNGKey) -> dict[str, Params]:
        """Fresh parameters."""
        own = {"annealing": jnp.zeros(_NUM_KNOTS), "log_rate": jnp.zeros(())}
        return super().init(rng_key) | own

    def target_share(self, params: Params, t: Array) -> Array:
        """The exponent λ(t) of ρ, ``[]``, from 0 at the base to 1 at the target."""
        risen = jnp.cumsum(jax.nn.softmax(params["annealing"]))
        knots = jnp.linspace(0.0, 1.0, _NUM_KNOTS + 1)
        return jnp.interp(t, knots, jnp.concatenate([jnp.zeros(1), risen]))

    def carry(
        self,
        params: Params,
        z: Array,
        component: Component = (),
        num_steps: int = 1,
        gradient: GradientFn | None = None,
    ) -> tuple[Array, Array, Array]:
        """Raises a ValueError: there is no deterministic map."""
        raise ValueError("Annealed Langevin paths have no deterministic map: draw with 'path'.")

    def uncorrected_kernels(
        self, params: Params, component: Component, gradient: GradientFn | None
    ) -> PathKernels:
        """The Langevin steps with the control, forwards and backwards."""
        u = self.bind(params, component, gradient)
        step = functools.partial(self.langevin_kernel, params, component, gradient)
        return PathKernels(
            lambda x, t, d: step(x, t, u(x, t, d), t, d),
            lambda x_next, t, d: step(x_next, t + d, -u(x_next, t + d, d), t, d),
        )

    def langevin_kernel(
        self,
        params: Params,
        component: Component,
        gradient: GradientFn | None,
        x: Array,
        at: Array,
        push: Array | float,
        t: Array,
        d: Array,
    ) -> GaussianKernel:
        """The step from t to t + d along the score of π_at, with ``push [dim]`` beside λ r."""
        ratio = self.log_ratio_gradient(x, component, gradient)
        ratio = jnp.clip(ratio, -_MAX_RATIO, _MAX_RATIO)
        pull = self.target_share(params, at) * ratio + push
        rate, schedule = jnp.exp(params["log_rate"]), self.process.schedule
        if self.process.integrator == "euler_maruyama":
            b = rate * schedule.rate(t) * d
            return GaussianKernel(x + 0.5 * b * (pull - x), jnp.sqrt(b))
        b = rate * schedule.integral(t, t + d)
        mean = jnp.exp(-0.5 * b) * x - jnp.expm1(-0.5 * b) * pull
        return GaussianKernel(mean, jnp.sqrt(-jnp.expm1(-b)))


@flax.struct.dataclass
class StochasticFlow(AnnealedControl):
    """Layers of two kinds by turns: a learned injective step, then a Langevin step towards π_t.

    The k-th step of the control, x + c u(x, t, d) with a network that has a ``split``, carries the
    point from π_t towards π_{t+d}; an unadjusted Langevin step for π_{t+d} follows. The first adds
    the logarithm of its determinant to the weight, the second its density backwards over forwards,
    the same kernel both ways.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> base, network = cs.bases.standard_normal(2), cs.networks.Structured(2, rank=2)
      >>> flow = cs.maps.StochasticFlow(base, network, cs.processes.OrnsteinUhlenbeck(), 0)
      >>> params = flow.init(jax.random.key(0))
      >>> flow.draw(params, jax.random.key(1), 4, "path", gradient=lambda x: -x).position.shape
      (2,)
    """

    def kernels(
        self, params: Params, component: Component = (), gradient: GradientFn | None = None
    ) -> PathKernels:
        """Raises a ValueError: a layer is no Gaussian transition."""
        raise ValueError("Layers of a stochastic flow are no Gaussian steps: take its draws.")

    def follow(
        self,
        params: Params,
        rng_key: PRNGKey,
        z0: Array,
        component: Component,
        num_steps: int,
        gradient: GradientFn | None,
    ) -> tuple[Array, Array]:
        """Where the layers lead from z0 in a frame ``[dim]``, and what they add to log w ``[]``."""
        u = self.bind(params, component, gradient)
        langevin = functools.partial(self.langevin_kernel, params, component, gradient)

        def layer(z: Array, t: Array, d: Array, key: PRNGKey) -> tuple[Array, Any]:
            y, jacobian = simulate.flow_step_and_jacobian(u, self.process, z, t, d)
            forward = langevin(y, t + d, 0.0, t, d)
            z = forward.sample(key)
            backward = langevin(z, t + d, 0.0, t, d)
            return z, (jacobian, backward.log_prob(y) - forward.log_prob(z))

        keys = jax.random.split(rng_key, num_steps)
        end, (jacobians, ratios) = scan_steps(layer, z0, num_steps, keys)
        return end, log_det.slogdet(jacobians).log_abs_det.sum() + ratios.sum()

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw; see `Map.draw`."""
        key_base, key_path = jax.random.split(rng_key)
        z0, component = self.start_point(key_base)
        end, gained = self.follow(params, key_path, z0, component, num_steps, gradient)
        log_ratio = gained - simulate.standard_normal_log_prob(z0)
        return self.landed(end, component, log_ratio if weights else None)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio of a draw that ends at a point; see `Map.reverse`."""
        component = self.base.component_at(jax.random.fold_in(rng_key, 1), position)
        u = self.bind(params, component, gradient)
        langevin = functools.partial(self.langevin_kernel, params, component, gradient)

        def layer(z: Array, t: Array, d: Array, key: PRNGKey) -> tuple[Array, Any]:
            backward = langevin(z, t + d, 0.0, t, d)
            y = backward.sample(key)
            forward = langevin(y, t + d, 0.0, t, d)
            before = simulate.invert_step(u, self.process, y, t, d)
            again, jacobian = simulate.flow_step_and_jacobian(u, self.process, before, t, d)
            missed = jnp.sqrt(jnp.mean((again - y) ** 2))
            return before, (jacobian, backward.log_prob(y) - forward.log_prob(z), missed)

        keys = jax.random.split(rng_key, num_steps)
        z1 = self.base.whiten(position, component)
        z0, (jacobians, ratios, missed) = scan_steps(layer, z1, num_steps, keys, reverse=True)
        gained = log_det.slogdet(jacobians).log_abs_det.sum() + ratios.sum()
        log_ratio = self.base.log_correction(position, component) + gained
        log_ratio -= simulate.standard_normal_log_prob(z0)
        return jnp.where(missed.max() < MAX_INVERSION_ERROR, log_ratio, jnp.nan)
