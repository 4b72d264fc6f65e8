"""Cases from the field, with the defaults: is any answer silently wrong?

Models and densities as users bring them lie in a folder: `models/NAME.py` with a NumPyro model and
its arguments or a log density, and `densities.py` with densities of known log Z. The truth is what
a case's own `reference()` computes, or long NUTS in double precision for quantiles. Each case runs
in a process of its own under a time limit, seconds from its start. Quantile error: the largest of
all sites' 5, 25, 50, 75 and 95 % quantiles beyond their simultaneous 95 % errors, in robust
standard deviations; of sites that the verdict does not name as distrusted.
"""

import contextlib
import importlib.util
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import race, truth
from benchmarks.case import Benchmark, Case, Settings
from benchmarks.process import ROOT, isolated
from benchmarks.report import Report, Row

# A child imports JAX after its settings: it is imported where it is needed.

_FOLDER = ROOT.parent / "shared" / "field"
_KEPT = (
    *("dim", "log_z", "log_z_stderr", "ess", "pareto_k", "level", "verdict", "distrusted", "route"),
    *("seconds", "error"),
)


def names(settings: Settings) -> list[str]:
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
    found = isolated("benchmarks.field:answer", given | {"seed": case.seed}, limit)
    judgement = truth.judged(found, truth.kept("field", case.target, given, 3 * limit))
    return [{name: found[name] for name in _KEPT if name in found} | judgement]


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
        samples = None
    else:
        if module is None:
            log_density, dim, _ = _density(folder, name)
        else:
            log_density, dim = module.log_density, module.dim
        target = cs.Target(log_density, dim=dim)
        found = race.ours(race.Subject(target), jax.random.key(max(seed, 0)))
        constrain = getattr(module, "constrain", lambda x: {"x": x})
        samples = constrain(found.samples["x"])
    # Of the whole process: "end" is when the draws were there.
    del found.row["end"]
    return truth.answered(found, samples)


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
        draws, sizes = truth.long_nuts(module)
        if hasattr(module, "symmetrise"):
            np.savez(f"out/{name}.ref.npz", **draws)  # type: ignore[arg-type]
            module.symmetrise()
            draws = dict(np.load(f"out/{name}.ref.npz"))
    return found | truth.of_draws(draws, sizes)


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
        __doc__,
        """case: {target} | d: {dim} | true: {true_log_z} | log Z: {log_z} ± {log_z_stderr} |
        quantile error: {quantile_error} {worst_site} | distrusted: {distrusted} | ESS: {ess} |
        k: {pareto_k} | level: {level} | outcome: {outcome} | route: {route} | s: {seconds:.0f}""",
        "{counts}; of those that are right {cried_share:.0f} % are called not to be used.",
        truth.counts,
    ),
)
