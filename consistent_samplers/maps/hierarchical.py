"""A triangular map that follows a target's structure: globals first, then members given them.

Each coordinate is an increasing function of its own z, whose coefficients depend on the coordinates
before it. So the map is injective whatever its parameters, its log-determinant is a sum, and its
inverse is in closed form.

A member's conditional is the product of two Gaussians, as in a conjugate hierarchical model: one
that all members of a group share, which depends on the globals (their prior), and one of its own,
which hardly does (its likelihood). Their precisions add up; the root of the sum takes z, shaped for
skewness, tails and bends, to the member's coordinates.
"""

import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import simulate
from consistent_samplers.bases import Component
from consistent_samplers.bases.diagonal import DiagonalBase
from consistent_samplers.maps.identity import Map, Proposal
from consistent_samplers.targets.structure import Structure
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey

_GLOBAL_WIDTH, _INNER_WIDTH = 8, 8  # hidden units of each global, and of a member's coordinate
_MAX_LINEAR = 2**18  # coefficients of a group's members that are linear in the globals, at most
_MAX_LOG_SCALE = 3.0
_START_PRIOR = -2.0  # log of the diagonal of the shared Gaussian's precision root


class Group(NamedTuple):
    """A group of `targets.structure.Structure` as arrays; ``shared`` are places in the globals."""

    members: Array  # [J, p]
    shared: Array  # [s]
    own: Array  # [J, r]
    exists: Array  # [J, r]: 0 where a member has fewer parents of its own


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

    def init(self, rng_key: PRNGKey) -> dict[str, Params]:
        """Parameters at which members are independent, as in ``start``."""
        num = self.globals.shape[0]
        keys = iter(jax.random.split(rng_key, 2 + 6 * len(self.groups)))
        layers = [
            {
                "shape": jnp.zeros((num, 2)),
                "hidden": 0.5 * jax.random.normal(next(keys), (num, num, _GLOBAL_WIDTH)),
                "bias": jnp.zeros((num, _GLOBAL_WIDTH)),
                "out": jnp.zeros((num, _GLOBAL_WIDTH, 2)),
            }
            for _ in range(2)
        ]
        mean, log_scale = self.start
        of_globals = {
            "layers": layers,
            "loc": mean[self.globals],
            "log_scale": log_scale[self.globals],
            "lower": jnp.zeros((num, num)),
        }
        groups = []
        for group in self.groups:
            (num_members, size), shared = group.members.shape, len(group.shared)
            own, width = group.own.shape[1], self.hidden
            into = 1.0 / math.sqrt(max(shared + own, 1))
            both = _num_gaussian(size)
            bias = jnp.zeros((num_members, both + 2 * size))
            bias = bias.at[:, :size].set(mean[group.members])
            bias = bias.at[:, size : 2 * size].set(-log_scale[group.members])
            linear = num_members * shared * size <= _MAX_LINEAR
            keys_inner = jax.random.split(next(keys), 2)
            inner = {
                "hidden": 0.5 * jax.random.normal(keys_inner[0], (size, size, _INNER_WIDTH)),
                "bias": 0.5 * jax.random.normal(keys_inner[1], (num_members, size, _INNER_WIDTH)),
                "out": jnp.zeros((num_members, size, _INNER_WIDTH, 2)),
            }
            prior_bias = jnp.zeros(both).at[size : 2 * size].set(_START_PRIOR)
            groups.append(
                {
                    "own": {
                        "globals": into * jax.random.normal(next(keys), (shared, width)),
                        "parents": into * jax.random.normal(next(keys), (own, width)),
                        "member": 0.5 * jax.random.normal(next(keys), (num_members, width)),
                        "out": jnp.zeros((width, both + 2 * size)),
                        "linear": jnp.zeros(
                            (num_members if linear else 1, shared, both + 2 * size)
                        ),
                        "slopes": jnp.zeros((num_members, own, 2 * size)),
                        "bias": bias,
                    },
                    "prior": {
                        "globals": into * jax.random.normal(next(keys), (shared, width)),
                        "hidden_bias": jnp.zeros(width),
                        "parents": into * jax.random.normal(next(keys), (own, width)),
                        "out": jnp.zeros((width, both)),
                        "linear": jnp.zeros((shared, both)),
                        "slopes": jnp.zeros((own, both)),
                        "slopes_out": jnp.zeros((width, own, size)),
                        "bias": prior_bias,
                    },
                    **({"inner": inner} if size > 1 else {}),
                }
            )
        return {"globals": of_globals, "groups": groups}

    def forward(self, params: Params, z: Array) -> tuple[Array, Array]:
        """The point ``[dim]`` in the frame that z ``[dim]`` is taken to, and log |det|."""
        num = self.globals.shape[0]
        y = jnp.zeros_like(z)
        at, log_det, features = _globals_forward(params["globals"], z[:num])
        y = y.at[self.globals].set(at)
        begin = num
        for group, own in zip(self.groups, params["groups"], strict=True):
            end = begin + group.members.size
            mean, root, skew, tail = _conditional(own, group, features, y)
            shaped, gained = _shape(z[begin:end].reshape(mean.shape), skew, tail)
            if "inner" in own:
                shift, log_scale = _inner(own["inner"], shaped)
                shaped = shaped * jnp.exp(log_scale) + shift
                log_det = log_det + log_scale.sum()
            y = y.at[group.members].set(mean + _solve_transposed(root, shaped))
            log_det = log_det + gained.sum() - _log_diagonal(root).sum()
            begin = end
        return y, log_det

    def inverse(self, params: Params, y: Array) -> tuple[Array, Array]:
        """The z ``[dim]`` that is taken to a point of the frame, and log |det| of the map there."""
        z, log_det, features = _globals_inverse(params["globals"], y[self.globals])
        parts = [z]
        for group, own in zip(self.groups, params["groups"], strict=True):
            mean, root, skew, tail = _conditional(own, group, features, y)
            away = jnp.einsum("jab,ja->jb", root, y[group.members] - mean)
            if "inner" in own:
                away, log_scale = _inner_back(own["inner"], away)
                log_det = log_det + log_scale.sum()
            z = _unshape(away, skew, tail)
            log_det = log_det + _shape(z, skew, tail)[1].sum() - _log_diagonal(root).sum()
            parts.append(z.reshape(-1))
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

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw; see `Map.draw`."""
        z, component = self._start(jax.random.split(rng_key)[0])
        y, log_det = self.forward(params, z)
        log_ratio = log_det - simulate.standard_normal_log_prob(z) if weights else None
        return self._landed(y, component, log_ratio)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio of the draw that ends at a point; see `Map.reverse`."""
        return -self.log_prob(params, position)

    def log_prob(self, params: Params, position: Array) -> Array:
        """Log density ``[]`` of the draws at a point ``[dim]``."""
        z, log_det = self.inverse(params, self.base.whiten(position, ()))
        correction = self.base.log_correction(position, ())
        return simulate.standard_normal_log_prob(z) - log_det - correction

    def round_trip(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None = None
    ) -> Array:
        """What the inverse of the map misses; see `Map.round_trip`."""
        z, _ = self._start(jax.random.split(rng_key)[0])
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


def _shape(z: Array, skew: Array, log_tail: Array) -> tuple[Array, Array]:
    """Sinh-arcsinh of z, and the logarithm of its derivative (Jones & Pewsey, 2009)."""
    inner = jnp.exp(log_tail) * (jnp.arcsinh(z) + skew)
    # log cosh, which overflows later than cosh.
    log_cosh = jnp.logaddexp(inner, -inner) - math.log(2.0)
    return jnp.sinh(inner), log_tail + log_cosh - 0.5 * jnp.log1p(z**2)


def _unshape(x: Array, skew: Array, log_tail: Array) -> Array:
    return jnp.sinh(jnp.arcsinh(x) * jnp.exp(-log_tail) - skew)


def _bounded(log_scale: Array) -> Array:
    return _MAX_LOG_SCALE * jnp.tanh(log_scale / _MAX_LOG_SCALE)


def _conditional(params: Any, group: Group, features: Array, y: Array) -> tuple[Array, ...]:
    """Of each member: mean ``[J, p]``, precision root ``[J, p, p]``, skewness and log tail."""
    shared, parents = features[group.shared], y[group.own] * group.exists
    own, prior, size = params["own"], params["prior"], group.members.shape[1]
    seen = shared @ own["globals"] + parents @ own["parents"] + own["member"]
    out = own["bias"] + jnp.tanh(seen) @ own["out"] + jnp.einsum("s,jso->jo", shared, own["linear"])
    slopes = jnp.einsum("jr,jro->jo", parents, own["slopes"])
    out = out.at[:, : 2 * size].add(slopes)
    own_mean, own_root = _gaussian(out, size)
    skew, tail = out[:, -2 * size : -size], out[:, -size:]

    of_globals = shared @ prior["globals"] + prior["hidden_bias"]
    seen = jnp.tanh(of_globals + parents @ prior["parents"])
    # How a member depends on its own parents may depend on the globals: a correlation, say.
    changing = jnp.einsum("h,hro->ro", jnp.tanh(of_globals), prior["slopes_out"])
    slopes = prior["slopes"].at[:, :size].add(changing)
    out = prior["bias"] + shared @ prior["linear"] + seen @ prior["out"] + parents @ slopes
    prior_mean, prior_root = _gaussian(out, size)

    own_precision, prior_precision = (
        jnp.einsum("jac,jbc->jab", root, root) for root in (own_root, prior_root)
    )
    root = _cholesky(own_precision + prior_precision)
    pull = jnp.einsum("jab,jb->ja", own_precision, own_mean)
    pull += jnp.einsum("jab,jb->ja", prior_precision, prior_mean)
    mean = _solve_transposed(root, _solve(root, pull))
    return mean, root, 0.3 * skew, 0.3 * tail


def _inner(params: Any, u: Array) -> tuple[Array, Array]:
    """Shift and log scale ``[J, p]`` of each coordinate of a member, of those before it."""
    below = jnp.tril(jnp.ones((u.shape[1],) * 2, u.dtype), -1)
    into = jnp.einsum("jq,pq,pqh->jph", u, below, params["hidden"])
    seen = jnp.tanh(into + params["bias"])
    shift, log_scale = jnp.einsum("jph,jpho->ojp", seen, params["out"])
    return shift, _bounded(log_scale)


def _inner_back(params: Any, v: Array) -> tuple[Array, Array]:
    """What shift and scale took to v ``[J, p]``, one coordinate after the other; log scales."""
    u = log_scale = jnp.zeros_like(v)
    for i in range(v.shape[1]):
        shift, log_scale = _inner(params, u)
        u = u.at[:, i].set((v[:, i] - shift[:, i]) * jnp.exp(-log_scale[:, i]))
    return u, log_scale


def _num_gaussian(size: int) -> int:
    """Numbers that describe a Gaussian: its mean and the root of its precision."""
    return 2 * size + size * (size - 1) // 2


def _gaussian(out: Array, size: int) -> tuple[Array, Array]:
    """Mean ``[J, p]`` and lower triangular root of the precision ``[J, p, p]``."""
    rows, columns = np.tril_indices(size, -1)
    diagonal = jnp.exp(out[:, size : 2 * size])
    root = diagonal[:, :, None] * jnp.eye(size)
    below = out[:, 2 * size : _num_gaussian(size)]
    # In units of the diagonal, so that a scale moves the root as a whole.
    return out[:, :size], root.at[:, rows, columns].set(below * diagonal[:, columns])


def _cholesky(matrix: Array) -> Array:
    """Lower triangular roots of small matrices ``[J, p, p]``, entry by entry."""
    size = matrix.shape[-1]
    root = [[jnp.zeros(len(matrix))] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[:, i, j] - sum(root[i][k] * root[j][k] for k in range(j))
            root[i][j] = jnp.sqrt(rest) if i == j else rest / root[j][j]
    return jnp.stack([jnp.stack(row, -1) for row in root], -2)


def _solve(root: Array, right: Array) -> Array:
    """L⁻¹ b of lower triangular ``[J, p, p]`` and ``[J, p]``."""
    found: list[Array] = []
    for i in range(root.shape[-1]):
        rest = right[:, i] - sum(root[:, i, k] * found[k] for k in range(i))
        found.append(rest / root[:, i, i])
    return jnp.stack(found, -1)


def _solve_transposed(root: Array, right: Array) -> Array:
    """L⁻ᵀ b."""
    size = root.shape[-1]
    found: dict[int, Array] = {}
    for i in reversed(range(size)):
        rest = right[:, i] - sum(root[:, k, i] * found[k] for k in range(i + 1, size))
        found[i] = rest / root[:, i, i]
    return jnp.stack([found[i] for i in range(size)], -1)


def _log_diagonal(root: Array) -> Array:
    return jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1))


def _layer_at(layer: Any, u: Array) -> tuple[Array, Array]:
    """Shift and log scale ``[g]`` of each coordinate, of the ones before it."""
    below = jnp.tril(jnp.ones((u.shape[0],) * 2, u.dtype), -1)
    seen = jnp.tanh(jnp.einsum("j,ij,ijh->ih", u, below, layer["hidden"]) + layer["bias"])
    shift, log_scale = jnp.einsum("ih,iho->oi", seen, layer["out"])
    return shift, _bounded(log_scale)


def _layer_back(layer: Any, v: Array) -> tuple[Array, Array]:
    """The coordinates ``[g]`` that shift and scale took to v, one after the other; log scales."""
    index = jnp.arange(len(v))

    def next_one(u: Array, i: Array) -> tuple[Array, Array]:
        before = jnp.where(index < i, u, 0.0)
        seen = jnp.tanh(before @ layer["hidden"][i] + layer["bias"][i])
        shift, log_scale = seen @ layer["out"][i]
        log_scale = _bounded(log_scale)
        return u.at[i].set((v[i] - shift) * jnp.exp(-log_scale)), log_scale

    return jax.lax.scan(next_one, jnp.zeros_like(v), index)


def _globals_forward(params: Any, z: Array) -> tuple[Array, Array, Array]:
    """Points ``[g]`` of the globals, log |det|, and what members see of them: of order one."""
    log_det = jnp.zeros((), z.dtype)
    for layer in params["layers"]:
        u, gained = _shape(z, *(0.3 * layer["shape"].T))
        shift, log_scale = _layer_at(layer, u)
        # Each layer sees the coordinates in the other's order turned round.
        z = (u * jnp.exp(log_scale) + shift)[::-1]
        log_det = log_det + gained.sum() + log_scale.sum()
    triangle = jnp.tril(params["lower"], -1)
    moved = jnp.exp(params["log_scale"]) * z + triangle @ z
    log_det = log_det + params["log_scale"].sum()
    return params["loc"] + moved, log_det, moved / _row_norm(params, triangle)


def _globals_inverse(params: Any, y: Array) -> tuple[Array, Array, Array]:
    """The z ``[g]`` that leads to a point, log |det| of the map there, and what members see."""
    triangle = jnp.tril(params["lower"], -1)
    moved = y - params["loc"]
    matrix = triangle + jnp.diag(jnp.exp(params["log_scale"]))
    z = jax.scipy.linalg.solve_triangular(matrix, moved, lower=True)
    log_det = params["log_scale"].sum()
    for layer in params["layers"][::-1]:
        u, log_scale = _layer_back(layer, z[::-1])
        skew, tail = 0.3 * layer["shape"].T
        z = _unshape(u, skew, tail)
        log_det = log_det + _shape(z, skew, tail)[1].sum() + log_scale.sum()
    return z, log_det, moved / _row_norm(params, triangle)


def _row_norm(params: Any, triangle: Array) -> Array:
    return jnp.sqrt(jnp.exp(2.0 * params["log_scale"]) + (triangle**2).sum(1))
