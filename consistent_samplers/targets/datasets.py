"""Data sets of the posteriors: typed in, from public packages, or read from files.

Files are downloaded on first use, or read from the folder that the environment variable
``CONSISTENT_SAMPLERS_DATA`` names, for work without a network or the packages that carry them.
Everything is parsed as text or plain arrays, checked by shape and checksum, and never unpickled.
Features are float64 and labels int64.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DATA_FOLDER_VARIABLE = "CONSISTENT_SAMPLERS_DATA"
_REMEDY = "Replace it by the original; if it was downloaded, delete it, and it is fetched again."

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
_PINES_URL = (
    "https://raw.githubusercontent.com/juliusberner/sde_sampler/"
    "06b553a3f4b0c592d6429fa2c309d47552accbfd/data/pines.csv"
)
# Both in one file, {name}_X and {name}_y, scaled already.
_SCALED_ARRAYS = "ionosphere_sonar_arrays.npz"

# sha256 of the parsed arrays: features, then labels.
_BREAST_CANCER_SHA256 = "25e2eb7b7a8745b1bde5ba18bc4969983d2e2f403291ecd5bde4a29ef30c3859"
_GERMAN_CREDIT_SHA256 = "9b8275ff36a297015cf27b2b4b99a5f850b836fe78a4b5f037d6f78cfc3643d2"
_IONOSPHERE_SHA256 = "eda949038c0a1d91fe3050593598b2f222c227d857458402fec5a83083308b43"
_SONAR_SHA256 = "7e692b3f60a165644958c26b5ae31d9e6c59d38040f759c133ca217072beb453"
_PINES_SHA256 = "949a956ad2d6b86d586afd23b98acacdbaec7d67b6a925c82dd5c3681169e47e"

# Germination of seeds on 21 plates: Crowder, Beta-binomial ANOVA for proportions, Applied
# Statistics 27 (1978), table 3. Germinated, total, type of seed, root extract.
# fmt: off
_SEEDS_GERMINATED = (10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3)
_SEEDS_TOTAL = (39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7)
_SEEDS_TYPE = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
_SEEDS_EXTRACT = (0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)

# A simulated Brownian motion seen at times 1 to 10 and 21 to 30: inference_gym of TensorFlow
# Probability (Apache-2.0), in the digits printed there.
_BROWNIAN_FIRST = (
    0.21592641, 0.118771404, -0.07945447, 0.037677474, -0.27885845, -0.1484156, -0.3250906,
    -0.22957903, -0.44110894, -0.09830782,
)
_BROWNIAN_LAST = (
    -0.8786016, -0.83736074, -0.7384849, -0.8939254, -0.7774566, -0.70238715, -0.87771565,
    -0.51853573, -0.6948214, -0.6202789,
)
# fmt: on


def seeds() -> np.ndarray:
    """Germination of seeds: rows of germinated, total, type and root extract, ``[4, 21]``."""
    return np.array([_SEEDS_GERMINATED, _SEEDS_TOTAL, _SEEDS_TYPE, _SEEDS_EXTRACT], np.float64)


def brownian_observations() -> np.ndarray:
    """Noisy positions of a Brownian motion ``[30]``, the middle ten missing (NaN).

    Rounded to single precision, as inference_gym has it.
    """
    values = np.concatenate([_BROWNIAN_FIRST, np.full(10, np.nan), _BROWNIAN_LAST])
    return values.astype(np.float32).astype(np.float64)


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer Wisconsin (diagnostic): Street, Wolberg & Mangasarian (1993), UCI.

    Features ``[569, 30]`` and labels (malignant 0, benign 1), from scikit-learn or from rows of
    id, diagnosis (M or B, or 0 or 1) and features, separated by commas or blanks.
    """
    path = _local_file("breast_cancer.data")
    if path is None:
        from sklearn.datasets import load_breast_cancer

        features, labels = load_breast_cancer(return_X_y=True)
        features, labels = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    else:
        rows = [row[1:] for row in _rows(path)]  # without the id
        codes = {"M": 0, "B": 1, "0": 0, "1": 1}
        expected = "rows of id, diagnosis (M or B) and 30 numbers"
        features, labels = _features_and_labels(path, rows, 0, codes, expected)
    source = path or "scikit-learn"
    _check_arrays(source, _BREAST_CANCER_SHA256, features, labels, shape=(569, 30))
    return features, labels


def german_credit() -> tuple[np.ndarray, np.ndarray]:
    """German credit in the numeric coding of Strathclyde: Hofmann (1994), Statlog, UCI.

    Features ``[1000, 24]`` and labels (good 0, bad 1).
    """
    path = _file_of(f"{_UCI}/statlog/german/german.data-numeric")
    expected = "rows of 24 numbers and a label (1 or 2)"
    features, labels = _features_and_labels(path, _rows(path), -1, {"1": 0, "2": 1}, expected)
    _check_arrays(path, _GERMAN_CREDIT_SHA256, features, labels, shape=(1000, 24))
    return features, labels


def ionosphere() -> tuple[np.ndarray, np.ndarray]:
    """Ionosphere, radar returns: Sigillito, Wing, Hutton & Baker (1989), UCI.

    Features ``[351, 34]``, the second column all 0, and labels (good 1, bad 0); see `_scaled`.
    """
    path = _file_of(f"{_UCI}/ionosphere/ionosphere.data", _SCALED_ARRAYS)
    expected = "rows of 34 numbers and a label (g or b)"
    features, labels = _scaled(path, "ionosphere", {"g": 1, "b": 0}, expected)
    _check_arrays(path, _IONOSPHERE_SHA256, features, labels, shape=(351, 34))
    return features, labels


def sonar() -> tuple[np.ndarray, np.ndarray]:
    """Sonar, mines and rocks: Gorman & Sejnowski, Neural Networks 1 (1988), UCI.

    Features ``[208, 60]`` and labels (rock 1, mine 0); see `_scaled`.
    """
    url = f"{_UCI}/undocumented/connectionist-bench/sonar/sonar.all-data"
    path = _file_of(url, _SCALED_ARRAYS)
    expected = "rows of 60 numbers and a label (R or M)"
    features, labels = _scaled(path, "sonar", {"R": 1, "M": 0}, expected)
    _check_arrays(path, _SONAR_SHA256, features, labels, shape=(208, 60))
    return features, labels


def finnish_pines() -> np.ndarray:
    """Positions of pine saplings in the unit square ``[126, 2]``: Kellomäki & Penttinen.

    The data set finpines of the R package spatstat, rescaled as the field does (x + 5 and y + 8,
    over 10).
    """
    path = _file_of(_PINES_URL)
    with _parsing(path, "a header, then rows of number, x and y"):
        points = np.array([[float(field) for field in row[1:]] for row in _rows(path)[1:]])
    _check_arrays(path, _PINES_SHA256, points, shape=(126, 2))
    return points


def _rows(path: Path) -> list[list[str]]:
    """Fields of the lines that are not empty, separated by commas or blanks."""
    # Bytes that are no text end up in a field that does not parse.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [row for row in (line.replace(",", " ").split() for line in lines) if row]


def _features_and_labels(
    path: Path, rows: list[list[str]], label_at: int, codes: dict[str, int], expected: str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and coded labels of text rows, the label first (0) or last (-1)."""
    with _parsing(path, expected):
        if not rows:
            raise ValueError("it is empty")
        labels = np.array([codes[row.pop(label_at)] for row in rows], np.int64)
        features = np.array([[float(field) for field in row] for row in rows], np.float64)
    return features, labels


def _scaled(
    path: Path, name: str, codes: dict[str, int], expected: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features as LIBSVM scales them, and labels, from UCI's text or from stored arrays.

    To [-1, 1], rounded to six digits: what the known log Z was computed from. To the posterior,
    which standardises its features, the scaling makes no difference.
    """
    if path.suffix == ".npz":
        expected = f"arrays {name}_X and {name}_y"
        with _parsing(path, expected), np.load(path, allow_pickle=False) as arrays:
            features = np.asarray(arrays[f"{name}_X"], np.float64)
            labels = np.asarray(arrays[f"{name}_y"], np.int64)
    else:
        features, labels = _features_and_labels(path, _rows(path), -1, codes, expected)
        low, high = features.min(axis=0), features.max(axis=0)
        varies = high > low
        span = np.where(varies, high - low, 1.0)
        features = np.where(varies, -1.0 + 2.0 * (features - low) / span, 0.0)
    # The middle of a range is off 0 by rounding in the one, not in the other: round first.
    features = np.round(features, 12) + 0.0
    printed = np.array([float(f"{value:.6g}") for value in features.flat])
    return printed.reshape(features.shape).astype(np.float32).astype(np.float64), labels


def _file_of(url: str, *stand_ins: str) -> Path:
    """Path of a file or one that stands in for it, in the user's folder or else downloaded."""
    return _local_file(url.rsplit("/", 1)[-1], *stand_ins) or _fetch(url)


def _local_file(*names: str) -> Path | None:
    """Path of the first of some files in the user's folder, or None if there is no folder."""
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


def _fetch(url: str) -> Path:
    """Path of a downloaded file, kept in the user's cache and fetched on first use only."""
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
        cache = pooch.os_cache("consistent_samplers")
        return Path(pooch.retrieve(url, known_hash=None, fname=name, path=cache))
    except OSError as error:  # every failure of requests is one
        raise ConnectionError(
            f"{url} could not be downloaded ({type(error).__name__}: {error}). Try again, or get "
            f"{name} by other means and set {DATA_FOLDER_VARIABLE} to the folder that holds it."
        ) from error


@contextlib.contextmanager
def _parsing(path: Path, expected: str) -> Iterator[None]:
    """Raises a ValueError with the remedy where a file is not in the format expected."""
    try:
        yield
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read: expected {expected} ({type(error).__name__}: {error}). "
            f"{_REMEDY}"
        ) from error


def _check_arrays(
    source: str | Path, expected: str, *arrays: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Raises unless parsed arrays have the original's shape (the first one) and joint sha256."""
    if arrays[0].shape != shape:
        raise ValueError(
            f"The data from {source} have shape {arrays[0].shape}, expected {shape}. {_REMEDY}"
        )
    digest = hashlib.sha256()
    for array in arrays:
        # One byte order and layout on every machine.
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    if digest.hexdigest() != expected:
        raise ValueError(
            f"The data from {source} differ from the original: sha256 of the parsed arrays is "
            f"{digest.hexdigest()}, expected {expected}. The known log Z holds for the original "
            f"alone. {_REMEDY}"
        )
