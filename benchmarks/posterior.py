"""The main job on one posterior: a one-step sampler through NumPyro, with NUTS beside it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS

from benchmarks import figures, models
from benchmarks.models import Posterior
from benchmarks.rows import versions_and_device, write_json
from consistent_samplers.corrections import weighted_moments
from consistent_samplers.estimate import Evidence
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.types import Bound, Draws

_NUM_FAST_DRAWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class NutsRun:
    """NUTS on the same model.

    Attributes:
      samples: constrained sites ``[num_draws, ...]``.
      num_effective: smallest effective sample size over all sites.
      max_r_hat: largest split r-hat.
      divergences: number of divergent transitions.
      warmup_seconds: compilation and warm-up.
      sample_seconds: sampling.
    """

    samples: dict[str, Any]
    num_effective: float
    max_r_hat: float
    divergences: int
    warmup_seconds: float
    sample_seconds: float


def run_nuts(seed: int, posterior: Posterior, num_chains: int = 4, num: int = 2_500) -> NutsRun:
    """Runs NUTS with vectorised chains, the usual way to run several on one device."""
    mcmc = MCMC(
        NUTS(posterior.model),
        num_warmup=1_000,
        num_samples=num,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    mcmc.warmup(jax.random.key(seed), *posterior.arguments, extra_fields=("diverging",))
    middle = time.perf_counter()
    mcmc.run(jax.random.key(seed + 1), *posterior.arguments, extra_fields=("diverging",))
    jax.block_until_ready(mcmc.get_samples())
    end = time.perf_counter()
    stats = summary(mcmc.get_samples(group_by_chain=True))
    return NutsRun(
        samples={k: np.asarray(v) for k, v in mcmc.get_samples().items()},
        num_effective=float(min(np.min(s["n_eff"]) for s in stats.values())),
        max_r_hat=float(max(np.max(s["r_hat"]) for s in stats.values())),
        divergences=int(mcmc.get_extra_fields()["diverging"].sum()),
        warmup_seconds=middle - start,
        sample_seconds=end - middle,
    )


def run(name: str, seed: int, num_samples: int, num_steps: int, output: Path) -> dict[str, Any]:
    """Trains on the posterior ``name``, compares with NUTS, prints and saves the results.

    Args:
      name: a function of ``benchmarks.models``.
      seed: seed of everything.
      num_samples: one-step draws.
      num_steps: network evaluations a draw.
      output: folder for NAME.json and NAME.png.

    Returns:
      What was written to the JSON file.
    """
    posterior = getattr(models, name)()
    sampler = OneStepSampler(
        posterior.model, num_samples=num_samples, num_steps=num_steps, max_steps=num_steps
    )
    start = time.perf_counter()
    sampler.run(jax.random.key(seed), *posterior.arguments)
    run_seconds = time.perf_counter() - start
    weighted, log_weight = sampler.get_weighted_samples()

    print(f"\nNUTS on {name}: 4 chains, 1,000 warm-up and 2,500 draws each ...", flush=True)
    nuts = run_nuts(seed, posterior)

    parameters = _compare(weighted, log_weight, sampler.evidence.bound, nuts.samples)
    results = {
        "posterior": name,
        "command": f"python -m benchmarks {name} --seed {seed} --num-samples {num_samples} "
        f"--num-steps {num_steps}",
        "settings": {"seed": seed, "num_samples": num_samples, "num_steps": num_steps},
        **versions_and_device(),
        "true_log_z": posterior.log_z,
        "evidence": _evidence_row(sampler.evidence),
        "stages": {k: _evidence_row(v) for k, v in sampler.trained.stages.items()},
        "parameters": parameters,
        "speed": _speed(sampler, run_seconds, nuts),
    }
    _print(results)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / f"{name}.json", results)
    figure = figures.posterior_figure(
        name, posterior, sampler.get_samples(), nuts.samples, sampler.trained, sampler.evidence
    )
    figure.savefig(output / f"{name}.png", dpi=150)
    print(f"\nSaved {output / name}.json and {output / name}.png")
    return results


def _compare(
    weighted: dict[str, Any], log_weight: Any, bound: Bound, reference: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of every scalar, weighted one-step draws beside NUTS."""
    rows: dict[str, dict[str, float]] = {}
    for site in sorted(reference):
        values = np.asarray(reference[site])
        flat = values.reshape(len(values), -1)
        position = jnp.asarray(weighted[site]).reshape(len(log_weight), -1)
        mean, std = (
            np.asarray(m) for m in weighted_moments(Draws(position, log_weight, bound=bound))
        )
        for i in range(flat.shape[1]):
            label = site if values.ndim == 1 else f"{site}[{i}]"
            rows[label] = {
                "mean": float(mean[i]),
                "std": float(std[i]),
                "nuts_mean": float(flat[:, i].mean()),
                "nuts_std": float(flat[:, i].std()),
            }
    return rows


def _speed(sampler: OneStepSampler, run_seconds: float, nuts: NutsRun) -> dict[str, float]:
    """Draws and effective draws a second of both, everything compiled."""

    def seconds(draw: Callable[[jax.Array], Any]) -> float:
        jax.block_until_ready(draw(jax.random.key(1)))
        start = time.perf_counter()
        jax.block_until_ready(draw(jax.random.key(2)))
        return time.perf_counter() - start

    num = len(sampler.get_weighted_samples()[1])
    weighted = num / seconds(lambda key: sampler.draw(key, num, weights=True))
    return {
        "train_and_first_draws_seconds": run_seconds,
        "training_seconds": sampler.trained.training_seconds,
        "weighted_draws_per_second": weighted,
        "effective_draws_per_second": weighted * float(sampler.evidence.ess),
        "million_unweighted_draws_seconds": seconds(lambda key: sampler.draw(key, _NUM_FAST_DRAWS)),
        "nuts_warmup_seconds": nuts.warmup_seconds,
        "nuts_sample_seconds": nuts.sample_seconds,
        "nuts_draws_per_second": 10_000 / nuts.sample_seconds,
        "nuts_effective_draws_per_second": nuts.num_effective / nuts.sample_seconds,
        "nuts_max_r_hat": nuts.max_r_hat,
        "nuts_divergences": nuts.divergences,
    }


def _evidence_row(evidence: Evidence) -> dict[str, Any]:
    fields = ("log_z", "log_z_stderr", "elbo", "elbo_stderr", "ess", "pareto_k")
    row: dict[str, Any] = {field: float(getattr(evidence, field)) for field in fields}
    row["bound"] = evidence.bound
    for field in ("folded", "round_trip_error"):
        value = getattr(evidence, field)
        row[field] = None if value is None else float(value)
    return row


def _print(results: dict[str, Any]) -> None:
    truth = results["true_log_z"]
    print(f"\n{'':24}{'mean':>10}{'NUTS':>10}{'std':>10}{'NUTS':>10}")
    for label, row in results["parameters"].items():
        print(
            f"{label:>24}{row['mean']:>10.3f}{row['nuts_mean']:>10.3f}"
            f"{row['std']:>10.3f}{row['nuts_std']:>10.3f}"
        )
    print(f"\nEvidence at one step (true log Z {truth:.4f}), after each stage of training")
    header = ("log Z", "± s.e.", "ELBO", "± s.e.", "ESS", "Pareto k", "folded")
    print(f"{'':24}" + "".join(f"{h:>10}" for h in header) + "  bound")
    rows = {**results["stages"], "draws reported": results["evidence"]}
    for label, row in rows.items():
        print(
            f"{label:>24}{row['log_z']:>10.3f}{row['log_z_stderr']:>10.3f}{row['elbo']:>10.3f}"
            f"{row['elbo_stderr']:>10.3f}{row['ess']:>10.1%}{row['pareto_k']:>10.2f}"
            f"{'' if row['folded'] is None else format(row['folded'], '.2%'):>10}"
            f"  {row['bound']}"
        )
    s = results["speed"]
    million = s["million_unweighted_draws_seconds"]
    print(f"\nSpeed ({results['device']})")
    print(
        f"{'one-step training':>24}{s['training_seconds']:>12.1f} s, "
        f"{s['train_and_first_draws_seconds']:.1f} s from the call of run to samples"
    )
    print(
        f"{'one-step, weighted':>24}{s['weighted_draws_per_second']:>12,.0f} draws/s, "
        f"{s['effective_draws_per_second']:,.0f} effective draws/s"
    )
    print(
        f"{'one-step, no weights':>24}{_NUM_FAST_DRAWS / million:>12,.0f} draws/s "
        f"({_NUM_FAST_DRAWS:,} in {million:.1f} s)"
    )
    print(
        f"{'NUTS':>24}{s['nuts_draws_per_second']:>12,.0f} draws/s, "
        f"{s['nuts_effective_draws_per_second']:,.0f} effective draws/s after "
        f"{s['nuts_warmup_seconds']:.1f} s of warm-up (max r-hat {s['nuts_max_r_hat']:.3f}, "
        f"{s['nuts_divergences']} divergences)"
    )
