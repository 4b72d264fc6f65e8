"""Models compared: their log Z from both sides, and how sure their order is."""

import math
from typing import TYPE_CHECKING, Any

from consistent_samplers.comparison import Comparison
from consistent_samplers.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INTERVAL = 1.96  # standard errors of a 95 % interval


def plot_comparison(comparison: Comparison, *, ax: "Axes | None" = None) -> "Axes":
    """Log Z of the models of `cs.compare`, the best on top, with their bounds.

    Dots are log Z less the best one's, bars their own 95 % intervals, triangles the bounds below
    and above. Below a name stands what the Bayes factor of the best model over it says. The dot of
    a model whose evidence is not to be used is hollow.

    Args:
      comparison: of two models or more.
      ax: where to draw; a new figure if None.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> from consistent_samplers.bracket import Bracket
      >>> from consistent_samplers.comparison import compare_brackets
      >>> a = Bracket(-1.1, 0.01, -0.9, 0.01, -1.0, 0.01, "bridge", 4_000)
      >>> found = compare_brackets(jax.random.key(0), {"a": a, "b": a._replace(log_z=-1.08)})
      >>> cs.plotting.plot_comparison(found).get_xlabel()
      'log Z, less that of a [nats]'
    """
    brackets, best = comparison.brackets, next(iter(comparison.brackets))
    ax = style.one_axes(ax, (7.0, 1.4 + 0.55 * len(brackets)))
    origin = brackets[best].log_z
    shape: dict[str, Any] = {"linestyle": "none", "zorder": 3}
    ax.axvline(0.0, color=style.BASE, linewidth=1.0, zorder=1)
    for place, (name, found) in enumerate(brackets.items()):
        for bound, marker, label in (
            (found.lower, ">", "bound below"),
            (found.upper, "<", "bound above"),
        ):
            if bound is not None and math.isfinite(bound):
                looks: dict[str, Any] = {"marker": marker, "color": style.DRAWS, "ms": 6.0}
                ax.plot(bound - origin, place, label=label, **looks, **shape)
        if not (math.isfinite(found.log_z) and math.isfinite(found.stderr)):
            continue
        sure = comparison.is_usable(name)
        ax.errorbar(
            found.log_z - origin,
            place,
            xerr=_INTERVAL * found.stderr,
            marker="o",
            ms=6.0,
            capsize=3.0,
            color=style.ESTIMATE,
            mfc=style.ESTIMATE if sure else "white",
            label="log Z, 95 %" if sure else "log Z, not to be used",
            **shape,
        )
    first = "best" if comparison.is_usable(best) else "not to be used"
    words = [first, *(comparison.factor(best, name).words for name in list(brackets)[1:])]
    labels = [f"{name}\n{said}" for name, said in zip(brackets, words, strict=True)]
    ax.set_yticks(range(len(brackets)), labels)
    ax.set(ylim=(len(brackets) - 0.5, -0.5), xlabel=f"log Z, less that of {best} [nats]")
    ax.grid(axis="x", alpha=0.25)
    style.tidy(ax)
    style.legend_above(ax)
    return ax
