"""Yesterday's posterior as today's prior: the density of a map as a NumPyro distribution."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints

from consistent_samplers.integrations.numpyro.flattening import Flat
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.maps import Control, HierarchicalMap, Identity
from consistent_samplers.types import Array, Params, PRNGKey

Density: TypeAlias = Literal["map", "draws"]
"""What a prior's density is: the one-step map's own, or a mixture fitted to weighted draws."""


class Prior(dist.Distribution):
    """A posterior as a NumPyro distribution over a vector ``[n]``; made by `as_prior`.

    ``numpyro.sample("theta", prior)`` gives the vector, and ``prior.unpack(theta)`` its sites; or
    ``prior.sites()`` in a model samples all of them under their own names. It is a pytree of
    arrays: as an argument of a model it is data, and the next prior of the same shapes compiles
    nothing.

    Args:
      control: a map whose density, over the unconstrained sites, it is.
      params: the map's parameters.
      support: of the vectors.
      density: ``"map"`` or ``"draws"``; see `as_prior`.
      ess: share of its draws that are effective for the posterior, or None where it is a marginal.
      note: in words what the density is and how close to the posterior.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(2), jnp.ones(2)), cs.bases.standard_normal(2)
      >>> trained = cs.train_sampler(jax.random.key(0), target, effort="base", progress_bar=False)
      >>> prior = cs.as_prior(trained)
      >>> prior.sample(jax.random.key(1), (3,)).shape, prior.log_prob(jnp.zeros((5, 2))).shape
      ((3, 2), (5,))
    """

    pytree_data_fields = ("control", "params", "support")
    support: Any = constraints.dependent
    # Of one that JAX has taken apart and put together again.
    density: Density | None = None
    ess: float | None = None
    note: str = ""

    def __init__(
        self,
        control: Control | Identity | HierarchicalMap,
        params: Params,
        support: Flat,
        density: Density | None = None,
        ess: float | None = None,
        note: str = "",
    ) -> None:
        self.control, self.params, self.support = control, params, support
        self.density, self.ess, self.note = density, ess, note
        super().__init__((), (support.size,), validate_args=False)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws ``[*sample_shape, n]``, one network evaluation each."""

        def one(key: PRNGKey) -> Array:
            return self.control.draw(self.params, key, 1, "map", False).position

        keys = jax.random.split(key, int(np.prod(sample_shape, dtype=int)))
        loc, scale = self.support.placed()
        drawn = biject_to(self.support)((jax.vmap(one)(keys) - loc) / scale)
        return drawn.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Array) -> Array:
        """Log densities ``[...]`` of vectors ``[..., n]``; -inf outside of the support."""
        return jnp.vectorize(self._log_prob, signature="(n)->()")(jnp.asarray(value, float))

    def unpack(self, value: Array) -> Samples:
        """Sites by name, ``[..., *shape]``, of vectors ``[..., n]``."""
        return self.support.unpack(value)

    def sites(self) -> Samples:
        """Samples every site under its own name, in a model and outside of plates.

        The sites' log densities add up to that of the vector: it belongs to the last one. Seeded
        without values for them (prior predictive draws) they come from one joint draw.

        Raises:
          ValueError: a handler gives values of some sites, and others are to be drawn: given those
            they have another distribution than in the joint draw.
        """
        shared: dict[str, Any] = {}
        values: Samples = {}
        for name in self.support.names:
            values[name] = numpyro.sample(name, _Site(self, dict(values), name, shared))
        drawn = [name for name in values if values[name] is shared.get("drawn", {}).get(name)]
        if drawn and len(drawn) < len(values):
            given = ", ".join(name for name in values if name not in drawn)
            raise ValueError(
                f"sites given in part ({given}): give all of them, or none. A prior has no draws "
                f"of {', '.join(drawn)} given the others."
            )
        return values

    def _log_prob(self, value: Array) -> Array:
        to = biject_to(self.support)
        # On the edge itself the density is zero, and the logarithms below are not finite.
        inside = self.support.inside(value) & jnp.isfinite(to.inv(value)).all()
        loc, scale = self.support.placed()
        # Outside the inverse is NaN, and a gradient would be for all.
        value = jnp.where(inside, value, to(jnp.zeros_like(loc)))
        u = to.inv(value)
        own = self.control.log_prob(self.params, loc + scale * u)
        log_prob = own + jnp.log(scale).sum() - to.log_abs_det_jacobian(u, value)
        return jnp.where(inside, log_prob, -jnp.inf)


class _Site(dist.Distribution):
    """One site of a prior given those before it; the last one has the density of all."""

    pytree_data_fields = ("prior", "before")
    pytree_aux_fields = ("name",)
    shared: dict[str, Any] | None = None

    def __init__(self, prior: Prior, before: Samples, name: str, shared: dict[str, Any]) -> None:
        self.prior, self.before, self.name, self.shared = prior, before, name, shared
        super().__init__((), self.support.shape, validate_args=False)

    @property
    def support(self) -> Any:
        names, parts = self.prior.support.names, self.prior.support.parts
        return parts[names.index(self.name)]

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        shared = {} if self.shared is None else self.shared
        if shared.get("shape") != sample_shape:
            drawn = self.prior.unpack(self.prior.sample(key, sample_shape))
            shared |= {"shape": sample_shape, "drawn": drawn}
        return shared["drawn"][self.name]

    def log_prob(self, value: Array) -> Array:
        axes = jnp.ndim(value) - len(self.event_shape)
        batch = jnp.shape(value)[:axes]
        if self.name != self.prior.support.names[-1]:
            return jnp.zeros(batch)
        flat = [
            jnp.broadcast_to(v, batch + p.shape).reshape(*batch, -1)
            for v, p in zip([*self.before.values(), value], self.prior.support.parts, strict=True)
        ]
        return self.prior.log_prob(jnp.concatenate(flat, axis=-1))
