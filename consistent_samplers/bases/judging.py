"""How well a base fits a target, from draws of its own."""

import math
from typing import NamedTuple

import jax
import numpy as np

from consistent_samplers.bases.base import Base
from consistent_samplers.kernels import kernel
from consistent_samplers.targets import rounding
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_NUM_JUDGE_DRAWS = 4_096
_BATCH_SIZE = 512  # draws scored at once: a component of each takes memory


class Fit(NamedTuple):
    """How well a base fits a target.

    Attributes:
      elbo: of the base alone, in nats.
      elbo_stderr: its standard error.
      ess: share of effective draws of its importance weights.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.bases.Fit(elbo=-1.2, elbo_stderr=0.1, ess=0.8).elbo
      -1.2
    """

    elbo: float
    elbo_stderr: float
    ess: float


def judge(rng_key: PRNGKey, target: Target, base: Base) -> Fit:
    """How well a base fits, on draws of its own; an ELBO of -inf where it cannot be told.

    Args:
      rng_key: key of the draws.
      target: the target.
      base: the base.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -0.5 * x @ x, dim=1)
      >>> fit = cs.bases.judge(jax.random.key(0), target, cs.bases.standard_normal(1))
      >>> round(fit.elbo, 3), round(fit.ess, 3)  # the base is the target: log Z, and all effective
      (0.919, 1.0)
    """
    x, log_prob = _draws(rng_key, base)
    value = np.asarray(rounding.values(target.log_density, x), np.float64)
    log_weight = value - np.asarray(log_prob, np.float64)
    if not np.isfinite(log_weight).all():
        # Mass outside the support: no finite ELBO.
        return Fit(-math.inf, math.inf, 0.0)
    weight = np.exp(log_weight - log_weight.max())
    stderr = log_weight.std() / math.sqrt(_NUM_JUDGE_DRAWS)
    ess = weight.sum() ** 2 / (weight**2).sum() / _NUM_JUDGE_DRAWS
    return Fit(float(log_weight.mean()), float(stderr), float(ess))


@kernel(effort="least")
def _draws(rng_key: PRNGKey, base: Base) -> tuple[Array, Array]:
    """Draws of a base and their log densities under it."""
    x = base.sample(rng_key, _NUM_JUDGE_DRAWS)
    return x, jax.lax.map(base.log_prob, x, batch_size=_BATCH_SIZE)
