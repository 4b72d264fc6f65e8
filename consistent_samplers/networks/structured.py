"""A control for many dimensions, whose step has a determinant that is a product."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from consistent_samplers.log_det import Sylvester, solve_triangular
from consistent_samplers.networks.perceptron import bounded_gain
from consistent_samplers.types import Array


def _orthonormal(w: Array) -> Array:
    """Orthonormal columns ``[dim, rank]`` near those of ``w``, rank <= dim: reflections' product.

    The j-th Householder reflection takes the j-th unit vector to w's j-th column, normalised. All
    are multiplied at once (compact WY form: Schreiber & Van Loan, 1989), without LAPACK.
    """
    dim, rank = w.shape
    eye = jnp.eye(dim, rank, dtype=w.dtype)

    def normalised(columns: Array) -> Array:
        square = jnp.sum(columns**2, axis=0)
        return columns * jax.lax.rsqrt(jnp.where(square > 0.0, square, 1.0))

    y = normalised(normalised(w) - eye)
    # (½ I + the strictly upper part of Yᵀ Y)⁻¹ Yᵀ, of the first rows.
    triangle = 2.0 * jnp.triu(y.T @ y, 1)
    inner = jax.vmap(lambda rhs: solve_triangular(triangle, rhs), 1, 1)(2.0 * y[:rank].T)
    return eye - y @ inner


class Structured(nn.Module):
    """A control for many dimensions: an elementwise map, then hidden units V φ(U y + b).

    In a step x + c u the units act where the elementwise map e has led, y = x + c e(x): the step is
    a composition. U V is upper triangular, so that each of the two determinants is a product (van
    den Berg et al., 2018, section 3, where V and U span one subspace; here V may also write outside
    of U's), all of whose factors are positive for c up to 1: the step is injective by construction.
    Zero while untrained.

    Attributes:
      dim: dimension of x.
      rank: number of hidden units, of which ``dim`` at most are used.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> network = cs.networks.Structured(dim=100, rank=4)
      >>> x, t, d, c = jnp.ones(100), jnp.zeros(()), jnp.ones(()), jnp.asarray(0.9)
      >>> params = network.init(jax.random.key(0), x, t, d)
      >>> control, jacobian = network.apply(params, x, t, d, c, method="split")
      >>> cs.log_det.slogdet(jacobian).sign.item()
      1.0
    """

    dim: int
    rank: int = 64

    def __call__(self, x: Array, t: Array, d: Array, features: Array | None = None) -> Array:
        """The control of a short step at ``x [dim]``: ``[dim]``."""
        return self.split(x, t, d, jnp.zeros(()), features)[0]

    @nn.compact
    def split(
        self, x: Array, t: Array, d: Array, c: Array, features: Array | None = None
    ) -> tuple[Array, Sylvester]:
        """The control u of a step x + c u, and the step's Jacobian by its parts."""
        # At the first, biggest step all of these but the constant vanish: the one-step map has
        # parameters of its own, as few as can be. In many dimensions each costs gradient noise.
        step = jnp.log2(d) / 8.0
        basis = jnp.stack([jnp.ones(()), t, step, t**2, t * step, step**2])

        def by_time(name: str, first: Callable[..., Array], *shape: int) -> Array:
            """A parameter that is a polynomial in t and log2 d."""
            constant = self.param(name, first, shape)
            others = self.param(f"{name}_time", nn.initializers.zeros, (5, *shape))
            return constant + jnp.tensordot(basis[1:], others, 1)

        zeros = nn.initializers.zeros
        shift = by_time("shift", zeros, self.dim)
        # Slopes at the outside and at the centre of a bend: both above -1, so that the elementwise
        # part never folds a step, and bounded, so that none runs off.
        outside = bounded_gain(by_time("outside", zeros, self.dim))
        inside = bounded_gain(by_time("inside", zeros, self.dim))
        width = jnp.exp(by_time("width", zeros, self.dim))
        centre = by_time("centre", nn.initializers.constant(0.3), self.dim)
        bend = jnp.tanh(x * (0.5 / width) + centre)
        elementwise = shift + outside * x + 2.0 * width * (inside - outside) * bend
        slope = outside + (inside - outside) * (1.0 - bend**2)

        left, right, triangle = self._units()
        rank = left.shape[-1]
        inner = right @ (x + c * elementwise) + by_time("offset", nn.initializers.normal(0.5), rank)
        if features is not None:
            inner += nn.Dense(rank, use_bias=False)(features)
        # Below 2, as what it multiplies in the triangle's diagonal is above -1/2.
        strength = 2.0 * nn.sigmoid(by_time("strength", zeros, rank))
        hidden = jnp.tanh(inner)
        out = elementwise + left @ (strength * hidden)
        gain = c * strength * (1.0 - hidden**2)
        return out, Sylvester(1.0 + c * slope, gain, left, right, triangle)

    def _units(self) -> tuple[Array, Array, Array]:
        """V ``[dim, rank]``, U ``[rank, dim]`` and U V, upper triangular."""
        rank = min(self.rank, self.dim)
        zeros = nn.initializers.zeros
        # Scaled so that a unit's size, and what an optimiser's step does to it, do not grow with
        # the dimension.
        q = _orthonormal(self.param("u", nn.initializers.normal(1.0), (self.dim, rank)))
        v = self.param("v", zeros, (self.dim, rank)) / math.sqrt(self.dim)
        scale = jnp.exp(self.param("scale", zeros, (rank,)))
        mixing = jnp.triu(self.param("mixing", zeros, (rank, rank)), 1) + jnp.diag(scale)
        # What V writes where U reads is made triangular, with a diagonal of U V above -1/2.
        free = q.T @ v
        kept = jnp.triu(free, 1) + jnp.diag(0.5 * nn.elu(2.0 * jnp.diagonal(free)) / scale)
        return v + q @ (kept - free), mixing @ q.T, jnp.triu(mixing @ kept)
