"""The deterministic map's inverse as a function that can be differentiated, however often."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate.controls import ControlFn
from consistent_samplers.simulate.flows import flow_map, invert_flow
from consistent_samplers.types import Array


def preimage(control: ControlFn, process: OrnsteinUhlenbeck, x1: Array) -> Array:
    """The point ``[dim]`` that one step of `flow_map` takes to ``x1 [dim]``, by `invert_flow`.

    Its derivatives are those of the inverse function, by the implicit function theorem, where
    differentiating Newton's iterations would be neither possible backwards nor exact.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> step = lambda x, t, d: 0.5 * x, cs.processes.OrnsteinUhlenbeck()  # control, process
      >>> back = jax.jacobian(lambda y: cs.simulate.preimage(*step, y))(jnp.ones(1))
      >>> there = jax.jacobian(lambda x: cs.simulate.flow_map(*step, x, num_steps=1))(jnp.ones(1))
      >>> round(float(back[0, 0] * there[0, 0]), 4)
      1.0
    """

    def missed(z: Array) -> Array:
        return flow_map(control, process, z, 1) - x1

    def solve(_: Callable[[Array], Array], guess: Array) -> Array:
        return invert_flow(control, process, guess, 1)

    def tangent_solve(linear: Callable[[Array], Array], rhs: Array) -> Array:
        # Of a linear function the Jacobian is the same everywhere.
        _, matrix = log_det.value_and_jacobian(linear, jnp.zeros_like(rhs))
        return log_det.solve(matrix, rhs)

    return jax.lax.custom_root(missed, jax.lax.stop_gradient(x1), solve, tangent_solve)
