"""Newton's steps of many members at once, each a small block of a Hessian."""

import jax
import jax.numpy as jnp

from consistent_samplers.maps.blocks import (
    Triangle,
    Vector,
    cholesky,
    dot,
    log_diagonal,
    rows_of,
    solve,
    solve_transposed,
)
from consistent_samplers.types import Array, GradientFn

# Conditional standard deviations, or units of the frame, that a step moves a member, at most.
_LONGEST, _OF_FRAME = 3.0, 2.0


def with_products(function: GradientFn, y: Array, ways: Array) -> tuple[Array, list[Array]]:
    """A gradient ``[dim]``, and the products of its Jacobian with ``ways [n, dim]``."""
    value, columns = jax.vmap(lambda way: jax.jvp(function, (y,), (way,)), out_axes=(None, 0))(ways)
    return value, rows_of(columns)


def usable_root(curvature: Triangle) -> Triangle:
    """The root of a precision; that of one where it is none."""
    root = jax.tree.map(jax.lax.stop_gradient, cholesky(curvature))
    fine = jnp.isfinite(log_diagonal(root)).all(0)
    return cholesky(
        [
            [jnp.where(fine, entry, 1.0 if i == j else 0.0) for j, entry in enumerate(row)]
            for i, row in enumerate(curvature)
        ]
    )


def solved(root: Triangle, right: Vector) -> Vector:
    """(LLᵀ)⁻¹ b."""
    return solve_transposed(root, solve(root, right))


def newton_step(slope: Vector, curvature: Triangle, limited: bool = True) -> Array:
    """The step ``[J, p]`` to where a quadratic has its maximum, if limited no longer than either.

    A few deviations protect from a curvature that is nearly none, and far from the mode of a narrow
    conditional a step in the frame is not far.
    """
    root = usable_root(curvature)
    half = solve(root, slope)
    move = jnp.stack(solve_transposed(root, half), -1)
    if limited:
        length = jnp.sqrt(jnp.maximum(dot(half, half), 1e-12))
        of_frame = jnp.maximum(jnp.abs(move).max(-1), 1e-6)
        shorter = jnp.minimum(1.0, jnp.maximum(_LONGEST / length, _OF_FRAME / of_frame))
        move = move * shorter[:, None]
    return jnp.where(jnp.isfinite(move), move, 0.0)
