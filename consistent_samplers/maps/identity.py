"""The map that leaves every draw of the base where it is."""

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.bases import Base
from consistent_samplers.maps.control import Proposal
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey


@flax.struct.dataclass
class Identity:
    """The base alone: exact importance weights ρ / p0, without a network.

    It has the functions of a `Control`, which see; its parameters are an empty dictionary.

    Attributes:
      base: where samples start and end.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.maps import Identity
      >>> identity = Identity(cs.bases.standard_normal(2))
      >>> drawn = identity.draw({}, jax.random.key(0), 1, "map")
      >>> x = drawn.position
      >>> bool(abs(drawn.log_ratio + identity.base.log_prob(x)) < 1e-5)
      True
    """

    base: Base

    guided = False
    structured = True
    injective = True
    max_flow_steps = 1

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.base.dim

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw of the base."""
        key_base, _ = jax.random.split(rng_key)
        component = self.base.draw_component(jax.random.fold_in(key_base, 1))
        z = jax.random.normal(key_base, (self.dim,))
        x = self.base.unwhiten(z, component)
        if not weights:
            return Proposal(x, jnp.zeros((), x.dtype))
        # -log p0(x), without whitening x again where the base has one frame.
        log_normal = simulate.standard_normal_log_prob(z)
        return Proposal(x, self.base.log_correction(x, component) - log_normal)

    def round_trip(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Zero: the identity is its own inverse."""
        return jnp.zeros(())

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio ``[]`` at ``position [dim]``."""
        return -self.base.log_prob(position)
