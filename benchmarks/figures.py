"""Figures of rows: lines against a size, and dots a target."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import Row, number

_COLORS = ("#d1495b", "#30638e", "#edae49", "#66a182", "#7a5195", "#00798c", "#8c1c13", "#888888")


def lines(
    rows: Sequence[Row], *, panel: str, x: str, y: str, line: str, ylabel: str
) -> Figure | None:
    """Values against a size in log-log, a panel a target, a line a method.

    Args:
      rows: what was measured.
      panel: field that tells the panels apart.
      x: field of the size; the value is a level, not a point, where it is None.
      y: field of the value.
      line: field that tells the lines apart.
      ylabel: what the values are.
    """
    shown = [row for row in rows if np.isfinite(number(row.get(y)))]
    panels, names = (list(dict.fromkeys(row[field] for row in shown)) for field in (panel, line))
    if not shown:
        return None
    size = (4.0 * len(panels) + 1.5, 4.0)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    handles: dict[str, Any] = {}
    for axis, name in zip(axes[0], panels, strict=True):
        for i, label in enumerate(names):
            found = [row for row in shown if (row[panel], row[line]) == (name, label)]
            color, style = _COLORS[i % len(_COLORS)], "-" if i < len(_COLORS) else "--"
            points = [(row[x], number(row[y])) for row in found if row[x] is not None]
            if points:
                (handles[label],) = axis.plot(*zip(*points, strict=True), f"o{style}", color=color)
            elif found:
                handles[label] = axis.axhline(number(found[0][y]), color=color, linestyle=":")
        axis.set(xscale="log", yscale="log", title=name, xlabel=x.replace("_", " "))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel(ylabel)
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8)
    return figure


def dots(
    rows: Sequence[Row],
    label: Callable[[Row], str],
    series: Mapping[str, Callable[[Row], Any]],
    xlabel: str,
) -> Figure | None:
    """A line a row, with a dot for each series in a logarithmic scale.

    Args:
      rows: a line each.
      label: of a row.
      series: by name, ``row -> value``; none where it has none, and below 1e-4 shown there.
      xlabel: what the values are.
    """
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(10, 0.32 * len(rows) + 1.4), layout="constrained")
    for (name, value), color in zip(series.items(), _COLORS, strict=False):
        found = [(max(number(value(row)), 1e-4), i) for i, row in enumerate(rows)]
        points = [point for point in found if np.isfinite(point[0])]
        if points:
            axis.plot(*zip(*points, strict=True), "o", color=color, label=name)
    axis.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel=xlabel)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, fontsize=9, ncols=len(series))
    return figure
