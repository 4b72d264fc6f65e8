"""Markov moves of draws by any BlackJAX kernel: the target stays what it is."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import jit
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey

_Points = TypeVar("_Points", Array, Draws)

# Floats of positions that are moved at once; a kernel holds some tens of copies of each.
_MAX_FLOATS = 2**20


def move(
    rng_key: PRNGKey,
    draws: _Points,
    log_density: LogDensityFn,
    kernel: Any = None,
    *,
    num_moves: int = 5,
    **parameters: Any,
) -> tuple[_Points, Array]:
    """Draws after transitions of a BlackJAX kernel that leaves the target as it is.

    Draws that follow the target still do afterwards; others come closer, as far as the kernel gets;
    copies of one draw part (resample-move, Gilks & Berzuini 2001). Weights stay with their draws,
    as valid as before and as uneven: `resample` first, and equally weighted draws are moved.

    Args:
      rng_key: PRNG key.
      draws: points ``[num_samples, dim]``, or `Draws` of them, weighted or not.
      log_density: unnormalised log density of one point.
      kernel: what makes a BlackJAX algorithm of a log density and parameters, ``blackjax.nuts``
        say, or an algorithm of this density; ``blackjax.hmc`` if None. It must be adjusted, which
        ``blackjax.mclmc`` and ``sgld`` are not.
      num_moves: transitions of each point.
      **parameters: the kernel's own, in its own units. Where it has them and none are given,
        ``inverse_mass_matrix`` is the draws' variance by coordinate (which ties them together, by
        O(1 / num_samples)), ``step_size`` 0.25 dim^(-1/4), and ``num_integration_steps`` 8.

    Returns:
      What was given, moved, and the mean acceptance rate ``[]``, NaN if the kernel reports none.

    Raises:
      TypeError: ``kernel`` does not make a BlackJAX algorithm, or its parameters are not these.
      ValueError: no points ``[num_samples, dim]``, a single one where masses are to be made from
        them, ``num_moves`` below one, or a log density that is no scalar.

    Example:
      >>> import jax, jax.numpy as jnp, blackjax
      >>> from consistent_samplers.corrections import move
      >>> x, log_density = jax.random.normal(jax.random.key(0), (100, 2)), lambda x: -0.5 * x @ x
      >>> moved, rate = move(jax.random.key(1), x, log_density, blackjax.mala, step_size=0.3)
      >>> moved.shape, bool(rate > 0.7)
      ((100, 2), True)
    """
    position = jnp.asarray(draws.position if isinstance(draws, Draws) else draws)
    if position.ndim != 2 or position.shape[0] < 1:
        raise ValueError(f"position must be [num_samples, dim], got {position.shape}.")
    check_integer("num_moves", num_moves)
    shape = jax.eval_shape(log_density, position[0]).shape
    if shape != ():
        raise ValueError(f"log_density must return a scalar for one point [dim], got {shape}.")
    algorithm = _build(kernel, log_density, position, parameters)

    def one(inputs: tuple[PRNGKey, Array]) -> tuple[Array, Array, Array]:
        key_init, key_moves = jax.random.split(inputs[0])

        def step(state: Any, key: PRNGKey) -> tuple[Any, Array]:
            state, info = algorithm.step(key, state)
            return state, jnp.asarray(getattr(info, "acceptance_rate", jnp.nan), position.dtype)

        start = algorithm.init(inputs[1], key_init)
        state, rate = jax.lax.scan(step, start, jax.random.split(key_moves, num_moves))
        return state.position, log_density(state.position), rate.mean()

    num, dim = position.shape
    num_chunks = -(-num * dim // _MAX_FLOATS)
    batch_size = -(-num // num_chunks)
    run = jit(lambda *inputs: jax.lax.map(one, inputs, batch_size=batch_size))
    moved, log_rho, rate = run(jax.random.split(rng_key, num), position)
    if isinstance(draws, Draws):
        return dataclasses.replace(draws, position=moved, log_density=log_rho), rate.mean()
    return moved, rate.mean()


def _build(
    kernel: Any, log_density: LogDensityFn, position: Array, parameters: dict[str, Any]
) -> Any:
    """The BlackJAX algorithm of a kernel, with what its parameters lack made from the points."""
    import blackjax

    if isinstance(kernel, blackjax.SamplingAlgorithm):
        if parameters:
            raise TypeError(
                f"An algorithm that is built already takes no parameters, got {[*parameters]}."
            )
        return kernel
    kernel = blackjax.hmc if kernel is None else kernel
    if not callable(kernel):
        raise TypeError(
            "kernel must make a BlackJAX algorithm of a log density, as blackjax.nuts does, or be "
            f"one, got {type(kernel).__name__}."
        )
    # The signature of BlackJAX's top-level names themselves is (*args, **kwargs).
    make: Callable[..., Any] = getattr(kernel, "differentiable", kernel)
    takes = inspect.signature(make)
    if "inverse_mass_matrix" in takes.parameters:
        if "inverse_mass_matrix" not in parameters:
            parameters["inverse_mass_matrix"] = _variance(position)
        parameters.setdefault("step_size", 0.25 * position.shape[1] ** -0.25)
        if "num_integration_steps" in takes.parameters:
            parameters.setdefault("num_integration_steps", 8)
    try:
        takes.bind(log_density, **parameters)
    except TypeError as error:
        raise TypeError(
            f"kernel {getattr(make, '__module__', make)} does not go with the parameters "
            f"{[*parameters]}: {error}. Its signature is {takes}."
        ) from error
    algorithm = kernel(log_density, **parameters)
    if not isinstance(algorithm, blackjax.SamplingAlgorithm):
        raise TypeError(
            "kernel must make a BlackJAX algorithm (blackjax.SamplingAlgorithm) of a log density, "
            f"as blackjax.nuts does, but made a {type(algorithm).__name__}."
        )
    return algorithm


def _variance(position: Array) -> Array:
    """Variance by coordinate ``[dim]`` of the points that are finite."""
    if position.shape[0] < 2:
        raise ValueError(
            "position must hold at least two points to make masses from; give inverse_mass_matrix "
            "to move a single one."
        )
    finite = jnp.isfinite(position).all(axis=1, keepdims=True)
    variance = position.var(axis=0, where=finite)
    return jnp.maximum(variance, jnp.finfo(position.dtype).tiny)
