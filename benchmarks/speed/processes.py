"""What takes a process of its own: seconds of compilation, and the peak of memory."""

import tempfile
import time
from typing import Any

from benchmarks import timing
from benchmarks.process import isolated
from benchmarks.report import Row
from benchmarks.speed.cases import Sizes, held

_GIB = 2**30


def compilation(sizes: Sizes) -> list[Row]:
    """Seconds that ``train_sampler`` traces, lowers and compiles, in a first process and a second.

    The first finds no program that was kept, the second those of the first.
    """
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for seed in range(sizes.process_rounds):
        with tempfile.TemporaryDirectory() as folder:
            variables = {"CONSISTENT_SAMPLERS_CACHE": folder, "JAX_COMPILATION_CACHE_DIR": ""}
            for found in seconds.values():
                row = _child("train", variables, name=sizes.compiled, seed=seed, train=sizes.train)
                found.append(row["compile_seconds"])
    what = f"compile time of train_sampler on {sizes.compiled}"
    return [
        held(which, f"{what}, {which} process [s]", timing.spread(seconds[which]), "<=", limit)
        for which, limit in (("first", 20.0), ("second", 2.5))
    ]


def memory(sizes: Sizes) -> list[Row]:
    """Peak resident memory of evidence from few and many draws, and of training in 1,600-d."""
    name, numbers = sizes.stream
    few, many = (
        _child("stream", name=name, num=num, hidden=sizes.hidden)["peak_bytes"] for num in numbers
    )
    what = f"streaming evidence on {name}: peak memory at {numbers[1]:,} draws over that at "
    growth = held("stream", what + f"{numbers[0]:,}", timing.spread([many / few]), "<=", 1.2)
    row = _child("train", name=sizes.large, seed=0, train=sizes.large_train)
    what = f"training on {sizes.large}, d = {row['dim']}: peak memory [GiB]"
    peak = timing.spread([row["peak_bytes"] / _GIB])
    return [growth | {"peak_bytes": [few, many]}, held("train", what, peak, "<=", 4.0)]


def _child(function: str, variables: dict[str, str] | None = None, **given: Any) -> Row:
    found = isolated(f"benchmarks.speed.processes:{function}", given, variables=variables)
    if "error" in found:
        raise RuntimeError(f"{function} with {given}: {found['error']}")
    return found


# --- In the child -------------------------------------------------------------------------------


def train(name: str, seed: int, train: dict[str, Any]) -> Row:
    """``train_sampler``: the compilation in it, and the process's peak of memory."""
    import jax

    import consistent_samplers as cs
    from benchmarks.race import peak_bytes

    target, events = getattr(cs.targets, name)(), timing.compilations()
    cs.train_sampler(jax.random.key(seed), target, progress_bar=False, **train)
    compiling = timing.covered(events)
    return {"dim": target.dim, "compile_seconds": compiling, "peak_bytes": peak_bytes()}


def stream(name: str, num: int, hidden: list[int]) -> Row:
    """Evidence of weighted draws, chunk by chunk; what they are worth is beside the point."""
    import jax

    from benchmarks.race import peak_bytes
    from benchmarks.speed.cases import timed
    from consistent_samplers.streaming import stream_evidence

    begin = time.perf_counter()
    found = stream_evidence(jax.random.key(0), timed(name, tuple(hidden)).sample, num)
    seconds = time.perf_counter() - begin
    return {"num": found.num_samples, "stream_seconds": seconds, "peak_bytes": peak_bytes()}
