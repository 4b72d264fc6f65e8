"""What the compiler is asked for, and what JAX knows again."""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from consistent_samplers.guard import scheduler_option

Effort: TypeAlias = Literal["full", "less", "least"]
"""What XLA does on CPUs to make code fast: ``"full"`` all; ``"less"`` compiles in three quarters of
the time to code as fast as far as we measured; ``"least"`` in half of it, to code that takes 1.6
times as long, or five times where it is element by element (a logistic likelihood). What is called
inside another compiled function takes that one's."""

_OPTIONS: dict[Effort, dict[str, Any]] = {
    "full": {},
    "less": {"xla_backend_optimization_level": 1},
    "least": {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False},
}


def as_partial(function: Callable[..., Any]) -> Partial:
    """A function as a ``jax.tree_util.Partial``: an argument of compiled functions."""
    return function if isinstance(function, Partial) else Partial(function)


def compiler_options(effort: Effort) -> dict[str, Any]:
    """What XLA is told for an effort, on this backend; a flag of the user's wins.

    XLA's scheduler is among it where the process's flags came too late (`guard`).
    """
    own_flags = os.environ.get("XLA_FLAGS", "")
    return {
        name: value
        for name, value in (_OPTIONS[effort] | scheduler_option()).items()
        if name not in own_flags and _is_known(name, value, jax.default_backend())
    }


def jit(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """``jax.jit`` of a function that a density may be part of, with XLA's scheduler in mind.

    Inside of another transformation it is an ordinary ``jax.jit``: options are for the whole.
    """
    plain = jax.jit(function, **settings)

    @functools.cache
    def guarded() -> Any:
        options = compiler_options("full") or None
        return in_turn(jax.jit(function, compiler_options=options, **settings))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not scheduler_option() or is_traced((args, kwargs)):
            return plain(*args, **kwargs)
        return guarded()(*args, **kwargs)

    return call


def precision(*, double: bool) -> Any:
    """A context in which JAX computes in double precision or not, wherever this version has it.

    Precision is set for a thread: another one, which compiles for it, is to be told.
    """
    place = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return place.enable_x64(double)


def is_double() -> bool:
    """Whether JAX computes in double precision here and now."""
    return bool(jnp.result_type(float) == jnp.float64)


def in_turn(program: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that ends before the next begins, where both could wait for ever.

    That is where flags came too late: see `consistent_samplers.guard`.
    """
    if jax.default_backend() != "cpu" or not scheduler_option():
        return program
    return lambda *args, **kwargs: jax.block_until_ready(program(*args, **kwargs))


def is_traced(tree: Any) -> bool:
    """Whether what is computed from a tree of arrays here and now is part of a transformation."""
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
