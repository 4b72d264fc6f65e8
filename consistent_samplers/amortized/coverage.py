"""Whether a family's draws reach what data sets were simulated from.

Weights do not show modes that no draw reaches. Simulated data sets do: what they were simulated
from is a draw of their posterior, so that the share of them where the posterior is far denser than
the map is the mass that the map misses, on average over the family.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from consistent_samplers.amortized import drawing, fitting
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.conditional import Fitted
from consistent_samplers.amortized.fitting import Prepared
from consistent_samplers.amortized.padded import PaddedModel
from consistent_samplers.types import Array, PRNGKey

MAX_MISSED = 0.01
"""Share of missed mass above which no data set of a family is better than usable."""

MUCH_MISSED = 0.05
"""The same above which none is to be used."""

_FACTOR = 100.0  # where a posterior is so many times denser than the map, it misses mass
_NUM_DRAWS, _AT_ONCE = 64, 32


def missed_mass(
    rng_key: PRNGKey,
    model: PaddedModel,
    fitted: Fitted,
    prepared: Prepared,
    pairs: Any,
) -> float:
    """Share of mass where posteriors are a hundred times denser than the map: at least that much.

    It is the lower end of a one-sided 95 % interval, over simulated data sets.

    Args:
      rng_key: key.
      model: the model.
      fitted: the map.
      prepared: simulated data sets that it was not trained on.
      pairs: the same as `simulated.Pairs`.
    """

    def one(key: PRNGKey, prepared: Prepared, at: tuple[Array, Array]) -> Array:
        data, frames = prepared.data, prepared.frames
        drawn = drawing.drawn(key, model, fitted, frames, data, _NUM_DRAWS)
        log_weight = jnp.where(drawn[2] < jnp.inf, drawn[2], -jnp.inf)
        log_z = logsumexp(log_weight) - math.log(_NUM_DRAWS)
        log_q = fitting.log_prob(fitted, prepared)
        return model.log_density(at, data) - log_q - log_z

    keys = jax.random.split(rng_key, len(prepared.u))
    excess = in_blocks(one, _AT_ONCE)(keys, prepared, (pairs.globals, pairs.members))
    share = np.mean(~(np.asarray(excess) < math.log(_FACTOR)))
    return float(max(0.0, share - 1.64 * np.sqrt(share * (1.0 - share) / len(excess))))
