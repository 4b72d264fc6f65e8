"""Curves: training over its iterations, and quality over the number of steps."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.plotting import style
from consistent_samplers.recipe import TrainedSampler
from consistent_samplers.training import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve: TypeAlias = Sequence[Any]
"""``(num_steps [n], values [n])``, and standard errors ``[n]`` as a third."""

_Stages: TypeAlias = dict[str, dict[str, np.ndarray]]  # arrays by quantity, by stage

# In this order; what a history has besides is shown after them.
_QUANTITIES = {
    "elbo": "ELBO [nats]",
    "loss": "loss",
    "state_consistency": "state consistency",
    "volume_consistency": "volume consistency [nats²]",
    "monotonicity_penalty": "monotonicity penalty",
    "folded": "share folded",
    "gradient_norm": "gradient norm",
}
# Settings of an iteration rather than what came of it.
_SETTINGS = ("consistency_weight", "num_steps", "max_step", "time", "step_size")
_LOGARITHMIC = ("state_consistency", "volume_consistency", "gradient_norm")
# Single iterations of these spike; of the others their mean is what counts.
_MEDIANS = ("loss", "gradient_norm")
# Share of the running means that a linear scale may leave out at the bad end: the first iterations
# are often off by thousands of nats.
_CUT = 0.04


def plot_training(
    history: Any,
    *,
    log_z: float | None = None,
    quantities: Sequence[str] | None = None,
    window: int = 25,
    axes: Any = None,
) -> np.ndarray:
    """Training curves, one panel a quantity: every iteration faintly, and running means.

    Of the loss and the gradient's norm, where single iterations spike, running medians. The scale
    of the loss leaves out its highest few per cent, that of the ELBO its lowest.

    Args:
      history: ``FitResult.history`` (or the `FitResult`), or a mapping from stages to histories
        such as ``TrainedSampler.histories`` (or the `TrainedSampler`), drawn one after another.
      log_z: the true log Z in nats, drawn with the ELBO, or None.
      quantities: fields of the history to show; if None, all but its settings.
      window: iterations of a running mean or median.
      axes: at least as many Axes as panels; a new figure if None.

    Raises:
      ValueError: no iterations, an unknown quantity, or one without a finite value.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> from consistent_samplers.algorithms.on_paths import PathInfo
      >>> decay = np.exp(-np.arange(200) / 40)
      >>> history = PathInfo(loss=decay, elbo=-decay, num_steps=0 * decay, gradient_norm=decay)
      >>> [ax.get_title() for ax in plotting.plot_training(history, log_z=0.0)]
      ['ELBO [nats]', 'loss', 'gradient norm']
    """
    check_integer("window", window)
    stages = _stages(history)
    shown = _quantities(stages, quantities)
    panels = style.row_of_axes(axes, len(shown), size=(3.9, 3.0), columns=3)
    for ax, quantity in zip(panels, shown, strict=True):
        _draw_quantity(ax, stages, quantity, window, log_z if quantity == "elbo" else None)
    if len(stages) > 1 or log_z is not None:
        style.legend(panels[0], loc="lower right")
    return panels


def _stages(history: Any) -> _Stages:
    if isinstance(history, FitResult):
        history = history.history
    elif isinstance(history, TrainedSampler):
        history = history.histories
    stages: _Stages = {}
    named = history if isinstance(history, Mapping) else {"training": history}
    for name, info in named.items():
        if not hasattr(info, "_asdict"):
            kind = type(info).__name__
            raise ValueError(f"history must be that of cs.fit, or several by stage, got {kind}.")
        fields = info._asdict().items()
        stages[str(name)] = {key: np.atleast_1d(np.asarray(x, np.float64)) for key, x in fields}
    if not any(len(values) for fields in stages.values() for values in fields.values()):
        raise ValueError("history holds no iterations: there is nothing to plot.")
    return stages


def _quantities(stages: _Stages, quantities: Sequence[str] | None) -> list[str]:
    fields = [item for stage in stages.values() for item in stage.items()]
    finite = list(dict.fromkeys(name for name, values in fields if np.isfinite(values).any()))
    if quantities is None:
        order = dict.fromkeys([*_QUANTITIES, *finite])
        shown = [name for name in order if name in finite and name not in _SETTINGS]
        if not shown:
            raise ValueError("history holds no finite number: training met NaN from the start.")
        return shown
    wrong = not set(quantities) <= set(finite)
    if wrong or not quantities or isinstance(quantities, str):
        known = f"fields of the history with finite values, {sorted(finite)}"
        raise ValueError(f"quantities must be {known}; got {quantities!r}.")
    return list(quantities)


def _draw_quantity(
    ax: "Axes", stages: _Stages, quantity: str, window: int, log_z: float | None
) -> None:
    offset, smooth = 0, []
    for i, (name, fields) in enumerate(stages.items()):
        # The last stage is what draws.
        color = style.CYCLE[(len(stages) - 1 - i) % len(style.CYCLE)]
        length = max(len(values) for values in fields.values())
        if quantity in fields:
            iteration = offset + np.arange(length)
            smooth.append(_running(fields[quantity], window, quantity in _MEDIANS))
            ax.plot(iteration, fields[quantity], color=color, alpha=0.25, linewidth=0.6)
            ax.plot(iteration, smooth[-1], color=color, linewidth=1.5, label=name)
        offset += length
        if i < len(stages) - 1:
            ax.axvline(offset, color=style.BASE, linestyle=":", linewidth=1.0)
    ax.set(xlabel="iteration", xlim=(0, max(offset - 1, 1)))
    levels = np.concatenate(smooth)
    _set_scale(ax, quantity, levels[np.isfinite(levels)], log_z)
    if log_z is not None:
        ax.axhline(log_z, color=style.TRUTH, linewidth=1.1, label="true log Z")
    ax.set_title(_QUANTITIES.get(quantity, quantity.replace("_", " ")), fontsize="medium")
    style.tidy(ax)


def _set_scale(ax: "Axes", quantity: str, levels: np.ndarray, log_z: float | None) -> None:
    """The scale and range of smoothed ``levels [n]``, finite numbers."""
    positive = levels[levels > 0.0]
    if quantity in _LOGARITHMIC and len(positive):
        # What is zero to begin with grows through many decades, of which the last matter.
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(0.5 * np.quantile(positive, _CUT), 2.0 * positive.max())
        return
    low, high = levels.min(), levels.max()
    if quantity == "elbo":
        low = np.quantile(levels, _CUT)
    elif quantity == "loss":
        high = np.quantile(levels, 1.0 - _CUT)
    if log_z is not None:
        low, high = min(low, log_z), max(high, log_z)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    never_negative = quantity not in ("elbo", "loss") and low >= 0.0
    # A line along zero is to be seen as well.
    ax.set_ylim(-0.3 * margin if never_negative else low - margin, high + margin)


def _running(values: np.ndarray, window: int, median: bool) -> np.ndarray:
    """Mean or median of the last ``window`` finite values: ``[n]``, NaN where there are none."""
    finite = np.where(np.isfinite(values), values, np.nan)
    padded = np.pad(finite, (window - 1, 0), constant_values=np.nan)
    rows = np.lib.stride_tricks.sliding_window_view(padded, window)
    with warnings.catch_warnings(action="ignore"):  # of rows of NaN alone
        return (np.nanmedian if median else np.nanmean)(rows, axis=1)


def plot_quality(
    curves: Mapping[str, Curve] | Curve,
    *,
    reference: float | Mapping[str, float] | None = None,
    ylabel: str = "quality",
    xlabel: str = "network evaluations a draw",
    ax: "Axes | None" = None,
) -> "Axes":
    """A figure of merit over the number of steps, for one or several methods.

    Both scales are logarithmic; that of the values is linear where any of them is not positive.
    Bars are two standard errors.

    Args:
      curves: ``(num_steps, values)`` or ``(num_steps, values, stderr)``, arrays ``[n]``; or a
        mapping from methods to such tuples. Values that are NaN are left out.
      reference: a level to compare with (what exact draws reach, the true log Z), or a mapping
        from labels to levels.
      ylabel: what the values are, with their unit.
      xlabel: what the steps are.
      ax: where to draw; a new figure if None.

    Raises:
      ValueError: no curve, shapes that do not fit, steps that are not positive, or no finite value.

    Example:
      >>> from consistent_samplers import plotting
      >>> curves = {"ours": ([1, 2], [0.4, 0.2]), "theirs": ([1, 2], [9.0, 3.0])}
      >>> plotting.plot_quality(curves, reference={"exact": 0.1}, ylabel="cost").get_yscale()
      'log'
    """
    named = curves if isinstance(curves, Mapping) else {"": curves}
    if not named:
        raise ValueError('curves must hold at least one method: {"name": (num_steps, values)}.')
    checked = {str(name): _checked_curve(str(name), curve) for name, curve in named.items()}
    if not isinstance(reference, Mapping):
        reference = {} if reference is None else {"reference": reference}
    levels = {str(name): float(level) for name, level in reference.items()}
    for name, level in levels.items():
        if not math.isfinite(level):
            raise ValueError(f"The reference {name!r} must be finite, got {level}.")
    ax = style.one_axes(ax)
    for i, (name, (steps, values, stderr)) in enumerate(checked.items()):
        # A further round of the colours has other markers and dashes.
        later, place = divmod(i, len(style.CYCLE))
        marker = style.MARKERS[(i + later) % len(style.MARKERS)]
        looks: dict[str, Any] = {"marker": marker, "markersize": 5, "capsize": 2.5}
        looks |= {"color": style.CYCLE[place], "ls": "--" if later else "-"}
        bars = None if stderr is None else 2.0 * stderr
        ax.errorbar(steps, values, bars, label=name or None, **looks)
    dashes = itertools.cycle((":", "--", "-.", (0, (1, 3))))
    for (name, level), dash in zip(levels.items(), dashes, strict=False):
        ax.axhline(level, color=style.TRUTH, linestyle=dash, linewidth=1.2, label=name)
    shown = np.concatenate([values for _, values, _ in checked.values()] + [[*levels.values()]])
    if np.all(shown > 0.0):
        ax.set_yscale("log", nonpositive="clip")
        if shown.max() < 20.0 * shown.min():
            from matplotlib.ticker import MaxNLocator

            # Powers of ten alone would hardly label such a range.
            ax.yaxis.set_major_locator(MaxNLocator(6))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
    _powers_of_two(ax, np.concatenate([steps for steps, _, _ in checked.values()]))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    style.tidy(ax)
    style.legend(ax)
    return ax


def _checked_curve(name: str, curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A curve by ascending number of steps, without its NaNs."""
    what = f"The curve {name!r}" if name else "The curve"
    if not isinstance(curve, Sequence) or isinstance(curve, str) or len(curve) not in (2, 3):
        raise ValueError(f"{what} must be (num_steps, values) or (num_steps, values, stderr).")
    parts = [np.asarray(part, np.float64) for part in curve if part is not None]
    if len(parts) < 2 or any(p.ndim != 1 or p.shape != parts[0].shape for p in parts):
        shapes = [part.shape for part in parts]
        raise ValueError(f"{what} must be of flat arrays of one length, got shapes {shapes}.")
    steps, values = parts[0], parts[1]
    if not np.all(steps > 0) or not np.all(np.isfinite(steps)):
        raise ValueError(
            f"{what} has steps that are not positive; give what takes no step as a reference."
        )
    kept = np.argsort(steps, kind="stable")
    kept = kept[np.isfinite(values[kept])]
    if not len(kept):
        raise ValueError(f"{what} has no finite value.")
    stderr = None
    if len(parts) == 3:
        if np.any(parts[2] < 0):
            raise ValueError(f"{what} has a negative standard error.")
        stderr = np.nan_to_num(parts[2][kept], posinf=0.0)
    return steps[kept], values[kept], stderr


def _powers_of_two(ax: "Axes", steps: np.ndarray) -> None:
    ax.set_xscale("log", base=2)
    first, last = math.floor(math.log2(steps.min())), math.ceil(math.log2(steps.max()))
    ticks = [2.0**k for k in range(first, last + 1)]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
