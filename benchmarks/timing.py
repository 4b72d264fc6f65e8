"""Times side by side, and the time that JAX spends on compiling."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Calls of a short function are repeated for so many seconds a turn: a single one would pay for the
# caches that the function before it has emptied.
_SHORTEST, _MOST_CALLS = 0.05, 100


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, waited for, and the seconds that it took."""
    start = time.perf_counter()
    found = jax.block_until_ready(function())
    return found, time.perf_counter() - start


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds ``[rounds]`` of each function, in turn (A B A B ...) after a call that compiles.

    What they return is waited for. Of a short one a turn is several calls, and its seconds a mean.
    """

    def mean(function: Callable[[], Any], calls: int) -> float:
        return timed(lambda: [jax.block_until_ready(function()) for _ in range(calls)])[1] / calls

    calls = {}
    for name, function in functions.items():
        jax.block_until_ready(function())
        calls[name] = min(_MOST_CALLS, math.ceil(_SHORTEST / max(mean(function, 1), 1e-9)))
    turns = [{name: mean(f, calls[name]) for name, f in functions.items()} for _ in range(rounds)]
    return {name: np.array([turn[name] for turn in turns]) for name in functions}


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles. Of a ratio of times, those of the rounds: what slows one cancels."""
    low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def slope(x: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds against log x over the upper half, where overheads no longer hide it."""
    first = min(len(x) // 2, len(x) - 2)
    return float(np.polyfit(np.log(x[first:]), np.log(seconds[first:]), 1)[0])


def compilations() -> list[tuple[float, float]]:
    """A list of (begin, end) that grows by JAX's events of compiling, from now on."""
    events: list[tuple[float, float]] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        end = time.perf_counter()
        if event.startswith("/jax/core/compile/"):
            events.append((end - duration_secs, end))

    jax.monitoring.register_event_duration_secs_listener(note)
    return events


def covered(events: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals: each moment counts once."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(events):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
