"""One compiled program: what it depends on, how it is exported, and how it is read again."""

import functools
import hashlib
import inspect
import json
import operator
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from consistent_samplers import registry, store
from consistent_samplers.compilation import Effort, compiler_options, in_turn

_PACKAGE = Path(__file__).resolve().parent

# What changes the meaning of a program without being among its arguments.
_MEANING = (
    "jax_default_device",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_threefry_partitionable",
)
settings = operator.attrgetter(*(name for name in _MEANING if hasattr(jax.config, name)))
"""What these settings are, of ``jax.config``."""


def setting(name: str) -> Any:
    """A setting of JAX as it holds here and now; None if this version has none of that name."""
    return getattr(jax.config, name, None)


def prepare(
    function: Callable[..., Any],
    filled: Callable[..., Any],
    static: dict[str, Any],
    effort: Effort,
    structure: Any,
    leaves: list[Any],
) -> Callable[..., Any] | None:
    """The compiled function of the leaves, from disk or kept there from now on; None if neither.

    Args:
      function: where the source is.
      filled: the function of the arguments that are not static.
      static: the static ones, part of what identifies the program.
      effort: what compiling may cost.
      structure: of the arguments, as ``jax.tree.flatten`` gives it.
      leaves: their leaves.
    """
    # Another default device may be of another platform.
    if (root := store.root_folder()) is None or setting("jax_default_device") is not None:
        return None
    try:
        avals = _avals(leaves)
        key = _key(function, static, effort, structure, avals)
        path = store.folder_of(root) / f"{key}{store.SUFFIX}"
        kept = found = store.read(path, key)
        if kept is None:
            if root in store.unwritable:
                return None
            kept = _export(filled, structure, avals)
        out_structure = jax.tree.structure(registry.decode(kept.out, []))
    except registry.EncodeError:
        return None
    _tell_of_lapack()
    keys, exported = kept.keys, jax.export.deserialize(bytearray(kept.program))

    def run(*leaves: Any) -> Any:
        results = exported.call(*map(_without_key, leaves))
        for i, impl in keys.items():
            results[i] = jax.random.wrap_key_data(results[i], impl=impl)
        return jax.tree.unflatten(out_structure, results)

    run.__name__ = run.__qualname__ = f"consistent_samplers_{function.__name__}"
    jitted = jax.jit(run, compiler_options=compiler_options(effort) or None)
    with store.own_cache(kept.entries) as folder:
        # Compiled, not run: the settings of the cache are the user's again before it runs. And
        # called as compiled: a jitted function would compile again for another kind of array.
        program = jitted.lower(*leaves).compile()
        # By name: another thread of the user's may have compiled something meanwhile.
        entries = {
            file.name: file.read_bytes()
            for file in folder.glob(f"*{run.__name__}-*-cache")
            if file.name not in kept.entries
        }
    if entries or found is None:
        store.write(root, path, key, kept._replace(entries={**kept.entries, **entries}))
    return in_turn(program)


@functools.cache
def _tell_of_lapack() -> None:
    """Lets XLA find LAPACK, of which JAX before 0.10 tells it only while it lowers a call.

    Kept programs are not lowered again: their factorisations would end the process.
    """
    if jax.__version_info__ < (0, 10):
        jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


def _avals(leaves: list[Any]) -> list[tuple[tuple[int, ...], Any, bool]]:
    """Shapes, types, and whether these are weak, as JAX takes them."""
    found: list[tuple[tuple[int, ...], Any, bool]] = []

    def look(*leaves: Any) -> None:
        found.extend((x.shape, x.dtype, jax.typeof(x).weak_type) for x in leaves)

    jax.eval_shape(look, *leaves)
    return found


def _export(
    filled: Callable[..., Any], structure: Any, avals: list[tuple[tuple[int, ...], Any, bool]]
) -> store.Kept:
    """A program to keep, not yet compiled."""
    impls = [_impl(dtype) for _, dtype, _ in avals]
    out: registry.JSON = None
    keys: dict[int, str] = {}

    def flat(*leaves: Any) -> list[Any]:
        nonlocal out
        pairs = zip(leaves, impls, strict=True)
        leaves = tuple(jax.random.wrap_key_data(x, impl=impl) if impl else x for x, impl in pairs)
        args, kwargs = jax.tree.unflatten(structure, leaves)
        results, out_structure = jax.tree.flatten(filled(*args, **kwargs))
        out = _encode_structure(out_structure)
        keys.update({i: impl for i, x in enumerate(results) if (impl := _impl(jnp.result_type(x)))})
        return [_without_key(result) for result in results]

    def without_key(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.eval_shape(_without_key, jax.ShapeDtypeStruct(shape, dtype))

    inputs = [
        without_key(shape, dtype) if impl else jax.ShapeDtypeStruct(shape, dtype, weak_type=weak)
        for (shape, dtype, weak), impl in zip(avals, impls, strict=True)
    ]
    program = jax.export.export(jax.jit(flat))(*inputs).serialize()
    return store.Kept(out, keys, bytes(program), {})


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    """An array as it is, a typed key as its data."""
    return jax.random.key_data(leaf) if _is_key(jnp.result_type(leaf)) else leaf


def _impl(dtype: Any) -> str | None:
    """Name of the implementation of typed keys; None for other types."""
    if not _is_key(dtype):
        return None
    found = []
    jax.eval_shape(
        lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct((), dtype)
    )
    if not isinstance(found[0], str):
        raise registry.EncodeError(f"Keys of {found[0]} cannot be stored.")
    return found[0]


def _encode_structure(structure: Any) -> registry.JSON:
    """A structure of arrays as JSON: a value with numbers as its leaves."""
    skeleton = jax.tree.unflatten(structure, range(structure.num_leaves))
    encoded, arrays = registry.encode(skeleton, users=False)
    if arrays:
        raise registry.EncodeError("The structure itself holds arrays.")
    return encoded


def _key(
    function: Callable[..., Any],
    static: dict[str, Any],
    effort: Effort,
    structure: Any,
    avals: list[tuple[tuple[int, ...], Any, bool]],
) -> str:
    """Identifies a program: everything that it depends on."""
    settings, arrays = registry.encode(static, users=False)
    parts = [
        f"{function.__module__}:{function.__qualname__}",
        settings,
        [[str(a.dtype), a.shape, hashlib.sha256(a.tobytes()).hexdigest()] for a in arrays],
        _encode_structure(structure),
        [[shape, str(dtype), weak] for shape, dtype, weak in avals],
        [str(setting(name)) for name in _MEANING],
        sorted(compiler_options(effort).items()),
        [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        _versions(),
        _source(),
        _source_of(inspect.getfile(function)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    return tuple(metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax"))


@functools.cache
def _source() -> str:
    """Identifies the package's own code."""
    code = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        code.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    return code.hexdigest()


@functools.cache
def _source_of(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
