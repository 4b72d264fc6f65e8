"""Cases from the field, with the defaults: is any answer silently wrong?

Models and densities as users bring them lie in a folder: `models/NAME.py` with a NumPyro model and
its arguments or a log density, and `densities.py` with densities of known log Z. The truth is what
a case's own `reference()` computes, or long NUTS in double precision for quantiles. Each case runs
in a process of its own under a time limit, seconds from its start. Quantile error: the largest of
all sites' 5, 25, 50, 75 and 95 % quantiles beyond its own error (2 standard errors), in robust
standard deviations; of sites that the verdict does not name as distrusted.
"""

import contextlib
import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import race, truth
from benchmarks.case import Benchmark, Case
from benchmarks.process import ROOT, isolated
from benchmarks.report import Report, Row, Table

# A child imports JAX after its settings: it is imported where it is needed.

_FOLDER = ROOT.parent / "shared" / "field"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOG_Z_LIMIT, QUANTILE_LIMIT = 0.05, 0.1
"""Nats, and robust standard deviations, of error that may go unsaid, beyond the answer's own."""
_MAX_STDERR = 0.25  # an interval that takes in everything is no answer
# Of chains: too heavy-tailed for quantiles of a scale, or not mixing.
_MAX_R_HAT = 1.02
_KEPT = (
    *("dim", "log_z", "log_z_stderr", "ess", "pareto_k", "level", "verdict", "distrusted", "route"),
    *("seconds", "error"),
)


def names(settings: Mapping[str, Any]) -> list[str]:
    """All cases of the folder, models first."""
    folder = settings["folder"] or _FOLDER
    if not (folder / "densities.py").exists():
        raise ValueError(f"No cases in {folder}: give --folder.")
    models = sorted(path.stem for path in (folder / "models").glob("*.py"))
    densities = _module(folder / "densities.py")
    densities.lazy("sinusoid_3d")
    return models + list(densities.D)


def measure(case: Case) -> list[Row]:
    """A case's answer, held against its truth."""
    folder, limit = case.settings["folder"] or _FOLDER, case.settings["limit"]
    given: Row = {"folder": str(folder.resolve()), "name": case.target}

    def compute() -> Row:
        return isolated("benchmarks.field:reference", given, 3 * limit)

    found = isolated("benchmarks.field:answer", given | {"seed": case.seed}, limit)
    judgement = judged(found, truth.kept("field", case.target, compute))
    return [{name: found[name] for name in _KEPT if name in found} | judgement]


def judged(answer: Row, known: Row) -> Row:
    """How far an answer is off, and which of ``truth.OUTCOMES`` that is."""
    if "error" in answer:
        # What has no evidence may be refused.
        refused = known.get("improper") and answer["error"].startswith("ValueError")
        return {"outcome": "flagged" if refused else "crash"}
    wrong, found = bool(known.get("improper")), dict[str, Any]()
    if known.get("log_z") is not None:
        off = answer["log_z"] - known["log_z"]
        found |= {"log_z_error": off, "true_log_z": known["log_z"]}
        wrong |= abs(off) > max(LOG_Z_LIMIT, 4.0 * answer["log_z_stderr"])
    used = answer["level"] != "not to be used"
    worst = ("", 0.0)
    for site, (quantiles, spread, errors) in known.get("quantiles", {}).items():
        # Of a site that the verdict names nothing is claimed.
        if site not in answer["quantiles"] or (used and site in answer["distrusted"]):
            continue
        mine, own = (np.asarray(part) for part in answer["quantiles"][site])
        error = 2.0 * np.sqrt(np.square(errors) + np.square(own))
        beyond = (np.abs(mine - np.asarray(quantiles)) - error) / spread
        if beyond.max() > worst[1]:
            worst = (site, float(beyond.max()))
    wrong |= answer["log_z_stderr"] > _MAX_STDERR or worst[1] > QUANTILE_LIMIT
    found |= {"quantile_error": worst[1], "worst_site": worst[0]}
    if "log_z" not in known and not known.get("quantiles") and not known.get("improper"):
        return found | {"outcome": "no truth"}
    return found | {"outcome": truth.outcome(bool(wrong), used)}


# --- In the child -------------------------------------------------------------------------------


def answer(folder: str, name: str, seed: int) -> Row:
    """What the defaults make of a case; its own seed if that is negative."""
    path = Path(folder) / "models" / f"{name}.py"
    module = _module(path) if path.exists() else None
    import jax

    import consistent_samplers as cs

    if module is not None and hasattr(module, "model"):
        seed = getattr(module, "SEED", 0) if seed < 0 else seed
        subject = race.Subject(module.model, module.args, module.kwargs)
        found = race.ours(subject, jax.random.PRNGKey(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.sampler.print_summary()
            if hasattr(module, "after"):
                module.after(found.sampler)
        samples = found.samples
    else:
        if module is None:
            log_density, dim, _ = _density(folder, name)
        else:
            log_density, dim = module.log_density, module.dim
        target = cs.Target(log_density, dim=dim)
        found = race.ours(race.Subject(target), jax.random.key(max(seed, 0)))
        constrain = getattr(module, "constrain", lambda x: {"x": x})
        samples = constrain(found.samples["x"])
    # What the weights' tail may hide could all lie on one side of a quantile.
    size, unseen = found.row["effective"], found.row["unseen"]
    if (tail := found.row["tail"]) is not None:
        size, unseen = tail, 0.0
    sites = {k: _quantiles(v, size, unseen) for k, v in race.flat_sites(samples).items()}
    # Of the whole process: "end" is when the draws were there.
    del found.row["end"]
    return found.row | {
        "quantiles": {k: (q.tolist(), e.tolist()) for k, (q, _, e) in sites.items()}
    }


def reference(folder: str, name: str) -> Row:
    """Log Z and quantiles of a case as far as they are known."""
    path = Path(folder) / "models" / f"{name}.py"
    if not path.exists():
        log_z = _density(folder, name)[2]
        return {"log_z": log_z} if np.isfinite(log_z) else {"improper": True}
    import jax

    jax.config.update("jax_enable_x64", True)
    module = _module(path)
    if name == "c18_freeangle":
        return {"improper": True}
    Path("out").mkdir()
    found: Row = {}
    if hasattr(module, "reference") and not hasattr(module, "ref_model"):
        with contextlib.redirect_stdout(io.StringIO()):
            module.reference()
        found = {"log_z": float(json.loads(Path(f"out/{name}.ref.json").read_text())["log_z"])}
        draws = {k: np.asarray(v, np.float64) for k, v in np.load(f"out/{name}.ref.npz").items()}
        sizes: dict[str, float] = {k: len(v) for k, v in draws.items()}
    else:
        draws, sizes = long_nuts(module)
        if hasattr(module, "symmetrise"):
            np.savez(f"out/{name}.ref.npz", **draws)  # type: ignore[arg-type]
            module.symmetrise()
            draws = dict(np.load(f"out/{name}.ref.npz"))
    quantiles = {k: _quantiles(v, sizes[k]) for k, v in draws.items() if k in sizes}
    known = {k: (q.tolist(), s, e.tolist()) for k, (q, s, e) in quantiles.items()}
    return found | {"quantiles": known, "sites": len(draws)}


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
    several = {"num_chains": race.CHAINS, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, **several, **sizes)
    args, kwargs = jax.tree.map(_in_double, (module.args, module.kwargs))
    mcmc.run(jax.random.PRNGKey(1), *args, **kwargs)
    chains = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    flat = race.flat_sites({k: v.reshape(-1, *v.shape[2:]) for k, v in chains.items()})
    grouped = {k: v.reshape(race.CHAINS, -1) for k, v in flat.items() if np.ptp(v) > 0}
    stats = summary(grouped)
    return flat, {k: float(s["n_eff"]) for k, s in stats.items() if s["r_hat"] < _MAX_R_HAT}


def _in_double(leaf: Any) -> Any:
    single = isinstance(leaf, np.ndarray) and leaf.dtype == np.float32
    return leaf.astype(np.float64) if single else leaf


def _quantiles(
    values: np.ndarray, num_effective: float, unseen: float = 0.0
) -> tuple[np.ndarray, float, np.ndarray]:
    """Quantiles, IQR / 1.349 and the quantiles' standard errors."""
    probabilities = np.asarray(QUANTILES)
    found = np.quantile(values, probabilities)
    away = np.sqrt(probabilities * (1.0 - probabilities) / max(num_effective, 1.0) + unseen**2)
    low, high = (np.quantile(values, np.clip(probabilities + s * away, 0, 1)) for s in (-1, 1))
    return found, float((found[3] - found[1]) / 1.349), 0.5 * (high - low)


def _density(folder: str, name: str) -> tuple[Any, int, float]:
    densities = _module(Path(folder) / "densities.py")
    densities.lazy(name)
    log_density, dim, log_z = densities.D[name][:3]
    return log_density, dim, log_z


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


BENCHMARK = Benchmark(
    name="field",
    names=names,
    measure=measure,
    by=("target",),
    options={
        "--folder": (Path, "folder of the cases"),
        "--limit": (600.0, "seconds of a case"),
        "--seed": (int, "of every case, instead of its own"),
    },
    report=Report(
        doc=__doc__,
        words="{counts}; of those that are right {cried_share:.0f} % are called not to be used.",
        tables=(
            Table(
                """case: {target} | d: {dim} | true: {true_log_z} |
                log Z: {log_z} ± {log_z_stderr} |
                quantile error: {quantile_error} {worst_site} | distrusted: {distrusted} |
                ESS: {ess} | k: {pareto_k} | level: {level} | outcome: {outcome} |
                route: {route} | s: {seconds:.0f}"""
            ),
        ),
        summary=truth.counts,
    ),
)
