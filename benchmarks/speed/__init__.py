"""Speed: where a draw and a training iteration spend their time, against goals and NUTS."""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.case import Benchmark, Case
from benchmarks.report import Report, Row, Table, number

PARTS = {
    "draws": "draws:unweighted",
    "weights": "draws:weighted",
    "training": "training:measure",
    "nuts": "race:measure",
    "compile": "processes:compilation",
    "memory": "processes:memory",
    "scaling": "scaling:measure",
}


def _cases(settings: Mapping[str, Any], rows: list[Row]) -> Iterator[Case]:
    if settings["rounds"] is not None and settings["rounds"] < 1:
        raise ValueError(f"rounds must be positive, got {settings['rounds']}.")
    for name in settings["names"]:
        yield Case(name, settings=settings)


def measure(case: Case) -> list[Row]:
    """A part."""
    # Imported when it is measured: the parts import JAX.
    from benchmarks.speed.cases import QUICK, Sizes

    settings, changes = case.settings, dict[str, Any]()
    if settings["rounds"] is not None:
        changes |= dict.fromkeys(("rounds", "process_rounds"), settings["rounds"])
    if settings["targets"] is not None:
        changes["raced"] = tuple(settings["targets"])
    sizes = QUICK if settings["quick"] else Sizes()
    sizes = dataclasses.replace(sizes, **changes)
    module, _, function = PARTS[case.target].partition(":")
    found: list[Row] = getattr(importlib.import_module(f"benchmarks.speed.{module}"), function)(
        sizes
    )
    return found


def _summary(rows: Sequence[Row]) -> Row:
    """Medians by what was measured, in short."""
    return {
        f"{row['target']} {row['subject']}": row["measured"]["median"]
        for row in rows
        if row["target"] in ("draws", "weights", "compile", "memory", "training")
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
    about="where a draw and an iteration spend their time, against goals and NUTS",
    names=lambda settings: list(PARTS),
    cases=_cases,
    measure=measure,
    by=("target", "subject"),
    aliases=("--names", "--parts"),
    options={
        "--targets": {"nargs": "+", "help": "of the part nuts"},
        "--rounds": (int, "repetitions of everything"),
        "--quick": (False, "tiny sizes, to try the command"),
    },
    report=Report(
        title="Speed",
        words="Medians of interleaved repetitions, with quartiles. A bare evaluation is the "
        "network alone on a batch, compiled. {met} of {goals} goals are met.",
        tables=(
            Table(
                """part: {target} | what: {what} | measured: {measured.median} |
                quartiles: {measured.low} to {measured.high} | goal: {sense} {limit} |
                met: {met}""",
                rows=_goals,
            ),
            Table(
                """what: {what} | measured: {measured.median} |
                quartiles: {measured.low} to {measured.high} | share of peak: {share_of_peak}""",
                "Without goals",
                rows=lambda rows: [row for row in rows if row["target"] == "device"],
            ),
        ),
        summary=_summary,
        figure=_figure,
    ),
)
