"""Gaussian and Gaussian-mixture targets."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from consistent_samplers.checks import check_integer
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.numerics import LOG_2PI, matvec
from consistent_samplers.types import Array, PRNGKey


def gaussian(mean: ArrayLike, covariance: ArrayLike) -> Target:
    """Gaussian with any mean and covariance, left unnormalised.

    The log density is the bare quadratic form -(x - m)^T C^-1 (x - m) / 2, so that
    log Z = (d log 2π + log det C) / 2 is a value to find, not zero.

    Args:
      mean: ``[dim]``.
      covariance: a common variance ``[]``, a diagonal ``[dim]`` or a full matrix ``[dim, dim]``.

    Raises:
      ValueError: wrong shapes, values that are not finite, or a covariance that is not
        symmetric and positive definite.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.zeros(2), jnp.array([[2.0, 1.0], [1.0, 2.0]]))
      >>> round(target.log_z, 4)  # log 2π + ½ log 3
      2.3872
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
        if not (low := variance.min()) > 0:
            raise ValueError(
                f"covariance must be positive, its smallest entry is {low}. Pass variances, all "
                "above zero."
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

    log_z = float(0.5 * (dim * LOG_2PI + log_det))
    return Target(log_density, dim, name="gaussian", log_z=log_z, sample=sample)


def gmm9() -> Target:
    """Nine well separated modes in two dimensions.

    Equal components N(m, 0.3 I) with the means m on the grid {-5, 0, 5}²; normalised, log Z = 0.
    From Zhang & Chen, Path Integral Sampler (arXiv:2111.15141), and Berner et al., An optimal
    control perspective on diffusion-based generative modeling (DIS, arXiv:2211.01364).

    Example:
      >>> import jax, consistent_samplers as cs
      >>> cs.targets.gmm9().sample(jax.random.key(0), 100).shape
      (100, 2)
    """
    means = np.array(list(itertools.product((-5.0, 0.0, 5.0), repeat=2)))
    return _isotropic_mixture(means, variance=0.3, name="gmm9")


def gmm40(dim: int = 2) -> Target:
    """Forty modes scattered over [-40, 40]^dim.

    Equal components N(m, I); normalised, log Z = 0. The means are the field's own: 40 U(-1, 1) from
    the key 0 of jax 0.4, before ``jax_threefry_partitionable`` became the default, whatever the
    user's flags. From Midgley et al., Flow annealed importance sampling bootstrap (FAB,
    arXiv:2208.01893), with unit variances and in any dimension as in Blessing et al., Beyond ELBOs
    (arXiv:2406.07423).

    Args:
      dim: dimension; 2 and 50 are common.

    Raises:
      RuntimeError: a version of JAX that no longer offers the old random bits.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.gmm40(dim=50).log_z
      0.0
    """
    check_integer("dim", dim, 1)
    # Scaled in float32 as the field does, to the last bit.
    means = _field_uniform((40, dim), 40.0)
    return _isotropic_mixture(means.astype(np.float64), variance=1.0, name="gmm40")


def student_t_mixture(dim: int = 50) -> Target:
    """Ten modes with tails so heavy that no variance exists.

    Equal components, each a product of Student's t with two degrees of freedom around its means
    (univariate factors, not the multivariate t); normalised, log Z = 0. The means are U(-10, 10)
    from the key of ``gmm40``; the argument and the error are as there. Second moments are infinite:
    compare quantiles. From Blessing et al., Beyond ELBOs (arXiv:2406.07423).

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.student_t_mixture(dim=50).log_z
      0.0
    """
    check_integer("dim", dim, 1)
    means = _field_uniform((10, dim), 10.0).astype(np.float64)

    # The density of t with two degrees of freedom: (1 + t²/2)^(-3/2) / (2 √2).
    def log_kernel(t: Array) -> Array:
        return -1.5 * jnp.sum(jnp.log1p(0.5 * t**2), axis=-1)

    def draw(rng_key: PRNGKey, shape: tuple[int, ...]) -> Array:
        # t = z / √(χ²/2), with the χ² on two degrees of freedom made of two normals: taken from
        # one uniform it would be exactly 0, and the draw infinite, once in 2²³ times.
        noise = jax.random.normal(rng_key, (3, *shape))
        return noise[0] / jnp.sqrt(0.5 * (noise[1] ** 2 + noise[2] ** 2))

    log_constant = -math.log(10) - dim * math.log(2 * math.sqrt(2))
    return _mixture("student_t_mixture", means, log_kernel, log_constant, draw)


def _field_uniform(shape: tuple[int, int], reach: float) -> np.ndarray:
    """Uniform draws in [-reach, reach] as ``PRNGKey(0)`` gave them in jax 0.4, float32."""
    if not hasattr(jax, "threefry_partitionable"):
        raise RuntimeError(
            "This target's means come from JAX's old random bits (jax_threefry_partitionable = "
            f"False), which jax {jax.__version__} no longer offers. Use an older JAX, such as 0.10."
        )
    # Everything that a user's flags or an enclosing jit could change is pinned.
    with jax.ensure_compile_time_eval(), jax.threefry_partitionable(False):
        key = jax.random.key(0, impl="threefry2x32")
        # 2u - 1 is exact in float32, so that the product is rounded once whatever the compiler
        # fuses: 20 u - 10 comes out otherwise without its fused multiply-add.
        unit = np.asarray(jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0))
    return np.float32(reach) * unit


def _isotropic_mixture(means: np.ndarray, variance: float, name: str) -> Target:
    """Normalised mixture of equal components N(means[k], variance I); means ``[k, dim]``."""
    num_components, dim = means.shape
    log_constant = -math.log(num_components) - 0.5 * dim * (LOG_2PI + math.log(variance))

    def log_kernel(offset: Array) -> Array:
        return -0.5 * jnp.sum(offset**2, axis=-1) / variance

    def draw(rng_key: PRNGKey, shape: tuple[int, ...]) -> Array:
        return math.sqrt(variance) * jax.random.normal(rng_key, shape)

    return _mixture(name, means, log_kernel, log_constant, draw)


def _mixture(
    name: str,
    means: np.ndarray,
    log_kernel: Callable[[Array], Array],
    log_constant: float,
    draw: Callable[[PRNGKey, tuple[int, ...]], Array],
) -> Target:
    """Normalised mixture of equal components, a kernel around each of ``means [k, dim]``."""
    num_components, dim = means.shape

    def log_density(x: Array) -> Array:
        return jax.nn.logsumexp(log_kernel(x[None, :] - jnp.asarray(means, x.dtype))) + log_constant

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_component, key_noise = jax.random.split(rng_key)
        component = jax.random.randint(key_component, (num_samples,), 0, num_components)
        offset = draw(key_noise, (num_samples, dim))
        return jnp.asarray(means, offset.dtype)[component] + offset

    return Target(log_density, dim, name=name, log_z=0.0, sample=sample)


def _multiply(factor: np.ndarray, x: Array) -> Array:
    """Diagonal ``[dim]`` or full ``[dim, dim]`` factor times a vector ``[dim]``."""
    return jnp.asarray(factor, x.dtype) * x if factor.ndim == 1 else matvec(factor, x)


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
