"""Corrections that spend more than one step: annealed weights, and resampling between steps.

Both keep E[w] = Z whatever the sampler, and need its control rather than its draws alone.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Component
from consistent_samplers.compilation import jit
from consistent_samplers.corrections.latent import weigh_latent
from consistent_samplers.corrections.particles import (
    check_paths,
    genealogical_stderr,
    resampled_steps,
)
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.targets import rounding
from consistent_samplers.types import Array, Draws, FlowDiagnostics, PRNGKey


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
      num_samples: number of draws.
      num_steps: steps of the map.
      num_temperatures: values of β above zero, evenly spaced.
      num_moves: transitions at each of them.
      step_size: leapfrog step in the latent space, times dim^(-1/4).
      num_integration_steps: leapfrog steps of a transition, each a gradient of w.

    Returns:
      Draws of ``bound="lower-if-injective"`` with the share that folds at their last place, and the
      acceptance rates.

    Raises:
      ValueError: a number below one, or ``num_steps`` is not one the sampler was trained for.

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
    for name, value in (("num_samples", num_samples), ("num_temperatures", num_temperatures)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    import blackjax

    base = algorithm.base
    weigh = weigh_latent(algorithm.sampler(state), algorithm.target, num_steps)
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

    keys = jax.random.split(rng_key, num_samples)
    draws, rates = jit(lambda keys: jax.lax.map(one, keys, batch_size=256))(keys)
    return _mended(draws, jnp.arange(num_samples), rates.mean(0), algorithm)


def _mended(draws: Draws, origin: Array, acceptance: Array, algorithm: Algorithm) -> AnnealedDraws:
    """Draws without the constant that single precision adds to their weights, and log Z."""
    weight, value = draws.log_weight, draws.log_density
    assert weight is not None and value is not None
    if shift := rounding.constant(algorithm.target.log_density, draws.position, value):
        weight = weight + shift
        draws = dataclasses.replace(draws, log_weight=weight, log_density=value + shift)
    log_z = logsumexp(weight) - jnp.log(len(weight))
    return AnnealedDraws(draws, log_z, genealogical_stderr(weight, origin), acceptance)


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
      ValueError: a sampler without stochastic paths, or ``num_steps`` that it does not take.

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
    control, base, params = algorithm.control, algorithm.base, state.ema_params
    log_density = algorithm.target.log_density
    gradient = jax.grad(log_density) if control.guided else None

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

    @jit
    def run(key: PRNGKey) -> tuple[Draws, Array, Array]:
        key_base, key_component, key_steps = jax.random.split(key, 3)
        z = jax.random.normal(key_base, (num_samples, base.dim))
        component = control.draw_components(key_component, num_samples)
        (z, component), log_weight, origin, effective = resampled_steps(
            key_steps, (z, component), advance, num_steps, resample_below
        )
        x = jax.vmap(base.unwhiten)(z, component)
        draws = Draws(x, log_weight, jax.vmap(log_density)(x), bound="lower")
        return draws, origin, effective

    draws, origin, effective = run(rng_key)
    return _mended(draws, origin, effective, algorithm)
