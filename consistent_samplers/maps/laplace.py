"""A triangular map whose members are placed by Newton's steps on the density itself.

Where members depend on globals alone, they are independent given these, and the density of each is
close to the Gaussian at its mode (Laplace's approximation; Rue, Martino & Chopin, 2009, integrate
by it). Mode and curvature are functions of the globals: a fixed number of steps finds them at each
draw. So members follow the globals into the far ends of their posterior, where no network has seen
them, and what is learned is the globals' map and how members differ from Gaussians. Any number of
steps gives exact weights.
"""

from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.bases import Component
from consistent_samplers.bases.diagonal import DiagonalBase
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.maps.blocks import (
    Triangle,
    Vector,
    dot,
    log_diagonal,
    rows_of,
    solve_transposed,
)
from consistent_samplers.maps.conditionals import bends, init_bends, unbent
from consistent_samplers.maps.identity import Map
from consistent_samplers.maps.newton import newton_step, solved, usable_root, with_products
from consistent_samplers.maps.triangular import (
    globals_forward,
    globals_inverse,
    init_globals,
    shape,
    unshape,
)
from consistent_samplers.targets import Target
from consistent_samplers.targets.structure import MAX_BLOCK
from consistent_samplers.types import Array, GradientFn, LogDensityFn, Method, Params, PRNGKey

# Steps to the modes that the steps of a draw set out from.
_FIRST_STEPS = 12
_MAX_LINEAR = 2**18  # coefficients of a group's shapes that are linear in the globals, at most
# Skewness, tail, shift and scale are learned in these units; globals saturate at so many of theirs.
_UNIT, _SATURATED = 0.3, 3.0


@flax.struct.dataclass
class LaplaceMap(Map):
    """Globals by two triangular layers, members by Newton's steps on the density from there.

    It is guided: all that moves or weighs points takes the ``gradient`` of the target's log
    density.

    Attributes:
      base: a `bases.DiagonalBase`, in whose frame the map works.
      globals: ``[g]``, coordinates.
      members: ``[J, p]`` coordinates of each group, which depend on globals alone.
      modes: ``[J, p]`` of each group, where the globals are at the base's mean.
      slopes: ``[J, p, g]`` of each group, by which the modes move with the globals.
      num_newton: steps from there on.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> def log_density(x):
      ...     return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2))
      >>> target = cs.Target(log_density, dim=11)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(11), jnp.ones(11))
      >>> made = cs.maps.laplace_map(target, base)
      >>> params, gradient = made.init(jax.random.key(0)), jax.grad(log_density)
      >>> made.draw(params, jax.random.key(1), 1, "map", gradient=gradient).position.shape
      (11,)
    """

    globals: Array
    members: tuple[Array, ...]
    modes: tuple[Array, ...]
    slopes: tuple[Array, ...]
    num_newton: int = flax.struct.field(pytree_node=False, default=4)

    guided = True
    structured = True
    injective = True
    max_flow_steps = 1

    @property
    def points_at_once(self) -> int:
        """Points whose gradients a draw asks for side by side."""
        return 1 + max((index.shape[1] for index in self.members), default=0)

    def init(self, rng_key: PRNGKey) -> dict[str, Params]:
        """Parameters at which globals are as in the base, and members Gaussian given them."""
        num = self.globals.shape[0]
        keys = jax.random.split(rng_key, 2 + len(self.members))
        shapes = []
        for key, index in zip(keys[2:], self.members, strict=True):
            (count, size), each = index.shape, 4 * index.shape[1]
            linear = count if count * num * each <= _MAX_LINEAR else 1
            own = {"bias": jnp.zeros((count, each)), "linear": jnp.zeros((linear, num, each))}
            shapes.append(own | ({"bends": init_bends(key, count, size)} if size > 1 else {}))
        none = jnp.zeros(num)
        return {"globals": init_globals(keys[:2], none, none), "members": shapes}

    def point(self, at: Array, members: list[Array]) -> Array:
        """The point ``[dim]`` of the frame with globals ``[g]`` and members ``[J, p]``."""
        y = jnp.zeros(self.dim, at.dtype).at[self.globals].set(at)
        for index, values in zip(self.members, members, strict=True):
            y = y.at[index].set(values)
        return y

    def gradient_at(self, gradient: GradientFn, y: Array) -> Array:
        """Gradient ``[dim]`` of the log density by a point of the frame."""
        base = cast(DiagonalBase, self.base)
        return base.scale * gradient(base.unwhiten(y))

    def modes_at(self, gradient: GradientFn, at: Array) -> list[Array]:
        """Members ``[J, p]`` of each group after the steps, given globals ``[g]``."""
        start = [mode + slope @ at for mode, slope in zip(self.modes, self.slopes, strict=True)]

        def step(_: Any, members: list[Array]) -> list[Array]:
            derivatives = self._derivatives(gradient, self.point(at, members))
            return [x + newton_step(*of) for x, of in zip(members, derivatives, strict=True)]

        return jax.lax.fori_loop(0, self.num_newton, step, start)

    def roots_at(self, gradient: GradientFn, at: Array, members: list[Array]) -> list[Triangle]:
        """Roots of the members' precisions at a point; one where there is no maximum."""
        return [
            usable_root(curvature)
            for _, curvature in self._derivatives(gradient, self.point(at, members))
        ]

    def half_log_det(
        self, gradient: GradientFn, at: Array, members: list[Array]
    ) -> tuple[Array, list[Triangle]]:
        """Half the log determinant ``[]`` of the precisions at modes, and their `roots_at`.

        As a function of the globals: the modes move with these as the implicit function theorem has
        it, however they were found.
        """
        stop = jax.lax.stop_gradient
        still = [stop(values) for values in members]
        moved = []
        for x, (slope, curvature) in zip(
            still, self._derivatives(gradient, self.point(at, still)), strict=True
        ):
            move = newton_step(slope, jax.tree.map(stop, curvature), limited=False)
            moved.append(x + move - stop(move))  # where it is, with the derivative of the mode
        roots = self.roots_at(gradient, at, moved)
        total = sum((log_diagonal(root).sum() for root in roots), jnp.zeros((), at.dtype))
        return total, roots

    def members_forward(
        self, params: Params, features: Array, modes: list[Array], roots: list[Triangle], z: Array
    ) -> tuple[list[Array], Array]:
        """Where z ``[m]`` takes the members, ``[J, p]`` of each group, and log |det|."""
        own: Any = params
        found, begin, log_det = [], 0, jnp.zeros((), z.dtype)
        for of_group, mode, root in zip(own["members"], modes, roots, strict=True):
            (count, size), end = mode.shape, begin + mode.size
            shift, log_scale, skew, tail = _shape_of(of_group, features)
            u, gained = shape(z[begin:end].reshape(count, size).T, skew, tail)
            log_det = log_det + gained.sum() + log_scale.sum() - log_diagonal(root).sum()
            if "bends" in of_group:
                bend, log_bend = bends(of_group["bends"], u)
                u, log_det = u * jnp.exp(log_bend) + bend, log_det + log_bend.sum()
            moved = solve_transposed(root, rows_of(u * jnp.exp(log_scale) + shift))
            found.append(mode + jnp.stack(moved, -1))
            begin = end
        return found, log_det

    def members_inverse(
        self, params: Params, features: Array, modes: list[Array], roots: list[Triangle], y: Array
    ) -> tuple[Array, Array]:
        """The z ``[m]`` that takes the members to a point of the frame; log |det| of the map."""
        own: Any = params
        found, log_det = [], jnp.zeros((), y.dtype)
        parts = zip(own["members"], self.members, modes, roots, strict=True)
        for of_group, index, mode, root in parts:
            shift, log_scale, skew, tail = _shape_of(of_group, features)
            away, size = rows_of((y[index] - mode).T), len(root)
            moved = [dot([root[c][b] for c in range(b, size)], away[b:]) for b in range(size)]
            moved = rows_of((jnp.stack(moved) - shift) * jnp.exp(-log_scale))
            log_det = log_det + log_scale.sum() - log_diagonal(root).sum()
            if "bends" in of_group:
                moved, log_bend = unbent(of_group["bends"], moved)
                log_det = log_det + log_bend.sum()
            z = unshape(jnp.stack(moved), skew, tail)
            log_det = log_det + shape(z, skew, tail)[1].sum()
            found.append(z.T.reshape(-1))
        return jnp.concatenate(found), log_det

    def forward(self, params: Params, z: Array, gradient: GradientFn | None) -> tuple[Array, Array]:
        """The point ``[dim]`` in the frame that z ``[dim]`` is taken to, and log |det|."""
        gradient, own = _given(gradient), cast(Any, params)
        num = self.globals.shape[0]
        at, log_det, features = globals_forward(own["globals"], z[:num])
        modes = self.modes_at(gradient, at)
        roots = self.roots_at(gradient, at, modes)
        members, gained = self.members_forward(params, features, modes, roots, z[num:])
        return self.point(at, members), log_det + gained

    def inverse(self, params: Params, y: Array, gradient: GradientFn | None) -> tuple[Array, Array]:
        """The z ``[dim]`` that is taken to a point of the frame, and log |det| of the map there."""
        gradient, own = _given(gradient), cast(Any, params)
        at = y[self.globals]
        z, log_det, features = globals_inverse(own["globals"], at)
        modes = self.modes_at(gradient, at)
        roots = self.roots_at(gradient, at, modes)
        rest, gained = self.members_inverse(params, features, modes, roots, y)
        return jnp.concatenate([z, rest]), log_det + gained

    def carry(
        self,
        params: Params,
        z: Array,
        component: Component = (),
        num_steps: int = 1,
        gradient: GradientFn | None = None,
    ) -> tuple[Array, Array, Array]:
        """The map in its frame; see `Map.carry`."""
        return *self.forward(params, z, gradient), jnp.zeros((), bool)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio ``[]`` of a draw that ends at a point; see `Map.reverse`."""
        z, log_det = self.inverse(params, self.base.whiten(position, ()), gradient)
        correction = self.base.log_correction(position, ())
        return log_det + correction - simulate.standard_normal_log_prob(z)

    def log_prob(self, params: Params, position: Array) -> Array:
        """Not without the density.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "The density of a LaplaceMap takes the target's: Sampler.log_weight has both."
        )

    def round_trip(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None = None
    ) -> Array:
        """What the inverse of the map misses; see `Map.round_trip`."""
        z, _ = self.start_point(jax.random.split(rng_key)[0])
        back, _ = self.inverse(params, self.forward(params, z, gradient)[0], gradient)
        return jnp.sqrt(jnp.mean((back - z) ** 2))

    def _derivatives(self, gradient: GradientFn, y: Array) -> list[tuple[Vector, Triangle]]:
        """Gradient and negative Hessian of each group's members, given all else.

        Members do not see each other: a change of one coordinate of all of them shows a column of
        every block at once.
        """
        size = max(index.shape[1] for index in self.members)
        ways = jnp.zeros((size, self.dim), y.dtype)
        for index in self.members:
            ways = ways.at[jnp.arange(index.shape[1])[:, None], index.T].set(1.0)
        slope, columns = with_products(lambda y: self.gradient_at(gradient, y), y, ways)
        found = []
        for index in self.members:
            of = range(index.shape[1])
            # Both halves, as rounding makes them differ.
            block = [
                [-0.5 * (columns[i][index[:, j]] + columns[j][index[:, i]]) for j in of[: i + 1]]
                for i in of
            ]
            found.append((rows_of(slope[index].T), block))
        return found


def laplace_map(target: Target, base: DiagonalBase, *, num_newton: int = 4) -> LaplaceMap:
    """The map of a target whose members depend on globals alone, around a mean-field base.

    Args:
      target: the target; its `Target.structure` says which coordinates are what.
      base: means and standard deviations to start from.
      num_newton: Newton's steps of a draw.

    Raises:
      ValueError: there are no such members (`Structure.blocks`).

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -0.5 * jnp.sum((x - x[0]) ** 2) - 0.5 * x[0] ** 2, dim=9)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(9), jnp.ones(9))
      >>> cs.maps.laplace_map(target, base).modes[0].shape
      (8, 1)
    """
    structure = target.structure
    if not structure.blocks:
        raise ValueError(
            f"Target {target.name!r} has no members that depend on globals alone, or more than "
            f"{MAX_BLOCK} coordinates of one hang together:\n{structure}"
        )
    members = tuple(jnp.asarray(index, jnp.int32) for index in structure.blocks)
    globals, dtype = jnp.asarray(structure.globals, jnp.int32), base.loc.dtype
    modes = tuple(jnp.zeros(index.shape, dtype) for index in members)
    slopes = tuple(jnp.zeros((*index.shape, len(globals)), dtype) for index in members)
    first = LaplaceMap(base, globals, members, modes, slopes, _FIRST_STEPS)
    modes, slopes = _set_out(as_partial(target.log_density), first)
    return LaplaceMap(base, globals, members, modes, slopes, num_newton)


@jit
def _set_out(
    log_density: LogDensityFn, made: LaplaceMap
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Modes at the base's mean, and how they move with the globals."""
    gradient = jax.grad(lambda x: log_density(x))
    at = jnp.zeros(made.globals.shape, made.modes[0].dtype)
    modes = made.modes_at(gradient, at)
    y = made.point(at, modes)
    ways = jnp.zeros((len(at), made.dim)).at[jnp.arange(len(at)), made.globals].set(1.0)
    _, mixed = with_products(lambda y: made.gradient_at(gradient, y), y, ways)
    slopes = []
    for index, root in zip(made.members, made.roots_at(gradient, at, modes), strict=True):
        pulls = jnp.stack(mixed)[:, index]  # [g, J, p]
        moves = [jnp.stack(solved(root, rows_of(pull.T)), -1) for pull in pulls]
        slopes.append(jnp.nan_to_num(jnp.stack(moves, -1)))
    return tuple(map(jnp.nan_to_num, modes)), tuple(slopes)


def _given(gradient: GradientFn | None) -> GradientFn:
    if gradient is None:
        raise ValueError("A LaplaceMap needs the gradient of its target's log density.")
    return gradient


def _shape_of(own: Any, features: Array) -> tuple[Array, Array, Array, Array]:
    """Shift, log scale, skewness and log tail ``[p, J]`` of members."""
    seen = _SATURATED * jnp.tanh(features / _SATURATED)
    out = own["bias"] + jnp.einsum("g,jgo->jo", seen, own["linear"])
    shift, log_scale, skew, tail = jnp.split(_UNIT * out.T, 4)
    return shift, log_scale, skew, tail
