"""Where the papers' heuristic ELBO exceeds the true log Z, and by how much."""

import math
import time
from pathlib import Path
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import registry, table_figures
from benchmarks.methods import Budget, train
from benchmarks.rows import cell, number, save, versions_and_device

_STEPS = (1, 8, 128)
_BATCH_SIZE = 64
# The paper's steps grow a Cox process of 1,600 dimensions by minutes, not seconds.
_SHARES_OF_ITERATIONS = {"lgcp": 0.1}


def run(
    targets: list[str] | None,
    num_iterations: int,
    num_samples: int,
    seed: int,
    output: Path,
) -> dict[str, Any]:
    """Trains ``cs.osds.paper`` briefly on each target and compares its heuristic with the truth.

    Args:
      targets: names in the registry; all with a known log Z if None.
      num_iterations: training iterations (a tenth on lgcp).
      num_samples: draws behind each figure.
      seed: seed of everything.
      output: folder for heuristic.json, heuristic.md and heuristic.png.

    Returns:
      What was written to the JSON file.
    """
    start = time.perf_counter()
    command = f"python -m benchmarks heuristic --num-iterations {num_iterations}"
    command += f" --num-samples {num_samples} --seed {seed}"
    if targets is not None:
        command += " --targets " + " ".join(targets)
    results: dict[str, Any] = {
        "command": command,
        "settings": {
            "preset": "cs.osds.paper",
            "batch_size": _BATCH_SIZE,
            "num_iterations": num_iterations,
            "num_samples": num_samples,
            "seed": seed,
        },
        **versions_and_device(),
        "skipped": {},
        "rows": [],
    }
    for name in targets or registry.TARGETS:
        try:
            built = registry.TARGETS[name].build()
        except (ImportError, ConnectionError, FileNotFoundError) as error:
            results["skipped"][name] = f"{type(error).__name__}: {error}"
            print(f"{name:>20} skipped: {error}", flush=True)
            continue
        if built.log_z is None:
            continue
        results["rows"] += _rows(name, built, num_iterations, num_samples, seed)
        for row in results["rows"][-len(_STEPS) :]:
            print(
                f"{name:>20} {row['num_steps']:>4} steps: heuristic ELBO {cell(row['elbo'])}, "
                f"true log Z {built.log_z:.4f}, excess {cell(row['elbo_excess'])}",
                flush=True,
            )
    results["wall_seconds"] = time.perf_counter() - start
    return save(output, "heuristic", results, markdown, table_figures.heuristic)


def _rows(
    name: str, target: cs.Target, num_iterations: int, num_samples: int, seed: int
) -> list[dict[str, Any]]:
    assert target.log_z is not None
    base, words = registry.build_base(registry.TARGETS[name], target)
    algorithm = cs.osds.paper(target, base=base, batch_size=_BATCH_SIZE)
    key_fit, key_draw = jax.random.split(jax.random.key(seed))
    iterations = max(1, round(_SHARES_OF_ITERATIONS.get(name, 1.0) * num_iterations))
    state, stage = train(key_fit, algorithm, Budget(iterations=iterations))
    rows = []
    for num_steps in _STEPS:
        row: dict[str, Any] = {
            "target": name,
            "true_log_z": target.log_z,
            "base": words,
            "num_steps": num_steps,
            "training": stage,
            **dict.fromkeys(("elbo", "elbo_stderr", "log_z", "log_z_stderr", "elbo_excess")),
        }
        draws = algorithm.sample(key_draw, state, num_samples, num_steps, method="heuristic")
        try:
            e = cs.evidence(draws)
        except ValueError as error:
            row["error"] = str(error)
        else:
            for field in ("elbo", "elbo_stderr", "log_z", "log_z_stderr"):
                row[field] = float(getattr(e, field))
            row["elbo_excess"] = row["elbo"] - target.log_z
            row["log_z_excess"] = row["log_z"] - target.log_z
        rows.append(row)
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown; an excess above two standard errors is set in bold."""
    names = list(dict.fromkeys(row["target"] for row in results["rows"]))
    exceeding = {row["target"] for row in results["rows"] if exceeds(row)}
    text = [
        "# The heuristic ELBO against the true log Z",
        "",
        f"Made by `{results['command']}`: cs.osds.paper at batch {_BATCH_SIZE}, trained for a "
        f"short time. The ELBO exceeds the true log Z on {len(exceeding)} of {len(names)} targets "
        "(bold: by more than two standard errors), which no lower bound can.",
        "",
        "| target | true log Z | steps | heuristic ELBO | ELBO - log Z | heuristic log Z | "
        "log Z - truth | iterations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        excess = cell(row["elbo_excess"])
        excess = f"**{excess}**" if exceeds(row) else excess
        error = number(row["elbo_stderr"])
        elbo = cell(row["elbo"]) + (f" ± {error:.2g}" if math.isfinite(error) else "")
        cells = (
            row["target"],
            f"{row['true_log_z']:.4f}",
            str(row["num_steps"]),
            elbo or "not finite",
            excess,
            cell(row["log_z"]),
            cell(row.get("log_z_excess")),
            str(row["training"]["iterations"]),
        )
        text.append("| " + " | ".join(cells) + " |")
    text += ["", *(f"Skipped: {name} ({why})" for name, why in results["skipped"].items())]
    return "\n".join(text).rstrip() + "\n"


def exceeds(row: dict[str, Any]) -> bool:
    """Whether the ELBO is above the true log Z by more than two standard errors."""
    return number(row["elbo_excess"]) > 2.0 * number(row["elbo_stderr"])
