"""What paths and maps are made of: control functions, the whitened base, loops over steps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
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
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network, t, d = cs.networks.Structured(2, rank=1), jnp.asarray(0.0), jnp.asarray(1.0)
      >>> params = network.init(jax.random.key(0), jnp.ones(2), t, d)
      >>> control = cs.simulate.StructuredControl(
      ...     lambda *args: network.apply(params, *args, method="split")
      ... )
      >>> control(jnp.ones(2), t, d).tolist()  # untrained
      [0.0, 0.0]
    """

    split: Callable[[Array, Array, Array, Array], tuple[Array, log_det.Sylvester]]

    def __call__(self, x: Array, t: Array, d: Array) -> Array:
        """The control."""
        return self.split(x, t, d, jnp.zeros(()))[0]


def standard_normal_log_prob(x: Array) -> Array:
    """Log density of the whitened base: ``[dim] -> []``.

    Args:
      x: ``[dim]``, in the base's whitened coordinates.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
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
