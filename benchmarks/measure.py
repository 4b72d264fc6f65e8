"""What a trained sampler is measured by."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import consistent_samplers as cs
from benchmarks.methods import Sampler
from benchmarks.registry import Entry
from consistent_samplers import diagnostics
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, Method

_SINKHORN_ITERATIONS = 600
_SINKHORN_TOLERANCE = 5e-3
_NUM_REVERSED = 1_000
_NUM_SHOWN = 600
_MAX_INVERTED_STEPS = 16

EVIDENCE_METRICS = (
    "elbo",
    "log_z",
    "log_z_error",
    "ess",
    "pareto_k",
    "folded",
    "eubo",
    "sampling_seconds",
)
DISTANCE_METRICS = ("sinkhorn", "mmd", "entropic_coverage", "num_missed_modes", "nonfinite_share")


def kind(method: Method) -> str:
    """Draws of the deterministic map or of the stochastic path: different draws."""
    return "path" if method == "path" else "map"


def evidence_row(
    rng_key: Array,
    sampler: Sampler,
    target: Target,
    num_samples: int,
    num_steps: int,
    method: Method,
) -> tuple[dict[str, Any], Draws]:
    """Evidence of one kind of transitions at one number of steps, and the draws behind it.

    Weights that cannot be used leave NaN and the reason under ``"error"``.
    """
    key_compile, key_draw, key_reverse = jax.random.split(rng_key, 3)
    jax.block_until_ready(sampler.draw(key_compile, num_samples, num_steps, method))
    start = time.perf_counter()
    draws = jax.block_until_ready(sampler.draw(key_draw, num_samples, num_steps, method))
    row: dict[str, Any] = {
        "num_steps": num_steps,
        "bound": draws.bound,
        "kind": kind(method),
        "num_samples": num_samples,
        "sampling_seconds": time.perf_counter() - start,
        # A draw of the reference method "base" takes no network at all.
        "network_evaluations": num_steps if sampler.training else 0,
        "density_evaluations": 1,
        "gradient_evaluations": num_steps if sampler.guided else 0,
    }
    try:
        e = cs.evidence(draws)
    except ValueError as error:
        row["error"] = str(error)
    else:
        for field in ("elbo", "elbo_stderr", "log_z", "log_z_stderr", "ess", "pareto_k"):
            row[field] = float(getattr(e, field))
        row["folded"] = None if e.folded is None else float(e.folded)
        if target.log_z is not None:
            row["log_z_error"] = abs(row["log_z"] - target.log_z)
    # A long map is inverted step by step, each an iteration of its own: minutes at 128 steps.
    reversible = method == "path" or (method == "map" and num_steps <= _MAX_INVERTED_STEPS)
    if target.sample is not None and reversible:
        exact = target.sample(jax.random.key(2**21), _NUM_REVERSED)
        log_weight = np.asarray(sampler.reverse(key_reverse, exact, num_steps, method), np.float64)
        missing = np.isnan(log_weight)
        row["eubo_nan_share"] = float(missing.mean())
        if not missing.all():
            row["eubo"] = float(log_weight[~missing].mean())
            row["eubo_stderr"] = float(log_weight[~missing].std() / math.sqrt((~missing).sum()))
    return row, draws


def distance_row(
    position: Array, entry: Entry, reference: tuple[Array, Array, str] | None
) -> dict[str, Any]:
    """Distances of equally weighted draws ``[n, dim]`` to reference draws, and modes reached."""
    finite = np.isfinite(np.asarray(position)).all(axis=1)
    row: dict[str, Any] = {"nonfinite_share": float(1.0 - finite.mean())}
    position = jnp.asarray(np.asarray(position)[finite])
    if len(position) < 2:
        return row
    if reference is not None:
        result = diagnostics.sinkhorn(
            position,
            reference[0],
            max_iterations=_SINKHORN_ITERATIONS,
            tolerance=_SINKHORN_TOLERANCE,
        )
        row["sinkhorn"] = float(result.value)
        row["sinkhorn_regularisation"] = float(result.regularisation)
        row["sinkhorn_converged"] = bool(result.converged)
        row["sinkhorn_num_points"] = [len(position), len(reference[0])]
        row["mmd"] = float(diagnostics.mmd(position, reference[0]))
    if entry.labels is not None:
        coverage = diagnostics.mode_coverage(entry.labels(position), entry.num_modes)
        row["entropic_coverage"] = float(coverage.entropic_coverage)
        row["num_missed_modes"] = int(coverage.num_missed)
    return row


def shown_draws(position: Array) -> list[list[float]]:
    """Some draws, rounded, for a figure."""
    return np.round(np.asarray(position[:_NUM_SHOWN], np.float64), 3).tolist()


def summarise(rows: list[dict[str, Any]], by: tuple[str, ...], metrics: tuple[str, ...]) -> Any:
    """Mean and standard error over seeds of the metrics, one row a value of ``by``.

    The standard error is None with a single seed. A metric that a seed lacks is None as well: a
    mean over the seeds that went well would flatter.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    summary = []
    for values, group in groups.items():
        line: dict[str, Any] = dict(zip(by, values, strict=True)) | {"num_seeds": len(group)}
        for metric in metrics:
            found = [row.get(metric) for row in group]
            if all(value is None for value in found):
                continue
            line[metric] = line[f"{metric}_stderr"] = None
            if any(value is None for value in found):
                continue
            numbers = np.array(found, np.float64)
            line[metric] = float(numbers.mean())
            if len(numbers) > 1 and np.isfinite(numbers).all():
                line[f"{metric}_stderr"] = float(numbers.std(ddof=1) / math.sqrt(len(numbers)))
        summary.append(line)
    return summary
