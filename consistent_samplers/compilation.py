"""What is compiled once and for whom."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial


def jit_with(
    function: Callable[..., Any], first: Callable[..., Any], **jit_options: Any
) -> Callable[..., Any]:
    """Compiles ``function`` with its first argument, itself a function, filled in.

    A first argument that is a ``jax.tree_util.Partial`` brings its arrays along as inputs, and what
    is compiled serves every other with an equal function and arrays of the same shapes: the
    density of other data, say; the last few are kept. Any other one is a constant, and what was
    compiled for it goes when it goes.

    Args:
      function: of the first argument and others; defined once, at the top of a module.
      first: its first argument.
      **jit_options: hashable options of ``jax.jit``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.tree_util import Partial
      >>> from consistent_samplers.compilation import jit_with
      >>> def density(scale, x):
      ...     return -0.5 * jnp.sum((x / scale) ** 2)
      >>> def evaluate(log_density, x):
      ...     return log_density(x)
      >>> compiled = jit_with(evaluate, Partial(density, jnp.asarray(2.0)))
      >>> float(compiled(jnp.ones(2)))
      -0.25
    """
    if isinstance(first, Partial):
        structure = jax.tree.structure(first)
        return functools.partial(_shared(function, tuple(jit_options.items()), structure), first)
    return jax.jit(functools.partial(function, first), **jit_options)


def as_partial(function: Callable[..., Any]) -> Partial:
    """A function as a ``jax.tree_util.Partial``: an argument of compiled functions.

    Args:
      function: a function, or a Partial, which stays what it is.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.compilation import as_partial
      >>> function = as_partial(jnp.sum)
      >>> float(jax.jit(lambda f, x: f(x))(function, jnp.ones(3)))
      3.0
    """
    return function if isinstance(function, Partial) else Partial(function)


# A density takes about fifteen of them: two or three in turn stay compiled, and a process that
# meets hundreds does not keep them all.
@functools.lru_cache(maxsize=48)
def _shared(
    function: Callable[..., Any], options: tuple[tuple[str, Any], ...], structure: Any
) -> Callable[..., Any]:
    # A function of its own: what JAX keeps for it goes with it.
    return jax.jit(functools.partial(function), **dict(options))
