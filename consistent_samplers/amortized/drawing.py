"""Draws of a conditional map with exact weights, and its density.

Where data sets of a family have several modes, the map is a mixture of itself in the frames of all
of them: a draw picks a frame, and its density is that of the mixture, whichever was picked.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from consistent_samplers.amortized import conditional
from consistent_samplers.amortized.conditional import Fitted
from consistent_samplers.amortized.frames import Frame
from consistent_samplers.amortized.laplace import Members, members_at
from consistent_samplers.amortized.linear import log_diagonal
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.types import Array, PRNGKey


def drawn(
    rng_key: PRNGKey,
    model: PaddedModel,
    fitted: Fitted,
    frames: Frame,
    data: DataSet,
    num_samples: int,
    *,
    score: bool = True,
) -> tuple[Array, Array, Array]:
    """Draws of one data set's posterior with exact log weights.

    Args:
      rng_key: key.
      model: the model.
      fitted: the map.
      frames: of the data set, one a mode.
      data: the data set.
      num_samples: number of draws.
      score: whether derivatives by the map's parameters are those of the log weights, or of the
        path alone.

    Returns:
      Globals ``[n, g]``, members ``[n, N, p]``, and log weights ``[n]``.
    """
    made, params, standard = fitted
    scored = fitted if score else fitted._replace(params=jax.lax.stop_gradient(params))
    contexts, scored_contexts = fitted.contexts(frames), scored.contexts(frames)
    log_shares = made.log_shares(scored.params, scored_contexts, frames)

    def one(key: PRNGKey) -> tuple[Array, Array, Array]:
        mode = jnp.zeros((), int)
        if made.num_modes > 1:
            key, key_mode = jax.random.split(key)
            mode = jax.random.categorical(key_mode, log_shares)
        own = jax.tree.map(lambda x: x[mode], (frames, contexts, scored_contexts))
        frame, context, scored_context = own
        z, z_members = made.latent(key, model.max_rows)
        u, log_q_globals = made.draw_globals(params, context, z)
        at = conditional.to_globals(frame, u)
        there = v = jnp.zeros((model.max_rows, 0))
        members, log_q_members = Members(v, v), jnp.zeros(model.max_rows)
        if made.num_each:
            members = members_at(model, data, at, frame.members)
            seen = conditional.member_features(members, frame.skewness, standard)
            v, log_q_members = made.draw_members(params, context, u, seen, z_members)
            there = conditional.to_members(members, v)
            there = jnp.where(data.mask[:, None], there, 0.0)
        if made.num_modes == 1 and score:  # what it was drawn by, at half the cost
            log_q = _in_frame(frame, members, log_q_globals, log_q_members, data.mask)
        elif made.num_modes == 1:
            log_q = _log_prob_in(scored, frame, scored_context, members, u, v, data.mask)
        else:
            inside = in_frames(model, frames, data, at, there)
            log_q = log_prob(scored, frames, *inside, data.mask)
        return at, there, model.log_density((at, there), data) - log_q

    return jax.vmap(one)(jax.random.split(rng_key, num_samples))


def in_frames(
    model: PaddedModel, frames: Frame, data: DataSet, at: Array, there: Array
) -> tuple[Members, Array, Array]:
    """A position ``[g]``, ``[N, p]`` in the units of all frames of a data set.

    Returns:
      The members' approximations, globals ``[k, g]`` and members ``[k, N, p]``.
    """

    def inside(frame: Frame) -> tuple[Members, Array, Array]:
        members = members_at(model, data, at, frame.members)
        v = conditional.from_members(members, there)
        return members, conditional.from_globals(frame, at), v

    return jax.vmap(inside)(frames)


def log_prob(
    fitted: Fitted, frames: Frame, members: Members, u: Array, v: Array, mask: Array
) -> Array:
    """Log density ``[]`` of the map.

    Args:
      fitted: the map.
      frames: of the data set, one a mode.
      members: the members' approximation in each, see `in_frames`.
      u: globals in the units of each, ``[k, g]``.
      v: members in the units of each, ``[k, N, p]``.
      mask: which members are there, ``[N]``.
    """
    contexts = fitted.contexts(frames)
    log_shares = fitted.map.log_shares(fitted.params, contexts, frames)
    in_each = jax.vmap(_log_prob_in, in_axes=(None, 0, 0, 0, 0, 0, None))
    return logsumexp(log_shares + in_each(fitted, frames, contexts, members, u, v, mask))


def _log_prob_in(
    fitted: Fitted,
    frame: Frame,
    context: Array,
    members: Members,
    u: Array,
    v: Array,
    mask: Array,
) -> Array:
    """Log density ``[]`` of the map in one frame."""
    made, params, standard = fitted
    of_globals, of_members = made.log_prob_globals(params, context, u), jnp.zeros(len(mask))
    if made.num_each:
        seen = conditional.member_features(members, frame.skewness, standard)
        of_members = made.log_prob_members(params, context, u, seen, v)
    return _in_frame(frame, members, of_globals, of_members, mask)


def _in_frame(
    frame: Frame, members: Members, of_globals: Array, of_members: Array, mask: Array
) -> Array:
    """Log density ``[]`` of a position, of those in the units of a frame: globals', members'."""
    value = of_globals + log_diagonal(frame.root)
    if members.root.size:
        value += jnp.sum(jnp.where(mask, of_members + log_diagonal(members.root), 0.0))
    return value
