"""How far the diagnostics can be believed: many small runs, among them ones that must fail.

A run is a base, a calibrated step and its evidence; every second case is in double precision.
Fitted Gaussians are fitted anew for each seed, mixtures once for all seeds of a case (their shapes
could differ otherwise); the look for modes is taken once for each target, from starts that no run
knows of. A run passes if its verdict is "trusted" or "usable". Off is what is wrong by more than
0.05 nats and 5 standard errors.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consistent_samplers as cs
from benchmarks.case import Benchmark, Case, Settings
from benchmarks.methods import shaken
from benchmarks.models import honest
from benchmarks.report import Report, Row, Table, grouped
from consistent_samplers.bases import GaussianBase
from consistent_samplers.bases.exploration import find_modes
from consistent_samplers.types import Draws, PRNGKey

# Nats of error, and standard errors, that no run should pass the diagnostics with.
SILENT_ERROR, SILENT_STDERRS = 0.05, 5.0
_Z95, _WORKS = 1.96, "meant to work"


@functools.cache
def _plan() -> tuple[honest.Plan, ...]:
    return tuple(honest.cases())


def name_of(plan: honest.Plan) -> str:
    """A target by its name and dimension."""
    return f"{plan.target.name}, {plan.target.dim}-d"


def _cases(settings: Settings, rows: list[Row]) -> Iterator[Case]:
    for number, plan in enumerate(_plan()):
        if (name := name_of(plan)) in settings["names"]:
            given = {**settings, "number": number}
            yield Case(name, plan.fails or _WORKS, seed=settings["seed"], settings=given)


def measure(case: Case) -> list[Row]:
    """All runs of a case, trained side by side in one computation."""
    number, plan = case.settings["number"], _plan()[case.settings["number"]]
    double, target = number % 2 == 1, plan.target

    def train(key: PRNGKey, base: Any) -> Draws:
        key_fit, key_draw = jax.random.split(key)
        algorithm = cs.osds(target, base=base, guidance=None, hidden=(32, 32))
        state = algorithm.init(key_fit)
        if plan.untrained:
            state = state._replace(ema_params=shaken(key_fit, state.ema_params, plan.untrained))
        else:
            rate = optax.cosine_decay_schedule(1e-2, plan.iterations)
            step = cs.calibration(algorithm, **({"learning_rate": rate} | plan.settings))
            keys, start = jax.random.split(key_fit, plan.iterations), step.restart(state)
            state, _ = jax.lax.scan(lambda s, key: (step.step(key, s)[0], None), start, keys)
        return algorithm.sample(key_draw, state, case.settings["num_samples"])

    with jax.enable_x64(double):
        key = jax.random.fold_in(jax.random.key(case.seed), number)
        pairs = [jax.random.split(key) for key in jax.random.split(key, case.settings["seeds"])]
        bases = first = plan.base(pairs[0][0], target)
        if isinstance(first, GaussianBase):
            others = [plan.base(pair[0], target) for pair in pairs[1:]]
            bases = jax.tree.map(lambda *parts: jnp.stack(parts), first, *others)
        over = 0 if isinstance(first, GaussianBase) else None
        keys = jnp.stack([pair[1] for pair in pairs])
        draws = jax.jit(jax.vmap(train, (0, over)))(keys, bases)
        every = [jax.tree.map(lambda leaf, i=i: leaf[i], draws) for i in range(len(keys))]
        modes = _modes(name_of(plan), double)
        return [_row(target, seed, run, modes) for seed, run in enumerate(every)]


@functools.cache
def _modes(name: str, double: bool) -> Any:
    """What is found from fresh starts on a target, in the precision of now."""
    numbered = enumerate(_plan())
    plan = next(of for i, of in numbered if i % 2 == double and name_of(of) == name)
    return find_modes(jax.random.key(2**20), plan.target)


def _row(target: cs.Target, seed: int, draws: Draws, modes: Any) -> Row:
    """What one run says of itself, and the truth."""
    e, (position, log_weight) = cs.evidence(draws), (draws.position, draws.log_weight)
    exploration = cs.diagnostics.exploration_check(
        jax.random.key(seed), target, position, float(e.log_z), log_weight=log_weight, modes=modes
    )
    error, stderr = float(e.log_z) - float(target.log_z or 0.0), float(e.log_z_stderr)
    row = {"run": seed, "double": draws.position.dtype == jnp.float64, "ess": float(e.ess)}
    row |= {"error": error, "log_z_stderr": stderr, "covered": abs(error) <= _Z95 * stderr + 1e-4}
    row["level"] = cs.diagnostics.verdict(e, exploration).level
    return row | {"weights_passed": bool(cs.diagnostics.is_trustworthy(e))}


def _passed(row: Row) -> bool:
    return bool(row["level"] != "not to be used")


def _is_off(row: Row) -> bool:
    return abs(row["error"]) > max(SILENT_ERROR, SILENT_STDERRS * row["log_z_stderr"])


def _summary(rows: Sequence[Row]) -> Row:
    """The figures asked for."""
    passed, off = ([row for row in rows if f(row)] for f in (_passed, _is_off))
    works = [row for row in rows if row["method"] == _WORKS]
    covered = sum(row["covered"] for row in passed)
    return {
        "densities": len({row["target"] for row in rows}),
        "double": sum(row["double"] for row in rows),
        "fails": len(rows) - len(works),
        "passed": len(passed),
        "trusted": sum(row["level"] == "trusted" for row in rows),
        "covered": covered,
        "covered_share": 100 * covered / max(len(passed), 1),
        "silent": sum(map(_is_off, passed)),
        "blind": sum(row["weights_passed"] for row in off),
        "off": len(off),
        "flagged": sum(not _passed(row) for row in off),
        "works": len(works),
        "cried": sum(not _passed(row) and not _is_off(row) for row in works),
    }


def _kinds(rows: Sequence[Row]) -> list[Row]:
    """A row a case."""
    found = []
    for (target, method), of in grouped(rows, "target", "method").items():
        row = _summary(of) | {"target": target, "method": method, "runs": len(of)}
        row["usable"] = row["passed"] - row["trusted"]
        row |= {name: float(np.median([run[name] for run in of])) for name in ("error", "ess")}
        found.append(row)
    return found


BENCHMARK = Benchmark(
    name="honesty",
    names=lambda settings: list(dict.fromkeys(map(name_of, _plan()))),
    cases=_cases,
    measure=measure,
    options={
        "--seeds": (6, "runs of each case"),
        "--seed": (1, "of all of them"),
        "--num-samples": (4_000, "weighted draws of each run"),
    },
    report=Report(
        __doc__,
        Table(
            """target: {target} | meant to fail by: {method} | runs: {runs} | trusted: {trusted} |
            usable: {usable} | covered of those: {covered} | off: {off} |
            of those flagged: {flagged} | median error: {error:+.3g} | median ESS: {ess:.2g}""",
            rows=_kinds,
        ),
        """{rows} runs on {densities} densities, {double} of them in double precision and \
{fails} of them meant to fail.

- {passed} runs pass, {trusted} of them trusted; the 95 % interval of log Z covers the truth in \
{covered} of them ({covered_share:.1f} %; to 1e-4, the rounding of float32).
- Runs that pass and are off: **{silent}**. Without the look for modes from outside it would be \
{blind}.
- Of {off} runs that are off, {flagged} are flagged.
- Of {works} runs that are meant to work, {cried} are right and flagged.""",
        _summary,
    ),
)
