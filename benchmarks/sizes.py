"""Seconds and memory of one hierarchical family as its members grow, with the defaults.

Poisson counts of groups, centred: two globals and a member for each group. Each size is a process
of its own, timed from before it starts. Memory is the largest resident set, of which a process that
only imports the package holds the first part.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.case import Benchmark, Case
from benchmarks.hierarchical import measured
from benchmarks.report import Report, Row, Table

_READ = ("ess", "pareto_k", "route", "level", "seconds", "draw_seconds", "peak_bytes", "error")


def _cases(settings: Mapping[str, Any], rows: list[Row]) -> Iterator[Case]:
    if min(settings["dims"]) < 3:
        raise ValueError(
            f"A dimension is two globals and the members; got {min(settings['dims'])}."
        )
    for name in settings["names"]:
        yield Case(name, seed=settings["seed"], settings=settings)


def measure(case: Case) -> list[Row]:
    """One size."""
    dim = int(case.target)
    found = measured(f"counts:{dim - 2}", "ours", case.seed, case.settings["limit"])
    row = {"dim": dim} | {name: found[name] for name in _READ if name in found}
    if "error" not in row:
        row |= {"mebibytes": row["peak_bytes"] / 2**20, "microseconds": 100 * row["draw_seconds"]}
    return [row]


def _figure(rows: Sequence[Row]) -> Any:
    from benchmarks.figures import lines

    shown = {"seconds": "seconds to 10,000 weighted draws", "mebibytes": "resident set, MiB"}
    long = [
        {"dimension": row["dim"], "of": words, "value": row.get(name), "line": "measured"}
        for name, words in shown.items()
        for row in rows
    ]
    return lines(long, panel="of", x="dimension", y="value", line="line", ylabel="")


BENCHMARK = Benchmark(
    name="sizes",
    about="seconds and memory of one hierarchical family as it grows",
    names=lambda settings: list(map(str, settings["dims"])),
    cases=_cases,
    measure=measure,
    options={
        "--dims": ((100, 300, 1_000, 3_000, 10_000), "dimensions"),
        "--limit": (1_800.0, "seconds of a process"),
        "--seed": (0, "of every run"),
    },
    report=Report(
        title="One hierarchical family, by size",
        words="Seconds: of a process, draws included. Draws: microseconds each, weighted, when "
        "everything is compiled. Memory: the largest resident set.",
        tables=(
            Table(
                """d: {target} | ESS: {ess:.2f} | k: {pareto_k:.2f} | route: {route} |
                level: {level} | seconds: {seconds:.0f} |
                microseconds a draw: {microseconds:.1f} | memory, MiB: {mebibytes:.0f}"""
            ),
        ),
        figure=_figure,
    ),
)
