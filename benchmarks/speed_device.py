"""What a device makes of it: share of its peak, half precision, many draws, many dimensions."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import consistent_samplers as cs
from benchmarks import registry, timing
from benchmarks.speed_cases import Sizes, case, full_base, started
from consistent_samplers.streaming import stream_evidence

_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def device(sizes: Sizes) -> dict[str, Any]:
    """Operations a second of the network, half precision beside full, many draws and dimensions.

    Shares of peak are given where ``--peak-tflops`` says what the peak is.
    """
    rows = [
        *_networks(sizes),
        *_iterations(sizes),
        _evidence(sizes),
        _many_dimensions(sizes),
    ]
    return {"rows": rows, "goals": []}


def _networks(sizes: Sizes) -> list[dict[str, Any]]:
    """Matrix products of the network, at the default widths and at wide ones."""
    dim, rows = 64, []
    for width in (sizes.hidden[0], sizes.device_width):
        x = jax.random.normal(jax.random.key(0), (sizes.device_batch, dim))
        functions: dict[str, Callable[[], Any]] = {}
        for name, dtype in _DTYPES.items():
            network = cs.networks.StepConditionedMLP(dim, (width, width), dtype=dtype)
            t, d = jnp.zeros(()), jnp.ones(())
            params = network.init(jax.random.key(1), x[0], t, d)
            evaluate = jax.jit(jax.vmap(network.apply, (None, 0, None, None)))
            functions[name] = functools.partial(evaluate, params, x, t, d)
        seconds = timing.interleaved(functions, sizes.rounds)
        products = 2.0 * (dim * width + width * width + width * 2 * dim) * sizes.device_batch
        for name, taken in seconds.items():
            found = timing.spread(taken)["median"]
            row: dict[str, Any] = {
                "what": f"network, widths {width}, {name}",
                "num": sizes.device_batch,
                "seconds": found,
                "TFLOP/s": 1e-12 * products / found,
            }
            if sizes.peak_tflops is not None:
                row["share of peak"] = 1e-12 * products / found / sizes.peak_tflops
            rows.append(row)
    return rows


def _iterations(sizes: Sizes) -> list[dict[str, Any]]:
    """The paper's OSDS with its paths in full and in half precision."""
    name, num_steps, batch = sizes.paper
    target = registry.TARGETS[name].build()
    functions = {}
    for precision, dtype in _DTYPES.items():
        own = started(
            cs.osds.paper(
                target,
                max_steps=num_steps,
                batch_size=batch,
                hidden=sizes.hidden,
                path_dtype=dtype,
            )
        )
        step = jax.jit(own.algorithm.step)
        functions[precision] = functools.partial(step, jax.random.key(2), own.state)
    seconds = timing.interleaved(functions, sizes.rounds)
    return [
        {
            "what": f"osds.paper iteration, N = {num_steps}, paths in {precision}",
            "num": batch,
            "seconds": timing.spread(taken)["median"],
            "over float32": timing.ratio(taken, seconds["float32"])["median"],
        }
        for precision, taken in seconds.items()
    ]


def _evidence(sizes: Sizes) -> dict[str, Any]:
    """Streamed evidence of many weighted draws."""
    name, (few, many) = sizes.stream
    sample = case(name, sizes.hidden).sample
    jax.block_until_ready(stream_evidence(jax.random.key(0), sample, few))
    begin = time.perf_counter()
    jax.block_until_ready(stream_evidence(jax.random.key(1), sample, many))
    seconds = time.perf_counter() - begin
    what = f"streamed evidence, {name}, general network"
    return {"what": what, "num": many, "seconds": seconds, "draws a second": many / seconds}


def _many_dimensions(sizes: Sizes) -> dict[str, Any]:
    """Weighted draws of the structured network on the largest target."""
    target, num = registry.TARGETS[sizes.large].build(), sizes.structured[-1][1][1]
    sampler = case(target, sizes.hidden, "structured", full_base(target.dim))
    seconds = timing.interleaved({"draws": sampler.sampling(num)}, sizes.rounds)["draws"]
    found = timing.spread(seconds)["median"]
    what = f"weighted draws, {sizes.large}, d = {target.dim}, structured network"
    return {"what": what, "num": num, "seconds": found, "draws a second": num / found}
