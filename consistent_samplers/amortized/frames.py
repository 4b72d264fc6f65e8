"""Frames: the Laplace approximation of each data set's own posterior at its modes.

Globals' frame is that of M (`laplace`), with members integrated out; members have theirs given the
globals. Where a posterior is Gaussian, the frames are it.

What log ρ and M are beyond a quadratic, at some points along the axes of the frame, tells a network
the skewness and the tails of this posterior.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.amortized import laplace
from consistent_samplers.amortized.laplace import Members
from consistent_samplers.amortized.linear import inverse_of, root_of
from consistent_samplers.amortized.modes import modes_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.types import Array

_PROBE = 2.0  # standard deviations
# Globals up to which pairs of axes are looked along as well.
_MAX_PAIRED = 10


class Frame(NamedTuple):
    """Laplace approximation of the globals at a mode, and what it tells of the posterior.

    Attributes:
      mode: ``[g]``.
      root: ``[g, g]``, lower triangular, of the precision.
      to_unit: ``[g, g]``, its inverse.
      members: ``[N, p]``, the members' modes there.
      skewness: ``[N, p]``, third derivatives there along the members' axes, arcsinh of them.
      features: ``[f]``, raw.
      log_mass: ``[]``, of the mode, up to a constant; -inf where it is another's copy.
    """

    mode: Array
    root: Array
    to_unit: Array
    members: Array
    skewness: Array
    features: Array
    log_mass: Array


def frames_of(
    model: PaddedModel, starts: tuple[Array, Array], data: DataSet, num_modes: int
) -> Frame:
    """The frames of one data set, with a leading axis of modes; the first has most mass.

    Args:
      model: the model.
      starts: globals ``[s, g]`` to start from, of which a few are, and members ``[p]``.
      data: one data set.
      num_modes: how many.
    """
    modes = modes_of(model, starts, data, num_modes)
    return jax.vmap(lambda *at: _frame_at(model, data, *at))(*modes)


def _frame_at(
    model: PaddedModel, data: DataSet, mode: Array, members: Array, log_mass: Array
) -> Frame:
    """The frame of one mode."""
    root = root_of(laplace.precision(model, data, mode, members))
    to_unit = inverse_of(root)

    def beyond(direction: Array) -> Array:
        """What M is above a quadratic, some standard deviations along a direction."""
        at = mode + to_unit.T @ direction
        there = laplace.settled(model, data, at, members, laplace.FEW_MEMBER_STEPS)
        value = laplace.marginal(model, data, at, there)
        return value - top + 0.5 * direction @ direction

    top = laplace.marginal(model, data, mode, members)
    probes = jax.vmap(beyond)(jnp.asarray(_probes(model.num_globals)))
    lower = root / jnp.diagonal(root)[None, :]
    below = lower[np.tril_indices(model.num_globals, -1)]
    shape = jnp.concatenate([jnp.arcsinh(probes), jnp.arcsinh(below)])
    count = jnp.log(jnp.sum(data.mask).astype(shape.dtype))[None]
    # Of all members together; each has its own beside them.
    of_members, skewness = jnp.zeros(0), jnp.zeros((model.max_rows, 0))
    if model.num_each:
        there = Members(members, root_of(laplace.block_precisions(model, data, mode, members)))
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
    return Frame(mode, root, to_unit, members, skewness, laplace.clean(features), log_mass)


def _skewness(model: PaddedModel, data: DataSet, at: Array, members: Members) -> Array:
    """Third derivatives of the log density along each member's axes, ``[N, p]``."""
    axes = jnp.swapaxes(inverse_of(members.root), -1, -2)

    def third(direction: Array) -> Array:
        def slope(t: Array) -> Array:
            moved = members.mode + t * direction
            return jnp.sum(laplace.gradient(model, data, at, moved) * direction, -1)

        def bend(t: Array) -> Array:
            return jax.jvp(slope, (t,), (jnp.ones(()),))[1]

        return jax.jvp(bend, (jnp.zeros(()),), (jnp.ones(()),))[1]

    return laplace.clean(jnp.arcsinh(jax.vmap(third, in_axes=2, out_axes=1)(axes)))


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
