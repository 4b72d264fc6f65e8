"""Expectations under the target from weighted draws, with Stein control variates.

Under a density ρ / Z whose tails vanish, s = ∇ log ρ has E[ΔP + ∇P · s] = 0 for polynomials P. So
a combination of such terms may be taken off a function without a change of its expectation, and one
that resembles the function takes its variance away (Assaraf & Caffarel, 1999; Mira, Solgi &
Imparato, 2013; Oates, Girolami & Chopin, 2017).
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.compilation import is_traced, jit
from consistent_samplers.corrections.reweighting import weighted_moments
from consistent_samplers.diagnostics import LEVELS, Level, Verdict, verdict
from consistent_samplers.estimate import (
    checked_log_weight,
    effective_sample_size,
    evidence,
    pareto_smooth,
)
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Array, Draws

# Draws for each control variate, at least: their coefficients are fitted to draws as well.
_DRAWS_EACH = 20
_HALVES = 2


class Expectation(NamedTuple):
    """An expectation under the target, what it is worth, and what the control variates took off.

    Attributes:
      value: ``[...]``, of the shape of the function's values, or a pytree of such.
      stderr: ``[...]``, its standard error; +inf where the weights are not to be used.
      variance_ratio: ``[...]``, of the variance with control variates over that without; 1 where
        there are none.
      ess: ``[]``, share of the draws that are effective.
      pareto_k: ``[]``, tail index of the weights.
      level: of the verdict on the weights (`diagnostics.Level`), without control variates and
        without a look for modes; None under ``jax.jit``, where nothing is judged.

    Example:
      >>> from consistent_samplers.corrections import Expectation
      >>> Expectation._fields
      ('value', 'stderr', 'variance_ratio', 'ess', 'pareto_k', 'level')
    """

    value: Any
    stderr: Any
    variance_ratio: Any
    ess: Array
    pareto_k: Array
    level: Level | None = None


def expectation(
    draws: Draws, function: Callable[[Array], Any], target: Target | None = None
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
      function: x ``[dim]`` -> ``[...]``, a JAX function; of real values, or a pytree of them.
      target: whose draws they are; None for no control variates.

    Returns:
      An `Expectation` of the shape ``[...]``.

    Raises:
      TypeError: values that are not real numbers.
      ValueError: weights that cannot be used (see ``estimate.checked_log_weight``), fewer than two
        draws with a weight, or draws and target that differ in dimension.

    Warns:
      RuntimeWarning: the weights are not to be used: the verdict's words.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.array([3.0]), jnp.ones(1))
      >>> trained = cs.train_sampler(jax.random.key(0), target, effort="base", progress_bar=False)
      >>> draws = trained.sample(jax.random.key(1), 2_000)
      >>> found = cs.expectation(draws, lambda x: x[0], target)
      >>> round(float(found.value), 3), bool(found.variance_ratio < 0.01)
      (3.0, True)
    """
    raw, position = _weights(draws), draws.position
    log_weight, pareto_k = pareto_smooth(raw)
    judged = _judged(draws, raw)
    num, dim = position.shape
    leaves, structure = jax.tree.flatten(jax.vmap(function)(position))
    if not leaves or any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise TypeError(
            "The function must return real numbers, an array or a pytree of them; of complex ones "
            "take real and imaginary parts."
        )
    values = jnp.concatenate([leaf.reshape(num, -1) for leaf in leaves], axis=1)
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
    value, stderr, ratio = _estimated(log_weight, values, terms)
    if judged is not None and judged.level == LEVELS[-1]:
        stderr = jnp.full_like(stderr, jnp.inf)
        warnings.warn(
            f"The weights of these draws are not to be used, nor what is expected by them: "
            f"{judged.words}",
            RuntimeWarning,
            stacklevel=2,
        )
    shapes = [leaf.shape[1:] for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def as_given(flat: Array) -> Any:
        parts = zip(jnp.split(flat, ends), shapes, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(shape) for part, shape in parts])

    return Expectation(
        value=as_given(value),
        stderr=as_given(stderr),
        variance_ratio=as_given(ratio),
        ess=effective_sample_size(raw),
        pareto_k=pareto_k,
        level=None if judged is None else judged.level,
    )


def _weights(draws: Draws) -> Array:
    if draws.log_weight is None:
        raise ValueError(
            "These draws have no importance weights. Give weighted ones, as sample(...) returns "
            "them; of draws that were resampled, which are equally weighted, take plain means."
        )
    log_weight = checked_log_weight(draws)
    if is_traced(log_weight):
        return log_weight
    if (num := int(jnp.sum(jnp.exp(log_weight - log_weight.max()) > 0.0))) < 2:
        raise ValueError(
            f"{num} of {len(log_weight)} draws has a weight, and a standard error needs two: draw "
            "more samples, or train the sampler for longer."
        )
    return log_weight


def _judged(draws: Draws, log_weight: Array) -> Verdict | None:
    """What the weights are worth; None of traced ones. Weights of no kind are taken for exact."""
    if is_traced((draws, log_weight)):
        return None
    bound = "lower" if draws.bound is None else draws.bound
    return verdict(evidence(dataclasses.replace(draws, log_weight=log_weight, bound=bound)))


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
