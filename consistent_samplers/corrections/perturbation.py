"""Flow perturbation: exact weights of a deterministic map without its Jacobian."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.maps import Control
from consistent_samplers.processes import GaussianKernel
from consistent_samplers.sampler import Sampler, weighed
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.simulate import ControlFn
from consistent_samplers.simulate.controls import scan_steps
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey

# Draws that a backward noise is measured on.
_NUM_PILOT = 256


def perturbed(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    state: SamplerState,
    num_samples: int,
    num_steps: int = 1,
    *,
    noise: float = 0.05,
    backward_noise: float | None = None,
    num_iterations: int = 8,
) -> Draws:
    """Draws of a deterministic map with a little noise, whose weights need no Jacobian.

    Peng & Gao, "Flow perturbation to accelerate unbiased sampling of Boltzmann distribution", 2024,
    arXiv:2407.10666. For z ~ p0 and x = T(z) + s ε in the frame of the base,

        log w = log ρ(x) - log p0(z) + log N(z; g(x), s_b² I) - log N(x; T(z), s² I),

    with E[w] = Z for every function g. The closer g is to the inverse of T, the less w varies. Here
    it is a fixed-point iteration, y ← y + x - T(y) from x, of whose iterates the one with the least
    ‖x - T(y)‖ counts; it converges where T is close to the identity, ‖∂T - I‖ < 1. Of several steps
    each is perturbed.

    Compared with the exact determinant, a draw of a linear T = J has additional log weight
    ½ ε·(I - A) ε + const, A = (s / s_b)² J⁻ᵀ J⁻¹: the price is a variance of ½ tr (I - A)². The
    variance of w itself is infinite where a singular value of J exceeds √2 s / s_b. So the method
    is for many dimensions, where the base has left little for the map to do.

    Args:
      rng_key: PRNG key.
      algorithm: a sampler whose map consists of flow steps.
      state: its state.
      num_samples: number of draws.
      num_steps: steps of the map.
      noise: s, in standard deviations of the base.
      backward_noise: s_b; if None the root mean square of z - g(x) on pilot draws with a key of
        their own, by step, which makes E[log w] largest.
      num_iterations: evaluations of a step that g takes, beside a last one to judge it by.

    Returns:
      Draws of ``bound="lower"``: position ``[num_samples, dim]``, weights in nats.

    Raises:
      ValueError: a number or a noise out of range, ``num_steps`` that the sampler was not trained
        for, or a map without flow steps.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.osds(target, base=base, max_steps=1, hidden=(8,), guidance=None)
      >>> key, state = jax.random.key(1), algorithm.init(jax.random.key(0))  # not trained
      >>> draws = cs.corrections.perturbed(key, algorithm, state, 1_000)
      >>> draws.bound, bool(abs(cs.evidence(draws).log_z - target.log_z) < 0.3)
      ('lower', True)
    """
    control = algorithm.control
    check_integer("num_samples", num_samples)
    check_integer("num_iterations", num_iterations)
    for name, value in (("noise", noise), ("backward_noise", backward_noise)):
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    check_num_steps(num_steps, control.max_flow_steps)
    if not isinstance(control, Control):
        raise ValueError(
            f"The map of {algorithm.name!r}, a {type(control).__name__}, has no flow steps to "
            "perturb. Take its own weights, of algorithm.sample: their determinant is cheap."
        )
    x, log_ratio = _perturbed(
        rng_key,
        algorithm.sampler(state),
        as_partial(algorithm.target.log_density),
        noise,
        backward_noise,
        num_samples=int(num_samples),
        num_steps=int(num_steps),
        num_iterations=int(num_iterations),
    )
    return weighed(algorithm.target, x, log_ratio, "lower")


@functools.partial(jit, static_argnames=("num_samples", "num_steps", "num_iterations"))
def _perturbed(
    rng_key: PRNGKey,
    sampler: Sampler,
    density: LogDensityFn,
    noise: Array | float,
    backward_noise: Array | float | None,
    *,
    num_samples: int,
    num_steps: int,
    num_iterations: int,
) -> tuple[Array, Array]:
    """Draws ``[n, dim]`` and the log ratios ``[n]`` of their weights."""
    control: Any = sampler.control
    params = sampler.params
    gradient = jax.grad(lambda x: density(x)) if control.guided else None

    def one(key: PRNGKey, backward_std: Array) -> tuple[Array, Array, Array]:
        """A draw ``[dim]``, its log ratio ``[]`` and mean squares ``[num_steps]`` of z - g(x)."""
        key_base, key_component, key_noise = jax.random.split(key, 3)
        component = control.base.draw_component(key_component)
        u = control.bind(params, component, gradient)
        z = jax.random.normal(key_base, (control.dim,))

        def step(z: Array, t: Array, d: Array, key: PRNGKey, std: Array) -> Any:
            forward = GaussianKernel(
                simulate.flow_step(u, control.process, z, t, d), jnp.asarray(noise)
            )
            x = forward.sample(key)
            back = _approximate_inverse(u, control, x, t, d, num_iterations)
            log_ratio = GaussianKernel(back, std).log_prob(z) - forward.log_prob(x)
            return x, (log_ratio, jnp.mean((z - back) ** 2))

        keys = jax.random.split(key_noise, num_steps)
        x, (log_ratio, square) = scan_steps(step, z, num_steps, keys, backward_std)
        x, correction = control.place(x, component)
        log_ratio = log_ratio.sum() - simulate.standard_normal_log_prob(z) + correction
        return x, log_ratio, square

    key_pilot, key_draws = jax.random.split(rng_key)
    if backward_noise is None:
        # Any value is valid that the draws themselves do not decide on.
        equal = jnp.full(num_steps, noise)
        squares = jax.vmap(lambda key: one(key, equal)[2])(jax.random.split(key_pilot, _NUM_PILOT))
        std = jnp.sqrt(jnp.nanmean(jnp.where(jnp.isfinite(squares), squares, jnp.nan), axis=0))
        std = jnp.where(std > 0.0, std, noise)
    else:
        std = jnp.full(num_steps, backward_noise)
    keys = jax.random.split(key_draws, num_samples)
    x, log_ratio, _ = jax.lax.map(lambda key: one(key, std), keys, batch_size=256)
    return x, log_ratio


def _approximate_inverse(
    u: ControlFn, control: Control, x: Array, t: Array, d: Array, num_iterations: int
) -> Array:
    """About the point ``[dim]`` that a flow step takes to x: always a finite function of x."""

    def iterate(carry: tuple[Array, Array, Array], _: None) -> tuple[Any, None]:
        y, best, least = carry
        missed = x - simulate.flow_step(u, control.process, y, t, d)
        left = jnp.sum(missed**2)
        # An iteration that diverges leaves the kernel a density: NaN is never better.
        best, least = jnp.where(left < least, y, best), jnp.fmin(left, least)
        return (y + missed, best, least), None

    start = (x, x, jnp.full((), jnp.inf, x.dtype))
    (_, best, _), _ = jax.lax.scan(iterate, start, None, length=num_iterations + 1)
    return best
