"""Speed of what takes a process of its own: compilation, peak memory, the race against NUTS."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import consistent_samplers as cs
from benchmarks import chains, registry, timing
from benchmarks.speed_cases import Sizes, case
from benchmarks.speed_goals import goal
from consistent_samplers.streaming import stream_evidence

_GIB = 2**30
# Settings of ``train_sampler``, the same for every target.
_RACED: dict[str, dict[str, Any]] = {
    "default route": {},
    "full": {"effort": "full"},
    "structured, full": {"effort": "full", "network": "structured"},
}
_JAX_CACHE, _OUR_CACHE = "JAX_COMPILATION_CACHE_DIR", "CONSISTENT_SAMPLERS_CACHE"


# --- In the process that measures ---------------------------------------------------------------


def nuts(sizes: Sizes) -> dict[str, Any]:
    """Time to a number of effective draws against NUTS, on the same log density.

    With the default route, trained in full, and in full with a structured network.

    From the call to the draws, compilation, training and warm-up included, imports not; our
    programs are kept from one process to the next, from an empty folder. NUTS is
    NumPyro's with 4 vectorised chains from points uniform on (-2, 2); its effective sample size is
    the smallest over the parameters, ours that of the weights. The rates of further draws leave out
    all that comes before the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _raced(sizes, {_OUR_CACHE: folder})


def _raced(sizes: Sizes, variables: dict[str, str]) -> dict[str, Any]:
    rows, goals = [], []
    for name in sizes.targets:
        ours: dict[str, list[Any]] = {settings: [] for settings in _RACED}
        theirs = []
        for seed in range(sizes.process_rounds):
            common = {"target": name, "seed": seed, "effective": sizes.effective}
            for settings, given in _RACED.items():
                train = common | {"train": given | sizes.train}
                ours[settings].append(_process("ours", train, variables))
            budget: dict[str, float] = {"warm_up": sizes.warm_up, "block": sizes.block}
            budget |= {"effective": sizes.effective, "enough": sizes.effective}
            budget |= {"most_seconds": sizes.max_nuts_seconds}
            theirs.append(_process("nuts", common | {"sizes": budget}))
            for who, found in [*ours.items(), ("NUTS", theirs)]:
                print(
                    f"  {name}, {who}: {found[-1]['seconds']:.1f} s, further effective draws a "
                    f"second {found[-1]['rate']:.0f}",
                    flush=True,
                )
        for settings, found in ours.items():
            rows.append({"target": name, "settings": settings, "ours": found, "nuts": theirs})
            faster = timing.ratio([n["seconds"] for n in theirs], [o["seconds"] for o in found])
            further = timing.ratio([o["rate"] for o in found], [n["rate"] for n in theirs])
            where = f"{name}, {settings}"
            what = f"{where}: time of NUTS to {sizes.effective:,} effective draws over ours"
            goals.append(goal(what, faster, ">=", 5.0 if name == "seeds" else 1.0))
            what = f"{where}: further effective draws a second, over NUTS's"
            goals.append(goal(what, further, ">=", 100.0))
    return {"rows": rows, "goals": goals}


def compilation(sizes: Sizes) -> dict[str, Any]:
    """Seconds that ``train_sampler`` traces, lowers and compiles, in a first process and a second.

    The first finds no program that was kept, the second those of the first. The time covered by
    JAX's own events of tracing, lowering and compiling, each moment counted once.
    """
    rows = []
    for seed in range(sizes.process_rounds):
        with tempfile.TemporaryDirectory() as folder:
            settings = {"target": sizes.compiled, "seed": seed, "train": sizes.train}
            for process in ("first", "second"):
                row = {"process": process} | _process("train", settings, {_OUR_CACHE: folder})
                rows.append(row)
                print(
                    f"  {process}: compiles {row['compile_seconds']:.1f} s of "
                    f"{row['seconds']:.1f} s",
                    flush=True,
                )
    goals = []
    for process, limit in (("first", 20.0), ("second", 2.5)):
        found = timing.spread([r["compile_seconds"] for r in rows if r["process"] == process])
        what = f"compile time of train_sampler on {sizes.compiled}, {process} process [s]"
        goals.append(goal(what, found, "<=", limit))
    return {"rows": rows, "goals": goals}


def memory(sizes: Sizes) -> dict[str, Any]:
    """Peak resident memory of evidence from few and many draws, and of training in 1,600-d."""
    name, (few, many) = sizes.stream
    rows = []
    for num in (few, many):
        settings = {"target": name, "num": num, "hidden": sizes.hidden}
        rows.append(_process("stream", settings))
        print(f"  {num:,} draws: peak {rows[-1]['peak_bytes'] / _GIB:.2f} GiB", flush=True)
    growth = timing.ratio([rows[1]["peak_bytes"]], [rows[0]["peak_bytes"]])
    settings = {"target": sizes.large, "seed": 0, "train": sizes.large_train}
    rows.append(_process("train", settings))
    dim, peak = rows[-1]["dim"], rows[-1]["peak_bytes"] / _GIB
    print(f"  training on {sizes.large}: peak {peak:.2f} GiB", flush=True)
    what = f"streaming evidence on {name}: peak memory at {many:,} draws over that at {few:,}"
    training = f"training on {sizes.large}, d = {dim}: peak memory [GiB]"
    return {
        "rows": rows,
        "goals": [
            goal(what, growth, "<=", 1.2),
            goal(training, timing.spread([peak]), "<=", 4.0),
        ],
    }


def _process(
    kind: str, settings: dict[str, Any], variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Runs one of `_KINDS` in a fresh process, and what it reports."""
    environment = {k: v for k, v in os.environ.items() if k != _JAX_CACHE}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed_process",
            kind,
            json.dumps(settings),
            str(path),
        ]
        done = subprocess.run(
            command, env=environment | (variables or {}), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{kind} with {settings} failed:\n{done.stderr[-2_000:]}")
        return json.loads(path.read_text())


# --- In the fresh process -----------------------------------------------------------------------


def _ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains, and draws until enough draws are effective; then as many again."""
    target, goal = registry.TARGETS[settings["target"]].build(), settings["effective"]
    key = jax.random.key(settings["seed"])
    start = time.perf_counter()
    trained = cs.train_sampler(key, target, progress_bar=False, **settings["train"])
    trained_at = time.perf_counter()
    share = max(float(stage.ess) for stage in trained.stages.values())
    effective, num_drawn, num = 0.0, 0, round(1.05 * goal / share)
    while effective < goal:
        draws = trained.sample(jax.random.fold_in(key, num_drawn), num)
        effective += num * float(cs.evidence(draws).ess)
        num_drawn += num
    end = time.perf_counter()
    # All is compiled by now: what further draws take.
    rates = []
    for i in range(3):
        begin = time.perf_counter()
        draws = jax.block_until_ready(trained.sample(jax.random.fold_in(key, 2**31 + i), num))
        rates.append(num * float(cs.evidence(draws).ess) / (time.perf_counter() - begin))
    return {
        "seconds": end - start,
        "training_seconds": trained_at - start,
        "route": trained.route.name if trained.route else None,
        "draws": num_drawn,
        "effective": effective,
        "rate": float(np.median(rates)),
    }


def _nuts(settings: dict[str, Any]) -> dict[str, Any]:
    """NUTS in blocks of draws until enough are effective, or time is up."""
    from numpyro.infer import NUTS

    target = registry.TARGETS[settings["target"]].build()
    key, key_start = jax.random.split(jax.random.key(settings["seed"]))
    start = jax.random.uniform(key_start, (chains.CHAINS, target.dim), minval=-2.0, maxval=2.0)
    kernel = NUTS(potential_fn=lambda x: -target.log_density(x))
    return chains.race(kernel, key, (), start, **settings["sizes"])._asdict()


def _train(settings: dict[str, Any]) -> dict[str, Any]:
    """``train_sampler``: its time, the compilation in it, and the process's peak of memory."""
    target = registry.TARGETS[settings["target"]].build()
    events = timing.compilations()
    start = time.perf_counter()
    cs.train_sampler(
        jax.random.key(settings["seed"]), target, progress_bar=False, **settings["train"]
    )
    seconds = time.perf_counter() - start
    kinds = sorted({name for _, _, name in events})
    return {
        "dim": target.dim,
        "seconds": seconds,
        "compile_seconds": timing.covered(events),
        "kinds": {k: timing.covered([e for e in events if e[-1] == k]) for k in kinds},
        "compilations": sum(name == "backend_compile_duration" for _, _, name in events),
        "peak_bytes": _peak_bytes(),
    }


def _stream(settings: dict[str, Any]) -> dict[str, Any]:
    """Evidence of weighted draws, chunk by chunk; what they are worth is beside the point."""
    sample = case(settings["target"], tuple(settings["hidden"])).sample
    start = time.perf_counter()
    evidence = stream_evidence(jax.random.key(0), sample, settings["num"])
    return {
        "num": evidence.num_samples,
        "seconds": time.perf_counter() - start,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Largest resident memory of this process."""
    # Where it can be had: the other figure takes in the process that this one was forked from.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(r for r in status.read_text().splitlines() if r.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


_KINDS = {"ours": _ours, "nuts": _nuts, "train": _train, "stream": _stream}

if __name__ == "__main__":
    _kind, _settings, _path = sys.argv[1:]
    Path(_path).write_text(json.dumps(_KINDS[_kind](json.loads(_settings))))
