"""What the fits share: what they may cost, random numbers, learning rates, optimisers."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers.kernels import kernel
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_Function = TypeVar("_Function", bound=Callable[..., Any])

Evaluated: TypeAlias = tuple[Array, Array, Array]
"""Points ``[n, dim]``, log densities there ``[n]``, and gradients of these."""

OPTIMIZER = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())
"""Adam on the parameters of a base; `cosine` has its learning rates."""

MAX_DENSE_DIM = 200
"""Dimension above which what costs O(dim²) parameters or many Hessians is done another way."""

_ROUND = 1_024


def affordable(target: Target) -> float:
    """Evaluations of value and gradient that one stage of a fit may take: 40 Gflop in all."""
    # By the compiler's count, which is the same on every machine.
    return 40e9 / max(evaluation.cost(target.log_density, target.dim), 1.0)


def evaluated(target: Target, points: Array) -> Evaluated:
    """Points with the log density there and its gradient."""
    return (points, *evaluation.values_and_grads(target.log_density, points))


@kernel(effort="least")
def split(rng_key: PRNGKey) -> tuple[PRNGKey, ...]:
    """Five keys made of one. Always five: each number of keys would be a program of its own."""
    return tuple(jax.random.split(rng_key, 5))


@kernel(effort="least")
def pair(rng_key: PRNGKey) -> tuple[PRNGKey, PRNGKey]:
    """Two keys made of one: ``jax.random.split(rng_key)`` as a program that is kept."""
    first, second = jax.random.split(rng_key)
    return first, second


@kernel(effort="least")
def folded(rng_key: PRNGKey, number: int) -> PRNGKey:
    """``jax.random.fold_in(rng_key, number)`` as a program that is kept."""
    return jax.random.fold_in(rng_key, number)


def normals(rng_key: PRNGKey, num: int, dim: int) -> np.ndarray:
    """Standard normal draws ``[num, dim]``, on the host."""
    # Some more than asked for: few numbers of them are compiled.
    return np.asarray(_normals(rng_key, num=_ROUND * -(-num // _ROUND), dim=dim))[:num]


@kernel(static=("num", "dim"), effort="least")
def _normals(rng_key: PRNGKey, *, num: int, dim: int) -> Array:
    return jax.random.normal(rng_key, (num, dim))


def antithetic(rng_key: PRNGKey, index: Array, *, shape: tuple[int, ...]) -> Array:
    """Standard normal draws of an iteration, the second half the first with opposite signs."""
    half = jax.random.normal(jax.random.fold_in(rng_key, index), (shape[0] // 2, *shape[1:]))
    return jnp.concatenate([half, -half])


def cosine(learning_rate: float, num_iterations: int) -> np.ndarray:
    """Learning rates ``[num_iterations]`` that fall to zero along half a cosine."""
    part = np.arange(num_iterations) / num_iterations
    return (0.5 * learning_rate * (1.0 + np.cos(np.pi * part))).astype(jnp.result_type(float))


def fresh(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The state of one of optax's Adams before its first step: zeros, without compiling any."""
    shapes = jax.eval_shape(optimizer.init, params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def one_thread(function: _Function) -> _Function:
    """A decorator: BLAS does not spread over the cores while the function runs.

    On small matrices its threads wait for each other far longer than they work, all the more where
    other programs share the cores.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return cast(_Function, call)
