"""A triangular map that follows a target's structure: globals first, then members given them.

Each coordinate is an increasing function of its own z, whose coefficients depend on the coordinates
before it. So the map is injective whatever its parameters, its log-determinant is a sum, and its
inverse is in closed form.

A member's conditional is the product of two Gaussians, as in a conjugate hierarchical model: one
that all members of a group share, which depends on the globals (their prior), and one of its own,
which hardly does (its likelihood). Their precisions add up; the root of the sum takes z, shaped for
skewness, tails and bends, to the member's coordinates.
"""

from typing import cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import simulate
from consistent_samplers.bases import Component
from consistent_samplers.bases.diagonal import DiagonalBase
from consistent_samplers.maps.conditionals import (
    Group,
    init_members,
    members_forward,
    members_inverse,
)
from consistent_samplers.maps.identity import Map
from consistent_samplers.maps.triangular import globals_forward, globals_inverse, init_globals
from consistent_samplers.targets.structure import Structure
from consistent_samplers.types import Array, GradientFn, Params, PRNGKey


@flax.struct.dataclass
class HierarchicalMap(Map):
    """Globals by two triangular layers, each group of members given what comes before it.

    Attributes:
      base: a `bases.DiagonalBase`, whose frame members of a group share: the map works in it.
      globals: ``[g]``, coordinates.
      groups: in the order of `Structure.groups`.
      start: ``[2, dim]``, means and log standard deviations in the frame that it starts from.
      hidden: width of the networks of each group.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> def log_density(x):
      ...     return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2))
      >>> target = cs.Target(log_density, dim=11)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(11), jnp.ones(11))
      >>> made = cs.maps.hierarchical_map(base, target.structure)
      >>> params = made.init(jax.random.key(0))
      >>> made.draw(params, jax.random.key(1), 1, "map").position.shape
      (11,)
    """

    globals: Array
    groups: tuple[Group, ...]
    start: Array
    hidden: int = flax.struct.field(pytree_node=False, default=32)

    guided = False
    structured = True
    injective = True
    max_flow_steps = 1

    @property
    def members(self) -> tuple[Array, ...]:
        """``[J, p]``, coordinates of each group."""
        return tuple(group.members for group in self.groups)

    def started(self) -> DiagonalBase:
        """The mean-field base that it starts from."""
        base, (mean, log_scale) = cast(DiagonalBase, self.base), self.start
        return DiagonalBase(base.unwhiten(mean), base.scale * jnp.exp(log_scale))

    def init(self, rng_key: PRNGKey) -> dict[str, Params]:
        """Parameters at which members are independent, as in ``start``."""
        keys = jax.random.split(rng_key, 2 + 6 * len(self.groups))
        mean, log_scale = self.start
        groups = [
            init_members(keys[2 + 6 * i : 8 + 6 * i], group, self.hidden, mean, log_scale)
            for i, group in enumerate(self.groups)
        ]
        of_globals = init_globals(keys[:2], mean[self.globals], log_scale[self.globals])
        return {"globals": of_globals, "groups": groups}

    def forward(self, params: Params, z: Array) -> tuple[Array, Array]:
        """The point ``[dim]`` in the frame that z ``[dim]`` is taken to, and log |det|."""
        num = self.globals.shape[0]
        at, log_det, features = globals_forward(params["globals"], z[:num])
        y = jnp.zeros_like(z).at[self.globals].set(at)
        begin = num
        for group, own in zip(self.groups, params["groups"], strict=True):
            end = begin + group.members.size
            at, gained = members_forward(own, group, features, y, z[begin:end])
            y, log_det, begin = y.at[group.members].set(at), log_det + gained, end
        return y, log_det

    def inverse(
        self, params: Params, y: Array, gradient: GradientFn | None = None
    ) -> tuple[Array, Array]:
        """The z ``[dim]`` that is taken to a point of the frame, and log |det| of the map there."""
        z, log_det, features = globals_inverse(params["globals"], y[self.globals])
        parts = [z]
        for group, own in zip(self.groups, params["groups"], strict=True):
            z, gained = members_inverse(own, group, features, y)
            parts.append(z)
            log_det = log_det + gained
        return jnp.concatenate(parts), log_det

    def carry(
        self,
        params: Params,
        z: Array,
        component: Component = (),
        num_steps: int = 1,
        gradient: GradientFn | None = None,
    ) -> tuple[Array, Array, Array]:
        """The map in its frame; see `Map.carry`."""
        return *self.forward(params, z), jnp.zeros((), bool)

    def log_prob(self, params: Params, position: Array) -> Array:
        """Log density ``[]`` of the draws at a point ``[dim]``."""
        z, log_det = self.inverse(params, self.base.whiten(position, ()))
        correction = self.base.log_correction(position, ())
        return simulate.standard_normal_log_prob(z) - log_det - correction

    def round_trip(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None = None
    ) -> Array:
        """What the inverse of the map misses; see `Map.round_trip`."""
        z, _ = self.start_point(jax.random.split(rng_key)[0])
        back, _ = self.inverse(params, self.forward(params, z)[0])
        return jnp.sqrt(jnp.mean((back - z) ** 2))


def hierarchical_map(
    base: DiagonalBase, structure: Structure, *, hidden: int = 32
) -> HierarchicalMap:
    """The map of a structure, around a fitted mean-field base.

    Args:
      base: means and standard deviations to start from.
      structure: of the target.
      hidden: width of the networks of each group.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -0.5 * jnp.sum((x - x[0]) ** 2) - 0.5 * x[0] ** 2, dim=9)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(9), jnp.ones(9))
      >>> cs.maps.hierarchical_map(base, target.structure).globals.tolist()
      [0]
    """
    loc, scale = (np.array(part, np.float64) for part in (base.loc, base.scale))
    frame_loc, frame_scale = loc.copy(), scale.copy()
    groups = []
    place = np.full(structure.dim, -1)
    place[structure.globals] = np.arange(len(structure.globals))
    for group in structure.groups:
        # One frame for all of them: what they share is then the same in it.
        own_loc, own_scale = loc[group.members], scale[group.members]
        frame_loc[group.members] = np.median(own_loc, axis=0)
        frame_scale[group.members] = np.hypot(own_loc.std(0), np.median(own_scale, axis=0))
        exists = group.own >= 0
        parts = group.members, place[group.shared], np.where(exists, group.own, 0)
        members, shared, own = (jnp.asarray(part, jnp.int32) for part in parts)
        groups.append(Group(members, shared, own, jnp.asarray(exists, base.loc.dtype)))
    start = np.stack([(loc - frame_loc) / frame_scale, np.log(scale / frame_scale)])
    dtype = base.loc.dtype
    frame = DiagonalBase(jnp.asarray(frame_loc, dtype), jnp.asarray(frame_scale, dtype))
    globals = jnp.asarray(structure.globals, jnp.int32)
    return HierarchicalMap(frame, globals, tuple(groups), jnp.asarray(start, dtype), hidden)
