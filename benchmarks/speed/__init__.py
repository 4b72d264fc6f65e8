"""Speed of draws and iterations, against goals.

Medians of interleaved repetitions, with quartiles. A bare evaluation is the network alone on a
batch, compiled.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.case import Benchmark, Case
from benchmarks.report import Report, Row, Table, number

PARTS = {
    "draws": "draws:unweighted",
    "weights": "draws:weighted",
    "memory": "memory:measure",
    "scaling": "scaling:measure",
}


def measure(case: Case) -> list[Row]:
    """A part."""
    # Imported when it is measured: the parts import JAX.
    from benchmarks.speed.cases import Sizes

    module, _, function = PARTS[case.target].partition(":")
    part = getattr(importlib.import_module(f"benchmarks.speed.{module}"), function)
    found: list[Row] = part(Sizes(case.settings["rounds"], case.settings["quick"]))
    return found


def _summary(rows: Sequence[Row]) -> Row:
    """Medians by part and subject."""
    return {
        f"{row['target']}/{row['subject']}".replace(" ", "_"): row["measured"]["median"]
        for row in rows
        if "measured" in row and row["target"] != "scaling"
    }


def _figure(rows: Sequence[Row]) -> Any:
    """Cost against size."""
    from benchmarks.figures import lines

    found = [
        row | {"size": size, "seconds": seconds}
        for row in rows
        if "x" in row
        for size, seconds in zip(row["x"], row["seconds"], strict=True)
    ]
    return lines(found, panel="against", x="size", y="seconds", line="line", ylabel="seconds")


def _goals(rows: Sequence[Row]) -> list[Row]:
    held = [row | row["goals"]["measured"] for row in rows if "goals" in row]
    signs = {"<=": "≤", ">=": "≥"}
    errors = [row for row in rows if "error" in row]
    return [
        row | {"sense": signs[row["sense"]], "limit": number(row["limit"])} for row in held
    ] + errors


BENCHMARK = Benchmark(
    name="speed",
    names=lambda settings: list(PARTS),
    measure=measure,
    by=("target", "subject"),
    aliases=("--names", "--parts"),
    options={
        "--rounds": (7, "repetitions of everything"),
        "--quick": (False, "tiny sizes, to try the command"),
    },
    report=Report(
        doc=__doc__,
        words="{met} of {goals} goals are met.",
        tables=(
            Table(
                """part: {target} | what: {what} | measured: {measured.median} |
                quartiles: {measured.low} to {measured.high} | goal: {sense} {limit} |
                met: {met}""",
                rows=_goals,
            ),
        ),
        summary=_summary,
        figure=_figure,
    ),
)
