"""Figures of the benchmarks."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.models import Posterior
from consistent_samplers.estimate import Evidence
from consistent_samplers.recipe import TrainedSampler

ONE_STEP, NUTS, TRUTH = "#d1495b", "#30638e", "#333333"


def posterior_figure(
    name: str,
    posterior: Posterior,
    one_step: dict[str, Any],
    nuts: dict[str, Any],
    trained: TrainedSampler,
    evidence: Evidence,
) -> Figure:
    """Marginals of both samplers, three pair plots and the training curve.

    Args:
      name: title.
      posterior: which scalars to show, and the true log Z.
      one_step: equally weighted one-step draws, by site.
      nuts: NUTS draws, by site.
      trained: histories and stages.
      evidence: of the draws shown.
    """

    def scalar(samples: dict[str, Any], site: str, index: tuple[int, ...]) -> np.ndarray:
        values: Any = np.asarray(samples[site])
        return values[(slice(None), *index)]

    ours = [scalar(one_step, site, index) for site, index in posterior.shown]
    theirs = [scalar(nuts, site, index) for site, index in posterior.shown]
    labels = [site + "".join(f"[{i}]" for i in index) for site, index in posterior.shown]

    figure, axes = plt.subplots(3, 4, figsize=(13, 9), layout="constrained")
    for axis, a, b, label in zip(axes[:2].flat, ours, theirs, labels, strict=True):
        _marginal(axis, a, b, label)
    axes[0, 0].legend(frameon=False, fontsize=9)
    for axis, (i, j) in zip(axes[2, :3], _telling_pairs(theirs), strict=True):
        _pair(axis, (ours[i], ours[j]), (theirs[i], theirs[j]), (labels[i], labels[j]))
    _training_curve(axes[2, 3], trained, posterior.log_z)
    figure.suptitle(
        f"{name}: one network evaluation a draw against NUTS\n"
        f"log Z {float(evidence.log_z):.3f} ± {float(evidence.log_z_stderr):.3f}, "
        f"ELBO {float(evidence.elbo):.3f} (true log Z {posterior.log_z:.3f}), "
        f"ESS {float(evidence.ess):.0%}, trained in {trained.training_seconds:.0f} s",
        fontsize=12,
    )
    return figure


def _telling_pairs(draws: Sequence[np.ndarray], num: int = 3) -> list[tuple[int, int]]:
    """The pairs with the strongest dependence, in location or in scale."""
    ranks = np.argsort(np.argsort(np.stack(draws), axis=1), axis=1) / draws[0].shape[0] - 0.5
    location = np.abs(np.corrcoef(ranks))
    scale = np.abs(np.corrcoef(np.concatenate([ranks, np.abs(ranks)]))[: len(ranks), len(ranks) :])
    strength = np.triu(np.maximum(location, np.maximum(scale, scale.T)), 1)
    order = np.argsort(strength, axis=None)[::-1][:num]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, strength.shape), strict=True)]


def goals_figure(results: dict[str, Any]) -> Figure:
    """Gap of each ELBO to the true log Z, target by target, with what is asked of one step.

    Args:
      results: of the evidence benchmark; the first seed of each target is shown.
    """
    rows = [row for row in results["rows"] if row["seed"] == 0]
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    floor = 1e-4
    styles = {
        "base alone": ("o", "#999999"),
        "AutoIAFNormal": ("s", NUTS),
        "AutoBNAFNormal": ("D", "#edae49"),
        "one step": ("o", ONE_STEP),
    }
    for label, (marker, color) in styles.items():
        places, gaps = [], []
        for place, row in enumerate(rows):
            elbo = {"base alone": row["base_elbo"], "one step": row["elbo"]}.get(label)
            if elbo is None:
                elbo = (row["baselines"].get(label) or {}).get("elbo")
            if elbo is not None and np.isfinite(float(elbo)):
                places.append(place)
                gaps.append(max(row["true_log_z"] - float(elbo), floor))
        axis.plot(gaps, places, marker, color=color, label=label, markersize=7)
    goals = [row["goal"]["elbo_gap"] for row in rows]
    axis.plot(goals, range(len(rows)), "|", color=TRUTH, label="asked of one step", markersize=14)
    axis.set_yticks(range(len(rows)), [f"{row['target']} ({row['dim']}-d)" for row in rows])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel=f"true log Z - ELBO [nats]; {floor:g} stands for less")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=5)
    return figure


def _marginal(axis: Axes, ours: np.ndarray, theirs: np.ndarray, label: str) -> None:
    low, high = np.quantile(theirs, [0.002, 0.998])
    bins = np.linspace(low, high, 45).tolist()
    axis.hist(theirs, bins, density=True, color=NUTS, alpha=0.35, label="NUTS")
    axis.hist(
        ours, bins, density=True, histtype="step", color=ONE_STEP, linewidth=1.6, label="one step"
    )
    axis.set(xlabel=label, yticks=[])
    axis.spines[["left", "top", "right"]].set_visible(False)


def _pair(
    axis: Axes,
    ours: tuple[np.ndarray, np.ndarray],
    theirs: tuple[np.ndarray, np.ndarray],
    labels: tuple[str, str],
) -> None:
    for (x, y), color, label in ((theirs, NUTS, "NUTS"), (ours, ONE_STEP, "one step")):
        axis.scatter(x[:2000], y[:2000], s=3, color=color, alpha=0.35, linewidths=0, label=label)
    x, y = theirs
    axis.set(
        xlabel=labels[0],
        ylabel=labels[1],
        xlim=np.quantile(x, [0.001, 0.999]),
        ylim=np.quantile(y, [0.001, 0.999]),
    )
    axis.spines[["top", "right"]].set_visible(False)


def _training_curve(axis: Axes, trained: TrainedSampler, log_z: float) -> None:
    """Gap of the ELBO to log Z over the stages, and of the base."""
    offset = 0
    styles = {
        "distilled": ("OSDS, SDE paths", NUTS),
        "calibrated": ("calibration, one step", ONE_STEP),
    }
    for stage, history in trained.histories.items():
        name, color = styles[stage]
        window = 25
        smooth = np.convolve(log_z - history.elbo, np.ones(window) / window, mode="valid")
        steps = offset + np.arange(window - 1, len(history.elbo))
        axis.plot(steps, np.maximum(smooth, 1e-3), color=color, label=name)
        offset += len(history.elbo)
    base_gap = log_z - float(trained.stages["base"].elbo)
    axis.axhline(base_gap, color=TRUTH, linestyle=":", linewidth=1.2, label="base alone")
    axis.set(xlabel="iteration", ylabel="log Z - ELBO [nats]", yscale="log")
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    axis.spines[["top", "right"]].set_visible(False)


def evidence_figure(results: dict[str, Any]) -> Figure:
    """ELBO of the three kinds of evidence against the number of steps, one panel a sampler.

    Args:
      results: as written by ``benchmarks.osds_paper``.
    """
    samplers = results["samplers"]
    figure, axes = plt.subplots(
        1, len(samplers), figsize=(5.5 * len(samplers), 4.2), sharey=True, layout="constrained"
    )
    styles = {
        "lower-if-injective": (ONE_STEP, "o-", "exact determinant (bound if injective)"),
        "lower": (NUTS, "s-", "stochastic path (bound)"),
        "heuristic": ("#edae49", "^--", "paper's trace (no bound)"),
    }
    for axis, (label, sampler) in zip(axes, samplers.items(), strict=True):
        for bound, (color, style, words) in styles.items():
            rows = [row for row in sampler["rows"] if row["bound"] == bound]
            axis.plot(
                [row["num_steps"] for row in rows],
                [row["elbo"] - results["true_log_z"] for row in rows],
                style,
                color=color,
                label=words,
                markersize=4,
            )
        folded = [r for r in sampler["rows"] if r["folded"] is not None and r["folded"] > 0.001]
        axis.plot(
            [row["num_steps"] for row in folded],
            [row["elbo"] - results["true_log_z"] for row in folded],
            "o",
            markerfacecolor="white",
            markeredgecolor=ONE_STEP,
            markersize=8,
            label="map folds: no bound",
        )
        axis.axhline(0.0, color=TRUTH, linewidth=1.0)
        axis.axhline(
            results["base_alone"]["elbo"] - results["true_log_z"],
            color=TRUTH,
            linestyle=":",
            label="base alone",
        )
        axis.set_xscale("log", base=2)
        axis.set_yscale("symlog", linthresh=1.0)
        axis.set(xlabel="steps (network evaluations a draw)", title=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ELBO - true log Z [nats]")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure
