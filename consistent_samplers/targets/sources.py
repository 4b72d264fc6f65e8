"""Where the files of data sets come from: a folder the user names, or a download kept in a cache.

What is read is checked after parsing, so the format of the source does not matter.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

DATA_FOLDER_VARIABLE = "CONSISTENT_SAMPLERS_DATA"


def local_file(*names: str) -> Path | None:
    """Path of a file in the folder that ``CONSISTENT_SAMPLERS_DATA`` names.

    Args:
      names: file names that will do, the preferred one first.

    Returns:
      the path, or None if the variable names no folder.

    Raises:
      FileNotFoundError: the folder holds none of the files.
    """
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if not folder:
        return None
    paths = [Path(folder).expanduser() / name for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{' and '.join(map(str, paths))} {'does' if len(paths) == 1 else 'do'} not exist. Put "
        f"{' or '.join(names)} into the folder that {DATA_FOLDER_VARIABLE} names, or unset the "
        "variable to use the public source."
    )


def fetch(url: str) -> Path:
    """Path of a downloaded file, kept in the user's cache and fetched on first use only.

    Raises:
      ImportError: pooch is not installed.
      ConnectionError: the download failed.
    """
    name = url.rsplit("/", 1)[-1]
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"{name} is downloaded by pooch, which is not installed. Run: "
            f'pip install "consistent_samplers[bench]". Or set {DATA_FOLDER_VARIABLE} to a folder '
            f"that holds {name}."
        ) from error
    try:
        # No hash of the file: its line ends may change, the numbers in it may not.
        path = pooch.retrieve(
            url, known_hash=None, fname=name, path=pooch.os_cache("consistent_samplers")
        )
    except OSError as error:  # every failure of requests is one
        raise ConnectionError(
            f"{url} could not be downloaded ({type(error).__name__}: {error}). Try again, or get "
            f"{name} by other means and set {DATA_FOLDER_VARIABLE} to the folder that holds it."
        ) from error
    return Path(path)


def parse_error(path: Path, expected: str, error: Exception) -> ValueError:
    """Error for a file that is not in the format expected."""
    return ValueError(
        f"{path} cannot be read: expected {expected} ({type(error).__name__}: {error}). Replace it "
        "by the original file; if it was downloaded, delete it, and it is fetched again."
    )


def check_arrays(source: str, expected: str, *arrays: np.ndarray, shape: tuple[int, ...]) -> None:
    """Compares shape and content of parsed arrays with the original's.

    Args:
      source: where they came from, for the message.
      expected: sha256 of the arrays, one after the other.
      arrays: what was parsed.
      shape: shape of the first one.

    Raises:
      ValueError: they differ.
    """
    if arrays[0].shape != shape:
        raise ValueError(
            f"The data from {source} have shape {arrays[0].shape}, expected {shape}. Replace the "
            "file by the original; if it was downloaded, delete it, and it is fetched again."
        )
    digest = hashlib.sha256()
    for array in arrays:
        # One byte order and layout on every machine.
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    if digest.hexdigest() != expected:
        raise ValueError(
            f"The data from {source} differ from the original: sha256 of the parsed arrays is "
            f"{digest.hexdigest()}, expected {expected}. The known log Z holds for the original "
            "alone. Replace the file by it; if it was downloaded, delete it, and it is fetched "
            "again."
        )
