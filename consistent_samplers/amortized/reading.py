"""What a data set is given as: arguments in one form, and arrays that hold what was given."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.integrations.numpyro.arguments import MAX_LOST

_PLAIN = (bool, int, float, str)
# Numbers that differ by less are rounding themselves.
_ROUNDING = 16.0 * np.finfo(float).eps


def normal_form(
    model: Callable[..., Any], args: Any, kwargs: dict[str, Any], observed: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Arguments in one form, whether given by position or by name, and what is observed apart."""
    values = {name: kwargs[name] for name in observed if name in kwargs}
    rest = {name: value for name, value in kwargs.items() if name not in values}
    try:
        bound = inspect.signature(model).bind(*args, **rest)
    except (TypeError, ValueError):
        return args, rest, values  # the model itself will say what is missing
    values |= {n: bound.arguments.pop(n) for n in observed if n in bound.arguments}
    return bound.args, bound.kwargs, values


def split_constants(leaves: list[Any]) -> tuple[list[Any], list[tuple[int, Any]]]:
    """Leaves that are arrays of numbers, and the others by their places."""
    constants = [(i, leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, _PLAIN)]
    return [leaf for leaf in leaves if not isinstance(leaf, _PLAIN)], constants


def canonical(dtype: Any) -> Any:
    """What numbers of a type are computed in, single or double precision as JAX is set now."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.result_type(float)
    return jax.dtypes.canonicalize_dtype(dtype)


def taken(value: Any, dtype: Any, axis: int | None, what: str) -> np.ndarray:
    """Numbers as an array of a type, none of them another one than was given.

    Args:
      value: the numbers.
      dtype: of the simulated ones.
      axis: of rows.
      what: they are called.

    Raises:
      ValueError: these are no numbers, NaN or infinite, or change by the cast.
    """
    what, dtype = f"{what} of this data set", canonical(dtype)
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype.kind != "b":
        odd = (x for x in array.ravel().tolist() if not isinstance(x, int | float))
        other = next(odd, array.dtype)
        kind = repr(other) if other is None else f"{type(other).__name__} {other!r:.40}"
        raise ValueError(f"{what} holds {kind}: give numbers, and leave rows without one out.")
    if np.ma.is_masked(value) or not np.isfinite(array).all():
        raise ValueError(f"{what} holds NaN or infinite (or masked) values. Leave such rows out.")
    if array.dtype.kind == "c" and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"{what} is complex, and covariates and the model simulate {dtype}.")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        if (changed := cast != array).any():
            raise ValueError(
                f"{what} holds {array[changed].flat[0]}, and was simulated as {dtype}, which has "
                "no such number. Give such numbers alone, or train a family that simulates "
                f"{jnp.result_type(float)} there."
            )
    elif not np.isfinite(cast).all() or _loses_digits(array, cast, axis):
        raise ValueError(
            f"{what} holds numbers that {dtype} cannot tell apart, or that are too large for it. "
            "Centre and scale it, in covariates as well, or compute in double precision: "
            'jax.config.update("jax_enable_x64", True).'
        )
    return cast


def _loses_digits(array: np.ndarray, cast: np.ndarray, axis: int | None) -> bool:
    """Whether a cast takes what tells numbers of one column apart: of times in seconds, say."""
    if not array.size or cast.dtype == array.dtype:
        return False
    exact = array.astype(np.result_type(array.dtype, float))
    along = axis if axis is not None or not array.ndim else 0
    is_constant = np.ptp(exact, along, keepdims=True) <= _ROUNDING * np.abs(exact).max()
    lost = np.abs(exact - cast) > MAX_LOST * exact.std(along, keepdims=True)
    return bool(np.any(lost & ~is_constant))
