"""Draws against a reference: marginals and pairs of coordinates."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.plotting import style
from consistent_samplers.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Samples: TypeAlias = Array | np.ndarray | Mapping[str, Any]
"""Draws ``[n, dim]``, or a mapping from names to arrays ``[n, ...]`` as of NumPyro."""

_TAILS = (0.01, 0.99)


# Labels that a message names.
_MAX_LISTED = 6


class _Layer(NamedTuple):
    """Draws of one kind, and how they are shown."""

    values: np.ndarray  # [n, num_shown]
    share: np.ndarray  # [n], of the mass
    color: str
    label: str


def plot_marginals(
    samples: Samples,
    reference: Samples | None = None,
    *,
    log_weight: Array | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
    max_panels: int = 12,
    num_bins: int = 50,
    label: str | None = None,
    reference_label: str = "reference",
    axes: Any = None,
) -> np.ndarray:
    """Marginals of draws against those of a reference, one panel a coordinate: ``[num_panels]``.

    A panel reaches over the middle 98 % of the draws and of the reference, whichever is wider.
    Densities are those of all draws, also where some of them lie outside the panel.

    Args:
      samples: draws ``[n, dim]``, or a mapping from names to arrays ``[n, ...]``.
      reference: draws to compare with, of the same kind and coordinates, or None.
      log_weight: ``[n]`` log weights of ``samples``; without them every draw counts the same.
      names: a label for each of the ``dim`` coordinates; of a mapping, the names to show.
      dims: coordinates to show, in this order, counted over what ``names`` leaves.
      max_panels: most panels; the first coordinates are shown, and the figure says so.
      num_bins: bins of a panel.
      label: of the draws in the legend; "draws" or "weighted draws" if None.
      reference_label: of the reference.
      axes: at least as many Axes as panels, in any shape; a new figure if None.

    Raises:
      ValueError: shapes or names that do not fit, numbers not finite, or no weight above zero.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> x = np.random.default_rng(0).normal(size=(1_000, 3))
      >>> plotting.plot_marginals(x[:500], x[500:], names=["a", "b", "c"]).shape
      (3,)
    """
    check_integer("max_panels", max_panels)
    check_integer("num_bins", num_bins)
    labels, shown = _layers(samples, reference, log_weight, names, dims, label, reference_label)
    num, total = min(max_panels, len(labels)), len(labels)
    panels = style.row_of_axes(axes, num)
    for i, axis in enumerate(panels):
        _draw_marginal(axis, shown, i, num_bins)
        axis.set_xlabel(labels[i])
    if axes is not None:
        style.legend(panels[0])
        return panels
    style.legend(panels[0], of_figure=True, loc="outside upper right", ncols=len(shown))
    if num < total:
        panels[0].figure.suptitle(f"The first {num} of {total} coordinates", fontsize="medium")
    return panels


def plot_pairs(
    samples: Samples,
    reference: Samples | None = None,
    *,
    log_weight: Array | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
    max_dims: int = 5,
    max_points: int = 2_000,
    num_bins: int = 50,
    label: str | None = None,
    reference_label: str = "reference",
    axes: Any = None,
) -> np.ndarray:
    """Pairs of coordinates below the diagonal, draws over a reference, and marginals on it.

    Weighted draws are resampled for the points (systematically: the same figure every time).
    Ranges, arguments and errors are those of `plot_marginals`, except that ``max_dims`` bounds the
    coordinates, at least two, and ``max_points`` the points of each kind in a panel. The ``axes``
    given and returned are ``[d, d]`` for d coordinates, hidden above the diagonal.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> plotting.plot_pairs(np.random.default_rng(0).normal(size=(500, 3))).shape
      (3, 3)
    """
    check_integer("max_dims", max_dims)
    check_integer("max_points", max_points)
    check_integer("num_bins", num_bins)
    labels, shown = _layers(samples, reference, log_weight, names, dims, label, reference_label)
    num = min(max_dims, len(labels))
    if num < 2:
        raise ValueError("Pairs need at least two coordinates; use plot_marginals for one.")
    if axes is None:
        size = 1.2 + 1.7 * num
        figure, grid = style.pyplot().subplots(
            num, num, figsize=(size, size), layout="constrained", sharex="col"
        )
        if num < len(labels):
            figure.suptitle(f"The first {num} of {len(labels)} coordinates", fontsize="medium")
    else:
        grid = np.asarray(axes, dtype=object)
        if grid.shape != (num, num):
            raise ValueError(f"axes must have shape {(num, num)}, got {grid.shape}.")
    ranges = [_range(shown, i) for i in range(num)]
    points = [layer._replace(values=_thinned(layer, max_points)) for layer in shown]
    dots: dict[str, Any] = {"s": 4, "alpha": 0.35, "linewidths": 0, "rasterized": True}
    for row, column in itertools.product(range(num), repeat=2):
        axis = grid[row, column]
        if column > row:
            axis.set_axis_off()
            continue
        if column == row:
            _draw_marginal(axis, shown, row, num_bins)
        else:
            for x, _, color, name in points:
                axis.scatter(x[:, column], x[:, row], color=color, label=name, **dots)
            axis.set(xlim=ranges[column], ylim=ranges[row])
            style.tidy(axis)
            if column == 0:
                axis.set_ylabel(labels[row])
            else:
                axis.tick_params(labelleft=False)
        if row == num - 1:
            axis.set_xlabel(labels[column])
        else:
            axis.tick_params(labelbottom=False)
    style.legend(grid[0, 0], loc="upper left", bbox_to_anchor=(1.02, 1.0))
    # It lies over a hidden panel: room made for it would spread the columns.
    grid[0, 0].get_legend().set_in_layout(False)
    return grid


def _layers(
    samples: Samples,
    reference: Samples | None,
    log_weight: Array | np.ndarray | None,
    names: Sequence[str] | None,
    dims: Sequence[int] | None,
    label: str | None,
    reference_label: str,
) -> tuple[list[str], list[_Layer]]:
    """Names of the coordinates shown; the reference, if any, and the draws over it."""
    values, labels = _columns("samples", samples, names)
    share = _shares(log_weight, len(values))
    index = style.chosen(dims, len(labels))
    label = label or ("draws" if log_weight is None else "weighted draws")
    draws = _Layer(values[:, index], share, style.DRAWS, label)
    style.check_finite("samples", draws.values[share > 0])
    shown = [labels[i] for i in index]
    if reference is None:
        return shown, [draws]
    if isinstance(samples, Mapping) != isinstance(reference, Mapping):
        raise ValueError("samples and reference must both be arrays, or both mappings of names.")
    sites = list(samples) if isinstance(samples, Mapping) and names is None else names
    values, other_labels = _columns("reference", reference, sites)
    if other_labels != labels:
        ours, theirs = _listed(labels), _listed(other_labels)
        raise ValueError(
            f"samples have coordinates {ours}, reference {theirs}. Give both the same."
        )
    share = _shares(None, len(values))
    other = _Layer(values[:, index], share, style.REFERENCE, reference_label)
    style.check_finite("reference", other.values)
    return shown, [other, draws]


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
            f"{what} must be numbers of shape [n, dim] or a mapping, got {values.dtype} of shape "
            f"{values.shape}. Of Draws, pass draws.position and log_weight=draws.log_weight."
        )
    return values.astype(np.float64), style.coordinate_labels(names, values.shape[1], what)


def _columns_of_sites(
    what: str, samples: Mapping[str, Any], names: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    sites = list(samples if names is None else names)
    unknown = [name for name in sites if name not in samples]
    if unknown or not sites:
        missing = f"{_listed(unknown)} not among {_listed(list(samples))}"
        raise ValueError(f"{what} must hold at least one name, and all of names: {missing}.")
    columns, labels = [], []
    for site in sites:
        values = np.asarray(samples[site])
        if values.ndim == 0 or not np.issubdtype(values.dtype, np.number):
            got = f"{values.dtype} of shape {values.shape}"
            raise ValueError(f"{what}[{site!r}] must be numbers of shape [n, ...], got {got}.")
        for index in np.ndindex(values.shape[1:]):
            labels.append(f"{site}[{','.join(map(str, index))}]" if index else site)
        columns.append(values.reshape(len(values), -1).astype(np.float64))
    lengths = {len(values) for values in columns}
    if len(lengths) > 1 or 0 in lengths or not labels:
        got = f"got {sorted(lengths)}"
        raise ValueError(f"{what} must have the same number of draws throughout, not 0: {got}.")
    return np.concatenate(columns, axis=1), labels


def _shares(log_weight: Array | np.ndarray | None, num: int) -> np.ndarray:
    """Shares of the draws in the mass: ``[num]``, adding up to one."""
    if log_weight is None:
        return np.full(num, 1.0 / num)
    logs = np.asarray(log_weight, np.float64)
    if logs.shape != (num,):
        raise ValueError(f"log_weight must have one entry a draw, {num}: got shape {logs.shape}.")
    if np.any(np.isnan(logs) | np.isposinf(logs)) or np.all(np.isneginf(logs)):
        raise ValueError(
            "log_weight must not be NaN or +inf, nor -inf throughout: no draw has a finite weight "
            "then. Leave it out to see the draws as they are."
        )
    weight = np.exp(logs - logs.max())
    return weight / weight.sum()


def _listed(labels: Sequence[str]) -> str:
    more = ", ..." if len(labels) > _MAX_LISTED else ""
    return ", ".join(map(repr, labels[:_MAX_LISTED])) + more if labels else "none"


def _draw_marginal(axis: "Axes", shown: list[_Layer], index: int, num_bins: int) -> None:
    """Densities of a coordinate; what lies outside of the bins is part of the whole."""
    edges = np.linspace(*_range(shown, index), num_bins + 1)
    for values, share, color, label in shown:
        mass, _ = np.histogram(values[:, index], edges, weights=share)
        looks: dict[str, Any] = {"linewidth": 1.6}
        if color == style.REFERENCE:
            looks = {"fill": True, "alpha": 0.35}
        axis.stairs(mass / np.diff(edges), edges, color=color, label=label, **looks)
    axis.set(xlim=(edges[0], edges[-1]), ylim=(0.0, None))
    style.tidy(axis, left=False)


def _range(shown: list[_Layer], index: int) -> tuple[float, float]:
    ends = []
    for layer in shown:
        order = np.argsort(layer.values[:, index])
        values, share = layer.values[order, index], layer.share[order]
        # Of the bars' mass; a draw of no weight says nothing of the range.
        below = np.cumsum(share) - 0.5 * share
        ends.append(np.interp(_TAILS, below[share > 0], values[share > 0]))
    low, high = float(np.min(ends)), float(np.max(ends))
    margin = 0.04 * (high - low)
    # A coordinate that does not move still gets a panel of some width.
    least = 1e-3 * max(abs(low), abs(high)) or 1e-3
    margin = margin if high - low > least else least
    return low - margin, high + margin


def _thinned(layer: _Layer, most: int) -> np.ndarray:
    """At most so many points ``[m, num_shown]``, by systematic resampling."""
    num = min(most, len(layer.values))
    places = (np.arange(num) + 0.5) / num
    index = np.searchsorted(np.cumsum(layer.share), places)
    return layer.values[np.minimum(index, len(layer.values) - 1)]
