"""Small matrices of many members, an array ``[J]`` for each entry.

XLA has a call for each matrix of a batched product, and no vectors for sums over so few numbers.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers.types import Array

Vector: TypeAlias = list[Array]
"""A number for each coordinate of a member."""

Triangle: TypeAlias = list[list[Array]]
"""The rows of a lower triangular matrix, or of the lower triangle of a symmetric one."""


def rows_of(matrix: Array) -> Vector:
    """The rows of ``[n, ...]``. Their gradients are joined at once, unlike those of slices."""
    if not len(matrix):
        return []
    return [part[0] for part in jax.lax.split(matrix, (1,) * len(matrix))]


def dot(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """The sum of products."""
    products = [x * y for x, y in zip(a, b, strict=True)]
    return sum(products[1:], products[0])


def precision(root: Triangle) -> Triangle:
    """The lower triangle of LᵀL."""
    columns = [[row[j] for row in root[j:]] for j in range(len(root))]
    return [[dot(columns[i], columns[j][i - j :]) for j in range(i + 1)] for i in range(len(root))]


def times(matrix: Triangle, vector: Vector) -> Vector:
    """A symmetric matrix, of which the lower triangle is given, times a vector."""
    size = range(len(vector))
    return [dot([matrix[max(i, j)][min(i, j)] for j in size], vector) for i in size]


def cholesky(matrix: Triangle) -> Triangle:
    """The root L of LLᵀ, with NaN where the matrix is not positive."""
    root: Triangle = []
    for i, row in enumerate(matrix):
        root.append([])
        for j, entry in enumerate(row):
            rest = entry - dot(root[i][:j], root[j][:j]) if j else entry
            root[i].append(jnp.sqrt(rest) if i == j else rest / root[j][j])
    return root


def solve(root: Triangle, right: Vector) -> Vector:
    """L⁻¹ b."""
    found: Vector = []
    for i, row in enumerate(root):
        rest = right[i] - dot(row[:i], found) if i else right[i]
        found.append(rest / row[i])
    return found


def solve_transposed(root: Triangle, right: Vector) -> Vector:
    """L⁻ᵀ b."""
    found: Vector = []  # the last first
    for i in reversed(range(len(root))):
        column = [row[i] for row in reversed(root[i + 1 :])]
        rest = right[i] - dot(column, found) if found else right[i]
        found.append(rest / root[i][i])
    return found[::-1]


def log_diagonal(root: Triangle) -> Array:
    """Logarithms ``[p, J]`` of the diagonal."""
    return jnp.log(jnp.stack([row[-1] for row in root]))
