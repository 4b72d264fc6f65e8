"""Members given what comes before them: products of two Gaussians, shaped and bent.

One Gaussian is all members' of a group and depends on the globals (their prior), the other is each
member's own and hardly does (its likelihood). Their precisions add up.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.maps.blocks import (
    Triangle,
    Vector,
    cholesky,
    dot,
    log_diagonal,
    precision,
    rows_of,
    solve,
    solve_transposed,
    times,
)
from consistent_samplers.maps.triangular import bounded, shape, unshape
from consistent_samplers.types import Array, Params, PRNGKey

_INNER_WIDTH = 8  # hidden units of a member's coordinate
_MAX_LINEAR = 2**18  # coefficients of a group's members that are linear in the globals, at most
_START_PRIOR = -2.0  # log of the diagonal of the shared Gaussian's precision root


class Group(NamedTuple):
    """A group of `targets.structure.Structure` as arrays; ``shared`` are places in the globals."""

    members: Array  # [J, p]
    shared: Array  # [s]
    own: Array  # [J, r]
    exists: Array  # [J, r]: 0 where a member has fewer parents of its own


def init_members(
    keys: PRNGKey, group: Group, width: int, mean: Array, log_scale: Array
) -> dict[str, Any]:
    """Parameters of a group, of six keys, at which its members are independent.

    Args:
      keys: six.
      group: the group.
      width: hidden units of its networks.
      mean: ``[dim]``, where the members start.
      log_scale: ``[dim]``, logarithms of their standard deviations.
    """
    (num_members, size), shared = group.members.shape, len(group.shared)
    own = group.own.shape[1]
    into = 1.0 / math.sqrt(max(shared + own, 1))
    both = _num_gaussian(size)
    bias = jnp.zeros((num_members, both + 2 * size))
    bias = bias.at[:, :size].set(mean[group.members])
    bias = bias.at[:, size : 2 * size].set(-log_scale[group.members])
    linear = num_members if num_members * shared * size <= _MAX_LINEAR else 1
    normal = jax.random.normal
    of_members = {
        "globals": into * normal(keys[1], (shared, width)),
        "parents": into * normal(keys[2], (own, width)),
        "member": 0.5 * normal(keys[3], (num_members, width)),
        "out": jnp.zeros((width, both + 2 * size)),
        "linear": jnp.zeros((linear, shared, both + 2 * size)),
        "slopes": jnp.zeros((num_members, own, 2 * size)),
        "bias": bias,
    }
    prior = {
        "globals": into * normal(keys[4], (shared, width)),
        "hidden_bias": jnp.zeros(width),
        "parents": into * normal(keys[5], (own, width)),
        "out": jnp.zeros((width, both)),
        "bends": jnp.zeros((width, both)),
        "linear": jnp.zeros((shared, both)),
        "slopes": jnp.zeros((own, both)),
        "slopes_out": jnp.zeros((width, own, size)),
        "bias": jnp.zeros(both).at[size : 2 * size].set(_START_PRIOR),
    }
    if size == 1:
        return {"own": of_members, "prior": prior}
    inner = init_bends(keys[0], num_members, size)
    return {"own": of_members, "prior": prior, "inner": inner}


def init_bends(rng_key: PRNGKey, num_members: int, size: int) -> dict[str, Array]:
    """Parameters of `bends` that do nothing."""
    first, second = jax.random.split(rng_key, 2)
    normal = jax.random.normal
    return {
        "hidden": 0.5 * normal(first, (size, size, _INNER_WIDTH)),
        "bias": 0.5 * normal(second, (num_members, size, _INNER_WIDTH)),
        "out": jnp.zeros((num_members, size, _INNER_WIDTH, 2)),
    }


def members_forward(
    params: Params, group: Group, features: Array, y: Array, z: Array
) -> tuple[Array, Array]:
    """Where z ``[J p]`` is taken to, ``[J, p]``, given points y ``[dim]`` before; log |det|."""
    mean, root, skew, tail = _conditional(params, group, features, y)
    own: Any = params
    shaped, gained = shape(z.reshape(group.members.shape).T, skew, tail)
    log_det = gained.sum() - log_diagonal(root).sum()
    if "inner" in own:
        shift, log_scale = bends(own["inner"], shaped)
        shaped = shaped * jnp.exp(log_scale) + shift
        log_det = log_det + log_scale.sum()
    moved = solve_transposed(root, rows_of(shaped))
    return jnp.stack([m + x for m, x in zip(mean, moved, strict=True)], -1), log_det


def members_inverse(params: Params, group: Group, features: Array, y: Array) -> tuple[Array, Array]:
    """The z ``[J p]`` that is taken to the members in y ``[dim]``; log |det| of the map there."""
    mean, root, skew, tail = _conditional(params, group, features, y)
    own: Any = params
    away = [x - m for x, m in zip(rows_of(y[group.members].T), mean, strict=True)]
    moved = [dot([root[c][b] for c in range(b, len(away))], away[b:]) for b in range(len(away))]
    log_det = -log_diagonal(root).sum()
    if "inner" in own:
        moved, log_scale = unbent(own["inner"], moved)
        log_det = log_det + log_scale.sum()
    z = unshape(jnp.stack(moved), skew, tail)
    return z.T.reshape(-1), log_det + shape(z, skew, tail)[1].sum()


def _conditional(
    params: Any, group: Group, features: Array, y: Array
) -> tuple[Vector, Triangle, Array, Array]:
    """Of the members: mean, root of the precision, skewness and log tail ``[p, J]``."""
    shared, parents = features[group.shared], y[group.own] * group.exists
    own, prior, size = params["own"], params["prior"], group.members.shape[1]
    seen = shared @ own["globals"] + parents @ own["parents"] + own["member"]
    out = own["bias"] + jnp.tanh(seen) @ own["out"] + jnp.einsum("s,jso->jo", shared, own["linear"])
    loc, log_diagonal, rest = jnp.split(out.T, (size, 2 * size))
    slopes = own["slopes"].transpose(1, 2, 0)  # [r, 2 p, J]
    for slope, parent in zip(slopes, rows_of(parents.T), strict=True):
        loc = loc + slope[:size] * parent
        log_diagonal = log_diagonal + slope[size:] * parent
    below, skew, tail = jnp.split(rest, (len(rest) - 2 * size, len(rest) - size))
    own_mean, own_root = _gaussian(loc, log_diagonal, below)

    of_globals = shared @ prior["globals"] + prior["hidden_bias"]
    seen = jnp.tanh(of_globals + parents @ prior["parents"])
    # How a member depends on its own parents may depend on the globals: a correlation, say.
    changing = jnp.einsum("h,hro->ro", jnp.tanh(of_globals), prior["slopes_out"])
    slopes = prior["slopes"].at[:, :size].add(changing)
    # Linear far out, to either side, as the logarithms of conditional variances of correlated
    # effects are in the coordinates of their correlations.
    log_cosh = jnp.logaddexp(of_globals, -of_globals) - math.log(2.0)
    out = prior["bias"] + shared @ prior["linear"] + log_cosh @ prior["bends"]
    out = out + seen @ prior["out"] + parents @ slopes
    prior_mean, prior_root = _gaussian(*jnp.split(out.T, (size, 2 * size)))

    own_precision, prior_precision = precision(own_root), precision(prior_root)
    root = cholesky(
        [
            [a + b for a, b in zip(*rows, strict=True)]
            for rows in zip(own_precision, prior_precision, strict=True)
        ]
    )
    pulls = zip(times(own_precision, own_mean), times(prior_precision, prior_mean), strict=True)
    mean = solve_transposed(root, solve(root, [a + b for a, b in pulls]))
    return mean, root, 0.3 * skew, 0.3 * tail


def bends(params: Any, u: Array) -> tuple[Array, Array]:
    """Shift and log scale ``[p, J]`` of each coordinate of a member, of those before it."""
    rows = rows_of(u)
    found = [_bend_at(params, i, rows) for i in range(len(rows))]
    shift, log_scale = map(jnp.stack, zip(*found, strict=True))
    return shift, log_scale


def _bend_at(params: Any, i: int, before: Vector) -> tuple[Array, Array]:
    """Shift and log scale ``[J]`` of a coordinate, of those before it."""
    into = params["bias"][:, i].T  # [h, J]
    if i:
        into = into + params["hidden"][i, :i].T @ jnp.stack(before[:i])
    seen, out = rows_of(jnp.tanh(into)), params["out"][:, i].transpose(1, 2, 0)  # [h, 2, J]
    shift, log_scale = (dot([*out[:, k]], seen) for k in range(2))
    return shift, bounded(log_scale)


def unbent(params: Any, v: Vector) -> tuple[Vector, Array]:
    """What shift and scale took to v, one coordinate after the other; log scales ``[p, J]``."""
    u: Vector = []
    log_scales = []
    for i, moved in enumerate(v):
        shift, log_scale = _bend_at(params, i, u)
        u.append((moved - shift) * jnp.exp(-log_scale))
        log_scales.append(log_scale)
    return u, jnp.stack(log_scales)


def _num_gaussian(size: int) -> int:
    """Numbers that describe a Gaussian: its mean and the root of its precision."""
    return 2 * size + size * (size - 1) // 2


def _gaussian(mean: Array, log_diagonal: Array, below: Array) -> tuple[Vector, Triangle]:
    """Mean and root of the precision, of numbers ``[p, J]``, ``[p, J]`` and ``[p (p - 1) / 2, J]``.

    What is below the diagonal is in units of it, so that a scale moves the root as a whole.
    """
    diagonal, rest = rows_of(jnp.exp(log_diagonal)), iter(rows_of(below))
    root = [[*(next(rest) * diagonal[j] for j in range(i)), d] for i, d in enumerate(diagonal)]
    return rows_of(mean), root
