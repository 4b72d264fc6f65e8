"""Which coordinates the hidden tail of the weights could change, and by how much."""

import numpy as np
from jax.typing import ArrayLike

from consistent_samplers.pareto import tail_size

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the quantiles that are looked at."""

MAX_SHIFT = 0.1
"""Robust standard deviations by which a quantile may move before its coordinate is named."""

_IQR = 1.349  # of a standard normal


def quantile_shifts(values: ArrayLike, log_weight: ArrayLike, hidden: float) -> np.ndarray:
    """How far the quantiles of each coordinate would move if the hidden mass came: ``[dim]``.

    In robust standard deviations (IQR / 1.349), the largest over `PROBABILITIES` and over two
    guesses at where the hidden mass lies, which no draw tells: where the largest weights are, those
    that Pareto's distribution is fitted to, or half of it beyond either end of the coordinate.

    Args:
      values: of the draws, ``[n, dim]``.
      log_weight: of the draws, ``[n]``.
      hidden: share of Z; `Evidence.unseen`, or more to be on the safe side.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> z = np.random.default_rng(0).normal(size=(10_000, 2))
      >>> log_weight = np.maximum(4.0 * z[:, 0] - 10.0, 0.0)  # heavy to the right of one of them
      >>> cs.diagnostics.quantile_shifts(z, log_weight, hidden=0.02).round(2).tolist()
      [0.13, 0.1]
    """
    values = np.asarray(values, np.float64)
    log_weight = np.asarray(log_weight, np.float64)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    # At least one: of few draws no tail is fitted.
    largest = np.argsort(weight)[-max(tail_size(len(weight)), 1) :]
    moved = weight.copy()
    moved[largest] += hidden * weight[largest] / weight[largest].sum()
    found = []
    for column in values.T:
        order = np.argsort(column)
        ends = np.zeros(len(weight))
        ends[order[[0, -1]]] = 0.5 * hidden
        before, *after = (
            np.interp(
                PROBABILITIES, (np.cumsum(w[order]) - 0.5 * w[order]) / w.sum(), column[order]
            )
            for w in (weight, moved, weight + ends)
        )
        spread = max((before[3] - before[1]) / _IQR, np.finfo(np.float32).tiny)
        found.append(np.abs(np.array(after) - before).max() / spread)
    return np.array(found)
