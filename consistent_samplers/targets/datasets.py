"""Data sets of the posteriors: typed in, from public packages, a local folder or a download.

The environment variable ``CONSISTENT_SAMPLERS_DATA`` names a folder to read the files from
instead, for work without a network or without the packages that carry them. Everything is parsed
as text or plain arrays, checked by shape and checksum, and never unpickled.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from consistent_samplers.targets import sources

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
_GERMAN_CREDIT_URL = f"{_UCI}/statlog/german/german.data-numeric"
_IONOSPHERE_URL = f"{_UCI}/ionosphere/ionosphere.data"
_SONAR_URL = f"{_UCI}/undocumented/connectionist-bench/sonar/sonar.all-data"
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


class SeedsData(NamedTuple):
    """The Seeds data, one entry a plate, float64.

    Attributes:
      germinated: ``[21]``, number of seeds that germinated.
      total: ``[21]``, number of seeds.
      seed_type: ``[21]``, 0 or 1.
      extract: ``[21]``, root extract, 0 or 1.
    """

    germinated: np.ndarray
    total: np.ndarray
    seed_type: np.ndarray
    extract: np.ndarray


def seeds() -> SeedsData:
    """Germination of seeds on 21 plates: Crowder (1978), typed in."""
    table = (_SEEDS_GERMINATED, _SEEDS_TOTAL, _SEEDS_TYPE, _SEEDS_EXTRACT)
    return SeedsData(*(np.array(column, np.float64) for column in table))


def brownian_observations() -> np.ndarray:
    """Noisy positions of a Brownian motion at 30 times, the middle ten missing; typed in.

    Returns:
      ``[30]`` float64, NaN where nothing was observed. Single precision, as inference_gym has it.
    """
    missing = np.full(10, np.nan)
    values = np.concatenate([_BROWNIAN_FIRST, missing, _BROWNIAN_LAST])
    return values.astype(np.float32).astype(np.float64)


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer Wisconsin (diagnostic): Street, Wolberg & Mangasarian (1993), UCI.

    Read from scikit-learn, or from ``breast_cancer.data`` in the folder that
    ``CONSISTENT_SAMPLERS_DATA`` names: one row a patient of id, diagnosis (M or B, or 0 or 1)
    and features, separated by commas or blanks.

    Returns:
      features ``[569, 30]`` float64, and labels ``[569]`` int64 (malignant 0, benign 1).

    Raises:
      FileNotFoundError: the folder does not hold the file.
      ValueError: the file cannot be parsed, or is not the data set (shape or checksum).
    """
    path = sources.local_file("breast_cancer.data")
    if path is None:
        from sklearn.datasets import load_breast_cancer

        features, labels = load_breast_cancer(return_X_y=True)
        features, labels = np.asarray(features, np.float64), np.asarray(labels, np.int64)
        source = "scikit-learn"
    else:
        rows = [row[1:] for row in _rows(path)]  # without the id
        codes = {"M": 0, "B": 1, "0": 0, "1": 1}
        expected = "rows of id, diagnosis (M or B) and 30 numbers"
        features, labels = _features_and_labels(path, rows, 0, codes, expected)
        source = str(path)
    sources.check_arrays(source, _BREAST_CANCER_SHA256, features, labels, shape=(569, 30))
    return features, labels


def german_credit() -> tuple[np.ndarray, np.ndarray]:
    """German credit in the numeric coding of Strathclyde: Hofmann (1994), Statlog, UCI.

    Downloaded on first use, or read from ``german.data-numeric`` in the folder that
    ``CONSISTENT_SAMPLERS_DATA`` names.

    Returns:
      features ``[1000, 24]`` float64, and labels ``[1000]`` int64 (good 0, bad 1).

    Raises:
      ImportError: pooch is not installed and no folder is named.
      ConnectionError: the download failed.
      FileNotFoundError: the folder does not hold the file.
      ValueError: the file cannot be parsed, or is not the data set (shape or checksum).
    """
    path = sources.local_file("german.data-numeric") or sources.fetch(_GERMAN_CREDIT_URL)
    expected = "rows of 24 numbers and a label (1 or 2)"
    features, labels = _features_and_labels(path, _rows(path), -1, {"1": 0, "2": 1}, expected)
    sources.check_arrays(str(path), _GERMAN_CREDIT_SHA256, features, labels, shape=(1000, 24))
    return features, labels


def ionosphere() -> tuple[np.ndarray, np.ndarray]:
    """Ionosphere, radar returns: Sigillito, Wing, Hutton & Baker (1989), UCI.

    Downloaded on first use, or read from ``ionosphere.data`` (UCI's text) or
    ``ionosphere_sonar_arrays.npz`` in the folder that ``CONSISTENT_SAMPLERS_DATA`` names.
    Whatever the source, every column is scaled to [-1, 1] and rounded as LIBSVM distributes it
    (six digits, single precision), which is the form the known log Z was computed from; to the
    posterior, which standardises its features, the scaling makes no difference.

    Returns:
      features ``[351, 34]`` float64 in [-1, 1], the second column all 0, and labels ``[351]``
      int64 (good 1, bad 0).

    Raises:
      ImportError: pooch is not installed and no folder is named.
      ConnectionError: the download failed.
      FileNotFoundError: the folder holds neither file.
      ValueError: the file cannot be parsed, or is not the data set (shape or checksum).
    """
    path = sources.local_file("ionosphere.data", _SCALED_ARRAYS) or sources.fetch(_IONOSPHERE_URL)
    expected = "rows of 34 numbers and a label (g or b)"
    features, labels = _scaled(path, "ionosphere", {"g": 1, "b": 0}, expected)
    sources.check_arrays(str(path), _IONOSPHERE_SHA256, features, labels, shape=(351, 34))
    return features, labels


def sonar() -> tuple[np.ndarray, np.ndarray]:
    """Sonar, mines and rocks: Gorman & Sejnowski, Neural Networks 1 (1988), UCI.

    Downloaded on first use, or read from ``sonar.all-data`` (UCI's text) or
    ``ionosphere_sonar_arrays.npz`` in the folder that ``CONSISTENT_SAMPLERS_DATA`` names; scaled
    as ``ionosphere`` is.

    Returns:
      features ``[208, 60]`` float64 in [-1, 1], and labels ``[208]`` int64 (rock 1, mine 0).

    Raises:
      ImportError: pooch is not installed and no folder is named.
      ConnectionError: the download failed.
      FileNotFoundError: the folder holds neither file.
      ValueError: the file cannot be parsed, or is not the data set (shape or checksum).
    """
    path = sources.local_file("sonar.all-data", _SCALED_ARRAYS) or sources.fetch(_SONAR_URL)
    expected = "rows of 60 numbers and a label (R or M)"
    features, labels = _scaled(path, "sonar", {"R": 1, "M": 0}, expected)
    sources.check_arrays(str(path), _SONAR_SHA256, features, labels, shape=(208, 60))
    return features, labels


def finnish_pines() -> np.ndarray:
    """Positions of 126 pine saplings in Finland, in the unit square: Kellomäki & Penttinen.

    The data set finpines of the R package spatstat, rescaled as the field does (x + 5 and y + 8,
    over 10). Downloaded on first use, or read from ``pines.csv`` in the folder that
    ``CONSISTENT_SAMPLERS_DATA`` names: a header, then rows of number, x and y.

    Returns:
      ``[126, 2]`` float64 in [0, 1].

    Raises:
      ImportError: pooch is not installed and no folder is named.
      ConnectionError: the download failed.
      FileNotFoundError: the folder does not hold the file.
      ValueError: the file cannot be parsed, or is not the data set (shape or checksum).
    """
    path = sources.local_file("pines.csv") or sources.fetch(_PINES_URL)
    try:
        points = np.array([[float(field) for field in row[1:]] for row in _rows(path)[1:]])
    except ValueError as error:
        raise sources.parse_error(path, "a header, then rows of number, x and y", error) from error
    sources.check_arrays(str(path), _PINES_SHA256, points, shape=(126, 2))
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
    try:
        if not rows:
            raise ValueError("it is empty")
        labels = np.array([codes[row.pop(label_at)] for row in rows], np.int64)
        features = np.array([[float(field) for field in row] for row in rows], np.float64)
    except (ValueError, KeyError, IndexError) as error:
        raise sources.parse_error(path, expected, error) from error
    return features, labels


def _scaled(
    path: Path, name: str, codes: dict[str, int], expected: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features as LIBSVM scales them, and labels, from UCI's text or from stored arrays."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                features = np.asarray(arrays[f"{name}_X"], np.float64)
                labels = np.asarray(arrays[f"{name}_y"], np.int64)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise sources.parse_error(path, f"arrays {name}_X and {name}_y", error) from error
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
