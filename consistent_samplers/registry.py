"""Values as JSON and a list of arrays, and back, without running anything that was stored.

Plain containers, arrays, and the classes of this package are always known. A class of somebody
else's is known once it was registered, by whoever wants it read: what is stored names it, and
holds none of its code.
"""

import dataclasses
import functools
import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

JSON: TypeAlias = Any
"""What ``json.dumps`` takes, without infinities and NaNs."""

_Class = TypeVar("_Class", bound=type)
_Kind: TypeAlias = Literal["arrays", "tuple", "fields"]

_PACKAGE = __name__.partition(".")[0]
# States of optimisers are made of their NamedTuples. Decoding imports from nowhere else.
_LIBRARIES = ("flax", "jax", "optax")

_FUNCTIONS = (type(lambda: None), type(print), functools.partial, type(jax.jit(lambda: None)))

_named: dict[str, type] = {}
_names: dict[type, str] = {}


class EncodeError(TypeError):
    """A value that cannot be written, or a name that cannot be read; the message says which."""


def register(cls: _Class, name: str | None = None) -> _Class:
    """The class itself, from now on known by a name; also a decorator.

    Args:
      cls: a dataclass (those of ``flax.struct`` and modules of ``flax.linen`` are), a NamedTuple,
        or any class with a method ``to_arrays(self) -> dict`` and a class method
        ``from_arrays(cls, dict)``, its inverse.
      name: what stored values call it; the default is made of its module and its own name. One
        that stays the same keeps stored values readable when the class moves.

    Raises:
      TypeError: it is none of these.
      ValueError: another class has the name.

    Example:
      >>> import dataclasses, consistent_samplers as cs
      >>> @dataclasses.dataclass
      ... class Ring:
      ...     radius: float
      >>> cs.register_base(Ring, "Ring of an example") is Ring
      True
    """
    if not isinstance(cls, type) or _kind(cls) is None:
        raise TypeError(
            f"{cls!r} cannot be registered: it must be a dataclass, a NamedTuple, or a class with "
            "a method to_arrays(self) -> dict and a class method from_arrays(cls, dict)."
        )
    name = name or (cls.__qualname__ if _is_ours(cls) else _path(cls))
    if name != _path(cls) and _importable(name):
        raise ValueError(f"{name!r} could be a class of another package; choose another name.")
    other = _named.get(name)
    # A cell of a notebook that runs again defines its class again.
    if other is not None and _path(other) != _path(cls):
        raise ValueError(f"{name!r} is already the name of {_path(other)}; give another one.")
    _named[name] = cls
    _names[cls] = name
    return cls


register_base = register_network = register
"""What the package exports."""


def encode(value: Any, *, users: bool = True) -> tuple[JSON, list[np.ndarray]]:
    """A value as JSON, and the arrays in it.

    It may hold None, numbers, strings, tuples, lists, dictionaries with strings as keys, arrays,
    data types, and classes that are registered (if ``users``) or this package's; for anything else
    there is an `EncodeError`.
    """
    arrays: list[np.ndarray] = []
    return _encode(value, arrays, users), arrays


def decode(json: JSON, arrays: Sequence[np.ndarray]) -> Any:
    """The value that `encode` was given, its arrays as arrays of JAX; else an `EncodeError`."""
    try:
        return _decode(json, arrays)
    except EncodeError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise EncodeError(f"Damaged: this is no value that was encoded ({error!r}).") from error


def _encode(value: Any, arrays: list[np.ndarray], users: bool) -> JSON:
    cls = type(value)
    # Exact types: a subclass of int or dict may mean more than its value.
    if value is None or cls in (bool, int, str):
        return value
    if cls is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if cls is list:
        return [_encode(item, arrays, users) for item in value]
    if cls is tuple:
        return {"tuple": [_encode(item, arrays, users) for item in value]}
    if cls in (dict, flax.core.FrozenDict):
        if not all(type(key) is str for key in value):
            raise EncodeError("A dictionary can only be stored if all its keys are strings.")
        tag = "dict" if cls is dict else "frozen"
        return {tag: {key: _encode(item, arrays, users) for key, item in value.items()}}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": _encode(value.item(), arrays, users), "dtype": value.dtype.name}
    if isinstance(value, np.ndarray | jax.Array):
        arrays.append(_on_host(value))
        return {"array": len(arrays) - 1}
    if (dtype := _dtype(value)) is not None:
        return {"dtype": dtype.name}
    name = _name(cls, users)
    return {"class": name, "of": _encode(_contents(value), arrays, users)}


def _decode(json: JSON, arrays: Sequence[np.ndarray]) -> Any:
    if json is None or isinstance(json, bool | int | float | str):
        return json
    if isinstance(json, list):
        return [_decode(item, arrays) for item in json]
    match json:
        case {"float": number}:
            return float(number)
        case {"tuple": items}:
            return tuple(_decode(item, arrays) for item in items)
        case {"dict": items}:
            return {key: _decode(item, arrays) for key, item in items.items()}
        case {"frozen": items}:
            return flax.core.freeze({key: _decode(item, arrays) for key, item in items.items()})
        case {"scalar": number, "dtype": name}:
            return jnp.dtype(name).type(_decode(number, arrays))
        case {"array": index}:
            return jnp.asarray(arrays[index])
        case {"dtype": name}:
            return jnp.dtype(name)
        case {"class": name, "of": contents}:
            return _make(_class(name), _decode(contents, arrays))
    raise ValueError(f"{json!r:.80}")


def _contents(value: Any) -> dict[str, Any]:
    """What a value of a known class is made of."""
    kind = _kind(type(value))
    if kind == "arrays":
        return dict(value.to_arrays())
    if kind == "tuple":
        return value._asdict()
    # Where a module is mounted is no property of it.
    skipped = ("parent", "name") if isinstance(value, nn.Module) else ()
    names = [f.name for f in dataclasses.fields(value) if f.init and f.name not in skipped]
    return {name: getattr(value, name) for name in names}


def _make(cls: type, contents: dict[str, Any]) -> Any:
    """The value of a known class that is made of something."""
    try:
        if _kind(cls) == "arrays":
            return cls.from_arrays(contents)  # type: ignore[attr-defined]
        return cls(**contents)
    except (TypeError, ValueError) as error:
        raise EncodeError(
            f"What was stored of {_path(cls)} does not fit the class as it is now: {error}"
        ) from error


def _kind(cls: type) -> _Kind | None:
    """How a class can be taken apart and made again."""
    if callable(getattr(cls, "to_arrays", None)) and callable(getattr(cls, "from_arrays", None)):
        return "arrays"
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return "tuple"
    return "fields" if dataclasses.is_dataclass(cls) else None


def _name(cls: type, users: bool) -> str:
    """What a class is called where it is stored."""
    path = _path(cls)
    if _is_implicit(cls) and _import(path) is cls:
        return path
    if users and cls in _names:
        return _names[cls]
    what = "a function" if isinstance(cls, type) and issubclass(cls, _FUNCTIONS) else f"a {path}"
    raise EncodeError(
        f"This holds {what}; only arrays, numbers, strings, plain containers and registered "
        "classes can be stored. Make a class known with cs.register_base (a base) or "
        "cs.register_network (a network), before saving and before loading."
    )


def _class(name: str) -> type:
    """The class that is called something where it is stored."""
    if name in _named:
        return _named[name]
    if (cls := _import(name)) is not None and _is_implicit(cls):
        return cls
    raise EncodeError(
        f"No class is registered as {name!r}. Import the module that registers it, or register "
        "it with cs.register_base or cs.register_network, before loading."
    )


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(f"{_PACKAGE}.")


def _is_implicit(cls: type) -> bool:
    """Whether a class is known without having been registered."""
    if _is_ours(cls):
        return _kind(cls) is not None
    return cls.__module__.partition(".")[0] in _LIBRARIES and _kind(cls) == "tuple"


def _importable(name: str) -> bool:
    """Whether a name may make us import a module."""
    module, colon, qualname = name.partition(":")
    known = module.startswith(f"{_PACKAGE}.") or module.partition(".")[0] in _LIBRARIES
    return bool(known and colon and qualname)


def _import(path: str) -> type | None:
    """The class at a path, if that is where it was defined; imports its module if it may."""
    if not _importable(path):
        return None
    module, _, qualname = path.partition(":")
    if module not in sys.modules:
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = found.__dict__.get(part)
        # Through classes only: a module's attributes lead to every other module.
        if not isinstance(found, type):
            return None
    return found if _path(found) == path else None


def _on_host(array: Any) -> np.ndarray:
    if isinstance(array, jax.core.Tracer):
        raise EncodeError("A traced array has no values to store; call this outside of jax.jit.")
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise EncodeError(
            "Keys of jax.random.key cannot be stored; store jax.random.key_data of them."
        )
    if array.dtype.hasobject:
        raise EncodeError("An array of Python objects cannot be stored; make it one of numbers.")
    return np.asarray(array)


def _dtype(value: Any) -> np.dtype | None:
    """A data type, however it is written, or None for anything else."""
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value)
    # jnp.float32 is no type, but has one.
    return value.dtype if isinstance(value, type(jnp.float32)) else None
