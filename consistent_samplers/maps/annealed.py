"""A control beside annealed Langevin dynamics: stochastic paths along given densities."""

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers.bases import Component
from consistent_samplers.maps.control import Control
from consistent_samplers.processes import GaussianKernel
from consistent_samplers.simulate import PathKernels
from consistent_samplers.types import Array, GradientFn, Params, PRNGKey

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
        u, schedule = self.bind(params, component, gradient), self.process.schedule
        rate = jnp.exp(params["log_rate"])

        def kernel(x: Array, at: Array, sign: float, t: Array, d: Array) -> GaussianKernel:
            ratio = jnp.clip(
                self.log_ratio_gradient(x, component, gradient), -_MAX_RATIO, _MAX_RATIO
            )
            pull = self.target_share(params, at) * ratio + sign * u(x, at, d)
            if self.process.integrator == "euler_maruyama":
                b = rate * schedule.rate(t) * d
                return GaussianKernel(x + 0.5 * b * (pull - x), jnp.sqrt(b))
            b = rate * schedule.integral(t, t + d)
            mean = jnp.exp(-0.5 * b) * x - jnp.expm1(-0.5 * b) * pull
            return GaussianKernel(mean, jnp.sqrt(-jnp.expm1(-b)))

        return PathKernels(
            lambda x, t, d: kernel(x, t, 1.0, t, d),
            lambda x_next, t, d: kernel(x_next, t + d, -1.0, t, d),
        )
