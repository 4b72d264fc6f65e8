"""Members given what comes before them: products of two Gaussians, shaped and bent.

One Gaussian is all members' of a group and depends on the globals (their prior), the other is each
member's own and hardly does (its likelihood). Their precisions add up.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    first, second = jax.random.split(keys[0], 2)
    inner = {
        "hidden": 0.5 * normal(first, (size, size, _INNER_WIDTH)),
        "bias": 0.5 * normal(second, (num_members, size, _INNER_WIDTH)),
        "out": jnp.zeros((num_members, size, _INNER_WIDTH, 2)),
    }
    return {"own": of_members, "prior": prior, "inner": inner}


def members_forward(
    params: Params, group: Group, features: Array, y: Array, z: Array
) -> tuple[Array, Array]:
    """Where z ``[J p]`` is taken to, ``[J, p]``, given points y ``[dim]`` before; log |det|."""
    mean, root, skew, tail = _conditional(params, group, features, y)
    own: Any = params
    shaped, gained = shape(z.reshape(mean.shape), skew, tail)
    log_det = gained.sum() - _log_diagonal(root).sum()
    if "inner" in own:
        shift, log_scale = _inner(own["inner"], shaped)
        shaped = shaped * jnp.exp(log_scale) + shift
        log_det = log_det + log_scale.sum()
    return mean + _solve_transposed(root, shaped), log_det


def members_inverse(params: Params, group: Group, features: Array, y: Array) -> tuple[Array, Array]:
    """The z ``[J p]`` that is taken to the members in y ``[dim]``; log |det| of the map there."""
    mean, root, skew, tail = _conditional(params, group, features, y)
    own: Any = params
    away = jnp.einsum("jab,ja->jb", root, y[group.members] - mean)
    log_det = -_log_diagonal(root).sum()
    if "inner" in own:
        away, log_scale = _inner_back(own["inner"], away)
        log_det = log_det + log_scale.sum()
    z = unshape(away, skew, tail)
    return z.reshape(-1), log_det + shape(z, skew, tail)[1].sum()


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
    # Linear far out, to either side, as the logarithms of conditional variances of correlated
    # effects are in the coordinates of their correlations.
    log_cosh = jnp.logaddexp(of_globals, -of_globals) - math.log(2.0)
    out = out + log_cosh @ prior["bends"]
    prior_mean, prior_root = _gaussian(out, size)

    own_precision, prior_precision = (
        jnp.einsum("jca,jcb->jab", root, root) for root in (own_root, prior_root)
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
    return shift, bounded(log_scale)


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
