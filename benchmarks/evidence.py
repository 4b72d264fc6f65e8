"""Valid evidence at one step on every benchmark, with no setting of any target's own."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

import consistent_samplers as cs
from benchmarks import registry
from benchmarks.rows import cell, versions_and_device, write_json


class Goal(NamedTuple):
    """What a row is held to.

    Attributes:
      elbo_gap: log Z - ELBO at one step, at most.
      log_z_tolerance: |log Z estimate - truth|, at most, beyond three standard errors.
      ess: share of effective draws, at least; None where nothing is asked.
      seconds: from the call to the end of training, compilation included, at most.
    """

    elbo_gap: float
    log_z_tolerance: float
    ess: float | None
    seconds: float


GOALS = {
    "seeds": Goal(0.20, 0.03, 0.3, 90),
    "ionosphere": Goal(0.10, 0.02, 0.7, 90),
    "sonar": Goal(0.20, 0.03, 0.5, 150),
    "credit": Goal(0.05, 0.02, 0.8, 90),
    "cancer": Goal(0.25, 0.04, 0.4, 90),
    "brownian": Goal(0.30, 0.05, 0.3, 90),
    "funnel": Goal(0.15, 0.05, 0.5, 60),
    "gmm9": Goal(0.05, 0.02, 0.8, 60),
    "gmm40": Goal(0.05, 0.01, 0.9, 60),
    "gmm40_50d": Goal(0.05, 0.02, 0.9, 120),
    "mw54": Goal(0.03, 0.01, 0.9, 90),
    "mw52": Goal(0.15, 0.05, 0.6, 150),
    "many_well": Goal(0.20, 0.03, 0.6, 150),
    "rings": Goal(0.10, 0.03, 0.6, 90),
    "student_t_mixture": Goal(2.0, 0.3, None, 300),
    "lgcp": Goal(2.5, 0.2, 0.02, 600),
}


def run(targets: list[str] | None, num_samples: int, seeds: int, output: Path) -> dict[str, Any]:
    """Trains ``cs.train_sampler(rng_key, target)`` on each target and holds it to its goal.

    Args:
      targets: names of `GOALS`; all if None.
      num_samples: weighted one-step draws behind each figure.
      seeds: number of seeds.
      output: folder for evidence.json and evidence.md; rows that it already holds, of other
        targets, are kept.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a target without a goal.
    """
    unknown = [name for name in targets or () if name not in GOALS]
    if unknown:
        raise ValueError(f"target must be one of {', '.join(GOALS)}, got {unknown[0]!r}.")
    command = f"python -m benchmarks evidence --num-samples {num_samples} --seeds {seeds}"
    path = output / "evidence.json"
    output.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text())["rows"] if path.is_file() and targets else []
    for name in targets or GOALS:
        rows = [row for row in rows if row["target"] != name]
        for seed in range(seeds):
            row = _row(name, seed, num_samples)
            row["command"] = f"{command} --targets {name}"
            rows.append(row)
            print(_line(row), flush=True)
            # Written after every row: a run of half an hour may end early.
            results = {"command": command, **versions_and_device(), "rows": rows}
            write_json(path, results)
    text = markdown(json.loads(path.read_text()))
    (output / "evidence.md").write_text(text)
    print(f"\n{text}\nSaved {path} and .md")
    return results


def _row(name: str, seed: int, num_samples: int) -> dict[str, Any]:
    """Trains with the defaults and measures one step."""
    target = registry.TARGETS[name].build()
    assert target.log_z is not None
    start = time.perf_counter()
    trained = cs.train_sampler(jax.random.key(seed), target, progress_bar=False)
    seconds = time.perf_counter() - start
    e = trained.evidence(jax.random.fold_in(jax.random.key(seed), 2**20), num_samples)
    goal = GOALS[name]
    row: dict[str, Any] = {
        "target": name,
        "dim": target.dim,
        "seed": seed,
        "true_log_z": target.log_z,
        "base": type(trained.base).__name__,
        "base_elbo": float(trained.stages["base"].elbo),
        "seconds": seconds,
        "bound": e.bound,
        "verdict": cs.diagnostics.verdict(e),
        "exploration": str(trained.exploration),
        "goal": goal._asdict(),
    }
    for field in ("elbo", "elbo_stderr", "log_z", "log_z_stderr", "ess", "pareto_k"):
        row[field] = float(getattr(e, field))
    row["folded"] = None if e.folded is None else float(e.folded)
    row["elbo_gap"] = target.log_z - row["elbo"]
    error = abs(row["log_z"] - target.log_z)
    allowed = 3.0 * row["log_z_stderr"] + goal.log_z_tolerance
    row["valid"] = row["elbo_gap"] > -3.0 * row["elbo_stderr"] and error <= allowed
    row["reached"] = {
        "elbo_gap": row["elbo_gap"] <= goal.elbo_gap,
        "ess": goal.ess is None or row["ess"] >= goal.ess,
        "seconds": seconds <= goal.seconds,
    }
    return row


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['target']:>18} {row['dim']:>5}-d {row['base']:<19} gap {row['elbo_gap']:8.4f} "
        f"log Z error {row['log_z'] - row['true_log_z']:+.4f} ± {row['log_z_stderr']:.4f} "
        f"ESS {row['ess']:.3f} {row['seconds']:.0f} s "
        f"{'valid' if row['valid'] else 'NOT VALID'}, reached {row['reached']}"
    )


def markdown(results: dict[str, Any]) -> str:
    """The table; goals in brackets, a cross where one is not reached."""
    text = [
        "# Evidence at one step",
        "",
        f"Made by `{results['command']}` (a row by its own with `--targets NAME`): "
        "`cs.train_sampler(rng_key, target)` and nothing else, on "
        f"{results['device']}. Time is from the call to the end of training, compilation included. "
        '"valid": ELBO ≤ log Z + 3 s.e., and |log Z estimate - truth| ≤ 3 s.e. + the tolerance. In '
        "brackets the goal.",
        "",
        "| target | dim | base | gap of the base alone | ELBO gap at one step | log Z error | "
        "ESS | folded | seconds | valid |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        goal, reached = row["goal"], row["reached"]

        def held(value: str, name: str, goal: dict[str, Any], reached: dict[str, bool]) -> str:
            asked = "" if goal[name] is None else f" [{goal[name]:g}]"
            return value + asked + ("" if reached[name] else " ✗")

        error = row["log_z"] - row["true_log_z"]
        cells = (
            row["target"],
            str(row["dim"]),
            row["base"].removesuffix("Base"),
            cell(row["true_log_z"] - row["base_elbo"]),
            held(f"{row['elbo_gap']:.4f} ± {row['elbo_stderr']:.2g}", "elbo_gap", goal, reached),
            f"{error:+.4f} ± {row['log_z_stderr']:.2g} [{goal['log_z_tolerance']:g}]",
            held(cell(row["ess"]), "ess", goal, reached),
            cell(row["folded"]),
            held(f"{row['seconds']:.0f}", "seconds", goal, reached),
            "yes" if row["valid"] else "NO",
        )
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"
