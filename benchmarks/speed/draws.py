"""One-step draws against the bare network on a batch of the same size: without and with weights."""

from collections.abc import Sequence

import numpy as np

from benchmarks import timing
from benchmarks.report import Row
from benchmarks.speed.cases import Sizes, Timed, diagonal_base, full_base, held, plain_target, timed

_CHUNK, _TARGETS = 16_384, ("seeds", "sonar")
# Dimensions, and two numbers of draws: whole blocks of those that are made at once.
_STRUCTURED = [(26, 4_096, 16_384), (400, 4_096, 16_384), (1_600, 512, 2_048)]


def unweighted(sizes: Sizes) -> list[Row]:
    """Draws without weights; the network takes the batch at once or in chunks, what is faster.

    Beside it what nothing that draws from a base can do without: normal points for the network.
    """
    names, num = (("gmm9",), 64) if sizes.quick else (_TARGETS, 100_000)
    rows = []
    for name in names:
        sampler = timed(name, sizes.hidden)
        bare = {"bare": sampler.bare(num), "in chunks": sampler.bare(num, _CHUNK)}
        functions = {"draws": sampler.sampling(num, weights=False)} | bare
        functions["fresh"] = sampler.bare(num, fresh=True)
        seconds = timing.interleaved(functions, sizes.rounds)
        quicker = np.minimum(seconds["bare"], seconds["in chunks"])
        what = f"draws without weights, d = {sampler.dim}, batch {num:,}: throughput over the bare"
        for subject, over, words in (
            (name, quicker, "network's"),
            (f"{name} with noise", seconds["fresh"], "network's and its noise's"),
        ):
            share = timing.spread(over / seconds["draws"])
            rows.append(held(subject, f"{what} {words}", share, ">=", 0.6))
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
        what = f"weighted draws, {network} network, {base} base, d = {sampler.dim}: cost"
        if network == "general":
            what, cost, limit = f"{what} over d + 1 bare evaluations", cost / (sampler.dim + 1), 1.5
        else:
            what, limit = f"{what} in bare evaluations", 5.0
        row = held(f"{network} {base} {sampler.dim}", what, timing.spread(cost), "<=", limit)
        rows.append(row | {"microseconds": 1e6 * float(np.median(per_draw))})

    structured = [(4, 32, 64)] if sizes.quick else _STRUCTURED
    for name in ("gmm9",) if sizes.quick else _TARGETS:
        numbers = (32, 64) if sizes.quick else (2_048, 8_192)
        measure(timed(name, sizes.hidden), numbers, "general", "full")
    for dim, *pair in structured:
        bases = {"diagonal": diagonal_base(dim)}
        if dim == structured[-1][0]:
            # What a full covariance adds to it.
            bases["full"] = full_base(dim)
        for words, base in bases.items():
            sampler = timed(plain_target(dim), sizes.hidden, base, network="structured")
            measure(sampler, pair, "structured", words)
    return rows
