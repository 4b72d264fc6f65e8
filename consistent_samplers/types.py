"""Types shared by every module: arrays, densities, and what a sampler returns.

Shapes are written ``[num_samples, dim]``. All densities are natural logarithms.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.struct
import jax

Array: TypeAlias = jax.Array
"""An array, concrete or traced."""

PRNGKey: TypeAlias = jax.Array
"""A key of ``jax.random.key`` (or of the older ``jax.random.PRNGKey``)."""

ArrayTree: TypeAlias = Any
"""A pytree of arrays."""

Params: TypeAlias = Any
"""A pytree of arrays that are trained."""

LogDensityFn: TypeAlias = Callable[[Array], Array]
"""Unnormalised log density of one point, in nats, ``[dim] -> []``."""

Bound: TypeAlias = Literal["lower", "lower-if-injective", "heuristic"]
"""What ``E[log_weight]`` is worth as a bound on log Z.

- ``"lower"``: a lower bound, with ``E[exp(log_weight)] = Z``, by construction.
- ``"lower-if-injective"``: the same wherever the map from base to target is injective.
- ``"heuristic"``: no bound at all; may exceed log Z.
"""

BOUNDS: tuple[Bound, ...] = ("lower", "lower-if-injective", "heuristic")
"""All values of `Bound`."""

Method: TypeAlias = Literal["map", "path", "heuristic"]
"""Which transitions make a draw and its weight.

- ``"map"``: the deterministic map with the exact determinant of the discrete steps taken; weights
  of ``"lower-if-injective"``, or of ``"lower"`` where the map is injective by construction.
- ``"path"``: the stochastic path against its noising; weights of ``"lower"``.
- ``"heuristic"``: the map with the OSDS paper's trace; weights of ``"heuristic"``.
"""

METHODS: tuple[Method, ...] = ("map", "path", "heuristic")
"""All values of `Method`."""

BOUND_OF: dict[Method, Bound] = {
    "map": "lower-if-injective",
    "path": "lower",
    "heuristic": "heuristic",
}
"""The kind of weight that each method gives."""

GradientFn: TypeAlias = Callable[[Array], Array]
"""Gradient of a log density at one point, ``[dim] -> [dim]``."""


class FlowDiagnostics(NamedTuple):
    """Measured evidence that a deterministic map is injective, one entry a sample.

    Attributes:
      folded: ``[num_samples]`` bool, det of the Jacobian is zero or negative in some step.
      round_trip_error: ``[num_samples]``, distance in base standard deviations between x0
        and what the steps inverted at x1 return; NaN where it was not measured.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.types import FlowDiagnostics
      >>> flow = FlowDiagnostics(jnp.array([False, True]), round_trip_error=jnp.array([0.0, 2.0]))
      >>> float(flow.folded.mean())  # share of draws where the map folds
      0.5
    """

    folded: Array
    round_trip_error: Array


@flax.struct.dataclass
class Draws:
    """Samples with their importance weights.

    Attributes:
      position: ``[num_samples, dim]``.
      log_weight: ``[num_samples]`` in nats, with ``E[exp(log_weight)] = Z`` as far as ``bound``
        says, or None when the draws were made without weights.
      log_density: ``[num_samples]`` unnormalised log density at ``position`` in nats, or None.
      flow: evidence of injectivity for draws of a deterministic map, else None.
      bound: what the weights are worth (static), or None without weights.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(position=jnp.zeros((4, 2)), log_weight=jnp.zeros(4), bound="lower")
      >>> [leaf.shape for leaf in jax.tree.leaves(draws)]  # a pytree: goes through jit and vmap
      [(4, 2), (4,)]
    """

    position: Array
    log_weight: Array | None = None
    log_density: Array | None = None
    flow: FlowDiagnostics | None = None
    bound: Bound | None = flax.struct.field(pytree_node=False, default=None)
