"""Peak resident memory of evidence from few and many draws, and of training in 1,600 dimensions."""

from functools import partial
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import timing
from benchmarks.process import isolated
from benchmarks.race import peak_bytes
from benchmarks.report import Row
from benchmarks.speed.cases import Sizes, held, timed
from consistent_samplers.streaming import stream_evidence


def measure(sizes: Sizes) -> list[Row]:
    """How much more many draws take, and how much training takes."""
    few, many = (70_000, 80_000) if sizes.quick else (100_000, 10_000_000)
    large, iterations = ("funnel", 2) if sizes.quick else ("lgcp", 10)
    sizes_of = [_child("stream", num=num, hidden=sizes.hidden) for num in (few, many)]
    what = f"streaming evidence on funnel: peak memory at {many:,} draws over that at {few:,}"
    growth = timing.spread([sizes_of[1]["peak_bytes"] / sizes_of[0]["peak_bytes"]])
    row = _child("train", name=large, iterations=iterations)
    training = f"training on {large}, d = {row['dim']}: peak memory [GiB]"
    peak = timing.spread([row["peak_bytes"] / 2**30])
    return [held("stream", what, growth, "<=", 1.2), held("train", training, peak, "<=", 4.0)]


def _child(function: str, **given: Any) -> Row:
    found = isolated(f"benchmarks.speed.memory:{function}", given)
    if "error" in found:
        raise RuntimeError(f"{function} with {given}: {found['error']}")
    return found


def train(name: str, iterations: int) -> Row:
    """In the child: ``train_sampler`` with few iterations, which take as much memory as many."""
    target = getattr(cs.targets, name)()
    train = partial(cs.train_sampler, num_iterations=iterations, progress_bar=False)
    train(jax.random.key(0), target, num_calibration_iterations=iterations)
    return {"dim": target.dim, "peak_bytes": peak_bytes()}


def stream(num: int, hidden: list[int]) -> Row:
    """In the child: evidence chunk by chunk; what the draws are worth is beside the point."""
    algorithm, state = timed("funnel", tuple(hidden))
    sampler = algorithm.sampler(state)

    def sample(rng_key: Any, num: int) -> cs.Draws:
        return sampler.sample(rng_key, algorithm.target, num, 1, method="map")

    stream_evidence(jax.random.key(0), sample, num)
    return {"peak_bytes": peak_bytes()}
