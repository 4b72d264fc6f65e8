"""How a trained control samples, and what given points weigh: shared by every algorithm.

Chunked, so that memory does not grow with the number of draws.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from consistent_samplers import simulate
from consistent_samplers.algorithms.base import (
    DrawFn,
    PerDraw,
    ReverseFn,
    ReverseOneFn,
    RoundTripFn,
    SampleFn,
    SamplerState,
)
from consistent_samplers.algorithms.control import Control
from consistent_samplers.bases import Base, Component
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.compilation import as_partial, is_traced, jit, jit_with
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.sharding import check_mesh, map_over_mesh, num_devices
from consistent_samplers.types import Array, Bound, Draws, FlowDiagnostics, Params, PRNGKey


class _Chunk(NamedTuple):
    """The most that is computed at once.

    Attributes:
      points: draws.
      floats: of one array of them.
      jacobian_floats: of their full Jacobians.
    """

    points: int
    floats: int
    jacobian_floats: int


# On CPUs a few arrays of a chunk, and its Jacobians (1 MiB), have to fit the caches: beyond them a
# weighted draw takes twice the time. Other devices idle over small batches.
_CHUNKS = {"cpu": _Chunk(8_192, 2**18, 2**18)}
_CHUNK_ELSEWHERE = _Chunk(2**17, 2**26, 2**26)
# From half a block to this many, draws with full Jacobians are made in blocks of one size, so that
# what is compiled for one number serves the others. More draws take long enough to be compiled for,
# and cheaper ones would take up to half as long again for being joined.
_BLOCK_SIZES = (1_024, 4_096)
_MAX_IN_BLOCKS = 65_536
_NUM_ROUND_TRIPS = 256
# A point counts as inverted if the map returns to it within this many standard deviations.
MAX_INVERSION_ERROR = 1e-2


def build_sample(
    base: Base,
    control: Control,
    max_steps: int,
    bounds: tuple[Bound, ...],
    default_steps: int,
) -> tuple[SampleFn, ReverseFn, PerDraw]:
    """The ways of an `Algorithm` to sample with a control.

    Args:
      base: where samples start.
      control: the control.
      max_steps: most steps.
      bounds: kinds of weight it may be asked for, the default first.
      default_steps: number of steps unless told.
    """
    process = control.process

    def start(key_base: PRNGKey) -> tuple[Array, Component, Control]:
        """A base draw in its frame."""
        component = base.draw_component(jax.random.fold_in(key_base, 1))
        return jax.random.normal(key_base, (base.dim,)), component, control.at(component)

    def one_draw(params: Params, key: PRNGKey, num_steps: int, bound: Bound | None) -> Draws:
        key_base, key_path = jax.random.split(key)
        z0, component, here = start(key_base)
        u, log_density = here.bind(params), here.log_density
        flow = None
        if bound is None and bounds[0] != "lower":
            z1 = simulate.flow_map(u, process, z0, num_steps)
            return Draws(base.unwhiten(z1, component))
        if bound is None or bound == "lower":
            path = simulate.stochastic_path(
                key_path, z0, here.kernels(params), log_density, num_steps
            )
            z1, log_weight = path.position[-1], path.log_weight
            if bound is None:
                return Draws(base.unwhiten(z1, component))
        elif bound == "heuristic":
            z1, log_weight = simulate.heuristic_flow_log_weight(
                key_path, z0, u, here.bind_frozen(params), process, log_density, num_steps
            )
        else:
            flow_path = simulate.flow_path(u, process, z0, num_steps)
            z1 = flow_path.position[-1]
            log_weight = simulate.flow_log_weight(flow_path, log_density)
            flow = FlowDiagnostics(jnp.any(flow_path.sign <= 0), jnp.full((), jnp.nan))
        # A point of zero density has weight zero, whatever the arithmetic around it made of it.
        log_rho = log_density(z1)
        log_weight = jnp.where(jnp.isneginf(log_rho), -jnp.inf, log_weight)
        x = base.unwhiten(z1, component)
        return Draws(x, log_weight, log_rho - base.log_correction(x, component), flow, bound)

    def one_reverse(params: Params, key: PRNGKey, x: Array, num_steps: int, bound: Bound) -> Array:
        component = base.component_at(jax.random.fold_in(key, 1), x)
        here = control.at(component)
        z1 = base.whiten(x, component)
        if bound == "lower":
            kernels = here.kernels(params)
            position = simulate.backward_path(key, z1, kernels, num_steps)
            log_ratio = simulate.path_log_ratio(position, kernels, num_steps)
            return simulate.path_log_weight(position, log_ratio, here.log_density)
        u = here.bind(params)
        z0 = simulate.invert_flow(u, process, z1, num_steps)
        path = simulate.flow_path(u, process, z0, num_steps)
        error = jnp.sqrt(jnp.mean((path.position[-1] - z1) ** 2))
        log_weight = simulate.flow_log_weight(path, here.log_density)
        return jnp.where(error < MAX_INVERSION_ERROR, log_weight, jnp.nan)

    def one_round_trip(params: Params, key: PRNGKey, num_steps: int) -> Array:
        z0, _, here = start(jax.random.split(key)[0])
        u = here.bind(params)
        z1 = simulate.flow_map(u, process, z0, num_steps)
        back = simulate.invert_flow(u, process, z1, num_steps)
        return jnp.sqrt(jnp.mean((back - z0) ** 2))

    per_draw = PerDraw(one_draw, one_reverse, one_round_trip)
    return *batched(control, base.dim, max_steps, bounds, default_steps, per_draw), per_draw


def batched(
    control: Control,
    dim: int,
    max_steps: int,
    bounds: tuple[Bound, ...],
    default_steps: int,
    per_draw: PerDraw,
) -> tuple[SampleFn, ReverseFn]:
    """Functions over many points, checked and in chunks, from functions of one.

    Args:
      control: the control.
      dim: dimension of the target.
      max_steps: most steps.
      bounds: kinds of weight there are, the default first.
      default_steps: number of steps unless told.
      per_draw: the functions of one point.
    """

    def has_jacobians(bound: Bound | None) -> bool:
        # A Jacobian by its parts takes no more than a point does.
        return bound == "lower-if-injective" and control.network.split is None

    def chunk_size(num_steps: int, bound: Bound | None) -> int:
        limit = _CHUNKS.get(jax.default_backend(), _CHUNK_ELSEWHERE)
        most = min(limit.points, limit.floats // dim)
        if has_jacobians(bound):
            most = min(most, limit.jacobian_floats // (num_steps * dim**2))
        return max(1, most)

    draw = jit_with(
        _draw,
        per_draw.draw,
        static_argnames=("num_samples", "num_steps", "bound", "batch_size", "mesh"),
    )
    draw_block = jit_with(
        _draw_block,
        per_draw.draw,
        effort="less",
        static_argnames=("num_steps", "bound", "batch_size"),
    )
    # Compiled apart from the draws: one compilation serves every number of samples.
    round_trip_errors = jit_with(
        _round_trip_errors,
        per_draw.round_trip,
        effort="least",
        static_argnames=("num_steps", "batch_size"),
    )
    reverse = jit_with(
        _reverse,
        per_draw.reverse,
        effort="less",
        static_argnames=("num_steps", "bound", "batch_size"),
    )

    def sample(
        rng_key: PRNGKey,
        state: SamplerState,
        num_samples: int,
        num_steps: int = default_steps,
        *,
        bound: Bound | None = bounds[0],
        mesh: Mesh | None = None,
    ) -> Draws:
        check_num_steps(num_steps, max_steps)
        check_key(rng_key)
        check_integer("num_samples", num_samples)
        _check_bound(bound, (None, *bounds))
        if mesh is not None:
            check_mesh(mesh)
        size = chunk_size(num_steps, bound)
        settings = {"num_steps": num_steps, "bound": bound, "batch_size": size}
        smallest, largest = _BLOCK_SIZES
        block_size = min(max(size, smallest), largest)
        in_blocks = has_jacobians(bound) and block_size <= 2 * num_samples <= 2 * _MAX_IN_BLOCKS
        if in_blocks and mesh is None and not is_traced((rng_key, state.ema_params)):
            blocks, keys = _blocks(rng_key, num_samples, block_size)
            parts = [draw_block(state.ema_params, block, **settings) for block in blocks]
            draws = _join(parts, num_samples=num_samples)
        else:
            draws, keys = draw(
                rng_key, state.ema_params, num_samples=num_samples, mesh=mesh, **settings
            )
        if draws.flow is None:
            return draws
        errors = round_trip_errors(
            state.ema_params,
            keys,
            num_steps=num_steps,
            batch_size=chunk_size(1, "lower-if-injective"),
        )
        return dataclasses.replace(draws, flow=_with_errors(draws.flow, errors))

    def reverse_log_weight(
        rng_key: PRNGKey,
        state: SamplerState,
        position: Array,
        num_steps: int = default_steps,
        *,
        bound: Bound = bounds[0],
    ) -> Array:
        check_num_steps(num_steps, max_steps)
        _check_bound(bound, tuple(b for b in bounds if b != "heuristic"))
        if position.ndim != 2 or position.shape[1] != dim:
            raise ValueError(f"position must have shape [n, {dim}], got {position.shape}.")
        return reverse(
            rng_key,
            state.ema_params,
            position,
            num_steps=num_steps,
            bound=bound,
            batch_size=chunk_size(num_steps, bound),
        )

    return sample, reverse_log_weight


def _draw(
    one_draw: DrawFn,
    rng_key: PRNGKey,
    params: Params,
    num_samples: int,
    num_steps: int,
    bound: Bound | None,
    batch_size: int,
    mesh: Mesh | None,
) -> tuple[Draws, Array]:
    """The draws, and the keys of those whose round trips are made."""
    draw = functools.partial(_draw_block, num_steps=num_steps, bound=bound, batch_size=batch_size)
    keys = jax.random.split(rng_key, num_samples)
    if mesh is None:
        return draw(one_draw, params, keys), keys[:_NUM_ROUND_TRIPS]
    # The last key again, as often as it takes for every device to have as many.
    index = jnp.minimum(jnp.arange(num_samples + -num_samples % num_devices(mesh)), num_samples - 1)
    draws = map_over_mesh(draw, mesh, 2)(as_partial(one_draw), params, keys[index])
    return jax.tree.map(lambda x: x[:num_samples], draws), keys[:_NUM_ROUND_TRIPS]


def _draw_block(
    one_draw: DrawFn,
    params: Params,
    keys: Array,
    num_steps: int,
    bound: Bound | None,
    batch_size: int,
) -> Draws:
    return _in_chunks(lambda key: one_draw(params, key, num_steps, bound), keys, batch_size)


@jit(effort="least", static_argnames=("num_samples", "block_size"))
def _blocks(rng_key: PRNGKey, num_samples: int, block_size: int) -> tuple[list[Array], Array]:
    """The keys of all draws in blocks, the last filled up, and those of the round trips."""
    keys = jax.random.split(rng_key, num_samples)
    index = jnp.minimum(jnp.arange(num_samples + -num_samples % block_size), num_samples - 1)
    return list(keys[index].reshape(-1, block_size)), keys[:_NUM_ROUND_TRIPS]


@jit(effort="least", static_argnames="num_samples")
def _join(parts: list[Draws], num_samples: int) -> Draws:
    joined: Draws = jax.tree.map(lambda *p: jnp.concatenate(p)[:num_samples], *parts)
    return joined


@jit(effort="least")
def _with_errors(flow: FlowDiagnostics, errors: Array) -> FlowDiagnostics:
    measured = flow.round_trip_error.at[: len(errors)].set(errors)
    return flow._replace(round_trip_error=measured)


def _round_trip_errors(
    one_round_trip: RoundTripFn, params: Params, keys: Array, num_steps: int, batch_size: int
) -> Array:
    return _in_chunks(lambda key: one_round_trip(params, key, num_steps), keys, batch_size)


def _reverse(
    one_reverse: ReverseOneFn,
    rng_key: PRNGKey,
    params: Params,
    position: Array,
    num_steps: int,
    bound: Bound,
    batch_size: int,
) -> Array:
    return _in_chunks(
        lambda args: one_reverse(params, args[0], args[1], num_steps, bound),
        (jax.random.split(rng_key, position.shape[0]), position),
        batch_size,
    )


def _in_chunks(function: Callable[[Any], Any], inputs: Any, most: int) -> Any:
    """``jax.lax.map`` in chunks of the same size, at most ``most``.

    The last one is filled up with the last input: a rest of another size would have all compiled
    a second time.
    """
    num = jax.tree.leaves(inputs)[0].shape[0]
    num_chunks = -(-num // most)
    size = -(-num // num_chunks)
    if num_chunks == 1:
        return jax.vmap(function)(inputs)
    index = jnp.minimum(jnp.arange(num_chunks * size), num - 1).reshape(num_chunks, size)
    outputs = jax.lax.map(lambda i: jax.vmap(function)(jax.tree.map(lambda x: x[i], inputs)), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], outputs)


def _check_bound(bound: Bound | None, bounds: tuple[Bound | None, ...]) -> None:
    if bound not in bounds:
        raise ValueError(
            f"bound must be one of {bounds} for this algorithm, got {bound!r}: the kind of weight "
            "(see consistent_samplers.types.Bound), or None for draws without weights."
        )
