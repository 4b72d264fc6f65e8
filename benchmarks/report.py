"""What is made of rows: tables with goals, a figure, and figures for texts."""

import dataclasses
import inspect
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""What was measured of a case: JSON. ``"error"`` says why there is nothing."""


def number(value: Any) -> float:
    """A number of a row: none is NaN, and infinities are strings."""
    return math.nan if value is None else float(value)


def goal(value: float, sense: str, limit: float) -> Row:
    """What a value is held to, for a row's ``"goals"``: ``sense`` is ``"<="`` or ``">="``."""
    met = value <= limit if sense == "<=" else value >= limit
    return {"sense": sense, "limit": limit, "met": bool(met)}


def grouped(rows: Iterable[Row], *by: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some of their fields, in the order that these first come in."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in by), []).append(row)
    return found


def wide(rows: Iterable[Row], across: str = "method") -> list[Row]:
    """One row a target (and seed), which holds the rows of its methods by their names."""
    return [
        {"target": target} | {row[across]: row for row in of}
        for (target, _), of in grouped(rows, "target", "seed").items()
    ]


def value_at(row: Any, path: str) -> Any:
    """What a row holds at a dotted name such as ``nuts.seconds``; None if nothing."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


class _Cells(string.Formatter):
    """Formats with dotted names such as ``{nuts.seconds:.0f}``; what is missing is empty."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return value_at(kwargs, field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if value in ("inf", "-inf"):
            value = float(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, str):
            return format({"<=": "≤", ">=": "≥"}.get(value, value), format_spec)
        if isinstance(value, list | tuple):
            return ", ".join(self.format_field(part, format_spec) for part in value)
        if isinstance(value, float) and not format_spec:
            return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.2e}"
        return format(value, format_spec)


def fill(words: str, values: Row) -> str:
    """Words with values in place of their names in braces."""
    return _Cells().vformat(words, (), values)


def cell(form: str, row: Row) -> str:
    """Text of a cell; after ``@`` may stand the goal that it is held to: ``{ess}@ess``."""
    form, _, held = form.partition("@")
    text = fill(form, row)
    # Nothing but what stands between the values.
    if text == re.sub(r"\{[^}]*\}", "", form):
        return ""
    if asked := row.get("goals", {}).get(held):
        text += f" [{asked['limit']:g}]" + " ✗" * (not asked["met"])
    return text.replace("|", "/").strip()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of rows.

    Attributes:
      template: ``head: format`` of each column, bars between them.
      heading: above it; none if "".
      words: below the heading.
      rows: which rows of the benchmark, as they are to be shown.
    """

    template: str
    heading: str = ""
    words: str = ""
    rows: Callable[[Sequence[Row]], Iterable[Row]] = list

    @property
    def columns(self) -> dict[str, str]:
        """Formats by their heads."""
        parts = (part.strip().partition(": ") for part in self.template.split("|"))
        return {head: form for head, _, form in parts}

    def cells(self, rows: Sequence[Row], heads: Sequence[str] | None = None) -> list[list[str]]:
        """Cells, line by line; an error stands in the first empty one."""
        lines = []
        for row in self.rows(rows):
            line = [cell(self.columns[head], row) for head in heads or self.columns]
            if "error" in row and "" in line:
                line[line.index("")] = row["error"][:80].replace("|", "/")
            lines.append(line)
        return lines

    def markdown(self, rows: Sequence[Row], heads: Sequence[str] | None = None) -> list[str]:
        """Lines of the table, with some of the columns or all."""
        cells = [list(heads or self.columns), ["---"] * len(heads or self.columns)]
        return ["| " + " | ".join(line) + " |" for line in cells + self.cells(rows, heads)]


@dataclasses.dataclass(frozen=True)
class Report:
    """What is made of a benchmark's rows.

    Attributes:
      doc: title and text of the page, as a module's docstring has them.
      table: also says on the screen what was measured; a template alone is one of all rows.
      words: below the text, with the summary's values in braces.
      summary: ``rows -> values`` for the words, and for README and documentation.
      figure: ``rows -> figure`` or None.
      more: tables below the first one.
    """

    doc: str
    table: str | Table
    words: str = ""
    summary: Callable[[Sequence[Row]], Row] = lambda rows: {}
    figure: Callable[[Sequence[Row]], Any] | None = None
    more: tuple[Table, ...] = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables."""
        first = Table(self.table) if isinstance(self.table, str) else self.table
        return (first, *self.more)

    def values(self, rows: Sequence[Row]) -> Row:
        """The summary, and how many goals are met."""
        goals = [goal for row in rows for goal in row.get("goals", {}).values()]
        common = {"rows": len(rows), "goals": len(goals), "met": sum(g["met"] for g in goals)}
        return common | self.summary(rows)

    def text(self, rows: Sequence[Row]) -> str:
        """The page in Markdown."""
        commands = [re.sub(r" --names ('[^']*'|\S+)", "", row.get("command", "")) for row in rows]
        made = [f"`{c}`" for c in dict.fromkeys(commands)][:4]
        about = [v for name in _ABOUT for v in sorted({row[name] for row in rows if name in row})]
        title, _, rest = self.doc.partition("\n")
        text = [f"# {title.rstrip('.')}", "", f"Made by {', '.join(made)}; {'; '.join(about)}."]
        text += [rest, "", fill(inspect.cleandoc(self.words), self.values(rows))]
        for table in self.tables:
            lines = table.markdown(rows)
            if len(lines) > 2:
                text += ["", f"## {table.heading}"] * bool(table.heading)
                text += ["", inspect.cleandoc(table.words)] * bool(table.words) + ["", *lines]
        return re.sub("\n{3,}", "\n\n", "\n".join(text).strip()) + "\n"

    def lines(self, rows: Sequence[Row]) -> str:
        """What to show on the screen of rows that were just measured."""
        return "\n".join("  ".join(filter(None, line)) for line in self.tables[0].cells(rows))


_ABOUT = ("device", "versions", "date")
