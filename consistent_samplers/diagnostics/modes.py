"""Which of a target's known modes the draws reach, and in which shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.diagnostics.distances import check_finite, squared_distances
from consistent_samplers.estimate import checked_log_weight
from consistent_samplers.types import Array, Draws

MISSED_SHARE = 0.1
"""Part of a mode's true weight below whose share of the draws the mode is called missed."""

_NO_MODE = "they belong to no mode"


class ModeCoverage(NamedTuple):
    """How draws spread over K known modes.

    Attributes:
      entropic_coverage: ``[]``, entropy of ``share`` over log K: 1 for even shares (and for
        K = 1), 0 where all draws lie in one mode.
      jensen_shannon: ``[]``, Jensen-Shannon divergence between ``share`` and the true weights in
        bits: 0 for the true shares, 1 where the draws lie in none of the modes that count.
      num_missed: ``[]``, modes with no draw or too small a share of their (positive) true weight.
      share: ``[K]``, of the draws or of their weight, adds up to 1.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.diagnostics.mode_coverage(jnp.array([0, 0, 1, 1]), 4).share.tolist()
      [0.5, 0.5, 0.0, 0.0]
    """

    entropic_coverage: Array
    jensen_shannon: Array
    num_missed: Array
    share: Array


def mode_coverage(
    position: Array,
    modes: Array | int,
    *,
    mode_weight: Array | None = None,
    log_weight: Array | None = None,
    missed_share: float = MISSED_SHARE,
) -> ModeCoverage:
    """Entropic mode coverage and missed modes (Blessing et al. 2024, arXiv:2406.07423).

    Quote the entropic coverage where the modes weigh the same, the Jensen-Shannon divergence where
    they do not. Every draw counts for one mode: the nearest centre, or the label given. Shares are
    noisy: of n exact draws a mode of true weight w gets less than a tenth of w with probability
    5e-5 at n w = 10, and 5e-8 at n w = 20.

    Args:
      position: draws ``[n, dim]`` if ``modes`` are centres, else labels ``[n]`` from 0 to K - 1
        (see `sign_modes`).
      modes: ``[K, dim]`` centres, or the number of modes K.
      mode_weight: ``[K]`` true weights of the modes, up to a factor; equal if None.
      log_weight: ``[n]`` log importance weights of the draws; equal if None.
      missed_share: part of its true weight, from 0 to 1, below which a mode is called missed; at 0
        only modes without any draw are.

    Raises:
      ValueError: wrong shapes, an argument out of range, or (unless traced) points not finite,
        labels out of range or weights that cannot be used.
      TypeError: labels that are not integers.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> centres = jnp.array([[-5.0], [0.0], [5.0]])
      >>> coverage = cs.diagnostics.mode_coverage(jnp.array([[-5.1], [0.1]]), centres)
      >>> int(coverage.num_missed), round(float(coverage.entropic_coverage), 3)  # log 2 / log 3
      (1, 0.631)
    """
    position = jnp.asarray(position)
    if isinstance(modes, int | np.integer):
        labels, num_modes = _checked_labels(position, int(modes)), int(modes)
    else:
        labels, num_modes = nearest_mode(position, modes), jnp.shape(modes)[0]
    if labels.shape[0] == 0:
        raise ValueError("mode_coverage needs at least one draw, got none.")
    if not 0 <= missed_share <= 1:
        raise ValueError(f"missed_share must be from 0 to 1, got {missed_share!r}.")
    if log_weight is None:
        log_weight = jnp.zeros(labels.shape[0])
    else:
        log_weight = checked_log_weight(Draws(position=labels, log_weight=log_weight))
    if mode_weight is None:
        mode_weight = jnp.ones(num_modes)
    mode_weight = _checked_mode_weight(mode_weight, num_modes)
    return _coverage(labels, log_weight, mode_weight, missed_share)


def nearest_mode(position: Array, centres: Array) -> Array:
    """Index ``[n]`` of the centre ``[K, dim]`` nearest to each position ``[n, dim]``.

    Raises:
      ValueError: wrong shapes, or (unless traced) points not finite.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> position, centres = jnp.array([[0.9], [-3.0]]), jnp.array([[-1.0], [1.0]])
      >>> cs.diagnostics.nearest_mode(position, centres).tolist()
      [1, 0]
    """
    position, centres = jnp.asarray(position), jnp.asarray(centres)
    shapes = f"{position.shape} and {centres.shape}"
    if position.ndim != 2 or centres.ndim != 2 or position.shape[1] != centres.shape[1]:
        raise ValueError(
            f"Draws of shape [n, dim] and centres of shape [K, dim] are needed, got {shapes}. For "
            "labels, give the number of modes instead of centres."
        )
    if min(position.shape[0], centres.shape[0]) < 1:
        raise ValueError(f"At least one draw and one centre are needed, got shapes {shapes}.")
    check_finite(position, "draws", _NO_MODE)
    check_finite(centres, "centres", _NO_MODE)
    return _nearest(position, centres)


def sign_modes(position: Array, num_wells: int) -> Array:
    """Mode labels ``[n]`` of ``position [n, dim]`` with double wells in ``num_wells`` coordinates.

    These are the first ones, at most 20 (a million modes). Bit i of a label is 1 where coordinate i
    is positive: integers from 0 to ``2**num_wells`` - 1, for `mode_coverage`.

    Raises:
      ValueError: a wrong shape, ``num_wells`` out of range, or (unless traced) points not finite.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.diagnostics.sign_modes(jnp.array([[2.0, -2.0], [2.0, 2.0]]), num_wells=2).tolist()
      [1, 3]
    """
    position = jnp.asarray(position)
    if position.ndim != 2:
        raise ValueError(f"position must have shape [n, dim], got {position.shape}.")
    most = min(position.shape[1], 20)
    if not 1 <= num_wells <= most:
        raise ValueError(f"num_wells must be from 1 to {most}, got {num_wells}. Give fewer wells.")
    wells = position[:, :num_wells]
    check_finite(wells, "draws", _NO_MODE)
    return jnp.sum((wells > 0) * 2 ** jnp.arange(num_wells)[None, :], axis=1)


def _checked_labels(labels: Array, num_modes: int) -> Array:
    """Labels ``[n]`` that are integers in range (the range is not checked while tracing)."""
    if num_modes < 1:
        raise ValueError(f"The number of modes must be at least 1, got {num_modes}.")
    if labels.ndim != 1:
        raise ValueError(
            f"With a number of modes, labels of shape [n] are needed, got {labels.shape}. For "
            "draws of shape [n, dim], give centres [K, dim] instead."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"Labels must be integers, got {labels.dtype}.")
    if isinstance(labels, jax.core.Tracer) or labels.shape[0] == 0:
        return labels
    low, high = int(jnp.min(labels)), int(jnp.max(labels))
    if low < 0 or high >= num_modes:
        raise ValueError(
            f"Labels must be from 0 to {num_modes - 1}, got {low} to {high}. Drop draws that "
            "belong to no mode, or raise the number of modes."
        )
    return labels


def _checked_mode_weight(mode_weight: Array, num_modes: int) -> Array:
    """True weights ``[K]`` that can be normalised (values are not checked while tracing)."""
    mode_weight = jnp.asarray(mode_weight)
    shape = mode_weight.shape
    if shape != (num_modes,):
        raise ValueError(f"mode_weight must have one entry a mode, {num_modes}: got shape {shape}.")
    if isinstance(mode_weight, jax.core.Tracer):
        return mode_weight
    values = np.asarray(mode_weight)
    if not (np.all(np.isfinite(values)) and np.all(values >= 0) and np.any(values > 0)):
        raise ValueError(
            "mode_weight must be finite, not negative and not all zero. Give probabilities, not "
            "their logarithms."
        )
    return mode_weight


@jax.jit
def _nearest(position: Array, centres: Array) -> Array:
    return jnp.argmin(squared_distances(position, centres), axis=1)


@jax.jit
def _coverage(
    labels: Array, log_weight: Array, mode_weight: Array, missed_share: float | Array
) -> ModeCoverage:
    """``mode_coverage`` of checked arrays."""
    num_modes = mode_weight.shape[0]
    weight = jnp.exp(log_weight - jnp.max(log_weight))
    total = jnp.zeros(num_modes, weight.dtype).at[labels].add(weight)
    share = total / jnp.sum(total)
    truth = mode_weight / jnp.sum(mode_weight)
    entr = jax.scipy.special.entr
    entropy, of_truth = jnp.sum(entr(share)), jnp.sum(entr(truth))
    divergence = jnp.sum(entr(0.5 * (share + truth))) - 0.5 * (entropy + of_truth)
    missed = (truth > 0) & ((share == 0) | (share < missed_share * truth))
    return ModeCoverage(
        entropic_coverage=entropy / jnp.log(num_modes) if num_modes > 1 else jnp.ones(()),
        # Rounding may leave a little less than nothing of three entropies.
        jensen_shannon=jnp.maximum(divergence, 0.0) / jnp.log(2.0),
        num_missed=jnp.sum(missed),
        share=share,
    )
