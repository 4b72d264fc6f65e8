"""Hierarchical models with the defaults, beside NUTS and the base alone: right, and how soon?

Each measurement is a process of its own, timed from before it starts. NUTS has 4 vectorised chains
of 1,000 warm-up iterations and blocks of 1,000 draws. What is extrapolated: draws that are missing
from 1,000 effective ones are charged at the seconds of a draw when everything is compiled. Truth is
long NUTS in double precision, centred or not, whichever mixes better. Quantile error: the largest
of all sites' 5, 25, 50, 75 and 95 % quantiles beyond their simultaneous 95 % errors, in robust
standard deviations. Seconds: to 1,000 effective draws.
"""

import types
from collections.abc import Sequence
from typing import Any

from benchmarks import race, truth
from benchmarks.case import Benchmark, Case
from benchmarks.process import isolated
from benchmarks.report import Report, Row, Table, value_at, wide

# A child imports JAX after its settings: it is imported where it is needed.

_ENOUGH = 1_000  # effective draws whose time is compared
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
    if "error" in found:
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
    return found


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
    methods=("ours", "nuts"),
    measure=measure,
    options={"--limit": (900.0, "seconds of a process"), "--seed": (0, "of ours and of NUTS")},
    report=Report(
        __doc__,
        Table(
            """model: {target} | d: {ours.dim} | ESS of the base: {ours.base_ess:.2g} |
            ESS: {ours.ess:.2g} | k: {ours.pareto_k:.2f} |
            log Z: {ours.log_z:.3f} ± {ours.log_z_stderr:.2g} | level: {ours.level} |
            quantile error: {ours.quantile_error:.2f} {ours.worst_site} |
            outcome: {ours.outcome} | route: {ours.route} | seconds: {ours.to_enough:.0f} |
            NUTS: {nuts.to_enough:.0f} | draws a second over NUTS's: {ratio:.3g}""",
            rows=_beside,
        ),
        "{counts}.",
        truth.counts,
    ),
)
