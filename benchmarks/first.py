"""Seconds from the start of a process to 10,000 effective draws: ours, and NumPyro's NUTS.

Each measurement is a process of its own, timed by its parent from before it is started: imports,
tracing, compilation, training or warm-up, and draws all count. Ours runs twice: the first process
ever on a machine, whose folder of kept programs is empty, and a second one, with the same folder.

NUTS has 4 vectorised chains of 500 warm-up iterations. What is extrapolated: it runs until 2,000
draws are effective (the smallest effective sample size over all sites), in blocks of 500 draws a
chain of which the first goes with the warm-up; the draws that are missing from 10,000 effective
ones are charged at the seconds a draw of the quickest further block, when everything is compiled.
Ours is never extrapolated; its effective draws are the sum of ESS times n over its batches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import first_models

# What a process imports is part of what is measured: the rest is imported where it is needed.

_SMALL = ("eight_schools", "kidscore", "linear", "logistic", "poisson")
GOALS: dict[str, dict[str, float]] = {
    **{name: {"second": 5.0, "ratio": 1.0, "compiling": 2.5} for name in _SMALL},
    "seeds": {"first": 16.0, "second": 8.0, "ratio": 8.0, "compiling": 2.5},
    **{name: {"ratio": 1.0} for name in ("sonar", "ionosphere", "logistic_100000x30")},
    "tiny": {},
}
"""Rows, and what they are held to: seconds of a first and a second process at most, seconds of
NUTS over those of a second process at least, and seconds that the second one compiles at most."""
_TARGETS = ("seeds", "sonar", "ionosphere")
_WARM_UP, _BLOCK, _ENOUGH, _MOST_DRAWS = 500, 500, 2_000, 10_000_000


def run(
    models: list[str] | None, skip_nuts: bool, repeats: int, effective: int, output: Path
) -> dict[str, Any]:
    """Measures the rows and holds them to their goals.

    Args:
      models: names of `GOALS`; all but ``"tiny"``, which is there to try the command, if None.
      skip_nuts: measure ours only.
      repeats: repetitions, of which medians are taken.
      effective: effective draws to reach.
      output: folder for first.json and first.md.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: no such row, or a number that is not positive.
    """
    if min(repeats, effective) < 1 or not set(models or ()) <= set(GOALS):
        raise ValueError(
            f"Numbers must be positive, and models among {', '.join(GOALS)}; got {models}."
        )
    from benchmarks import registry
    from benchmarks.rows import save, versions_and_device

    command = ["python -m benchmarks first", *(["--models", *models] if models else [])]
    command += ["--skip-nuts"] * skip_nuts + [f"--repeats {repeats} --effective {effective}"]
    results: dict[str, Any] = {"command": " ".join(command), **versions_and_device()}
    results |= {"cores": os.cpu_count(), "effective": effective, "rows": [], "skipped": {}}
    for name in models or list(GOALS)[:-1]:
        try:
            # Data that has to be downloaded is there before any clock runs.
            _ = name in _TARGETS and registry.TARGETS[name].build()
        except (ImportError, ConnectionError, FileNotFoundError) as error:
            results["skipped"][name] = f"{type(error).__name__}: {error}"
            continue
        results["rows"].append(_row(name, skip_nuts, repeats, effective))
    return save(output, "first", results, markdown)


def _row(name: str, skip_nuts: bool, repeats: int, effective: int) -> dict[str, Any]:
    """All processes of a row."""
    from benchmarks import timing
    from benchmarks.speed_goals import goal

    runs: dict[str, list[dict[str, Any]]] = {"first": [], "second": [], "nuts": []}
    for seed in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("first", "second", *(() if skip_nuts else ("nuts",))):
                runs[kind].append(_process(name, kind, seed, effective, folder))
                print(f"{name:>20}, {kind}: {runs[kind][-1]['seconds']:.1f} s", flush=True)
    row: dict[str, Any] = {"model": name, "runs": runs}
    row |= {k: runs["second"][0][k] for k in ("dim", "route", "reason", "log_z", "log_z_stderr")}
    of = {k: [r["seconds"] for r in found] for k, found in runs.items()}
    row["seconds"] = {k: timing.spread(found) for k, found in of.items() if found}
    row["compiling"] = {
        k: timing.spread([r["compile_seconds"] for r in runs[k]]) for k in ("first", "second")
    }
    row["ratio"] = {} if skip_nuts else {k: timing.ratio(of["nuts"], of[k]) for k in list(of)[:2]}
    measured = {k: row["seconds"][k] for k in ("first", "second")}
    measured["compiling"] = row["compiling"]["second"]
    if not skip_nuts:
        measured["ratio"] = row["ratio"]["second"]
    row["goals"] = {
        k: goal(k, measured[k], ">=" if k == "ratio" else "<=", limit)
        for k, limit in GOALS[name].items()
        if k in measured
    }
    return row


def _process(name: str, kind: str, seed: int, effective: int, folder: str) -> dict[str, Any]:
    """One measurement in a fresh process, from before it is started."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["CONSISTENT_SAMPLERS_CACHE"] = str(Path(folder) / "programs")
    command = [sys.executable, "-m", "benchmarks.first", "--child", name]
    command += [kind, str(seed), str(effective), str(Path(folder) / "result.json")]
    begin = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}, {kind} failed:\n{done.stderr[-2_000:]}")
    found = json.loads((Path(folder) / "result.json").read_text())
    return found | {"seconds": found["end"] - begin}


def _ours(name: str, seed: int, effective: int) -> dict[str, Any]:
    """Trains, and draws until enough draws are effective."""
    from benchmarks import timing

    events = timing.compilations()
    import jax

    import consistent_samplers as cs

    key = jax.random.key(seed)
    if name in _TARGETS:
        trained = cs.train_sampler(key, getattr(cs.targets, name)(), progress_bar=False)
        worth = trained.evidence(jax.random.fold_in(key, 1), 10_000)
    else:
        from consistent_samplers.integrations.numpyro import OneStepSampler

        model, arguments = first_models.model_of(name)
        sampler = OneStepSampler(model, num_samples=10_000, progress_bar=False)
        sampler.run(key, *arguments)
        trained, worth = sampler.trained, sampler.evidence
    assert trained.route is not None
    found: dict[str, Any] = {"log_z": float(worth.log_z), "log_z_stderr": float(worth.log_z_stderr)}
    num_drawn, reached = worth.num_samples, float(worth.ess) * worth.num_samples
    while reached < effective and num_drawn < _MOST_DRAWS:
        num = min(65_536, 2 + round(1.05 * (effective - reached) / float(worth.ess)))
        worth = trained.evidence(jax.random.fold_in(key, num_drawn), num)
        num_drawn, reached = num_drawn + num, reached + float(worth.ess) * num
    end = time.time()
    if reached < effective:
        raise RuntimeError(f"{reached:.0f} of {num_drawn} draws are effective.")
    found |= {"end": end, "draws": num_drawn, "effective": reached, "ess": float(worth.ess)}
    found |= {"route": trained.route.name, "reason": trained.route.reason}
    found |= {"dim": trained.target.dim, "training_seconds": trained.training_seconds}
    return found | {
        "compile_seconds": timing.covered(events),
        "compilations": sum(kind == "backend_compile_duration" for *_, kind in events),
    }


def _nuts(name: str, seed: int, effective: int) -> dict[str, Any]:
    """NUTS until its rate is known, and the seconds that are missing to enough draws."""
    import jax
    from numpyro.infer import NUTS

    from benchmarks.chains import CHAINS, race

    key, key_start = jax.random.split(jax.random.key(seed))
    arguments: tuple[Any, ...] = ()
    start = None
    if name in _TARGETS:
        import consistent_samplers as cs

        target = getattr(cs.targets, name)()
        kernel = NUTS(potential_fn=lambda x: -target.log_density(x))
        start = jax.random.uniform(key_start, (CHAINS, target.dim), minval=-2.0, maxval=2.0)
    else:
        model, arguments = first_models.model_of(name)
        kernel = NUTS(model)
    begin, enough = time.time(), min(_ENOUGH, effective)
    sizes = {"warm_up": _WARM_UP, "block": _BLOCK, "effective": effective, "enough": enough}
    found = race(kernel, key, arguments, start, **sizes)
    return {"end": begin + found.seconds} | found._asdict()


def markdown(results: dict[str, Any]) -> str:
    """The table, goals in brackets."""
    from benchmarks.rows import cell

    def held(row: dict[str, Any], name: str, value: dict[str, Any]) -> str:
        """A median, the goal, and a cross where it is missed."""
        text, found = cell(value.get("median")), row["goals"].get(name)
        return text if found is None else f"{text} [{found['limit']:g}]" + " ✗" * (not found["met"])

    text = [
        "# First draws",
        "",
        f"Made by `{results['command']}` on {results['device']} with {results['cores']} cores: "
        f"seconds from the start of a process to {results['effective']:,} effective draws, medians "
        "of the repetitions. First: no process has run on the machine before; second: the next "
        "one; of them compiling: tracing, lowering and compiling. Of NUTS (4 vectorised chains, "
        "500 warm-up) the draws beyond those that tell its rate are extrapolated. In brackets the "
        "goal, a cross where it is missed.",
        "",
        "| model | dim | route | first | of it compiling | second | of it compiling | NUTS | NUTS "
        "over first | NUTS over second | log Z |",
        "|" + "---|" * 11,
    ]
    for row in results["rows"]:
        seconds, ratio = row["seconds"], row["ratio"]
        cells = (
            *(row["model"], str(row["dim"]), row["route"]),
            *(held(row, "first", seconds["first"]), cell(row["compiling"]["first"]["median"])),
            held(row, "second", seconds["second"]),
            held(row, "compiling", row["compiling"]["second"]),
            cell(seconds.get("nuts", {}).get("median")),
            cell(ratio.get("first", {}).get("median")),
            held(row, "ratio", ratio.get("second", {})),
            f"{row['log_z']:.3f} ± {row['log_z_stderr']:.2g}",
        )
        text.append("| " + " | ".join(cells) + " |")
    text += ["", *(f"Skipped: {name} ({why})" for name, why in results["skipped"].items())]
    return "\n".join(text).rstrip() + "\n"


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--child", nargs=5, required=True)
    _name, _kind, _seed, _effective, _path = _parser.parse_args().child
    _measure = _nuts if _kind == "nuts" else _ours
    Path(_path).write_text(json.dumps(_measure(_name, int(_seed), int(_effective))))
