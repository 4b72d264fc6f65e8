"""What is kept on disk: arrays as msgpack, everything else as JSON, replaced in one step.

A checkpoint is a folder. Its ``header.json`` names the file of arrays by its content, and is
renamed into place last: whenever a process is killed, the folder holds either what it held before
or what was being written, whole.
"""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from consistent_samplers.types import ArrayTree

FORMAT = "consistent_samplers"
VERSION = 1
_HEADER = "header.json"


class CheckpointError(ValueError):
    """A folder that cannot be written or read as what it should be; the message says why."""


def write(folder: str | os.PathLike[str], kind: str, header: dict[str, Any], arrays: Any) -> None:
    """Writes a checkpoint, replacing one of the same folder.

    Args:
      folder: made if it does not exist.
      kind: what it is a checkpoint of.
      header: what JSON can hold.
      arrays: nested dictionaries of NumPy arrays, keys strings.

    Raises:
      CheckpointError: the folder cannot be written to.
    """
    folder = Path(folder)
    payload = msgpack_serialize(arrays)
    digest = hashlib.sha256(payload).hexdigest()
    name = f"arrays-{digest[:16]}.msgpack"
    text = json.dumps(
        {
            **header,
            "format": FORMAT,
            "version": VERSION,
            "kind": kind,
            "package": metadata.version("consistent_samplers"),
            "arrays": name,
            "sha256": digest,
        },
        indent=1,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / name, payload)
        _replace(folder / _HEADER, text.encode())
        for other in folder.glob("arrays-*.msgpack"):
            if other.name != name:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write to {folder}: {error}. Give a folder that this user may write to, with "
            "space left; nothing in memory is lost."
        ) from error


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a checkpoint, of whatever kind."""
    return (Path(folder) / _HEADER).is_file()


def read(folder: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], Any]:
    """Reads a checkpoint: its header and its arrays, as given to `write`.

    Raises:
      CheckpointError: there is none, it is of another kind or program, of a newer version, or
        damaged.
    """
    folder = Path(folder)
    try:
        text = (folder / _HEADER).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"There is no checkpoint in {folder} ({error}). Give the folder that it was saved to."
        ) from error
    try:
        header = json.loads(text)
        found, version = header["format"], header["version"]
        name, digest = str(header["arrays"]), header["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder / _HEADER} is damaged or no header of a checkpoint: {error!r}."
        ) from error
    if found != FORMAT or not isinstance(version, int):
        raise CheckpointError(f"{folder} holds no checkpoint of {FORMAT}, but of {found!r}.")
    if version > VERSION:
        raise CheckpointError(
            f"{folder} was written by {FORMAT} {header.get('package')} in version {version} of the "
            f"format; this one reads up to {VERSION}. Install that version or a newer one."
        )
    if header.get("kind") != kind:
        raise CheckpointError(f"{folder} holds a {header.get('kind')!r}, not a {kind!r}.")
    try:
        payload = (folder / Path(name).name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"The arrays of {folder} are missing: {error}.") from error
    if hashlib.sha256(payload).hexdigest() != digest:
        raise CheckpointError(
            f"{folder / name} is damaged or cut short: its contents do not match the header. "
            "Restore it from a copy, or train again."
        )
    return header, msgpack_restore(payload)


def to_arrays(tree: ArrayTree) -> dict[str, np.ndarray]:
    """The leaves of a tree, numbered, on the host."""
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def from_arrays(like: ArrayTree, arrays: dict[str, np.ndarray], what: str) -> Any:
    """A tree of the structure, shapes and types of another, with the leaves of `to_arrays`.

    Raises:
      CheckpointError: they do not fit.
    """
    leaves, structure = jax.tree.flatten(like)
    found = [arrays.get(str(i)) for i in range(len(leaves))]
    wrong = [
        i
        for i, (leaf, array) in enumerate(zip(leaves, found, strict=True))
        if array is None or np.shape(leaf) != array.shape
    ]
    if wrong or len(arrays) != len(leaves):
        raise CheckpointError(
            f"The checkpoint's {what} has {len(arrays)} arrays, of which {len(wrong)} do not fit "
            f"the {len(leaves)} of this one: it was made with other settings (network, base, "
            "optimiser)."
        )
    dtypes = [getattr(leaf, "dtype", None) for leaf in leaves]
    restored = [jnp.asarray(a, dtype) for a, dtype in zip(found, dtypes, strict=True)]
    return jax.tree.unflatten(structure, restored)


def digest(tree: ArrayTree) -> str:
    """Identifies the contents of a tree of arrays."""
    code = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        code.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return code.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
