"""Seconds from the start of a process to 10,000 effective draws: ours, and NumPyro's NUTS.

Each measurement is a process of its own, timed by its parent from before it is started: imports,
tracing, compilation, training or warm-up, and draws all count. Ours runs twice: the first process
ever on a machine, whose folder of kept programs is empty, and a second one, with the same folder;
of them compiling: tracing, lowering and compiling. Medians of the repetitions. In brackets the
goal, a cross where it is missed.

NUTS has 4 vectorised chains of 500 warm-up iterations. What is extrapolated: it runs until 2,000
draws are effective, in blocks of 500 draws a chain; the draws that are missing are charged at the
seconds a draw of the quickest further block. Ours is never extrapolated.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import race
from benchmarks.case import Benchmark, Case, Settings
from benchmarks.process import isolated
from benchmarks.report import Report, Row, goal

# What a process imports is part of what is measured: the rest is imported where it is needed.

_SMALL = ("eight_schools", "kidscore", "linear", "logistic", "poisson")
_LARGER = ("sonar", "ionosphere", "credit", "cancer")
GOALS: dict[str, dict[str, float]] = {
    **{name: {"second": 5.0, "over_second": 1.0, "second_compiling": 2.5} for name in _SMALL},
    "seeds": {"first": 16.0, "second": 8.0, "over_second": 8.0, "second_compiling": 2.5}
    | {"first_compiling": 20.0, "over_rate": 100.0},
    **{name: {"over_second": 1.0, "over_rate": 100.0} for name in _LARGER},
    "logistic_100000x30": {"over_second": 1.0},
    "tiny": {},
}
"""Rows, and what they are held to: seconds of a first and a second process at most, seconds of
NUTS over those of a second process at least, seconds that they compile at most, and further
effective draws a second over NUTS's at least."""


def _cases(settings: Settings, rows: list[Row]) -> Iterator[Case]:
    if min(settings["repeats"], settings["effective"]) < 1:
        raise ValueError("Repeats and effective draws must be positive.")
    for name in settings["names"]:
        # The last one is there to try the command.
        if name != "tiny" or settings["names"] == ["tiny"]:
            yield Case(name, settings=settings)


def measure(case: Case) -> list[Row]:
    """All processes of a row: medians of its repetitions."""
    functions = {"first": "ours", "second": "ours"}
    functions |= {} if case.settings["skip_nuts"] else {"nuts": "nuts"}
    runs: dict[str, list[Row]] = {kind: [] for kind in functions}
    given: Row = {"name": case.target, "effective": case.settings["effective"]}
    for seed in range(case.settings["repeats"]):
        with tempfile.TemporaryDirectory() as folder:
            variables = {"CONSISTENT_SAMPLERS_CACHE": folder, "JAX_COMPILATION_CACHE_DIR": ""}
            for kind, function in functions.items():
                name = f"benchmarks.first:{function}"
                found = isolated(name, given | {"seed": seed}, variables=variables)
                if "error" in found:
                    return [{"error": f"{kind}: {found['error']}"}]
                runs[kind].append(found)
                print(f"{case.target}, {kind}: {found['seconds']:.1f} s", flush=True)
    last = runs["second"][0]
    row = {name: last[name] for name in ("dim", "route", "log_z", "log_z_stderr")}
    row["least_effective"] = min(found["effective"] for found in runs["first"] + runs["second"])
    seconds = {kind: np.array([run["seconds"] for run in found]) for kind, found in runs.items()}
    row |= {kind: float(np.median(found)) for kind, found in seconds.items()}
    if "nuts" in runs:
        row["rates"] = [runs[kind][0]["rate"] for kind in ("second", "nuts")]
        row["over_rate"] = row["rates"][0] / row["rates"][1]
    for kind in ("first", "second"):
        compiling = [run["compile_seconds"] for run in runs[kind]]
        row[f"{kind}_compiling"] = float(np.median(compiling))
        if "nuts" in runs:
            row[f"over_{kind}"] = float(np.median(seconds["nuts"] / seconds[kind]))
    row["goals"] = goals(case.target, row)
    return [row]


def goals(name: str, row: Row) -> dict[str, Row]:
    """What a row is held to."""
    return {
        key: goal(row[key], ">=" if key.startswith("over") else "<=", limit)
        for key, limit in GOALS[name].items()
        if key in row
    }


def ours(name: str, seed: int, effective: float) -> Row:
    """In the child: trains, and draws until enough draws are effective."""
    import jax

    # As at the top of a script: before the model's arrays are made.
    import consistent_samplers  # noqa: F401

    row = race.ours(subject(name), jax.random.key(seed), effective).row
    if row["effective"] < effective and row["route"] != "chains":
        raise RuntimeError(f"{row['effective']:.0f} of {row['draws']} draws are effective.")
    return row


def nuts(name: str, seed: int, effective: float) -> Row:
    """In the child: NUTS until its rate is known, and the seconds missing to enough draws."""
    import jax

    sizes: dict[str, Any] = {"warm_up": 500, "block": 500, "enough": min(2_000, effective)}
    return race.nuts(subject(name), jax.random.key(seed), effective=effective, **sizes).row


def subject(name: str) -> race.Subject:
    """A simulated model, or a target of the package."""
    from benchmarks.models import regressions

    if name == "eight_schools" or name in regressions.SHAPES:
        return race.Subject(*regressions.model_of(name))
    import consistent_samplers as cs

    return race.Subject(getattr(cs.targets, name)())


BENCHMARK = Benchmark(
    name="first",
    names=lambda settings: list(GOALS),
    cases=_cases,
    measure=measure,
    aliases=("--names", "--models"),
    by=("target",),
    options={
        "--skip-nuts": (False, "measure ours only"),
        "--repeats": (3, "repetitions, of which medians"),
        "--effective": (10_000, "effective draws to reach"),
    },
    report=Report(
        __doc__,
        """model: {target} | dim: {dim} | route: {route} | first: {first}@first |
        first, compiling: {first_compiling}@first_compiling | second: {second}@second |
        second, compiling: {second_compiling}@second_compiling | NUTS: {nuts} |
        NUTS over first: {over_first} | NUTS over second: {over_second}@over_second |
        further draws a second over NUTS's: {over_rate}@over_rate |
        log Z: {log_z:.3f} ± {log_z_stderr:.2g}""",
        "{met} of {goals} goals are met.",
    ),
)
