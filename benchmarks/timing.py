"""Times side by side, and the arithmetic behind them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Calls of a short function are repeated for so many seconds a turn: a single one would pay for the
# caches that the function before it has emptied.
_SHORTEST = 0.05
_MOST_CALLS = 100
# Primitives that move numbers and compute none.
_MOVES = {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "iota",
    "pad",
    "reshape",
    "rev",
    "scatter",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}


def interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, taken in turn (A B A B ...) after a warm-up that compiles.

    Args:
      functions: by name; what they return is waited for. Of a short one a turn is several calls,
        and its seconds their mean.
      rounds: turns.
      warm_up: calls of each before.
    """
    repeats = {}
    for name, function in functions.items():
        for _ in range(warm_up):
            jax.block_until_ready(function())
        start = time.perf_counter()
        jax.block_until_ready(function())
        taken = time.perf_counter() - start
        repeats[name] = min(_MOST_CALLS, math.ceil(_SHORTEST / max(taken, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(function())
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(over: Sequence[float], under: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """``scale · over / under`` of each round: what slows both of a round down cancels."""
    return spread(scale * np.asarray(over) / np.asarray(under))


def slope(x: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds against log x over the upper half, where overheads no longer hide it."""
    first = min(len(x) // 2, len(x) - 2)
    return float(np.polyfit(np.log(x[first:]), np.log(seconds[first:]), 1)[0])


def compilations() -> list[tuple[float, float, str]]:
    """A list of (begin, end, kind) that grows by JAX's events of compiling, from now on."""
    events: list[tuple[float, float, str]] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        end = time.perf_counter()
        if event.startswith("/jax/core/compile/"):
            events.append((end - duration_secs, end, event.rsplit("/", 1)[-1]))

    jax.monitoring.register_event_duration_secs_listener(note)
    return events


def covered(events: Sequence[tuple[float, float, str]]) -> float:
    """Length of the union of intervals: each moment counts once."""
    total, reached = 0.0, -math.inf
    for begin, end, _ in sorted(events):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def counts(function: Any, *args: Any) -> dict[str, float]:
    """Floating-point operations and bytes of a compiled function.

    ``flops`` and ``bytes`` are XLA's, which counts the body of a loop once; ``full_flops`` are
    those of the function as written, loops in full, the dearer branch of each choice.

    Args:
      function: made by ``jax.jit``.
      *args: its arguments.
    """
    found = function.lower(*args).compile().cost_analysis() or {}
    return {
        "flops": float(found.get("flops", math.nan)),
        "bytes": float(found.get("bytes accessed", math.nan)),
        "full_flops": _flops_of(jax.make_jaxpr(function)(*args).jaxpr),
    }


def _flops_of(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            out = math.prod(eqn.outvars[0].aval.shape)
            total += 2.0 * out * math.prod(shape[i] for i in contracted)
        elif name == "scan":
            total += eqn.params["length"] * _flops_of(eqn.params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_flops_of(branch.jaxpr) for branch in eqn.params["branches"])
        elif inner := _inner(eqn.params):
            total += sum(map(_flops_of, inner))
        elif name.startswith(("reduce", "arg", "cumsum")):
            total += sum(math.prod(v.aval.shape) for v in eqn.invars)
        elif name not in _MOVES and not name.startswith("random"):
            total += sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """Jaxprs inside an equation, of calls and of loops of unknown length (taken once)."""
    found = [params[k] for k in ("jaxpr", "call_jaxpr", "body_jaxpr") if k in params]
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in found]
