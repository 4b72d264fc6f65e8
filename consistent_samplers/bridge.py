"""Log Z between two sets of draws whose density ratio is known: bridge sampling."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_TOLERANCE = 1e-10
# Effective draws of either kind where the two overlap, below which their spread tells no error: a
# single one has an error of one, wherever it is.
_FEWEST_DRAWS = 4


class Bridge(NamedTuple):
    """What two sets of draws say of log Z.

    Attributes:
      log_z: in nats.
      log_z_stderr: its standard error, of many nats where the two hardly overlap.

    Example:
      >>> from consistent_samplers.bridge import Bridge
      >>> print(Bridge(-1.0, 0.01))
      log Z -1.0000 ± 0.0100, by bridge sampling
    """

    log_z: float
    log_z_stderr: float

    def __str__(self) -> str:
        return f"log Z {self.log_z:.4f} ± {self.log_z_stderr:.4f}, by bridge sampling"


def bridge(log_weight: ArrayLike, target_log_weight: ArrayLike) -> Bridge:
    """Log Z by the optimal bridge between a sampler and its target.

    With w = ρ / q, and s1 and s2 the shares of effective draws of target and sampler, Z solves

        Z = E_q[ w / (s1 w + s2 Z) ] / E_p[ 1 / (s1 w + s2 Z) ]

    (Meng & Wong, 1996, equation 4.1). Unlike the mean weight it has a small error where draws of q
    hardly reach the tails of p, which p's own draws show. The standard error is that of
    Frühwirth-Schnatter (2004, equation 18), chains counted by their effective draws; or, where the
    two overlap in fewer than four of them, half the distance between what either tells of log Z
    alone, from below and from above.

    Args:
      log_weight: ``[n]``, log ρ / q at independent draws of the sampler; -inf outside of the
        support.
      target_log_weight: ``[num_chains, m]``, the same at draws of the target: chains, or one row of
        independent draws.

    Raises:
      ValueError: fewer than four draws of a kind, or none with a finite weight.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bridge import bridge
      >>> rng = np.random.default_rng(0)
      >>> q, p = rng.normal(size=4_000), 1.0 + rng.normal(size=(1, 4_000))
      >>> found = bridge(q - 0.5 + 3.0, p - 0.5 + 3.0)  # N(0, 1) and e³ N(1, 1)
      >>> bool(abs(found.log_z - 3.0) < 4.0 * found.log_z_stderr < 0.2)
      True
    """
    own = np.asarray(log_weight, np.float64)
    own = np.where(np.isnan(own), -np.inf, own)
    theirs = np.atleast_2d(np.asarray(target_log_weight, np.float64))
    if own.ndim != 1 or own.size < 4 or theirs.shape[1] < 4:
        raise ValueError(
            f"A bridge takes [n] and [num_chains, m] log weights, at least four of each, got "
            f"{own.shape} and {theirs.shape}."
        )
    if not np.isfinite(theirs).all() or not np.isfinite(own).any():
        raise ValueError("Draws of the target must have finite weights, and some of the sampler.")
    from scipy.optimize import brentq  # half a second to import, which only bridges take

    centre = float(np.median(theirs))
    own, theirs = own - centre, theirs - centre
    effective = effective_draws(np.exp(-np.logaddexp(theirs, 0.0)))
    share = effective / (effective + own.size)
    log_share, log_rest = np.log(share), np.log1p(-share)

    # On log scale: where the two hardly overlap, weights are apart by thousands of nats.
    def terms(log_z: float) -> tuple[np.ndarray, np.ndarray]:
        of_own = own - np.logaddexp(log_share + own, log_rest + log_z)
        return of_own, -np.logaddexp(log_share + theirs, log_rest + log_z)

    def excess(log_z: float) -> float:
        of_own, of_theirs = map(_log_mean, terms(log_z))
        return of_own - of_theirs - log_z

    # It falls from +inf to -inf, where the equation's own iteration may go round in circles.
    far = 1.0
    while excess(-far) < 0.0 or excess(far) > 0.0:
        far *= 2.0
    log_z = float(brentq(excess, -far, far, xtol=_TOLERANCE))
    of_own, of_theirs = (np.exp(of - of.max()) for of in terms(log_z))
    variances = (
        of_own.var() / of_own.mean() ** 2 / own.size,
        of_theirs.var() / of_theirs.mean() ** 2 / effective_draws(of_theirs),
    )
    stderr = float(np.sqrt(sum(variances)))
    if max(variances) > 1.0 / _FEWEST_DRAWS:
        apart = -_log_mean(-theirs) - _log_mean(own)
        stderr = max(stderr, 0.5 * abs(apart))
    return Bridge(log_z + centre, stderr)


def _log_mean(values: np.ndarray) -> float:
    return float(np.logaddexp.reduce(values, axis=None)) - float(np.log(values.size))


def effective_draws(values: np.ndarray) -> float:
    """Effective number of draws ``[num_chains, m]`` for the mean of a function of them.

    Args:
      values: ``[num_chains, m]``, the function at the draws of chains.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bridge import effective_draws
      >>> values = np.random.default_rng(0).normal(size=(4, 500))
      >>> effective_draws(values) > 1_500 > effective_draws(np.cumsum(values, axis=1))
      True
    """
    from numpyro.diagnostics import effective_sample_size  # a second, which only chains take

    if values.std() <= 1e-12 * abs(values.mean()):
        return float(values.size)
    return float(np.clip(effective_sample_size(values), 1.0, values.size))
