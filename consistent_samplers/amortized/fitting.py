"""Training: maximum likelihood on simulated pairs, then the path gradient on exact densities.

The first needs no density: frames of all pairs are computed once. It minimises the forward
Kullback-Leibler divergence, averaged over data sets, and covers mass. The second draws from the
map and minimises the reverse divergence on the densities of the same data sets; the score of the
map's own density is left out (Roeder, Wu & Duvenaud, 2017), so that its variance vanishes where the
map is right.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers import progress
from consistent_samplers.amortized import conditional, resuming
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.conditional import Fitted, Standard
from consistent_samplers.amortized.frames import Frame, frame_of, members_at
from consistent_samplers.amortized.linear import log_diagonal
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.amortized.simulated import Pairs
from consistent_samplers.compilation import jit
from consistent_samplers.types import Array, Params, PRNGKey

NUM_STARTS = 32
"""Prior draws that searches for the mode may begin from, beside their mean."""

_CHUNK = 100
_FRAMES_AT_ONCE = 128
_BATCH = 256
_PATH_BATCH, _PATH_DRAWS = 64, 4
_LEARNING_RATE, _PATH_LEARNING_RATE = 3e-3, 1e-3
_LEAST_SPREAD = 1e-3
_FAR_BELOW = 5.0  # nats
# Data sets whose frame is nowhere near teach nothing but to be wide.
_FARTHEST = 30.0


class Prepared(NamedTuple):
    """Simulated data sets with their frames, and the pairs in units of these.

    Attributes:
      data: ``n`` data sets.
      frame: of each.
      members: their approximation at the globals that were simulated; ``[n, 0, ...]`` without.
      u: ``[n, g]``.
      v: ``[n, N, p]``.
    """

    data: DataSet
    frame: Frame
    members: Any
    u: Array
    v: Any


def prepare(model: PaddedModel, starts: tuple[Array, Array], pairs: Pairs) -> Prepared:
    """Frames of simulated data sets, and the pairs in them."""

    def one(pair: Pairs) -> Prepared:
        frame = frame_of(model, starts, pair.data)
        u = conditional.from_globals(frame, pair.globals)
        members = members_at(model, pair.data, pair.globals, frame.members)
        v = conditional.from_members(members, pair.members)
        return Prepared(pair.data, frame, members, u, v)

    found: Prepared = in_blocks(one, _FRAMES_AT_ONCE)(pairs)
    return found


def near(prepared: Prepared) -> np.ndarray:
    """Whether the values that each data set was simulated from lie near its frame: ``[n]`` bool."""
    far = np.abs(prepared.u).max(1, initial=0.0)
    if prepared.v.size:
        there = prepared.data.mask[:, :, None]
        far = np.maximum(far, np.where(there, np.abs(prepared.v), 0.0).max((1, 2)))
    return np.asarray(far < _FARTHEST)


def starts_of(pairs: Pairs) -> tuple[Array, Array]:
    """Where searches for modes begin: globals, some draws of the prior and their mean; members."""
    some = np.concatenate([pairs.globals.mean(0, keepdims=True), pairs.globals[:NUM_STARTS]])
    there = pairs.members[pairs.data.mask]
    return jnp.asarray(some), jnp.asarray(there.mean(0))


def standard_of(prepared: Prepared) -> Standard:
    """How features are spread over simulated data sets."""

    def spread(x: np.ndarray) -> Array:
        if not x.size:
            return jnp.stack([jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])])
        low, middle, high = np.quantile(x, (0.16, 0.5, 0.84), axis=0)
        return jnp.asarray(np.stack([middle, np.maximum(0.5 * (high - low), _LEAST_SPREAD)]))

    flat = jax.tree.map(_flat, (prepared.members, prepared.frame.skewness))
    raw = np.asarray(conditional.raw_member_features(*flat))
    there = np.asarray(prepared.data.mask).reshape(-1)
    return Standard(spread(np.asarray(prepared.frame.features)), spread(raw[there]))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


class Trained(NamedTuple):
    """What a stage of training has reached.

    Attributes:
      fitted: the map.
      losses: mean loss of each chunk of iterations.
      interrupted: whether Ctrl-C cut it short.
    """

    fitted: Fitted
    losses: list[float]
    interrupted: bool = False


def by_likelihood(
    rng_key: PRNGKey,
    fitted: Fitted,
    prepared: Prepared,
    num_iterations: int,
    folder: Path | None = None,
) -> Trained:
    """The map of the greatest likelihood on the pairs; ``folder`` keeps how far it came."""

    def loss(fitted: Fitted, key: PRNGKey, prepared: Prepared) -> Array:
        index = jax.random.randint(key, (_BATCH,), 0, len(prepared.u))
        batch = jax.tree.map(lambda x: x[index], prepared)
        return -jnp.mean(jax.vmap(lambda pair: log_prob(fitted, pair))(batch))

    # Of data sets nothing but the mask is needed.
    data = prepared.data._replace(arrays=[], observed={})
    given = prepared._replace(data=data)
    settings = num_iterations, _LEARNING_RATE, "likelihood", folder
    return _minimised(rng_key, loss, fitted, given, *settings)


def log_prob(fitted: Fitted, pair: Prepared) -> Array:
    """Log density ``[]`` of the map at what a data set was simulated from."""
    frame, mask, (made, params, standard) = pair.frame, pair.data.mask, fitted
    context = fitted.context(frame)
    value = made.log_prob_globals(params, context, pair.u) + log_diagonal(frame.root)
    if made.num_each:
        seen = conditional.member_features(pair.members, frame.skewness, standard)
        each = made.log_prob_members(params, context, pair.u, seen, pair.v)
        value += jnp.sum(jnp.where(mask, each + log_diagonal(pair.members.root), 0.0))
    return value


def by_path_gradient(
    rng_key: PRNGKey,
    model: PaddedModel,
    fitted: Fitted,
    prepared: Prepared,
    num_iterations: int,
    folder: Path | None = None,
) -> Trained:
    """The map of the greatest ELBO over the data sets; ``folder`` keeps how far it came."""

    def loss(fitted: Fitted, key: PRNGKey, prepared: Prepared) -> Array:
        key_index, key_draws = jax.random.split(key)
        index = jax.random.randint(key_index, (_PATH_BATCH,), 0, len(prepared.u))
        batch = jax.tree.map(lambda x: x[index], (prepared.data, prepared.frame))

        def one(key: PRNGKey, data: DataSet, frame: Frame) -> Array:
            _, _, log_weight = drawn(key, model, fitted, frame, data, _PATH_DRAWS, score=False)
            return jnp.mean(_tamed(log_weight))

        return -jnp.mean(jax.vmap(one)(jax.random.split(key_draws, _PATH_BATCH), *batch))

    given = prepared._replace(members=None, v=None)
    settings = num_iterations, _PATH_LEARNING_RATE, "density", folder
    return _minimised(rng_key, loss, fitted, given, *settings)


def _tamed(log_weight: Array) -> Array:
    """Log weights with the gradients of those far below the others turned down."""
    fine = jnp.isfinite(log_weight)
    largest = jnp.max(jnp.where(fine, log_weight, -jnp.inf))
    known = jnp.where(fine, log_weight, jnp.where(fine.any(), largest, 0.0))
    below = jax.lax.stop_gradient(jnp.max(known) - known)
    part = 1.0 / (1.0 + jnp.maximum(below - _FAR_BELOW, 0.0) / _FAR_BELOW)
    return part * known + jax.lax.stop_gradient((1.0 - part) * jnp.max(known))


def drawn(
    rng_key: PRNGKey,
    model: PaddedModel,
    fitted: Fitted,
    frame: Frame,
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
      frame: of the data set.
      data: the data set.
      num_samples: number of draws.
      score: whether derivatives by the map's parameters are those of the log weights, or of the
        path alone.

    Returns:
      Globals ``[n, g]``, members ``[n, N, p]``, and log weights ``[n]``.
    """
    made, params, standard = fitted
    scored = params if score else jax.lax.stop_gradient(params)
    context = fitted.context(frame)
    scored_context = fitted._replace(params=scored).context(frame)

    def one(key: PRNGKey) -> tuple[Array, Array, Array]:
        z, z_members = made.latent(key, model.max_rows)
        u = made.draw_globals(params, context, z)
        at, log_det = conditional.to_globals(frame, u)
        log_q = made.log_prob_globals(scored, scored_context, u) - log_det
        there = jnp.zeros((model.max_rows, 0))
        if made.num_each:
            members = members_at(model, data, at, frame.members)
            seen = conditional.member_features(members, frame.skewness, standard)
            v = made.draw_members(params, context, u, seen, z_members)
            there, log_dets = conditional.to_members(members, v)
            each = made.log_prob_members(scored, scored_context, u, seen, v) - log_dets
            log_q += jnp.sum(jnp.where(data.mask, each, 0.0))
            there = jnp.where(data.mask[:, None], there, 0.0)
        return at, there, model.log_density((at, there), data) - log_q

    return jax.vmap(one)(jax.random.split(rng_key, num_samples))


def _minimised(
    rng_key: PRNGKey,
    loss: Callable[[Fitted, PRNGKey, Prepared], Array],
    fitted: Fitted,
    prepared: Prepared,
    num_iterations: int,
    learning_rate: float,
    what: str,
    folder: Path | None,
) -> Trained:
    """The map after Adam on an annealed learning rate, gone on with from where a folder has it."""
    schedule = optax.cosine_decay_schedule(learning_rate, max(num_iterations, 1))
    optimizer = optax.apply_if_finite(
        optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)), num_iterations
    )

    def step(carry: Any, index: Array) -> Any:
        params, state, (standard, prepared) = carry

        def of(params: Params) -> Array:
            key = jax.random.fold_in(rng_key, index)
            return loss(Fitted(fitted.map, params, standard), key, prepared)

        value, grads = jax.value_and_grad(of)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, (standard, prepared)), value

    chunk = max(1, min(_CHUNK, num_iterations))
    run = jit(lambda carry, begin: jax.lax.scan(step, carry, begin + jnp.arange(chunk)))
    given = jax.device_put((fitted.standard, prepared))
    reached = fitted.params, optimizer.init(fitted.params)
    losses: list[float] = []
    kept: resuming.Folder | None = None
    if folder is not None:
        training = rng_key, num_iterations, (reached, prepared.u)
        kept = resuming.Folder(folder / what, *training)
        reached, losses = kept.read(reached)
    begins = range(len(losses) * chunk, num_iterations, chunk)
    interrupted = False
    try:
        for begin in progress.counted(what, begins, len(begins)):
            (*now, _), values = run((*reached, given), begin)
            reached, losses = tuple(now), [*losses, float(jnp.nanmean(values))]
            if kept is not None:
                kept.write_if_due(reached, losses)
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(
            f"Training by {what} was interrupted after {len(losses) * chunk} of {num_iterations} "
            "iterations: the family goes by what it had reached.",
            RuntimeWarning,
            stacklevel=5,
        )
    if kept is not None:
        kept.write(reached, losses)
    return Trained(fitted._replace(params=reached[0]), losses, interrupted)
