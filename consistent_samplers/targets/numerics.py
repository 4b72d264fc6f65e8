"""What several targets compute with: exact products, roots with gradients, tabulated densities."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.types import Array

LOG_2PI = math.log(2 * math.pi)


def matvec(matrix: np.ndarray, x: Array) -> Array:
    """A constant matrix times a vector, in the vector's precision."""
    # The default precision of a matrix product on accelerators is far below float32.
    return jnp.matmul(jnp.asarray(matrix, x.dtype), x, precision=jax.lax.Precision.HIGHEST)


def safe_sqrt(squared: Array) -> Array:
    """Square root with gradient 0 at 0, where its infinite slope would make a gradient NaN."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


class Table(NamedTuple):
    """A one-dimensional density on a grid: points ``[n]``, cdf ``[n]`` (0 to 1), and log Z."""

    grid: np.ndarray
    cdf: np.ndarray
    log_z: float


def tabulate(grid: np.ndarray, log_density: np.ndarray) -> Table:
    """A density integrated by the trapezoid rule on an even grid, in float64 on the host.

    For a smooth density that is flat (zero slope) or vanishes at both ends the rule converges
    faster than any power of the spacing; a few thousand points leave rounding error only.
    """
    density = np.exp(log_density)
    mass = 0.5 * (density[1:] + density[:-1]) * np.diff(grid)
    total = mass.sum()
    return Table(grid, np.concatenate([[0.0], np.cumsum(mass) / total]), math.log(total))


def inverse_cdf(table: Table, uniform: Array) -> Array:
    """Draws from a tabulated density, made of uniforms in [0, 1) of any shape."""
    dtype = uniform.dtype
    return jnp.interp(uniform, jnp.asarray(table.cdf, dtype), jnp.asarray(table.grid, dtype))
