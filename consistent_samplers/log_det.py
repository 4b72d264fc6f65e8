"""Log-determinants of sampler steps: exact, structured, and Hutchinson's trace.

Determinants alone come from LAPACK's LU factorisation. Where a gradient or an inverse is wanted as
well, small matrices are eliminated here without LAPACK, which cannot meet a fault of XLA's on CPUs:
independent LAPACK factorisations and solves in one compiled computation can wait for each other
for ever. Larger matrices go to LAPACK in one batched call; callers stack the matrices of all their
steps so that there is only one.
"""

import dataclasses
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
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.log_det.slogdet(-jnp.eye(3))
      LogDet(sign=Array(-1., dtype=float32), log_abs_det=Array(0., dtype=float32))
    """

    sign: Array
    log_abs_det: Array


@flax.struct.dataclass
class Sylvester:
    """A matrix (I + left diag(gain) right) diag(diagonal) with right @ left upper triangular.

    The Jacobian of an elementwise map followed by y + V φ(U y + b), where U V is triangular (van
    den Berg et al., 2018, Sylvester normalizing flows, eq. 9 to 13): the matrix is never formed,
    and neither is its determinant's rank × rank one. Of a batch, only ``diagonal`` and ``gain``
    differ from point to point.

    Attributes:
      diagonal: ``[..., dim]``.
      gain: ``[..., rank]``.
      left: ``[..., dim, rank]``.
      right: ``[..., rank, dim]``.
      triangle: ``[..., rank, rank]``, right @ left.
      transposed: whether the transposed matrix is meant.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> left, right = jnp.ones((2, 1)), jnp.ones((1, 2))
      >>> matrix = cs.log_det.Sylvester(jnp.ones(2), jnp.ones(1), left, right, right @ left)
      >>> matrix.dense().tolist(), (matrix @ jnp.ones(2)).tolist()
      ([[2.0, 1.0], [1.0, 2.0]], [3.0, 3.0])
    """

    diagonal: Array
    gain: Array
    left: Array
    right: Array
    triangle: Array
    transposed: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def mT(self) -> "Sylvester":  # noqa: N802 - the array API's name of the transpose
        """The transposed matrix."""
        return dataclasses.replace(self, transposed=not self.transposed)

    @property
    def factors(self) -> Array:
        """What the determinant of I + left diag(gain) right is the product of: ``[..., rank]``."""
        return 1.0 + self.gain * jnp.diagonal(self.triangle, axis1=-2, axis2=-1)

    def __matmul__(self, vector: Array) -> Array:
        """Product with ``vector [dim]``; no batch dimensions."""
        if self.transposed:
            inner = vector + self.right.mT @ (self.gain * (self.left.mT @ vector))
            return self.diagonal * inner
        vector = self.diagonal * vector
        return vector + self.left @ (self.gain * (self.right @ vector))

    def solve(self, rhs: Array) -> Array:
        """Solution for ``rhs [dim]``, by Woodbury's identity; no batch dimensions."""
        if self.transposed:
            rhs = rhs / self.diagonal
            inner = self.gain * (self.left.mT @ rhs)
            # Lower triangular: the same from the last unit to the first.
            flipped = solve_triangular(self.triangle.mT[::-1, ::-1], inner[::-1], self.gain[::-1])
            return rhs - self.right.mT @ flipped[::-1]
        inner = solve_triangular(self.triangle, self.gain * (self.right @ rhs), self.gain)
        return (rhs - self.left @ inner) / self.diagonal

    def dense(self) -> Array:
        """The matrix itself, ``[..., dim, dim]``."""
        product = (self.left * self.gain[..., None, :]) @ self.right
        eye = jnp.eye(self.diagonal.shape[-1], dtype=product.dtype)
        full = (product + jnp.broadcast_to(eye, product.shape)) * self.diagonal[..., None, :]
        return full.mT if self.transposed else full


Jacobian: TypeAlias = Array | Sylvester
"""``[..., dim, dim]``, in full or by its parts."""


@jax.custom_jvp
def gauss_jordan(matrix: Array) -> tuple[LogDet, Array]:
    """Determinant and inverse ``[dim, dim]`` of one matrix, by elimination with partial pivoting.

    In place and without swaps: each step picks the largest unused row by a mask, so that a batch
    (through ``jax.vmap``) runs as plain elementwise work. A singular matrix's inverse is NaN.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> det, inverse = cs.log_det.gauss_jordan(jnp.array([[0.0, 2.0], [1.0, 0.0]]))
      >>> float(det.sign), inverse.tolist()
      (-1.0, [[0.0, 1.0], [0.5, 0.0]])
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
    dot_det = LogDet(jnp.zeros_like(det.sign), jnp.sum(inverse.T * dot))
    return (det, inverse), (dot_det, -inverse @ dot @ inverse)


@jax.custom_jvp
def _small_slogdet(matrix: Array) -> LogDet:
    return LogDet(*jnp.linalg.slogdet(matrix))


@_small_slogdet.defjvp
def _small_slogdet_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (matrix,), (dot,) = primals, tangents
    det, inverse = gauss_jordan(matrix)
    return det, LogDet(jnp.zeros_like(det.sign), jnp.sum(inverse.T * dot))


def slogdet(matrices: Jacobian) -> LogDet:
    """Determinants ``[...]`` of square matrices ``[..., dim, dim]``, with gradients of any order.

    Of a `Sylvester` by the identity of that name, det(I + L G R) = det(I + G R L): a product.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.log_det.slogdet(jnp.stack([jnp.eye(2), -jnp.eye(2), 0.0 * jnp.eye(2)])).sign.tolist()
      [1.0, 1.0, 0.0]
    """
    if isinstance(matrices, Sylvester):
        # Apart, as they differ in size: joined they would first be copied.
        parts = (matrices.diagonal, matrices.factors)
        signs = [jnp.sign(part).prod(-1) for part in parts]
        logs = [jnp.log(jnp.abs(part)).sum(-1) for part in parts]
        return LogDet(signs[0] * signs[1], logs[0] + logs[1])
    dim = matrices.shape[-1]
    if dim <= MAX_ELIMINATION_DIM:
        det = jax.vmap(_small_slogdet)(matrices.reshape((-1, dim, dim)))
        return jax.tree.map(lambda of_all: of_all.reshape(matrices.shape[:-2]), det)
    return LogDet(*jnp.linalg.slogdet(matrices))


def solve(matrix: Jacobian, rhs: Array) -> Array:
    """Solution of one linear system ``[dim, dim]`` for ``rhs [dim]``, factorised as by `slogdet`.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.log_det.solve(2.0 * jnp.eye(2), jnp.ones(2)).tolist()
      [0.5, 0.5]
    """
    if isinstance(matrix, Sylvester):
        return matrix.solve(rhs)
    if matrix.shape[-1] <= MAX_ELIMINATION_DIM:
        return gauss_jordan(matrix)[1] @ rhs
    return jnp.linalg.solve(matrix, rhs)


def solve_triangular(triangle: Array, rhs: Array, gain: Array | float = 1.0) -> Array:
    """The w ``[rank]`` with (I + diag(gain) triangle) w = rhs, the triangle an upper one.

    A batch in which only ``gain`` and ``rhs`` differ needs no matrix of its own for each point.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> triangle = jnp.array([[1.0, 2.0], [0.0, 3.0]])
      >>> cs.log_det.solve_triangular(triangle, jnp.array([6.0, 8.0])).tolist()
      [1.0, 2.0]
    """
    gain = jnp.broadcast_to(gain, rhs.shape)
    pivot = 1.0 + gain * jnp.diagonal(triangle)

    def unit(w: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
        row, gain, rhs, pivot, is_unit = inputs
        return w + jnp.where(is_unit, (rhs - gain * (row @ w)) / pivot, 0.0), None

    inputs = (triangle, gain, rhs, pivot, jnp.eye(rhs.shape[-1], dtype=bool))
    w, _ = jax.lax.scan(unit, jnp.zeros_like(rhs), inputs, reverse=True)
    return w


def value_and_jacobian(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """``fn(x)`` and ∂fn/∂x ``[dim, dim]`` by forward mode, from one shared linearisation.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> value, jacobian = cs.log_det.value_and_jacobian(lambda x: x**2, jnp.array([1.0, 3.0]))
      >>> value.tolist(), jacobian.tolist()
      ([1.0, 9.0], [[2.0, 0.0], [0.0, 6.0]])
    """
    value, jvp = jax.linearize(fn, x)
    return value, jax.vmap(jvp, out_axes=-1)(jnp.eye(x.shape[-1], dtype=x.dtype))


def symmetric_part(matrix: Jacobian) -> tuple[Callable[[Array], Array], Array]:
    """S = (J + Jᵀ) / 2 of one matrix J, as ``v [dim] -> S v``, and a bound on ‖S - I‖₂ ``[]``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> multiply, bound = cs.log_det.symmetric_part(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
      >>> multiply(jnp.array([1.0, 0.0])).tolist(), round(float(bound), 3)
      ([1.0, 1.0], 1.414)
    """
    if isinstance(matrix, Sylvester):
        # The norm of a product of two vectors is the product of theirs.
        norms = jnp.linalg.norm(matrix.left, axis=-2) * jnp.linalg.norm(matrix.right, axis=-1)
        rest = jnp.abs(matrix.diagonal).max() * jnp.sum(jnp.abs(matrix.gain) * norms)
        bound = jnp.abs(matrix.diagonal - 1.0).max() + rest
        return lambda vector: 0.5 * (matrix @ vector + matrix.mT @ vector), bound
    symmetric = 0.5 * (matrix + matrix.T)
    bound = jnp.linalg.norm(symmetric - jnp.eye(matrix.shape[-1], dtype=matrix.dtype))
    return lambda vector: symmetric @ vector, bound


def hutchinson_trace(fn: Callable[[Array], Array], x: Array, probe: Array) -> Array:
    """One-probe estimate ``[]`` of tr ∂fn/∂x: probe · J probe (Hutchinson, 1990).

    Unbiased when E[probe probeᵀ] = I (Rademacher, standard normal). It is no log-determinant: exp
    of it is biased, and a finite step's log-determinant is not its drift's trace.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> probe = jnp.array([1.0, -1.0])
      >>> float(cs.log_det.hutchinson_trace(lambda x: 3.0 * x, jnp.zeros(2), probe))
      6.0
    """
    _, dot = jax.jvp(fn, (x,), (probe,))
    return jnp.sum(probe * dot)
