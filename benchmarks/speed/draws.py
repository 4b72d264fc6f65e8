"""One-step draws against the bare network on a batch of the same size: without and with weights."""

from collections.abc import Sequence

import numpy as np

from benchmarks import timing
from benchmarks.report import Row
from benchmarks.speed.cases import Sizes, Timed, diagonal_base, full_base, held, plain_target, timed

_CHUNK = 16_384


def unweighted(sizes: Sizes) -> list[Row]:
    """Draws without weights; the network takes the batch at once or in chunks, what is faster."""
    rows, num = [], sizes.draws
    for name in sizes.targets:
        sampler = timed(name, sizes.hidden)
        seconds = timing.interleaved(
            {
                "draws": sampler.sampling(num, weights=False),
                "bare": sampler.bare(num),
                "in chunks": sampler.bare(num, _CHUNK),
            },
            sizes.rounds,
        )
        share = np.minimum(seconds["bare"], seconds["in chunks"]) / seconds["draws"]
        what = f"draws without weights, d = {sampler.dim}, batch {num:,}: throughput over the bare"
        rows.append(held(name, f"{what} network's", timing.spread(share), ">=", 0.6))
    return rows


def weighted(sizes: Sizes) -> list[Row]:
    """Draws with exact log-determinants.

    At two numbers of draws: the 256 round trips of a call are a fixed cost, which is spread over
    100,000 draws in the figures.
    """
    rows = []

    def measure(sampler: Timed, numbers: Sequence[int], network: str, base: str) -> None:
        small, large = numbers
        functions = {"small": sampler.sampling(small), "large": sampler.sampling(large)}
        seconds = timing.interleaved(functions | {"bare": sampler.bare(large)}, sizes.rounds)
        per_draw = (seconds["large"] - seconds["small"]) / (large - small)
        fixed = np.maximum(seconds["small"] - small * per_draw, 0.0)
        cost = (per_draw + fixed / 100_000) / (seconds["bare"] / large)
        what, limit = (
            f"weighted draws, {network} network, {base} base, d = {sampler.dim}: cost",
            5.0,
        )
        if network == "general":
            cost, limit = cost / (sampler.dim + 1), 1.5
        what += " over d + 1 bare evaluations" if network == "general" else " in bare evaluations"
        row = held(f"{network} {base} {sampler.dim}", what, timing.spread(cost), "<=", limit)
        rows.append(row | {"microseconds": 1e6 * float(np.median(per_draw))})

    for name in sizes.targets:
        measure(timed(name, sizes.hidden), sizes.weighted, "general", "full")
    for dim, *numbers in sizes.structured:
        bases = {"diagonal": diagonal_base}
        if dim == sizes.structured[-1][0]:
            # What a full covariance adds to it.
            bases["full"] = full_base
        for words, base in bases.items():
            sampler = timed(plain_target(dim), sizes.hidden, "structured", base(dim))
            measure(sampler, numbers, "structured", words)
    return rows
