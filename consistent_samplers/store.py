"""Where compiled programs are kept: one file each in a folder of the user's cache.

A file is written whole or not at all and carries a checksum. Whatever is wrong with one (damaged,
foreign, not to be read or written) is said once a process, and programs are compiled as usual.
"""

import contextlib
import functools
import hashlib
import os
import platform
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from flax.serialization import msgpack_restore, msgpack_serialize
from jax.experimental.compilation_cache import compilation_cache

from consistent_samplers import registry

VARIABLE = "CONSISTENT_SAMPLERS_CACHE"
"""Environment variable that names another folder, or is ``off``."""

SUFFIX = ".program"
"""Of the files."""

unwritable: set[Path] = set()
"""Folders that this process has failed to write to."""

_MAX_BYTES = 256 * 2**20
_MAGIC = b"consistent_samplers program 3\n"
_USERS_CACHE = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
_users_cache_lock = threading.RLock()
_warned = False


class Kept(NamedTuple):
    """One program as it is kept."""

    out: registry.JSON  # structure of what it returns, encoded with numbers as leaves
    program: bytes  # as `jax.experimental.serialize_executable` writes it


def root_folder() -> Path | None:
    """The folder of folders of programs, or None if nothing is to be kept."""
    value = os.environ.get(VARIABLE, "").strip()
    if value.lower() == "off":
        return None
    if value:
        return Path(value).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("consistent_samplers", appauthor=False)


def folder_of(root: Path) -> Path:
    """Where programs for this version of JAX and this machine are."""
    return root / f"{jax.__version__}-{jax.default_backend()}-{_machine()}"


@functools.cache
def _machine() -> str:
    """Identifies the processor: code for one may crash on another."""
    lines = []
    with contextlib.suppress(OSError):
        block = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        names = ("vendor_id", "model name", "flags", "Features", "CPU part")
        lines = [line for line in block if line.startswith(names)]
    # XLA divides work among as many threads as there are cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = jax.local_devices()[0].device_kind
    lines += [platform.system(), platform.machine(), platform.processor(), str(cores), kind]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def read(path: Path, key: str) -> Kept | None:
    """A program that is kept, or None; one that cannot be used is as good as none."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        warn(f"{path} cannot be read: {error}.")
        return None
    try:
        kept = _from_bytes(content, key)
    except (ValueError, TypeError, LookupError) as error:
        warn(f"{path} is damaged and will be replaced: {error}.")
        return None
    # The least recently used ones go first.
    with contextlib.suppress(OSError):
        os.utime(path)
    return kept


def write(root: Path, path: Path, key: str, kept: Kept) -> None:
    """Keeps a program, whole or not at all."""
    partial = path.with_name(f".{key[:16]}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            partial.write_bytes(_to_bytes(kept, key))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        unwritable.add(root)
        warn(f"Programs cannot be kept in {root}: {error}.")
    else:
        _make_room(root)


def _to_bytes(kept: Kept, key: str) -> bytes:
    body = msgpack_serialize({"key": key, **kept._asdict()})
    # The quickest level makes executables four times smaller.
    body = zlib.compress(body, 1)
    return _MAGIC + hashlib.sha256(body).digest() + body


def _from_bytes(content: bytes, key: str) -> Kept:
    """What `_to_bytes` was given; raises a ValueError, TypeError or LookupError if it is not."""
    start = len(_MAGIC) + 32
    digest, body = content[len(_MAGIC) : start], content[start:]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("its contents do not match its checksum")
    held = msgpack_restore(zlib.decompress(body))
    if held["key"] != key:
        raise ValueError("it holds another program")
    return Kept(held["out"], held["program"])


def programs(root: Path) -> list[tuple[float, int, Path]]:
    """When each program was last used, its size, and where it is."""
    found = []
    with contextlib.suppress(OSError):
        for path in root.glob(f"*/*{SUFFIX}"):
            # Another process may have removed it.
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
    return found


def _make_room(root: Path) -> None:
    """Removes the programs longest unused, and what killed processes left, above the bound."""
    kept = sorted(programs(root))
    excess = sum(size for _, size, _ in kept) - _MAX_BYTES
    for _, size, path in kept:
        if excess <= 0:
            break
        remove(path)
        excess -= size
    with contextlib.suppress(OSError):
        for path in root.glob("*/.*.partial"):
            if path.stat().st_mtime < time.time() - 3_600:
                remove(path)


def remove(path: Path) -> bool:
    """Whether a file was there to be removed."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def users_cache_off() -> Iterator[None]:
    """JAX's own cache of programs is not used, whatever the user has set for it; then as it was.

    Nothing of ours gets into it, and what was read from it could not be kept once more.
    """
    with _users_cache_lock:
        if all(getattr(jax.config, name) for name in _USERS_CACHE):
            # It is the process's: nobody else compiles meanwhile.
            jax.config.update(_USERS_CACHE[0], False)
            compilation_cache.reset_cache()
            try:
                yield
            finally:
                jax.config.update(_USERS_CACHE[0], True)
                compilation_cache.reset_cache()
            return
    yield


def warn(message: str) -> None:
    """Says once a process why programs are compiled again; it is slower, and nothing else."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"{message} Results are the same, only compiling takes its time again. "
            f"{VARIABLE}=off turns this off.",
            RuntimeWarning,
            stacklevel=3,
        )
