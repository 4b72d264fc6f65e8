"""Laplace's method on one data set: members given globals, and globals with members integrated out.

Members are independent given the globals: a few Newton steps give mode and curvature of each,
m(g) and R(g). With them integrated out (Tierney & Kadane, 1986; nested as in Rue, Martino & Chopin,
2009), M(g) = log ρ(g, m(g)) - Σ log |R(g)|.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.amortized.linear import inverse_of, log_diagonal, root_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.types import Array

STEPS = (1.0, 0.5, 0.2, 0.05)
"""Lengths that Newton's steps are tried at."""

MEMBER_STEPS = 6
"""Newton's steps of members where nothing is known of them."""

FEW_MEMBER_STEPS = 2
"""The same from their modes at the globals' mode."""


class Members(NamedTuple):
    """Laplace approximation of members given globals: all are independent.

    Attributes:
      mode: ``[N, p]``.
      root: ``[N, p, p]``, lower triangular, of the precision.
    """

    mode: Array
    root: Array


def members_at(model: PaddedModel, data: DataSet, at: Array, start: Array) -> Members:
    """The members' approximation given globals, a few Newton steps from where they are.

    Derivatives by the globals go through the last step alone: near a mode they are those of it.
    """
    near = settled(model, data, at, start, FEW_MEMBER_STEPS - 1)
    mode = stepped(model, data, at, jax.lax.stop_gradient(near))
    return Members(mode, root_of(block_precisions(model, data, at, mode)))


def log_mass(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Logarithm of what a mode holds by Laplace's method, up to a constant."""
    root = root_of(precision(model, data, at, members))
    return marginal(model, data, at, members) - log_diagonal(root)


def marginal(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """M at globals, of members that are at their modes."""
    value = model.log_density((at, members), data)
    if not model.num_each:
        return value
    root = root_of(block_precisions(model, data, at, members))
    return value - jnp.sum(jnp.where(data.mask, log_diagonal(root), 0.0))


def smooth_marginal(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """M with the members' way along with the globals: one full Newton step from their modes.

    Its first derivatives are those of M, and the second those of its first term.
    """
    if not model.num_each:
        return marginal(model, data, at, members)
    members = members + newton(model, data, at, jax.lax.stop_gradient(members))
    return marginal(model, data, at, members)


def precision(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Less the Hessian of M, ``[g, g]``; the identity where it is no number."""
    hessian = jax.hessian(smooth_marginal, 2)(model, data, at, members)
    fine = jnp.isfinite(hessian).all()
    return jnp.where(fine, -0.5 * (hessian + hessian.T), jnp.eye(model.num_globals))


def settled(model: PaddedModel, data: DataSet, at: Array, members: Array, num_steps: int) -> Array:
    """Members after some Newton steps, each of the best of a few lengths."""
    if not model.num_each:
        return members

    def step(members: Array, _: None) -> tuple[Array, None]:
        return stepped(model, data, at, members), None

    return jax.lax.scan(step, members, None, length=num_steps)[0]


def stepped(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Members after one Newton step of the best length."""
    direction = newton(model, data, at, members)
    tried = members + jnp.array(STEPS)[:, None, None] * direction
    values = jax.lax.stop_gradient(jax.vmap(lambda m: model.log_density((at, m), data))(tried))
    return tried[jnp.argmax(or_least(values))]


def newton(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Newton's step of each member ``[N, p]``."""
    inverse = inverse_of(root_of(block_precisions(model, data, at, members)))
    slope = clean(gradient(model, data, at, members))
    return jnp.einsum("jba,jbc,jc->ja", inverse, inverse, slope)


def gradient(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Gradient of the log density by the members, ``[N, p]``."""
    return jax.grad(lambda m: model.log_density((at, m), data))(members)


def block_precisions(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Less the Hessian of each member by itself, ``[N, p, p]``; the identity of those not there."""
    slope = functools.partial(gradient, model, data, at)
    eye = jnp.eye(model.num_each)

    def product(axis: Array) -> Array:
        return jax.jvp(slope, (members,), (jnp.broadcast_to(axis, members.shape),))[1]

    blocks = -jnp.moveaxis(jax.vmap(product)(eye), 0, 1)
    blocks = 0.5 * (blocks + jnp.swapaxes(blocks, -1, -2))
    usable = data.mask & jnp.isfinite(blocks).all((-1, -2))
    return jnp.where(usable[:, None, None], blocks, eye)


def clean(x: Array) -> Array:
    """Numbers, none of them enormous."""
    return jnp.clip(jnp.nan_to_num(x, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)


def or_least(values: Array) -> Array:
    """Values, with -inf for what is no number."""
    return jnp.where(jnp.isnan(values), -jnp.inf, values)
