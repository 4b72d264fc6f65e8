"""Iterations of training in a row, the density outside of our programs or inside of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.learning import learn
from consistent_samplers.algorithms.protocol import Now, SamplerState
from consistent_samplers.compilation import Effort, as_partial, compiler_options
from consistent_samplers.sharding import replicate, share
from consistent_samplers.types import PRNGKey


def run_outside(
    algorithm: Algorithm, rng_key: PRNGKey, state: SamplerState, num_run: int
) -> tuple[SamplerState, Any]:
    """Iterations of three calls each: our points, the user's density, our update."""
    infos = []
    for _ in range(num_run):
        state, info = algorithm.advance(rng_key, state)
        infos.append(info)
    # Read at the end only: a value that is read is waited for.
    return state, jax.tree.map(lambda *x: np.stack([*map(np.asarray, x)]), *infos)


def run_inside(
    algorithm: Algorithm,
    rng_key: PRNGKey,
    state: SamplerState,
    num_run: int,
    *,
    chunk_size: int,
    effort: Effort,
    mesh: Mesh | None,
) -> tuple[SamplerState, Any]:
    """Iterations in one compiled computation that holds the density."""
    density = as_partial(algorithm.target.log_density)
    compiled = _chunk_program(effort, jax.tree.structure(density))
    parts = {"objective": algorithm.objective, "optimizer": algorithm.optimizer}
    now = Now(rng_key, algorithm.control, state, algorithm.extra)
    if mesh is not None:
        # Results of stored programs are bound to the device that they were made on.
        density, now = replicate((density, now), mesh)
    state, infos = compiled(density, now, jnp.asarray(num_run), **parts, chunk_size=chunk_size)
    return state, jax.tree.map(lambda x: np.asarray(x)[:num_run], infos)


# Programs of the last densities are kept; of a process that meets hundreds, not all.
@functools.lru_cache(maxsize=16)
def _chunk_program(effort: Effort, structure: Any) -> Any:
    return jax.jit(
        functools.partial(_chunk),
        static_argnames=("objective", "optimizer", "chunk_size"),
        compiler_options=compiler_options(effort) or None,
    )


def _chunk(
    density: Partial, now: Now, num_run: jax.Array, *, chunk_size: int, **parts: Any
) -> tuple[SamplerState, Any]:
    """The first ``num_run`` iterations of a chunk, and room for the infos of all of them.

    How many is not part of what is compiled: one compilation serves the last chunk as well.
    """

    def step(state: SamplerState) -> tuple[SamplerState, Any]:
        return learn(density, None, now._replace(state=state), fold=True, **parts)

    info = jax.eval_shape(step, now.state)[1]
    infos = jax.tree.map(lambda x: jnp.zeros((chunk_size, *x.shape), x.dtype), info)

    def iterate(i: jax.Array, carry: tuple[SamplerState, Any]) -> tuple[SamplerState, Any]:
        state, infos = carry
        state, info = step(state)
        return state, jax.tree.map(lambda all_of, one: all_of.at[i].set(one), infos, info)

    return share(jax.lax.fori_loop(0, num_run, iterate, (now.state, infos)))
