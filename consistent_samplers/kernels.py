"""Compiled programs of our own, kept from one process to the next.

What `kernel` decorates is compiled once a machine instead of once a process: the program goes to
a folder of the user's cache, and the next process reads it. Only what consists of this package's
code alone is kept, never a density or anything else of a user's, and every reason not to use what
is kept (another version, another processor, a damaged file) means that JAX compiles as usual.

The environment variable ``CONSISTENT_SAMPLERS_CACHE`` names another folder, or is ``off``. Whoever
can write to the folder can run code as whoever reads it, as with every cache of programs.
"""

import dataclasses
import functools
import gc
import importlib
import inspect
import itertools
import operator
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import SingleDeviceSharding

from consistent_samplers import programs, store
from consistent_samplers.compilation import Effort, is_traced, jit

_Result = TypeVar("_Result")

# What is compiled for. An attribute of arrays that costs nothing: this is done for every leaf of
# every call.
_type_of_array = operator.attrgetter("aval")
# A look at the mappings takes milliseconds: once in so many programs, which take a few hundred.
_COMPILED_PER_LOOK = 8
_num_compiled = itertools.count(1)


def kernel(
    *, static: tuple[str, ...] = (), store: bool = False, effort: Effort = "full"
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """A decorator: a pure function of arrays, compiled once a machine for each shape.

    Inside of another JAX transformation, with arguments on several devices, or where something of
    a user's is among the arguments, it is an ordinary ``jax.jit``.

    Args:
      static: names of keyword-only arguments that are part of what is compiled.
      store: whether the programs of a function outside of this package may be kept as well; it
        must depend on nothing but its module's source and its arguments.
      effort: what compiling may cost; see `consistent_samplers.compilation.Effort`.

    Raises:
      TypeError: the function has no such keyword-only arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.kernels import kernel
      >>> @kernel(static=("power",))
      ... def total(x, *, power):
      ...     return jnp.sum(x**power)
      >>> float(total(jnp.arange(3.0), power=2))
      5.0
    """

    # Arrays of NumPy and numbers are taken where arrays are: the types of arguments are left open.
    def decorate(function: Callable[..., _Result]) -> Callable[..., _Result]:
        return _decorate(function, static, store, effort)

    return decorate


class Info(NamedTuple):
    """What is kept on disk.

    Attributes:
      folder: where, or None if nothing is to be kept.
      enabled: whether programs are read and kept there.
      num_programs: number of programs, those of other versions of JAX included.
      num_bytes: their size.

    Example:
      >>> from pathlib import Path
      >>> from consistent_samplers.kernels import Info
      >>> print(Info(Path("cache"), True, 3, 1_500_000))
      3 compiled programs, 1.5 MB in cache
    """

    folder: Path | None
    enabled: bool
    num_programs: int
    num_bytes: int

    def __str__(self) -> str:
        if not self.enabled:
            return f"No compiled programs are kept ({store.VARIABLE}=off)."
        plural = "" if self.num_programs == 1 else "s"
        size = f"{self.num_bytes / 1e6:.1f} MB"
        return f"{self.num_programs} compiled program{plural}, {size} in {self.folder}"


def info() -> Info:
    """What is kept on disk, and where.

    Example:
      >>> from consistent_samplers import kernels
      >>> kernels.info().num_programs >= 0
      True
    """
    if (root := store.root_folder()) is None:
        return Info(None, False, 0, 0)
    sizes = [size for _, size, _ in store.programs(root)]
    return Info(root, True, len(sizes), sum(sizes))


def clear() -> int:
    """Removes what is kept on disk; what this process has compiled stays.

    Returns:
      Number of programs removed.

    Example:
      >>> from consistent_samplers import kernels
      >>> kernels.clear()  # doctest: +SKIP
      12
    """
    if (root := store.root_folder()) is None:
        return 0
    return sum(store.remove(path) for _, _, path in store.programs(root))


def warm(*, dim: int, **options: Any) -> Info:
    """Compiles and keeps what ``cs.train_sampler`` and draws need in some dimension.

    An image, a continuous integration or an idle minute does it once.

    Args:
      dim: dimension of the densities to come.
      **options: as for `train_sampler`, where other programs depend on them: ``hidden``,
        ``network``, ``max_steps``.

    Returns:
      What is kept by then.

    Example:
      >>> from consistent_samplers import kernels
      >>> kernels.warm(dim=10)  # doctest: +SKIP
    """
    # By name: the recipe is made of kernels, and not the other way round.
    importlib.import_module("consistent_samplers.recipe.warming").rehearse(dim, **options)
    return info()


@dataclasses.dataclass(eq=False)
class _Variant:
    """A kernel with its static arguments filled in."""

    filled: Callable[..., Any]
    static: dict[str, Any]
    plain: Callable[..., Any]  # as JAX compiles it
    # Compiled functions of the leaves of the arguments, by what they are compiled for.
    programs: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    locks: dict[Any, threading.RLock] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _all_variants.add(self)


_all_variants: weakref.WeakSet[_Variant] = weakref.WeakSet()


def _decorate(
    function: Callable[..., Any], static: tuple[str, ...], store: bool, effort: Effort
) -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters
    given_by_name = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := [name for name in static if name not in given_by_name]:
        raise TypeError(f"{function.__name__}() has no keyword-only arguments {unknown}.")
    defaults = {n: p.default for n in static if (p := parameters[n]).default is not p.empty}
    storable = _is_storable(function, store)
    variants: dict[tuple[Any, ...], _Variant] = {}
    # Types of leaves that are no tracers: grows to the few that there are.
    concrete: set[type] = set()

    def variant(values: tuple[Any, ...]) -> _Variant:
        # 1, 1.0 and True are equal, and not the same.
        key: tuple[Any, ...] = (*values, *map(type, values))
        try:
            return variants[key]
        except KeyError:
            pass
        except TypeError:  # not hashable
            key = tuple(map(_Identity, values))
            if key in variants:
                return variants[key]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
            raise TypeError(f"Static arguments of {function.__name__} must not be traced.")
        given = dict(zip(static, values, strict=True))

        def filled(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs, **given)

        filled.__name__ = filled.__qualname__ = function.__name__
        return _keep_few(variants, key, _Variant(filled, given, jit(filled)))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            values = [kwargs.pop(n) if n in kwargs else defaults[n] for n in static]
        except KeyError as error:
            raise TypeError(f"{function.__name__}() needs the argument {error}.") from None
        chosen = variant(tuple(values))
        leaves, structure = jax.tree.flatten((args, kwargs))
        if not concrete.issuperset(map(type, leaves)):
            if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                return chosen.plain(*args, **kwargs)
            concrete.update(map(type, leaves))
        if _has_many_devices() and _is_spread(leaves):
            return chosen.plain(*args, **kwargs)
        try:
            types = tuple(map(_type_of_array, leaves))
        except AttributeError:
            types = tuple(map(jax.typeof, leaves))
        signature = (structure, types, programs.settings(jax.config))
        program = chosen.programs.get(signature)
        if program is None:
            # What is computed inside of another program is part of that one.
            if is_traced(leaves) or programs.setting("jax_disable_jit"):
                return chosen.plain(*args, **kwargs)
            program = _program(function, storable, effort, chosen, signature, leaves)
        try:
            return program(*leaves)
        except ValueError:
            # Arrays on another platform than the program's, or options inside of another program.
            return chosen.plain(*args, **kwargs)

    return call


def _program(
    function: Callable[..., Any],
    storable: bool,
    effort: Effort,
    variant: _Variant,
    signature: tuple[Any, ...],
    leaves: list[Any],
) -> Callable[..., Any]:
    """The program of a call that nothing was compiled for yet in this process."""
    # Of threads that need the same program one compiles it. Other programs do not wait.
    with _keep_few(variant.locks, signature, threading.RLock()):
        program = variant.programs.get(signature)
        if program is None:
            static = variant.static if storable else None
            program = programs.prepare(
                function, variant.filled, static, effort, signature[0], leaves
            )
            _make_room()
            _keep_few(variant.programs, signature, program)
    return program


def _keep_few(kept: dict[Any, Any], key: Any, value: Any) -> Any:
    """Adds to what a process keeps, and returns it; one that meets hundreds keeps the last."""
    while len(kept) >= 64:
        try:
            kept.pop(next(iter(kept)), None)
        except (StopIteration, RuntimeError):  # another thread does the same
            break
    return kept.setdefault(key, value)


def _make_room() -> None:
    """Drops what this process has compiled before Linux allows it no more of it.

    Each program takes dozens of memory mappings, a training of a new dimension a thousand, of which
    a process may have 65,530: beyond, XLA ends it. What is needed again is read from what is kept,
    or compiled.
    """
    if next(_num_compiled) % _COMPILED_PER_LOOK or not _is_crowded():
        return
    for variant in list(_all_variants):
        variant.programs.clear()
    gc.collect()
    if _is_crowded():  # what others have compiled: a density's, NUTS's
        jax.clear_caches()
        gc.collect()


def _is_crowded() -> bool:
    """Whether this process has half of the mappings that it may have."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n") > _max_mappings() // 2
    except OSError:  # another system, which counts no mappings
        return False


@functools.cache
def _max_mappings() -> int:
    return int(Path("/proc/sys/vm/max_map_count").read_text())


class _Identity:
    """Stands for a static argument that cannot be hashed: it equals itself only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


@functools.cache
def _has_many_devices() -> bool:
    return jax.device_count() > 1


def _is_spread(leaves: list[Any]) -> bool:
    """Whether an array lives on several devices."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if (
            sharding is not None
            and type(sharding) is not SingleDeviceSharding
            and len(sharding.device_set) > 1
        ):
            return True
    return False


def _is_storable(function: Callable[..., Any], store: bool) -> bool:
    """Whether a function is what its module's source says, whenever it is read."""
    ours = function.__module__.startswith(f"{__name__.partition('.')[0]}.")
    made_elsewhere = function.__closure__ or "<locals>" in function.__qualname__
    return (ours or store) and not made_elsewhere
