"""Numbers and tables of README and documentation, taken from the stored rows.

In Markdown stand, between comments that no reader sees, a value of a benchmark's summary, a field
of a row, or columns of its first table (of the one under a heading, after a slash)::

    <!-- from: field right -->36<!-- end -->
    <!-- from: evidence funnel.elbo_gap .2f -->0.08<!-- end -->
    <!-- from: first table: model, dim, route, first, second, NUTS -->
    | model | ...
    <!-- end -->

Of several rows of a target the first counts, or that of a method, a number of steps and a kind of
weights: ``evidence funnel@AutoIAFNormal.elbo_gap``, ``table-scds gmm9@dis@128.sinkhorn``. No line
begins with a span of a value: it would end its paragraph.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import case
from benchmarks.report import Row, fill, value_at

_SPAN = re.compile(r"(<!-- from: (.*?) -->)(.*?)(<!-- end -->)", re.DOTALL)
_FIRST = re.compile(r"^ {0,3}<!-- from: (?!\S+ table).*? -->", re.MULTILINE)
_NAMED = ("target", "method", "num_steps", "bound")
_ROOT = Path(__file__).parents[1]


def pages() -> list[Path]:
    """The pages whose spans are filled in."""
    return [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]


def run(check: bool = False, paths: Iterable[Path] | None = None) -> list[str]:
    """Rewrites pages and the tables in results from the rows, or looks where they differ.

    Args:
      check: change nothing.
      paths: of the pages; README and documentation if None.

    Returns:
      What differs, or differed.
    """
    differ = []

    def compare(path: Path, new: str) -> None:
        old = path.read_text() if path.is_file() else ""
        if new != old:
            pairs = zip(old.splitlines(), new.splitlines(), strict=False)
            was, to_be = next(((a, b) for a, b in pairs if a != b), ("", "its end"))
            differ.append(f"{path.name}: {was.strip()[:70]!r} should be {to_be.strip()[:70]!r}")
            if not check:
                path.write_text(new)

    for path in pages() if paths is None else paths:
        compare(path, filled(path.read_text()))
    if paths is None:
        for path in sorted(case.RESULTS.glob("*.jsonl")):
            if not path.stem.endswith("-references"):
                compare(path.with_suffix(".md"), _report(path.stem).text(case.read(path)))
    return differ


def filled(text: str) -> str:
    """A page with the spans' content made anew.

    Raises:
      ValueError: a span that names what is not there, or one of a value that begins a line.
    """
    if first := _FIRST.search(text):
        raise ValueError(f"It would end the paragraph at the beginning of a line: {first[0]}")
    return _SPAN.sub(lambda span: span[1] + content(span[2]) + span[4], text)


def content(what: str) -> str:
    """What a span shows.

    Raises:
      ValueError: no such benchmark, value, row or column.
    """
    name, _, rest = what.partition(" ")
    rows = case.read(case.RESULTS / f"{name}.jsonl")
    if not rows:
        raise ValueError(f"No rows of {name!r} for <!-- from: {what} -->.")
    report = _report(name)
    if rest.startswith("table"):
        title, _, columns = rest.removeprefix("table").partition(":")
        heads = [head.strip() for head in columns.split(",")] if columns else None
        heading = title.strip(" /")
        tables = [t for t in report.tables if not heading or t.heading == heading]
        if not tables or not set(heads or ()) <= set(tables[0].columns):
            raise ValueError(f"No such table or column: <!-- from: {what} -->.")
        return "\n" + "\n".join(tables[0].markdown(rows, heads)) + "\n"
    path, _, spec = rest.partition(" ")
    value = _value(report.values(rows), rows, path)
    if value is None:
        raise ValueError(f"No such value: <!-- from: {what} -->.")
    return fill("{value:" + spec + "}", {"value": value})


def _value(summary: Row, rows: list[Row], path: str) -> Any:
    if path in summary:
        return summary[path]
    named, _, fields = path.partition(".")
    wanted = named.split("@")
    named_so = (row for row in rows if [str(row.get(k)) for k in _NAMED[: len(wanted)]] == wanted)
    return next((found for row in named_so if (found := value_at(row, fields)) is not None), None)


def _report(name: str) -> Any:
    from benchmarks.__main__ import benchmark_of

    return benchmark_of(name).report
