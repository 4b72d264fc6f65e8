"""Parallel tempering from a base to a target: reference draws, log Z, and what they cost."""

import functools
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases import GaussianBase
from consistent_samplers.bridge import bridge
from consistent_samplers.compilation import jit
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, PRNGKey

# Acceptance that step sizes are adapted to, and leapfrog steps of a move.
_ACCEPTANCE, _NUM_LEAPFROG = 0.8, 4


class Tempered(NamedTuple):
    """What parallel tempering gives.

    Attributes:
      position: ``[num_chains, num_samples, dim]``, of the target itself.
      log_z: by bridges between neighbouring temperatures, and its standard error.
      swapped: ``[num_temperatures - 1]`` mean acceptance of swaps.
      num_evaluations: of the density with its gradient, warm-up included.
    """

    position: np.ndarray
    log_z: float
    log_z_stderr: float
    swapped: np.ndarray
    num_evaluations: int


def parallel_tempering(
    rng_key: PRNGKey,
    target: Target,
    base: GaussianBase,
    num_samples: int = 500,
    *,
    num_temperatures: int = 12,
    num_chains: int = 32,
    num_warmup: int = 500,
    thinning: int = 4,
) -> Tempered:
    """Chains at all temperatures side by side, p0^{1-β} ρ^β in the coordinates of the base.

    BlackJAX's HMC moves each, with a step size of its own temperature, and neighbours swap by turns
    (Geyer, 1991). β rises as a square: the end of the base is where the density changes most.
    """
    betas = jnp.linspace(0.0, 1.0, num_temperatures) ** 2
    run = jit(functools.partial(_run, target.log_density, betas, num_chains, thinning))
    key_warm, key_run = jax.random.split(rng_key)
    z = jax.random.normal(key_warm, (num_temperatures, num_chains, base.dim))
    sizes = jnp.full(num_temperatures, 0.5 * base.dim**-0.25)
    keys = jax.random.split(key_warm, max(1, num_warmup // thinning))
    z, sizes, _ = run(base, z, sizes, keys, adapt=jnp.asarray(1.0))
    keys = jax.random.split(key_run, num_samples)
    z, _, (path, excess, swapped) = run(base, z, sizes, keys, adapt=jnp.asarray(0.0))
    # [samples, temperatures, chains] -> by temperature, chains first.
    excess = np.asarray(excess, np.float64).transpose(1, 2, 0)
    rungs = np.diff(np.asarray(betas, np.float64))
    found = [
        bridge((rung * low).ravel(), rung * high)
        for rung, low, high in zip(rungs, excess[:-1], excess[1:], strict=True)
    ]
    position = jax.vmap(jax.vmap(lambda z: base.unwhiten(z, ())))(path)
    moves = (len(keys) + max(1, num_warmup // thinning)) * thinning
    return Tempered(
        np.asarray(position).transpose(1, 0, 2),
        sum(step.log_z for step in found),
        float(np.sqrt(sum(step.log_z_stderr**2 for step in found))),
        np.asarray(swapped.mean(0)),
        moves * num_temperatures * num_chains * (_NUM_LEAPFROG + 1),
    )


def _run(
    log_density: Any,
    betas: Array,
    num_chains: int,
    thinning: int,
    base: GaussianBase,
    z: Array,
    sizes: Array,
    keys: Array,
    adapt: Array,
) -> Any:
    """Sweeps of ``thinning`` moves and swaps each: the last states, sizes, and what was kept."""
    kernel, dim = blackjax.hmc.build_kernel(), z.shape[-1]

    def log_ratio(z: Array) -> Array:
        """Log ρ / p0."""
        value = log_density(base.unwhiten(z, ())) + base.log_correction(base.unwhiten(z, ()), ())
        # A floor in place of -inf, so that the base, with β = 0, is free to be there.
        return jnp.maximum(jnp.nan_to_num(value, nan=-1e30) - standard_normal_log_prob(z), -1e30)

    def move(key: PRNGKey, z: Array, beta: Array, size: Array) -> tuple[Array, Array]:
        def tempered(z: Array) -> Array:
            return standard_normal_log_prob(z) + beta * log_ratio(z)

        state = blackjax.hmc.init(z, tempered)
        state, info = kernel(key, state, tempered, size, jnp.ones(dim), _NUM_LEAPFROG)
        return state.position, info.acceptance_rate

    def sweep(carry: Any, key: PRNGKey) -> tuple[Any, Any]:
        z, sizes, parity = carry
        key_move, key_swap = jax.random.split(key)
        keys = jax.random.split(key_move, (len(betas), num_chains))
        z, rates = jax.vmap(jax.vmap(move, (0, 0, None, None)))(keys, z, betas, sizes)
        sizes = sizes * jnp.exp(adapt * 0.1 * (rates.mean(1) - _ACCEPTANCE))
        excess = jax.vmap(jax.vmap(log_ratio))(z)
        # Pairs (0, 1), (2, 3), ... and (1, 2), (3, 4), ... by turns.
        chance = jnp.diff(betas)[:, None] * (excess[:-1] - excess[1:])
        uniform = jnp.log(jax.random.uniform(key_swap, chance.shape))
        turn = (jnp.arange(len(betas) - 1) % 2 == parity)[:, None]
        accept = turn & (uniform < chance)
        none = jnp.zeros((1, num_chains), bool)
        up, down = jnp.concatenate([accept, none]), jnp.concatenate([none, accept])
        index = jnp.arange(len(betas))[:, None] + up.astype(int) - down.astype(int)
        z = jnp.take_along_axis(z, index[..., None], axis=0)
        rate = jnp.minimum(1.0, jnp.exp(chance)).mean(1)
        return (z, sizes, 1 - parity), (jnp.take_along_axis(excess, index, axis=0), rate)

    def block(carry: Any, key: PRNGKey) -> tuple[Any, Any]:
        carry, (excess, rate) = jax.lax.scan(sweep, carry, jax.random.split(key, thinning))
        return carry, (carry[0][-1], excess[-1], rate.mean(0))

    (z, sizes, _), kept = jax.lax.scan(block, (z, sizes, jnp.asarray(0)), keys)
    return z, sizes, kept
