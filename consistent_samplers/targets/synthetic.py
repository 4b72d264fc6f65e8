"""Synthetic targets with closed-form log Z and exact samplers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_LOG_2PI = math.log(2 * math.pi)


def funnel(dim: int = 10) -> Target:
    """Neal's funnel: a scale that varies over orders of magnitude.

    x_0 ~ N(0, 9) and x_i | x_0 ~ N(0, exp(x_0)) for i > 0; normalised, log Z = 0. The sampler
    is exact: unlike in common benchmark code, draws are not clipped to [-30, 30].
    From Neal, Slice sampling, Annals of Statistics 31 (2003).

    Args:
      dim: dimension, at least 2.

    Raises:
      ValueError: ``dim`` is not an integer of at least 2.
    """
    _check_integer("dim", dim, 2)
    log_constant = -0.5 * dim * _LOG_2PI - math.log(3)

    def log_density(x: Array) -> Array:
        log_variance, rest = x[0], x[1:]
        # Scaled before it is squared: overflows only far out in the neck.
        z = rest * jnp.exp(-0.5 * log_variance)
        return (
            log_constant
            - 0.5 * (log_variance / 3) ** 2
            - 0.5 * (dim - 1) * log_variance
            - 0.5 * jnp.sum(z**2)
        )

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(rng_key, (num_samples, dim))
        log_variance = 3 * noise[:, :1]
        return jnp.concatenate([log_variance, jnp.exp(0.5 * log_variance) * noise[:, 1:]], axis=1)

    return Target(log_density, dim, name="funnel", log_z=0.0, sample=sample)


def double_wells(dim: int = 5, num_wells: int = 5, separation: float = 4.0) -> Target:
    """Independent double wells and standard normals: 2^num_wells separated modes.

    log ρ(x) = -Σ_{i<m} (x_i² - δ)² - ½ Σ_{i≥m} x_i², with m = ``num_wells`` and δ =
    ``separation``: modes at ±√δ in each of the first m coordinates. The defaults are the field's
    MW54; (50, 5, 2.0) is MW52. From Wu, Köhler & Noé, Stochastic normalizing flows
    (arXiv:2002.06707); in this form Richter & Berner (arXiv:2307.01198).

    Args:
      dim: dimension.
      num_wells: number of double-well coordinates, 1 to ``dim``.
      separation: squared distance of the wells from the origin, positive.

    Raises:
      ValueError: an argument out of range.
    """
    _check_integer("dim", dim, 1)
    _check_integer("num_wells", num_wells, 1)
    if num_wells > dim:
        raise ValueError(f"num_wells must be at most dim = {dim}, got {num_wells}.")
    if not (math.isfinite(separation) and separation > 0):
        raise ValueError(
            f"separation must be positive and finite, got {separation!r}: below zero a coordinate "
            "has a single well."
        )
    separation = float(separation)
    # The wells are symmetric: tabulate |x|, where (x² - δ)² is at most 49 (exp(-49) = 5e-22).
    reach = 7.0
    grid = np.linspace(
        math.sqrt(max(separation - reach, 0.0)), math.sqrt(separation + reach), 2**13 + 1
    )
    half = _tabulate(grid, -((grid**2 - separation) ** 2))
    log_z = num_wells * (math.log(2) + half.log_z) + 0.5 * (dim - num_wells) * _LOG_2PI

    def log_density(x: Array) -> Array:
        wells, rest = x[:num_wells], x[num_wells:]
        return -jnp.sum((wells**2 - separation) ** 2) - 0.5 * jnp.sum(rest**2)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_size, key_sign, key_rest = jax.random.split(rng_key, 3)
        shape = (num_samples, num_wells)
        wells = _inverse_cdf(half, jax.random.uniform(key_size, shape))
        wells = wells * jax.random.rademacher(key_sign, shape, wells.dtype)
        rest = jax.random.normal(key_rest, (num_samples, dim - num_wells))
        return jnp.concatenate([wells, rest], axis=1)

    return Target(log_density, dim, name="double_wells", log_z=log_z, sample=sample)


class _Table(NamedTuple):
    """A one-dimensional density on a grid: points ``[n]``, cdf ``[n]`` (0 to 1), and log Z."""

    grid: np.ndarray
    cdf: np.ndarray
    log_z: float


def _tabulate(grid: np.ndarray, log_density: np.ndarray) -> _Table:
    """Integrates a density by the trapezoid rule on an even grid, in float64 on the host.

    For a smooth density that is flat (zero slope) or vanishes at both ends the rule converges
    faster than any power of the spacing; a few thousand points leave rounding error only.
    """
    density = np.exp(log_density)
    mass = 0.5 * (density[1:] + density[:-1]) * np.diff(grid)
    total = mass.sum()
    cdf = np.concatenate([[0.0], np.cumsum(mass) / total])
    return _Table(grid, cdf, math.log(total))


def _inverse_cdf(table: _Table, uniform: Array) -> Array:
    """Maps uniforms in [0, 1) to draws from a tabulated density, any shape."""
    dtype = uniform.dtype
    return jnp.interp(uniform, jnp.asarray(table.cdf, dtype), jnp.asarray(table.grid, dtype))


def _check_integer(name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
