"""Log-determinants of sampler steps: exact, structured, and Hutchinson's trace.

Determinants alone come from LAPACK's LU factorisation. Where a gradient or an inverse is wanted as
well, small matrices are eliminated here without LAPACK, which cannot meet a fault of XLA's on CPUs:
independent LAPACK factorisations and solves in one compiled computation can wait for each other
for ever. Larger matrices go to LAPACK in one batched call; callers stack the matrices of all their
steps so that there is only one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers.types import Array

MAX_ELIMINATION_DIM = 64
"""Matrices up to this size are inverted by `gauss_jordan`, larger ones by LAPACK."""


class LogDet(NamedTuple):
    """Determinant of a matrix, as its sign and the logarithm of its absolute value.

    Attributes:
      sign: -1, 0 or 1.
      log_abs_det: in nats, -inf where the sign is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> sign, log_abs_det = cs.log_det.slogdet(jnp.diag(jnp.array([-1.0, 2.0])))
      >>> int(sign), round(float(log_abs_det), 4)
      (-1, 0.6931)
    """

    sign: Array
    log_abs_det: Array


@flax.struct.dataclass
class LowRank:
    """A matrix diag(diagonal) + left @ right that is never formed, with ``...`` batch dimensions.

    The Jacobian of an elementwise map plus V φ(U x): all that is asked of it costs
    O(dim · rank²), where the full matrix would cost O(dim³).

    Attributes:
      diagonal: ``[..., dim]``.
      left: ``[..., dim, rank]``.
      right: ``[..., rank, dim]``.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> matrix = cs.log_det.LowRank(jnp.ones(3), left=jnp.ones((3, 1)), right=jnp.ones((1, 3)))
      >>> matrix.dense().tolist()
      [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]
      >>> (matrix @ jnp.ones(3)).tolist()
      [4.0, 4.0, 4.0]
    """

    diagonal: Array
    left: Array
    right: Array

    @property
    def mT(self) -> "LowRank":  # noqa: N802 - the array API's name of the transpose
        """The transposed matrix."""
        return LowRank(self.diagonal, self.right.mT, self.left.mT)

    def __matmul__(self, vector: Array) -> Array:
        """Product with ``vector [dim]``; no batch dimensions."""
        return self.diagonal * vector + self.left @ (self.right @ vector)

    def small(self) -> Array:
        """I + right diag(1 / diagonal) left, ``[..., rank, rank]``."""
        scaled = self.right / self.diagonal[..., None, :]
        product = scaled @ self.left
        eye = jnp.eye(self.right.shape[-2], dtype=product.dtype)
        return product + jnp.broadcast_to(eye, product.shape)

    def dense(self) -> Array:
        """The matrix itself, ``[..., dim, dim]``."""
        product = self.left @ self.right
        eye = jnp.eye(self.diagonal.shape[-1], dtype=product.dtype)
        return product + self.diagonal[..., None] * jnp.broadcast_to(eye, product.shape)


Jacobian: TypeAlias = Array | LowRank
"""``[..., dim, dim]``, in full or by its parts."""


@jax.custom_jvp
def gauss_jordan(matrix: Array) -> tuple[LogDet, Array]:
    """Determinant and inverse of one matrix by in-place elimination with partial pivoting.

    Rows are not swapped: each step picks the largest unused row by a mask, so that a batch
    (through ``jax.vmap``) runs as plain elementwise work.

    Args:
      matrix: ``[dim, dim]``.

    Returns:
      The determinant, and the inverse ``[dim, dim]`` (not finite if the matrix is singular).

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> det, inverse = cs.log_det.gauss_jordan(jnp.array([[0.0, 2.0], [1.0, 0.0]]))
      >>> float(det.sign), round(float(det.log_abs_det), 4)
      (-1.0, 0.6931)
      >>> inverse.tolist()
      [[0.0, 1.0], [0.5, 0.0]]
    """
    dim = matrix.shape[-1]
    rows = jnp.arange(dim)

    def eliminate(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        a, unused, order, sign, log_abs = carry
        column = a[:, k]
        row = jnp.argmax(jnp.where(unused, jnp.abs(column), -1.0))
        is_pivot = rows == row
        pivot_row = jnp.sum(jnp.where(is_pivot[:, None], a, 0.0), axis=0)
        pivot = jnp.sum(jnp.where(rows == k, pivot_row, 0.0))
        # Exchange of variables: the pivot's column becomes a column of the inverse.
        # A zero pivot settles the sign; what follows must only stay finite.
        safe_pivot = jnp.where(pivot == 0.0, 1.0, pivot)
        scaled_row = jnp.where(rows == k, 1.0, pivot_row) / safe_pivot
        cleared = jnp.where((rows == k)[None, :], 0.0, a) - column[:, None] * scaled_row[None, :]
        a = jnp.where(is_pivot[:, None], scaled_row[None, :], cleared)
        # Each earlier pivot that lies below this row is one inversion of the permutation.
        inversions = jnp.sum(~unused & (rows > row))
        sign = sign * jnp.sign(pivot) * jnp.where(inversions % 2 == 0, 1.0, -1.0)
        log_abs = log_abs + jnp.log(jnp.abs(pivot))
        return a, unused & ~is_pivot, order.at[k].set(row), sign, log_abs

    one = jnp.ones((), matrix.dtype)
    start = (matrix, jnp.ones(dim, bool), jnp.zeros(dim, rows.dtype), one, 0.0 * one)
    a, _, order, sign, log_abs = jax.lax.fori_loop(0, dim, eliminate, start)
    inverse = jnp.where(sign == 0.0, jnp.nan, a[order][:, jnp.argsort(order)])
    return LogDet(sign, jnp.where(sign == 0.0, -jnp.inf, log_abs)), inverse


@gauss_jordan.defjvp
def _gauss_jordan_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (matrix,), (dot,) = primals, tangents
    det, inverse = gauss_jordan(matrix)
    dot_log_abs = jnp.sum(inverse.T * dot)
    return (det, inverse), (
        LogDet(jnp.zeros_like(det.sign), dot_log_abs),
        -inverse @ dot @ inverse,
    )


@jax.custom_jvp
def _small_slogdet(matrix: Array) -> LogDet:
    return LogDet(*jnp.linalg.slogdet(matrix))


@_small_slogdet.defjvp
def _small_slogdet_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (matrix,), (dot,) = primals, tangents
    det, inverse = gauss_jordan(matrix)
    return det, LogDet(jnp.zeros_like(det.sign), jnp.sum(inverse.T * dot))


def slogdet(matrices: Jacobian) -> LogDet:
    """Determinants of a batch of square matrices, with gradients of any order.

    Of a `LowRank` by Sylvester's identity, det(D + L R) = det D det(I + R D⁻¹ L) (as van den Berg
    et al., 2018, eq. 6, for D = I).

    Args:
      matrices: ``[..., dim, dim]``.

    Returns:
      Signs and log absolute values, each ``[...]``.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> matrices = jnp.stack([jnp.eye(2), 3.0 * jnp.eye(2)])
      >>> [round(float(value), 3) for value in cs.log_det.slogdet(matrices).log_abs_det]
      [0.0, 2.197]
      >>> parts = cs.log_det.LowRank(
      ...     jnp.ones(500), 0.1 * jnp.ones((500, 1)), 0.1 * jnp.ones((1, 500))
      ... )
      >>> round(float(cs.log_det.slogdet(parts).log_abs_det), 3)  # log(1 + 500 · 0.01)
      1.792
    """
    if isinstance(matrices, LowRank):
        rest = slogdet(matrices.small())
        return LogDet(
            rest.sign * jnp.sign(matrices.diagonal).prod(-1),
            rest.log_abs_det + jnp.log(jnp.abs(matrices.diagonal)).sum(-1),
        )
    dim = matrices.shape[-1]
    if dim <= MAX_ELIMINATION_DIM:
        flat = matrices.reshape((-1, dim, dim))
        det = jax.vmap(_small_slogdet)(flat)
        shape = matrices.shape[:-2]
        return LogDet(det.sign.reshape(shape), det.log_abs_det.reshape(shape))
    sign, log_abs = jnp.linalg.slogdet(matrices)
    return LogDet(sign, log_abs)


def solve(matrix: Jacobian, rhs: Array) -> Array:
    """Solves one linear system with the factorisation that `slogdet` uses.

    Args:
      matrix: ``[dim, dim]``.
      rhs: ``[dim]``.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> cs.log_det.solve(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([1.0, 1.0])).tolist()
      [0.5, 0.25]
    """
    if isinstance(matrix, LowRank):
        # Woodbury's identity.
        scaled = rhs / matrix.diagonal
        correction = solve(matrix.small(), matrix.right @ scaled)
        return scaled - (matrix.left @ correction) / matrix.diagonal
    if matrix.shape[-1] <= MAX_ELIMINATION_DIM:
        _, inverse = gauss_jordan(matrix)
        return inverse @ rhs
    return jnp.linalg.solve(matrix, rhs)


def value_and_jacobian(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """A map's value and Jacobian by forward mode, from one shared linearisation.

    Args:
      fn: ``[dim] -> [dim]``.
      x: ``[dim]``.

    Returns:
      ``fn(x)`` and ∂fn/∂x ``[dim, dim]``.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> value, jacobian = cs.log_det.value_and_jacobian(lambda x: x**2, jnp.array([1.0, 3.0]))
      >>> value.tolist(), jacobian.tolist()
      ([1.0, 9.0], [[2.0, 0.0], [0.0, 6.0]])
    """
    value, jvp = jax.linearize(fn, x)
    return value, jax.vmap(jvp, out_axes=-1)(jnp.eye(x.shape[-1], dtype=x.dtype))


def symmetric_part(matrix: Jacobian) -> Jacobian:
    """(J + Jᵀ) / 2 of one matrix ``[dim, dim]``; a `LowRank` of twice the rank stays one.

    Args:
      matrix: ``[dim, dim]``, in full or by its parts.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> cs.log_det.symmetric_part(jnp.array([[1.0, 2.0], [0.0, 1.0]])).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    if isinstance(matrix, LowRank):
        return LowRank(
            matrix.diagonal,
            0.5 * jnp.concatenate([matrix.left, matrix.right.mT], axis=-1),
            jnp.concatenate([matrix.right, matrix.left.mT], axis=-2),
        )
    return 0.5 * (matrix + matrix.T)


def distance_from_identity(matrix: Jacobian) -> Array:
    """An upper bound on the spectral norm of J - I for one matrix ``[dim, dim]``: ``[]``.

    Args:
      matrix: ``[dim, dim]``, in full or by its parts.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> float(cs.log_det.distance_from_identity(jnp.diag(jnp.array([1.5, 1.0]))))
      0.5
    """
    if isinstance(matrix, LowRank):
        rest = jnp.linalg.norm(matrix.left) * jnp.linalg.norm(matrix.right)
        return jnp.abs(matrix.diagonal - 1.0).max() + rest
    return jnp.linalg.norm(matrix - jnp.eye(matrix.shape[-1], dtype=matrix.dtype))


def hutchinson_trace(fn: Callable[[Array], Array], x: Array, probe: Array) -> Array:
    """One-probe estimate of tr ∂fn/∂x: probe · J probe (Hutchinson, 1990).

    Unbiased for the trace when E[probe probeᵀ] = I. It is no log-determinant: exp of it is
    biased, and a finite step's log-determinant is not its drift's trace.

    Args:
      fn: ``[dim] -> [dim]``.
      x: ``[dim]``.
      probe: ``[dim]``, Rademacher or standard normal.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> probe = jnp.array([1.0, -1.0])
      >>> float(cs.log_det.hutchinson_trace(lambda x: 3.0 * x, jnp.zeros(2), probe))
      6.0
    """
    _, dot = jax.jvp(fn, (x,), (probe,))
    return jnp.sum(probe * dot)
