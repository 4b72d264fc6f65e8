"""What the figures share: colours with one meaning each, axes, checks, and matplotlib itself."""

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
    """Matplotlib's pyplot, imported with the first figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        remedy = 'pip install "consistent_samplers[plot]"'
        raise ImportError(f"Figures need matplotlib. Install it: {remedy}") from error
    return plt


def one_axes(ax: "Axes | None", size: tuple[float, float] = (6.0, 4.0)) -> "Axes":
    """The axes given, or those of a new figure."""
    return pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def row_of_axes(
    axes: Any, num: int, size: tuple[float, float] = (3.2, 2.6), columns: int = 4
) -> np.ndarray:
    """``[num]`` axes: the first of those given, or the panels of a new figure."""
    if axes is not None:
        given = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
        if len(given) < num:
            raise ValueError(f"axes must hold at least {num} Axes, got {len(given)}.")
        return given[:num]
    columns = min(num, columns)
    rows = -(-num // columns)
    width, height = size[0] * columns, size[1] * rows
    figure, grid = pyplot().subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False
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


def legend(ax: "Axes", *, of_figure: bool = False, **options: Any) -> None:
    """A legend without a frame, one entry a label, if there is anything to name."""
    handles, labels = ax.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    if entries:
        place: Any = ax.figure if of_figure else ax
        place.legend(entries.values(), entries.keys(), frameon=False, fontsize="small", **options)


def legend_above(ax: "Axes", columns: int = 3) -> None:
    """A legend over the axes, where data may be anywhere in them."""
    legend(ax, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2)


def coordinate_labels(names: Sequence[str] | None, dim: int, what: str) -> list[str]:
    """A label for each coordinate of an array ``[n, dim]``."""
    labels = [f"x[{i}]" for i in range(dim)] if names is None else list(names)
    if len(labels) != dim:
        raise ValueError(
            f"names must label each of the {dim} coordinates of {what}, got {len(labels)}. Choose "
            "among coordinates by dims."
        )
    return labels


def chosen(dims: Sequence[int] | None, dim: int) -> list[int]:
    """Coordinates to show, checked; all of them if None."""
    numbers = list(range(dim) if dims is None else dims)
    whole = all(isinstance(d, int | np.integer) and not isinstance(d, bool) for d in numbers)
    if not numbers or not whole or not all(0 <= d < dim for d in numbers):
        raise ValueError(f"dims must be one or more coordinates from 0 to {dim - 1}, got {dims!r}.")
    return [int(d) for d in numbers]


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises on NaN or infinite values, which a figure would silently leave out."""
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{bad} of the {values.size} numbers in {name} are NaN or infinite. Plot those "
            "that are finite, and look for an overflow where the others come from."
        )
