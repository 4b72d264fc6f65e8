"""Bases that keep the symmetries of their target: the mean of a base's copies over a group."""

import math
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.spatial import cKDTree

from consistent_samplers.bases.base import Base, one_frame
from consistent_samplers.bases.exploration import explore
from consistent_samplers.bases.mixture import SeveralFrames, mixture
from consistent_samplers.bases.mixture_fit import fit_to_draws
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import jit
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_MAX_ORDER = 20_000
# Distance of two places that are one: products of matrices in single precision err by less.
_SAME = 2e-5
# Copies that are looked at together: what a point takes is this times the inner base's memory.
_AT_ONCE = 64
_ROUNDS = 2  # after the first fit
_NUM_DRAWS = 4_096
_WIDER, _TAIL = 1.1, 0.05  # of the components' scales, and Tukey's h


@flax.struct.dataclass
class SymmetricBase(SeveralFrames):
    """The mean over a group of orthogonal matrices Q_g of a base's copies, (1/G) Σ_g p(Q_gᵀ x).

    It has the symmetries of the group, as has a sampler on it: a frame is named by g and a frame of
    the inner base, and a network is shown the latter's features alone. Of a target with these
    symmetries a mode that the inner base has is a mode of all its copies. Build it with
    `symmetric`, or fit it with `fit_symmetric`.

    Attributes:
      inner: p.
      transformations: ``[G, dim, dim]``, the Q_g.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> one = cs.bases.GaussianBase(jnp.array([3.0]), jnp.eye(1))
      >>> base = cs.bases.symmetric(one, -jnp.ones((1, 1, 1)))
      >>> base.log_prob(jnp.zeros((5, 1))).shape, len(base.transformations)
      ((5,), 2)
    """

    inner: Base
    transformations: Array

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.inner.dim

    def sample(self, rng_key: PRNGKey, num_samples: int) -> Array:
        """Draws ``[num_samples, dim]``."""
        key_inner, key_copy = jax.random.split(rng_key)
        y = self.inner.sample(key_inner, num_samples)
        chosen = jax.random.randint(key_copy, (num_samples,), 0, len(self.transformations))
        copies = self.transformations[chosen]
        return jnp.einsum("nij,nj->ni", copies, y, precision="highest")

    def log_prob(self, x: Array) -> Array:
        """Log density at ``x``: ``[..., dim] -> [...]``."""
        found = self._log_probs(jnp.asarray(x, self.transformations.dtype))
        return jax.nn.logsumexp(found, axis=0) - math.log(len(self.transformations))

    def _log_probs(self, x: Array) -> Array:
        """Log density of the inner base at the copies Q_gᵀ x: ``[..., dim] -> [G, ...]``."""

        def copy(transformation: Array) -> Array:
            y = jnp.einsum("ji,...j->...i", transformation, x, precision="highest")
            return self.inner.log_prob(y)

        return jax.lax.map(copy, self.transformations, batch_size=_AT_ONCE)

    def draw_component(self, rng_key: PRNGKey) -> Array:
        """Draws g and a component of the inner base: ``[1]`` or more integers."""
        key_copy, key_inner = jax.random.split(rng_key)
        chosen = jax.random.randint(key_copy, (1,), 0, len(self.transformations))
        return self._joined(chosen, self.inner.draw_component(key_inner))

    def component_at(self, rng_key: PRNGKey, x: Array) -> Array:
        """Draws g and a component of the inner base given ``x [dim]``."""
        key_copy, key_inner = jax.random.split(rng_key)
        chosen = jax.random.categorical(key_copy, self._log_probs(x))[None]
        y = self._back(x, chosen[0])
        return self._joined(chosen, self.inner.component_at(key_inner, y))

    def features(self, component: Array) -> Array | None:
        """Those of the inner base's component: a network is not shown which copy it is in."""
        return self.inner.features(self._inner(component))

    def unwhiten(self, z: Array, component: Array) -> Array:
        """The point Q_g x(z), with x(z) that of the inner base: ``[dim] -> [dim]``."""
        y = self.inner.unwhiten(z, self._inner(component))
        return jnp.matmul(self.transformations[component[0]], y, precision="highest")

    def whiten(self, x: Array, component: Array) -> Array:
        """The whitened point of Q_gᵀ x in the inner base: ``[dim] -> [dim]``."""
        return self.inner.whiten(self._back(x, component[0]), self._inner(component))

    def _back(self, x: Array, chosen: Array) -> Array:
        return jnp.matmul(x, self.transformations[chosen], precision="highest")

    def _joined(self, chosen: Array, inner: Any) -> Array:
        return chosen if isinstance(inner, tuple) else jnp.concatenate([chosen, jnp.ravel(inner)])

    def _inner(self, component: Array) -> Any:
        if one_frame(self.inner):
            return ()
        shape = jax.eval_shape(self.inner.draw_component, jax.random.key(0)).shape
        return component[1:].reshape(shape)


def symmetric(base: Base, generators: ArrayLike) -> SymmetricBase:
    """The mean of a base's copies over the group that some orthogonal matrices generate.

    Args:
      base: any base.
      generators: ``[n, dim, dim]``. A circle of rotations has to be given as a finite one, such as
        that by 2π / 32; the finer, the more each density costs, which is that of the base times
        the order of the group.

    Raises:
      ValueError: matrices of another shape or that are not orthogonal, or a group of more than
        20,000 elements.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> base = cs.bases.GaussianBase(jnp.array([3.0, 0.0]), jnp.eye(2))
      >>> quarter = jnp.array([[0.0, -1.0], [1.0, 0.0]])
      >>> cs.bases.symmetric(base, quarter[None]).transformations.shape
      (4, 2, 2)
    """
    return SymmetricBase(base, jnp.asarray(_group(generators, base.dim), float))


def _group(generators: ArrayLike, dim: int) -> np.ndarray:
    """All products of some orthogonal matrices, ``[G, dim, dim]``, the identity first."""
    given = np.asarray(generators, np.float64)
    if given.ndim != 3 or given.shape[1:] != (dim, dim):
        raise ValueError(f"generators must have shape [n, {dim}, {dim}], got {given.shape}.")
    if not np.allclose(given @ given.transpose(0, 2, 1), np.eye(dim), atol=1e-5):
        raise ValueError("generators must be orthogonal matrices: Q Qᵀ is not the identity.")
    u, _, v = np.linalg.svd(given)
    given = u @ v
    # Matrices are told apart by where they take a point without symmetries.
    point = np.random.default_rng(0).normal(size=dim)
    point /= np.linalg.norm(point)
    found = fresh = np.eye(dim)[None]
    while len(fresh):
        products = np.einsum("aij,bjk->abik", given, fresh).reshape(-1, dim, dim)
        places = products @ point
        new = np.isinf(cKDTree(found @ point).query(places, distance_upper_bound=_SAME)[0])
        near = cKDTree(places).query_ball_point(places, _SAME)
        fresh = products[new & np.array([min(same) == i for i, same in enumerate(near)])]
        found = np.concatenate([found, fresh])
        if len(found) > _MAX_ORDER:
            raise ValueError(
                f"The generators make a group of more than {_MAX_ORDER:,} elements. Give fewer, "
                "or rotations by 2π / n with a smaller n."
            )
    return found


def fit_symmetric(
    rng_key: PRNGKey,
    target: Target,
    generators: ArrayLike,
    *,
    max_components: int = 16,
) -> SymmetricBase:
    """A mixture of Gaussians fitted to a target modulo its symmetries, and its copies.

    Tempered particles (`explore`) are taken to the copy in which they are nearest to one of them,
    and a mixture is fitted to them there (`fit_to_draws`). Draws of all copies, resampled by their
    importance weights, take the particles' place in two rounds of population Monte Carlo (Cappé
    et al., "Adaptive importance sampling in general mixture classes", 2008).

    Args:
      rng_key: key.
      target: a target that the generators leave as it is; of others the weights will tell.
      generators: as in `symmetric`.
      max_components: largest number of components of the mixture.

    Raises:
      ValueError: generators that `symmetric` refuses.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -0.5 * (jnp.abs(x[0]) - 3.0) ** 2, 1)
      >>> base = cs.bases.fit_symmetric(jax.random.key(0), target, -jnp.ones((1, 1, 1)))
      >>> abs(base.inner.loc[0]).round().tolist(), len(base.transformations)
      ([3.0], 2)
    """
    check_integer("max_components", max_components)
    key_explore, *keys = jax.random.split(rng_key, _ROUNDS + 1)
    group = jnp.asarray(_group(generators, target.dim), float)
    points = jnp.asarray(explore(key_explore, target).particles, float)
    template = points[0]

    @jit
    def gathered(x: Array) -> Array:
        """Points in the copy where they are nearest to the template: ``[n, dim]``."""

        def one(x: Array) -> Array:
            copies = jnp.einsum("gji,j->gi", group, x, precision="highest")
            return copies[jnp.argmax(copies @ template)]

        return jax.lax.map(one, x, batch_size=256)

    def fitted(points: Array) -> SymmetricBase:
        found = fit_to_draws(gathered(points), max_components=max_components)
        # A little wider and with tails: what EM leaves outside has weights without a bound.
        tail = jnp.full(found.num_components, _TAIL)
        inner = mixture(found.log_weights, found.loc, _WIDER * found.scale_tril, tail)
        return SymmetricBase(cast(Base, inner), group)

    base = fitted(points)
    for key in keys:
        key_draw, key_choose = jax.random.split(key)
        draws = base.sample(key_draw, _NUM_DRAWS)
        log_base = jax.lax.map(base.log_prob, draws, batch_size=256)
        log_weight = evaluation.values(target.log_density, draws) - log_base
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        base = fitted(draws[jax.random.categorical(key_choose, log_weight, shape=(_NUM_DRAWS,))])
    return base
