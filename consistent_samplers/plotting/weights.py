"""Log weights with their fitted tail, and the evidence made of them with what it is worth."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.diagnostics import (
    FINITE_VARIANCE_K,
    pareto_k_threshold,
    standard_error_is_reliable,
    weights_are_reliable,
)
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.pareto import pareto_smooth, tail_size
from consistent_samplers.plotting import style
from consistent_samplers.types import Array, Draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the draws, how many may lie left of the histogram: one weight near zero would squash it.
_LEFT_OUT = 0.002
# Below it a logarithmic scale of weights has no room for its ticks.
_LOG_SCALE_RATIO = 10.0

_BOUND_STYLES = {
    "lower": ("^", style.DRAWS, style.DRAWS, "ELBO: lower bound"),
    "lower-if-injective": ("^", style.DRAWS, "white", "ELBO: lower bound if injective"),
    "heuristic": ("X", style.NO_BOUND, style.NO_BOUND, "ELBO, heuristic: no bound"),
}


def plot_weights(
    log_weight: Array | np.ndarray, *, num_bins: int | None = None, axes: Any = None
) -> np.ndarray:
    """Log weights, and the tail of the largest with the generalised Pareto fitted to it.

    Left: the histogram of log w - log Z, with Z the mean weight; the ELBO is its mean. Right: the
    share of weights above each of the largest; the line is the distribution that
    `pareto.pareto_smooth` fits to them (Vehtari et al. 2024, JMLR 25:72), the dotted ones the
    same tail from its median on if k were at the limits: `FINITE_VARIANCE_K`, above which the
    standard error of log Z is too small, and `pareto_k_threshold`, above which log Z is unreliable.

    Args:
      log_weight: ``[n]`` log weights in nats, at least two; -inf for a weight of zero.
      num_bins: bins of the histogram; one for 20 weights if None, but 10 to 50.
      axes: two Axes, for histogram and tail; a new figure if None.

    Raises:
      ValueError: another shape, fewer than two weights, NaN or +inf, or every weight zero.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> plotting.plot_weights(0.5 * np.random.default_rng(0).normal(size=400)).shape
      (2,)
    """
    logs = jnp.asarray(log_weight)
    if logs.ndim != 1:
        raise ValueError(f"log_weight must have shape [n], got {logs.shape}.")
    if num_bins is None:
        num_bins = min(50, max(10, len(logs) // 20))
    check_integer("num_bins", num_bins)
    found = evidence(Draws(jnp.zeros((logs.shape[0], 1)), logs, bound="lower"))
    panels = style.row_of_axes(axes, 2, size=(4.8, 3.8))
    relative = np.asarray(logs, np.float64) - float(found.log_z)
    _draw_histogram(panels[0], relative, found, num_bins)
    _draw_tail(panels[1], relative, np.asarray(pareto_smooth(logs)[0], np.float64), found)
    return panels


def _draw_histogram(ax: "Axes", relative: np.ndarray, found: Evidence, num_bins: int) -> None:
    n = len(relative)
    finite = np.sort(relative[np.isfinite(relative)])
    low, high = finite[int(_LEFT_OUT * len(finite))], finite[-1]
    margin = max(0.02 * (high - low), 1e-6)
    edges = np.linspace(low - margin, high + margin, num_bins + 1)
    counts, _ = np.histogram(finite, edges)
    ax.stairs(counts / (n * np.diff(edges)), edges, fill=True, color=style.DRAWS, alpha=0.45)
    ax.axvline(0.0, color=style.ESTIMATE, linewidth=1.4, label="log Z, estimated")
    gap = float(found.elbo) - float(found.log_z)
    if math.isfinite(gap):
        label = f"ELBO, {-gap:.2g} nats below" if gap < 0 else "ELBO"
        ax.axvline(gap, color=style.DRAWS, linewidth=1.4, linestyle="--", label=label)
    ax.set(xlabel="log weight - log Z [nats]", ylabel="density [1 / nat]")
    title = f"ESS {100 * float(found.ess):.3g} % of {n:,} draws"
    left, zero = len(finite) - int(counts.sum()), n - len(finite)
    title += f"; {left} further left" if left else ""
    title += f"; {zero} of weight zero" if zero else ""
    ax.set_title(title, fontsize="medium")
    style.tidy(ax)
    style.legend(ax, loc="upper right")


def _draw_tail(ax: "Axes", relative: np.ndarray, smoothed: np.ndarray, found: Evidence) -> None:
    n = len(relative)
    order = np.argsort(relative)
    above = 1.0 - (np.arange(n) + 0.5) / n  # share of weights above each, in that order
    with np.errstate(under="ignore"):
        weight = np.exp(relative[order])
        fit = np.exp(smoothed[order] - float(found.log_z))
    # The tail that was fitted: what stands above the weight before it.
    num_tail = max(1, tail_size(n))
    first = n - num_tail
    cutoff = weight[first - 1]
    tail = first + np.flatnonzero(weight[first:] > cutoff)
    body = np.arange(max(first - 2 * num_tail, 0), first)
    body = body[weight[body] > 0.0]
    ax.plot(weight[body], above[body], ".", color=style.BASE, markersize=4, label="weights")
    ax.plot(
        weight[tail], above[tail], ".", color=style.DRAWS, markersize=5, label="the largest weights"
    )
    k = float(found.pareto_k)
    if math.isfinite(k) and len(tail) and not np.array_equal(fit[tail], weight[tail]):
        # Smoothed weights are capped at the largest, where they no longer show the fit.
        drawn = tail[fit[tail] < weight[-1]]
        ax.plot(fit[drawn], above[drawn], color=style.TRUTH, label=f"fitted, k = {k:.2f}")
        middle = tail[len(tail) // 2]
        _draw_limits(ax, cutoff, fit[middle], above[tail], above[middle], n)
    if len(body) and weight[-1] < _LOG_SCALE_RATIO * weight[body[0]]:
        left, right = weight[body[0]], weight[-1]
        margin = 0.04 * (right - left)
        ax.set_xlim(left - margin - 1e-6, right + margin + 1e-6)
    else:
        ax.set_xscale("log")
        ax.set_xlim(right=weight[-1] * 1.5)
    ax.set(xlabel="weight / mean weight", ylabel="share of weights above", yscale="log")
    ax.set_ylim(0.3 / n, None)
    ax.set_title(_tail_in_words(found), fontsize="medium")
    style.tidy(ax)
    style.legend(ax, loc="lower left")


def _draw_limits(
    ax: "Axes", cutoff: float, median: float, above: np.ndarray, above_median: float, n: int
) -> None:
    """Tails through the fitted median with k at its limits."""
    probability = np.linspace(0.5, 1.0 - 0.5 / len(above), 200)
    limits = {FINITE_VARIANCE_K: "variance ends", pareto_k_threshold(n): "mean unreliable"}
    share = above_median / 0.5 * (1.0 - probability)
    for (k, words), dashes in zip(limits.items(), ((0, (1, 1.5)), (0, (4, 2))), strict=False):
        exceedance = np.expm1(-k * np.log1p(-probability)) / k
        weight = cutoff + (median - cutoff) / exceedance[0] * exceedance
        looks: dict[str, Any] = {"color": style.REFERENCE, "linestyle": dashes, "linewidth": 1.2}
        ax.plot(weight, share, label=f"k = {k:.2g}: {words}", **looks)


def _tail_in_words(found: Evidence) -> str:
    k, threshold = float(found.pareto_k), pareto_k_threshold(found.num_samples)
    if math.isinf(k):
        return "Pareto k: too short a tail to judge"
    if not weights_are_reliable(found):
        return f"Pareto k {k:.2f} > {threshold:.2f}: mean unreliable,\nlog Z probably too low"
    if not standard_error_is_reliable(found):
        return f"Pareto k {k:.2f}: log Z of use,\nits standard error too small"
    if k > min(FINITE_VARIANCE_K, threshold):
        return f"Pareto k {k:.2f}, of weights so even\nthat their tail hardly matters"
    return f"Pareto k {k:.2f}: a light tail,\nlog Z has a standard error to rely on"


def plot_evidence(
    evidences: Mapping[Any, Evidence],
    log_z: float | None = None,
    *,
    xlabel: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """ELBO and log Z of several samplers, stages or numbers of steps, and what bounds they are.

    Bars are two standard errors. A filled triangle is a lower bound by construction, a hollow one
    where the map is injective (a ring says that it was seen to fold), a yellow cross no bound at
    all. The dot of log Z is hollow unless `diagnostics.standard_error_is_reliable`.

    Args:
      evidences: evidence by label, e.g. ``trained.stages`` or ``{1: ..., 2: ...}``.
      log_z: the true log Z in nats, or None.
      xlabel: what the labels are.
      ax: where to draw; a new figure if None.

    Raises:
      ValueError: no evidence, or one that is NaN.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((4, 1)), jnp.arange(4.0), bound="lower")
      >>> cs.plotting.plot_evidence({"one step": cs.evidence(draws)}, log_z=2.0).get_ylabel()
      'ELBO and log Z [nats]'
    """
    if not isinstance(evidences, Mapping) or not evidences:
        raise ValueError('evidences must be a mapping of at least one label: {"label": evidence}.')
    for label, e in evidences.items():
        if not isinstance(e, Evidence) or jnp.ndim(e.log_z) > 0:
            raise ValueError(f"evidences[{label!r}] must be one Evidence: cs.evidence(draws).")
        if math.isnan(float(e.elbo)) or math.isnan(float(e.log_z)):
            raise ValueError(f"evidences[{label!r}] is NaN. Check the target's log_density.")
    ax = style.one_axes(ax, (min(max(5.0, 2.5 + 0.9 * len(evidences)), 13.0), 4.0))
    if log_z is not None:
        ax.axhline(log_z, color=style.TRUTH, linewidth=1.1, label="true log Z", zorder=1)
    for place, e in enumerate(evidences.values()):
        _draw_evidence(ax, place, e)
    ax.set_xticks(range(len(evidences)), [str(label) for label in evidences])
    ax.set(xlim=(-0.6, len(evidences) - 0.4), ylabel="ELBO and log Z [nats]")
    if xlabel is not None:
        ax.set_xlabel(xlabel)
    ax.grid(axis="y", alpha=0.25)
    ax.margins(y=0.08)
    style.tidy(ax)
    style.legend_above(ax, columns=2 if len(evidences) > 3 else 1)
    return ax


def _draw_evidence(ax: "Axes", place: int, e: Evidence) -> None:
    left, right, elbo = place - 0.1, place + 0.1, float(e.elbo)
    shape: dict[str, Any] = {"linestyle": "none", "capsize": 2.5, "elinewidth": 1.2, "zorder": 3}
    marker, color, face, label = _BOUND_STYLES[e.bound]
    if math.isfinite(elbo):
        bar = 2.0 * float(e.elbo_stderr)
        ax.errorbar(
            left, elbo, bar, marker=marker, color=color, mfc=face, ms=7.5, label=label, **shape
        )
        if e.folded is not None and float(e.folded) > 0:
            label, color = "the map folds: no bound", style.NO_BOUND
            ax.plot(left, elbo, "o", color=color, mfc="none", ms=14, label=label, zorder=2)
    else:
        label = "ELBO of minus infinity: a weight is zero"
        ax.plot(left, 0.02, "v", color=color, transform=ax.get_xaxis_transform(), label=label)
    sure = standard_error_is_reliable(e)
    label = "log Z, estimated" if sure else "log Z, standard error not reliable"
    color = style.ESTIMATE
    if e.bound == "heuristic":
        label, color = "log Z, heuristic", style.NO_BOUND
    face, log_z, bar = color if sure else "white", float(e.log_z), 2.0 * float(e.log_z_stderr)
    ax.errorbar(right, log_z, bar, marker="o", color=color, mfc=face, ms=6.0, label=label, **shape)
