"""What every map does, and the map that leaves each draw of the base where it is."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.bases import Base, Component
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey


class Proposal(NamedTuple):
    """One draw without the density: log ρ(position) + log_ratio is its log weight.

    Attributes:
      position: ``[dim]``.
      log_ratio: ``[]`` in nats; zero where none was asked for.
      folded: ``[]`` bool, whether a step's determinant is not positive; None of a stochastic path.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> drawn = cs.maps.Proposal(position=jnp.ones(2), log_ratio=jnp.asarray(2.0))
      >>> float(-0.5 * drawn.position @ drawn.position + drawn.log_ratio)  # the log weight
      1.0
    """

    position: Array
    log_ratio: Array
    folded: Array | None = None


@flax.struct.dataclass
class Map:
    """How draws of a base are moved, one point at a time; this class leaves them where they are.

    The density where a draw lands is the caller's to evaluate; guided controls alone take its
    ``gradient``.
    """

    base: Base

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.base.dim

    def place(self, z: Array, component: Component = ()) -> tuple[Array, Array]:
        """The point ``[dim]`` that z stands for in a frame, and the frame's `log_correction`."""
        x = self.base.unwhiten(z, component)
        return x, self.base.log_correction(x, component)

    def carry(
        self,
        params: Params,
        z: Array,
        component: Component = (),
        num_steps: int = 1,
        gradient: GradientFn | None = None,
    ) -> tuple[Array, Array, Array]:
        """The deterministic map in a frame: where z ``[dim]`` ends, log |det|, whether it folds."""
        return z, jnp.zeros((), z.dtype), jnp.zeros((), bool)

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw; without ``weights`` its log ratio is not computed."""
        z, component = self.start_point(jax.random.split(rng_key)[0])
        end, log_det, _ = self.carry(params, z, component, num_steps, gradient)
        log_ratio = log_det - simulate.standard_normal_log_prob(z) if weights else None
        return self.landed(end, component, log_ratio)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio ``[]`` of a draw that ends at ``position [dim]``; NaN where it is not reached.

        The path back to the base is made up by the backward kernels, or by inverting the map.
        """
        return -self.log_prob(params, position)

    def log_prob(self, params: Params, position: Array) -> Array:
        """Log density ``[]`` of the draws of one step at a point ``[dim]``; differentiable."""
        return self.base.log_prob(position)

    def round_trip(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None = None
    ) -> Array:
        """Distance ``[]``, in z, from a key's base draw to what the inverse makes of its image."""
        return jnp.zeros(())

    def start_point(self, key_base: PRNGKey) -> tuple[Array, Component]:
        """A base draw and its frame."""
        component = self.base.draw_component(jax.random.fold_in(key_base, 1))
        return jax.random.normal(key_base, (self.dim,)), component

    def landed(
        self, z: Array, component: Component, log_ratio: Array | None, folded: Array | None = None
    ) -> Proposal:
        """The draw that ends at z in a frame, whose log ratio (None for none) is the frame's."""
        x, correction = self.place(z, component)
        if log_ratio is None:
            return Proposal(x, jnp.zeros((), x.dtype))
        return Proposal(x, log_ratio + correction, folded)


@flax.struct.dataclass
class Identity(Map):
    """The base alone: exact importance weights ρ / p0, without a network.

    It has the functions of a `Control`; its parameters are an empty dictionary.

    Attributes:
      base: where samples start and end.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> identity = cs.maps.Identity(cs.bases.standard_normal(2))
      >>> drawn = identity.draw({}, jax.random.key(0), 1, "map")
      >>> bool(abs(drawn.log_ratio + identity.base.log_prob(drawn.position)) < 1e-5)
      True
    """

    guided = False
    structured = True
    injective = True
    max_flow_steps = 1
