"""Draws against a reference: marginals and pairs of coordinates."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.plotting import style
from consistent_samplers.plotting.columns import Samples, Table, tables
from consistent_samplers.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TAILS = (0.01, 0.99)


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
    """Marginals of draws against those of a reference, one panel a coordinate.

    A panel reaches over the middle 98 % of the draws and of the reference, whichever is wider, so
    that heavy tails do not squash it. Densities are those of all draws, also where some of them
    lie outside the panel.

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

    Returns:
      Array of Axes, ``[num_panels]``.

    Raises:
      ValueError: shapes or names that do not go together, numbers that are not finite, or no
        weight above zero.
      ImportError: matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> x = np.random.default_rng(0).normal(size=(1_000, 3))
      >>> axes = plotting.plot_marginals(x[:500], x[500:], names=["a", "b", "c"])
      >>> axes.shape
      (3,)
    """
    check_integer("max_panels", max_panels)
    check_integer("num_bins", num_bins)
    table, other = tables(samples, reference, log_weight, names, dims)
    label = label or ("draws" if log_weight is None else "weighted draws")
    num = min(max_panels, len(table.labels))
    panels = style.row_of_axes(axes, num)
    for i, axis in enumerate(panels):
        _draw_marginal(axis, table, other, i, num_bins, label, reference_label)
        axis.set_xlabel(table.labels[i])
    if axes is None:
        style.figure_legend(panels[0])
    else:
        style.legend(panels[0])
    if num < len(table.labels) and axes is None:
        panels[0].figure.suptitle(
            f"The first {num} of {len(table.labels)} coordinates", fontsize="medium"
        )
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
    Ranges are those of `plot_marginals`.

    Args:
      samples: draws ``[n, dim]``, or a mapping from names to arrays ``[n, ...]``.
      reference: draws to compare with, of the same kind and coordinates, or None.
      log_weight: ``[n]`` log weights of ``samples``; without them every draw counts the same.
      names: a label for each of the ``dim`` coordinates; of a mapping, the names to show.
      dims: coordinates to show, in this order, counted over what ``names`` leaves.
      max_dims: most coordinates; the first are shown, and the figure says so.
      max_points: most points of each kind in a panel.
      num_bins: bins of the marginals.
      label: of the draws in the legend; "draws" or "weighted draws" if None.
      reference_label: of the reference.
      axes: ``[d, d]`` Axes for d coordinates; a new figure if None.

    Returns:
      Array of Axes, ``[d, d]``; those above the diagonal are left empty and hidden.

    Raises:
      ValueError: as `plot_marginals`, or fewer than two coordinates.
      ImportError: matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> x = np.random.default_rng(0).normal(size=(1_000, 3))
      >>> plotting.plot_pairs(x[:500], x[500:]).shape
      (3, 3)
    """
    check_integer("max_dims", max_dims)
    check_integer("max_points", max_points)
    check_integer("num_bins", num_bins)
    table, other = tables(samples, reference, log_weight, names, dims)
    label = label or ("draws" if log_weight is None else "weighted draws")
    num = min(max_dims, len(table.labels))
    if num < 2:
        raise ValueError("Pairs need at least two coordinates; use plot_marginals for one.")
    if axes is None:
        size = 1.2 + 1.7 * num
        figure, grid = style.pyplot().subplots(
            num, num, figsize=(size, size), layout="constrained", sharex="col"
        )
    else:
        grid = np.asarray(axes, dtype=object)
        if grid.shape != (num, num):
            raise ValueError(f"axes must have shape {(num, num)}, got {grid.shape}.")
    ranges = [_range(table, other, i) for i in range(num)]
    shown = [(other, style.REFERENCE, reference_label)] if other is not None else []
    shown.append((table, style.DRAWS, label))
    points = [(_thinned(t, max_points), color, name) for t, color, name in shown]
    for row, column in itertools.product(range(num), repeat=2):
        axis = grid[row, column]
        if column > row:
            axis.set_axis_off()
            continue
        if column == row:
            _draw_marginal(axis, table, other, row, num_bins, label, reference_label)
        else:
            for values, color, name in points:
                axis.scatter(
                    values[:, column],
                    values[:, row],
                    s=4,
                    color=color,
                    alpha=0.35,
                    linewidths=0,
                    label=name,
                    rasterized=True,
                )
            axis.set(xlim=ranges[column], ylim=ranges[row])
            style.tidy(axis)
            if column == 0:
                axis.set_ylabel(table.labels[row])
            else:
                axis.tick_params(labelleft=False)
        if row == num - 1:
            axis.set_xlabel(table.labels[column])
        else:
            axis.tick_params(labelbottom=False)
    style.legend(grid[0, 0], loc="upper left", bbox_to_anchor=(1.02, 1.0))
    # It lies over a hidden panel: room made for it would spread the columns.
    grid[0, 0].get_legend().set_in_layout(False)
    if num < len(table.labels) and axes is None:
        figure.suptitle(f"The first {num} of {len(table.labels)} coordinates", fontsize="medium")
    return grid


def _draw_marginal(
    axis: "Axes",
    table: Table,
    other: Table | None,
    index: int,
    num_bins: int,
    label: str,
    reference_label: str,
) -> None:
    edges = np.linspace(*_range(table, other, index), num_bins + 1)
    if other is not None:
        axis.stairs(
            _density(other, index, edges),
            edges,
            fill=True,
            color=style.REFERENCE,
            alpha=0.35,
            label=reference_label,
        )
    axis.stairs(_density(table, index, edges), edges, color=style.DRAWS, linewidth=1.6, label=label)
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0.0)
    style.tidy(axis, left=False)


def _density(table: Table, index: int, edges: np.ndarray) -> np.ndarray:
    """Share of the mass in each bin by its width; what lies outside is part of the whole."""
    mass, _ = np.histogram(table.values[:, index], edges, weights=table.share)
    return mass / np.diff(edges)


def _range(table: Table, other: Table | None, index: int) -> tuple[float, float]:
    ends = [_quantiles(t, index) for t in (table, other) if t is not None]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    margin = 0.04 * (high - low)
    # A coordinate that does not move still gets a panel of some width.
    least = 1e-3 * max(abs(low), abs(high)) or 1e-3
    margin = margin if high - low > least else least
    return low - margin, high + margin


def _quantiles(table: Table, index: int) -> tuple[float, float]:
    order = np.argsort(table.values[:, index])
    values, share = table.values[order, index], table.share[order]
    # Of the bars' mass; a draw of no weight says nothing of the range.
    below = np.cumsum(share) - 0.5 * share
    values, below = values[share > 0], below[share > 0]
    low, high = np.interp(_TAILS, below, values)
    return float(low), float(high)


def _thinned(table: Table, most: int) -> np.ndarray:
    """At most so many points ``[m, num_shown]``, by systematic resampling."""
    num = min(most, len(table.values))
    places = (np.arange(num) + 0.5) / num
    index = np.searchsorted(np.cumsum(table.share), places)
    return table.values[np.minimum(index, len(table.values) - 1)]
