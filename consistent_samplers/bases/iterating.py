"""What the iterations of the fits share: random numbers, learning rates, optimisers."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers.kernels import kernel
from consistent_samplers.types import Array, PRNGKey

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ROUND = 1_024


@kernel(effort="least")
def split(rng_key: PRNGKey) -> tuple[PRNGKey, ...]:
    """Five keys of one: always as many, as every number is a program of its own.

    Args:
      rng_key: key.

    Example:
      >>> import jax
      >>> from consistent_samplers.bases.iterating import split
      >>> len(split(jax.random.key(0)))
      5
    """
    return tuple(jax.random.split(rng_key, 5))


def normals(rng_key: PRNGKey, num: int, dim: int) -> np.ndarray:
    """Standard normal draws ``[num, dim]``, on the host.

    Args:
      rng_key: key.
      num: number of draws.
      dim: their dimension.

    Example:
      >>> import jax
      >>> from consistent_samplers.bases.iterating import normals
      >>> normals(jax.random.key(0), 3, dim=2).shape
      (3, 2)
    """
    # Some more than asked for: few numbers of them are compiled.
    return np.asarray(_normals(rng_key, num=_ROUND * -(-num // _ROUND), dim=dim))[:num]


@kernel(static=("num", "dim"), effort="least")
def _normals(rng_key: PRNGKey, *, num: int, dim: int) -> Array:
    return jax.random.normal(rng_key, (num, dim))


def antithetic(rng_key: PRNGKey, index: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal draws of an iteration, in pairs of opposite signs along the first axis.

    Args:
      rng_key: key of all iterations.
      index: the iteration, ``[]``.
      shape: of the draws; its first number is even.

    Example:
      >>> import jax
      >>> from consistent_samplers.bases.iterating import antithetic
      >>> eps = antithetic(jax.random.key(0), 1, (4, 2))
      >>> bool((eps[:2] == -eps[2:]).all())
      True
    """
    half = jax.random.normal(jax.random.fold_in(rng_key, index), (shape[0] // 2, *shape[1:]))
    return jnp.concatenate([half, -half])


def cosine(learning_rate: float, num_iterations: int) -> np.ndarray:
    """Learning rates ``[num_iterations]`` that fall to zero along half a cosine.

    Args:
      learning_rate: the first one.
      num_iterations: how many.

    Example:
      >>> from consistent_samplers.bases.iterating import cosine
      >>> [round(float(rate), 2) for rate in cosine(1.0, 4)]
      [1.0, 0.85, 0.5, 0.15]
    """
    part = np.arange(num_iterations) / num_iterations
    return (0.5 * learning_rate * (1.0 + np.cos(np.pi * part))).astype(jnp.result_type(float))


def fresh(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The state of one of optax's Adams before its first step: zeros, without compiling any.

    Args:
      optimizer: the optimiser.
      params: a pytree of arrays.

    Example:
      >>> import numpy as np
      >>> import optax
      >>> from consistent_samplers.bases.iterating import fresh
      >>> fresh(optax.scale_by_adam(), np.ones(2)).mu.tolist()
      [0.0, 0.0]
    """
    shapes = jax.eval_shape(optimizer.init, params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def one_thread(function: _Function) -> _Function:
    """A decorator: BLAS does not spread over the cores while the function runs.

    On small matrices its threads wait for each other far longer than they work, all the more
    where other programs share the cores.

    Args:
      function: a function that runs on the host.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bases.iterating import one_thread
      >>> float(one_thread(np.linalg.det)(np.eye(2)))
      1.0
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return cast(_Function, call)
