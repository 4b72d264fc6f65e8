"""Evidence of any number of draws in the memory of one chunk of them.

Of each chunk a few sums and its largest weights are kept: what log Z, the ELBO, their standard
errors, the effective samples and the Pareto tail are made of. The sums are added up on the host in
float64, so that their error does not grow with the number of chunks.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import estimate, pareto
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.estimate import Evidence
from consistent_samplers.types import Array, Draws, PRNGKey

CHUNK_SIZE = 2**16
"""Draws held at once."""


class _Sums(NamedTuple):
    """Sums over a chunk: weights and their squares relative to the largest, logs of the others."""

    num: Any
    largest: Any
    weights: Any
    squares: Any
    num_zero: Any
    mean: Any
    correction: Any  # of the mean, for what float32 rounds off
    deviation: Any
    num_folded: Any
    num_undefined: Any


def stream_evidence(
    rng_key: PRNGKey,
    sample: Callable[[PRNGKey, int], Draws],
    num_samples: int,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Evidence:
    """Estimates of log Z and the ELBO from draws made chunk by chunk, and what they are worth.

    The same figures as ``cs.evidence`` of all the draws at once, to rounding; the round-trip error
    is that of the first chunk.

    Args:
      rng_key: key; chunk i is drawn with ``fold_in(rng_key, i)``.
      sample: weighted draws ``(rng_key, num_samples) -> Draws``, such as a sampler's.
      num_samples: number of draws.
      chunk_size: draws held at once; the last chunk may be smaller.

    Raises:
      TypeError: ``rng_key`` is not a single key.
      ValueError: fewer than 2 draws, or weights that cannot be used (see `evidence`).

    Example:
      >>> import jax, consistent_samplers as cs
      >>> def sample(rng_key, num_samples):
      ...     log_weight = 0.3 * jax.random.normal(rng_key, (num_samples,))
      ...     return cs.Draws(log_weight[:, None], log_weight, bound="lower")
      >>> evidence = cs.streaming.stream_evidence(jax.random.key(0), sample, num_samples=100_000)
      >>> round(float(evidence.log_z), 2), evidence.num_samples
      (0.04, 100000)
    """
    check_key(rng_key)
    check_integer("num_samples", num_samples, 2)
    check_integer("chunk_size", chunk_size)
    num_top = pareto.tail_size(num_samples) + 1
    top = np.zeros(0)
    sums = []
    for i in range(-(-num_samples // chunk_size)):
        num = min(chunk_size, num_samples - i * chunk_size)
        draws = sample(jax.random.fold_in(rng_key, i), num)
        if i == 0:
            bound, (folded, round_trip_error) = draws.bound, estimate.flow_summary(draws.flow)
        folds = jnp.zeros((), bool) if draws.flow is None else draws.flow.folded
        density = jnp.zeros(()) if draws.log_density is None else draws.log_density
        of_chunk, largest = _summarise(_weights_of(draws), folds, density, min(num_top, num))
        # One transfer, after which nothing of the chunk is held.
        sums.append(jax.tree.map(lambda x: float(np.asarray(x)), of_chunk))
        top = np.sort(np.concatenate([top, np.asarray(largest, np.float64)]))[-num_top:]
    total = _Sums(*np.asarray(sums, np.float64).T)
    evidence = _combine(total, top, bound)
    if folded is not None:
        folded = jnp.asarray(total.num_folded.sum() / num_samples)
    return dataclasses.replace(
        evidence,
        folded=folded,
        round_trip_error=round_trip_error,
        outside=jnp.asarray(total.num_zero.sum() / num_samples),
        undefined=jnp.asarray(total.num_undefined.sum() / num_samples),
    )


def _weights_of(draws: Draws) -> Array:
    """The log weights ``[n]``; that all of one chunk are zero is no error yet."""
    if draws.log_weight is not None and bool(jnp.all(draws.log_weight == -jnp.inf)):
        return draws.log_weight
    return estimate.checked_log_weight(draws)


@functools.partial(jax.jit, static_argnums=3)
def _summarise(
    log_weight: Array, folded: Array, log_density: Array, num_top: int
) -> tuple[_Sums, Array]:
    """Sums over a chunk, and its largest log weights ``[num_top]``."""
    zero = log_weight == -jnp.inf
    largest = jnp.max(log_weight)
    relative = jnp.exp(log_weight - jnp.where(jnp.isneginf(largest), 0.0, largest))
    num_positive = jnp.maximum(jnp.sum(~zero), 1)
    logs = jnp.where(zero, 0.0, log_weight)
    mean = logs.sum() / num_positive
    deviation = jnp.where(zero, 0.0, logs - mean)
    # The mean of what is left takes the rounding of the first one out.
    correction = deviation.sum() / num_positive
    sums = _Sums(
        log_weight.shape[0],
        largest,
        relative.sum(),
        (relative**2).sum(),
        zero.sum(),
        mean,
        correction,
        (jnp.where(zero, 0.0, deviation - correction) ** 2).sum(),
        folded.sum(),
        jnp.isnan(log_density).sum(),
    )
    return sums, jax.lax.top_k(log_weight, num_top)[0]


def _combine(sums: _Sums, top: np.ndarray, bound: Any) -> Evidence:
    """Evidence of the weights from the sums of all chunks, each ``[num_chunks]``, in float64."""
    num = int(sums.num.sum())
    largest = sums.largest.max()
    if largest == -np.inf:
        raise ValueError(
            "Every weight is zero: the target's log_density is -inf at every draw. Check its "
            "support, or fit the base to the target first."
        )
    share = np.exp(sums.largest - largest)
    weights = float((share * sums.weights).sum())
    squares = float((share**2 * sums.squares).sum())
    ess = min(weights**2 / (num * squares), 1.0)
    relative_variance = max(num * squares / weights**2 - 1.0, 0.0) * num / (num - 1)
    if sums.num_zero.sum():
        elbo, elbo_stderr = -np.inf, np.inf
    else:
        means = sums.mean + sums.correction
        elbo = float((sums.num * means).sum() / num)
        deviation = float((sums.deviation + sums.num * (means - elbo) ** 2).sum())
        elbo_stderr = math.sqrt(deviation / (num - 1) / num)
    k, log_beyond = pareto.judge_tail(jnp.asarray(top[1:]), jnp.asarray(top[0]))
    unseen = math.exp(float(log_beyond) - largest) / weights
    log_z = jnp.asarray(largest + math.log(weights / num))
    half_step = 0.5 * float(jnp.finfo(log_z.dtype).eps * log_z)
    stderr = math.hypot(math.sqrt(relative_variance / num), 2.0 * unseen, half_step)
    return Evidence(
        log_z=log_z,
        log_z_stderr=jnp.asarray(stderr),
        elbo=jnp.asarray(elbo),
        elbo_stderr=jnp.asarray(elbo_stderr),
        ess=jnp.asarray(ess),
        pareto_k=k,
        unseen=jnp.asarray(unseen),
        bound=bound,
        num_samples=num,
    )
