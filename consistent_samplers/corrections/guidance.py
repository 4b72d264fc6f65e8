"""Guidance by a reward without derivatives: soft values of candidates at every step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Component
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.corrections.particles import check_paths
from consistent_samplers.sampler import Sampler, weighed
from consistent_samplers.schedules import time_grid
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey

# Nats that a value may fall short of the best candidate's before the end. A reward that jumps says
# of a path that may still reach it that it will not: left at that, such paths are never chosen, and
# their mass is missing from the weights of any number of draws that one makes.
_MOST_BEHIND = 2.0


def guided(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    state: SamplerState,
    log_reward: Callable[[Array], Array],
    num_samples: int,
    num_steps: int,
    *,
    num_candidates: int = 8,
) -> Draws:
    """Draws of ρ(x) exp r(x) from a sampler of ρ, for a reward that need not be differentiable.

    SVDD: Li et al., "Derivative-free guidance in continuous and discrete diffusion models with soft
    value-based decoding", 2024, arXiv:2408.08252. At every step M candidates are drawn from the
    sampler's own kernel, valued by the reward at the end that the control predicts for them,
    v(x, t) = r(E[x_1 | x_t = x]), and one is chosen with probability ∝ exp v. That alone is biased
    for a finite M. Before the end a value counts as at most 2 nats below the best of its step, so
    that a wrong prediction can be made up for. The weights here are exact,

        w = w_path(x) exp r(x_K) Π_k [ (1/M) Σ_j exp v(x_k^j) ] exp -v(x_k),

    x_k being the chosen one: averaged over the choice, a factor makes of it a draw of the kernel
    again, even where values depend on the other candidates. So E[w] = ∫ ρ exp r whatever the values
    are, and good ones make w even. Of a reward that jumps they are not: more candidates bring more
    draws to it, and no more effective ones.

    Args:
      rng_key: PRNG key.
      algorithm: a trained sampler with stochastic paths.
      state: its state.
      log_reward: x ``[dim]`` -> ``[]`` in nats, the reward over its temperature; -inf or NaN where
        nothing is to be drawn.
      num_samples: number of draws.
      num_steps: steps of the path.
      num_candidates: M; each step takes M + 1 network evaluations and M of the reward.

    Returns:
      Draws of ``bound="lower"`` for ρ exp r, whose log density is theirs.

    Raises:
      ValueError: a sampler without paths that reverse a noising, a number that it does not take,
        or a reward that is no scalar.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.zeros(1), jnp.eye(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.dis(target, base=base, max_steps=8, hidden=(8,))
      >>> state = algorithm.init(jax.random.key(0))  # base and target agree
      >>> key, above = jax.random.key(1), lambda x: jnp.where(x[0] > 1.0, 0.0, -5.0)
      >>> draws = cs.corrections.guided(key, algorithm, state, above, 500, 8)
      >>> bool((draws.position > 1.0).mean() > 0.3)  # 16 % of the target
      True
    """
    check_paths(algorithm, num_steps, noised=True)
    check_integer("num_samples", num_samples)
    check_integer("num_candidates", num_candidates)
    density, name = algorithm.target.log_density, f"{algorithm.target.name} + log_reward"
    rewarded = Partial(_rewarded, as_partial(density), as_partial(log_reward))
    # Made first: it refuses a reward that is no number.
    target = Target(rewarded, algorithm.target.dim, name)
    position, log_ratio = _guided(
        jax.random.split(rng_key, num_samples),
        algorithm.sampler(state),
        as_partial(density),
        as_partial(log_reward),
        num_steps=int(num_steps),
        num_candidates=int(num_candidates),
    )
    return weighed(target, position, log_ratio, "lower")


def _rewarded(density: LogDensityFn, log_reward: LogDensityFn, x: Array) -> Array:
    return density(x) + log_reward(x)


@functools.partial(jit, static_argnames=("num_steps", "num_candidates"))
def _guided(
    keys: Array,
    sampler: Sampler,
    density: LogDensityFn,
    log_reward: LogDensityFn,
    *,
    num_steps: int,
    num_candidates: int,
) -> tuple[Array, Array]:
    """Ends ``[n, dim]`` of paths of one key each, and the log ratios ``[n]`` of their weights."""
    control: Any = sampler.control
    params, base = sampler.params, control.base
    gradient = jax.grad(lambda x: density(x)) if control.guided else None
    d = jnp.asarray(1.0 / num_steps)

    def reward(z: Array, component: Component) -> Array:
        return jnp.maximum(
            jnp.nan_to_num(log_reward(base.unwhiten(z, component)), nan=-1e30), -1e30
        )

    def one(key: PRNGKey) -> tuple[Array, Array]:
        key_base, key_path = jax.random.split(key)
        z0, component = control.start_point(key_base)
        kernels = control.kernels(params, component, gradient)
        u = control.bind(params, component, gradient)

        def value(z: Array, t: Array) -> Array:
            a = control.process.signal(t)
            # At the end the prediction is the point itself.
            ahead = (1.0 - a**2) * u(z, jnp.minimum(t, 1.0 - d), d)
            return reward(a * z + ahead, component)

        def step(z: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
            t, key = inputs
            key_noise, key_choice = jax.random.split(key)
            forward = kernels.forward(z, t, d)
            noise = jax.random.normal(key_noise, (num_candidates, *z.shape))
            candidates = forward.mean + forward.std * noise
            values = jax.vmap(value, (0, None))(candidates, t + d)
            behind = jnp.maximum(values, jnp.max(values) - _MOST_BEHIND)
            values = jnp.where(t + d < 1.0 - 0.5 * d, behind, values)
            index = jax.random.categorical(key_choice, values)
            chosen = candidates[index]
            log_ratio = kernels.backward(chosen, t, d).log_prob(z) - forward.log_prob(chosen)
            even = jax.nn.logsumexp(values) - jnp.log(num_candidates) - values[index]
            return chosen, log_ratio + even

        inputs = (time_grid(num_steps), jax.random.split(key_path, num_steps))
        end, ratios = jax.lax.scan(step, z0, inputs)
        log_ratio = ratios.sum() - simulate.standard_normal_log_prob(z0)
        landed = control.landed(end, component, log_ratio)
        return landed.position, landed.log_ratio

    ends: tuple[Array, Array] = jax.lax.map(one, keys, batch_size=256)
    return ends
