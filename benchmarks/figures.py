"""Figures of rows: lines against a size, and dots a target."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.report import Row, fill, number, value_at

_COLORS = ("#d1495b", "#30638e", "#edae49", "#66a182", "#7a5195", "#00798c", "#8c1c13", "#888888")


def lines(
    points: Iterable[tuple[str, str, float | None, Any]], xlabel: str, ylabel: str
) -> Figure | None:
    """Values against sizes in log-log, by panel and line; of a size that is None, a level."""
    numbers = ((panel, name, x, number(y)) for panel, name, x, y in points)
    shown = [point for point in numbers if np.isfinite(point[3])]
    if not shown:
        return None
    panels = list(dict.fromkeys(point[0] for point in shown))
    names = list(dict.fromkeys(point[1] for point in shown))
    size = (4.0 * len(panels) + 1.5, 4.0)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes[0], panels, strict=True):
        for i, name in enumerate(names):
            found = [point[2:] for point in shown if point[:2] == (panel, name)]
            color, style = _COLORS[i % len(_COLORS)], "-" if i < len(_COLORS) else "--"
            if along := [point for point in found if point[0] is not None]:
                (handles[name],) = axis.plot(*zip(*along, strict=True), f"o{style}", color=color)
            elif found:
                handles[name] = axis.axhline(found[0][1], color=color, linestyle=":")
        axis.set(xscale="log", yscale="log", title=panel, xlabel=xlabel)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel(ylabel)
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8)
    return figure


def dots(rows: Sequence[Row], label: str, series: Mapping[str, str], xlabel: str) -> Figure | None:
    """A line a row, labelled as `fill` does it, with a dot for each series: a name and its field.

    In a logarithmic scale; what is below 1e-4 is shown there.
    """
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(10, 0.32 * len(rows) + 1.4), layout="constrained")
    for (name, field), color in zip(series.items(), _COLORS, strict=False):
        found = [(max(number(value_at(row, field)), 1e-4), i) for i, row in enumerate(rows)]
        points = [point for point in found if np.isfinite(point[0])]
        if points:
            axis.plot(*zip(*points, strict=True), "o", color=color, label=name)
    axis.set_yticks(range(len(rows)), [fill(label, row) for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel=xlabel)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, fontsize=9, ncols=len(series))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Saves a figure as PNG in 256 colours: a third of the size, in a repository for ever."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)
