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
      inside: share of draws inside of the support.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.bases.Fit(elbo=-1.2, elbo_stderr=0.1, ess=0.8).elbo
      -1.2
    """

    elbo: float
    elbo_stderr: float
    ess: float
    inside: float = 1.0


def judge(rng_key: PRNGKey, target: Target, base: Base) -> Fit:
    """How well a base fits, on draws of its own; an ELBO of -inf where it cannot be told.

    Where some draws are outside of the support, the ELBO is that of the base cut off there: the
    mean over those inside, and the log of their share.

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
    inside = log_weight[np.isfinite(log_weight)]
    if len(inside) < 2 or np.isposinf(log_weight).any():
        return Fit(-math.inf, math.inf, 0.0, 0.0)
    weight = np.exp(inside - inside.max())
    stderr = inside.std() / math.sqrt(len(inside))
    ess = weight.sum() ** 2 / (weight**2).sum() / _NUM_JUDGE_DRAWS
    share = len(inside) / _NUM_JUDGE_DRAWS
    return Fit(float(inside.mean() + math.log(share)), float(stderr), float(ess), share)


@kernel(effort="least")
def _draws(rng_key: PRNGKey, base: Base) -> tuple[Array, Array]:
    """Draws of a base and their log densities under it."""
    x = base.sample(rng_key, _NUM_JUDGE_DRAWS)
    return x, jax.lax.map(base.log_prob, x, batch_size=_BATCH_SIZE)
