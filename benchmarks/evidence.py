"""Evidence at one step on every target, with no setting of any target's own.

`cs.train_sampler(rng_key, target, effort="full")` and nothing else. Time is from the call to the
end of training, compilation included. "valid": ELBO ≤ log Z + 3 s.e., and |log Z estimate - truth|
≤ 3 s.e. + the tolerance. In brackets the goal, a cross where it is missed.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import optax

import consistent_samplers as cs
from benchmarks import baselines, registry
from benchmarks.case import Benchmark, Case, Settings
from benchmarks.race import figures
from benchmarks.report import Report, Row, Table, goal, grouped, wide
from benchmarks.timing import timed
from consistent_samplers.types import Draws, PRNGKey

# What one step is held to: log Z - ELBO, at most; |log Z estimate - truth|, at most, beyond three
# standard errors; the share of effective draws, at least, if not zero; seconds of training and
# compilation, at most.
GOALS: dict[str, tuple[float, float, float, float]] = {
    **{"seeds": (0.20, 0.03, 0.3, 90), "ionosphere": (0.10, 0.02, 0.7, 90)},
    **{"sonar": (0.20, 0.03, 0.5, 150), "credit": (0.05, 0.02, 0.8, 90)},
    **{"cancer": (0.25, 0.04, 0.4, 90), "brownian": (0.30, 0.05, 0.3, 90)},
    **{"funnel": (0.15, 0.05, 0.5, 60), "gmm9": (0.05, 0.02, 0.8, 60)},
    **{"gmm40": (0.05, 0.01, 0.9, 60), "gmm40_50d": (0.05, 0.02, 0.9, 120)},
    **{"mw54": (0.03, 0.01, 0.9, 90), "mw52": (0.15, 0.05, 0.6, 150)},
    **{"many_well": (0.20, 0.03, 0.6, 150), "rings": (0.10, 0.03, 0.6, 90)},
    **{"student_t_mixture": (2.0, 0.3, 0.0, 300), "lgcp": (2.5, 0.2, 0.02, 600)},
}
_PARTS = ("recipe", "baselines")
_ONE, _STOCHASTIC = "one step", "one stochastic step"


def _cases(settings: Settings, rows: list[Row]) -> Iterator[Case]:
    """The recipe, then baselines with the time that its row took, in this run or one before."""
    for name in settings["names"]:
        for seed in range(settings["seeds"]):
            if "recipe" in settings["parts"]:
                yield Case(name, _ONE, seed=seed, settings=settings)
            if "baselines" not in settings["parts"]:
                continue
            one = grouped(rows, "target", "method", "seed").get((name, _ONE, seed))
            if one is None:
                raise ValueError(f"No row of {name}, seed {seed}, with a time: run it first.")
            for method in ("tempered SMC", *baselines.GUIDES):
                yield Case(name, method, f"{one[0]['seconds']}s", seed, settings)


def measure(case: Case) -> list[Row]:
    """One step and what is made of its sampler; or a baseline in the same time."""
    target, num = registry.TARGETS[case.target].build(), case.settings["num_samples"]
    assert target.log_z is not None
    key, rows = jax.random.key(case.seed), []

    def add(method: str, seconds: float, found: Row) -> Row:
        row = {"method": method, "dim": target.dim, "true_log_z": target.log_z, "seconds": seconds}
        rows.append(row | found | {"log_z_error": found["log_z"] - target.log_z})
        if "elbo" in found:
            rows[-1]["elbo_gap"] = target.log_z - found["elbo"]
        return rows[-1]

    if case.method != _ONE:
        key, seconds = jax.random.fold_in(key, 2**21), float(case.budget.removesuffix("s"))
        other = baselines.measured(key, target, case.method, seconds, num)
        if other is not None:
            add(case.method, other.pop("seconds"), other)
        return rows
    train = functools.partial(cs.train_sampler, effort="full", progress_bar=False)
    trained, seconds = timed(lambda: train(key, target))
    key = jax.random.fold_in(key, 2**20)
    one = add(_ONE, seconds, figures(trained.evidence(key, num)))
    one["base"] = type(trained.base).__name__.removesuffix("Base")
    one["base_gap"] = target.log_z - float(trained.stages["base"].elbo)
    one["goals"] = goals(case.target, one)
    one["valid"] = one["elbo_gap"] > -3.0 * one["elbo_stderr"] and one["goals"]["log_z"]["met"]
    draws, seconds = timed(lambda: _stochastic_step(key, trained, num))
    add(_STOCHASTIC, seconds, figures(cs.evidence(draws)))
    return rows


def goals(name: str, row: Row) -> dict[str, Row]:
    """What one step is held to; of log Z also an error of three standard errors is no failure."""
    gap, log_z, ess, seconds = GOALS[name]
    beyond = abs(row["log_z_error"]) - 3.0 * row["log_z_stderr"]
    found = {
        "elbo_gap": goal(row["elbo_gap"], "<=", gap),
        "log_z": goal(beyond, "<=", log_z),
        "seconds": goal(row["seconds"], "<=", seconds),
    }
    return found | ({"ess": goal(row["ess"], ">=", ess)} if ess else {})


def _stochastic_step(rng_key: PRNGKey, trained: cs.TrainedSampler, num: int) -> Draws:
    """The other way to one step: a stochastic one, with kernels learned both ways."""
    iterations = len(trained.histories["calibrated"].loss)
    settings: dict[str, Any] = {"learned_kernels": "both", "loss": "path_gradient"}
    settings |= {"max_steps": 1, "batch_size": 128, "anneal_iterations": 0}
    rate = optax.cosine_decay_schedule(5e-3, iterations)
    algorithm = cs.dis(trained.target, base=trained.base, learning_rate=rate, **settings)
    state = cs.fit(rng_key, algorithm, iterations, progress_bar=False).state
    return algorithm.sample(rng_key, state, num, 1)


def _one_step(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] == _ONE]


def _summary(rows: Sequence[Row]) -> Row:
    seconds = [row["seconds"] for row in _one_step(rows)]
    found = {"targets": len(seconds), "valid": sum(row["valid"] for row in _one_step(rows))}
    return found | {"least_seconds": min(seconds), "most_seconds": max(seconds)}


def _figure(rows: Sequence[Row]) -> Any:
    from benchmarks.figures import dots

    shown = [row for row in wide(rows) if _ONE in row]
    series = {method: f"{method}.elbo_gap" for method in (_ONE, *baselines.GUIDES)}
    series |= {"base alone": f"{_ONE}.base_gap"}
    series |= {"asked of one step": f"{_ONE}.goals.elbo_gap.limit"}
    label = f"{{target}} ({{{_ONE}.dim}}-d)"
    return dots(shown, label, series, "true log Z - ELBO [nats]; 1e-4 stands for less")


BENCHMARK = Benchmark(
    name="evidence",
    names=lambda settings: list(GOALS),
    cases=_cases,
    measure=measure,
    aliases=("--names", "--targets"),
    by=("target", "method", "seed"),
    options={
        "--num-samples": (10_000, "weighted draws behind each figure"),
        "--seeds": (1, "number of seeds"),
        "--parts": {"nargs": "+", "choices": _PARTS, "default": _PARTS},
    },
    report=Report(
        __doc__,
        Table(
            """target: {target} | dim: {dim} | base: {base} | gap of the base alone: {base_gap} |
            ELBO gap at one step: {elbo_gap:.4f} ± {elbo_stderr:.2g}@elbo_gap |
            log Z error: {log_z_error:+.4f} ± {log_z_stderr:.2g}@log_z | ESS: {ess}@ess |
            folded: {folded} | seconds: {seconds:.0f}@seconds | valid: {valid}""",
            rows=_one_step,
        ),
        "{met} of {goals} goals are met, and {valid} of {targets} targets are valid.",
        _summary,
        _figure,
        (
            Table(
                """target: {target} | gap of the base alone: {one step.base_gap} |
                **one step**: {one step.elbo_gap} |
                one stochastic step: {one stochastic step.elbo_gap} |
                AutoIAFNormal: {AutoIAFNormal.elbo_gap} |
                AutoBNAFNormal: {AutoBNAFNormal.elbo_gap} |
                log Z error **one step**: {one step.log_z_error} |
                tempered SMC: {tempered SMC.log_z_error} |
                of AutoIAFNormal: {AutoIAFNormal.log_z_error} |
                of AutoBNAFNormal: {AutoBNAFNormal.log_z_error} |
                seconds of the guides: {AutoIAFNormal.seconds}""",
                "Others",
                "A stochastic step is one of the generative SDE on the same base, its kernels "
                "learned both ways for as many iterations as the map was calibrated: a bound by "
                "construction at O(d). Tempered SMC is BlackJAX's, from fresh optimiser starts; it "
                "has no ELBO. The guides are NumPyro's, trained by SVI. They had the wall time, of "
                "training only for the guides, that the recipe's row took when they were run: the "
                "last column. Empty: not run, or (AutoBNAFNormal above 200 dimensions) too large.",
                wide,
            ),
        ),
    ),
)
