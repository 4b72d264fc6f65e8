"""Processes that hang: does any density, with a time limit and default flags?

The kinds call LAPACK or make Fourier transforms, several to a point, and in batches large enough
for jaxlib to hand parts of them to XLA's threads: what hangs without `consistent_samplers.guard`.
Of a kind's runs a third have it as the only target of their process, a third as the second and a
third as the third one; half of all run two at a time. Trainings are short, to the same programs.
Seconds are those of the processes that ended.
"""

import functools
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.case import Benchmark, Case, Settings
from benchmarks.models.lapack import KINDS, LAPACK, MODELS, density_of, model_of
from benchmarks.process import isolated
from benchmarks.report import Report, Row, Table, grouped

# A child may use JAX before it imports the package: the rest is imported where it is needed.


def _cases(settings: Settings, rows: list[Row]) -> Iterator[Case]:
    number, limit, kinds = settings["processes"], settings["limit"], settings["names"]
    if number < 1 or limit <= 0:
        raise ValueError(f"Numbers must be positive, got {number} and {limit}.")
    rows.clear()
    for i in range(number):
        plan = {"number": i, "before": (i + i // len(kinds)) % 3}
        plan["jobs"] = 1 if i < (number + 1) // 2 else 2
        yield Case(kinds[i % len(kinds)], settings={**settings, **plan})


@functools.cache
def _programs() -> "tempfile.TemporaryDirectory[str]":
    """The folder of compiled programs of all runs, until this process ends."""
    return tempfile.TemporaryDirectory()


def measure(case: Case) -> list[Row]:
    """One process: how it ended, and after how many seconds."""
    from consistent_samplers import guard

    settings = case.settings
    variables = {"JAX_PLATFORMS": "cpu", "CONSISTENT_SAMPLERS_CACHE": _programs().name}
    # Flags of a shell would hide the fault, and so would another platform.
    variables["XLA_FLAGS"] = f"--{guard.FLAG}=true" if settings["unguarded"] else ""
    given = {"kind": case.target, "before": settings["before"], "late": settings["late"]}
    found = isolated("benchmarks.hang:train", given, settings["limit"], variables)
    end = "hang" if found.get("hung") else found.get("error", "done")
    plan = {name: settings[name] for name in ("number", "before", "jobs")}
    return [plan | {"end": end, "seconds": found["seconds"]}]


def train(kind: str, before: int, late: bool) -> None:
    """In the child: trains on the targets of a run, and does what users do then."""
    import jax
    import jax.numpy as jnp

    if late:
        jax.block_until_ready(jnp.ones(2) + 1.0)
    import consistent_samplers as cs

    key = jax.random.key(before)
    short: dict[str, Any] = {"effort": "short", "num_calibration_iterations": 50}
    short["progress_bar"] = False
    # The second target before is the next kind: its programs are as likely to hang.
    others = [None, KINDS[(KINDS.index(kind) + 1) % len(LAPACK)]]
    for name in [*others[:before], kind]:
        if name in MODELS:
            from consistent_samplers.integrations.numpyro import OneStepSampler

            model, data = model_of(str(name))
            sampler = OneStepSampler(model, num_samples=2_000, **short)
            sampler.run(key, *data)
            jax.block_until_ready(sampler.get_samples())
            continue
        density, dim = density_of("inv" if name == "fit" else str(name))
        target = cs.Target(density if name else lambda x: -0.5 * x @ x, dim)
        if name != "fit":
            trained = cs.train_sampler(key, target, **short)
            print(name, float(trained.evidence(key, 2_000).log_z))
            continue
        base = cs.bases.standard_normal(dim)
        algorithm = cs.osds(target, base=base, max_steps=2, hidden=(8,))
        state = cs.fit(key, algorithm, 20, progress_bar=False).state
        draws = algorithm.sample(key, state, 2_000)
        moved, _ = cs.corrections.move(key, draws, density, num_moves=2)
        print(name, jax.block_until_ready(moved.position).shape)


def _kinds(rows: Sequence[Row]) -> list[Row]:
    """A row a kind."""
    found = []
    for (kind,), of in grouped(rows, "target").items():
        ended = sorted(row["seconds"] for row in of if row["end"] != "hang")
        row: Row = {"target": kind, "runs": len(of), "hung": len(of) - len(ended)}
        row["two"] = sum(row["jobs"] == 2 for row in of)
        row |= {"seconds": ended[len(ended) // 2], "most": ended[-1]} if ended else {}
        found.append(row)
    return found


def _summary(rows: Sequence[Row]) -> Row:
    ends = [row["end"] for row in rows]
    hung = ends.count("hang")
    return {"hung": hung, "failed": len(ends) - hung - ends.count("done")}


BENCHMARK = Benchmark(
    name="hang",
    names=lambda settings: KINDS,
    cases=_cases,
    measure=measure,
    by=("number",),
    options={
        "--processes": (100, "their number"),
        "--limit": (300.0, "seconds; what takes longer hangs"),
        "--late": (False, "JAX is in use before the package is"),
        "--unguarded": (False, "with the scheduler at fault"),
    },
    file=lambda s: "hang" + "-late" * s["late"] + "-unguarded" * s["unguarded"],
    report=Report(
        __doc__,
        Table(
            """kind: {target} | runs: {runs} | of them two at a time: {two} | hung: {hung} |
            seconds, median: {seconds:.0f} | largest: {most:.0f}""",
            rows=_kinds,
        ),
        "{hung} of {rows} processes hung, and {failed} failed.",
        _summary,
    ),
)
