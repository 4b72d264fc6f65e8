"""Compiled programs that move many points by a map: draws, given points, and the way back."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial

from consistent_samplers.compilation import jit
from consistent_samplers.kernels import kernel
from consistent_samplers.maps.control import Control
from consistent_samplers.maps.identity import Identity, Proposal
from consistent_samplers.sharding import map_over_mesh, num_devices
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.types import Array, GradientFn, LogDensityFn, Method, Params, PRNGKey


class _Limits(NamedTuple):
    """The most that is computed at once, and sizes of blocks of draws."""

    points: int
    floats: int  # of one array of points
    jacobian_floats: int  # of their full Jacobians
    call: int  # floats that take as long as a call does beside its draws
    blocks: tuple[int, ...]  # with full Jacobians
    cheap_blocks: tuple[int, ...]  # without


# On CPUs the Jacobians of a chunk (1 MiB) have to fit the caches: beyond them a weighted draw takes
# twice the time. Arrays of points are better larger (4 MiB). Other devices idle over small batches.
_LIMITS = {"cpu": _Limits(2**14, 2**20, 2**18, 2**16, (256, 4_096), (256, 4_096, 65_536))}
_LIMITS_ELSEWHERE = _Limits(2**17, 2**26, 2**26, 2**22, (1_024, 2**17), (1_024, 2**17))
# Draws that are taken back by the inverse, to measure it.
_NUM_ROUND_TRIPS = 256


def _limits() -> _Limits:
    return _LIMITS.get(jax.default_backend(), _LIMITS_ELSEWHERE)


def batch_size(dim: int, num_jacobians: int) -> int:
    """Most points to move at once, each with ``num_jacobians`` full Jacobians in memory."""
    limit = _limits()
    most = min(limit.points, limit.floats // dim)
    if num_jacobians:
        most = min(most, limit.jacobian_floats // (num_jacobians * dim**2))
    return max(1, most)


def block_size(num_samples: int, dim: int, with_jacobians: bool) -> int:
    """Draws of a block: the size whose blocks, the last one filled up, cost least."""
    limit = _limits()
    call = min(limit.points // 4, limit.call // (dim**2 if with_jacobians else dim))
    sizes = limit.blocks if with_jacobians else limit.cheap_blocks
    return min(sizes, key=lambda size: -(-num_samples // size) * (size + call))


class Mover(NamedTuple):
    """A map with its parameters, and the density whose gradient a guided map takes."""

    density: LogDensityFn | None
    control: Control | Identity
    params: Params

    @property
    def gradient(self) -> GradientFn | None:
        """Gradient of the log density at a point, of a guided map; else None."""
        density = self.density if self.control.guided else None
        return None if density is None else jax.grad(lambda x: density(x))

    def draw(self, rng_key: PRNGKey, num_steps: int, method: Method, weights: bool) -> Proposal:
        """One draw; see `maps.identity.Map.draw`."""
        return self.control.draw(self.params, rng_key, num_steps, method, weights, self.gradient)


@kernel(static=("size", "num_steps", "method", "weights", "batch_size"), effort="less")
def propose(
    mover: Mover,
    rng_key: PRNGKey,
    begin: Array,
    *,
    size: int,
    num_steps: int,
    method: Method,
    weights: bool,
    batch_size: int,
) -> Proposal:
    """Draws ``begin`` to ``begin + size``."""

    def one(index: Array) -> Proposal:
        return mover.draw(jax.random.fold_in(rng_key, index), num_steps, method, weights)

    return _in_chunks(one, begin + jnp.arange(size, dtype=jnp.int32), batch_size)


@kernel(static=("batch_size",), effort="less")
def carry(mover: Mover, latent: Array, *, batch_size: int) -> tuple[Array, Array, Array]:
    """Where the map takes points ``[n, dim]``, their log ratios and whether it folds: ``[n]``."""

    def one(z: Array) -> tuple[Array, Array, Array]:
        control = mover.control
        end, log_det, folded = control.carry(mover.params, z, (), 1, mover.gradient)
        position, correction = control.place(end)
        return position, log_det + correction - standard_normal_log_prob(z), folded

    return _in_chunks(one, latent, batch_size)


@kernel(static=("num_steps", "batch_size"), effort="least")
def round_trips(mover: Mover, rng_key: PRNGKey, *, num_steps: int, batch_size: int) -> Array:
    """What the inverse misses of the first draws: ``[_NUM_ROUND_TRIPS]``."""

    def one(index: Array) -> Array:
        key = jax.random.fold_in(rng_key, index)
        return mover.control.round_trip(mover.params, key, num_steps, mover.gradient)

    return _in_chunks(one, jnp.arange(_NUM_ROUND_TRIPS, dtype=jnp.int32), batch_size)


@kernel(static=("num_steps", "method", "batch_size"), effort="less")
def reverse(
    mover: Mover, rng_key: PRNGKey, ends: Array, *, num_steps: int, method: Method, batch_size: int
) -> Array:
    """Log ratios of draws that end at given points ``[n, dim]``: ``[n]``."""
    keys = jax.random.split(rng_key, ends.shape[0])

    def one(inputs: tuple[PRNGKey, Array]) -> Array:
        reverse_one, gradient = mover.control.reverse, mover.gradient
        return reverse_one(mover.params, *inputs, num_steps, method, gradient=gradient)

    return _in_chunks(one, (keys, ends), batch_size)


@functools.partial(
    jit, static_argnames=("num_samples", "mesh", "num_steps", "method", "weights", "batch_size")
)
def propose_on_mesh(
    density: Partial,
    mover: Mover,
    rng_key: PRNGKey,
    *,
    num_samples: int,
    mesh: Mesh,
    batch_size: int,
    **settings: Any,
) -> tuple[Proposal, Array | None]:
    """Draws and, with weights, log densities of the target there; each device makes its share."""

    def draw(density: Partial, mover: Mover, rng_key: PRNGKey, index: Array) -> Any:
        mover = mover._replace(density=density)

        def one(index: Array) -> tuple[Proposal, Array | None]:
            drawn = mover.draw(jax.random.fold_in(rng_key, index), **settings)
            return drawn, density(drawn.position) if settings["weights"] else None

        return _in_chunks(one, index, batch_size)

    # The last draw again, as often as it takes for every device to have as many.
    filled = num_samples + -num_samples % num_devices(mesh)
    index = jnp.minimum(jnp.arange(filled, dtype=jnp.int32), num_samples - 1)
    drawn = map_over_mesh(draw, mesh, 3)(density, mover, rng_key, index)
    return jax.tree.map(lambda x: x[:num_samples], drawn)


def _in_chunks(function: Callable[[Any], Any], inputs: Any, most: int) -> Any:
    """``jax.lax.map`` in chunks of the same size, at most ``most``."""
    num = jax.tree.leaves(inputs)[0].shape[0]
    num_chunks = -(-num // most)
    size = -(-num // num_chunks)
    if num_chunks == 1:
        return jax.vmap(function)(inputs)
    # Filled up with the last input: a rest of another size would have all compiled a second time.
    index = jnp.minimum(jnp.arange(num_chunks * size), num - 1).reshape(num_chunks, size)
    outputs = jax.lax.map(lambda i: jax.vmap(function)(jax.tree.map(lambda x: x[i], inputs)), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], outputs)
