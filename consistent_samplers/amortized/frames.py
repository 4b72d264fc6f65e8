"""The Laplace approximation of each data set's own posterior, members given globals first.

Members are independent given the globals: a few Newton steps give mode and curvature of each,
m(g) and R(g). With them integrated out by Laplace's method (Tierney & Kadane, 1986; nested as in
Rue, Martino & Chopin, 2009), M(g) = log ρ(g, m(g)) - Σ log |R(g)|, whose own mode and curvature are
the frame of the globals. Where a posterior is Gaussian, the frames are it.

What log ρ and M are beyond a quadratic, at some points along the axes of the frame, tells a network
the skewness and the tails of this posterior.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.amortized.linear import inverse_of, log_diagonal, root_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.types import Array

_STEPS = (1.0, 0.5, 0.2, 0.05)
_MAX_ITERATIONS = 30
_LEAST_GAIN = 1e-6  # relative: below it is rounding
_ENOUGH = 1e-3  # Newton's step in standard deviations
_MEMBER_STEPS = 6  # of members, where nothing is known of them
_FEW_MEMBER_STEPS = 2  # from their modes at the globals' mode
# Starts that are climbed from, those of the highest density; the best mode of these is taken.
_NUM_CLIMBS = 4
_PROBE = 2.0  # standard deviations
# Globals up to which pairs of axes are looked along as well.
_MAX_PAIRED = 10


class Members(NamedTuple):
    """Laplace approximation of members given globals: all are independent.

    Attributes:
      mode: ``[N, p]``.
      root: ``[N, p, p]``, lower triangular, of the precision.
    """

    mode: Array
    root: Array


class Frame(NamedTuple):
    """Laplace approximation of the globals of one data set, and what it tells of the posterior.

    Attributes:
      mode: ``[g]``.
      root: ``[g, g]``, lower triangular, of the precision.
      to_unit: ``[g, g]``, its inverse.
      members: ``[N, p]``, the members' modes there.
      skewness: ``[N, p]``, third derivatives there along the members' axes, arcsinh of them.
      features: ``[f]``, raw.
    """

    mode: Array
    root: Array
    to_unit: Array
    members: Array
    skewness: Array
    features: Array


def frame_of(model: PaddedModel, starts: tuple[Array, Array], data: DataSet) -> Frame:
    """The frame of one data set.

    Args:
      model: the model.
      starts: globals ``[s, g]`` to start from, of which a few are, and members ``[p]``.
      data: one data set.
    """
    at_globals, start_members = starts
    members = jnp.broadcast_to(start_members, (model.max_rows, model.num_each))
    settled = functools.partial(_settled, model, data)
    tried = jax.vmap(lambda g: settled(g, members, _MEMBER_STEPS))(at_globals)
    values = jax.vmap(lambda g, m: _marginal(model, data, g, m))(at_globals, tried)
    highest = jax.lax.top_k(_or_least(values), min(_NUM_CLIMBS, len(values)))[1]
    if model.num_globals:
        # Few data lie in wait with modes that hold nothing: the one of most mass is taken.
        climb = jax.vmap(lambda g, m: _maximised(model, data, g, m))
        modes, settled_there = climb(at_globals[highest], tried[highest])
        masses = jax.vmap(lambda g, m: _laplace_mass(model, data, g, m))(modes, settled_there)
        best = jnp.argmax(_or_least(masses))
        mode, members = modes[best], settled_there[best]
    else:
        mode, members = at_globals[highest[0]], tried[highest[0]]
    root = root_of(_precision(model, data, mode, members))
    to_unit = inverse_of(root)
    marginal = functools.partial(_marginal, model, data)

    def beyond(direction: Array) -> Array:
        """What M is above a quadratic, some standard deviations along a direction."""
        at = mode + to_unit.T @ direction
        value = marginal(at, settled(at, members, _FEW_MEMBER_STEPS))
        return value - top + 0.5 * direction @ direction

    top = marginal(mode, members)
    probes = jax.vmap(beyond)(jnp.asarray(_probes(model.num_globals)))
    lower = root / jnp.diagonal(root)[None, :]
    below = lower[np.tril_indices(model.num_globals, -1)]
    shape = jnp.concatenate([jnp.arcsinh(probes), jnp.arcsinh(below)])
    count = jnp.log(jnp.sum(data.mask).astype(shape.dtype))[None]
    # Of all members together; each has its own beside them.
    of_members, skewness = jnp.zeros(0), jnp.zeros((model.max_rows, 0))
    if model.num_each:
        there = Members(members, root_of(_block_precisions(model, data, mode, members)))
        skewness = _skewness(model, data, mode, there)
        log_scales = jnp.log(jnp.diagonal(there.root, axis1=-2, axis2=-1))
        rows = jnp.concatenate([members, log_scales, skewness], -1)
        rows = jnp.where(data.mask[:, None], rows, 0.0)
        weight = data.mask[:, None] / jnp.maximum(data.mask.sum(), 1)
        mean = jnp.sum(weight * rows, 0)
        spread = jnp.sqrt(jnp.sum(weight * (rows - mean) ** 2, 0))
        of_members = jnp.concatenate([mean, jnp.log(1e-3 + spread)])
    scales = jnp.log(jnp.diagonal(root))
    features = jnp.concatenate([mode, scales, shape, count, of_members])
    return Frame(mode, root, to_unit, members, skewness, _clean(features))


def members_at(model: PaddedModel, data: DataSet, at: Array, start: Array) -> Members:
    """The members' approximation given globals, a few Newton steps from where they are.

    Derivatives by the globals go through the last step alone: near a mode they are those of it.
    """
    near = _settled(model, data, at, start, _FEW_MEMBER_STEPS - 1)
    mode = _stepped(model, data, at, jax.lax.stop_gradient(near))
    return Members(mode, root_of(_block_precisions(model, data, at, mode)))


def _skewness(model: PaddedModel, data: DataSet, at: Array, members: Members) -> Array:
    """Third derivatives of the log density along each member's axes, ``[N, p]``."""
    axes = jnp.swapaxes(inverse_of(members.root), -1, -2)

    def third(direction: Array) -> Array:
        def slope(t: Array) -> Array:
            moved = members.mode + t * direction
            return jnp.sum(_gradient(model, data, at, moved) * direction, -1)

        def bend(t: Array) -> Array:
            return jax.jvp(slope, (t,), (jnp.ones(()),))[1]

        return jax.jvp(bend, (jnp.zeros(()),), (jnp.ones(()),))[1]

    return _clean(jnp.arcsinh(jax.vmap(third, in_axes=2, out_axes=1)(axes)))


def _maximised(
    model: PaddedModel, data: DataSet, mode: Array, members: Array
) -> tuple[Array, Array]:
    """The mode of M and the members' there, by damped Newton steps."""

    def unsettled(carry: tuple[Array, ...]) -> Array:
        *_, moved, count = carry
        return (moved > _ENOUGH) & (count < _MAX_ITERATIONS)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        mode, members, value, _, count = carry
        slope = jax.grad(_smooth_marginal, 2)(model, data, mode, members)
        to_unit = inverse_of(root_of(_precision(model, data, mode, members)))
        unit = to_unit @ _clean(slope)
        direction = to_unit.T @ unit
        tried = mode + jnp.array(_STEPS)[:, None] * direction
        settled = jax.vmap(lambda g: _settled(model, data, g, members, _FEW_MEMBER_STEPS))(tried)
        values = _or_least(jax.vmap(lambda g, m: _marginal(model, data, g, m))(tried, settled))
        best = jnp.argmax(values)
        better = values[best] > value + _LEAST_GAIN * jnp.maximum(1.0, jnp.abs(value))
        moved = jnp.where(better, jnp.array(_STEPS)[best] * jnp.linalg.norm(unit), 0.0)
        # Where no step is better the mode is reached, up to rounding.
        mode = jnp.where(better, tried[best], mode)
        members = jnp.where(better, settled[best], members)
        return mode, members, jnp.maximum(values[best], value), moved, count + 1

    start = _or_least(_marginal(model, data, mode, members))
    begin: tuple[Array, ...] = (mode, members, start, jnp.full((), jnp.inf), jnp.zeros((), int))
    mode, members, *_ = jax.lax.while_loop(unsettled, step, begin)
    return mode, members


def _laplace_mass(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Logarithm of what a mode holds by Laplace's method, up to a constant."""
    root = root_of(_precision(model, data, at, members))
    return _marginal(model, data, at, members) - log_diagonal(root)


def _marginal(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """M at globals, of members that are at their modes."""
    value = model.log_density((at, members), data)
    if not model.num_each:
        return value
    root = root_of(_block_precisions(model, data, at, members))
    return value - jnp.sum(jnp.where(data.mask, log_diagonal(root), 0.0))


def _smooth_marginal(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """M with the members' way along with the globals: one full Newton step from their modes.

    Its first derivatives are those of M, and the second those of its first term.
    """
    if not model.num_each:
        return _marginal(model, data, at, members)
    members = members + _newton(model, data, at, jax.lax.stop_gradient(members))
    return _marginal(model, data, at, members)


def _precision(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Less the Hessian of M, ``[g, g]``; the identity where it is no number."""
    hessian = jax.hessian(_smooth_marginal, 2)(model, data, at, members)
    fine = jnp.isfinite(hessian).all()
    return jnp.where(fine, -0.5 * (hessian + hessian.T), jnp.eye(model.num_globals))


def _settled(model: PaddedModel, data: DataSet, at: Array, members: Array, num_steps: int) -> Array:
    """Members after some Newton steps, each of the best of a few lengths."""
    if not model.num_each:
        return members

    def step(members: Array, _: None) -> tuple[Array, None]:
        return _stepped(model, data, at, members), None

    return jax.lax.scan(step, members, None, length=num_steps)[0]


def _stepped(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Members after one Newton step of the best length."""
    direction = _newton(model, data, at, members)
    tried = members + jnp.array(_STEPS)[:, None, None] * direction
    values = jax.lax.stop_gradient(jax.vmap(lambda m: model.log_density((at, m), data))(tried))
    return tried[jnp.argmax(_or_least(values))]


def _newton(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Newton's step of each member ``[N, p]``."""
    inverse = inverse_of(root_of(_block_precisions(model, data, at, members)))
    slope = _clean(_gradient(model, data, at, members))
    return jnp.einsum("jba,jbc,jc->ja", inverse, inverse, slope)


def _gradient(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    return jax.grad(lambda m: model.log_density((at, m), data))(members)


def _block_precisions(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Less the Hessian of each member by itself, ``[N, p, p]``; the identity of those not there."""
    gradient = functools.partial(_gradient, model, data, at)
    eye = jnp.eye(model.num_each)

    def product(axis: Array) -> Array:
        return jax.jvp(gradient, (members,), (jnp.broadcast_to(axis, members.shape),))[1]

    blocks = -jnp.moveaxis(jax.vmap(product)(eye), 0, 1)
    blocks = 0.5 * (blocks + jnp.swapaxes(blocks, -1, -2))
    usable = data.mask & jnp.isfinite(blocks).all((-1, -2))
    return jnp.where(usable[:, None, None], blocks, eye)


def _probes(size: int) -> np.ndarray:
    """Directions ``[k, g]`` in which M is compared with a quadratic."""
    if not size:
        return np.zeros((0, 0), np.float32)
    eye = _PROBE * np.eye(size)
    directions = [*eye, *-eye]
    if size <= _MAX_PAIRED:
        for i in range(size):
            for j in range(i):
                both = [(eye[i] + s * eye[j]) / np.sqrt(2.0) for s in (1.0, -1.0)]
                directions += [*both, *(-d for d in both)]
    return np.array(directions, np.float32).reshape(-1, size)


def _clean(x: Array) -> Array:
    """Numbers, none of them enormous."""
    return jnp.clip(jnp.nan_to_num(x, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)


def _or_least(values: Array) -> Array:
    return jnp.where(jnp.isnan(values), -jnp.inf, values)
