"""Draws at all scales around a Gaussian: is there mass farther out than its own draws come?

Mass that has no optimum of its own, far outside of a mode and around it, is met neither by
optimisers nor by particles that set out near the mode.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from scipy.special import chdtri, logsumexp, ndtri

from consistent_samplers.bases import iterating
from consistent_samplers.targets import evaluation, rounding
from consistent_samplers.targets.base import Target
from consistent_samplers.types import PRNGKey

_NUM_DRAWS = 4_096
_WIDEST = 1_000.0
# Logarithm of the ratio of neighbouring scales, at most, and in standard deviations of log radius.
_MOST_APART, _APART = math.log(2.0), 1.5
_ERRORS = 3.0
_MANY_FOR_EACH = 50  # points for each dimension, that tell a covariance as it is
_NUM_NEAR = 64  # points that tell what rounding adds to all
_LEAST = 0.01  # part of Z that counts


class Farther(NamedTuple):
    """Mass outside of where a Gaussian's draws come.

    Attributes:
      share: its part of Z, relative to the log Z that was given; may exceed 1.
      error: standard error of the share.
      loc: ``[dim]``, mean of that mass, or of the Gaussian without a covariance.
      covariance: ``[dim, dim]``, of that mass; None for a diagonal L, or where it is not there.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bases.scales import Farther
      >>> Farther(0.4, 0.02, np.zeros(3), None).is_there
      True
    """

    share: float
    error: float
    loc: np.ndarray
    covariance: np.ndarray | None

    @property
    def is_there(self) -> bool:
        """Whether the share, less three standard errors, is more than 1 %."""
        return self.share - _ERRORS * self.error > _LEAST


def mass_farther(
    rng_key: PRNGKey,
    target: Target,
    loc: np.ndarray,
    factor: np.ndarray,
    log_z: float,
    position: np.ndarray | None = None,
) -> Farther:
    """What mass lies farther out than draws of a Gaussian come, by importance sampling.

    Half of the proposals come from N(loc, s² L Lᵀ), scales s from 1 to 1,000 so near to each other
    that one of them meets any shell; half from Gaussians that are wider by s along one column of L.
    Weights are those of the mixture of all. Where it misses what is there, the standard error says
    so.

    Args:
      rng_key: key.
      target: the target.
      loc: ``[dim]``, the mean.
      factor: ``[dim, dim]``, L, or ``[dim]``, its diagonal.
      log_z: log Z, in nats, as far as it is known.
      position: ``[n, dim]``, draws: only mass farther out than all of them counts, by its distance
        or along a column of L; 4,096 draws of the Gaussian if None.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, consistent_samplers as cs
      >>> from consistent_samplers.bases.scales import mass_farther
      >>> def log_density(x):  # half of the mass at ten times the scale
      ...     near, far = (jax.scipy.stats.norm.logpdf(x[0], 0.0, s) for s in (1.0, 10.0))
      ...     return jnp.logaddexp(near, far)
      >>> target = cs.Target(log_density, dim=1)
      >>> mass_farther(jax.random.key(0), target, np.zeros(1), np.ones(1), np.log(1.1)).is_there
      True
    """
    dim = target.dim
    loc, factor = np.asarray(loc, np.float64), np.asarray(factor, np.float64)
    if position is None:
        radius, width = (
            math.sqrt(chdtri(dim, 1.0 / _NUM_DRAWS)),
            np.array(-ndtri(0.5 / (_NUM_DRAWS * dim))),
        )
    else:
        z = _whitened(factor, np.asarray(position, np.float64) - loc)
        radius, width = float(np.linalg.norm(z, axis=1).max()), np.abs(z).max(0)
    apart = min(_MOST_APART, _APART / math.sqrt(dim))
    scales = np.exp(np.arange(0.0, math.log(_WIDEST), apart))
    along = np.exp(np.arange(_MOST_APART, math.log(_WIDEST), _MOST_APART))
    z = np.array(iterating.normals(rng_key, _NUM_DRAWS, dim), np.float64)
    half, index = _NUM_DRAWS // 2, np.arange(_NUM_DRAWS // 2)
    z[:half] *= np.resize(scales, half)[:, None]
    z[half + index, index % dim] *= along[(index // dim) % len(along)]
    away = factor * z if factor.ndim == 1 else z @ factor.T
    points = (loc + away).astype(jnp.result_type(float))
    z = _whitened(factor, points - loc)  # what is evaluated, after rounding
    log_prob = _log_prob(z, scales, along)
    log_prob -= np.log(np.diagonal(factor) if factor.ndim == 2 else factor).sum()
    found = evaluation.values(target.log_density, points)
    # Far out the digits that are lost do not matter; what all points have in common does.
    distance = np.linalg.norm(z, axis=1)
    near = np.argsort(distance)[:_NUM_NEAR]
    shift = rounding.constant(target.log_density, points[near], found[near], warn=False)
    values = np.asarray(found, np.float64) + shift
    log_weight = np.where(np.isfinite(values), values, -np.inf) - log_prob - log_z
    is_beyond = (distance > radius) | (np.abs(z) > width).any(1)
    beyond = np.where(is_beyond, np.exp(np.minimum(log_weight, 600.0)), 0.0)
    error = float(beyond.std() / math.sqrt(_NUM_DRAWS))
    farther = Farther(float(beyond.mean()), error, loc, None)
    if factor.ndim == 1 or not farther.is_there:
        return farther
    # As many of them as are effective, by their weights.
    num = max(int(beyond.sum() ** 2 / (beyond**2).sum()), 2)
    places = (np.arange(num) + 0.5) / num * beyond.sum()
    chosen = np.searchsorted(np.cumsum(beyond), places)
    covariance = factor @ robust_covariance(z[chosen]) @ factor.T
    return farther._replace(
        loc=points[chosen].mean(0, dtype=np.float64), covariance=np.asarray(covariance)
    )


def robust_covariance(points: np.ndarray) -> np.ndarray:
    """Covariance ``[dim, dim]`` of points ``[n, dim]`` of like scales.

    Where they are few for so many dimensions it is drawn towards a multiple of the identity (Ledoit
    & Wolf, 2004).

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bases.scales import robust_covariance
      >>> x = np.random.default_rng(0).normal(size=(100, 50))
      >>> bool(np.linalg.cond(robust_covariance(x)) < 5.0 < np.linalg.cond(np.cov(x.T)))
      True
    """
    num, dim = points.shape
    if num > _MANY_FOR_EACH * dim:
        return np.asarray(np.cov(points.T)).reshape(dim, dim)
    from sklearn.covariance import ledoit_wolf  # half a second

    found: np.ndarray = ledoit_wolf(points)[0]
    return found


def _log_prob(z: np.ndarray, scales: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Log density ``[n]`` of the proposals at whitened points ``[n, dim]``."""
    dim = z.shape[1]
    square = (z**2).sum(1)
    wide = -0.5 * square[:, None] / scales**2 - dim * np.log(scales)
    of_wide = logsumexp(wide, axis=1) - math.log(len(scales))
    # Of one column: a scale at a time, as all of them at once would take much memory.
    of_columns = [
        logsumexp(0.5 * z**2 * (1.0 - scale**-2), axis=1) - math.log(scale) for scale in along
    ]
    of_column = logsumexp(of_columns, axis=0) - 0.5 * square - math.log(len(along) * dim)
    both = np.logaddexp(of_wide, of_column) - math.log(2.0)
    return np.asarray(both - 0.5 * dim * math.log(2.0 * math.pi))


def _whitened(factor: np.ndarray, away: np.ndarray) -> np.ndarray:
    if factor.ndim == 1:
        return away / factor
    found: np.ndarray = scipy.linalg.solve_triangular(factor, away.T, lower=True).T
    return found
