"""Figure of the speed: goals, and cost against size."""

from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MET, _MISSED, _LINE = "#66a182", "#d1495b", "#333333"
_AGAINST = ("d", "batch", "steps", "components")


def figure(results: dict[str, Any]) -> Figure:
    """How much each goal is met or missed by, and the scaling in log-log.

    Args:
      results: as written by ``benchmarks.speed``.
    """
    parts = results["parts"]
    goals = [
        row
        for name, part in parts.items()
        if name != "scaling"
        for row in part["goals"]
        if row["measured"]["median"] is not None
    ]
    lines = parts.get("scaling", {"rows": []})["rows"]
    height = 0.27 * len(goals) + 1.2
    whole = plt.figure(figsize=(15, height + 4.2 * bool(lines)), layout="constrained")
    ratios = [height, 4.2] if lines else [height]
    panels = whole.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)
    _goals(panels[0, 0].subplots(), goals)
    if lines:
        axes = panels[1, 0].subplots(1, len(_AGAINST))
        for axis, against in zip(axes, _AGAINST, strict=True):
            _scaling(axis, [line for line in lines if line["against"] == against], against)
    return whole


def _goals(axis: Axes, goals: list[dict[str, Any]]) -> None:
    """Bars to the left of 1 are met."""
    for i, row in enumerate(goals):
        at_most = row["sense"] == "<="
        shares = [
            row["measured"][k] / row["limit"] if at_most else row["limit"] / row["measured"][k]
            for k in ("low", "median", "high")
        ]
        low, middle, high = (max(share, 1e-3) for share in shares)
        color = _MET if row["met"] else _MISSED
        axis.plot([1.0, middle], [i, i], color=color, linewidth=6, alpha=0.5)
        axis.plot([low, high], [i, i], color=color, linewidth=1.5)
        axis.plot(middle, i, "o", color=color, markersize=5)
    axis.axvline(1.0, color=_LINE, linewidth=1.0)
    axis.set_xscale("log")
    axis.set_yticks(range(len(goals)), [row["what"] for row in goals], fontsize=7)
    axis.set_ylim(len(goals) - 0.4, -0.6)
    axis.set_xlabel("cost relative to its goal (left of 1: met)")
    axis.spines[["top", "right"]].set_visible(False)


def _scaling(axis: Axes, lines: list[dict[str, Any]], against: str) -> None:
    for line in lines:
        label = f"{line['what']}: {line['slope']:.2f} (theory {line['theory']:g})"
        axis.loglog(line["x"], line["seconds"], "o-", markersize=4, label=label)
    axis.set_xlabel(against)
    if against == _AGAINST[0]:
        axis.set_ylabel("seconds")
    # Below: the lines fill the panel.
    axis.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axis.spines[["top", "right"]].set_visible(False)
