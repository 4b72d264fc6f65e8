"""What paths and maps are made of: control functions, the whitened base, loops over steps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.schedules import time_grid
from consistent_samplers.types import Array

ControlFn: TypeAlias = Callable[[Array, Array, Array], Array]
"""A network with its parameters, ``(x [dim], t [], d []) -> control [dim]``."""


@dataclasses.dataclass(frozen=True)
class StructuredControl:
    """A `ControlFn` of two parts that a step of the flow takes in turn: its determinant is cheap.

    As a function it is the sum of its parts, the control of a short step.

    Attributes:
      split: ``(x [dim], t [], d [], c []) -> (u, ∂(x + c u)/∂x)``, the control that takes the
        second part where the first has led in a step x + c u.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> network, t, d = cs.networks.Structured(2, rank=1), jnp.zeros(()), jnp.ones(())
      >>> network = network.bind(network.init(jax.random.key(0), jnp.ones(2), t, d))
      >>> cs.simulate.StructuredControl(network.split)(jnp.ones(2), t, d).tolist()  # untrained
      [0.0, 0.0]
    """

    split: Callable[[Array, Array, Array, Array], tuple[Array, log_det.Sylvester]]

    def __call__(self, x: Array, t: Array, d: Array) -> Array:
        """The control."""
        return self.split(x, t, d, jnp.zeros(()))[0]


def standard_normal_log_prob(x: Array) -> Array:
    """Log density of the whitened base at a whitened point: ``[dim] -> []``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> round(float(cs.simulate.standard_normal_log_prob(jnp.zeros(2))), 4)  # -log 2π
      -1.8379
    """
    # A quarter of the time of a sum over the log density of each coordinate.
    return -0.5 * (jnp.sum(x**2) + x.shape[-1] * math.log(2.0 * math.pi))


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """``jax.lax.scan``; a single step without the loop, which is less to lower and to compile."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(step, start, inputs, reverse=reverse)
    end, out = step(start, jax.tree.map(lambda x: x[0], inputs))
    return end, jax.tree.map(lambda y: y[None], out)


def scan_steps(
    step: Callable[..., Any], start: Any, num_steps: int, *inputs: Array, reverse: bool = False
) -> tuple[Any, Any]:
    """`scan` of ``step(carry, t, d, *inputs)`` over equal steps d of [0, 1] that start at t."""
    d = jnp.asarray(1.0 / num_steps)
    given = (time_grid(num_steps), *inputs)
    return scan(lambda carry, at: step(carry, at[0], d, *at[1:]), start, given, reverse=reverse)
