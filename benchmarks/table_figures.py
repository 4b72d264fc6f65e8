"""Figures of the tables, of the heuristic and of the learned kernels."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks import registry
from benchmarks.rows import number

_TRUTH = "#333333"
_COLORS = {
    "base": "#888888",
    "nuts": "#000000",
    "dis": "#30638e",
    "dds": "#00798c",
    "pis": "#3c91e6",
    "cdds": "#edae49",
    "scds": "#7a5195",
    "osds": "#d1495b",
    "osds-calibrated": "#8c1c13",
    "dis-learned": "#66a182",
    "progressive": "#c98b2b",
    "recipe": "#2e282a",
}
_BOUNDS = {
    "lower-if-injective": ("#d1495b", "o-", "exact determinant (bound if injective)"),
    "lower": ("#30638e", "s-", "stochastic path (bound)"),
    "heuristic": ("#edae49", "^--", "the papers' trace (no bound)"),
}


def _step_axis(axis: Axes, most: int) -> None:
    """Powers of two, written as they are."""
    axis.set_xscale("log", base=2)
    ticks = [2**k for k in range(8) if 2**k <= most]
    axis.set_xticks(ticks, [str(k) for k in ticks])
    axis.set_xticks([], minor=True)


def _largest_step(rows: Sequence[dict[str, Any]]) -> int:
    return max([max(row["settings"]["steps"]) for row in rows], default=1)


def all_figures(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The figures of a table by label."""
    figures = {"quality": quality(rows)}
    if name == "osds":
        figures["elbo"] = elbo(rows)
    for target in dict.fromkeys(row["target"] for row in rows):
        if registry.TARGETS[target].plotted is not None:
            figures[f"samples-{target}"] = samples(
                target, [row for row in rows if row["target"] == target]
            )
    return figures


def quality(rows: Sequence[dict[str, Any]]) -> Figure:
    """Sinkhorn cost against network evaluations, one panel a target, each method's own draws."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure, axes = plt.subplots(
        1, len(targets), figsize=(4.2 * len(targets) + 1.5, 4), layout="constrained", squeeze=False
    )
    handles: dict[str, Any] = {}
    for axis, target in zip(axes[0], targets, strict=True):
        for row in (row for row in rows if row["target"] == target):
            _quality_line(axis, row, handles)
        floors = [
            number(row.get("noise_floor", {}).get("sinkhorn"))
            for row in rows
            if row["target"] == target
        ]
        handles["reference to reference"] = axis.axhline(
            floors[0], color=_TRUTH, linestyle=":", linewidth=1.2
        )
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.set(title=target, xlabel="network evaluations a draw")
        _step_axis(axis, _largest_step([row for row in rows if row["target"] == target]))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("Sinkhorn cost (lower is better)")
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _quality_line(axis: Axes, row: dict[str, Any], handles: dict[str, Any]) -> None:
    color = _COLORS.get(row["method"].removesuffix(".paper"), "#555555")
    paper = row["method"].endswith(".paper")
    kind = row["summary"]["distances"][0]["kind"]
    found = [d for d in row["summary"]["distances"] if d["kind"] == kind]
    steps = [d["num_steps"] for d in found]
    values = [number(d.get("sinkhorn")) for d in found]
    errors = [np.nan_to_num(number(d.get("sinkhorn_stderr"))) for d in found]
    if row["method"] in ("base", "nuts"):
        # Neither evaluates a network: a level, not a point.
        style = (0, (4, 2)) if row["method"] == "base" else (0, (1, 1))
        handles[row["method"]] = axis.axhline(values[0], color=color, linestyle=style, alpha=0.8)
        return
    handles[row["method"]] = axis.errorbar(
        steps,
        values,
        errors,
        color=color,
        marker="o",
        markersize=4,
        capsize=2,
        linestyle="--" if paper else "-",
    )


def elbo(rows: Sequence[dict[str, Any]]) -> Figure:
    """ELBO of the three kinds of evidence against number of steps; the true log Z as a line."""
    shown = [r for r in rows if r["method"].split(".")[0].split("-")[0] == "osds"]
    targets = list(dict.fromkeys(row["target"] for row in shown))
    names = list(dict.fromkeys(row["method"] for row in shown))
    figure, axes = plt.subplots(
        len(names),
        len(targets),
        figsize=(3.8 * len(targets) + 1.0, 3.1 * len(names) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_visible(False)
    handles: dict[str, Any] = {}
    for row in shown:
        axis = axes[names.index(row["method"]), targets.index(row["target"])]
        axis.set_visible(True)
        truth = number(row["true_log_z"])
        for bound, (color, style, words) in _BOUNDS.items():
            found = [e for e in row["summary"]["evidence"] if e["bound"] == bound]
            steps = [e["num_steps"] for e in found]
            values = [number(e.get("elbo")) - truth for e in found]
            (handles[words],) = axis.plot(steps, values, style, color=color, markersize=4)
            folded = [
                (k, v)
                for k, v, e in zip(steps, values, found, strict=True)
                if number(e.get("folded")) > 0.001
            ]
            if folded:
                (handles["map folds: no bound"],) = axis.plot(
                    *zip(*folded, strict=True),
                    "o",
                    markerfacecolor="white",
                    markeredgecolor=color,
                    markersize=8,
                    linestyle="none",
                )
        handles["true log Z"] = axis.axhline(0.0, color=_TRUTH, linewidth=1.0)
        _step_axis(axis, _largest_step([row]))
        shown_gaps = [number(e.get("elbo")) - truth for e in row["summary"]["evidence"]]
        if max((abs(v) for v in shown_gaps if np.isfinite(v)), default=0.0) > 3.0:
            axis.set_yscale("symlog", linthresh=1.0)
        axis.set_title(f"{row['method']} on {row['target']}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("ELBO - true log Z [nats]")
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        ncols=min(len(handles), max(1, len(targets) + 1)),
    )
    return figure


def samples(target: str, rows: Sequence[dict[str, Any]]) -> Figure:
    """Draws against the target in the plane: a panel a method, at one step or at the most."""
    entry = registry.TARGETS[target]
    assert entry.plotted is not None
    panels: list[tuple[str, np.ndarray]] = []
    built = entry.build()
    if built.sample is not None:
        panels.append(("exact draws", np.asarray(built.sample(jax.random.key(0), 600))))
    for row in rows:
        found = row.get("shown", [])
        kind = row["summary"]["distances"][0]["kind"]
        mine = [shown for shown in found if shown["kind"] == kind]
        if not mine:
            continue
        # Iterative samplers are made for many steps, the others for one.
        iterative = row["method"].split(".")[0] in ("dis", "dds", "pis")
        shown = mine[-1] if iterative else mine[0]
        steps = shown["num_steps"]
        words = "" if row["method"] in ("base", "nuts") else f", {steps} step" + "s" * (steps > 1)
        panels.append((row["method"] + words, np.array(shown["position"], np.float64)))
    columns = min(5, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 2.75 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    half = entry.plotted
    line = np.linspace(-half, half, 161)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2).astype(np.float32)
    log_density = np.asarray(jax.vmap(built.log_density)(jnp.asarray(grid))).reshape(161, 161)
    # To a power below one: thin rings and weak modes show as well.
    shade = np.exp(0.5 * (log_density - log_density.max()))
    for axis, (title, points) in zip(axes.flat, panels, strict=False):
        axis.imshow(
            shade, extent=(-half, half, -half, half), origin="lower", cmap="Greys", alpha=0.6
        )
        axis.scatter(points[:, 0], points[:, 1], s=3, color="#d1495b", alpha=0.6, linewidths=0)
        axis.set(xlim=(-half, half), ylim=(-half, half))
        axis.set_title(title, fontsize=9)
    figure.suptitle(target)
    return figure


def heuristic(results: dict[str, Any]) -> Figure:
    """Heuristic ELBO minus true log Z, one line a target, one dot a number of steps."""
    rows = results["rows"]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    steps = sorted({row["num_steps"] for row in rows})
    figure, axis = plt.subplots(figsize=(8, 0.38 * len(targets) + 1.6), layout="constrained")
    for k, color, marker in zip(steps, ("#d1495b", "#edae49", "#30638e"), "os^", strict=False):
        found = [row for row in rows if row["num_steps"] == k]
        axis.scatter(
            [number(row.get("elbo_excess")) for row in found],
            [targets.index(row["target"]) for row in found],
            color=color,
            marker=marker,
            s=28,
            label=f"{k} step" + "s" * (k > 1),
            zorder=3,
        )
    axis.axvline(0.0, color=_TRUTH, linewidth=1.0)
    axis.axvspan(0.0, 1e12, color="#d1495b", alpha=0.08, linewidth=0)
    values = [number(row.get("elbo_excess")) for row in rows]
    finite = [v for v in values if np.isfinite(v)]
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_xlim(2 * min(-1.0, *finite, 0.0), 2 * max(1.0, *finite, 0.0))
    axis.set_yticks(range(len(targets)), targets)
    axis.set_ylim(len(targets) - 0.4, -0.6)
    axis.grid(axis="y", alpha=0.25)
    axis.set_xlabel("heuristic ELBO - true log Z [nats]; a bound would stay left of 0")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper right", fontsize=9, ncols=3)
    return figure


def kernels(results: dict[str, Any]) -> Figure:
    """Gap of the path ELBO to the true log Z against steps for each kind of kernels."""
    targets = list(results["targets"])
    figure, axes = plt.subplots(
        1, len(targets), figsize=(4.8 * len(targets), 3.8), layout="constrained", squeeze=False
    )
    styles = {
        "paper": ("#888888", "^:", "the paper's kernels"),
        "fixed": ("#30638e", "s--", "fixed kernels"),
        "learned": ("#d1495b", "o-", "learned kernels"),
    }
    for axis, target in zip(axes[0], targets, strict=True):
        truth = results["targets"][target]["true_log_z"]
        for kind, (color, style, words) in styles.items():
            found = [
                s for s in results["summary"] if s["target"] == target and s["kernels"] == kind
            ]
            axis.plot(
                [s["num_steps"] for s in found],
                [max(truth - number(s.get("elbo")), 1e-3) for s in found],
                style,
                color=color,
                label=words,
                markersize=5,
            )
        gap = truth - number(results["targets"][target]["base_elbo"])
        axis.axhline(max(gap, 1e-3), color=_TRUTH, linestyle=":", label="base alone")
        _step_axis(axis, max(row["num_steps"] for row in results["rows"]))
        axis.set(yscale="log", title=target, xlabel="steps")
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("true log Z - ELBO [nats]")
    axes[0, -1].legend(frameon=False, fontsize=9)
    return figure
