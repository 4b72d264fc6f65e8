"""Sites as one vector: constraints that know a place and a scale, and the transforms of them.

What looks for starting points within ±2 of the unconstrained origin, as NumPyro and the sampler do,
then finds the bulk of a distribution, however narrow it is and wherever it lies.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from consistent_samplers.types import Array

# Square roots of a unit of rounding that a value may be off by once it came back.
_ROUNDING = 4.0


class Placed(constraints.Constraint):
    """The support of one site, with what its unconstrained values are centred and scaled by.

    The ``support`` has as many event dimensions as the site has axes; ``loc`` and ``scale`` have
    the site's unconstrained shape.
    """

    def __init__(self, support: Any, loc: Array, scale: Array) -> None:
        self.support, self.loc, self.scale = support, loc, scale

    @property
    def event_dim(self) -> int:
        """Axes of the site."""
        return self.support.event_dim

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(jnp.shape(self.loc))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the site."""
        return tuple(biject_to(self.support).forward_shape(jnp.shape(self.loc)))

    def __call__(self, x: Array) -> Array:
        """Whether values ``[..., *shape]`` are in the support."""
        return self.support(x)

    def __repr__(self) -> str:
        return f"Placed({self.support!r})"

    def inside(self, x: Array) -> Array:
        """Whether a value is in the support; see `in_support`."""
        return in_support(self.support, x)

    def feasible_like(self, prototype: Array) -> Array:
        """A value of the support."""
        return self.support.feasible_like(prototype)

    def tree_flatten(self) -> Any:
        """Its arrays, for JAX."""
        return (self.support, self.loc, self.scale), (("support", "loc", "scale"), {})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether another is the same."""
        return isinstance(other, Placed) and same(self, other)


class Flat(constraints.Constraint):
    """Vectors ``[n]`` of sites, one after the other, each in its support."""

    event_dim = 1

    def __init__(self, names: tuple[str, ...], parts: tuple[Placed, ...]) -> None:
        self.names, self.parts = names, parts

    @property
    def size(self) -> int:
        """Length of a vector."""
        return sum(math.prod(part.shape) for part in self.parts)

    def __call__(self, x: Array) -> Array:
        """Whether vectors ``[..., n]`` are in the support."""
        values = self.unpack(x).values()
        return jnp.stack([p(v) for p, v in zip(self.parts, values, strict=True)]).all(0)

    def __repr__(self) -> str:
        parts = (f"{name}: {p.support!r}" for name, p in zip(self.names, self.parts, strict=True))
        return f"Flat({', '.join(parts)})"

    def unpack(self, x: Array) -> dict[str, Array]:
        """Sites ``[..., *shape]`` of vectors ``[..., n]``."""
        cut = _cut(jnp.asarray(x), [part.shape for part in self.parts])
        return dict(zip(self.names, cut, strict=True))

    def inside(self, x: Array) -> Array:
        """Whether one vector ``[n]`` is in the support; see `in_support`."""
        values = self.unpack(x).values()
        return jnp.stack([p.inside(v) for p, v in zip(self.parts, values, strict=True)]).all()

    def feasible_like(self, prototype: Array) -> Array:
        """A vector of the support."""
        like = self.unpack(prototype).values()
        made = [p.feasible_like(v) for p, v in zip(self.parts, like, strict=True)]
        return _joined(made, [p.shape for p in self.parts])

    def placed(self) -> tuple[Array, Array]:
        """Places and scales of all unconstrained coordinates: ``[dim]`` each."""
        loc, scale = (
            jnp.concatenate([jnp.reshape(getattr(part, name), -1) for part in self.parts])
            for name in ("loc", "scale")
        )
        return loc, scale

    def tree_flatten(self) -> Any:
        """Its arrays, for JAX."""
        return (self.parts,), (("parts",), {"names": self.names})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether another is the same."""
        return isinstance(other, Flat) and (self.names, self.parts) == (other.names, other.parts)


class _Standardised(Transform):
    """What unconstrained values are taken to, after they were scaled and moved."""

    def __init__(self, codomain: Any) -> None:
        self._codomain = codomain

    @property
    def codomain(self) -> Any:
        return self._codomain

    def tree_flatten(self) -> Any:
        return (self._codomain,), (("_codomain",), {})


class _ToSite(_Standardised):
    @property
    def domain(self) -> Any:
        return constraints.independent(constraints.real, jnp.ndim(self._codomain.loc))

    @property
    def _inner(self) -> Any:
        return biject_to(self._codomain.support)

    def _moved(self, x: Array) -> Array:
        return self._codomain.loc + self._codomain.scale * x

    def __call__(self, x: Array) -> Array:
        return self._inner(self._moved(x))

    def _inverse(self, y: Array) -> Array:
        return (self._inner.inv(y) - self._codomain.loc) / self._codomain.scale

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        inner = self._inner.log_abs_det_jacobian(self._moved(x), y)
        return inner + jnp.sum(jnp.log(self._codomain.scale))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._inner.forward_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._inner.inverse_shape(shape)


class _ToVector(_Standardised):
    domain = constraints.real_vector

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [jnp.shape(part.loc) for part in self._codomain.parts]

    def _sites(self, x: Array) -> Iterator[tuple[Any, Array]]:
        return zip(map(biject_to, self._codomain.parts), _cut(x, self._shapes), strict=True)

    def __call__(self, x: Array) -> Array:
        shapes = [part.shape for part in self._codomain.parts]
        return _joined([to(u) for to, u in self._sites(x)], shapes)

    def _inverse(self, y: Array) -> Array:
        values = self._codomain.unpack(y).values()
        pairs = zip(map(biject_to, self._codomain.parts), values, strict=True)
        return _joined([to.inv(value) for to, value in pairs], self._shapes)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        values = self._codomain.unpack(y).values()
        pairs = zip(self._sites(x), values, strict=True)
        return sum(to.log_abs_det_jacobian(u, value) for (to, u), value in pairs)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:-1], self._codomain.size

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:-1], sum(part.size for part in self._codomain.parts)


biject_to.register(Placed, _ToSite)
biject_to.register(Flat, _ToVector)


def in_support(support: Any, x: Array) -> Array:
    """Whether a value is in a support: ``[]`` bool.

    Equations (a simplex adds up to one) hold to rounding: of such supports see `comes_back`.
    """
    base = getattr(support, "base_constraint", support)
    return jnp.all(base(x)) if base.event_dim == 0 else comes_back(support, x)


def comes_back(support: Any, x: Array) -> Array:
    """Whether a value is what its unconstrained one is mapped to, to rounding: ``[]`` bool.

    Of values outside of the support the inverse is NaN, or that of another value. Those so close
    to the edge that they are rounded onto it come back.
    """
    to = biject_to(support)
    back = to(to.inv(x))
    tolerance = _ROUNDING * jnp.sqrt(jnp.finfo(back.dtype).eps) * jnp.max(jnp.abs(x), initial=0.0)
    return jnp.all(jnp.isfinite(x) & (jnp.abs(back - x) <= tolerance))


def same(first: Any, second: Any) -> bool:
    """Whether two supports are the same, arrays in them compared by their values."""
    a, b = jax.tree.leaves(first), jax.tree.leaves(second)
    kinds: list[Any] = [jax.tree.structure(support) for support in (first, second)]
    return bool(kinds[0] == kinds[1]) and all(map(np.array_equal, a, b))


def _cut(x: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """Arrays ``[..., *shape]`` of vectors ``[..., n]``."""
    parts, begin = [], 0
    for shape in shapes:
        end = begin + math.prod(shape)
        parts.append(x[..., begin:end].reshape(x.shape[:-1] + shape))
        begin = end
    return parts


def _joined(values: list[Array], shapes: list[tuple[int, ...]]) -> Array:
    """Vectors ``[..., n]`` of arrays ``[..., *shape]``."""
    pairs = zip(values, shapes, strict=True)
    flat = [v.reshape(*v.shape[: v.ndim - len(s)], math.prod(s)) for v, s in pairs]
    return jnp.concatenate(flat, axis=-1)
