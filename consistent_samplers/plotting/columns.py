"""Draws of any kind as columns of numbers: arrays, names, weights."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from consistent_samplers.plotting import style
from consistent_samplers.types import Array

Samples: TypeAlias = Array | np.ndarray | Mapping[str, Any]
"""Draws ``[n, dim]``, or a mapping from names to arrays ``[n, ...]`` as of NumPyro."""


class Table(NamedTuple):
    """Draws by coordinates: values ``[n, num_shown]``, their labels and their share of the mass."""

    values: np.ndarray
    labels: list[str]
    share: np.ndarray


def tables(
    samples: Samples,
    reference: Samples | None,
    log_weight: Array | np.ndarray | None,
    names: Sequence[str] | None,
    dims: Sequence[int] | None,
) -> tuple[Table, Table | None]:
    """Draws and their reference by the same coordinates, or raises what is wrong with them."""
    values, labels = _columns("samples", samples, names)
    share = _shares(log_weight, len(values))
    index = style.chosen(dims, len(labels))
    table = Table(values[:, index], [labels[i] for i in index], share)
    style.check_finite("samples", table.values[share > 0])
    if reference is None:
        return table, None
    if isinstance(samples, Mapping) != isinstance(reference, Mapping):
        raise ValueError("samples and reference must both be arrays, or both mappings of names.")
    sites = list(samples) if isinstance(samples, Mapping) and names is None else names
    values, other_labels = _columns("reference", reference, sites)
    if other_labels != labels:
        raise ValueError(
            f"samples have the coordinates {_listed(labels)}, the reference {_listed(other_labels)}"
            ". Give both the same."
        )
    other = Table(values[:, index], table.labels, np.full(len(values), 1.0 / len(values)))
    style.check_finite("reference", other.values)
    return table, other


def _columns(
    what: str, samples: Samples, names: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Values ``[n, num_coordinates]`` and a label for each."""
    if isinstance(names, str):
        raise ValueError(f"names must be a sequence of strings, got the string {names!r}.")
    if isinstance(samples, Mapping):
        return _columns_of_sites(what, samples, names)
    values = np.asarray(samples)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"{what} must be numbers of shape [n, dim] or a mapping from names to arrays [n, ...], "
            f"got {values.dtype} of shape {values.shape}. Of Draws, pass draws.position (and "
            "log_weight=draws.log_weight)."
        )
    labels = [f"x[{i}]" for i in range(values.shape[1])] if names is None else list(names)
    if len(labels) != values.shape[1]:
        raise ValueError(
            f"names must label each of the {values.shape[1]} coordinates of {what}, got "
            f"{len(labels)}. Choose among coordinates by dims."
        )
    return values.astype(np.float64), labels


def _columns_of_sites(
    what: str, samples: Mapping[str, Any], names: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    sites = list(samples) if names is None else list(names)
    unknown = [name for name in sites if name not in samples]
    if unknown or not sites:
        raise ValueError(
            f"{what} must hold at least one name, and all of names: {_listed(unknown)} not among "
            f"{_listed(list(samples))}."
        )
    columns, labels = [], []
    for site in sites:
        values = np.asarray(samples[site])
        if values.ndim == 0 or not np.issubdtype(values.dtype, np.number):
            raise ValueError(
                f"{what}[{site!r}] must be numbers of shape [n, ...], got {values.dtype} of shape "
                f"{values.shape}."
            )
        indices = itertools.product(*map(range, values.shape[1:]))
        labels += [f"{site}[{','.join(map(str, i))}]" if i else site for i in indices]
        columns.append(values.reshape(len(values), -1).astype(np.float64))
    lengths = {len(values) for values in columns}
    if len(lengths) > 1 or 0 in lengths or not labels:
        raise ValueError(
            f"The arrays in {what} must have the same number of draws, and at least one: got "
            f"{sorted(lengths)}."
        )
    return np.concatenate(columns, axis=1), labels


def _shares(log_weight: Array | np.ndarray | None, num: int) -> np.ndarray:
    """Shares of the draws in the mass: ``[num]``, adding up to one."""
    if log_weight is None:
        return np.full(num, 1.0 / num)
    logs = np.asarray(log_weight, np.float64)
    if logs.shape != (num,):
        raise ValueError(
            f"log_weight must have one entry a draw, shape {(num,)}: got {logs.shape}."
        )
    if np.any(np.isnan(logs) | np.isposinf(logs)) or np.all(np.isneginf(logs)):
        raise ValueError(
            "log_weight must not be NaN or +inf, nor -inf throughout: no draw has a finite weight "
            "then. Leave it out to see the draws as they are."
        )
    weight = np.exp(logs - logs.max())
    return weight / weight.sum()


def _listed(labels: Sequence[str], most: int = 6) -> str:
    more = ", ..." if len(labels) > most else ""
    return ", ".join(map(repr, labels[:most])) + more if labels else "none"
