"""Corrections of weighted draws: resampling and moments.

Both use Pareto-smoothed weights: a little bias for much less variance where a few weights dominate
(Vehtari et al. 2024). Neither finds a mode that no draw has reached.
"""

import jax
import jax.numpy as jnp

from consistent_samplers.estimate import checked_log_weight, pareto_smooth
from consistent_samplers.kernels import kernel
from consistent_samplers.types import Array, Draws, PRNGKey


def resample(rng_key: PRNGKey, draws: Draws, num_samples: int | None = None) -> Draws:
    """Sampling-importance-resampling (Rubin 1988), systematic, with Pareto-smoothed weights.

    It takes a draw either floor or ceil of its expected number of times, so draws with equal
    weights come back once each, in another order. Ask for fewer samples than the effective number,
    ``ess * n``, to see few duplicates. The result has no weights, and is in random order.

    Args:
      rng_key: PRNG key.
      draws: weighted draws, ``position [n, dim]``.
      num_samples: number of samples to return; as many as ``draws`` if None.

    Raises:
      ValueError: ``num_samples`` below 1, or weights that cannot be used (see
        ``estimate.checked_log_weight``).

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> draws = cs.Draws(x, x[:, 0] - 0.5, bound="lower")  # of N(0, 1), weighted towards N(1, 1)
      >>> round(float(cs.corrections.resample(jax.random.key(1), draws).position.mean()))
      1
    """
    log_weight = checked_log_weight(draws)
    if num_samples is None:
        num_samples = log_weight.shape[0]
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    index = systematic_indices(rng_key, pareto_smooth(log_weight)[0], num_samples)
    log_density = None if draws.log_density is None else draws.log_density[index]
    return Draws(position=draws.position[index], log_density=log_density)


def weighted_moments(draws: Draws) -> tuple[Array, Array]:
    """Mean and standard deviation under the target ``[dim]``, by self-normalised smoothed weights.

    Raises:
      ValueError: weights that cannot be used (see ``estimate.checked_log_weight``).

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> mean, std = cs.corrections.weighted_moments(cs.Draws(x, x[:, 0] - 0.5, bound="lower"))
      >>> round(float(mean[0])), round(float(std[0]))
      (1, 1)
    """
    return _moments(draws.position, pareto_smooth(checked_log_weight(draws))[0])


def systematic_indices(rng_key: PRNGKey, log_weight: Array, num_samples: int) -> Array:
    """Indices ``[num_samples]`` of a systematic resample by ``log_weight [n]``, shuffled.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> log_weight = jnp.log(jnp.array([0.75, 0.25]))
      >>> sorted(cs.corrections.systematic_indices(jax.random.key(0), log_weight, 4).tolist())
      [0, 0, 0, 1]
    """
    return _systematic(rng_key, log_weight, num_samples=num_samples)


@kernel(static=("num_samples",), effort="least")
def _systematic(rng_key: PRNGKey, log_weight: Array, *, num_samples: int) -> Array:
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


@kernel(effort="least")
def _moments(position: Array, log_weight: Array) -> tuple[Array, Array]:
    """``weighted_moments`` of checked draws: one compiled computation."""
    weight = jnp.exp(log_weight - jnp.max(log_weight))
    weight = (weight / jnp.sum(weight))[:, None]
    # A draw that has run off to infinity has weight zero, and 0 * inf would be NaN.
    position = jnp.where(weight > 0, position, 0.0)
    mean = jnp.sum(weight * position, axis=0)
    variance = jnp.sum(weight * (position - mean[None, :]) ** 2, axis=0)
    return mean, jnp.sqrt(variance)
