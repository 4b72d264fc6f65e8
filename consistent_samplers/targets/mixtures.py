"""Gaussian and Gaussian-mixture targets."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_LOG_2PI = math.log(2 * math.pi)


def gaussian(mean: ArrayLike, covariance: ArrayLike) -> Target:
    """Gaussian with any mean and covariance, left unnormalised.

    The log density is the bare quadratic form -(x - m)^T C^-1 (x - m) / 2, so that
    log Z = (d log 2π + log det C) / 2 is a value to find, not zero.

    Args:
      mean: ``[dim]``.
      covariance: a variance common to all coordinates ``[]``, a diagonal ``[dim]``, or a
        full matrix ``[dim, dim]``.

    Returns:
      The target, with its exact log Z and sampler.

    Raises:
      ValueError: wrong shapes, values that are not finite, or a covariance that is not
        symmetric and positive definite.
    """
    mean = np.asarray(mean, np.float64)
    covariance = np.asarray(covariance, np.float64)
    if mean.ndim != 1 or mean.size == 0:
        raise ValueError(
            f"mean must be a vector [dim], got shape {mean.shape}. For dim equal coordinates "
            "pass jnp.full(dim, value)."
        )
    dim = mean.size
    if covariance.shape not in ((), (dim,), (dim, dim)):
        raise ValueError(
            f"covariance must have shape [], [{dim}] or [{dim}, {dim}] to go with a mean of shape "
            f"[{dim}], got {covariance.shape}."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("mean and covariance must be finite. Look for NaN or inf in them.")

    # Factorised here once, in float64: the density itself then needs no LAPACK call, which is
    # slow in batches and can deadlock XLA on CPUs.
    if covariance.ndim < 2:
        variance = np.broadcast_to(covariance, (dim,))
        if not (variance > 0).all():
            raise ValueError(
                f"covariance must be positive, its smallest entry is {variance.min()}. Pass "
                "variances, all above zero."
            )
        scale = np.sqrt(variance)
        whiten, log_det = 1 / scale, np.log(variance).sum()
    else:
        scale = _cholesky(covariance)
        # The inverse of C's lower factor is a factor of the precision: C^-1 = whiten^T whiten.
        whiten, log_det = np.linalg.inv(scale), 2 * np.log(np.diag(scale)).sum()

    def log_density(x: Array) -> Array:
        z = _multiply(whiten, x - jnp.asarray(mean, x.dtype))
        return -0.5 * jnp.sum(z**2)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(rng_key, (num_samples, dim))
        return jax.vmap(lambda z: jnp.asarray(mean, z.dtype) + _multiply(scale, z))(noise)

    log_z = float(0.5 * (dim * _LOG_2PI + log_det))
    return Target(log_density, dim, name="gaussian", log_z=log_z, sample=sample)


def gmm9() -> Target:
    """Nine well separated modes in two dimensions.

    Equal components N(m, 0.3 I) with the means m on the grid {-5, 0, 5}²; normalised, log Z = 0.
    From Zhang & Chen, Path Integral Sampler (arXiv:2111.15141), and Berner et al., An optimal
    control perspective on diffusion-based generative modeling (DIS, arXiv:2211.01364).
    """
    means = np.array(list(itertools.product((-5.0, 0.0, 5.0), repeat=2)))
    return _isotropic_mixture(means, variance=0.3, name="gmm9")


def _isotropic_mixture(means: np.ndarray, variance: float, name: str) -> Target:
    """Normalised mixture of equal components N(means[k], variance I); means ``[k, dim]``."""
    num_components, dim = means.shape
    log_constant = -math.log(num_components) - 0.5 * dim * (_LOG_2PI + math.log(variance))

    def log_density(x: Array) -> Array:
        squared = jnp.sum((x[None, :] - jnp.asarray(means, x.dtype)) ** 2, axis=-1)
        return jax.nn.logsumexp(-0.5 * squared / variance) + log_constant

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_component, key_noise = jax.random.split(rng_key)
        component = jax.random.randint(key_component, (num_samples,), 0, num_components)
        noise = jax.random.normal(key_noise, (num_samples, dim))
        return jnp.asarray(means, noise.dtype)[component] + math.sqrt(variance) * noise

    return Target(log_density, dim, name=name, log_z=0.0, sample=sample)


def _multiply(factor: np.ndarray, x: Array) -> Array:
    """Diagonal ``[dim]`` or full ``[dim, dim]`` factor times a vector ``[dim]``."""
    array = jnp.asarray(factor, x.dtype)
    if array.ndim == 1:
        return array * x
    # The default precision of a matrix product on accelerators is far below float32.
    return jnp.matmul(array, x, precision=jax.lax.Precision.HIGHEST)


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor ``[dim, dim]``; ValueError if not symmetric positive definite."""
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > 1e-5 * np.abs(covariance).max():  # covariances often come in float32
        raise ValueError(
            f"covariance must be symmetric, it differs from its transpose by up to {asymmetry:.3g}."
            " Pass (C + C.T) / 2 if that is rounding."
        )
    symmetric = (covariance + covariance.T) / 2
    try:
        return np.linalg.cholesky(symmetric)
    except np.linalg.LinAlgError:
        smallest = np.linalg.eigvalsh(symmetric).min()
        raise ValueError(
            f"covariance must be positive definite, its smallest eigenvalue is {smallest:.3g}. "
            "Drop coordinates that depend linearly on others, or add a small multiple of the "
            "identity."
        ) from None
