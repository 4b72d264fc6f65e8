"""Log-Gaussian Cox process: a random intensity on a grid, seen through the points it scattered."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular

from consistent_samplers.checks import check_integer
from consistent_samplers.targets import datasets
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array

_LOG_2PI = math.log(2 * math.pi)
_VARIANCE = 1.91
_LENGTH_SCALE = 1 / 33  # in widths of the unit square
_NUM_PINES = 126
# Log evidence by number of bins a side, where it is known.
_LOG_Z = {40: 501.803}


def lgcp(num_bins: int = 40) -> Target:
    """Log-Gaussian Cox process on the Finnish pines, num_bins² dimensions (1600).

    The unit square is cut into num_bins × num_bins cells; y_i of 126 saplings stand in cell i. A
    point x is the log intensity cell by cell, not whitened: x ~ N(μ, K), with
    μ = log(126) - σ²/2, K_ij = σ² exp(-33 |i - j| / num_bins), σ² = 1.91, and
    y_i ~ Poisson(a exp(x_i)), a = 1 / num_bins². As in the field, the likelihood is
    Σ y_i x_i - a exp(x_i), without Σ y_i log a - log y_i!, which is constant.
    log Z = 501.803 ± 0.011 for 40 bins (tempered sequential Monte Carlo and bridge sampling,
    which agree, pooled; the 512.6 of some code is wrong). For other numbers of bins it is not
    known here, and None.

    The inverse Cholesky factor of K is computed once, in float64: a density costs one product
    with a matrix (10 MB in float32 for 40 bins). In float32, log densities of about -2000 were
    off by at most 2e-4. Model from Møller, Syversveen & Waagepetersen, Log Gaussian Cox
    processes, Scandinavian Journal of Statistics 25 (1998); as a test of samplers from Heng et
    al., Controlled sequential Monte Carlo, Annals of Statistics 48 (2020).

    Args:
      num_bins: cells a side of the square.

    Raises:
      ValueError: num_bins is not a positive integer.
      ImportError, ConnectionError, FileNotFoundError, ValueError: the data cannot be had; see
        ``datasets.finnish_pines``.

    Example:
      >>> import consistent_samplers as cs
      >>> target = cs.targets.lgcp(40)  # doctest: +SKIP
      >>> target.dim, target.log_z  # doctest: +SKIP
      (1600, 501.803)
    """
    check_integer("num_bins", num_bins)
    counts = _bin_counts(datasets.finnish_pines(), num_bins)
    mean = math.log(_NUM_PINES) - 0.5 * _VARIANCE
    return _cox_process(counts, mean, _VARIANCE, _LENGTH_SCALE, _LOG_Z.get(num_bins))


def _cox_process(
    counts: np.ndarray,
    mean: float,
    variance: float,
    length_scale: float,
    log_z: float | None = None,
) -> Target:
    """Posterior of the log intensity on a square grid, given the count in every cell.

    Args:
      counts: ``[num_bins, num_bins]``.
      mean: prior mean of the log intensity.
      variance: its prior variance.
      length_scale: of its correlation exp(-distance / length_scale), in sides of the square.
      log_z: log evidence, if known.
    """
    num_bins = len(counts)
    dim = num_bins**2
    cells = np.stack(np.meshgrid(*[np.arange(num_bins) / num_bins] * 2, indexing="ij"), axis=-1)
    cells = cells.reshape(dim, 2)
    distance = np.sqrt(((cells[:, None] - cells[None]) ** 2).sum(axis=-1))
    # On the host, in float64: an exact factor, and no LAPACK where the density is vmapped.
    cholesky = np.linalg.cholesky(variance * np.exp(-distance / length_scale))
    whitening = solve_triangular(cholesky, np.eye(dim), lower=True)
    log_constant = -0.5 * dim * _LOG_2PI - float(np.log(np.diag(cholesky)).sum())
    flat_counts = counts.reshape(dim)
    area = 1 / dim

    def log_density(x: Array) -> Array:
        # |L⁻¹(x - μ)|² rather than (x - μ)ᵀK⁻¹(x - μ): the latter loses twice the digits.
        white = jnp.matmul(
            jnp.asarray(whitening, x.dtype), x - mean, precision=jax.lax.Precision.HIGHEST
        )
        log_likelihood = jnp.sum(jnp.asarray(flat_counts, x.dtype) * x - area * jnp.exp(x))
        return log_likelihood - 0.5 * jnp.sum(white**2) + log_constant

    return Target(log_density, dim, name="lgcp", log_z=log_z)


def _bin_counts(points: np.ndarray, num_bins: int) -> np.ndarray:
    """Number of points ``[n, 2]`` of the unit square in every cell, ``[num_bins, num_bins]``."""
    # A point on the upper edge belongs to the last cell.
    cells = np.minimum(np.floor(points * num_bins).astype(int), num_bins - 1)
    counts = np.zeros((num_bins, num_bins))
    np.add.at(counts, (cells[:, 0], cells[:, 1]), 1)
    return counts
