"""What is kept on disk: arrays as msgpack, everything else as JSON, replaced in one step.

A checkpoint is a folder. Its ``header.json`` names the file of arrays and is renamed into place
last: whenever a process is killed, the folder holds the old checkpoint or the new one, whole. One
process at a time writes to a folder, see `reserved`.
"""

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from consistent_samplers import __version__
from consistent_samplers.types import ArrayTree, PRNGKey

try:
    import fcntl
except ImportError:  # Windows has other locks: there nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

FORMAT = "consistent_samplers"
"""What a header names as its format."""

VERSION = 1
"""Newest version of the format that is read, and the one that is written."""

_HEADER = "header.json"
_LOCK = ".lock"


class CheckpointError(ValueError):
    """A folder that cannot be written or read as what it should be; the message says why.

    Example:
      >>> import consistent_samplers as cs
      >>> issubclass(cs.CheckpointError, ValueError)
      True
    """


@contextlib.contextmanager
def reserved(folder: str | os.PathLike[str], wait_seconds: float = 0.0) -> Iterator[None]:
    """A context in which no other process writes to a folder.

    A CheckpointError where one still does after ``wait_seconds``. The operating system holds the
    lock and drops it with the process, however that ends.
    """
    folder, until = Path(folder), time.monotonic() + wait_seconds
    lock, file = folder / _LOCK, None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while (file := _locked(lock)) is None and time.monotonic() < until:
                time.sleep(0.05)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        if file is None:
            owner = lock.read_text() if lock.exists() else ""
            raise CheckpointError(
                f"Another run ({owner or 'which has just ended'}) is writing to {folder}. Wait for "
                "it to end, or give each run a folder of its own."
            )
        yield
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)
            os.close(file)


def _locked(lock: Path) -> int | None:
    """The lock's open file with our number in it, or None where somebody else has it."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError:  # a file system without locks
        pass
    # Who had it may have removed it meanwhile, and somebody else made another.
    if not (lock.exists() and os.path.samestat(os.fstat(file), lock.stat())):
        os.close(file)
        return None
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
    return file


def _cannot_write(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"Cannot write to {folder}: {error}. Give a folder that this user may write to, with "
        "space left; nothing in memory is lost."
    )


def write(folder: str | os.PathLike[str], kind: str, header: dict[str, Any], arrays: Any) -> None:
    """Writes a checkpoint of some kind, in place of the one that the folder holds.

    ``header`` is what JSON can hold, ``arrays`` nested dictionaries of NumPy arrays by strings. The
    folder is to be `reserved`.
    """
    folder = Path(folder)
    payload = msgpack_serialize(arrays)
    digest = hashlib.sha256(payload).hexdigest()
    name = f"arrays-{digest[:16]}.msgpack"
    header = header | {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "package": __version__,
        "arrays": name,
        "sha256": digest,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / name, payload)
        _replace(folder / _HEADER, json.dumps(header, indent=1).encode())
        for other in folder.glob("arrays-*.msgpack"):
            if other.name != name:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a checkpoint of any kind."""
    return (Path(folder) / _HEADER).is_file()


def read(folder: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], Any]:
    """The header and the arrays of a checkpoint, by the folder and kind given to `write`."""
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
        if (folder / _HEADER).read_text() != text:  # replaced between the two
            return read(folder, kind)
        raise CheckpointError(f"The arrays of {folder} are missing: {error}.") from error
    if hashlib.sha256(payload).hexdigest() != digest:
        raise CheckpointError(
            f"{folder / name} is damaged or cut short: its contents do not match the header. "
            "Restore it from a copy, or train again."
        )
    return header, msgpack_restore(payload)


def to_arrays(tree: ArrayTree) -> dict[str, np.ndarray]:
    """The leaves of a tree as NumPy arrays, by their number as a string."""
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def from_arrays(like: ArrayTree, arrays: dict[str, np.ndarray], what: str) -> Any:
    """A tree of the structure, shapes and types of ``like``, with the leaves of `to_arrays`.

    ``what`` is the error's word for what is restored.
    """
    leaves, structure = jax.tree.flatten(like)
    pairs = [(leaf, arrays.get(str(i))) for i, leaf in enumerate(leaves)]
    wrong = sum(array is None or np.shape(leaf) != array.shape for leaf, array in pairs)
    if wrong or len(arrays) != len(leaves):
        raise CheckpointError(
            f"The checkpoint's {what} has {len(arrays)} arrays, of which {wrong} do not fit the "
            f"{len(leaves)} of this one: it was made with other settings (network, base, "
            "optimiser)."
        )
    restored = [jnp.asarray(array, getattr(leaf, "dtype", None)) for leaf, array in pairs]
    return jax.tree.unflatten(structure, restored)


def numbers_of(rng_key: PRNGKey) -> Any:
    """The numbers that a key of either style is made of, as JSON."""
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(rng_key) if typed else rng_key).tolist()


def digest(tree: ArrayTree) -> str:
    """SHA-256 of the types, shapes and contents of a tree's leaves, not of its structure."""
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
