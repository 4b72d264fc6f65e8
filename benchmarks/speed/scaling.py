"""Cost against d, batch, steps and components, with the slope of each and its theory.

The theory is that of the dominant term: draws go through the base's full factor, O(d²), where the
base is full; weights of a general network take d + 1 evaluations of O(d) and an elimination of
O(d³); a structured one's O(d) alone. In all else costs are proportional, or less.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import timing
from benchmarks.report import Row
from benchmarks.speed.cases import (
    Sizes,
    Timed,
    diagonal_base,
    held,
    mixed_base,
    plain_target,
    timed,
)


def measure(sizes: Sizes) -> list[Row]:
    """A row a line of the figure."""
    rows: list[Row] = []

    def add(what: str, against: str, theory: float, xs: Sequence[int], build: Any) -> None:
        functions = {str(x): build(x) for x in xs}
        seconds = timing.interleaved(functions, max(2, sizes.rounds // 2))
        medians = [timing.spread(seconds[str(x)])["median"] for x in xs]
        slope = timing.slope(xs, medians)
        words = f"slope of {what} against {against}, theory {theory:g}"
        measured = dict.fromkeys(("median", "low", "high"), slope)
        row = held(f"{what} against {against}", words, measured, "<=", theory + 0.2)
        rows.append(row | {"line": what, "against": against, "x": list(xs), "seconds": medians})
        print(f"  {words}: {slope:.2f}", flush=True)

    def general(dim: int, base: Any = None, **more: Any) -> Timed:
        return timed(plain_target(dim), sizes.hidden, base, **more)

    def structured(dim: int) -> Timed:
        return general(dim, diagonal_base(dim), network="structured")

    def osds(dim: int, network: str, max_steps: int, batch: int) -> Callable[[], Any]:
        # The recipe's, but for its batch.
        settings = {"batch_size": batch, "num_consistency_samples": batch // 2}
        return general(dim, network=network, max_steps=max_steps, **settings).iteration()

    def mixed(components: int) -> Timed:
        return general(few, mixed_base(few, components))

    def some(*xs: int) -> tuple[int, ...]:
        return xs[:2] if sizes.quick else xs

    num, dims = 16 if sizes.quick else 2_048, some(2, 8, 26, 100, 400, 1_600)
    batches, steps = some(1_024, 4_096, 16_384, 65_536), some(1, 2, 4, 8, 16, 32, 64, 128)
    small = [d for d in dims if d <= 100]
    middle, few = small[len(small) // 2], small[min(1, len(small) - 1)]
    many = [d for d in dims if d > 26] or dims
    several = general(middle, max_steps=max(steps))
    up_to_16 = [k for k in steps if k <= 16]
    long = [k for k in steps if k > 1] if len(steps) > 2 else steps
    own, weighted, train = "draws, general", "weighted draws, general", "OSDS iteration, general"
    on_diagonal = "weighted draws, structured, diagonal base"
    add(f"{own}, full base", "d", 2.0, dims, lambda d: general(d).sampling(num, False))
    add("bare network, general", "d", 1.0, dims, lambda d: general(d).bare(num))
    add(weighted, "d", 3.0, small, lambda d: general(d).sampling(num))
    add(on_diagonal, "d", 1.0, dims, lambda d: structured(d).sampling(num))
    add(train, "d", 3.0, small, lambda d: osds(d, "general", 4, 64))
    add("OSDS iteration, structured", "d", 2.0, many, lambda d: osds(d, "structured", 4, 16))
    add(own, "batch", 1.0, batches, lambda n: general(middle).sampling(n, False))
    add(weighted, "batch", 1.0, batches[:3], lambda n: general(middle).sampling(n))
    add(train, "batch", 1.0, some(32, 128, 512, 2_048), lambda n: osds(middle, "general", 4, n))
    add(own, "steps", 1.0, steps, lambda k: several.sampling(num, False, k))
    add(weighted, "steps", 1.0, up_to_16, lambda k: several.sampling(num, True, k))
    add(train, "steps", 1.0, long, lambda k: osds(middle, "general", k, 64))
    numbers = some(1, 2, 4, 8, 16, 32, 64)
    add(own, "components", 1.0, numbers, lambda c: mixed(c).sampling(num, False))
    add(weighted, "components", 1.0, numbers, lambda c: mixed(c).sampling(num))
    return rows
