"""What the figures share: colours with one meaning each, axes, and where matplotlib comes in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One meaning each in every figure. Told apart under the common colour blindnesses, and by
# lightness in print.
DRAWS = "#d1495b"
REFERENCE = "#30638e"
TRUTH = "#333333"
BASE = "#999999"
NO_BOUND = "#e09f1f"
ESTIMATE = "#7a5195"

# Several methods or stages: the draws' colour first. Markers repeat what the colours say.
CYCLE = (DRAWS, "#2a9d8f", ESTIMATE, NO_BOUND, REFERENCE, "#555555")
MARKERS = ("o", "s", "D", "^", "v", "P")


def pyplot() -> Any:
    """Matplotlib's pyplot, imported with the first figure.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib, which is not installed. Run: pip install "
            '"consistent_samplers[plot]".'
        ) from error
    return plt


def one_axes(ax: "Axes | None", size: tuple[float, float] = (6.0, 4.0)) -> "Axes":
    """The axes given, or those of a new figure."""
    if ax is not None:
        return ax
    _, ax = pyplot().subplots(figsize=size, layout="constrained")
    return ax


def row_of_axes(
    axes: Any, num: int, size: tuple[float, float] = (3.2, 2.6), columns: int = 4
) -> np.ndarray:
    """``[num]`` axes: the first of those given, or the panels of a new figure.

    Raises:
      ValueError: fewer are given.
    """
    if axes is not None:
        given = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
        if len(given) < num:
            raise ValueError(f"axes must hold at least {num} Axes, got {len(given)}.")
        return given[:num]
    columns = min(num, columns)
    rows = -(-num // columns)
    figure, grid = pyplot().subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        layout="constrained",
        squeeze=False,
    )
    for spare in grid.flat[num:]:
        figure.delaxes(spare)
    return grid.ravel()[:num]


def tidy(ax: "Axes", *, left: bool = True) -> None:
    """Leaves only the frame's lines that carry a scale."""
    ax.spines[["top", "right"]].set_visible(False)
    if not left:
        ax.spines["left"].set_visible(False)
        ax.set_yticks([])


def _entries(ax: "Axes") -> dict[str, Any]:
    """What a legend names: one entry a label, however many artists carry it."""
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def figure_legend(ax: "Axes") -> None:
    """The legend of one of the axes, above all those of its figure."""
    entries = _entries(ax)
    ax.figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper right",
        ncols=len(entries),
        frameon=False,
        fontsize="small",
    )


def legend_above(ax: "Axes", columns: int = 3) -> None:
    """A legend over the axes, where data may be anywhere in them."""
    legend(ax, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2)


def legend(ax: "Axes", **options: Any) -> None:
    """A legend without a frame, if there is anything to name."""
    entries = _entries(ax)
    if entries:
        settings: dict[str, Any] = {"frameon": False, "fontsize": "small"} | options
        ax.legend(list(entries.values()), list(entries), **settings)


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises on NaN or infinite values, which a figure would silently leave out.

    Raises:
      ValueError: there are some.
    """
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{bad} of the {values.size} numbers in {name} are NaN or infinite. Plot those "
            "that are finite, and look for an overflow where the others come from."
        )


def chosen(dims: Sequence[int] | None, dim: int, name: str = "dims") -> list[int]:
    """Coordinates to show, checked; all of them if None.

    Raises:
      ValueError: none, or one that is not there.
    """
    if dims is None:
        return list(range(dim))
    numbers = list(dims)
    whole = all(isinstance(d, int | np.integer) and not isinstance(d, bool) for d in numbers)
    if not numbers or not whole or not all(0 <= d < dim for d in numbers):
        raise ValueError(
            f"{name} must be one or more coordinates from 0 to {dim - 1}, got {dims!r}."
        )
    return [int(d) for d in numbers]
