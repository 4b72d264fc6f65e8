"""What is compiled once and for whom."""

import functools
import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

Effort: TypeAlias = Literal["full", "less", "least"]
"""What XLA does on CPUs to make code fast: ``"full"`` all; ``"less"`` compiles in three quarters of
the time to code as fast as far as we measured; ``"least"`` in half of it, to code that takes 1.6
times as long, or five times where it is element by element (a logistic likelihood). What is called
inside another compiled function takes that one's."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS: dict[Effort, dict[str, Any]] = {
    "full": {},
    "less": {"xla_backend_optimization_level": 1},
    "least": {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False},
}


def jit_with(
    function: Callable[..., Any],
    first: Callable[..., Any],
    *,
    effort: Effort = "full",
    **jit_options: Any,
) -> Callable[..., Any]:
    """Compiles ``function`` with its first argument, itself a function, filled in.

    A first argument that is a ``jax.tree_util.Partial`` brings its arrays along as inputs, and what
    is compiled serves every other with an equal function and arrays of the same shapes: the
    density of other data, say; the last few are kept. Any other one is a constant, and what was
    compiled for it goes when it goes.

    Args:
      function: of the first argument and others; defined once, at the top of a module.
      first: its first argument.
      effort: what compiling may cost; see `Effort`.
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
    options = tuple(jit_options.items())
    if isinstance(first, Partial):
        structure = jax.tree.structure(first)
        return functools.partial(_shared(function, effort, options, structure), first)
    return _jit(functools.partial(function, first), effort, options)


def jit(*, effort: Effort, **jit_options: Any) -> Callable[[_Function], _Function]:
    """A decorator: ``jax.jit`` with an effort, for functions at the top of a module.

    Args:
      effort: what compiling may cost; see `Effort`.
      **jit_options: hashable options of ``jax.jit``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.compilation import jit
      >>> @jit(effort="least")
      ... def double(x):
      ...     return 2.0 * x
      >>> float(double(2.0)), float(jax.jit(double)(2.0))
      (4.0, 4.0)
    """

    def decorate(function: _Function) -> _Function:
        # When it is first called: asking for the backend starts it.
        compiled = functools.cache(lambda: _jit(function, effort, tuple(jit_options.items())))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return cast(_Function, call)

    return decorate


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
    function: Callable[..., Any],
    effort: Effort,
    options: tuple[tuple[str, Any], ...],
    structure: Any,
) -> Callable[..., Any]:
    # A function of its own: what JAX keeps for it goes with it.
    return _jit(functools.partial(function), effort, options)


def _jit(
    function: Callable[..., Any], effort: Effort, options: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    options_of = compiler_options(effort)
    plain = jax.jit(function, **dict(options))
    if not options_of:
        return plain
    outermost = jax.jit(function, compiler_options=options_of, **dict(options))

    def compiled(*args: Any, **kwargs: Any) -> Any:
        try:
            return outermost(*args, **kwargs)
        except ValueError:
            # JAX takes options of the outermost compiled function only.
            if not is_traced((args, kwargs)):
                raise
        return plain(*args, **kwargs)

    return compiled


def compiler_options(effort: Effort) -> dict[str, Any]:
    """What XLA is told for an effort, on this backend; a flag of the user's wins.

    Example:
      >>> from consistent_samplers.compilation import compiler_options
      >>> compiler_options("full")
      {}
    """
    own_flags = os.environ.get("XLA_FLAGS", "")
    return {
        name: value
        for name, value in _OPTIONS[effort].items()
        if name not in own_flags and _is_known(name, value, jax.default_backend())
    }


def is_traced(tree: Any) -> bool:
    """Whether what is computed from a tree of arrays here and now is part of a JAX transformation.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.compilation import is_traced
      >>> is_traced(jnp.ones(2)), bool(jax.jit(lambda: is_traced(2.0))())
      (False, True)
    """
    # A constant is traced as well while a function is being compiled.
    leaves = [*jax.tree.leaves(tree), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


@functools.cache
def _is_known(name: str, value: Any, backend: str) -> bool:
    """Whether the compiler of a backend takes an option: they come and go with its versions."""
    if backend != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception:  # whatever it is that this version raises
        return False
    return True
