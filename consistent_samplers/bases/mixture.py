"""Bases of several modes: mixtures of Gaussians, and products of one-dimensional mixtures."""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from consistent_samplers.types import Array, LogDensityFn, PRNGKey

_LOG_2PI = math.log(2.0 * math.pi)
# Components are told apart by a feature of their own up to this number, by their places beyond.
_MAX_ONE_HOT = 64


def _standard_normal_log_prob(z: Array) -> Array:
    return -0.5 * (jnp.sum(z**2, axis=-1) + z.shape[-1] * _LOG_2PI)


@jax.custom_jvp
def _lambert_w(y: Array) -> Array:
    """The solution W >= 0 of W e^W = y for y >= 0 (principal branch of Lambert's function)."""
    log1p = jnp.log1p(y)
    w = log1p * (1.0 - jnp.log1p(log1p) / (2.0 + log1p))
    for _ in range(3):
        # Newton on w = y e^(-w): no cancellation, and exact at zero.
        found = y * jnp.exp(-w)
        w = w - (w - found) / (1.0 + found)
    return w


@_lambert_w.defjvp
def _lambert_w_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    w = _lambert_w(*primals)
    return w, tangents[0] * jnp.exp(-w) / (1.0 + w)


def stretch(z: Array, tail: Array) -> Array:
    """Tukey's h: z exp(h z² / 2), whose tails fall like a power, |x|^(-1/h)."""
    return z * jnp.exp(0.5 * tail * z**2)


def _unstretch(w: Array, tail: Array) -> Array:
    """The z that `stretch` takes to w."""
    return w * jnp.exp(-0.5 * _lambert_w(tail * w**2))


class SeveralFrames:
    """What bases of several components share: the extended target, see `Base`."""

    def draw_component(self: Any, rng_key: PRNGKey) -> Array:
        """Draws k ~ π, ``[]``; of a product one for each coordinate, ``[dim]``."""
        return jax.random.categorical(rng_key, self.log_weights)

    def component_at(self: Any, rng_key: PRNGKey, x: Array) -> Array:
        """Draws k given ``x [dim]``, from the posterior probabilities r(k | x)."""
        return jax.random.categorical(rng_key, self.log_joint(x))

    def log_correction(self: Any, x: Array, component: Array) -> Array:
        """What a frame adds to a log density at ``x``: log N(z; 0, I) - log p0(x), ``[]``."""
        return _standard_normal_log_prob(self.whiten(x, component)) - self.log_prob(x)

    def whitened_log_density(
        self: Any, log_density: LogDensityFn, component: Array
    ) -> LogDensityFn:
        """A log density on x as one on the z of a component, see `Base`."""

        def whitened(z: Array) -> Array:
            x = self.unwhiten(z, component)
            return log_density(x) - self.log_prob(x) + _standard_normal_log_prob(z)

        return whitened


@flax.struct.dataclass
class MixtureBase(SeveralFrames):
    """Σ_k π_k N(m_k, L_k L_kᵀ) on R^dim. Build it with `mixture`, or fit it with `fit_mixture`.

    With tails h_k > 0 a component is the law of m_k + L_k w, where w = z exp(h_k z² / 2) by
    coordinate (Tukey's h distribution, Goerg, 2015), which falls like |w|^(-1/h_k): close to
    Student's t with 1 / h_k degrees of freedom.

    Attributes:
      log_weights: ``[num_components]``, log π.
      loc: ``[num_components, dim]``, the means m_k.
      scale_tril: ``[num_components, dim, dim]``, lower triangular L_k with positive diagonals.
      whitener: ``[num_components, dim, dim]``, their inverses.
      tail: ``[num_components]``, h_k, or None for Gaussian components.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> base = cs.bases.mixture(jnp.zeros(2), jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)))
      >>> base.unwhiten(jnp.zeros(1), jnp.asarray(1)).tolist()  # where a frame has its origin
      [2.0]
    """

    log_weights: Array
    loc: Array
    scale_tril: Array
    whitener: Array
    tail: Array | None = None

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.loc.shape[-1]

    @property
    def num_components(self) -> int:
        """Number of components."""
        return self.loc.shape[0]

    def sample(self, rng_key: PRNGKey, num_samples: int) -> Array:
        """Draws ``[num_samples, dim]``."""

        def one(key: PRNGKey) -> Array:
            key_component, key_noise = jax.random.split(key)
            noise = jax.random.normal(key_noise, (self.dim,))
            return self.unwhiten(noise, self.draw_component(key_component))

        return jax.vmap(one)(jax.random.split(rng_key, num_samples))

    def log_prob(self, x: Array) -> Array:
        """Log density at ``x``: ``[..., dim] -> [...]``."""
        return jax.nn.logsumexp(self.log_joint(jnp.asarray(x, self.loc.dtype)), axis=-1)

    def log_joint(self, x: Array) -> Array:
        """Log π_k + log N(x; m_k, L_k L_kᵀ): ``[..., dim] -> [..., num_components]``."""
        away = x[..., None, :] - self.loc
        w = jnp.einsum("kij,...kj->...ki", self.whitener, away, precision="highest")
        log_abs_det = jnp.log(jnp.diagonal(self.whitener, axis1=-2, axis2=-1)).sum(-1)
        if self.tail is None:
            return self.log_weights + log_abs_det + _standard_normal_log_prob(w)
        tail = self.tail[:, None]
        z = _unstretch(w, tail)
        log_slope = 0.5 * tail * z**2 + jnp.log1p(tail * z**2)
        return self.log_weights + log_abs_det + (_standard_normal_log_prob(z) - log_slope.sum(-1))

    def features(self, component: Array) -> Array:
        """Place of a component relative to all, and which it is: ``[num_features]``."""
        # By hand: a component of weight zero must not shrink the others' differences.
        centre, spread = self.loc.mean(0), jnp.maximum(self.loc.std(0), 1e-6)
        place = (self.loc[component] - centre) / spread
        if self.num_components > _MAX_ONE_HOT:
            return place
        return jnp.concatenate([place, jax.nn.one_hot(component, self.num_components)])

    def unwhiten(self, z: Array, component: Array) -> Array:
        """The point x = m_k + L_k w(z): ``[dim] -> [dim]``."""
        stretched = z if self.tail is None else stretch(z, self.tail[component])
        away = jnp.matmul(self.scale_tril[component], stretched, precision="highest")
        return self.loc[component] + away

    def whiten(self, x: Array, component: Array) -> Array:
        """The point z with w(z) = L_k⁻¹ (x - m_k): ``[dim] -> [dim]``."""
        away = x - self.loc[component]
        w = jnp.matmul(self.whitener[component], away, precision="highest")
        return w if self.tail is None else _unstretch(w, self.tail[component])


def mixture(
    log_weights: Array, loc: Array, scale_tril: Array, tail: Array | None = None
) -> MixtureBase:
    """A mixture of Gaussians, or of components with heavier tails.

    Args:
      log_weights: ``[num_components]``, need not be normalised.
      loc: ``[num_components, dim]``, means.
      scale_tril: ``[num_components, dim, dim]``, lower Cholesky factors of the covariances.
      tail: ``[num_components]``, how heavy the tails are, see `MixtureBase`; Gaussian if None.

    Raises:
      ValueError: shapes that do not go together, factors without a positive diagonal, or negative
        tails.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> base = cs.bases.mixture(jnp.zeros(2), jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)))
      >>> jnp.exp(base.log_weights).tolist(), base.log_prob(jnp.zeros((5, 1))).shape
      ([0.5, 0.5], (5,))
    """
    logits, means = np.asarray(log_weights, np.float64), np.asarray(loc, np.float64)
    factors = np.asarray(scale_tril, np.float64)
    if means.ndim != 2 or logits.shape != means.shape[:1]:
        raise ValueError(
            "loc must be [num_components, dim] and log_weights [num_components], got "
            f"{means.shape} and {logits.shape}."
        )
    num, dim = means.shape
    if factors.shape != (num, dim, dim):
        raise ValueError(f"scale_tril must have shape [{num}, {dim}, {dim}], got {factors.shape}.")
    if not (np.diagonal(factors, axis1=1, axis2=2) > 0).all():
        raise ValueError("Every scale_tril must have a positive diagonal: take Cholesky factors.")
    eye = np.eye(dim)
    # On the host in float64: exact, and away from XLA's LAPACK calls.
    inverses = np.stack([scipy.linalg.solve_triangular(f, eye, lower=True) for f in factors])
    parts = [logits - scipy.special.logsumexp(logits), means, factors, inverses]
    if tail is not None:
        parts.append(np.asarray(tail, np.float64))
        if parts[-1].shape != (num,) or not (parts[-1] >= 0.0).all():
            raise ValueError(f"tail must be [{num}] numbers that are not negative, got {tail}.")
    return MixtureBase(*(jnp.asarray(part, float) for part in parts))


@flax.struct.dataclass
class ProductMixtureBase(SeveralFrames):
    """A product over the coordinates of one-dimensional Gaussian mixtures.

    It has num_components^dim modes at the cost of num_components · dim numbers.

    Attributes:
      log_weights: ``[dim, num_components]``, log π of each coordinate.
      loc: ``[dim, num_components]``.
      scale: ``[dim, num_components]``, standard deviations.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> loc = jnp.array([[-2.0, 2.0], [-1.0, 1.0]])
      >>> base = cs.bases.ProductMixtureBase(jnp.log(jnp.full((2, 2), 0.5)), loc, jnp.ones((2, 2)))
      >>> base.dim, base.unwhiten(jnp.zeros(2), jnp.array([0, 1])).tolist()  # one of four modes
      (2, [-2.0, 1.0])
    """

    log_weights: Array
    loc: Array
    scale: Array

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.loc.shape[0]

    def sample(self, rng_key: PRNGKey, num_samples: int) -> Array:
        """Draws ``[num_samples, dim]``."""
        key_component, key_noise = jax.random.split(rng_key)
        noise = jax.random.normal(key_noise, (num_samples, self.dim))
        components = jax.vmap(self.draw_component)(jax.random.split(key_component, num_samples))
        return jax.vmap(self.unwhiten)(noise, components)

    def log_prob(self, x: Array) -> Array:
        """Log density at ``x``: ``[..., dim] -> [...]``."""
        return jax.nn.logsumexp(self.log_joint(jnp.asarray(x, self.loc.dtype)), axis=-1).sum(-1)

    def log_joint(self, x: Array) -> Array:
        """Log π + log N of each coordinate: ``[..., dim] -> [..., dim, num_components]``."""
        return self.log_weights + jax.scipy.stats.norm.logpdf(x[..., None], self.loc, self.scale)

    def _of(self, values: Array, component: Array) -> Array:
        return jnp.take_along_axis(values, component[:, None], axis=1)[:, 0]

    def features(self, component: Array) -> Array:
        """Place of each coordinate's component relative to its others: ``[dim]``."""
        spread = jnp.maximum(self.loc.std(1), 1e-6)
        return (self._of(self.loc, component) - self.loc.mean(1)) / spread

    def unwhiten(self, z: Array, component: Array) -> Array:
        """The point x = m_k + s_k z by coordinate: ``[dim] -> [dim]``."""
        return self._of(self.loc, component) + self._of(self.scale, component) * z

    def whiten(self, x: Array, component: Array) -> Array:
        """The whitened point z = (x - m_k) / s_k by coordinate: ``[dim] -> [dim]``."""
        return (x - self._of(self.loc, component)) / self._of(self.scale, component)
