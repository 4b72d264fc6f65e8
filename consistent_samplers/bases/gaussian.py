"""The Gaussian base: N(0, I) in its whitened coordinates z = L⁻¹(x - m), where samplers work."""

import warnings
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases.base import OneFrame
from consistent_samplers.checks import check_integer
from consistent_samplers.types import Array, PRNGKey


@flax.struct.dataclass
class GaussianBase(OneFrame):
    """N(m, L Lᵀ) on R^dim.

    Attributes:
      loc: ``[dim]``, the mean m.
      scale_tril: ``[dim, dim]``, lower triangular L with a positive diagonal.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> base = cs.bases.GaussianBase(loc=jnp.ones(2), scale_tril=2.0 * jnp.eye(2))
      >>> base.sample(jax.random.key(0), 3).shape, base.whiten(jnp.array([1.0, 5.0])).tolist()
      ((3, 2), [0.0, 2.0])
    """

    loc: Array
    scale_tril: Array

    @property
    def log_abs_det(self) -> Array:
        """Log |det L|, which whitening adds to a log density."""
        return jnp.sum(jnp.log(jnp.diagonal(self.scale_tril)))

    def distribution(self) -> Any:
        """The base as a ``distrax.MultivariateNormalTri``."""
        with warnings.catch_warnings():
            # Importing TensorFlow Probability warns about JAX names that distrax does not use.
            warnings.simplefilter("ignore", DeprecationWarning)
            import distrax
        return distrax.MultivariateNormalTri(self.loc, self.scale_tril)

    def sample(self, rng_key: PRNGKey, num_samples: int) -> Array:
        """Draws ``[num_samples, dim]``."""
        return jax.vmap(self.unwhiten)(jax.random.normal(rng_key, (num_samples, self.dim)))

    def log_prob(self, x: Array) -> Array:
        """Log density at ``x``: ``[..., dim] -> [...]``."""
        z = jnp.vectorize(self.whiten, signature="(d)->(d)")(jnp.asarray(x, self.loc.dtype))
        return jax.scipy.stats.norm.logpdf(z).sum(-1) - self.log_abs_det

    def unwhiten(self, z: Array, component: tuple[()] = ()) -> Array:
        """The point x = m + L z: ``[dim] -> [dim]``."""
        # Accelerators' default precision is too low for weights that subtract log densities.
        return self.loc + jnp.matmul(self.scale_tril, z, precision=jax.lax.Precision.HIGHEST)

    def whiten(self, x: Array, component: tuple[()] = ()) -> Array:
        """The whitened point z = L⁻¹(x - m): ``[dim] -> [dim]``."""
        return jax.scipy.linalg.solve_triangular(self.scale_tril, x - self.loc, lower=True)

    def log_correction(self, x: Array, component: tuple[()] = ()) -> Array:
        """What the frame adds to a log density: log |det L|, ``[]``."""
        return self.log_abs_det


def standard_normal(dim: int, scale: float = 1.0) -> GaussianBase:
    """The fixed base N(0, scale² I).

    Args:
      dim: dimension.
      scale: standard deviation of every coordinate.

    Raises:
      ValueError: ``dim`` is not a positive integer, or ``scale`` is not positive.

    Example:
      >>> import consistent_samplers as cs
      >>> base = cs.bases.standard_normal(2, scale=3.0)
      >>> base.dim, base.loc.tolist(), base.scale_tril.tolist()
      (2, [0.0, 0.0], [[3.0, 0.0], [0.0, 3.0]])
    """
    check_integer("dim", dim)
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale!r}.")
    # Made on the host: small operations would each be compiled.
    dtype = jnp.result_type(float)
    return GaussianBase(*jax.device_put((np.zeros(dim, dtype), scale * np.eye(dim, dtype=dtype))))
