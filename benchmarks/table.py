"""Methods of the papers measured beside their published figures.

Mean ± standard error over seeds. NFE: network evaluations a draw. A `lower-if-injective` ELBO is a
bound only where the map does not fold, `heuristic` is no bound at all. All samplers start from one
base, but the recipe, which finds its own. A figure that a seed lacks is left out. In brackets: the
published figure.
"""

import functools
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import consistent_samplers as cs
from benchmarks import registry
from benchmarks.case import Benchmark, Case, Settings
from benchmarks.methods import METHODS, Sampler, Trainer
from benchmarks.process import isolated
from benchmarks.registry import TARGETS, Entry
from benchmarks.report import Report, Row, Table, cell, grouped, number
from benchmarks.timing import timed
from benchmarks.untrained import UNTRAINED
from consistent_samplers import diagnostics
from consistent_samplers.bases import GaussianBase
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws
from consistent_samplers.types import Method as Transitions

_NUM_POINTS, _NUM_REVERSED, _MAX_INVERTED_STEPS = 2_000, 1_000, 16
_METRICS = (
    *("elbo", "eubo", "log_z_error", "ess", "folded", "sampling_seconds"),
    *("sinkhorn", "mmd", "entropic_coverage", "num_missed_modes", "training_seconds"),
    "density_evaluations",
)

# --- Which rows ---------------------------------------------------------------------------------

_SAMPLERS = ("base", "dis", "dds", "pis", "cdds", "scds", "osds", "osds-calibrated", "recipe")
_FEW = ("base", "dis", "scds", "osds", "osds-calibrated", "recipe")
_FIELD = ("base", "nuts", *UNTRAINED, "dis", "cmcd", "adjoint", "dgfs", "gflownet")
_ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    # The rest of the field, beside what trains nothing and the recipe.
    "field": dict.fromkeys(
        ("gmm40", "funnel", "many_well", "seeds"), (*_FIELD, "contrastive", "snf", "recipe")
    ),
    "scds": {
        "gmm9": _SAMPLERS,
        # Without dds and pis, which the quick budget leaves on one ring each.
        "rings": tuple(name for name in _SAMPLERS if name not in ("dds", "pis")),
        "mw54": _SAMPLERS,
        "funnel": ("nuts", *_SAMPLERS),
    },
    "osds": {
        **dict.fromkeys(("seeds", "funnel"), ("nuts", *_FEW)),
        **dict.fromkeys(("gmm9", "mw54"), _FEW),
    },
    # The bound of few stochastic steps with the paper's, fixed and learned kernels.
    "kernels": dict.fromkeys(("funnel", "seeds"), ("dis.paper", "dis", "dis-learned")),
    # Where the papers' heuristic ELBO exceeds the true log Z.
    "heuristic": dict.fromkeys(
        [name for name in TARGETS if name not in ("dw4", "lj13", "lj55")], ("osds.paper",)
    ),
}


def _cases(settings: Settings, rows: list[Row]) -> Iterator[Case]:
    name, full = settings["name"], settings["budget_set"] == "full"
    if name == "row":
        for target in settings["names"]:
            steps = settings["steps"] or METHODS[settings["method"]].steps
            budget = f"{iterations_of(settings['budget'])}it"
            given = {**settings, "steps": steps, "jobs": 1}
            yield Case(target, settings["method"], budget, settings["seed"], given)
        return
    for target in settings["names"]:
        for of in _ROWS[name].get(target, ()):
            method = METHODS[of]
            steps, num = method.steps if full else method.quick, method.iterations[full]
            if name == "kernels":
                steps, num = (2, 4, 8, 16, 128), 1_000
            if name == "heuristic":
                # The paper's steps grow a Cox process of 1,600 dimensions by minutes.
                steps, num = (1, 8, 128), 10 if target == "lgcp" else 100
            given = {**settings, "steps": steps, "seeds": 3 if full else 2}
            yield Case(target, of, f"{num}it", settings=given)


def iterations_of(budget: str) -> int:
    """Reads "2000" or "2000it"."""
    if not (text := budget.removesuffix("it")).isdigit() or int(text) < 1:
        raise ValueError(f'A budget is a number of iterations ("2000", "2000it"), got {budget!r}.')
    return int(text)


def command(case: Case) -> str:
    """The command line that measures a row."""
    parts = ["python", "-m", "benchmarks", case.target, "--method", case.method, "--steps"]
    parts += [*map(str, case.settings["steps"]), "--budget", case.budget]
    parts += ["--seeds", str(case.settings["seeds"])]
    parts += ["--seed", str(case.seed)] if case.seed else []
    num = case.settings["num_samples"]
    return shlex.join(parts + (["--num-samples", str(num)] if num != 4_000 else []))


# --- One row ------------------------------------------------------------------------------------


def measure(case: Case) -> list[Row]:
    """The lines of a row, from a process of its own where it is one of a table."""
    given: Row = {"target": case.target, "method": case.method, "seed": case.seed}
    given |= {"iterations": iterations_of(case.budget), "num": case.settings["num_samples"]}
    given |= {name: case.settings[name] for name in ("steps", "seeds")}
    if case.settings["name"] == "row":
        return lines(**given)["lines"]
    found = isolated("benchmarks.table:lines", given)
    return found.get("lines", [found])


def lines(
    target: str, method: str, iterations: int, seed: int, steps: Sequence[int], seeds: int, num: int
) -> dict[str, list[Row]]:
    """Trains and measures a method: a line for each number of steps and kind of weights.

    Numbers of steps above its largest are left out.
    """
    entry = TARGETS[target]
    built = entry.build()
    base, words = registry.build_base(entry, built)
    reference = registry.reference_draws(target, entry, built, _NUM_POINTS)
    about = {"dim": built.dim, "true_log_z": built.log_z, "base": words}
    if reference is not None:
        floor = distances(reference[1], entry, reference)["sinkhorn"]
        about |= {"reference": reference[2], "noise_floor": floor}
    trainer = Trainer(method, built, base, iterations, steps)
    found: list[Row] = []
    for current in range(seed, seed + seeds):
        if method in UNTRAINED:
            row, draws = untrained(jax.random.key(current), method, built, base, num)
            found.append(row | distances(draws.position[:_NUM_POINTS], entry, reference))
            continue
        sampler = trainer.train(current)
        key = jax.random.fold_in(jax.random.key(current), 2**20)
        for num_steps in [k for k in steps if k <= sampler.trained.many_steps.max_steps]:
            common: Row = {"num_steps": num_steps, "training_seconds": sampler.seconds}
            common |= {"note": sampler.note} if sampler.note else {}
            if sampler.chains is not None:
                position = sampler.chains(key, _NUM_POINTS)
                found.append(common | distances(position, entry, reference))
            for of in sampler.methods:
                row, draws = evidence(key, sampler, num, num_steps, of)
                row |= distances(draws.position[:_NUM_POINTS], entry, reference)
                found.append(common | row)
    return {"lines": [about | line for line in summarised(found, ("num_steps", "bound"), _METRICS)]}


def untrained(
    rng_key: Array, method: str, target: Target, base: GaussianBase, num: int
) -> tuple[Row, Draws]:
    """A method that trains nothing: seconds with compilation, evidence where there are weights."""
    drawn, seconds = timed(lambda: UNTRAINED[method](rng_key, target, base, num))
    draws, log_z = drawn.draws, drawn.log_z
    row: Row = {"num_steps": None, "bound": draws.bound, "sampling_seconds": seconds}
    row["density_evaluations"] = drawn.num_evaluations
    if draws.log_weight is not None:
        e = cs.evidence(draws)
        row |= {"elbo": float(e.elbo), "ess": float(e.ess)}
        log_z = float(e.log_z)
    if log_z is not None and target.log_z is not None:
        row["log_z_error"] = abs(log_z - target.log_z)
    return row, draws


def evidence(
    rng_key: Array, sampler: Sampler, num: int, num_steps: int, method: Transitions
) -> tuple[Row, Draws]:
    """Evidence of one kind of transitions at one number of steps, and the draws behind it."""
    key_compile, key_draw, key_reverse = jax.random.split(rng_key, 3)
    target = sampler.trained.target
    draw = functools.partial(sampler.trained.sample, method=method)
    jax.block_until_ready(draw(key_compile, num, num_steps))
    draws, seconds = timed(lambda: draw(key_draw, num, num_steps))
    row: Row = {"bound": draws.bound, "sampling_seconds": seconds}
    try:
        e = cs.evidence(draws)
    except ValueError as error:  # weights that cannot be used
        row["note"] = str(error)
    else:
        row |= {"elbo": float(e.elbo), "ess": float(e.ess)}
        row["folded"] = None if e.folded is None else float(e.folded)
        if target.log_z is not None:
            row["log_z_error"] = abs(float(e.log_z) - target.log_z)
    # A long map is inverted step by step, each an iteration of its own: minutes at 128 steps.
    reversible = method == "path" or (method == "map" and num_steps <= _MAX_INVERTED_STEPS)
    if target.sample is not None and reversible:
        exact = target.sample(jax.random.key(2**21), _NUM_REVERSED)
        weigh = sampler.trained.sampler_for(num_steps, method).log_weight
        found = weigh(key_reverse, target, exact, num_steps, method=method)
        log_weight = np.asarray(found, np.float64)
        if not (missing := np.isnan(log_weight)).all():
            row["eubo"] = float(log_weight[~missing].mean())
    return row, draws


def distances(position: Array, entry: Entry, reference: tuple[Array, Array, str] | None) -> Row:
    """Distances of equally weighted draws ``[n, dim]`` to reference draws, and modes reached."""
    finite = np.isfinite(np.asarray(position)).all(axis=1)
    row: Row = {"nonfinite_share": float(1.0 - finite.mean())}
    position = jnp.asarray(np.asarray(position)[finite])
    if len(position) < 2:
        return row
    if reference is not None:
        from benchmarks.transport import sinkhorn  # of a library that only this asks for

        row["sinkhorn"] = sinkhorn(position, reference[0])
        row["mmd"] = float(diagnostics.mmd(position, reference[0]))
    if entry.labels is not None:
        coverage = diagnostics.mode_coverage(entry.labels(position), entry.num_modes)
        row["entropic_coverage"] = float(coverage.entropic_coverage)
        row["num_missed_modes"] = int(coverage.num_missed)
    return row


def summarised(rows: Sequence[Row], by: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """Mean and standard error over seeds of the metrics, one row a value of ``by``.

    There is no standard error with a single seed. A metric that a seed lacks is None as well: a
    mean over the seeds that went well would flatter.
    """
    summary = []
    for values, group in grouped(rows, *by).items():
        line = group[0] | dict(zip(by, values, strict=True)) | {"num_seeds": len(group)}
        for metric in metrics:
            found = [row.get(metric) for row in group]
            if all(value is None for value in found):
                continue
            numbers = np.array([number(value) for value in found])
            line[metric] = None if np.isnan(numbers).any() else float(numbers.mean())
            if len(numbers) > 1 and np.isfinite(numbers).all():
                line[f"{metric}_stderr"] = float(numbers.std(ddof=1) / math.sqrt(len(numbers)))
        summary.append(line)
    return summary


# --- Published figures and the report -----------------------------------------------------------

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text())
_LABELS = ("target", "method", "num_steps")
_FIGURES: dict[Any, list[Any]] = grouped(PUBLISHED["figures"], *_LABELS)
_PUBLISHED_NAMES = {"log_z_error": "abs_error_log_z"}


def published(target: str, method: str, num_steps: int | None) -> Row | None:
    """The published figure of a method; one whose number of steps is not stated does not match."""
    return _FIGURES.get((target, method, num_steps), [None])[0]


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Rows with the published figures beside each method's own kind of draw, and with errors."""
    shown, seen = [], set()
    for row in rows:
        key = (row["target"], row["method"], row.get("num_steps"))
        said = published(*key) if "num_steps" in row and key not in seen else None
        seen.add(key)
        line = dict(row)
        for metric in _METRICS:
            text = cell("{%s} ± {%s_stderr:.2g}" % (metric, metric), row).removesuffix(" ±")  # noqa: UP031
            figure = (said or {}).get(_PUBLISHED_NAMES.get(metric, metric))
            line[metric] = text if figure is None else f"{text} [{figure:g}]"
        shown.append(line)
    return shown


def _others(rows: Sequence[Row]) -> list[Row]:
    """Published figures that stand beside no row."""
    here, targets = grouped(rows, *_LABELS), {row["target"] for row in rows}
    known = {*_LABELS, "source"}
    return [
        figure | {"values": ", ".join(f"{k} {v}" for k, v in figure.items() if k not in known)}
        for key, figures in _FIGURES.items()
        if key[0] in targets and key not in here
        for figure in figures
    ]


def _listed(kind: str) -> str:
    return "; ".join(f"{key}: {text}" for key, text in PUBLISHED[kind].items())


def _figure(rows: Sequence[Row]) -> Any:
    from benchmarks.figures import lines

    points = [
        (target, method, None if method in ("base", "nuts") else steps, first.get("sinkhorn"))
        for (target, method, steps), (first, *_) in grouped(rows, *_LABELS).items()
    ]
    return lines(points, "network evaluations", "Sinkhorn cost (lower is better)")


BENCHMARK = Benchmark(
    name="table",
    names=lambda settings: list(TARGETS),
    cases=_cases,
    measure=measure,
    options={
        "name": {"choices": (*_ROWS, "row")},
        "--budget-set": {"choices": ("quick", "full"), "default": "quick"},
        "--jobs": (2, "rows at a time"),
        "--method": {"choices": METHODS, "help": "of a single row"},
        "--steps": {"type": int, "nargs": "+", "help": "network evaluations a draw, of a row"},
        "--budget": ("2000it", "training iterations of a row"),
        "--seeds": (1, "number of seeds, of a row"),
        "--seed": (0, "first seed, of a row"),
        "--num-samples": (4_000, "draws behind each line"),
    },
    file=lambda settings: f"table-{settings['name']}",
    command=command,
    report=Report(
        __doc__,
        Table(
            """target: {target} | method: {method} | NFE: {num_steps} | weights: {bound} {note} |
            ELBO: {elbo} | EUBO: {eubo} | abs. error of log Z: {log_z_error} | ESS: {ess} |
            folded: {folded} | Sinkhorn: {sinkhorn} | modes missed: {num_missed_modes} |
            training s: {training_seconds} | drawing s: {sampling_seconds} |
            densities: {density_evaluations}""",
            rows=_shown,
        ),
        PUBLISHED["note"],
        figure=_figure,
        more=(
            Table(
                """target: {target} | method: {method} | NFE: {num_steps} | source: {source} |
                figures: {values}""",
                "Published, with no row of the same kind above",
                f"{_listed('sources')}. Warnings: {_listed('warnings')}",
                _others,
            ),
        ),
    ),
)
