"""posteriordb: one-step draws, chains of them and NUTS against reference posteriors.

`OneStepSampler(model)` and nothing else. Errors are the largest over all parameters: of a mean in
reference standard deviations, of a standard deviation relative; right: at most 0.1 both. Chains are
`OneStepMH` on the same sampler, 4 of 2,500 draws without a warm-up; NUTS has 4 of 2,500 after
1,000. Their errors are in Monte-Carlo standard errors.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import summary
from numpyro.infer import NUTS

from benchmarks import race
from benchmarks.case import Benchmark, Case, Settings
from benchmarks.models.posteriordb import MODELS
from benchmarks.process import ROOT
from benchmarks.report import Report, Row
from consistent_samplers.estimate import pareto_smooth
from consistent_samplers.integrations.numpyro import OneStepMH

FOLDER_VARIABLE = "CONSISTENT_SAMPLERS_POSTERIORDB"
_DEFAULT_FOLDER = ROOT.parent / "shared" / "reference" / "posteriordb"
_TOLERANCE = 0.1  # of what is right: errors of moments in reference standard deviations
_READ = (
    *("dim", "base", "level", "log_z", "log_z_stderr", "elbo", "base_elbo", "ess", "pareto_k"),
    *("call_seconds", "draw_seconds"),
)


def _files(settings: Settings) -> dict[str, Row]:
    """The references by their models' names."""
    folder = settings["folder"] or Path(os.environ.get(FOLDER_VARIABLE, _DEFAULT_FOLDER))
    references = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = {r["model"]: r for r in references if r["model"] in MODELS}
    if not found:
        raise ValueError(
            f"No reference of any posterior in {folder}: give the folder of posteriordb's files by "
            f"--folder or {FOLDER_VARIABLE}; models: {', '.join(MODELS)}."
        )
    return {name: found[name] for name in MODELS if name in found}


def measure(case: Case) -> list[Row]:
    """One-step draws, chains and NUTS on a posterior, against its reference."""
    reference, model, seed = _files(case.settings)[case.target], MODELS[case.target], case.seed
    given = reference["data"].items()
    data = {k: np.asarray(v, np.float32) if isinstance(v, list) else v for k, v in given}
    found = race.ours(race.Subject(model, (data,)), jax.random.key(seed))
    sampler = found.sampler
    samples, log_weight = sampler.get_weighted_samples()
    smoothed = np.asarray(pareto_smooth(log_weight)[0], np.float64)
    weight = np.exp(smoothed - smoothed.max())
    one = moment_errors(columns(samples, reference), weight / weight.sum(), reference)
    explored = sampler.trained.exploration
    return [
        {name: found.row[name] for name in _READ}
        | one
        | {
            "right": all(error <= _TOLERANCE for error in one.values()),
            # By what says whether the weights can correct the draws, and by the look for modes.
            "flagged": not sampler.reweighted or not (explored is None or explored.passed),
            "chains": _chains(OneStepMH(sampler), 0, seed, data, reference, "accept_prob"),
            "nuts": _chains(NUTS(model), 1_000, seed, data, reference, "diverging"),
        }
    ]


def columns(samples: dict[str, Any], reference: Row) -> dict[str, np.ndarray]:
    """Scalars by the reference's names, such as ``beta[1]``: last axes of the arrays."""
    found = {}
    for name in reference["reference_mean"]:
        site, _, index = name.partition("[")
        value = np.asarray(samples[site], np.float64)
        found[name] = value[..., int(index[:-1]) - 1] if index else value
    return found


def moment_errors(values: dict[str, np.ndarray], weight: np.ndarray, reference: Row) -> Row:
    """Largest error of a mean, in reference deviations, and of a standard deviation, relative."""
    mean_errors, std_errors = [], []
    for name, value in values.items():
        mean = float(weight @ value)
        std = math.sqrt(float(weight @ (value - mean) ** 2))
        expected = reference["reference_std"][name]
        mean_errors.append(abs(mean - reference["reference_mean"][name]) / expected)
        std_errors.append(abs(std / expected - 1.0))
    # Unlike max(), which may pass over a NaN.
    return {"mean_error": float(np.max(mean_errors)), "std_error": float(np.max(std_errors))}


def _chains(kernel: Any, num_warmup: int, seed: int, data: Any, reference: Row, field: str) -> Row:
    """Four chains of 2,500 draws against the reference."""
    mcmc = race.mcmc_of(kernel, num_warmup, 2_500)
    start = time.perf_counter()
    mcmc.run(jax.random.key(seed + 2), data, extra_fields=(field,))
    values = columns(mcmc.get_samples(group_by_chain=True), reference)
    seconds = time.perf_counter() - start
    stats, errors = summary(values), []
    for name, found in stats.items():
        # The reference has an error of its own.
        share = math.sqrt(1.0 / found["n_eff"] + 1.0 / reference["ess_bulk"][name])
        error = share * reference["reference_std"][name]
        errors.append(abs(found["mean"] - reference["reference_mean"][name]) / error)
    flat = {name: value.reshape(-1) for name, value in values.items()}
    return {
        "seconds": seconds,
        "error_in_stderr": float(np.max(errors)),
        "r_hat": float(np.max([found["r_hat"] for found in stats.values()])),
        "num_effective": float(np.min([found["n_eff"] for found in stats.values()])),
        field: float(np.mean(mcmc.get_extra_fields()[field])),
        **moment_errors(flat, np.full(10_000, 1e-4), reference),
    }


def _summary(rows: Sequence[Row]) -> Row:
    """The worst of all posteriors."""
    return {
        "mean_error": max(row["mean_error"] for row in rows),
        "std_percent": 100.0 * max(row["std_error"] for row in rows),
        "least_seconds": min(row["call_seconds"] for row in rows),
        "most_seconds": max(row["call_seconds"] for row in rows),
        "least_accepted": 100.0 * min(row["chains"]["accept_prob"] for row in rows),
        "chains_error": max(row["chains"]["error_in_stderr"] for row in rows),
        "least_nuts_seconds": min(row["nuts"]["seconds"] for row in rows),
        "most_nuts_seconds": max(row["nuts"]["seconds"] for row in rows),
    }


BENCHMARK = Benchmark(
    name="posteriordb",
    names=lambda settings: list(_files(settings)),
    measure=measure,
    aliases=("--names", "--posteriors"),
    by=("target",),
    options={"--seed": (0, "of everything"), "--folder": (Path, "of the reference files")},
    report=Report(
        __doc__,
        """posterior: {target} | dim: {dim} | base: {base} | mean error: {mean_error} |
        std error: {std_error} | right: {right} | flagged: {flagged} | Pareto k: {pareto_k} |
        ESS: {ess} | ELBO (base alone): {elbo:.3f} ({base_elbo:.3f}) |
        log Z: {log_z:.3f} ± {log_z_stderr:.2g} | seconds to train: {call_seconds:.0f} |
        s / 10,000 draws: {draw_seconds} | chains error: {chains.error_in_stderr} |
        r-hat: {chains.r_hat:.4f} | accepted: {chains.accept_prob} |
        NUTS mean error: {nuts.mean_error} | NUTS std error: {nuts.std_error} |
        NUTS error: {nuts.error_in_stderr} | NUTS seconds: {nuts.seconds:.0f}""",
        summary=_summary,
    ),
)
