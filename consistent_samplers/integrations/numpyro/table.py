"""The table of a summary: which sites are in it, and how it keeps to the width of a screen."""

import fnmatch
import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpyro.diagnostics import hpdi

Columns: TypeAlias = dict[str, dict[str, Any]]
"""Further columns of a table: by their name and by site."""

WIDTH = 100
"""Characters of a line, at most."""

MOST_ROWS = 60
"""Rows of a table that is not shortened."""

# Of a shortened table: rows of a site before the dots; rows of the whole before and after them.
_OF_A_SITE, _BEFORE, _AFTER = 5, 40, 15
_LONGEST_NUMBER = 12
_INDENT = 10  # of what the lines below the table say

_Row: TypeAlias = tuple[str, list[str]]


def chosen(names: Iterable[str], var_names: str | Sequence[str]) -> list[str]:
    """Those of some sites that patterns choose, in their own order.

    Args:
      names: of all sites.
      var_names: a pattern or several: a name, or one with ``*`` and ``?`` as in file names; a site
        is chosen by any. With ``~`` before it a pattern leaves sites out, of all where no other
        pattern chooses any.

    Raises:
      ValueError: a pattern fits no site, or nothing is left.
    """
    names = list(names)
    patterns = [var_names] if isinstance(var_names, str) else list(var_names)
    fitting = {p: set(fnmatch.filter(names, p.removeprefix("~"))) for p in patterns}
    for pattern, found in fitting.items():
        if not found:
            raise ValueError(
                f"var_names: no site is called {pattern.removeprefix('~')!r}. There are "
                f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''} (deterministic ones "
                "with exclude_deterministic=False)."
            )
    left_out = set().union(*(fitting[p] for p in patterns if p.startswith("~")))
    wanted = set().union(*(fitting[p] for p in patterns if not p.startswith("~"))) or set(names)
    kept = [name for name in names if name in wanted - left_out]
    if not kept:
        raise ValueError(f"var_names={var_names!r} leaves no site.")
    return kept


def table(samples: dict[str, np.ndarray], prob: float, more: Columns, *, shorten: bool) -> str:
    """The table of ``numpyro.diagnostics.print_summary``, with further columns of two decimals.

    Args:
      samples: sites ``[num_samples, ...]`` by name.
      prob: mass of the highest-density interval.
      more: further columns.
      shorten: leave out rows in the middle of long sites, and of a long table.
    """
    columns = ["mean", "std", "median", f"{50 * (1 - prob):.1f}%", f"{50 * (1 + prob):.1f}%"]
    sizes = [math.prod(value.shape[1:]) for value in samples.values()]
    long = shorten and sum(sizes) > MOST_ROWS
    rows: list[_Row] = []
    for name, value in samples.items():
        value = value.astype(float) if value.dtype == bool else value
        interval = hpdi(value, prob, axis=0)
        parts = [value.mean(0), value.std(0, ddof=1), np.median(value, 0), *interval]
        ends = [np.broadcast_to(of[name], value.shape[1:]) for of in more.values()]
        of_site: list[_Row] = []
        for index in itertools.product(*map(range, value.shape[1:])):
            cells = _in_digits([float(part[index]) for part in parts])
            cells += [f"{end[index]:.2f}" for end in ends]
            of_site.append((label(name, index), cells))
        rows += _shortened(of_site, _OF_A_SITE, 1) if long else of_site
    if long:
        rows = _shortened(rows, _BEFORE, _AFTER)
    shown = [("", [*columns, *more]), *rows]
    by_column = zip(*(cells for _, cells in shown if cells), strict=True)
    narrow = [max(map(len, cells)) for cells in by_column]
    widths = [max(9, width) for width in narrow]
    first = max([10, *(len(row_label) for row_label, _ in rows)])
    if first + sum(widths) + len(widths) > WIDTH:
        widths = narrow
        first = min(first, WIDTH - sum(widths) - len(widths))
    lines = [
        " ".join([f"{_cut(row_label, first):>{first}}", *map(str.rjust, cells, widths)])
        for row_label, cells in shown
    ]
    if long:
        lines.append(f"{'':{first}} All rows of some sites: print_summary(var_names=...).")
    return "\n".join(["", *lines, ""])


def label(name: str, index: tuple[int, ...]) -> str:
    """The name of one number of a site."""
    return f"{name}[{','.join(map(str, index))}]" if index else name


def wrapped(text: str) -> str:
    """Lines that are too long, broken; what follows of each is indented."""
    indent = " " * _INDENT
    lines = (
        textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False)
        for line in text.split("\n")
    )
    return "\n".join("\n".join(parts) for parts in lines)


def _shortened(rows: list[_Row], before: int, after: int) -> list[_Row]:
    """Rows with dots for those in the middle, where these are at least two."""
    left_out = len(rows) - before - after
    if left_out < 2:
        return rows
    return [*rows[:before], (f"... {left_out} more", []), *rows[-after:]]


def _cut(text: str, width: int) -> str:
    """A text without its middle, where it is too long."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def _in_digits(numbers: list[float]) -> list[str]:
    """Numbers of a row, the second of which is their standard deviation, to two digits of it.

    Two decimals at least, as NumPyro prints them; powers of ten where they would take too many.
    """
    spread = abs(numbers[1])
    decimals = 2 if not 0.0 < spread < math.inf else max(2, 1 - math.floor(math.log10(spread)))
    cells = [f"{number:.{decimals}f}" for number in numbers]
    if decimals > 7 or max(map(len, cells)) > _LONGEST_NUMBER:
        return [f"{number:.3e}" for number in numbers]
    return cells
