"""Modes of one data set's posterior, the one of most mass first.

Few data lie in wait with modes that hold nothing, and some models have several that hold much
(components that change places). Searches begin at draws of the prior; what they end in is judged by
Laplace's method.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.amortized import laplace
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.linear import inverse_of, root_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.amortized.simulated import Pairs
from consistent_samplers.types import Array

MAX_MODES = 4
"""Modes of a data set that a map can have frames at."""

_MAX_ITERATIONS = 30
_LEAST_GAIN = 1e-6  # relative: below it is rounding
# Newton's step in standard deviations at a mode, and beyond which a search is stuck in an arm: that
# is no mode, whatever Laplace's method takes it to hold.
_ENOUGH, _STUCK = 1e-3, 0.5
# Starts that are climbed from, those of the highest density, for one mode and for several.
_NUM_CLIMBS, _MANY_CLIMBS = 4, 16
# Standard deviations, of the wider or the narrower, below which two modes are one.
_APART = 1.5
# Mass beyond the modes that have frames, on average over data sets, that a map may do without.
_MAX_LEFT = 0.005
_AT_ONCE = 64


class Modes(NamedTuple):
    """Modes of M with the members' there.

    Attributes:
      globals: ``[k, g]``.
      members: ``[k, N, p]``.
      log_mass: ``[k]``, by Laplace's method, up to a constant; -inf where there is no further mode,
        whose place the first one takes.
    """

    globals: Array
    members: Array
    log_mass: Array


def modes_of(
    model: PaddedModel, starts: tuple[Array, Array], data: DataSet, num_modes: int
) -> Modes:
    """Up to so many modes of one data set.

    Args:
      model: the model.
      starts: globals ``[s, g]`` to start from, of which a few are, and members ``[p]``.
      data: one data set.
      num_modes: how many.
    """
    at_globals, start_members = starts
    members = jnp.broadcast_to(start_members, (model.max_rows, model.num_each))
    settled = functools.partial(laplace.settled, model, data)
    tried = jax.vmap(lambda g: settled(g, members, laplace.MEMBER_STEPS))(at_globals)
    values = jax.vmap(lambda g, m: laplace.marginal(model, data, g, m))(at_globals, tried)
    num_climbs = _NUM_CLIMBS if num_modes == 1 else _MANY_CLIMBS
    if not model.num_globals:
        num_climbs = num_modes = 1
    highest = jax.lax.top_k(laplace.or_least(values), min(num_climbs, len(values)))[1]
    found, members = at_globals[highest], tried[highest]
    if not model.num_globals:
        return Modes(found, members, jnp.zeros(1))
    found, members = jax.vmap(lambda g, m: _maximised(model, data, g, m))(found, members)
    masses = laplace.or_least(
        jax.vmap(lambda g, m: laplace.log_mass(model, data, g, m))(found, members)
    )
    steps = jax.vmap(lambda g, m: jnp.linalg.norm(_newton(model, data, g, m)[1]))(found, members)
    is_mode = steps < _STUCK
    masses = jnp.where(is_mode | ~is_mode.any(), masses, -jnp.inf)
    if num_modes == 1:
        best = jnp.argmax(masses)[None]
        return Modes(found[best], members[best], jnp.zeros(1))
    order = jnp.argsort(-masses)
    again = _seen_before(model, data, found[order], members[order])
    masses = jnp.where(again, -jnp.inf, masses[order])
    largest, places = jax.lax.top_k(masses, num_modes)
    chosen = order[jnp.where(largest > -jnp.inf, places, 0)]
    largest = jnp.where(jnp.isfinite(largest[0]), largest, jnp.where(places == 0, 0.0, -jnp.inf))
    return Modes(found[chosen], members[chosen], largest)


class Survey(NamedTuple):
    """What simulated data sets tell of the posteriors of a family.

    Attributes:
      num_modes: how many modes' frames a map should have.
      away: ``[n, g]``, where the globals lie that each was simulated from, in standard deviations
        by Laplace's method from the mode closest to them.
    """

    num_modes: int
    away: np.ndarray


def survey(model: PaddedModel, starts: tuple[Array, Array], pairs: Pairs) -> Survey:
    """How many modes posteriors of a family have, and how what is true is spread around them.

    Args:
      model: the model.
      starts: as of `modes_of`.
      pairs: simulated.
    """
    if not model.num_globals:
        return Survey(1, np.zeros((len(pairs.globals), 0)))

    def one(pair: Pairs) -> tuple[Array, Array]:
        found = modes_of(model, starts, pair.data, MAX_MODES)

        def distance(at: Array, members: Array) -> Array:
            inverse = inverse_of(root_of(laplace.precision(model, pair.data, at, members)))
            return (pair.globals - at) / jnp.linalg.norm(inverse, axis=0)

        away = jax.vmap(distance)(found.globals, found.members)
        return found.log_mass, away[jnp.argmin(jnp.abs(away).max(-1))]

    log_mass, away = in_blocks(one, _AT_ONCE)(pairs)
    mass = np.exp(np.asarray(log_mass, float) - np.max(log_mass, 1, keepdims=True))
    share = np.cumsum(mass / mass.sum(1, keepdims=True), 1).mean(0)
    num_modes = int(np.argmax(share >= min(1.0 - _MAX_LEFT, share[-1]))) + 1
    return Survey(num_modes, np.asarray(away))


def _seen_before(model: PaddedModel, data: DataSet, at: Array, members: Array) -> Array:
    """Which modes ``[k]`` are one of those before them."""
    roots = jax.vmap(lambda g, m: root_of(laplace.precision(model, data, g, m)))(at, members)
    apart = at[:, None, :] - at[None, :, :]
    away = jnp.linalg.norm(jnp.einsum("iba,ijb->ija", roots, apart), axis=-1)
    same = jnp.maximum(away, away.T) < _APART
    return jnp.tril(same, -1).any(1)


def _maximised(
    model: PaddedModel, data: DataSet, mode: Array, members: Array
) -> tuple[Array, Array]:
    """The mode of M and the members' there, by damped Newton steps."""

    def unsettled(carry: tuple[Array, ...]) -> Array:
        *_, moved, count = carry
        return (moved > _ENOUGH) & (count < _MAX_ITERATIONS)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        mode, members, value, _, count = carry
        direction, unit = _newton(model, data, mode, members)
        tried = mode + jnp.array(laplace.STEPS)[:, None] * direction
        settled = jax.vmap(
            lambda g: laplace.settled(model, data, g, members, laplace.FEW_MEMBER_STEPS)
        )(tried)
        values = laplace.or_least(
            jax.vmap(lambda g, m: laplace.marginal(model, data, g, m))(tried, settled)
        )
        best = jnp.argmax(values)
        better = values[best] > value + _LEAST_GAIN * jnp.maximum(1.0, jnp.abs(value))
        moved = jnp.where(better, jnp.array(laplace.STEPS)[best] * jnp.linalg.norm(unit), 0.0)
        # Where no step is better the mode is reached, up to rounding.
        mode = jnp.where(better, tried[best], mode)
        members = jnp.where(better, settled[best], members)
        return mode, members, jnp.maximum(values[best], value), moved, count + 1

    start = laplace.or_least(laplace.marginal(model, data, mode, members))
    begin: tuple[Array, ...] = (mode, members, start, jnp.full((), jnp.inf), jnp.zeros((), int))
    mode, members, *_ = jax.lax.while_loop(unsettled, step, begin)
    return mode, members


def _newton(model: PaddedModel, data: DataSet, at: Array, members: Array) -> tuple[Array, Array]:
    """Newton's step of the globals, and the same in standard deviations: ``[g]`` each."""
    slope = jax.grad(laplace.smooth_marginal, 2)(model, data, at, members)
    to_unit = inverse_of(root_of(laplace.precision(model, data, at, members)))
    unit = to_unit @ laplace.clean(slope)
    return to_unit.T @ unit, unit
