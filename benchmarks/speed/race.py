"""Time to a number of effective draws against NUTS on the same log density, and of further ones.

With the default route, trained in full, and in full with a structured network. From the call to
the draws, compilation, training and warm-up included, imports not; our programs are kept from one
process to the next, from an empty folder. NUTS is NumPyro's with 4 vectorised chains. The rates of
further draws leave out all that comes before the first.
"""

import tempfile
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.process import isolated
from benchmarks.report import Row
from benchmarks.speed.cases import Sizes, held

SETTINGS: dict[str, dict[str, Any]] = {
    "default route": {},
    "full": {"effort": "full"},
    "structured, full": {"effort": "full", "network": "structured"},
}


def measure(sizes: Sizes) -> list[Row]:
    """Two rows a target and settings: the time and the rate, over those of NUTS."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        variables = {"CONSISTENT_SAMPLERS_CACHE": folder, "JAX_COMPILATION_CACHE_DIR": ""}
        for name in sizes.raced:
            runs: dict[str, list[Row]] = {who: [] for who in (*SETTINGS, "NUTS")}
            for seed in range(sizes.process_rounds):
                common = {"name": name, "seed": seed, "effective": sizes.effective}
                for settings, given in SETTINGS.items():
                    train = {"train": given | sizes.train}
                    function = "benchmarks.first:ours"
                    runs[settings].append(isolated(function, common | train, variables=variables))
                enough = {"enough": sizes.effective}
                nuts = isolated("benchmarks.first:nuts", common | enough | sizes.nuts)
                runs["NUTS"].append(nuts)
            rows += _rows(name, runs, sizes.effective)
    return rows


def _rows(name: str, runs: dict[str, list[Row]], effective: int) -> list[Row]:
    rows = []
    for who in SETTINGS:
        if errors := [run["error"] for run in runs[who] + runs["NUTS"] if "error" in run]:
            rows.append({"subject": name, "what": f"{name}, {who}", "error": errors[0]})
            continue
        seconds, rates = (
            [np.array([run[key] for run in runs[of]]) for of in (who, "NUTS")]
            for key in ("call_seconds", "rate")
        )
        what = f"{name}, {who}: time of NUTS to {effective:,} effective draws over ours"
        faster, limit = timing.spread(seconds[1] / seconds[0]), 5.0 if name == "seeds" else 1.0
        rows.append(held(name, what, faster, ">=", limit) | {"route": runs[who][0]["route"]})
        what = f"{name}, {who}: further effective draws a second, over NUTS's"
        rows.append(held(name, what, timing.spread(rates[0] / rates[1]), ">=", 100.0))
    return rows
