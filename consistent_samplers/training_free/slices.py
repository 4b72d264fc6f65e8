"""Two ways along a line within a slice: shrinkage to a point of it, and stepping out of it.

Neal, "Slice sampling", Annals of Statistics 31 (2003), figures 3 and 5.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers.types import Array, PRNGKey


def shrink(
    rng_key: PRNGKey,
    log_value: Callable[[Array], Array],
    level: Array,
    bracket: tuple[Array, Array, Array],
    now: tuple[Array, Array],
    limit: int,
) -> tuple[Array, Array, Array]:
    """A point above the level, its log value and the number of points tried.

    ``bracket`` is low end, high end and the first point to try, ``now`` a point inside and its log
    value. A point that fails becomes the end on its side of ``now``. The way from ``now`` to a
    point is as likely as the way back through the same failures, so to end all ways at a limit
    leaves the transition reversible.
    """

    def is_open(carry: Any) -> Array:
        (*_, num), found, _ = carry
        return ~found & (num < limit)

    def try_next(carry: Any) -> Any:
        (key, low, high, point, num), _, kept = carry
        value = log_value(point)
        found = value > level
        kept = jax.tree.map(lambda new, old: jnp.where(found, new, old), (point, value), kept)
        low, high = jnp.where(point < now[0], point, low), jnp.where(point < now[0], high, point)
        key, key_point = jax.random.split(key)
        point = jax.random.uniform(key_point, dtype=point.dtype, minval=low, maxval=high)
        return (key, low, high, point, num + 1), found, kept

    start = (rng_key, *bracket, jnp.zeros((), int)), jnp.zeros((), bool), now
    (*_, num), _, (point, value) = jax.lax.while_loop(is_open, try_next, start)
    return point, value, num


def step_out(
    log_value: Callable[[Array], Array], level: Array, end: Array, stride: Array, limit: Array
) -> tuple[Array, Array]:
    """The end, moved by strides until it is outside of the slice or below zero, and all looks."""

    def is_open(carry: tuple[Array, Array, Array, Array]) -> Array:
        end, left, inside, _ = carry
        return inside & (left > 0) & (end > 0.0)

    def step(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        end, left, _, num = carry
        inside = log_value(end) > level
        return jnp.where(inside, end + stride, end), left - 1, inside, num + 1

    start = (end, limit, jnp.ones((), bool), jnp.zeros((), int))
    end, _, _, num = jax.lax.while_loop(is_open, step, start)
    return end, num
