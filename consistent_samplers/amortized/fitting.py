"""Training: maximum likelihood on simulated pairs, then with the path gradient on exact densities.

The first needs no density: frames of all pairs are computed once. It minimises the forward
Kullback-Leibler divergence, averaged over data sets, and covers mass. The second draws from the
map and minimises the reverse divergence on the densities of the same data sets; the score of the
map's own density is left out (Roeder, Wu & Duvenaud, 2017), so that its variance vanishes where the
map is right.
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers import progress
from consistent_samplers.amortized import conditional, drawing, resuming
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.conditional import Fitted, Standard
from consistent_samplers.amortized.drawing import drawn
from consistent_samplers.amortized.frames import Frame, frames_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.amortized.simulated import Pairs
from consistent_samplers.compilation import jit
from consistent_samplers.types import Array, Params, PRNGKey

NUM_STARTS = 32
"""Prior draws that searches for the mode may begin from, beside their mean."""

OWN_ITERATIONS = 300
"""Iterations of the path gradient on one data set alone."""

_CHUNK = 100
_FRAMES_AT_ONCE = 128
_BATCH = 256
_PATH_BATCH, _PATH_DRAWS = 64, 4
# How much the pairs' likelihood weighs beside the ELBO: enough to hold the arms. Its gradient is
# noise where the map is right, and the path gradient's is not.
_OF_PAIRS = 0.2
_OWN_DRAWS = 128
_LEARNING_RATE, _PATH_LEARNING_RATE, _OWN_LEARNING_RATE = 3e-3, 1e-3, 1e-3
_LEAST_SPREAD = 1e-3
_FAR_BELOW = 5.0  # nats
# Data sets whose frame is nowhere near teach nothing but to be wide.
_FARTHEST = 30.0


class Prepared(NamedTuple):
    """Simulated data sets with their frames, and the pairs in units of these.

    Attributes:
      data: ``n`` data sets.
      frames: of each, at k modes.
      members: their approximation at the globals that were simulated, in each.
      u: ``[n, k, g]``.
      v: ``[n, k, N, p]``.
    """

    data: DataSet
    frames: Frame
    members: Any
    u: Array
    v: Any


def prepare(
    model: PaddedModel, starts: tuple[Array, Array], pairs: Pairs, num_modes: int
) -> Prepared:
    """Frames of simulated data sets at so many modes, and the pairs in them."""

    def one(pair: Pairs) -> Prepared:
        frames = frames_of(model, starts, pair.data, num_modes)
        inside = drawing.in_frames(model, frames, pair.data, pair.globals, pair.members)
        return Prepared(pair.data, frames, *inside)

    found: Prepared = in_blocks(one, _FRAMES_AT_ONCE)(pairs)
    return found


def near(prepared: Prepared) -> np.ndarray:
    """Whether what each data set was simulated from lies near one of its frames: ``[n]`` bool."""
    far = np.abs(prepared.u).max(2, initial=0.0)
    if prepared.v.size:
        there = prepared.data.mask[:, None, :, None]
        far = np.maximum(far, np.where(there, np.abs(prepared.v), 0.0).max((2, 3)))
    return np.asarray(far.min(1) < _FARTHEST)


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

    def flat(x: Array, num_axes: int) -> np.ndarray:
        return np.asarray(x).reshape(math.prod(x.shape[:num_axes]), *x.shape[num_axes:])

    seen = prepared.members, prepared.frames.skewness
    raw = np.asarray(conditional.raw_member_features(*jax.tree.map(lambda x: flat(x, 3), seen)))
    num_modes = prepared.u.shape[1]
    there = np.repeat(prepared.data.mask[:, None], num_modes, 1).reshape(-1)
    return Standard(spread(flat(prepared.frames.features, 2)), spread(raw[there]))


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
    # Of data sets nothing but the mask is needed.
    data = prepared.data._replace(arrays=[], observed={})
    given = prepared._replace(data=data)
    settings = num_iterations, _LEARNING_RATE, "likelihood", folder
    return _minimised(rng_key, less_likelihood, fitted, given, *settings)


def less_likelihood(fitted: Fitted, rng_key: PRNGKey, prepared: Prepared) -> Array:
    """Less the mean log density of the map at some of the pairs."""
    index = jax.random.randint(rng_key, (_BATCH,), 0, len(prepared.u))
    batch = jax.tree.map(lambda x: x[index], prepared)
    return -jnp.mean(jax.vmap(lambda pair: log_prob(fitted, pair))(batch))


def log_prob(fitted: Fitted, pair: Prepared) -> Array:
    """Log density ``[]`` of the map at what a data set was simulated from."""
    return drawing.log_prob(fitted, pair.frames, pair.members, pair.u, pair.v, pair.data.mask)


def by_path_gradient(
    rng_key: PRNGKey,
    model: PaddedModel,
    fitted: Fitted,
    prepared: Prepared,
    num_iterations: int,
    folder: Path | None = None,
) -> Trained:
    """The map of the greatest ELBO and some likelihood; ``folder`` keeps how far it came.

    The ELBO over the data sets alone would draw the map in from long arms of posteriors, where its
    draws are too few to count: pairs lie there as often as there is mass.
    """

    def loss(fitted: Fitted, key: PRNGKey, prepared: Prepared) -> Array:
        key_index, key_draws, key_pairs = jax.random.split(key, 3)
        index = jax.random.randint(key_index, (_PATH_BATCH,), 0, len(prepared.u))
        batch = jax.tree.map(lambda x: x[index], (prepared.data, prepared.frames))

        def one(key: PRNGKey, data: DataSet, frames: Frame) -> Array:
            _, _, log_weight = drawn(key, model, fitted, frames, data, _PATH_DRAWS, score=False)
            return jnp.mean(_tamed(log_weight))

        elbos = jax.vmap(one)(jax.random.split(key_draws, _PATH_BATCH), *batch)
        return _OF_PAIRS * less_likelihood(fitted, key_pairs, prepared) - jnp.mean(elbos)

    settings = num_iterations, _PATH_LEARNING_RATE, "density", folder
    return _minimised(rng_key, loss, fitted, prepared, *settings)


def of_one(
    rng_key: PRNGKey,
    model: PaddedModel,
    fitted: Fitted,
    frames: Frame,
    data: DataSet,
    num_iterations: int,
) -> Fitted:
    """The map after further iterations of the path gradient on one data set alone."""
    optimizer = _optimizer(_OWN_LEARNING_RATE, num_iterations)

    def loss(params: Params, key: PRNGKey) -> Array:
        now = fitted._replace(params=params)
        return -jnp.mean(_tamed(drawn(key, model, now, frames, data, _OWN_DRAWS, score=False)[2]))

    def step(carry: Any, key: PRNGKey) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    begin = fitted.params, optimizer.init(fitted.params)
    (params, _), _ = jax.lax.scan(step, begin, jax.random.split(rng_key, num_iterations))
    return fitted._replace(params=params)


def _tamed(log_weight: Array) -> Array:
    """Log weights with the gradients of those far below the others turned down."""
    fine = jnp.isfinite(log_weight)
    largest = jnp.max(jnp.where(fine, log_weight, -jnp.inf))
    known = jnp.where(fine, log_weight, jnp.where(fine.any(), largest, 0.0))
    below = jax.lax.stop_gradient(jnp.max(known) - known)
    part = 1.0 / (1.0 + jnp.maximum(below - _FAR_BELOW, 0.0) / _FAR_BELOW)
    return part * known + jax.lax.stop_gradient((1.0 - part) * jnp.max(known))


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
    optimizer = _optimizer(learning_rate, num_iterations)

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


def _optimizer(learning_rate: float, num_iterations: int) -> optax.GradientTransformation:
    """Adam on an annealed learning rate, which leaves out gradients that are no numbers."""
    schedule = optax.cosine_decay_schedule(learning_rate, max(num_iterations, 1))
    clipped = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    return optax.apply_if_finite(clipped, num_iterations)
