"""What distillation and more steps add to the calibrated single step."""

import time
from pathlib import Path
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import registry
from benchmarks.rows import cell, save, versions_and_device
from consistent_samplers.estimate import Evidence
from consistent_samplers.recipe import TrainedSampler

_MAX_STEPS = 16
_STEPS = (1, 2, 4, 8, 16)
_FIGURES = ("elbo", "elbo_stderr", "ess")


def run(targets: list[str], num_samples: int, seed: int, output: Path) -> dict[str, Any]:
    """Trains with and without distillation and weighs draws of every number of steps.

    Args:
      targets: names in the registry, with known log Z.
      num_samples: draws behind each figure.
      seed: of training.
      output: folder for steps.json and steps.md.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a target that is not in the registry, or whose log Z is not known.
    """
    results: dict[str, Any] = {
        "command": f"python -m benchmarks steps --targets {' '.join(targets)} "
        f"--num-samples {num_samples} --seed {seed}",
        **versions_and_device(),
        "rows": [],
    }
    for name in targets:
        if name not in registry.TARGETS:
            raise ValueError(f"target must be one of {', '.join(registry.TARGETS)}, got {name!r}.")
        target = registry.TARGETS[name].build()
        if target.log_z is None:
            raise ValueError(f"The true log Z of {name} is not known: take another target.")
        for found in _measured(target, num_samples, seed):
            results["rows"].append({"target": name, "true_log_z": target.log_z, **found})
        print(f"{name}: trained and measured", flush=True)
    return save(output, "steps", results, markdown)


def _measured(target: cs.Target, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one target: base, one step with and without distillation, distilled steps."""
    key, key_draw = jax.random.key(seed), jax.random.fold_in(jax.random.key(seed), 2**20)
    rows: list[dict[str, Any]] = []

    def add(sampler: str, num_steps: int, seconds: float, e: Evidence) -> None:
        row: dict[str, Any] = {name: float(getattr(e, name)) for name in _FIGURES}
        # The base alone is no map that could fold.
        row["folded"] = None if e.folded is None else float(e.folded)
        rows.append({"sampler": sampler, "num_steps": num_steps, "seconds": seconds, **row})

    def train(max_steps: int) -> tuple[TrainedSampler, float]:
        start = time.perf_counter()
        trained = cs.train_sampler(
            key, target, effort="full", max_steps=max_steps, progress_bar=False
        )
        return trained, time.perf_counter() - start

    trained, seconds = train(1)
    add("base alone", 1, 0.0, trained.stages["base"])
    add("calibrated", 1, seconds, trained.evidence(key_draw, num_samples))
    trained, seconds = train(_MAX_STEPS)
    add("distilled, then calibrated", 1, seconds, trained.evidence(key_draw, num_samples))
    for num_steps in _STEPS:
        draws = trained.many_steps.sample(key_draw, target, num_samples, num_steps)
        add("distilled", num_steps, seconds, cs.evidence(draws))
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Gaps of the ELBO to log Z and shares of effective draws, a row a sampler."""
    text = [
        "# What distillation and more steps add",
        "",
        f'Made by `{results["command"]}`: `cs.train_sampler(..., effort="full")`, one '
        f"step calibrated at once, and with `max_steps={_MAX_STEPS}`, the same step after "
        "distillation by OSDS and the distilled sampler itself at 1 to 16 steps. All weights exact "
        '("lower-if-injective"). Seconds are those of the whole call, compilation included; the '
        "second call of a target finds a part of it compiled.",
        "",
        "| target | sampler | steps | log Z - ELBO | ESS | folded | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        gap = f"{cell(row['true_log_z'] - row['elbo'])} ± {cell(row['elbo_stderr'])}"
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else ""
        cells = (row["num_steps"], gap, cell(row["ess"]), cell(row["folded"]), seconds)
        text.append(f"| {row['target']} | {row['sampler']} | {' | '.join(map(str, cells))} |")
    return "\n".join(text) + "\n"
