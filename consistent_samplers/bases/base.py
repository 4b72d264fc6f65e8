"""What every base offers: a density p0 as a (mixture of) standard normal(s) in other coordinates.

A base draws a component k, which names a frame x = m_k + L_k z, and z ~ N(0, I) in it. Samplers
work in the frame of their draw. Their target there is ρ(x) times the probability r(k | x) that the
base gives to k at x; summed over k that is ρ, so a weight of the extended space (z, k) is a weight
for ρ. With r(k | x) = π_k N(x; m_k, L_k L_kᵀ) / p0(x) the log density of the extended target
relative to π_k is, in the frame,

    log ρ(x) - log p0(x) + log N(z; 0, I),

so a sampler that leaves z where it is has exactly the base's importance weights ρ / p0.
"""

import dataclasses
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import flax.struct
import jax

from consistent_samplers.types import Array, LogDensityFn, PRNGKey

Component: TypeAlias = Any
"""Names a frame: ``()`` for a base with one; an integer ``[]`` or one for each coordinate."""


@runtime_checkable
class Base(Protocol):
    """A tractable distribution p0 on R^dim that samplers start from.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> base = cs.bases.standard_normal(2)
      >>> component = base.draw_component(jax.random.key(0))
      >>> isinstance(base, cs.bases.Base), base.unwhiten(jnp.ones(2), component).tolist()
      (True, [1.0, 1.0])
    """

    @property
    def dim(self) -> int:
        """Dimension of the space."""

    def sample(self, rng_key: PRNGKey, num_samples: int) -> Array:
        """Draws ``[num_samples, dim]``."""

    def log_prob(self, x: Array) -> Array:
        """Log density at ``x``: ``[..., dim] -> [...]``."""

    def draw_component(self, rng_key: PRNGKey) -> Component:
        """A component k, drawn with its probability π_k."""

    def component_at(self, rng_key: PRNGKey, x: Array) -> Component:
        """A component k, drawn given a point ``x [dim]`` from r(k | x)."""

    def features(self, component: Component) -> Array | None:
        """What a network is shown of a component: ``[num_features]``, of order one."""

    def unwhiten(self, z: Array, component: Component) -> Array:
        """The point x = m_k + L_k z: ``[dim] -> [dim]``."""

    def whiten(self, x: Array, component: Component) -> Array:
        """The whitened point z = L_k⁻¹ (x - m_k): ``[dim] -> [dim]``."""

    def log_correction(self, x: Array, component: Component) -> Array:
        """What a frame adds to a log density at ``x [dim]``: log N(z; 0, I) - log p0(x), ``[]``."""

    def whitened_log_density(self, log_density: LogDensityFn, component: Component) -> LogDensityFn:
        """A log density on x as one on the z of a frame; over the frames, with the same log Z."""


class OneFrame:
    """What bases with a single frame share: their only component is ``()``."""

    loc: Array

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.loc.shape[-1]

    def draw_component(self, rng_key: PRNGKey) -> tuple[()]:
        """The only component."""
        return ()

    def component_at(self, rng_key: PRNGKey, x: Array) -> tuple[()]:
        """The only component."""
        return ()

    def features(self, component: tuple[()]) -> None:
        """None: a single component needs no features."""
        return

    def whitened_log_density(
        self: Any, log_density: LogDensityFn, component: tuple[()] = ()
    ) -> LogDensityFn:
        """A log density on x as one on z, with the same log Z."""

        def whitened(z: Array) -> Array:
            x = self.unwhiten(z)
            return log_density(x) + self.log_correction(x)

        return whitened


@dataclasses.dataclass(frozen=True, eq=False)
class _Itself:
    """Equal to what holds the same object: another's class may compare arrays, or not hash."""

    own: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.own is self.own

    def __hash__(self) -> int:
        return id(self.own)


@flax.struct.dataclass
class _Constant:
    """A base that is no pytree, as one: its numbers are constants of what is compiled."""

    held: _Itself = flax.struct.field(pytree_node=False)

    @property
    def own(self) -> Any:
        """The base as it is."""
        return self.held.own

    def __getattr__(self, name: str) -> Any:
        if name == "held":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.held.own, name)


def as_pytree(base: Base) -> Base:
    """The same base as an argument of compiled functions; one that is a pytree stays as it is."""
    leaves = jax.tree.leaves(base)
    is_leaf = len(leaves) == 1 and leaves[0] is base
    return cast(Base, _Constant(_Itself(base))) if is_leaf else base


def one_frame(base: Base) -> bool:
    """Whether a base has a single frame, as a Gaussian has."""
    return isinstance(base.draw_component(jax.random.key(0)), tuple)
