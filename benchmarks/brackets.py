"""Log Z from both sides, models compared, and posteriors as priors, held against the truth.

Default settings everywhere. Brackets: one training for each target and key, its bracket, and
importance weights of as many one-step draws as the bracket took of both kinds. A bracket is flagged
where its level is "not to be used". Truth counts as inside up to three standard errors of a bound,
and as covered by the 95 % interval of log Z; errors of the truth itself are added to both.
Comparison: pairs of nested regressions with closed-form Bayes factors. Nested sampling: JAXNS with
its own defaults, on the same evidence, beside the bracket of the same key. Streaming: a logistic
regression in ten batches, each posterior the next prior, against quadrature over all data.
"""

import functools
import math
import shlex
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import consistent_samplers as cs
from benchmarks import registry
from benchmarks.case import Benchmark, Case
from benchmarks.models import brackets as models
from benchmarks.process import isolated
from benchmarks.report import Report, Row, Table, goal
from consistent_samplers.bayes_factors import BAYES_FACTOR_WORDS
from consistent_samplers.diagnostics import LEVELS

_NAMED = (
    *("gmm9", "gmm40", "rings", "rosenbrock", "mw54", "funnel", "credit", "credit_likelihood"),
    *("seeds", "cancer", "brownian", "many_well", "ionosphere", "gmm40_50d", "mw52"),
    *("student_t_mixture", "sonar", "lgcp"),
)
TARGETS: dict[str, Callable[[], cs.Target]] = {
    "eight_schools": models.eight_schools,
    "hierarchical": models.hierarchical,
    **{name: registry.TARGETS[name].build for name in _NAMED},
}
# Standard errors of log Z that is not exact, and what single precision rounds.
ERRORS = {"credit": 7e-4, "credit_likelihood": 5e-4, "seeds": 5e-4, "cancer": 3.6e-3}
ERRORS |= {"ionosphere": 2.2e-3, "sonar": 3.1e-3, "lgcp": 0.011}
_ROUNDED = 1e-6
WIDTHS = {0.5: 0.1, 0.05: 1.0}
"""Nats between the bounds, at most, where one step has such a share of effective draws."""
MAX_SHIFT = 0.1
"""Standard deviations by which a stream's posterior means may be off."""
_QUANTILE, _NUM_DRAWS = 1.96, 10_000
_DECISIVE = list(BAYES_FACTOR_WORDS)[-2:-1][0], list(BAYES_FACTOR_WORDS.values())[-1]

# --- What is measured ---------------------------------------------------------------------------

_COUNTS = {
    "brackets": "seeds",
    "comparison": "data_sets",
    "nested": "nested",
    "streaming": "streams",
}
_NAMES: dict[str, Iterable[str]] = {"brackets": TARGETS, "nested": models.NESTED}
_NAMES |= {"comparison": ["nested_regressions"], "streaming": ["logistic_stream"]}


def _cases(settings: Mapping[str, Any], rows: list[Row]) -> Iterator[Case]:
    for name in settings["names"]:
        for part in (part for part in settings["parts"] if name in list(_NAMES[part])):
            for seed in range(settings[_COUNTS[part]]):
                given = dict(settings)
                if part == "nested":
                    key = (name, "brackets", seed)
                    given["ours"] = next((row for row in rows if _key(row) == key), None)
                    if given["ours"] is None:
                        raise ValueError(f"No bracket of {name}, seed {seed}: run it first.")
                yield Case(name, part, seed=seed, settings=given)


def _key(row: Row) -> tuple[Any, ...]:
    return row["target"], row["method"], row["seed"]


def measure(case: Case) -> list[Row]:
    """One run of one part."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of draws, the rows' levels say
        return [_MEASURES[case.method](case)]


@functools.cache
def _built(name: str) -> cs.Target:
    """The same one for all keys: its programs are compiled for the first."""
    return TARGETS[name]()


def _bracket(case: Case) -> Row:
    target, key = _built(case.target), jax.random.key(case.seed)
    begin = time.perf_counter()
    trained = cs.train_sampler(key, target, progress_bar=False)
    training = time.perf_counter() - begin
    begin = time.perf_counter()
    found = trained.bracket(jax.random.fold_in(key, 2**20), _NUM_DRAWS)
    row: Row = found._asdict() | {"of": found.method, "seconds": time.perf_counter() - begin}
    num = _NUM_DRAWS + found.num_target_draws
    own = trained.evidence(jax.random.fold_in(key, 2**20 + 1), num)
    row |= {"dim": target.dim, "training": training, "true": target.log_z, "ess": float(own.ess)}
    row["importance"] = {"log_z": float(own.log_z), "stderr": float(own.log_z_stderr)}
    row["route"] = None if trained.route is None else trained.route.name
    del row["method"], row["note"]  # a row's own method is its part
    return judged(row, ERRORS.get(case.target, _ROUNDED))


def judged(row: Row, error: float) -> Row:
    """A bracket's row with what the truth says of it."""
    off, slack = row["log_z"] - row["true"], 3.0
    below = row["true"] - row["lower"] + slack * math.hypot(row["lower_stderr"], error)
    above = math.inf
    if row["upper"] is not None:
        above = row["upper"] - row["true"] + slack * math.hypot(row["upper_stderr"], error)
        row["width"] = row["upper"] - row["lower"]
    row |= {"off": off, "inside": below >= 0.0 <= above, "flagged": row["level"] == LEVELS[-1]}
    row["importance"]["off"] = row["importance"]["log_z"] - row["true"]
    row["ratio"] = row["stderr"] / row["importance"]["stderr"]
    return row | {"covered": abs(off) <= _QUANTILE * math.hypot(row["stderr"], error)}


def _comparison(case: Case) -> Row:
    from consistent_samplers.integrations.numpyro import OneStepSampler

    key, begin = jax.random.key(case.seed), time.perf_counter()
    both, true = models.nested_regressions(case.seed)
    samplers = {}
    for name, data in both.items():
        samplers[name] = OneStepSampler(models.regression, progress_bar=False)
        samplers[name].run(key, *data)
    found = cs.compare(jax.random.fold_in(key, 1), samplers, loo=False).factor("larger", "smaller")
    limit, decisive = _DECISIVE
    side = math.copysign(1.0, found.log_factor)
    return found._asdict() | {
        **{"dim": 5, "true": true, "off": found.log_factor - true, "stderr": found.stderr},
        "covered": found.low <= true <= found.high,
        "decisive": found.words == decisive,
        "wrong": found.words == decisive and side * true <= limit,
        "seconds": time.perf_counter() - begin,
    }


def _nested(case: Case) -> Row:
    ours = case.settings["ours"]
    given = {"name": case.target, "seed": case.seed}
    row = isolated(
        "benchmarks.brackets:jaxns", given, case.settings["limit"], {"JAX_ENABLE_X64": "1"}
    )
    row["ours"] = {name: ours[name] for name in ("log_z", "stderr", "off")}
    row["ours"]["seconds"] = ours["training"] + ours["seconds"]
    if "error" in row:
        return row
    apart = row["log_z"] - row["ours"]["log_z"]
    return row | {
        **{"dim": ours["dim"], "true": ours["true"], "off": row["log_z"] - ours["true"]},
        "apart": apart / math.hypot(row["stderr"], row["ours"]["stderr"]),
        "covered": abs(row["log_z"] - ours["true"]) <= _QUANTILE * row["stderr"],
    }


def jaxns(name: str, seed: int) -> Row:
    """Log Z by JAXNS (Albert, 2020) with its defaults, in a process of its own."""
    import jax.numpy as jnp
    from jaxns.core import NestedSampler
    from jaxns.model import Model
    from jaxns.priors import Prior
    from tensorflow_probability.substrates.jax.distributions import Uniform

    dim, log_likelihood = models.NESTED[name]()

    def model() -> Any:
        return log_likelihood(Prior(Uniform(jnp.zeros(dim), jnp.ones(dim)), name="u").realise())

    found = (
        NestedSampler(model=Model(prior_model=model)).run(key=jax.random.PRNGKey(seed)).to_result()
    )
    log_z, stderr = float(found.log_Z_mean), float(found.log_Z_uncert)
    calls = int(found.total_num_likelihood_evaluations)
    return {"log_z": log_z, "stderr": stderr, "evaluations": calls}


def _streaming(case: Case) -> Row:
    from consistent_samplers.integrations.numpyro import OneStepSampler

    key, begin = jax.random.key(case.seed), time.perf_counter()
    batches, (mean, std), true = models.stream(case.seed)
    whole = [np.concatenate(part) for part in zip(*batches, strict=True)]
    prior: tuple[Any, ...] = ()
    log_z = variance = 0.0
    for i, batch in enumerate([*batches, whole]):
        last = i == len(batches)
        sampler = OneStepSampler(models.logistic, progress_bar=False)
        sampler.run(jax.random.fold_in(key, i), *batch, *(() if last else prior))
        drawn = sampler.get_samples()
        values = np.c_[np.asarray(drawn["bias"]), np.asarray(drawn["slope"])]
        shift = float((np.abs(values.mean(0) - mean) / std).max())
        spread = float(np.abs(values.std(0) / std - 1.0).max())
        if last:
            break
        log_z += float(sampler.evidence.log_z)
        variance += float(sampler.evidence.log_z_stderr) ** 2
        streamed: Row = {"shift": shift, "spread": spread, "seconds": time.perf_counter() - begin}
        prior = (cs.as_prior(sampler),)
    own = sampler.evidence
    return streamed | {
        **{"dim": 3, "true": true, "log_z": log_z, "stderr": math.sqrt(variance)},
        **{"off": log_z - true, "covered": abs(log_z - true) <= _QUANTILE * math.sqrt(variance)},
        "at_once": {"shift": shift, "spread": spread, "off": float(own.log_z) - true},
    }


_MEASURES = {
    **{"brackets": _bracket, "comparison": _comparison, "nested": _nested},
    "streaming": _streaming,
}

# --- What is shown ------------------------------------------------------------------------------


def _of(part: str) -> Callable[[Sequence[Row]], list[Row]]:
    return lambda rows: [row for row in rows if row["method"] == part]


def together(rows: Sequence[Row]) -> list[Row]:
    """A row for each target and part: shares in per cent, medians of numbers."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["method"]), []).append(row)
    found = []
    for (target, part), group in groups.items():
        line: Row = {"target": target, "method": part, "runs": len(group)}
        line["failed"] = sum("error" in row for row in group)
        line["flagged"] = sum(bool(row.get("flagged")) for row in group)
        kept = [row for row in group if "error" not in row and not row.get("flagged")]
        if kept:
            line |= {name: kept[0].get(name) for name in ("dim", "of")}
            for name in ("inside", "covered"):
                line[name] = share(row[name] for row in kept if name in row)
            for name in ("off", "stderr", "ess", "width", "ratio", "training", "seconds"):
                values = [abs(row[name]) for row in kept if row.get(name) is not None]
                line[name] = float(np.median(values)) if values else None
            of = [abs(row["importance"]["off"]) for row in kept if "importance" in row]
            line["importance"] = float(np.median(of)) if of else None
        found.append(line)
    return found


def share(values: Iterable[bool]) -> float | None:
    """Per cent of them that are true; None of none."""
    found = [100.0 * bool(value) for value in values]
    return sum(found) / len(found) if found else None


def goals(rows: Sequence[Row]) -> list[Row]:
    """What is asked of all rows, each with how much there is of it."""
    good = [row for row in rows if "error" not in row and not row.get("flagged")]
    parts = {part: _of(part)(good) for part in _COUNTS}
    brackets, found = parts["brackets"], dict[str, tuple[float | None, str, float]]()
    found["truth inside the bracket, %"] = share(row["inside"] for row in brackets), ">=", 100.0
    bridges = [row["covered"] for row in brackets if row["of"] == "bridge"]
    found["95 % interval of the bridge covers, %"] = share(bridges), ">=", _least(len(bridges))
    for least, width in WIDTHS.items():
        held = share(row["width"] <= width for row in brackets if row["ess"] >= least)
        found[f"at most {width:g} nats wide at an ESS of {least:g}, %"] = held, ">=", 100.0
    ratios = [row["ratio"] for row in together(brackets)]
    smaller = share(ratio < 1.0 for ratio in ratios if ratio is not None)
    found["targets with a smaller error than importance, %"] = smaller, ">=", 200.0 / 3.0
    compared = parts["comparison"]
    covers = share(row["covered"] for row in compared), ">=", _least(len(compared))
    found["95 % interval of the Bayes factor covers, %"] = covers
    wrong = float(sum(row["wrong"] for row in compared)) if compared else None
    found["wrong decisive Bayes factors"] = wrong, "<=", 0.0
    apart = [abs(row["apart"]) for row in parts["nested"]]
    found["from nested sampling, standard errors"] = max(apart, default=None), "<=", 3.0
    shifts = [row["shift"] for row in parts["streaming"]]
    found["shift of a stream's means, standard deviations"] = (
        max(shifts, default=None),
        "<=",
        MAX_SHIFT,
    )
    covers = share(row["covered"] for row in parts["streaming"]), ">=", _least(len(shifts))
    found["95 % interval of a stream's log Z covers, %"] = covers
    return [
        {"target": what, "found": value, "goals": {"found": goal(value, sense, limit)}}
        for what, (value, sense, limit) in found.items()
        if value is not None
    ]


def _least(num: int) -> float:
    """Per cent of intervals that cover, at the least, when their probability is 95 %."""
    return 95.0 - 100.0 * _QUANTILE * math.sqrt(0.95 * 0.05 / max(num, 1))


def _summary(rows: Sequence[Row]) -> Row:
    asked, brackets = goals(rows), _of("brackets")(rows)
    return {
        "goals": len(asked),
        "met": sum(row["goals"]["found"]["met"] for row in asked),
        "brackets": len(brackets),
        "flagged": sum(bool(row.get("flagged")) for row in brackets),
        "data_sets": len(_of("comparison")(rows)),
        "decisive": sum(bool(row.get("decisive")) for row in rows),
    }


def _command(case: Case) -> str:
    """Of a row: how many others there are does not change it."""
    line = [
        "python",
        "-m",
        "benchmarks",
        "brackets",
        "--parts",
        case.method,
        "--names",
        case.target,
    ]
    return shlex.join(line)


BENCHMARK = Benchmark(
    name="brackets",
    names=lambda settings: list(dict.fromkeys(name for names in _NAMES.values() for name in names)),
    cases=_cases,
    measure=measure,
    by=("target", "method", "seed"),
    command=_command,
    options={
        "--parts": {"nargs": "+", "choices": tuple(_COUNTS), "default": tuple(_COUNTS)},
        "--seeds": (10, "keys of each target's brackets"),
        "--data-sets": (50, "pairs of nested regressions"),
        "--nested": (3, "keys of nested sampling"),
        "--streams": (10, "streams of data"),
        "--limit": (3_600.0, "seconds of a nested sampling"),
    },
    report=Report(
        doc=__doc__,
        table=Table(
            """target: {target} | part: {method} | d: {dim} | runs: {runs} |
                failed: {failed} | flagged: {flagged} | inside, %: {inside:.0f} |
                95 % covers, %: {covered:.0f} | off: {off:.2g} | ±: {stderr:.2g} |
                seconds: {seconds:.0f}""",
            words="Of runs that carry no flag; off, errors and seconds are medians.",
            rows=together,
        ),
        words="""{met} of {goals} goals are met. {flagged} of {brackets} brackets are flagged, and
        {decisive} of {data_sets} Bayes factors decisive.""",
        summary=_summary,
        more=(
            Table("goal: {target} | found: {found:.3g}@found", "Goals", rows=goals),
            Table(
                """target: {target} | ESS: {ess:.2g} | by: {of} | width: {width:.2g} |
                off: {off:.2g} | of importance: {importance:.2g} |
                error over importance's: {ratio:.2f} | training, s: {training:.0f} |
                bracket, s: {seconds:.0f}""",
                "Brackets",
                "Medians of the keys, the first of which compiles. Importance has as many draws.",
                lambda rows: together(_of("brackets")(rows)),
            ),
            Table(
                """target: {target} | key: {seed} | true: {true:.3f} |
                **bracket**: {ours.log_z:.3f} ± {ours.stderr:.2g} |
                seconds: {ours.seconds:.0f} | JAXNS: {log_z:.3f} ± {stderr:.2g} |
                seconds of JAXNS: {seconds:.0f} |
                evaluations: {evaluations:.2g} | apart, standard errors: {apart:+.1f}""",
                "Nested sampling",
                """Seconds from the start, training included; compilation too, but not of brackets
                after the first key.""",
                _of("nested"),
            ),
            Table(
                """stream: {seed} | means off: {shift:.3f} | deviations off: {spread:.3f} |
                log Z off: {off:+.4f} ± {stderr:.2g} | all at once, means: {at_once.shift:.3f} |
                log Z: {at_once.off:+.4f} | seconds: {seconds:.0f}""",
                "Streaming",
                "Ten batches, then all data at once; means off in posterior standard deviations.",
                _of("streaming"),
            ),
        ),
    ),
)
