"""Checks of arguments, for errors that say what was wrong and what to do."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Keys of the old kind, as arrays of numbers: Threefry's, and those of RBG.
_OLD_SHAPES = ((2,), (4,))


def is_integer(value: Any) -> bool:
    """Whether an argument is a whole number, Python's or NumPy's."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raises a ValueError unless an argument is a whole number of at least ``minimum``."""
    if is_integer(value) and value >= minimum:
        return
    wanted = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
    raise ValueError(f"{name} must be {wanted}, got {value!r}.")


def check_widths(hidden: Any) -> None:
    """Raises a ValueError unless ``hidden`` holds the widths of one hidden layer or more."""
    if not isinstance(hidden, tuple | list) or not hidden:
        raise ValueError(
            "hidden must be the widths of one or more hidden layers, such as (64, 64), got "
            f"{hidden!r}."
        )
    for width in hidden:
        check_integer("hidden must hold widths; each", width)


def check_key(rng_key: Any) -> None:
    """Raises a TypeError unless an argument is one PRNG key, of the new kind or the old."""
    shape = getattr(rng_key, "shape", None)
    if isinstance(rng_key, jax.Array | np.ndarray):
        typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
        if shape == () if typed else rng_key.dtype == np.uint32 and shape in _OLD_SHAPES:
            return
    got = type(rng_key).__name__ + ("" if shape is None else f" of shape {shape}")
    raise TypeError(f"rng_key must be one key, such as jax.random.key(0), got {got}.")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises a ValueError unless an argument is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}.")
