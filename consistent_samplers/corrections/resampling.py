"""Stochastic paths that are resampled between steps: sequential Monte Carlo.

It keeps E[w] = Z whatever the sampler, and needs its control rather than its draws alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Component
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.corrections.annealing import AnnealedDraws, mended
from consistent_samplers.corrections.particles import check_paths, resampled_steps
from consistent_samplers.sampler import Sampler
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey


def resampled_paths(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    state: SamplerState,
    num_samples: int,
    num_steps: int,
    *,
    resample_below: float = 0.5,
) -> AnnealedDraws:
    """Stochastic paths that are resampled between steps: sequential Monte Carlo (Del Moral, 2006).

    After k of K steps a path is worth its weight against p0^{1-λ} ρ^λ in place of ρ, with
    λ = a(t)², the share of the target's variance that the noising has left there, or the exponent
    along which `algorithms.cmcd` anneals. Those that are worth little by then are dropped for
    copies of others, though not all of them: what is worth less than e^-2 of the mean is chosen as
    if it were worth that, and weighed for it. E[mean w] = Z for any number of steps.

    Arguments as in `annealed`, K being ``num_steps``. Paths are resampled where the share of
    effective ones falls below ``resample_below``; never if it is 0.

    Returns:
      Draws of ``bound="lower"`` and the share of effective paths before each step's resampling. In
      expectation the log of the draws' mean weight is a lower bound of log Z; each log weight by
      itself is none. Copies are dependent: ``log_z_stderr`` counts their ancestors.

    Raises:
      ValueError: fewer than two draws, a sampler without paths of Gaussian steps, or ``num_steps``
        that it does not take.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.dis(target, base=base, max_steps=4, hidden=(8,))
      >>> state = algorithm.init(jax.random.key(0))
      >>> result = cs.corrections.resampled_paths(jax.random.key(1), algorithm, state, 200, 4)
      >>> result.draws.position.shape, result.acceptance.shape
      ((200, 1), (4,))
    """
    check_paths(algorithm, num_steps)
    check_integer("num_samples", num_samples, 2)
    density = as_partial(algorithm.target.log_density)
    draws, origin, effective = _paths(
        rng_key,
        algorithm.sampler(state),
        density,
        resample_below,
        num_samples=int(num_samples),
        num_steps=int(num_steps),
    )
    return mended(draws, origin, effective, algorithm)


@functools.partial(jit, static_argnames=("num_samples", "num_steps"))
def _paths(
    rng_key: PRNGKey,
    sampler: Sampler,
    log_density: LogDensityFn,
    resample_below: Array | float,
    *,
    num_samples: int,
    num_steps: int,
) -> tuple[Draws, Array, Array]:
    """Draws, the start that each descends from, and the share of effective ones by step."""
    control: Any = sampler.control
    base, params = control.base, sampler.params
    gradient = jax.grad(lambda x: log_density(x)) if control.guided else None

    def advance(
        key: PRNGKey, particle: tuple[Array, Component], t: Array, d: Array
    ) -> tuple[tuple[Array, Component], Array, Array]:
        z, component = particle
        kernels = control.kernels(params, component, gradient)
        forward = kernels.forward(z, t, d)
        after = forward.sample(key)
        gained = kernels.backward(after, t, d).log_prob(z) - forward.log_prob(after)
        # All of a path is weighed against the base that it came from.
        gained -= jnp.where(t > 0.0, 0.0, simulate.standard_normal_log_prob(z))
        log_base = simulate.standard_normal_log_prob(after)
        log_rho = base.whitened_log_density(log_density, component)(after)
        share = control.target_share(params, t + d)
        return (after, component), gained, log_base + share * (log_rho - log_base)

    key_base, key_component, key_steps = jax.random.split(rng_key, 3)
    z = jax.random.normal(key_base, (num_samples, base.dim))
    component = control.draw_components(key_component, num_samples)
    (z, component), log_weight, origin, effective = resampled_steps(
        key_steps, (z, component), advance, num_steps, resample_below
    )
    x = jax.vmap(base.unwhiten)(z, component)
    values = jax.vmap(lambda x: log_density(x))(x)
    return Draws(x, log_weight, values, bound="lower"), origin, effective
