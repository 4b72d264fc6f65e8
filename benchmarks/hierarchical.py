"""Hierarchical models with the defaults, beside NUTS and the base alone: right, and how soon?

Each measurement is a process of its own, timed from before it starts. NUTS has 4 vectorised chains
of 1,000 warm-up iterations and blocks of 1,000 draws. What is extrapolated: draws that are missing
from 1,000 effective ones are charged at the seconds of a draw when everything is compiled. Truth is
long NUTS in double precision, centred or not, whichever mixes better. Errors: the largest of all
sites' means in standard deviations, and of standard deviations in their own, beyond two standard
errors of the truth. Seconds: to 1,000 effective draws.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import race, truth
from benchmarks.case import Benchmark, Case
from benchmarks.process import isolated
from benchmarks.report import Report, Row, Table, wide

# A child imports JAX after its settings: it is imported where it is needed.

MEAN_LIMIT, STD_LIMIT = 0.1, 0.1
"""Standard deviations by which a mean may be off, and share by which a standard deviation may."""
ENOUGH = 1_000
"""Effective draws whose time is compared."""


def _names(settings: Mapping[str, Any]) -> list[str]:
    from benchmarks.models.hierarchical import MODELS

    return list(MODELS)


def _cases(settings: Mapping[str, Any], rows: list[Row]) -> Iterator[Case]:
    for name in settings["names"]:
        for method in ("ours", "nuts"):
            yield Case(name, method, seed=settings["seed"], settings=settings)


def measure(case: Case) -> list[Row]:
    """A model by one of the methods; ours is held against the truth."""
    limit = case.settings["limit"]
    found = measured(case.target, case.method, case.seed, limit)
    if case.method == "ours":

        def compute() -> Row:
            return isolated("benchmarks.hierarchical:reference", {"name": case.target}, 4 * limit)

        found |= judged(found, truth.kept("hierarchical", case.target, compute))
    unread = ("moments", "verdict", "reason", "distrusted", "call_seconds", "compile_seconds")
    return [{name: value for name, value in found.items() if name not in unread}]


def measured(name: str, method: str, seed: int, limit: float) -> Row:
    """What a process of its own finds, and its seconds to `ENOUGH` effective draws."""
    found = isolated(f"benchmarks.hierarchical:{method}", {"name": name, "seed": seed}, limit)
    if "error" in found:
        return found
    missing = max(0.0, ENOUGH - found["effective"]) if method == "ours" else 0.0
    return found | {"to_enough": found["seconds"] + missing / max(found["rate"], 1e-6)}


def judged(answer: Row, known: Row) -> Row:
    """Largest errors of moments beyond those of the truth itself, and what that makes of them."""
    if "error" in answer or "error" in known:
        return {"outcome": "crash" if "error" in answer else "no truth"}
    worst = {"mean": 0.0, "std": 0.0}
    for site, (mean, std, effective) in known["moments"].items():
        if site not in answer["moments"]:
            continue
        own = answer["moments"][site]
        noise = 2.0 / effective**0.5
        worst["mean"] = max(worst["mean"], abs(own[0] - mean) / std - noise)
        worst["std"] = max(worst["std"], abs(own[1] / std - 1.0) - noise)
    wrong = worst["mean"] > MEAN_LIMIT or worst["std"] > STD_LIMIT
    return {"worst": worst, "outcome": truth.outcome(wrong, answer["level"] != "not to be used")}


def _beside(rows: Sequence[Row]) -> list[Row]:
    """A row a model, with how much faster further draws come than NUTS's."""
    found = wide(rows)
    for row in found:
        rates = [row.get(method, {}).get("rate") for method in ("ours", "nuts")]
        if all(rates):
            row["ratio"] = rates[0] / rates[1]
        if "error" in row.get("ours", {}):
            row["error"] = row["ours"]["error"]
    return found


# --- In the child -------------------------------------------------------------------------------


def ours(name: str, seed: int) -> Row:
    """A model with the defaults."""
    import jax

    from benchmarks.models.hierarchical import model_of

    found = race.ours(race.Subject(model_of(name)), jax.random.key(seed))
    return found.row | {"moments": _moments(found.samples, found.row["effective"])}


def nuts(name: str, seed: int) -> Row:
    """NUTS on the same model."""
    import jax

    from benchmarks.models.hierarchical import model_of

    sizes: dict[str, Any] = {"warm_up": 1_000, "block": 1_000, "effective": ENOUGH}
    return race.nuts(race.Subject(model_of(name)), jax.random.key(seed), **sizes).row


def reference(name: str) -> Row:
    """Moments of long NUTS."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.field import long_nuts
    from benchmarks.models.hierarchical import model_of

    draws, sizes = long_nuts(types.SimpleNamespace(model=model_of(name), args=(), kwargs={}))
    return {"moments": _moments(draws, sizes)}


def _moments(samples: dict[str, Any], effective: dict[str, float] | float) -> dict[str, Any]:
    found = {}
    for site, values in race.flat_sites(samples).items():
        size = effective if isinstance(effective, float) else effective.get(site)
        if size and np.ptp(values) > 0:
            found[site] = (float(values.mean()), float(values.std()), size)
    return found


BENCHMARK = Benchmark(
    name="hierarchical",
    names=_names,
    cases=_cases,
    measure=measure,
    options={"--limit": (900.0, "seconds of a process"), "--seed": (0, "of ours and of NUTS")},
    report=Report(
        doc=__doc__,
        words="{counts}.",
        tables=(
            Table(
                """model: {target} | d: {ours.dim} | base alone, ESS: {ours.base_ess:.2g} |
                ESS: {ours.ess:.2g} | k: {ours.pareto_k:.2f} |
                log Z: {ours.log_z:.3f} ± {ours.log_z_stderr:.2g} | level: {ours.level} |
                mean: {ours.worst.mean:.2f} | std: {ours.worst.std:.2f} |
                outcome: {ours.outcome} | route: {ours.route} | seconds: {ours.to_enough:.0f} |
                NUTS: {nuts.to_enough:.0f} | draws a second over NUTS's: {ratio:.3g}""",
                rows=_beside,
            ),
        ),
        summary=truth.counts,
    ),
)
