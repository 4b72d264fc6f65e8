"""Small matrices in batches, without LAPACK: roots of precisions that may not be positive."""

import jax
import jax.numpy as jnp

from consistent_samplers.types import Array

_UNROLLED = 4
_LEAST_PIVOT = 1e-3


def root_of(precision: Array) -> Array:
    """Lower triangular R ``[..., d, d]`` with R Rᵀ = P where P is positive definite.

    Elsewhere pivots that are too small or negative are replaced by the size of their diagonals, so
    that the root is that of a matrix nearby that is (Gill, Murray & Wright, 1981, section 4.4).
    """
    size = precision.shape[-1]
    if size == 0:
        return precision
    if size == 1:  # most members
        least = 1e-6 + jnp.abs(precision)
        return jnp.sqrt(jnp.where(precision > _LEAST_PIVOT * least, precision, least))
    index = jnp.arange(size)
    floor = 1e-6 + jnp.abs(jnp.diagonal(precision, axis1=-2, axis2=-1))

    def column(root: Array, j: Array) -> tuple[Array, None]:
        row = jnp.take(root, j, axis=-2)
        rest = jnp.take(precision, j, axis=-1) - jnp.einsum("...ik,...k->...i", root, row)
        pivot, least = jnp.take(rest, j, axis=-1), jnp.take(floor, j, axis=-1)
        safe = jnp.where(pivot > _LEAST_PIVOT * least, pivot, jnp.maximum(jnp.abs(pivot), least))
        own = jnp.sqrt(safe)
        below = jnp.where(index > j, rest / own[..., None], 0.0)
        found = jnp.where(index == j, own[..., None], below)
        return jnp.where(index == j, found[..., :, None], root), None

    # A loop of few rounds is compiled to better code without one.
    start = jnp.zeros_like(precision)
    return jax.lax.scan(column, start, index, unroll=size <= _UNROLLED)[0]


def inverse_of(root: Array) -> Array:
    """R⁻¹ ``[..., d, d]`` of lower triangular R."""
    size = root.shape[-1]
    if size <= 1:
        return 1.0 / root
    index = jnp.arange(size)
    eye = jnp.broadcast_to(jnp.eye(size, dtype=root.dtype), root.shape)

    def row(found: Array, i: Array) -> tuple[Array, None]:
        own = jnp.take(root, i, axis=-2)
        rest = jnp.take(eye, i, axis=-2) - jnp.einsum("...k,...kj->...j", own, found)
        new = rest / jnp.take(own, i, axis=-1)[..., None]
        return jnp.where((index == i)[:, None], new[..., None, :], found), None

    start = jnp.zeros_like(root)
    return jax.lax.scan(row, start, index, unroll=size <= _UNROLLED)[0]


def log_diagonal(root: Array) -> Array:
    """Sum of the logarithms of a root's diagonal ``[...]``."""
    return jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
