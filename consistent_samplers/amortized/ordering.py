"""In which order globals are drawn: those first on which the spread of others depends.

A map's coordinate can be wide where one before it is large, and not where one after it will be: of
a scale and the coefficients whose noise it is, the scale has to come first.
"""

import numpy as np
from scipy.stats import rankdata

# Standard deviations from a mode beyond which a value belongs to another one, and how close to it
# all values count alike.
_FARTHEST, _CLOSE = 8.0, 0.1
# Squared correlations, in terms of those by chance, that tell nothing.
_BY_CHANCE = 9.0


def ordered(away: np.ndarray) -> tuple[int, ...]:
    """The order in which globals are kept, which are drawn from the last one to the first.

    For each two globals i and j, the rank correlation of i with the size of j tells whether the
    spread of j grows or shrinks with i. Of those that are left the one is drawn next that is driven
    least by the others; where nothing is driven, the order is that of the model.

    Args:
      away: ``[n, g]``, values that data sets were simulated from, see `modes.Survey`.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.amortized.ordering import ordered
      >>> rng = np.random.default_rng(0)
      >>> log_scale = rng.normal(size=500)
      >>> ordered(np.stack([log_scale, np.exp(log_scale) * rng.normal(size=500)], axis=1))
      (1, 0)
    """
    known = away[(np.abs(away) < _FARTHEST).all(1)]
    num, size = known.shape
    if size < 2 or num < size:
        return tuple(range(size))
    ranks = rankdata(known, axis=0)
    of_sizes = rankdata(np.maximum(np.abs(known), _CLOSE), axis=0)
    both = np.corrcoef(ranks, of_sizes, rowvar=False)[:size, size:]
    told = np.maximum(np.nan_to_num(both) ** 2 - _BY_CHANCE / num, 0.0)
    np.fill_diagonal(told, 0.0)
    drawn: list[int] = []
    left = np.arange(size)
    while len(left):
        driven = told[np.ix_(left, left)].sum(0)
        next_one = np.flatnonzero(driven == driven.min())[-1]
        drawn.append(int(left[next_one]))
        left = np.delete(left, next_one)
    return tuple(reversed(drawn))
