"""Hierarchical models with the defaults, beside NUTS and the base alone: right, and how soon?

Each measurement is a process of its own, timed from before it starts: imports, tracing,
compilation, training or warm-up, and draws. NUTS has 4 vectorised chains of 1,000 warm-up
iterations and 1,000 draws. What is extrapolated: where a run has fewer than 1,000 effective draws,
those that are missing are charged at the seconds of a draw when everything is compiled.
Truth is long NUTS in double precision, centred or not, whichever mixes better (`field.long_nuts`);
it is kept in hierarchical-references.json.
"""

import argparse
import json
import os
import resource
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import run_module

# A child imports JAX after its settings: the rest is imported where it is needed.

MEAN_LIMIT, STD_LIMIT = 0.1, 0.1
"""Standard deviations by which a mean may be off, and share by which a standard deviation may."""

ENOUGH = 1_000
"""Effective draws whose time is compared."""

_WARM_UP, _DRAWS, _CHAINS = 1_000, 1_000, 4


def run(names: list[str] | None, limit: float, seed: int, output: Path) -> dict[str, Any]:
    """Measures the models.

    Args:
      names: of models; all if None.
      limit: seconds of a process.
      seed: of ours and of NUTS.
      output: folder for hierarchical.json, hierarchical.md and hierarchical-references.json.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: no such model.
    """
    from benchmarks.hierarchical_models import MODELS
    from benchmarks.rows import save, versions_and_device

    if unknown := set(names or ()) - set(MODELS):
        raise ValueError(f"No such model: {', '.join(sorted(unknown))}.")
    references = output / "hierarchical-references.json"
    truths = json.loads(references.read_text()) if references.exists() else {}
    command = ["python -m benchmarks hierarchical", *(["--names", *names] if names else [])]
    results: dict[str, Any] = {"command": " ".join(command), **versions_and_device(), "rows": []}
    for name in names or MODELS:
        if name not in truths:
            truths[name] = measured(name, "truth", seed, 4 * limit)
            output.mkdir(parents=True, exist_ok=True)
            references.write_text(json.dumps(truths, indent=1) + "\n")
        found = {what: measured(name, what, seed, limit) for what in ("ours", "nuts")}
        row = {"model": name, **found, **judged(found["ours"], truths[name])}
        results["rows"].append(row)
        print(f"{name:>22} {row['outcome']:<15} {_cells(row)}", flush=True)
    return save(output, "hierarchical", results, markdown)


def judged(ours: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Largest errors of moments beyond those of the truth itself, and what that makes of them."""
    if "error" in ours or "error" in truth:
        return {"outcome": "crash" if "error" in ours else "no truth"}
    worst = {"mean": 0.0, "std": 0.0}
    for site, (mean, std, effective) in truth["moments"].items():
        if site not in ours["moments"]:
            continue
        own = ours["moments"][site]
        noise = 2.0 / effective**0.5
        worst["mean"] = max(worst["mean"], abs(own[0] - mean) / std - noise)
        worst["std"] = max(worst["std"], abs(own[1] / std - 1.0) - noise)
    wrong = worst["mean"] > MEAN_LIMIT or worst["std"] > STD_LIMIT
    flagged = ours["level"] == "not to be used"
    outcomes = {
        (False, False): "right",
        (False, True): "cried wolf",
        (True, True): "flagged",
        (True, False): "silently wrong",
    }
    return {"worst": worst, "outcome": outcomes[wrong, flagged]}


def _to_enough(found: dict[str, Any]) -> float:
    """Seconds to `ENOUGH` effective draws."""
    if "error" in found:
        return float("nan")
    missing = max(0.0, ENOUGH - found["effective"]) / max(found["effective"], 1e-3)
    return float(found["seconds"] + missing * found["draw_seconds"])


def _cells(row: dict[str, Any]) -> str:
    ours, nuts = row["ours"], row["nuts"]
    if "error" in ours:
        return str(ours["error"])[:100]
    return (
        f"d {ours['dim']:<5} ESS {ours['ess']:.3f} k {ours['pareto_k']:.2f} {ours['route']} "
        f"{ours['level']}, {_to_enough(ours):.0f} s against {_to_enough(nuts):.0f} s, errors "
        f"{row['worst']['mean']:.2f} and {row['worst']['std']:.2f}"
        if "worst" in row
        else "no truth"
    )


def markdown(results: dict[str, Any]) -> str:
    """The counts, and a line for each model."""
    rows = results["rows"]
    kinds = ("right", "flagged", "cried wolf", "silently wrong", "crash", "no truth")
    count = ", ".join(f"{kind}: {sum(row['outcome'] == kind for row in rows)}" for kind in kinds)
    text = [
        "# Hierarchical models, with the defaults",
        "",
        f"Made by `{results['command']}` on {results['device']}. {count} of {len(rows)}. Errors: "
        "the largest of all sites' means in standard deviations, and of standard deviations in "
        "their own, beyond two standard errors of the truth. Seconds: to 1,000 effective draws, "
        "from the start of a process.",
        "",
        "| model | d | base alone, ESS | ESS | k | log Z | level | mean | std | outcome | seconds "
        "| NUTS | draws a second over NUTS's |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        ours, nuts = row["ours"], row["nuts"]
        if "error" in ours or "worst" not in row:
            text.append(
                f"| {row['model']} | {ours.get('error', '')} {row['outcome']} |" + " |" * 11
            )
            continue
        ratio = float("nan")
        if "error" not in nuts:
            rate = ours["effective"] / ours["draw_seconds"]
            ratio = rate / (nuts["effective"] / nuts["draw_seconds"])
        cells = [row["model"], str(ours["dim"]), f"{ours['base_ess']:.2g}", f"{ours['ess']:.2g}"]
        cells += [f"{ours['pareto_k']:.2f}", f"{ours['log_z']:.3f} ± {ours['log_z_stderr']:.2g}"]
        cells += [ours["level"], f"{row['worst']['mean']:.2f}", f"{row['worst']['std']:.2f}"]
        cells += [row["outcome"], f"{_to_enough(ours):.0f}", f"{_to_enough(nuts):.0f}"]
        text.append("| " + " | ".join([*cells, f"{ratio:.3g}"]) + " |")
    return "\n".join(text) + "\n"


def measured(name: str, what: str, seed: int, limit: float) -> dict[str, Any]:
    """What a process of its own finds: of ``"ours"``, ``"nuts"`` or the ``"truth"``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        arguments = ["benchmarks.hierarchical", "--child", name, what, str(seed), str(path)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        begin = time.time()
        ended = run_module(arguments, environment, limit, Path(folder))
        if ended.error is not None:
            return {"error": ended.error, "seconds": ended.seconds}
        found: dict[str, Any] = json.loads(path.read_text())
        # Until the draws were there: what comes after is the measurement's own.
        return found | {"seconds": found.get("end", begin) - begin}


def _moments(samples: dict[str, Any], effective: dict[str, float] | float) -> dict[str, Any]:
    from benchmarks.field import flat_sites

    found = {}
    for site, values in flat_sites(samples).items():
        size = effective if isinstance(effective, float) else effective.get(site)
        if size and np.ptp(values) > 0:
            found[site] = (float(values.mean()), float(values.std()), size)
    return found


def _ours(model: Any, seed: int) -> dict[str, Any]:
    import jax

    from consistent_samplers.integrations.numpyro import OneStepSampler

    sampler = OneStepSampler(model, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.run(jax.random.key(seed))
        samples = sampler.get_samples()
    end = time.time()
    worth, trained = sampler.evidence, sampler.trained
    # Again, when everything is compiled.
    begin = time.perf_counter()
    jax.block_until_ready(trained.sample(jax.random.key(seed + 1), 10_000).log_weight)
    effective, seconds = float(worth.ess) * worth.num_samples, time.perf_counter() - begin
    mixed = sampler.diagnostics()
    if mixed["r_hat"] is not None:  # chains' draws take as long again
        effective, seconds = min(mixed["bulk"], mixed["tail"]), trained.training_seconds
    return {
        "end": end,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "dim": trained.target.dim,
        "ess": float(worth.ess),
        "pareto_k": float(worth.pareto_k),
        "log_z": float(worth.log_z),
        "log_z_stderr": float(worth.log_z_stderr),
        "level": sampler.verdict.level,
        "verdict": str(sampler.verdict),
        "route": sampler.diagnostics()["route"],
        "base_ess": float(trained.stages["base"].ess) if "base" in trained.stages else 0.0,
        "effective": effective,
        "draw_seconds": seconds,
        "moments": _moments(samples, effective),
    }


def _nuts(model: Any, seed: int) -> dict[str, Any]:
    import jax
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(
        NUTS(model),
        num_warmup=_WARM_UP,
        num_samples=_DRAWS,
        num_chains=_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed))
    samples = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    end = time.time()
    # Draws alone, when everything is compiled.
    mcmc.post_warmup_state = mcmc.last_state
    begin = time.perf_counter()
    mcmc.run(mcmc.last_state.rng_key)
    jax.block_until_ready(mcmc.last_state.z)
    seconds = time.perf_counter() - begin
    stats = summary({k: np.asarray(v) for k, v in samples.items()})
    least = min(float(np.nanmin(s["n_eff"])) for s in stats.values())
    largest = max(float(np.nanmax(s["r_hat"])) for s in stats.values())
    return {"end": end, "effective": least, "r_hat": largest, "draw_seconds": seconds}


def _truth(model: Any) -> dict[str, Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.field import long_nuts

    draws, sizes = long_nuts(types.SimpleNamespace(model=model, args=(), kwargs={}))
    return {"moments": _moments(draws, sizes)}


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--child", nargs=4, required=True)
    _name, _what, _seed, _path = _parser.parse_args().child
    if _what == "truth":
        import jax as _jax

        _jax.config.update("jax_enable_x64", True)
    from benchmarks.hierarchical_models import model_of

    _model = model_of(_name)
    _calls = {"truth": lambda: _truth(_model), "ours": lambda: _ours(_model, int(_seed))}
    _calls["nuts"] = lambda: _nuts(_model, int(_seed))
    Path(_path).write_text(json.dumps(_calls[_what]()))
