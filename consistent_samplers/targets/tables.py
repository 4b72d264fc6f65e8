"""One-dimensional densities in tables: log Z and draws by the inverse CDF."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from consistent_samplers.types import Array


class Table(NamedTuple):
    """A one-dimensional density on a grid: points ``[n]``, cdf ``[n]`` (0 to 1), and log Z."""

    grid: np.ndarray
    cdf: np.ndarray
    log_z: float


def tabulate(grid: np.ndarray, log_density: np.ndarray) -> Table:
    """Integrates a density by the trapezoid rule on an even grid, in float64 on the host.

    For a smooth density that is flat (zero slope) or vanishes at both ends the rule converges
    faster than any power of the spacing; a few thousand points leave rounding error only.
    """
    density = np.exp(log_density)
    mass = 0.5 * (density[1:] + density[:-1]) * np.diff(grid)
    total = mass.sum()
    cdf = np.concatenate([[0.0], np.cumsum(mass) / total])
    return Table(grid, cdf, math.log(total))


def inverse_cdf(table: Table, uniform: Array) -> Array:
    """Maps uniforms in [0, 1) to draws from a tabulated density, any shape."""
    dtype = uniform.dtype
    return jnp.interp(uniform, jnp.asarray(table.cdf, dtype), jnp.asarray(table.grid, dtype))
