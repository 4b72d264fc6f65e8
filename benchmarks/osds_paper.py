"""OSDS with the paper's settings on the nine-mode mixture: evidence against number of steps."""

import time
from pathlib import Path
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import figures
from benchmarks.rows import versions_and_device, write_json
from consistent_samplers.algorithms import Algorithm, SamplerState

_BASE_SCALE = 5.0


def _evaluate(
    key: jax.Array, algorithm: Algorithm, state: SamplerState, num_samples: int
) -> list[dict[str, Any]]:
    """One row a number of steps and kind of evidence."""
    rows = []
    for k in range(algorithm.max_steps.bit_length()):
        for method in algorithm.methods:
            draws = algorithm.sample(key, state, num_samples, 2**k, method=method)
            e = cs.evidence(draws)
            rows.append(
                {
                    "num_steps": 2**k,
                    "bound": draws.bound,
                    "elbo": float(e.elbo),
                    "elbo_stderr": float(e.elbo_stderr),
                    "log_z": float(e.log_z),
                    "log_z_stderr": float(e.log_z_stderr),
                    "ess": float(e.ess),
                    "folded": None if e.folded is None else float(e.folded),
                }
            )
    return rows


def run(seed: int, num_iterations: int, batch_size: int, num_samples: int, output: Path) -> None:
    """Trains, prints the table, and saves osds_paper.json and osds_paper.png.

    Args:
      seed: seed of everything.
      num_iterations: training iterations of each sampler.
      batch_size: paths an iteration.
      num_samples: draws behind each row.
      output: folder for the results.
    """
    target = cs.targets.gmm9()
    assert target.log_z is not None
    base = cs.bases.standard_normal(target.dim, _BASE_SCALE)
    key_fit, key_evaluate = jax.random.split(jax.random.key(seed))
    algorithms = {
        "paper preset": cs.osds.paper(target, base=base, batch_size=batch_size),
        "our defaults": cs.osds(target, base=base, batch_size=batch_size),
    }
    results: dict[str, Any] = {
        "command": f"python -m benchmarks osds-paper --seed {seed} "
        f"--num-iterations {num_iterations} --batch-size {batch_size} "
        f"--num-samples {num_samples}",
        "target": target.name,
        "true_log_z": target.log_z,
        "base": f"N(0, {_BASE_SCALE}² I)",
        **versions_and_device(),
        "samplers": {},
    }
    for label, algorithm in algorithms.items():
        start = time.perf_counter()
        trained = cs.fit(key_fit, algorithm, num_iterations)
        seconds = time.perf_counter() - start
        results["samplers"][label] = {
            "training_seconds": seconds,
            "num_iterations": num_iterations,
            "final_training_elbo": float(trained.history.elbo[-100:].mean()),
            "rows": _evaluate(key_evaluate, algorithm, trained.state, num_samples),
        }
    alone = cs.Sampler.of_base(base).sample(key_evaluate, target, num_samples)
    base_evidence = cs.evidence(alone)
    results["base_alone"] = {"elbo": float(base_evidence.elbo), "log_z": float(base_evidence.log_z)}
    _print(results)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "osds_paper.json", results)
    figures.evidence_figure(results).savefig(output / "osds_paper.png", dpi=150)
    print(f"\nSaved {output / 'osds_paper'}.json and .png")


def _print(results: dict[str, Any]) -> None:
    print(f"\n{results['target']}, true log Z {results['true_log_z']}, base {results['base']}")
    alone = results["base_alone"]
    print(f"base alone: ELBO {alone['elbo']:.3f}, log Z {alone['log_z']:.3f}")
    for label, sampler in results["samplers"].items():
        print(
            f"\n{label}: {sampler['num_iterations']} iterations in "
            f"{sampler['training_seconds']:.0f} s"
        )
        header = ("ELBO", "± s.e.", "log Z", "± s.e.", "ESS", "folded")
        print(f"{'steps':>6} {'bound':<20}" + "".join(f"{h:>11}" for h in header))
        for row in sampler["rows"]:
            folded = "" if row["folded"] is None else f"{row['folded']:.1%}"
            print(
                f"{row['num_steps']:>6} {row['bound']:<20}{row['elbo']:>11.3f}"
                f"{row['elbo_stderr']:>11.3f}{row['log_z']:>11.3f}{row['log_z_stderr']:>11.3f}"
                f"{row['ess']:>11.1%}{folded:>11}"
            )
