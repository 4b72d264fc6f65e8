"""One compiled program: what it depends on, how it is kept, and how it is read again."""

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
import jax.numpy as jnp
from jax.experimental.serialize_executable import deserialize_and_load, serialize

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
    static: dict[str, Any] | None,
    effort: Effort,
    structure: Any,
    leaves: list[Any],
) -> Callable[..., Any]:
    """The compiled function of the leaves, from disk or kept there from now on where that can be.

    Args:
      function: where the source is.
      filled: the function of the arguments that are not static.
      static: the static ones, part of what identifies the program; None if it must not be kept.
      effort: what compiling may cost.
      structure: of the arguments, as ``jax.tree.flatten`` gives it.
      leaves: their leaves.
    """
    compile_it = functools.partial(_compiled, filled, effort, structure, leaves)
    root = store.root_folder()
    # A program is bound to its device: what is kept, to the first of this process.
    if static is None or root is None or setting("jax_default_device") or not _on_first(leaves):
        return in_turn(compile_it())
    try:
        key = _key(function, static, effort, structure, leaves)
    except registry.EncodeError:
        return in_turn(compile_it())
    path = store.folder_of(root) / f"{key}{store.SUFFIX}"
    if (program := _read(path, key, len(leaves))) is None:
        with store.users_cache_off():
            program = compile_it()
        if root not in store.unwritable:
            _keep(root, path, key, program, function.__name__)
    return in_turn(program)


def _compiled(
    filled: Callable[..., Any], effort: Effort, structure: Any, leaves: list[Any]
) -> jax.stages.Compiled:
    def flat(*leaves: Any) -> Any:
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return filled(*args, **kwargs)

    flat.__name__ = flat.__qualname__ = f"consistent_samplers_{filled.__name__}"
    jitted = jax.jit(flat, compiler_options=compiler_options(effort) or None)
    # Ahead of time: a jitted function compiles once more where an array is bound to its device.
    return jitted.lower(*leaves).compile()


def _keep(root: Path, path: Path, key: str, program: jax.stages.Compiled, name: str) -> None:
    """Writes a program, unless what it returns is of a user's class."""
    try:
        out = _encode_structure(program.out_tree)
        executable = serialize(program)[0]
    except registry.EncodeError:
        return
    except Exception as error:  # whatever it is that this version of JAX raises
        store.warn(f"{name} was compiled without being kept: {error!r}.")
        return
    store.write(root, path, key, store.Kept(out, executable))


def _read(path: Path, key: str, num_leaves: int) -> jax.stages.Compiled | None:
    """A program that is kept; None if there is none that this machine can use."""
    if (kept := store.read(path, key)) is None:
        return None
    _tell_of_lapack()
    in_tree = jax.tree.structure(((0,) * num_leaves, {}))
    try:
        out_tree = jax.tree.structure(registry.decode(kept.out, []))
        return deserialize_and_load(
            kept.program, in_tree, out_tree, execution_devices=jax.local_devices()[:1]
        )
    except Exception as error:  # whatever it is that XLA makes of it
        store.warn(f"{path} cannot be used and will be replaced: {error!r}.")
        return None


def _on_first(leaves: list[Any]) -> bool:
    """Whether no array is bound to another device than the first of this process."""
    first = {jax.local_devices()[0]}
    return all(leaf.devices() == first for leaf in leaves if getattr(leaf, "committed", False))


@functools.cache
def _tell_of_lapack() -> None:
    """Lets XLA find LAPACK, of which JAX tells it when it lowers a call.

    Kept programs are not lowered again: their factorisations would end the process.
    """
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


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
    leaves: list[Any],
) -> str:
    """Identifies a program: everything that it depends on."""
    settings, arrays = registry.encode(static, users=False)
    parts = [
        f"{function.__module__}:{function.__qualname__}",
        settings,
        [[str(a.dtype), a.shape, hashlib.sha256(a.tobytes()).hexdigest()] for a in arrays],
        _encode_structure(structure),
        [[a.shape, str(a.dtype), a.weak_type] for a in map(jax.typeof, leaves)],
        [str(setting(name)) for name in _MEANING],
        sorted(compiler_options(effort).items()),
        [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        _versions(),
        jax.local_devices()[0].id,
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
