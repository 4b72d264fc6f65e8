"""Annealed weights: a correction that keeps E[w] = Z whatever the sampler.

It needs the sampler's control rather than its draws alone.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.corrections.latent import weigh_latent
from consistent_samplers.corrections.particles import genealogical_stderr
from consistent_samplers.sampler import Sampler
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.targets import Target, rounding
from consistent_samplers.types import Array, Draws, FlowDiagnostics, LogDensityFn, PRNGKey


class AnnealedDraws(NamedTuple):
    """Draws of `annealed`, `resampled_paths` or `product_paths`, and how evenly they came along.

    Attributes:
      draws: weighted draws with E[w] = Z.
      log_z: ``[]``, log of the mean weight, in nats.
      log_z_stderr: ``[]``, its standard error in nats. Of resampled paths that of their ancestors:
        copies are dependent, and `evidence`, which takes draws for independent, says less.
      acceptance: ``[num_temperatures]`` mean acceptance rate of the moves at each temperature, or
        ``[num_steps]`` share of effective draws before each resampling.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((4, 1)), jnp.zeros(4), bound="lower")
      >>> zero = jnp.zeros(())
      >>> result = cs.corrections.AnnealedDraws(draws, zero, log_z_stderr=zero, acceptance=zero)
    """

    draws: Draws
    log_z: Array
    log_z_stderr: Array
    acceptance: Array


def annealed(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    state: SamplerState,
    num_samples: int,
    num_steps: int = 1,
    *,
    num_temperatures: int = 8,
    num_moves: int = 1,
    step_size: float = 0.7,
    num_integration_steps: int = 3,
) -> AnnealedDraws:
    """Annealed importance sampling from a sampler to its target (Neal, 2001), in its latent space.

    Seen from the base, the sampler's map T turns the target into p0(z) w(z) with the exact
    importance weight w, which is flat where the sampler is good. Draws pass through p0 w^β, β from
    0 to 1, by Hamiltonian Monte Carlo. E[w] = Z holds for any number of temperatures and any moves;
    more of them make the weights even, and E[log w] a tighter bound.

    Args:
      rng_key: PRNG key.
      algorithm: a trained sampler with a deterministic map.
      state: its state.
      num_samples: number of draws, two or more.
      num_steps: steps of the map.
      num_temperatures: values of β above zero, evenly spaced.
      num_moves: transitions at each of them.
      step_size: leapfrog step in the latent space, times dim^(-1/4).
      num_integration_steps: leapfrog steps of a transition, each a gradient of w.

    Returns:
      Draws of ``bound="lower-if-injective"`` with the share that folds at their last place, and the
      acceptance rates.

    Raises:
      ValueError: a number out of range, or ``num_steps`` is not one the sampler was trained for.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.osds(target, base=base, max_steps=1, hidden=(8,), guidance=None)
      >>> key, state = jax.random.key(1), algorithm.init(jax.random.key(0))  # not trained
      >>> result = cs.corrections.annealed(key, algorithm, state, 200, num_temperatures=4)
      >>> bool(abs(result.log_z - target.log_z) < 0.2)
      True
    """
    check_num_steps(num_steps, algorithm.control.max_flow_steps)
    check_integer("num_samples", num_samples, 2)
    check_integer("num_temperatures", num_temperatures)
    check_integer("num_moves", num_moves)
    check_integer("num_integration_steps", num_integration_steps)
    if not 0.0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size!r}.")
    draws, rates = _annealed(
        jax.random.split(rng_key, num_samples),
        algorithm.sampler(state),
        as_partial(algorithm.target.log_density),
        step_size,
        num_steps=int(num_steps),
        num_temperatures=int(num_temperatures),
        num_moves=int(num_moves),
        num_integration_steps=int(num_integration_steps),
    )
    return mended(draws, jnp.arange(num_samples), rates.mean(0), algorithm)


@functools.partial(
    jit,
    static_argnames=("num_steps", "num_temperatures", "num_moves", "num_integration_steps"),
)
def _annealed(
    keys: Array,
    sampler: Sampler,
    density: LogDensityFn,
    step_size: Array | float,
    *,
    num_steps: int,
    num_temperatures: int,
    num_moves: int,
    num_integration_steps: int,
) -> tuple[Draws, Array]:
    """Draws of one key each, and the acceptance rates ``[n, num_temperatures]``."""
    import blackjax

    base = sampler.base
    weigh = weigh_latent(sampler, Target(density, base.dim), num_steps)
    kernel = blackjax.hmc.build_kernel()
    size, masses = step_size * base.dim**-0.25, jnp.ones(base.dim)
    beta = jnp.linspace(0.0, 1.0, num_temperatures + 1)

    def one(key: PRNGKey) -> tuple[Draws, Array]:
        key_base, key_moves = jax.random.split(key)
        component = base.draw_component(jax.random.fold_in(key_base, 1))

        def log_weight(z: Array) -> Array:
            return weigh(z, component).log_weight

        def temperature(
            carry: tuple[Array, Array], inputs: tuple[Array, Array, PRNGKey]
        ) -> tuple[tuple[Array, Array], Array]:
            z, total = carry
            before, now, key = inputs

            def tempered(z: Array) -> Array:
                return simulate.standard_normal_log_prob(z) + now * log_weight(z)

            def transition(moved: Any, key: PRNGKey) -> tuple[Any, Array]:
                moved, info = kernel(key, moved, tempered, size, masses, num_integration_steps)
                return moved, info.acceptance_rate

            total = total + (now - before) * log_weight(z)
            start = blackjax.hmc.init(z, tempered)
            moved, rate = jax.lax.scan(transition, start, jax.random.split(key, num_moves))
            return (moved.position, total), rate.mean()

        start = jax.random.normal(key_base, (base.dim,)), jnp.zeros(())
        keys = jax.random.split(key_moves, num_temperatures)
        (z, total), rates = jax.lax.scan(temperature, start, (beta[:-1], beta[1:], keys))
        end = weigh(z, component)
        flow = FlowDiagnostics(end.folded, jnp.full((), jnp.nan))
        total = jnp.where(jnp.isnan(total), -jnp.inf, total)
        return Draws(end.position, total, end.log_density, flow, "lower-if-injective"), rates

    drawn: tuple[Draws, Array] = jax.lax.map(one, keys, batch_size=256)
    return drawn


def mended(draws: Draws, origin: Array, acceptance: Array, algorithm: Algorithm) -> AnnealedDraws:
    """Draws without the constant that single precision adds to their weights, and log Z."""
    weight, value = draws.log_weight, draws.log_density
    assert weight is not None and value is not None
    if shift := rounding.constant(algorithm.target.log_density, draws.position, value):
        weight = weight + shift
        draws = dataclasses.replace(draws, log_weight=weight, log_density=value + shift)
    log_z = logsumexp(weight) - jnp.log(len(weight))
    return AnnealedDraws(draws, log_z, genealogical_stderr(weight, origin), acceptance)
