"""The mean-field base: a Gaussian with independent coordinates, which costs O(dim)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases import iterating
from consistent_samplers.bases.base import OneFrame
from consistent_samplers.bases.laplace import check_starts, usable_everywhere
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_BATCH = 128  # draws of an iteration, in antithetic pairs
_START_SCALE = 0.3
_RATE, _LAST_RATE = 0.2, 0.01  # of the mean, in standard deviations
# Part of the way that a step moves the precisions, at first and later; bounds of a step's factor.
_FIRST_SHARE, _SHARE, _NUM_FAST = 0.5, 0.05, 100
_LEAST_FACTOR, _MOST_FACTOR = -1.0, 4.0
_DECAY, _SQUARE_DECAY = 0.9, 0.95  # of the averages of gradients and of their squares


@flax.struct.dataclass
class DiagonalBase(OneFrame):
    """N(m, diag(s²)) on R^dim.

    Attributes:
      loc: ``[dim]``, the mean m.
      scale: ``[dim]``, positive standard deviations s.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> base = cs.bases.DiagonalBase(loc=jnp.ones(2), scale=jnp.array([1.0, 2.0]))
      >>> base.sample(jax.random.key(0), 3).shape, base.whiten(jnp.array([1.0, 5.0])).tolist()
      ((3, 2), [0.0, 2.0])
    """

    loc: Array
    scale: Array

    def sample(self, rng_key: PRNGKey, num_samples: int) -> Array:
        """Draws ``[num_samples, dim]``."""
        return self.unwhiten(jax.random.normal(rng_key, (num_samples, self.dim)))

    def log_prob(self, x: Array) -> Array:
        """Log density at ``x``: ``[..., dim] -> [...]``."""
        return jax.scipy.stats.norm.logpdf(x, self.loc, self.scale).sum(-1)

    def unwhiten(self, z: Array, component: tuple[()] = ()) -> Array:
        """The point x = m + s z: ``[dim] -> [dim]``."""
        return self.loc + self.scale * z

    def whiten(self, x: Array, component: tuple[()] = ()) -> Array:
        """The whitened point z = (x - m) / s: ``[dim] -> [dim]``."""
        return (x - self.loc) / self.scale

    def log_correction(self, x: Array, component: tuple[()] = ()) -> Array:
        """What the frame adds to a log density: the sum of log s, ``[]``."""
        return jnp.log(self.scale).sum()


def fit_diagonal(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_iterations: int = 400,
) -> DiagonalBase:
    """A Gaussian with independent coordinates, fitted by reparametrised reverse KL.

    The precisions follow the mean curvature along each coordinate (Khan & Rue, 2023), and the mean
    takes Adam's steps in units of the standard deviations, so that scales do not matter.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]``, of which the best one is the start; the origin if
        None.
      num_iterations: iterations of 128 gradients each.

    Raises:
      ValueError: the density is NaN, +inf or zero at every start.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 2.0) ** 2) / 18.0, dim=1)
      >>> base = cs.bases.fit_diagonal(jax.random.key(0), target)
      >>> base.loc.round(1).tolist(), base.scale.round(1).tolist()
      ([2.0], [3.0])
    """
    dim, dtype = target.dim, jnp.result_type(float)
    given = np.zeros((1, dim)) if init_position is None else np.atleast_2d(init_position)
    values = check_starts(target, given.astype(dtype), usable_everywhere)
    mean = given[np.argmax(np.where(np.isfinite(values), values, -np.inf))].astype(np.float64)
    log_scale = np.full(dim, np.log(_START_SCALE))
    average, square = np.zeros(dim), np.zeros(dim)
    kept: tuple[Any, Any] = (mean, log_scale)
    half = iterating.normals(rng_key, num_iterations * _BATCH // 2, dim)
    half = half.reshape(num_iterations, _BATCH // 2, dim).astype(np.float64)
    for i, z in enumerate(half):
        scale = np.exp(log_scale)
        points = np.concatenate([mean + scale * z, mean - scale * z]).astype(dtype)
        _, grads = evaluation.values_and_grads(target.log_density, points)
        above, below = np.asarray(grads, np.float64).reshape(2, *z.shape)
        usable = np.isfinite(above).all(1) & np.isfinite(below).all(1)
        if not usable.any():  # too wide
            log_scale = log_scale - 0.5
            continue
        z, above, below = z[usable], above[usable], below[usable]
        slope = scale * 0.5 * (above + below).mean(0)
        # The mean curvature times the variance: 1 at the optimum.
        bend = -(z * (above - below)).mean(0) * 0.5 * scale
        share = max(_SHARE, _FIRST_SHARE * (1.0 - i / _NUM_FAST))
        log_scale = log_scale - 0.5 * share * np.clip(bend - 1.0, _LEAST_FACTOR, _MOST_FACTOR)
        average = _DECAY * average + (1.0 - _DECAY) * slope
        square = _SQUARE_DECAY * square + (1.0 - _SQUARE_DECAY) * slope**2
        typical = np.sqrt(square / (1.0 - _SQUARE_DECAY ** (i + 1))) + 1e-12
        part = 0.5 * (1.0 + np.cos(np.pi * i / num_iterations))
        rate = _LAST_RATE + (_RATE - _LAST_RATE) * part
        # In units of the standard deviation that the curvature asks for, where that is smaller.
        unit = scale / np.sqrt(np.maximum(bend, 1.0))
        mean = mean + rate * unit * average / (1.0 - _DECAY ** (i + 1)) / typical
        share = 2.0 / (i - num_iterations // 2 + 2.0) if i > num_iterations // 2 else 1.0
        kept = tuple(
            (1.0 - share) * old + share * new
            for old, new in zip(kept, (mean, log_scale), strict=True)
        )
    return DiagonalBase(jnp.asarray(kept[0], dtype), jnp.asarray(np.exp(kept[1]), dtype))
