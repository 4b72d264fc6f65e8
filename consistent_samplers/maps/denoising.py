"""The map of a consistency model: to where the probability flow ends, from any time."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers import log_det, simulate
from consistent_samplers.maps.control import Control
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.schedules import time_grid
from consistent_samplers.simulate import ControlFn, PathKernels
from consistent_samplers.types import Array, GradientFn, Params, PRNGKey

KernelFn: TypeAlias = Callable[[Array, Array, Array], GaussianKernel]


@dataclasses.dataclass(frozen=True)
class DenoisingProcess(OrnsteinUhlenbeck):
    """The noising process with a flow "step" that goes from t all the way to the target.

    Attributes:
      skip: ``"flow"`` x + (1 - a(t)) F, one step of the probability flow with the control F, or
        ``"paper"`` c_skip x + c_out F with c_skip = σ_d² / (τ² + σ_d²) and c_out = τ σ_d /
        √(τ² + σ_d²), τ = 1 - t.
      data_std: the paper's σ_d.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
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
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> base, network = cs.bases.standard_normal(2), cs.networks.StepConditionedMLP(2, (8,))
      >>> denoiser = cs.maps.Denoiser(base, network, cs.maps.DenoisingProcess(), 1)
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
        return self._denoised(self.bind(params, (), gradient), x, t)

    def _denoised(self, u: ControlFn, x: Array, t: Array) -> Array:
        return simulate.flow_step(u, self.process, x, t, 1.0 - t)

    def _renoising(self, u: ControlFn) -> PathKernels:
        """Denoise and renoise to t + d; and the noising from there back to t."""

        def forward(x: Array, t: Array, d: Array) -> GaussianKernel:
            remaining = self.process.schedule.integral(t + d, 1.0)
            mean = jnp.exp(-0.5 * remaining) * self._denoised(u, x, t)
            return GaussianKernel(mean, jnp.sqrt(-jnp.expm1(-remaining)))

        return PathKernels(forward, self.process.backward_kernel)

    def _chain(self, u: ControlFn, rng_key: PRNGKey, z0: Array, num_steps: int) -> Array:
        """Points from the base up to the last map: ``[num_steps, dim]``."""
        path = _moved(self._renoising(u).forward, z0, rng_key, num_steps)
        return jnp.concatenate([z0[None], path])

    def _weigh(self, u: ControlFn, path: Array, num_steps: int) -> tuple[Array, Array, Array]:
        """End point and log ratio of a chain, and whether its last map folds."""
        last = _last(num_steps)
        z1, jacobian = simulate.flow_step_and_jacobian(u, self.process, path[-1], last, 1.0 - last)
        det = log_det.slogdet(jacobian)
        log_ratio = simulate.path_log_ratio(path, self._renoising(u), num_steps).sum()
        return z1, log_ratio + det.log_abs_det, det.sign <= 0

    def _undo_last(self, u: ControlFn, z1: Array, num_steps: int) -> Array:
        last = _last(num_steps)
        return simulate.invert_step(u, self.process, z1, last, 1.0 - last)

    def _carry(
        self, u: ControlFn, rng_key: PRNGKey, z0: Array, num_steps: int, weights: bool
    ) -> tuple[Array, Array, Array | None]:
        path = self._chain(u, rng_key, z0, num_steps)
        if not weights:
            return self._denoised(u, path[-1], _last(num_steps)), jnp.zeros(()), None
        return self._weigh(u, path, num_steps)

    def _carry_back(
        self, u: ControlFn, rng_key: PRNGKey, z1: Array, num_steps: int
    ) -> tuple[Array, Array, Array]:
        end = self._undo_last(u, z1, num_steps)
        path = _moved(self.process.backward_kernel, end, rng_key, num_steps, reverse=True)
        path = jnp.concatenate([path, end[None]])
        reached, log_ratio, _ = self._weigh(u, path, num_steps)
        return path[0], reached, log_ratio

    def round_trip(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None = None
    ) -> Array:
        """What the inverse of the last map misses; see `Map.round_trip`."""
        key_base, key_path = jax.random.split(rng_key)
        z0, u = self.start_point(key_base)[0], self.bind(params, (), gradient)
        end = self._chain(u, key_path, z0, num_steps)[-1]
        z1 = self._denoised(u, end, _last(num_steps))
        return jnp.sqrt(jnp.mean((self._undo_last(u, z1, num_steps) - end) ** 2))


def _last(num_steps: int) -> Array:
    """The time at which the last map of a chain starts."""
    return jnp.asarray(1.0 - 1.0 / num_steps)


def _moved(
    kernel: KernelFn, start: Array, rng_key: PRNGKey, num_steps: int, reverse: bool = False
) -> Array:
    """Where a kernel leads in all steps but the last, by time: ``[num_steps - 1, dim]``."""
    d = jnp.asarray(1.0 / num_steps)

    def step(x: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
        t, key = inputs
        x = kernel(x, t, d).sample(key)
        return x, x

    inputs = (time_grid(num_steps)[:-1], jax.random.split(rng_key, num_steps)[:-1])
    return jax.lax.scan(step, start, inputs, reverse=reverse)[1]
