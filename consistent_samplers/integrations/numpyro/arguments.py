"""What a model is called with: arrays apart from the rest, told apart by content, never by address.

A model's arrays become inputs of what is compiled, so that other data of the same shapes compile
nothing. Whatever else it is called with is part of the model.
"""

import dataclasses
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.types import Array

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""A model's arguments, ``(args, kwargs)``."""

MAX_LOST = 1e-3
"""What rounding may do to numbers, in their standard deviations."""

# Arguments whose bytes are all that they are.
_PLAIN = (np.ndarray, np.generic, jax.Array, bool, int, float, complex, str, bytes)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A model's arguments without their arrays: their tree, and the other leaves."""

    structure: Any
    rest: tuple[tuple[int, type, Any], ...]  # with place, and type since 1 and True are equal

    def join(self, arrays: list[Array]) -> Call:
        """The model's arguments, ``(args, kwargs)``."""
        leaves: list[Any] = list(arrays)
        for place, _, leaf in self.rest:
            # A copy: JAX knows an array again, in the precision that it has met it in before.
            leaves.insert(place, leaf.copy() if type(leaf) is np.ndarray else leaf)
        return jax.tree.unflatten(self.structure, leaves)


class Opaque(tuple[Any, ...]):
    """Leaves that are equal to themselves only: arrays and objects compare in ways of their own."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def split_arrays(arguments: Call) -> tuple[Arguments, list[Array]]:
    """Arguments apart from their arrays, and these."""

    def is_array(leaf: Any) -> bool:
        numbers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"
        return isinstance(leaf, jax.Array) or (numbers and _keeps_its_digits(leaf))

    leaves, structure = jax.tree.flatten(arguments)
    rest = tuple((i, type(leaf), leaf) for i, leaf in enumerate(leaves) if not is_array(leaf))
    arrays = [jnp.asarray(leaf) for leaf in leaves if is_array(leaf)]
    # Of types as NumPy's arrays have: ``jnp.full(n, 45)`` has a weak one, and compiles anew. Keys
    # have none of either.
    arrays = [jnp.asarray(a, a.dtype) if getattr(a, "weak_type", False) else a for a in arrays]
    return Arguments(structure, rest), arrays


def _keeps_its_digits(array: np.ndarray) -> bool:
    """Whether JAX takes numbers over with what tells them apart: not of times in seconds, say.

    The others stay constants of the model, which may centre them in NumPy, as under MCMC.
    """
    taken = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    finite = np.isfinite(array)
    if taken.dtype == array.dtype or not finite.any():
        return True
    spread = array[finite].std()
    return spread == 0.0 or not np.any(np.abs(array - taken)[finite] > MAX_LOST * spread)


def check_arguments(name: str, arguments: Call) -> None:
    """Raises a TypeError of an argument that the first of several traces would use up."""

    def empties(value: Any) -> bool:
        return isinstance(value, Iterator)

    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments, is_leaf=empties):
        if empties(leaf):
            raise TypeError(
                f"Argument {jax.tree_util.keystr(path[1:])} of model {name!r} is an iterator "
                f"({type(leaf).__name__}), which one use empties: give a list or an array of it."
            )


def identify(
    model: Callable[..., Any], model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
) -> Any:
    """Structure and content of model arguments, comparable by ``==``.

    Arrays are identified by shape, dtype and a hash of their bytes, never by address; and an
    argument is the same by position, by name, or as the model's default.
    """
    try:
        bound = inspect.signature(model).bind(*model_args, **model_kwargs)
        bound.apply_defaults()
        model_args, model_kwargs = bound.args, bound.kwargs
    except (TypeError, ValueError):
        pass  # the model itself will say what is missing
    leaves, structure = jax.tree.flatten((model_args, model_kwargs))
    return structure, [identify_leaf(leaf) for leaf in leaves]


def identify_leaf(leaf: Any) -> Any:
    """What an argument or constant is told apart by."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, _PLAIN) and not (array := np.asarray(leaf)).dtype.hasobject:
        return array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()
    try:
        # A table or another container: what it holds, and not where it lies.
        return type(leaf), hashlib.sha256(pickle.dumps(leaf)).hexdigest()
    except Exception:  # whatever an object raises that cannot be pickled
        return leaf


def name_of(model: Any) -> str:
    """Name of the function inside handlers and partials."""
    while not hasattr(model, "__name__"):
        inner = getattr(model, "fn", None) or getattr(model, "func", None)
        if inner is None:
            return type(model).__name__
        model = inner
    return model.__name__
