"""The few-step bound with fixed and with learned transition kernels."""

import time
from pathlib import Path
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import registry, table_figures
from benchmarks.measure import summarise
from benchmarks.methods import SETTINGS, Budget, Trainer
from benchmarks.rows import cell, number, save, versions_and_device

_TRAIN_STEPS = (2, 4, 8, 128)
_STEPS = (2, 4, 8, 16, 128)
# Ours and learned ones at the same numbers of training steps: only the kernels differ. The paper's
# are its own settings, Euler-Maruyama steps trained at 128 only.
_KINDS = {"paper": "dis.paper", "fixed": "dis", "learned": "dis-learned"}


def run(
    targets: list[str], num_iterations: int, num_samples: int, seeds: int, output: Path
) -> dict[str, Any]:
    """Trains DIS with each kind of kernels on the same base and compares their path ELBOs.

    Args:
      targets: names in the registry, with known log Z.
      num_iterations: training iterations of each sampler.
      num_samples: draws behind each figure.
      seeds: number of seeds.
      output: folder for kernels.json, kernels.md and kernels.png.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a target that is not in the registry, or whose log Z is not known.
    """
    start = time.perf_counter()
    results: dict[str, Any] = {
        "command": f"python -m benchmarks kernels --targets {' '.join(targets)} "
        f"--num-iterations {num_iterations} --num-samples {num_samples} --seeds {seeds}",
        "train_steps": _TRAIN_STEPS,
        **versions_and_device(),
        "targets": {},
        "rows": [],
    }
    for name in targets:
        if name not in registry.TARGETS:
            raise ValueError(f"target must be one of {', '.join(registry.TARGETS)}, got {name!r}.")
        built = registry.TARGETS[name].build()
        if built.log_z is None:
            raise ValueError(f"The true log Z of {name} is not known: take another target.")
        base, words = registry.build_base(registry.TARGETS[name], built)
        budget = Budget(iterations=num_iterations)
        alone = Trainer("base", built, base, budget, (1,)).train(0)
        e = cs.evidence(alone.draw(jax.random.key(0), num_samples, 1, "map"))
        results["targets"][name] = {
            "true_log_z": built.log_z,
            "base": words,
            "base_elbo": float(e.elbo),
            "base_elbo_stderr": float(e.elbo_stderr),
        }
        for kind, method in _KINDS.items():
            settings = SETTINGS[method]
            overrides = {} if kind == "paper" else {"train_steps": _TRAIN_STEPS}
            trainer = Trainer(method, built, base, budget, _STEPS, overrides=overrides)
            for seed in range(seeds):
                sampler = trainer.train(seed)
                key = jax.random.fold_in(jax.random.key(seed), 2**20)
                for num_steps in _STEPS:
                    e = cs.evidence(sampler.draw(key, num_samples, num_steps, "path"))
                    row = {
                        "target": name,
                        "kernels": kind,
                        "seed": seed,
                        "num_steps": num_steps,
                        "settings": settings,
                        "training": sampler.training,
                    }
                    for field in ("elbo", "elbo_stderr", "log_z", "log_z_stderr", "ess"):
                        row[field] = float(getattr(e, field))
                    results["rows"].append(row)
            print(f"{name}, {kind} kernels: trained and measured", flush=True)
    results["summary"] = summarise(
        results["rows"], ("target", "kernels", "num_steps"), ("elbo", "log_z", "ess")
    )
    results["wall_seconds"] = time.perf_counter() - start
    return save(output, "kernels", results, markdown, table_figures.kernels)


def markdown(results: dict[str, Any]) -> str:
    """Path ELBOs side by side, and how much each loses from 128 to 8 steps."""
    text = [
        "# The few-step bound with fixed and with learned kernels",
        "",
        f"Made by `{results['command']}`: DIS, trained at {results['train_steps']} steps drawn at "
        'random, once with the process\'s own kernels and once with learned ones; "paper" is '
        "`dis.paper`, whose fixed kernels are those of Euler-Maruyama steps, trained at 128. ELBO "
        'of the stochastic path ("lower": a bound at any number of steps).',
    ]
    for name, about in results["targets"].items():
        found = {
            (s["kernels"], s["num_steps"]): number(s.get("elbo"))
            for s in results["summary"]
            if s["target"] == name
        }
        text += [
            "",
            f"## {name}: true log Z {about['true_log_z']:.4f}, base alone "
            f"{cell(about['base_elbo'])} ({about['base']})",
            "",
            "| steps | the paper's kernels | fixed kernels | learned kernels |",
            "|---|---|---|---|",
        ]
        for k in sorted({k for _, k in found}):
            text.append(
                "| " + " | ".join([str(k), *(cell(found[kind, k]) for kind in _KINDS)]) + " |"
            )
        drops = {kind: found[kind, 128] - found[kind, 8] for kind in _KINDS}
        text += [
            "",
            f"Lost from 128 to 8 steps: {cell(drops['paper'])} nats with the paper's kernels, "
            f"{cell(drops['fixed'])} with ours fixed, {cell(drops['learned'])} with learned ones.",
        ]
    return "\n".join(text) + "\n"
