"""The map of a consistency model: to where the probability flow ends, from any time."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers import log_det, simulate
from consistent_samplers.maps.control import MAX_INVERSION_ERROR, Control, Proposal
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.schedules import time_grid
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class DenoisingProcess(OrnsteinUhlenbeck):
    """The noising process with a flow "step" that goes from t all the way to the target.

    Attributes:
      skip: ``"flow"`` x + (1 - a(t)) F, one step of the probability flow with the control F, or
        ``"paper"`` c_skip x + c_out F with c_skip = σ_d² / (τ² + σ_d²) and c_out = τ σ_d /
        √(τ² + σ_d²), τ = 1 - t.
      data_std: the paper's σ_d.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.maps.DenoisingProcess(skip="paper")
      >>> x, t = jnp.ones(2), jnp.asarray(1.0)
      >>> process.flow_step(x, 5.0 * x, t, 1.0 - t).tolist()  # at the target: nothing is left
      [1.0, 1.0]
    """

    skip: Literal["flow", "paper"] = "flow"
    data_std: float = 0.5

    def flow_step(self, x: Array, control: Array, t: Array, d: Array) -> Array:
        """The student f(x, t); the size d of the step is what remains."""
        if self.skip == "flow":
            return x + (1.0 - self.signal(t)) * control
        remaining, variance = 1.0 - t, self.data_std**2
        total = remaining**2 + variance
        return variance / total * x + remaining * self.data_std / jnp.sqrt(total) * control


@flax.struct.dataclass
class Denoiser(Control):
    """A control whose flow step is the consistency function f(x, t), with f(x, 1) = x.

    One step of a draw is f(·, 0). With more, all but the last denoise and put noise back in; the
    weight has the kernels of that chain against their noising, and the determinant of the last map:
    E[w] = Z wherever that map is injective.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> denoiser = cs.maps.Denoiser(
      ...     cs.bases.standard_normal(2),
      ...     cs.networks.StepConditionedMLP(dim=2, hidden=(8,)),
      ...     cs.maps.DenoisingProcess(),
      ...     max_flow_steps=1,
      ... )
      >>> params = denoiser.init(jax.random.key(0))
      >>> denoiser.denoise(params, jnp.ones(2), jnp.asarray(0.5)).tolist()  # untrained
      [1.0, 1.0]
    """

    @property
    def injective(self) -> bool:
        """No: the paper's scalings may exceed what keeps a structured step injective."""
        return False

    def denoise(
        self, params: Params, x: Array, t: Array, gradient: GradientFn | None = None
    ) -> Array:
        """The consistency function f(x, t): ``[dim] -> [dim]``."""
        u = self.bind(params, (), gradient)
        return simulate.flow_step(u, self.process, x, t, 1.0 - t)

    def _renoising(self, params: Params, gradient: GradientFn | None) -> simulate.PathKernels:
        """Denoise and renoise to t + d; and the noising from there back to t."""
        schedule = self.process.schedule

        def forward(x: Array, t: Array, d: Array) -> GaussianKernel:
            remaining = schedule.integral(t + d, 1.0)
            mean = jnp.exp(-0.5 * remaining) * self.denoise(params, x, t, gradient)
            return GaussianKernel(mean, jnp.sqrt(-jnp.expm1(-remaining)))

        return simulate.PathKernels(forward, self.process.backward_kernel)

    def _chain(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None
    ) -> Array:
        """Points from the base up to the last map: ``[num_steps, dim]``."""
        key_base, key_path = jax.random.split(rng_key)
        z0 = jax.random.normal(key_base, (self.dim,))
        kernels, d = self._renoising(params, gradient), jnp.asarray(1.0 / num_steps)

        def step(x: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
            t, key = inputs
            x_next = kernels.forward(x, t, d).sample(key)
            return x_next, x_next

        inputs = (time_grid(num_steps)[:-1], jax.random.split(key_path, num_steps)[:-1])
        _, path = jax.lax.scan(step, z0, inputs)
        return jnp.concatenate([z0[None], path])

    def _weigh(
        self, params: Params, path: Array, num_steps: int, gradient: GradientFn | None
    ) -> tuple[Array, Array, Array]:
        """End point, log ratio in the frame and whether the last map folds, of a chain."""
        last = jnp.asarray(1.0 - 1.0 / num_steps)
        u = self.bind(params, (), gradient)
        z1, jacobian = simulate.flow_step_and_jacobian(u, self.process, path[-1], last, 1.0 - last)
        det = log_det.slogdet(jacobian)
        kernels = self._renoising(params, gradient)
        log_ratio = simulate.path_log_ratio(path, kernels, num_steps).sum()
        log_p0 = simulate.standard_normal_log_prob(path[0])
        return z1, log_ratio - log_p0 + det.log_abs_det, det.sign <= 0

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw; see `Control.draw`."""
        path = self._chain(params, rng_key, num_steps, gradient)
        if not weights:
            last = jnp.asarray(1.0 - 1.0 / num_steps)
            x = self.base.unwhiten(self.denoise(params, path[-1], last, gradient), ())
            return Proposal(x, jnp.zeros((), x.dtype))
        z1, log_ratio, folded = self._weigh(params, path, num_steps, gradient)
        x = self.base.unwhiten(z1, ())
        return Proposal(x, log_ratio + self.base.log_correction(x, ()), folded)

    def _undo_last(
        self, params: Params, z1: Array, num_steps: int, gradient: GradientFn | None
    ) -> Array:
        last = jnp.asarray(1.0 - 1.0 / num_steps)
        u = self.bind(params, (), gradient)
        return simulate.invert_step(u, self.process, z1, last, 1.0 - last)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio of a draw that ends at a point; see `Control.reverse`."""
        z1, d = self.base.whiten(position, ()), jnp.asarray(1.0 / num_steps)
        end = self._undo_last(params, z1, num_steps, gradient)

        def step(x_next: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
            t, key = inputs
            x = self.process.backward_kernel(x_next, t, d).sample(key)
            return x, x

        inputs = (time_grid(num_steps)[:-1], jax.random.split(rng_key, num_steps)[:-1])
        _, path = jax.lax.scan(step, end, inputs, reverse=True)
        path = jnp.concatenate([path, end[None]])
        reached, log_ratio, _ = self._weigh(params, path, num_steps, gradient)
        error = jnp.sqrt(jnp.mean((reached - z1) ** 2))
        log_ratio += self.base.log_correction(position, ())
        return jnp.where(error < MAX_INVERSION_ERROR, log_ratio, jnp.nan)

    def round_trip(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        gradient: GradientFn | None = None,
    ) -> Array:
        """What the inverse of the last map misses; see `Control.round_trip`."""
        end = self._chain(params, rng_key, num_steps, gradient)[-1]
        z1 = self.denoise(params, end, jnp.asarray(1.0 - 1.0 / num_steps), gradient)
        return jnp.sqrt(jnp.mean((self._undo_last(params, z1, num_steps, gradient) - end) ** 2))
