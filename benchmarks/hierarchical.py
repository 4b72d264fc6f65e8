"""Hierarchical models with the defaults, beside NUTS and the base alone: right, and how soon?

Each measurement is a process of its own, timed from before it starts. NUTS has 4 vectorised chains
of 1,000 warm-up iterations and blocks of 1,000 draws. What is extrapolated: draws that are missing
from 1,000 effective ones are charged at the seconds of a draw when everything is compiled. Truth is
long NUTS in double precision, centred or not, whichever mixes better. Quantile error: the largest
of all sites' 5, 25, 50, 75 and 95 % quantiles beyond their simultaneous 95 % errors, in robust
standard deviations. Seconds: to 1,000 effective draws. Log Z is held against the optimal bridge
between another training's map and plain NUTS in the coordinates of the model, where chains agree.
"""

import math
import types
from collections.abc import Sequence
from typing import Any

from benchmarks import race, truth
from benchmarks.case import Benchmark, Case
from benchmarks.process import isolated
from benchmarks.report import Report, Row, Table, value_at, wide

# A child imports JAX after its settings: it is imported where it is needed.

_ENOUGH = 1_000  # effective draws whose time is compared
_MOST_APART, _MAX_R_HAT = 3.0, 1.02  # standard errors of two log Z; of chains that agree
_UNREAD = ("quantiles", "verdict", "reason", "distrusted", "call_seconds", "compile_seconds")


def measure(case: Case) -> list[Row]:
    """A model by one of the methods; ours is held against the truth."""
    limit = case.settings["limit"]
    found = measured(case.target, case.method, case.seed, limit)
    if case.method == "ours":
        known = truth.kept("hierarchical", case.target, {"name": case.target}, 4 * limit)
        found |= truth.judged(found, known)
    return [{name: value for name, value in found.items() if name not in _UNREAD}]


def measured(name: str, method: str, seed: int, limit: float) -> Row:
    """What a process of its own finds, and its seconds to enough effective draws."""
    found = isolated(f"benchmarks.hierarchical:{method}", {"name": name, "seed": seed}, limit)
    if "error" in found or method == "bridge":
        return found
    missing = max(0.0, _ENOUGH - found["effective"]) if method == "ours" else 0.0
    return found | {"to_enough": found["seconds"] + missing / max(found["rate"], 1e-6)}


def _beside(rows: Sequence[Row]) -> list[Row]:
    """A row a model, with how much faster further draws come than NUTS's."""
    found = wide(rows)
    for row in found:
        rates = [value_at(row, path) for path in ("ours.rate", "nuts.rate")]
        if all(rates):
            row["ratio"] = rates[0] / rates[1]
        if error := value_at(row, "ours.error"):
            row["error"] = error
        row["apart"] = _apart(row)
    return found


def _apart(row: Row) -> float | None:
    """Standard errors between log Z of ours and of the bridge; None where there are not both."""
    ours, other = row.get("ours", {}), row.get("bridge", {})
    if "log_z" not in ours or not other.get("r_hat", math.inf) <= _MAX_R_HAT:
        return None
    stderr = math.hypot(ours["log_z_stderr"], other["log_z_stderr"])
    return float((ours["log_z"] - other["log_z"]) / stderr)


def _summary(rows: Sequence[Row]) -> Row:
    """Outcomes, and how many log Z that can be used agree with their bridges."""
    found = [row for row in _beside(rows) if row["apart"] is not None]
    apart = [abs(row["apart"]) for row in found if row["ours"]["level"] != "not to be used"]
    agreeing = sum(off <= _MOST_APART for off in apart)
    return truth.counts(rows) | {"bridged": len(apart), "agreeing": agreeing}


# --- In the child -------------------------------------------------------------------------------


def ours(name: str, seed: int) -> Row:
    """A model with the defaults."""
    import jax

    return truth.answered(race.ours(race.Subject(_model(name)), jax.random.key(seed)))


def nuts(name: str, seed: int) -> Row:
    """NUTS on the same model."""
    import jax

    sizes: dict[str, Any] = {"warm_up": 1_000, "block": 1_000, "effective": _ENOUGH}
    return race.nuts(race.Subject(_model(name)), jax.random.key(seed), **sizes).row


def bridge(name: str, seed: int) -> Row:
    """Log Z between the map of another training and NUTS on the density."""
    import jax

    from consistent_samplers.bridge import bridge

    key = jax.random.key(seed + 2**20)
    trained = race.ours(race.Subject(_model(name)), key).sampler.trained
    target, sampler = trained.target, trained.one_step
    found = race.nuts(race.Subject(target), key, block=1_000, effective=_ENOUGH)
    weights = sampler.log_weight(key, target, found.samples["x"], 1).reshape(race.CHAINS, -1)
    own = sampler.sample(jax.random.fold_in(key, 1), target, 10_000)
    row = bridge(own.log_weight, weights)._asdict()
    return row | {name: found.row[name] for name in ("r_hat", "draws", "effective")}


def reference(name: str) -> Row:
    """Quantiles of long NUTS."""
    import jax

    jax.config.update("jax_enable_x64", True)
    module = types.SimpleNamespace(model=_model(name), args=(), kwargs={})
    return truth.of_draws(*truth.long_nuts(module))


def _model(name: str) -> Any:
    from benchmarks.models.hierarchical import model_of

    return model_of(name)


def _names(settings: Any) -> list[str]:
    from benchmarks.models.hierarchical import MODELS

    return list(MODELS)


BENCHMARK = Benchmark(
    name="hierarchical",
    names=_names,
    methods=("ours", "nuts", "bridge"),
    measure=measure,
    options={"--limit": (900.0, "seconds of a process"), "--seed": (0, "of ours and of NUTS")},
    report=Report(
        __doc__,
        Table(
            """model: {target} | d: {ours.dim} | ESS of the base: {ours.base_ess:.2g} |
            ESS: {ours.ess:.2g} | k: {ours.pareto_k:.2f} |
            log Z: {ours.log_z:.3f} ± {ours.log_z_stderr:.2g} |
            of the bridge: {bridge.log_z:.3f} ± {bridge.log_z_stderr:.2g} |
            apart, standard errors: {apart:+.1f} | level: {ours.level} |
            quantile error: {ours.quantile_error:.2f} {ours.worst_site} |
            outcome: {ours.outcome} | route: {ours.route} | seconds: {ours.to_enough:.0f} |
            NUTS: {nuts.to_enough:.0f} | draws a second over NUTS's: {ratio:.3g}""",
            rows=_beside,
        ),
        """{counts}. Of {bridged} log Z that can be used and have a bridge whose chains agree,
        {agreeing} are within three standard errors of it.""",
        _summary,
    ),
)
