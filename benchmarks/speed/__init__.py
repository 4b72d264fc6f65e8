"""Speed of draws and iterations, against goals.

Medians of interleaved repetitions, with quartiles. A bare evaluation is the network alone on a
batch, compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.case import Benchmark, Case
from benchmarks.report import Report, Row
from benchmarks.speed import draws, memory, scaling
from benchmarks.speed.cases import Sizes

PARTS: dict[str, Callable[[Sizes], list[Row]]] = {
    "draws": draws.unweighted,
    "weights": draws.weighted,
    "memory": memory.measure,
    "scaling": scaling.measure,
}


def measure(case: Case) -> list[Row]:
    """A part."""
    return PARTS[case.target](Sizes(case.settings["rounds"], case.settings["quick"]))


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

    points = [
        (row["against"], row["line"], *point)
        for row in rows
        if "x" in row
        for point in zip(row["x"], row["seconds"], strict=True)
    ]
    return lines(points, "size", "seconds")


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
        __doc__,
        """part: {target} | what: {what} | measured: {measured.median} |
        quartiles: {measured.low} to {measured.high} |
        goal: {goals.measured.sense} {goals.measured.limit} | met: {goals.measured.met}""",
        "{met} of {goals} goals are met.",
        _summary,
        _figure,
    ),
)
