"""Stochastic paths with their weights, forwards and backwards."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.simulate.controls import ControlFn, scan_steps, standard_normal_log_prob
from consistent_samplers.types import Array, LogDensityFn, PRNGKey


class PathKernels(NamedTuple):
    """The transitions of a stochastic sampler, with their parameters.

    Attributes:
      forward: ``(x [dim], t [], d []) -> F(· | x)``, the generative kernel from t to t + d.
      backward: ``(x_next [dim], t [], d []) -> B(· | x_next)``, from t + d back to t.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.PathKernels(
      ...     forward=lambda x, t, d: process.forward_kernel(x, 0.5 * x, t, d),
      ...     backward=process.backward_kernel,
      ... )
      >>> kernels.backward(jnp.ones(2), t=0.0, d=1.0).mean.shape
      (2,)
    """

    forward: Callable[[Array, Array, Array], GaussianKernel]
    backward: Callable[[Array, Array, Array], GaussianKernel]


class StochasticPath(NamedTuple):
    """One simulated path of the generative SDE.

    Attributes:
      position: ``[num_steps + 1, dim]``, from the base to the target.
      log_ratio: ``[num_steps]``, log B(x_k | x_{k+1}) - log F(x_{k+1} | x_k).
      log_weight: ``[]``, log w of the path in nats, with E[w] = Z.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> path = cs.simulate.StochasticPath(jnp.zeros((3, 2)), jnp.zeros(2), jnp.asarray(0.0))
      >>> path.position[-1].shape, path.log_ratio.shape  # the end of two steps; one ratio a step
      ((2,), (2,))
    """

    position: Array
    log_ratio: Array
    log_weight: Array


def noising_kernels(control: ControlFn, process: OrnsteinUhlenbeck) -> PathKernels:
    """The process's own kernels: generative with a control, backward the fixed noising.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> forward, backward = (kernel(jnp.ones(2), 0.5, 0.5).mean for kernel in kernels)
      >>> bool(jnp.allclose(forward, backward))
      True
    """
    return PathKernels(
        lambda x, t, d: process.forward_kernel(x, control(x, t, d), t, d), process.backward_kernel
    )


def stochastic_path(
    rng_key: PRNGKey,
    x0: Array,
    kernels: PathKernels,
    log_density: LogDensityFn,
    num_steps: int,
    *,
    density_kernels: PathKernels | None = None,
) -> StochasticPath:
    """A path of the generative SDE, weighed against its noising.

    log w = log ρ(x_K) - log p0(x_0) + Σ_k [log B(x_k | x_{k+1}) - log F(x_{k+1} | x_k)], with
    E[w] = Z for any kernels and any number of steps (Richter & Berner, 2024, in discrete time).
    The path is weighed by ``density_kernels`` if given, else by the kernels that move it: with the
    forward one's parameters constant, log w has the path gradient (Vaitl et al., 2022).

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> log_density, key = cs.simulate.standard_normal_log_prob, jax.random.key(0)
      >>> path = cs.simulate.stochastic_path(key, jnp.ones(2), kernels, log_density, num_steps=4)
      >>> bool(abs(path.log_weight) < 1e-3)  # the target is the base: no control is needed
      True
    """
    position, log_ratio = simulate_path(
        rng_key, x0, kernels, num_steps, density_kernels=density_kernels
    )
    return StochasticPath(position, log_ratio, path_log_weight(position, log_ratio, log_density))


def simulate_path(
    rng_key: PRNGKey,
    x0: Array,
    kernels: PathKernels,
    num_steps: int,
    *,
    density_kernels: PathKernels | None = None,
) -> tuple[Array, Array]:
    """`stochastic_path` without the densities: its points and its log ratios.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> process, key = cs.processes.OrnsteinUhlenbeck(), jax.random.key(0)
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> position, log_ratio = cs.simulate.simulate_path(key, jnp.ones(2), kernels, num_steps=4)
      >>> position.shape, log_ratio.shape
      ((5, 2), (4,))
    """

    # Recomputed in the backward pass: cheaper, on CPUs too, than to store and load what every step
    # computes. Only the noise is drawn once for both passes.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(x: Array, t: Array, d: Array, noise: Array) -> tuple[Array, tuple[Array, Array]]:
        moving = kernels.forward(x, t, d)
        x_next = moving.mean + moving.std * noise
        if density_kernels is None:
            # As a function of the noise it has no gradient by the path to compute.
            log_forward = jnp.sum(jax.scipy.stats.norm.logpdf(noise) - jnp.log(moving.std))
        else:
            log_forward = density_kernels.forward(x, t, d).log_prob(x_next)
        backward = (density_kernels or kernels).backward(x_next, t, d)
        return x_next, (x_next, backward.log_prob(x) - log_forward)

    keys = jax.random.split(rng_key, num_steps)
    noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape, x0.dtype))(keys)
    _, (path, log_ratio) = scan_steps(step, x0, num_steps, noise)
    return jnp.concatenate([x0[None], path]), log_ratio


def backward_path(rng_key: PRNGKey, x1: Array, kernels: PathKernels, num_steps: int) -> Array:
    """A path from ``x1 [dim]`` back to the base by the backward kernels: ``[num_steps + 1, dim]``.

    Its points are in generative order, x1 last. Weighed by `path_log_ratio`, paths from exact draws
    of the target give the evidence upper bound E[log w] (Blessing et al., 2024).

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> cs.simulate.backward_path(jax.random.key(0), jnp.ones(2), kernels, num_steps=4).shape
      (5, 2)
    """

    def step(x_next: Array, t: Array, d: Array, key: PRNGKey) -> tuple[Array, Array]:
        x = kernels.backward(x_next, t, d).sample(key)
        return x, x

    keys = jax.random.split(rng_key, num_steps)
    _, path = scan_steps(step, x1, num_steps, keys, reverse=True)
    return jnp.concatenate([path, x1[None]])


def path_log_ratio(
    position: Array, kernels: PathKernels, num_steps: int, first: Array | int = 0
) -> Array:
    """Log B(x_k | x_{k+1}) - log F(x_{k+1} | x_k) ``[num_points - 1]`` of given points.

    ``position [num_points, dim]`` holds consecutive points of a path of ``num_steps``, from the one
    at index ``first``. All are weighed at once: losses on given paths have no recursion to
    differentiate through.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> cs.simulate.path_log_ratio(jnp.ones((5, 2)), kernels, num_steps=4).shape
      (4,)
    """
    d = jnp.asarray(1.0 / num_steps)
    t = (first + jnp.arange(position.shape[0] - 1)) / num_steps

    def log_ratio(x: Array, x_next: Array, t: Array) -> Array:
        backward, forward = kernels.backward(x_next, t, d), kernels.forward(x, t, d)
        return backward.log_prob(x) - forward.log_prob(x_next)

    return jax.vmap(log_ratio)(position[:-1], position[1:], t)


def path_log_weight(position: Array, log_ratio: Array, log_density: LogDensityFn) -> Array:
    """Log weight ``[]`` of a path, from its points and log ratios as in `StochasticPath`.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> log_density = cs.simulate.standard_normal_log_prob
      >>> float(cs.simulate.path_log_weight(jnp.ones((3, 2)), jnp.zeros(2), log_density))
      0.0
    """
    return log_density(position[-1]) - standard_normal_log_prob(position[0]) + log_ratio.sum()
