"""Corrections of weighted draws: resampling, moments, and Markov moves that keep the target.

Resampling and moments use Pareto-smoothed weights: a little bias for much less variance where a
few weights dominate (Vehtari et al. 2024). The Markov corrections have no bias in the limit of long
chains. None finds a mode that no draw has reached.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.estimate import checked_log_weight, pareto_smooth
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey


def resample(rng_key: PRNGKey, draws: Draws, num_samples: int | None = None) -> Draws:
    """Sampling-importance-resampling (Rubin 1988), systematic, with Pareto-smoothed weights.

    Systematic resampling takes draw i either floor or ceil of its expected number of times, so
    draws with equal weights come back once each, in another order. Ask for fewer samples than
    the effective number, ``ess * n``, to see few duplicates.

    Args:
      rng_key: PRNG key.
      draws: weighted draws, ``position [n, dim]``.
      num_samples: number of samples to return; as many as ``draws`` if None.

    Returns:
      Unweighted draws (``log_weight``, ``bound`` and ``flow`` are None) in random order,
      ``position [num_samples, dim]``.

    Raises:
      ValueError: ``num_samples`` below 1, or weights that cannot be used (see
        ``estimate.checked_log_weight``).

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> draws = cs.Draws(x, x[:, 0] - 0.5, bound="lower")  # of N(0, 1), weighted towards N(1, 1)
      >>> even = cs.corrections.resample(jax.random.key(1), draws, 500)
      >>> even.position.shape, bool(abs(even.position.mean() - 1.0) < 0.2)
      ((500, 1), True)
    """
    log_weight = checked_log_weight(draws)
    if num_samples is None:
        num_samples = log_weight.shape[0]
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    index = systematic_indices(rng_key, pareto_smooth(log_weight)[0], num_samples)
    log_density = None if draws.log_density is None else draws.log_density[index]
    return Draws(position=draws.position[index], log_density=log_density)


class MetropolisResult(NamedTuple):
    """Chains of `independence_metropolis`.

    Attributes:
      position: ``[num_chains, num_steps, dim]``, states after each step.
      acceptance: ``[num_chains]``, share of proposals that were accepted.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((40, 1)), jnp.zeros(40), bound="lower")
      >>> result = cs.corrections.independence_metropolis(jax.random.key(0), draws)
      >>> isinstance(result, cs.corrections.MetropolisResult), result.acceptance.tolist()
      (True, [1.0, 1.0, 1.0, 1.0])
    """

    position: Array
    acceptance: Array


def independence_metropolis(
    rng_key: PRNGKey, draws: Draws, *, num_chains: int = 4, initial: Draws | None = None
) -> MetropolisResult:
    """Independence Metropolis-Hastings with the draws as proposals (Tierney 1994).

    A chain accepts its next proposal with probability min(1, w' / w). Its law tends to the target
    whatever the sampler's quality, at the rate 1 - Z / max w (Mengersen & Tweedie 1996): quickly
    where no weight is far above the mean, and never out of a mode that no draw reaches.

    Args:
      rng_key: PRNG key.
      draws: independent weighted draws, ``position [n, dim]``; n / num_chains of them are
        proposed to each chain, the remainder left out.
      num_chains: number of chains.
      initial: where the chains start, ``position [num_chains, dim]`` with weights; a draw of
        their own if None, which the states then start with.

    Returns:
      The chains, without a warm-up removed.

    Raises:
      ValueError: fewer than two draws a chain, an ``initial`` of another size, or weights that
        cannot be used (see ``estimate.checked_log_weight``).

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> draws = cs.Draws(x, x[:, 0] - 0.5, bound="lower")  # of N(0, 1), weighted towards N(1, 1)
      >>> chains = cs.corrections.independence_metropolis(jax.random.key(1), draws, num_chains=4)
      >>> chains.position.shape, bool(abs(chains.position.mean() - 1.0) < 0.2)
      ((4, 500, 1), True)
    """
    log_weight = checked_log_weight(draws)
    num_steps = log_weight.shape[0] // max(num_chains, 1)
    if num_chains < 1 or num_steps < 2:
        raise ValueError(
            f"{log_weight.shape[0]} draws do not make {num_chains} chains of at least two. Draw "
            "more samples or ask for fewer chains."
        )
    num = num_chains * num_steps
    proposals = draws.position[:num].reshape(num_chains, num_steps, -1)
    log_weight = log_weight[:num].reshape(num_chains, num_steps)
    if initial is None:
        start = proposals[:, 0], log_weight[:, 0]
    else:
        start = initial.position, checked_log_weight(initial)
        if start[0].shape != proposals[:, 0].shape:
            raise ValueError(
                f"initial must hold one state a chain, {proposals[:, 0].shape}, got "
                f"{start[0].shape}."
            )
    position, accepted = _independence_chains(rng_key, start, proposals, log_weight)
    return MetropolisResult(position, accepted.mean(axis=1))


@jax.jit
def _independence_chains(
    rng_key: PRNGKey, start: tuple[Array, Array], proposals: Array, log_weight: Array
) -> tuple[Array, Array]:
    """States ``[num_chains, num_steps, dim]`` and whether each proposal was accepted."""
    log_uniform = jnp.log1p(-jax.random.uniform(rng_key, log_weight.shape, log_weight.dtype))

    def step(
        state: tuple[Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        position, current = state
        proposed, weight, threshold = inputs
        # From a state of weight zero everything is accepted, another such state included.
        accept = (threshold < weight - current) | jnp.isneginf(current)
        position = jnp.where(accept, proposed, position)
        return (position, jnp.where(accept, weight, current)), (position, accept)

    def chain(
        position: Array, current: Array, proposals: Array, weights: Array, thresholds: Array
    ) -> tuple[Array, Array]:
        return jax.lax.scan(step, (position, current), (proposals, weights, thresholds))[1]

    return jax.vmap(chain)(*start, proposals, log_weight, log_uniform)


def move(
    rng_key: PRNGKey,
    position: Array,
    log_density: LogDensityFn,
    *,
    num_moves: int = 5,
    step_size: float = 0.25,
    num_integration_steps: int = 8,
) -> tuple[Array, Array]:
    """Moves each point by Hamiltonian Monte Carlo transitions that leave the target as it is.

    After `resample`, moves take apart copies of one draw; on draws that follow the target already
    they change nothing but which ones. Masses are the points' own inverse variances.

    Args:
      rng_key: PRNG key.
      position: ``[num_samples, dim]``, at least two.
      log_density: unnormalised log density of one point.
      num_moves: transitions of each point.
      step_size: leapfrog step, in the points' standard deviations times dim^(-1/4).
      num_integration_steps: leapfrog steps of a transition.

    Returns:
      Moved points ``[num_samples, dim]``, and the mean acceptance rate ``[]``.

    Raises:
      ValueError: ``position`` is not ``[n, dim]`` with n of at least two.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> copies = jnp.repeat(jax.random.normal(jax.random.key(0), (50, 1)), 2, axis=0)
      >>> def log_density(x):
      ...     return -0.5 * jnp.sum(x**2)
      >>> moved, acceptance = cs.corrections.move(jax.random.key(1), copies, log_density)
      >>> len(np.unique(copies)), len(np.unique(moved)) > 90, bool(acceptance > 0.9)
      (50, True, True)
    """
    import blackjax

    if position.ndim != 2 or position.shape[0] < 2:
        raise ValueError(f"position must be [num_samples, dim], at least two, got {position.shape}")
    inverse_mass = jnp.maximum(position.var(axis=0), jnp.finfo(position.dtype).tiny)
    kernel = blackjax.hmc(
        log_density,
        step_size * position.shape[1] ** -0.25,
        inverse_mass,
        num_integration_steps,
    )

    def one(key: PRNGKey, x: Array) -> tuple[Array, Array]:
        def step(state: Any, key: PRNGKey) -> tuple[Any, Array]:
            state, info = kernel.step(key, state)
            return state, info.acceptance_rate

        state, rate = jax.lax.scan(step, kernel.init(x), jax.random.split(key, num_moves))
        return state.position, rate.mean()

    keys = jax.random.split(rng_key, position.shape[0])
    moved, rate = jax.jit(jax.vmap(one))(keys, position)
    return moved, rate.mean()


def weighted_moments(draws: Draws) -> tuple[Array, Array]:
    """Mean and standard deviation under the target, by self-normalised smoothed weights.

    Args:
      draws: weighted draws, ``position [n, dim]``.

    Returns:
      ``(mean [dim], standard deviation [dim])``.

    Raises:
      ValueError: weights that cannot be used (see ``estimate.checked_log_weight``).

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> mean, std = cs.corrections.weighted_moments(cs.Draws(x, x[:, 0] - 0.5, bound="lower"))
      >>> bool(abs(mean[0] - 1.0) < 0.2), bool(abs(std[0] - 1.0) < 0.2)
      (True, True)
    """
    smoothed, _ = pareto_smooth(checked_log_weight(draws))
    return _moments(draws.position, smoothed)


@functools.partial(jax.jit, static_argnums=2)
def systematic_indices(rng_key: PRNGKey, log_weight: Array, num_samples: int) -> Array:
    """Indices ``[num_samples]`` of a systematic resample by ``log_weight [n]``, shuffled.

    Args:
      rng_key: key.
      log_weight: ``[n]``, need not be normalised.
      num_samples: number of indices.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_weight = jnp.log(jnp.array([0.75, 0.25]))
      >>> sorted(cs.corrections.systematic_indices(jax.random.key(0), log_weight, 4).tolist())
      [0, 0, 0, 1]
    """
    weight = jnp.exp(log_weight - jnp.max(log_weight))
    offset_key, order_key = jax.random.split(rng_key)
    # In units of expected copies: equal weights then add up without rounding.
    copies = jnp.cumsum(weight * (num_samples / jnp.sum(weight)))
    tick = jnp.arange(num_samples, dtype=copies.dtype)
    point = tick + jax.random.uniform(offset_key, (), copies.dtype)
    # Rounding may carry a point to the next tick, or to the very end, behind the last draw of
    # positive weight.
    point = jnp.minimum(point, jnp.nextafter(tick + 1.0, tick))
    point = jnp.minimum(point, jnp.nextafter(copies[-1], jnp.zeros_like(copies[-1])))
    index = jnp.searchsorted(copies, point, side="right")
    return jax.random.permutation(order_key, index)


@jax.jit
def _moments(position: Array, log_weight: Array) -> tuple[Array, Array]:
    """``weighted_moments`` of checked draws: one compiled computation."""
    weight = jnp.exp(log_weight - jnp.max(log_weight))
    weight = (weight / jnp.sum(weight))[:, None]
    # A draw that has run off to infinity has weight zero, and 0 * inf would be NaN.
    position = jnp.where(weight > 0, position, 0.0)
    mean = jnp.sum(weight * position, axis=0)
    variance = jnp.sum(weight * (position - mean[None, :]) ** 2, axis=0)
    return mean, jnp.sqrt(variance)
