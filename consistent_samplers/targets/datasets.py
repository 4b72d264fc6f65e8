"""Data sets, from public packages or a local folder; parsed as text, checked, never pickled.

The environment variable ``CONSISTENT_SAMPLERS_DATA`` names a folder to read the original files
from instead, for work without the packages that carry them.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

DATA_FOLDER_VARIABLE = "CONSISTENT_SAMPLERS_DATA"

_BREAST_CANCER_SHA256 = "25e2eb7b7a8745b1bde5ba18bc4969983d2e2f403291ecd5bde4a29ef30c3859"


# Germination of seeds on 21 plates: Crowder, Beta-binomial ANOVA for proportions, Applied
# Statistics 27 (1978), table 3. Germinated, total, type of seed, root extract.
# fmt: off
_SEEDS_GERMINATED = (10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3)
_SEEDS_TOTAL = (39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7)
_SEEDS_TYPE = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
_SEEDS_EXTRACT = (0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
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


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer Wisconsin (diagnostic): Street, Wolberg & Mangasarian (1993), UCI.

    Read from scikit-learn, or from ``breast_cancer.data`` in the folder that
    ``CONSISTENT_SAMPLERS_DATA`` names: one row a patient of id, diagnosis (M or B, or 0 or 1)
    and features, separated by commas or blanks.

    Returns:
      features ``[569, 30]`` float64, and labels ``[569]`` int64 (malignant 0, benign 1).

    Raises:
      ImportError: scikit-learn is not installed and no folder is named.
      FileNotFoundError: the folder does not hold the file.
      ValueError: the file cannot be parsed, or is not the data set (shape or checksum).
    """
    path = _local_file("breast_cancer.data")
    if path is None:
        try:
            from sklearn.datasets import load_breast_cancer
        except ImportError as error:
            raise ImportError(
                "The breast cancer data come with scikit-learn, which is not installed. Run: "
                f'pip install "consistent_samplers[bench]". Or set {DATA_FOLDER_VARIABLE} to a '
                "folder that holds breast_cancer.data."
            ) from error
        features, labels = load_breast_cancer(return_X_y=True)
        source = "scikit-learn"
    else:
        features, labels = _parse_breast_cancer(path)
        source = str(path)
    features, labels = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    if features.shape != (569, 30) or labels.shape != (569,):
        raise ValueError(
            f"The breast cancer data from {source} have shapes {features.shape} and "
            f"{labels.shape}, expected (569, 30) and (569,). Get the original file again."
        )
    _check_checksum(source, _BREAST_CANCER_SHA256, features, labels)
    return features, labels


def _parse_breast_cancer(path: Path) -> tuple[np.ndarray, np.ndarray]:
    codes = {"M": 0, "B": 1, "0": 0, "1": 1}
    rows = [line.replace(",", " ").split() for line in path.read_text().splitlines()]
    rows = [row for row in rows if row]
    try:
        features = np.array([[float(field) for field in row[2:]] for row in rows])
        labels = np.array([codes[row[1]] for row in rows])
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is not breast cancer data: expected rows of id, diagnosis (M or B) and 30 "
            f"numbers ({type(error).__name__}: {error}). Get the original file again."
        ) from error
    return features, labels


def _local_file(name: str) -> Path | None:
    """Path of a file in the folder the user named, or None if none is named."""
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if not folder:
        return None
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Put {name} into the folder that {DATA_FOLDER_VARIABLE} "
            "names, or unset the variable to use the public source."
        )
    return path


def _check_checksum(source: str, expected: str, *arrays: np.ndarray) -> None:
    """Compares the sha256 of parsed arrays, so that the format of the source does not matter."""
    digest = hashlib.sha256()
    for array in arrays:
        # One byte order and layout on every machine.
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    if digest.hexdigest() != expected:
        raise ValueError(
            f"The data from {source} differ from the original: sha256 of the parsed arrays is "
            f"{digest.hexdigest()}, expected {expected}. Get the original file again; the known "
            "log Z holds for it alone."
        )
