"""Where compiled programs are kept: one file each in a folder of the user's cache.

A file is written whole or not at all and carries a checksum. Whatever is wrong with one (damaged,
foreign, not to be read or written) is said once a process, and programs are compiled as usual.
"""

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
_MAGIC = b"consistent_samplers program 2\n"
_warned = False
# JAX's own cache, while one of our programs is compiled; see `own_cache`.
_SETTINGS: dict[str, Any] = {
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_persistent_cache_enable_xla_caches": "none",
    "jax_compilation_cache_max_size": -1,
    "jax_compilation_cache_check_contents": False,
    "jax_compilation_cache_expect_pgle": False,
}


class Kept(NamedTuple):
    """One program as it is kept."""

    out: registry.JSON  # structure of what it returns, encoded with numbers as leaves
    keys: dict[int, str]  # implementations of those of its outputs that are typed keys, by number
    program: bytes  # serialized ``jax.export.Exported``
    entries: dict[str, bytes]  # files of JAX's compilation cache, by name


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
    keys = [list(item) for item in kept.keys.items()]
    body = msgpack_serialize({"key": key, **kept._asdict(), "keys": keys})
    return _MAGIC + hashlib.sha256(body).digest() + body


def _from_bytes(content: bytes, key: str) -> Kept:
    """What `_to_bytes` was given; raises a ValueError, TypeError or LookupError if it is not."""
    start = len(_MAGIC) + 32
    digest, body = content[len(_MAGIC) : start], content[start:]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("its contents do not match its checksum")
    held = msgpack_restore(body)
    if held["key"] != key:
        raise ValueError("it holds another program")
    return Kept(held["out"], dict(held["keys"]), held["program"], held["entries"])


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
def own_cache(entries: dict[str, bytes]) -> Iterator[Path]:
    """JAX's compilation cache in a folder of our own, for one program; then as it was.

    Only the cache itself knows how executables are written and read. What the user has set for it,
    and what is in it, stays the user's.
    """
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", *_SETTINGS)
        if hasattr(jax.config, name)
    }
    with tempfile.TemporaryDirectory(prefix="consistent_samplers-") as temporary:
        folder = Path(temporary)
        for name, content in entries.items():
            (folder / Path(name).name).write_bytes(content)
        try:
            for name in before:
                jax.config.update(name, _SETTINGS.get(name, str(folder)))
            compilation_cache.reset_cache()
            yield folder
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


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
