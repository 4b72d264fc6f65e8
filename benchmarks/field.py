"""Models and densities as users bring them, with the defaults: is any answer silently wrong?

The cases lie in a folder: ``models/NAME.py`` with a NumPyro model and its arguments or a log
density, and ``densities.py`` with densities of known log Z. The truth is what a case's own
``reference()`` computes, or long NUTS in double precision for quantiles; it is kept in
``field-references.json``. Each case runs in a process of its own under a time limit.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import run_module

# A child imports JAX after its settings: the rest is imported where it is needed.

_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "field"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOG_Z_LIMIT, QUANTILE_LIMIT = 0.05, 0.1
"""Nats, and robust standard deviations, of error that may go unsaid, beyond the answer's own."""
# Too heavy-tailed for quantiles of a scale in double precision NUTS, or not mixing: r-hat above it.
_MAX_R_HAT = 1.02
_CHAINS = 4
_MAX_STDERR = 0.25


def run(
    names: list[str] | None, folder: Path | None, limit: float, seed: int | None, output: Path
) -> dict[str, Any]:
    """Runs the cases and holds their answers against the truth.

    Args:
      names: of cases; all if None.
      folder: of the cases.
      limit: seconds of a case.
      seed: of every case; each case's own if None.
      output: folder for field.json, field.md and field-references.json.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: no such folder or case.
    """
    from benchmarks.rows import save, versions_and_device

    folder = _FOLDER if folder is None else folder
    if not (folder / "densities.py").exists():
        raise ValueError(f"No cases in {folder}: give --folder.")
    known = cases(folder)
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"No such case: {', '.join(sorted(unknown))}.")
    references = output / "field-references.json"
    truths = json.loads(references.read_text()) if references.exists() else {}
    command = ["python -m benchmarks field", *(["--names", *names] if names else [])]
    command += [f"--seed {seed}"] if seed is not None else []
    command += [f"--limit {limit:g}"]
    results: dict[str, Any] = {"command": " ".join(command), **versions_and_device(), "rows": []}
    for name in names or known:
        if name not in truths:
            truths[name] = _child(folder, name, "truth", 0, 3 * limit)
            output.mkdir(parents=True, exist_ok=True)
            references.write_text(json.dumps(truths, indent=1) + "\n")
        answer = _child(folder, name, "answer", -1 if seed is None else seed, limit)
        row = {"case": name, **answer, **judged(answer, truths[name])}
        results["rows"].append(row)
        print(_line(row), flush=True)
    return save(output, "field", results, markdown)


def cases(folder: Path) -> list[str]:
    """Names of all cases in a folder, models first."""
    models = sorted(path.stem for path in (folder / "models").glob("*.py"))
    densities = _module(folder / "densities.py")
    densities.lazy("sinusoid_3d")
    return models + list(densities.D)


def judged(answer: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """How far an answer is off, and what that makes of it.

    ``outcome`` is ``"right"``, ``"flagged"`` (wrong, and said not to be used), ``"cried wolf"``
    (right, and said not to be used), ``"silently wrong"``, ``"crash"`` or ``"no truth"``.
    """
    if "error" in answer:
        # What has no evidence may be refused.
        refused = truth.get("improper") and answer["error"].startswith("ValueError")
        return {"outcome": "flagged" if refused else "crash"}
    wrong, found = bool(truth.get("improper")), {}
    if truth.get("log_z") is not None:
        off = answer["log_z"] - truth["log_z"]
        found["log_z_error"] = off
        wrong |= abs(off) > max(LOG_Z_LIMIT, 4.0 * answer["log_z_stderr"])
    used = answer["level"] != "not to be used"
    worst = ("", 0.0)
    for site, (quantiles, spread, errors) in truth.get("quantiles", {}).items():
        # Of a site that the verdict names nothing is claimed.
        if site not in answer["quantiles"] or (used and site in answer["distrusted"]):
            continue
        ours, own = (np.asarray(part) for part in answer["quantiles"][site])
        error = 2.0 * np.sqrt(np.square(errors) + np.square(own))
        beyond = (np.abs(ours - np.asarray(quantiles)) - error) / spread
        if beyond.max() > worst[1]:
            worst = (site, float(beyond.max()))
    # An interval that takes in everything is no answer.
    wrong |= answer["log_z_stderr"] > _MAX_STDERR
    found["quantile_error"], found["worst_site"] = worst[1], worst[0]
    wrong |= worst[1] > QUANTILE_LIMIT
    if "log_z" not in truth and not truth.get("quantiles") and not truth.get("improper"):
        return found | {"outcome": "no truth"}
    outcomes = {
        (False, True): "right",
        (False, False): "cried wolf",
        (True, True): "silently wrong",
        (True, False): "flagged",
    }
    return found | {"outcome": outcomes[bool(wrong), used]}


def markdown(results: dict[str, Any]) -> str:
    """The counts, and a line for each case."""
    from benchmarks.rows import cell, number

    rows = results["rows"]
    count = {
        kind: sum(row["outcome"] == kind for row in rows)
        for kind in ("right", "flagged", "cried wolf", "silently wrong", "crash", "no truth")
    }
    share = 100.0 * count["cried wolf"] / max(count["right"] + count["cried wolf"], 1)
    text = [
        "# Cases from the field, with the defaults",
        "",
        f"Made by `{results['command']}` on {results['device']}; a process for each case, seconds "
        "from its start. "
        + ", ".join(f"{kind}: {num}" for kind, num in count.items())
        + f" of {len(rows)}; of those that are right {share:.0f} % are called not to be used. "
        "Quantile error: the largest of all sites' 5, 25, 50, 75 and 95 % quantiles beyond its "
        "own error (2 standard errors), in robust standard deviations; of sites that the verdict "
        "does not name as distrusted.",
        "",
        "| case | d | true | log Z | quantile error | distrusted | ESS | k | level | outcome "
        "| route | s |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        if "error" in row:
            cells = [row["case"], "", "", row["error"][:80].replace("|", "/"), *[""] * 4]
            cells += ["", row["outcome"], "", f"{row['seconds']:.0f}"]
        else:
            true = number(row["log_z"]) - number(row.get("log_z_error"))
            cells = [row["case"], str(row["dim"]), cell(true)]
            cells += [f"{cell(row['log_z'])} ± {cell(row['log_z_stderr'])}"]
            cells += [f"{cell(row['quantile_error'])} {row['worst_site']}".strip()]
            cells += [", ".join(row["distrusted"][:3])]
            cells += [cell(row["ess"]), cell(row["pareto_k"]), row["level"]]
            cells += [row["outcome"], row["route"], f"{row['seconds']:.0f}"]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['case']:>22} {row['outcome']:<15} {row['seconds']:5.0f} s {row['error'][:90]}"
    return (
        f"{row['case']:>22} {row['outcome']:<15} {row['seconds']:5.0f} s  d {row['dim']:<4} "
        f"log Z {row['log_z']:.3f} ± {row['log_z_stderr']:.2g} "
        f"(off {row.get('log_z_error', float('nan')):+.3f})  quantiles "
        f"{row['quantile_error']:.2f} {row['worst_site']}  ESS {row['ess']:.2g} k "
        f"{row['pareto_k']:.2f}  {row['route']}  {row['level']}"
    )


def _child(folder: Path, name: str, what: str, seed: int, limit: float) -> dict[str, Any]:
    """A case's truth or answer, from a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "out").mkdir()
        path = Path(temporary) / "found.json"
        arguments = ["benchmarks.field", "--child", str(folder.resolve())]
        arguments += [name, what, str(seed), str(path)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        ended = run_module(arguments, environment, limit, Path(temporary))
        if ended.error is not None:
            return {"error": ended.error, "seconds": ended.seconds}
        return json.loads(path.read_text()) | {"seconds": ended.seconds}


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def flat_sites(samples: dict[str, Any]) -> dict[str, np.ndarray]:
    """Coordinates of all sites by name, ``b[0]`` for an element."""
    flat: dict[str, np.ndarray] = {}
    for name, value in samples.items():
        columns = np.asarray(value, np.float64).reshape(len(value), -1)
        single = np.ndim(value) == 1
        flat |= {name if single else f"{name}[{j}]": c for j, c in enumerate(columns.T)}
    return flat


def _quantiles(
    values: np.ndarray, num_effective: float, unseen: float = 0.0
) -> tuple[np.ndarray, float, np.ndarray]:
    """Quantiles, IQR / 1.349 and the quantiles' standard errors."""
    probabilities = np.asarray(QUANTILES)
    found = np.quantile(values, probabilities)
    away = np.sqrt(probabilities * (1.0 - probabilities) / max(num_effective, 1.0) + unseen**2)
    low, high = (np.quantile(values, np.clip(probabilities + s * away, 0, 1)) for s in (-1, 1))
    return found, float((found[3] - found[1]) / 1.349), 0.5 * (high - low)


def _truth(folder: Path, name: str) -> dict[str, Any]:
    """Log Z and quantiles of a case as far as they are known."""
    path = folder / "models" / f"{name}.py"
    if not path.exists():
        densities = _module(folder / "densities.py")
        densities.lazy(name)
        log_z = densities.D[name][2]
        return {"log_z": log_z} if np.isfinite(log_z) else {"improper": True}
    import jax

    jax.config.update("jax_enable_x64", True)
    module = _module(path)
    if name == "c18_freeangle":
        return {"improper": True}
    if hasattr(module, "reference") and not hasattr(module, "ref_model"):
        with contextlib.redirect_stdout(io.StringIO()):
            module.reference()
        log_z = json.loads(Path(f"out/{name}.ref.json").read_text())["log_z"]
        draws = {k: np.asarray(v, np.float64) for k, v in np.load(f"out/{name}.ref.npz").items()}
        sizes: dict[str, float] = {k: len(v) for k, v in draws.items()}
        found = {"log_z": float(log_z)}
    else:
        draws, sizes = long_nuts(module)
        if hasattr(module, "symmetrise"):
            np.savez(f"out/{name}.ref.npz", **draws)  # type: ignore[arg-type]
            module.symmetrise()
            draws = dict(np.load(f"out/{name}.ref.npz"))
        found = {}
    quantiles = {k: _quantiles(v, sizes[k]) for k, v in draws.items() if k in sizes}
    return found | {
        "quantiles": {k: (q.tolist(), s, e.tolist()) for k, (q, s, e) in quantiles.items()},
        "sites": len(draws),
    }


def long_nuts(module: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Draws of long NUTS, and the effective number of those coordinates whose chains agree.

    Of the model as it is and with its normals non-centred, the one that mixes better: chains in the
    neck of a centred hierarchy may agree on what they all miss.
    """
    if hasattr(module, "ref_model"):
        return _chains(module, module.ref_model)
    from numpyro.handlers import reparam

    models = (module.model, reparam(module.model, config=_non_centred))
    found = [_chains(module, model) for model in models]
    common = [name for name in found[0][0] if name in found[1][0]]

    def mixing(of: tuple[dict[str, np.ndarray], dict[str, float]]) -> tuple[int, float]:
        agree = [of[1][name] for name in common if name in of[1]]
        return len(agree), min(agree, default=0.0)

    draws, sizes = max(found, key=mixing)
    return {k: draws[k] for k in common}, {k: sizes[k] for k in common if k in sizes}


def _non_centred(site: dict[str, Any]) -> Any:
    """How ``reparam`` treats a site: latent normals by their locations and scales."""
    from numpyro import distributions as dist
    from numpyro.infer.reparam import LocScaleReparam

    fn = site["fn"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    latent = site["type"] == "sample" and not site["is_observed"]
    latent &= not site["name"].endswith("_decentered")  # made by it
    return LocScaleReparam(0.0) if latent and isinstance(fn, dist.Normal) else None


def _chains(module: Any, model: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Draws of a model, and the effective numbers."""
    import jax
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS, init_to_median

    settings = {"target_accept_prob": 0.9, "init_strategy": init_to_median}
    kernel = NUTS(model, **(settings | getattr(module, "NUTS_KERNEL", {})))
    sizes = {"num_warmup": 1_000, "num_samples": 2_000} | getattr(module, "NUTS_RUN", {})
    mcmc = MCMC(
        kernel,
        num_chains=_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
        **sizes,
    )
    args, kwargs = jax.tree.map(_in_double, (module.args, module.kwargs))
    mcmc.run(jax.random.PRNGKey(1), *args, **kwargs)
    chains = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    flat = flat_sites({k: v.reshape(-1, *v.shape[2:]) for k, v in chains.items()})
    grouped = {k: v.reshape(_CHAINS, -1) for k, v in flat.items() if np.ptp(v) > 0}
    stats = summary(grouped)
    agree = {k: float(s["n_eff"]) for k, s in stats.items() if s["r_hat"] < _MAX_R_HAT}
    return flat, agree


def _in_double(leaf: Any) -> Any:
    single = isinstance(leaf, np.ndarray) and leaf.dtype == np.float32
    return leaf.astype(np.float64) if single else leaf


def _answer(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """What the defaults make of a case."""
    path = folder / "models" / f"{name}.py"
    module = _module(path) if path.exists() else None
    import jax

    import consistent_samplers as cs

    if module is not None and hasattr(module, "model"):
        return _of_model(module, getattr(module, "SEED", 0) if seed < 0 else seed)
    if module is not None:
        log_density, dim = module.log_density, module.dim
    else:
        densities = _module(folder / "densities.py")
        densities.lazy(name)
        log_density, dim = densities.D[name][:2]
    key = jax.random.key(max(seed, 0))
    trained = cs.train_sampler(key, cs.Target(log_density, dim=dim), progress_bar=False)
    draws = trained.sample(jax.random.fold_in(key, 1), 10_000)
    chains, worth, verdict = trained.concluded(
        cs.diagnostics.informed(cs.evidence(draws), trained.exploration)
    )
    index = cs.corrections.systematic_indices(
        jax.random.fold_in(key, 2), cs.estimate.pareto_smooth(draws.log_weight)[0], 10_000
    )
    samples = draws.position[np.asarray(index)]
    if chains is not None:
        samples = chains.position.reshape(-1, dim)
    constrain = getattr(module, "constrain", lambda x: {"x": x})
    return _row(trained, worth, verdict, constrain(samples))


def _of_model(module: Any, seed: int) -> dict[str, Any]:
    import jax

    from consistent_samplers.integrations.numpyro import OneStepSampler

    sampler = OneStepSampler(module.model, progress_bar=False)
    sampler.run(jax.random.PRNGKey(seed), *module.args, **module.kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = sampler.get_samples()
        sampler.print_summary()
        if hasattr(module, "after"):
            module.after(sampler)
    distrusted = sampler.diagnostics()["distrusted"]
    return _row(sampler.trained, sampler.evidence, sampler.verdict, samples, distrusted)


def _row(
    trained: Any, worth: Any, verdict: Any, samples: Any, distrusted: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that is held against the truth."""
    num_effective = max(float(worth.ess) * worth.num_samples, 1.0)
    # What the weights' tail may hide could all lie on one side of a quantile.
    unseen = float(worth.unseen or 0.0)
    if (chains := trained.concluded(worth)[0]) is not None:
        num_effective, unseen = max(chains.mixing.tail, 1.0), 0.0
    quantiles = {k: _quantiles(v, num_effective, unseen) for k, v in flat_sites(samples).items()}
    return {
        "dim": trained.target.dim,
        "log_z": float(worth.log_z),
        "log_z_stderr": float(worth.log_z_stderr),
        "ess": float(worth.ess),
        "pareto_k": float(worth.pareto_k),
        "level": verdict.level,
        "verdict": str(verdict),
        "route": trained.route.name,
        "reason": trained.route.reason,
        "distrusted": list(distrusted),
        "quantiles": {k: (q.tolist(), e.tolist()) for k, (q, _, e) in quantiles.items()},
    }


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--child", nargs=5, required=True)
    _folder, _name, _what, _seed, _path = _parser.parse_args().child
    _found = (
        _truth(Path(_folder), _name)
        if _what == "truth"
        else _answer(Path(_folder), _name, int(_seed))
    )
    Path(_path).write_text(json.dumps(_found))
