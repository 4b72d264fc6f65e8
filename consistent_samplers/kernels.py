"""Compiled programs of our own, without anybody's density in them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(*, static: tuple[str, ...] = ()) -> Callable[[_Function], _Function]:
    """A decorator: a pure function of arrays, compiled once for each shape.

    Args:
      static: names of arguments that are part of what is compiled.
    """

    def decorate(function: _Function) -> _Function:
        return cast(_Function, functools.wraps(function)(jax.jit(function, static_argnames=static)))

    return decorate
