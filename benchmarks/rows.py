"""One row of the tables: a method on a target, trained within a budget, for some seeds."""

import json
import math
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import measure, methods, registry
from benchmarks.methods import Budget, Trainer

NUM_SAMPLES = 4_000
NUM_DISTANCE_POINTS = 2_000


def command(
    target: str,
    method: str,
    steps: Sequence[int],
    budget: Budget,
    seeds: int,
    seed: int = 0,
    num_samples: int = NUM_SAMPLES,
) -> str:
    """The command line that measures a row, in one spelling; without its output folder."""
    parts = ["python", "-m", "benchmarks", target, "--method", method]
    parts += ["--steps", *map(str, steps), "--budget", str(budget), "--seeds", str(seeds)]
    if seed:
        parts += ["--seed", str(seed)]
    if num_samples != NUM_SAMPLES:
        parts += ["--num-samples", str(num_samples)]
    return shlex.join(parts)


def path_of(output: Path, target: str, method: str) -> Path:
    """Where a row is stored."""
    return output / f"{target}-{method}.json"


def run(
    target: str,
    method: str,
    steps: Sequence[int] | None,
    budget: str,
    seeds: int,
    seed: int,
    num_samples: int,
    output: Path,
) -> dict[str, Any]:
    """Trains and measures a method on a target, prints the row and saves TARGET-METHOD.json.

    Args:
      target: name in the registry.
      method: name in ``methods.METHODS``.
      steps: numbers of steps; the method's own if None. Those above its largest are left out.
      budget: training iterations or seconds, as `Budget.parse` reads them.
      seeds: number of seeds.
      seed: first seed.
      num_samples: weighted draws behind each line.
      output: folder for the row.

    Returns:
      What was written.

    Raises:
      ValueError: a budget or a number of steps that cannot be.
    """
    start = time.perf_counter()
    parsed = Budget.parse(budget)
    steps = tuple(sorted(set(steps or methods.STEPS[method])))
    entry = registry.TARGETS[target]
    built = entry.build()
    base, base_words = registry.build_base(entry, built)
    base_seconds = time.perf_counter() - start
    reference = registry.reference_draws(target, entry, built, base, NUM_DISTANCE_POINTS)
    trainer = Trainer(method, built, base, parsed, steps)
    row: dict[str, Any] = {
        "command": command(target, method, steps, parsed, seeds, seed, num_samples),
        "target": target,
        "method": method,
        "dim": built.dim,
        "true_log_z": built.log_z,
        "base": base_words,
        "base_seconds": base_seconds,
        "reference": None if reference is None else reference[2],
        "settings": {
            "budget": str(parsed),
            "steps": steps,
            "seeds": list(range(seed, seed + seeds)),
            "num_samples": num_samples,
            "method": methods.settings_of(method, built.dim),
        },
        **versions_and_device(),
        "training": [],
        "evidence": [],
        "distances": [],
    }
    if reference is not None:
        row["noise_floor"] = measure.distance_row(reference[1], entry, reference)
    for current in range(seed, seed + seeds):
        sampler = trainer.train(current)
        row["training"].append({"seed": current, "stages": sampler.training})
        if sampler.left_out is not None:
            row["left_out"] = sampler.left_out
        _measure(row, sampler, current, num_samples, entry, built, reference, steps)
    row["summary"] = {
        "evidence": measure.summarise(
            row["evidence"], ("num_steps", "bound", "kind"), measure.EVIDENCE_METRICS
        ),
        "distances": measure.summarise(
            row["distances"], ("num_steps", "kind"), measure.DISTANCE_METRICS
        ),
        "training_seconds": _mean_seconds(row["training"]),
    }
    row["wall_seconds"] = time.perf_counter() - start
    _print(row)
    output.mkdir(parents=True, exist_ok=True)
    write_json(path_of(output, target, method), row)
    print(f"\nSaved {path_of(output, target, method)}")
    return row


def _measure(
    row: dict[str, Any],
    sampler: methods.Sampler,
    seed: int,
    num_samples: int,
    entry: registry.Entry,
    target: cs.Target,
    reference: Any,
    steps: Sequence[int],
) -> None:
    """Adds the lines of one seed to a row."""
    key = jax.random.fold_in(jax.random.key(seed), 2**20)
    num_points = NUM_DISTANCE_POINTS
    for num_steps in [k for k in steps if k <= sampler.max_steps]:
        positions: dict[str, Any] = {}
        for method in sampler.methods:
            line, draws = measure.evidence_row(key, sampler, target, num_samples, num_steps, method)
            row["evidence"].append({"seed": seed} | line)
            positions.setdefault(measure.kind(method), draws.position)
        if sampler.chains is not None:
            start = time.perf_counter()
            positions["chain"] = jax.block_until_ready(sampler.chains(key, num_points))
            row["training"][-1]["chain_seconds"] = time.perf_counter() - start
        for kind, position in positions.items():
            line = measure.distance_row(position[:num_points], entry, reference)
            row["distances"].append({"seed": seed, "num_steps": num_steps, "kind": kind} | line)
            if entry.plotted is not None and seed == row["settings"]["seeds"][0]:
                shown = {"num_steps": num_steps, "kind": kind}
                shown["position"] = measure.shown_draws(position)
                row.setdefault("shown", []).append(shown)


def _mean_seconds(training: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of each stage over the seeds, without compilation."""
    stages = training[0]["stages"]
    return {
        name: sum(t["stages"][name]["seconds"] for t in training) / len(training) for name in stages
    }


def versions_and_device() -> dict[str, Any]:
    """What it ran with and on."""
    packages = ("consistent_samplers", "jax", "flax", "optax", "numpyro")
    return {
        "versions": {p: metadata.version(p) for p in packages},
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
    }


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: NaN becomes null, infinities the strings "inf" and "-inf"."""
    path.write_text(json.dumps(_strict(value), indent=1, allow_nan=False) + "\n")


def save(
    output: Path,
    name: str,
    results: dict[str, Any],
    markdown: Callable[[dict[str, Any]], str],
    figure: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """Writes NAME.json and NAME.md, with a figure NAME.png, and prints the text.

    Text and figure are made of what was read back: they see what a reader of the file sees.

    Returns:
      What was read back.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / f"{name}.json", results)
    results = json.loads((output / f"{name}.json").read_text())
    text = markdown(results)
    (output / f"{name}.md").write_text(text)
    if figure is not None:
        figure(results).savefig(output / f"{name}.png", dpi=130)
    print(f"\n{text}\nSaved {output / name}.json and .md" + ", .png" * (figure is not None))
    return results


def number(value: Any) -> float:
    """A number of a JSON row back: null is NaN."""
    return math.nan if value is None else float(value)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _print(row: dict[str, Any]) -> None:
    truth = "unknown" if row["true_log_z"] is None else f"{row['true_log_z']:.4f}"
    print(f"\n{row['command']}")
    print(f"{row['target']} ({row['dim']}-d), true log Z {truth}; base {row['base']}")
    for name, seconds in row["summary"]["training_seconds"].items():
        stages = [t["stages"][name] for t in row["training"]]
        iterations = sum(s["iterations"] for s in stages) / len(stages)
        print(f"  trained {name}: {iterations:.0f} iterations, {seconds:.1f} s a seed", end="")
        diverged = [s["diverged_at"] for s in stages if s.get("diverged_at") is not None]
        print(f"; DIVERGED at {diverged}" if diverged else "")
    header = ("ELBO", "± s.e.", "EUBO", "log Z", "± s.e.", "ESS", "Pareto k", "folded", "s")
    fields = (
        "elbo",
        "elbo_stderr",
        "eubo",
        "log_z",
        "log_z_stderr",
        "ess",
        "pareto_k",
        "folded",
        "sampling_seconds",
    )
    if "left_out" in row:
        print(f"  left out: {row['left_out']}")
    if row["summary"]["evidence"]:
        print(f"{'steps':>6} {'bound':<20}" + "".join(f"{h:>10}" for h in header))
    for line in row["summary"]["evidence"]:
        cells = "".join(f"{cell(line.get(field)):>10}" for field in fields)
        print(f"{line['num_steps']:>6} {line['bound']:<20}{cells}")
    floor = number(row.get("noise_floor", {}).get("sinkhorn"))
    distance_header = ("Sinkhorn", "± s.e.", "MMD²", "coverage", "missed")
    distance_fields = (
        "sinkhorn",
        "sinkhorn_stderr",
        "mmd",
        "entropic_coverage",
        "num_missed_modes",
    )
    print(f"{'steps':>6} {'draws of':<20}" + "".join(f"{h:>10}" for h in distance_header), end="")
    print(f"   reference {row['reference']}, Sinkhorn of reference to reference {cell(floor)}")
    for line in row["summary"]["distances"]:
        cells = "".join(f"{cell(line.get(field)):>10}" for field in distance_fields)
        print(f"{line['num_steps']:>6} {line['kind']:<20}{cells}")


def cell(value: Any) -> str:
    """A number with four digits; empty where there is none."""
    value = number(value)
    if math.isnan(value):
        return ""
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.2e}"
