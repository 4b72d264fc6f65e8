"""Expectations under the target from weighted draws, with Stein control variates.

Under a density ρ / Z whose tails vanish, s = ∇ log ρ has E[ΔP + ∇P · s] = 0 for polynomials P. So
a combination of such terms may be taken off a function without a change of its expectation, and one
that resembles the function takes its variance away (Assaraf & Caffarel, 1999; Mira, Solgi &
Imparato, 2013; Oates, Girolami & Chopin, 2017).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.compilation import jit
from consistent_samplers.corrections.reweighting import weighted_moments
from consistent_samplers.estimate import checked_log_weight, pareto_smooth
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Array, Draws

# Draws for each control variate, at least: their coefficients are fitted to draws as well.
_DRAWS_EACH = 20
_HALVES = 2


class Expectation(NamedTuple):
    """An expectation under the target, and what the control variates took off its variance.

    Attributes:
      value: ``[...]``, of the shape of the function's values.
      stderr: ``[...]``, its standard error.
      variance_ratio: ``[...]``, of the variance with control variates over that without; 1 where
        there are none.

    Example:
      >>> from consistent_samplers.corrections import Expectation
      >>> Expectation._fields
      ('value', 'stderr', 'variance_ratio')
    """

    value: Array
    stderr: Array
    variance_ratio: Array


def expectation(
    draws: Draws, function: Callable[[Array], Array], target: Target | None = None
) -> Expectation:
    """The expectation of any function under the target, by self-normalised smoothed weights.

    With the target, Stein control variates of the first order (its score), and of the second as far
    as there are draws for them, are taken off: all functions of a Gaussian target up to quadratic
    ones are then exact. Their coefficients minimise the variance of the estimate, in each half of
    the draws by the other half; where that does not lower it they are left out. They know the
    target where draws are, and no mode elsewhere; a density that is cut off (a jump to zero) has
    other terms at its edge, and is to be asked for without a target.

    Args:
      draws: weighted draws, ``position [n, dim]``.
      function: x ``[dim]`` -> ``[...]``, a JAX function.
      target: whose draws they are; None for no control variates.

    Returns:
      An `Expectation` of the shape ``[...]``.

    Raises:
      ValueError: weights that cannot be used (see ``estimate.checked_log_weight``), or draws and
        target that differ in dimension.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.array([3.0]), jnp.ones(1))
      >>> trained = cs.train_sampler(jax.random.key(0), target, effort="base", progress_bar=False)
      >>> draws = trained.sample(jax.random.key(1), 2_000)
      >>> found = cs.expectation(draws, lambda x: x[0], target)
      >>> round(float(found.value), 3), bool(found.variance_ratio < 0.01)
      (3.0, True)
    """
    log_weight, position = pareto_smooth(checked_log_weight(draws))[0], draws.position
    num, dim = position.shape
    values = jax.vmap(function)(position)
    terms = jnp.zeros((num, 0))
    if target is not None:
        if target.dim != dim:
            raise ValueError(
                f"The draws have {dim} dimensions, target {target.name!r} has {target.dim}."
            )
        mean, std = weighted_moments(draws)
        std = jnp.where(std > 0, std, 1.0)
        score = evaluation.values_and_grads(target.log_density, position)[1]
        away = (position - mean) / std
        terms = stein_terms(away, std * score, num // _DRAWS_EACH)
    found = _estimated(log_weight, values.reshape(num, -1), terms)
    return Expectation(*(x.reshape(values.shape[1:]) for x in found))


def stein_terms(position: Array, score: Array, most: int) -> Array:
    """Functions ``[n, k]`` whose expectations are zero: ΔP + ∇P · s for P up to second order.

    Args:
      position: ``[n, dim]``, best in units of their standard deviations.
      score: ``[n, dim]``, gradients of the log density in the same units; one that is no number
        counts as zero.
      most: number that is not to be exceeded: first the linear P, then the squares, then all
        products. None where even the linear ones are too many.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.corrections.expectations import stein_terms
      >>> x = jnp.ones((5, 3))
      >>> [stein_terms(x, -x, most).shape[1] for most in (2, 3, 6, 9)]
      [0, 3, 6, 9]
    """
    num, dim = position.shape
    score = jnp.where(jnp.isfinite(score), score, 0.0)
    if most < dim:
        return jnp.zeros((num, 0))
    parts = [score]
    if most >= 2 * dim:
        parts.append(1.0 + position * score)
    if most >= 2 * dim + dim * (dim - 1) // 2:
        i, j = np.tril_indices(dim, -1)
        parts.append(position[:, i] * score[:, j] + position[:, j] * score[:, i])
    return jnp.concatenate(parts, axis=1)


@jit
def _estimated(log_weight: Array, values: Array, terms: Array) -> tuple[Array, Array, Array]:
    """Estimates ``[m]`` of values ``[n, m]``, their standard errors, and ratios of variances."""
    weight = jax.nn.softmax(log_weight)[:, None]
    # A draw that weighs nothing may have no values either.
    values, terms = jnp.where(weight > 0, values, 0.0), jnp.where(weight > 0, terms, 0.0)
    plain = jnp.sum(weight * values, 0)
    away = values - plain
    # The variance of a self-normalised estimate is Σ w² (f - E f)² (Owen, 2013, section 9.2).
    without = jnp.sum((weight * away) ** 2, 0)
    if not terms.shape[1]:
        return plain, jnp.sqrt(without), jnp.ones_like(plain)
    size = jnp.sqrt(jnp.sum((weight * terms) ** 2, 0))
    columns = jnp.concatenate([jnp.ones_like(weight), terms / jnp.where(size > 0, size, 1.0)], 1)
    # Each half by what the others were fitted to: of its own, a fit takes off more than there is.
    half = jnp.arange(len(weight))[:, None] % _HALVES
    rest = away
    for i in range(_HALVES):
        others = jnp.where(half == i, 0.0, weight)
        fitted = jnp.linalg.lstsq(others * columns, others * away)[0]
        rest = jnp.where(half == i, away - columns[:, 1:] @ fitted[1:], rest)
    value = jnp.sum(weight * rest, 0)
    variance = jnp.sum((weight * (rest - value)) ** 2, 0)
    # Few effective draws may be too few for their coefficients.
    helps = variance < without
    value, variance = jnp.where(helps, value, 0.0), jnp.where(helps, variance, without)
    return plain + value, jnp.sqrt(variance), jnp.where(helps, variance / without, 1.0)
