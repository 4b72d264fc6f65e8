"""How well chains mixed, and what that makes of their draws."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from consistent_samplers.bridge import Bridge
from consistent_samplers.diagnostics.exploring import ExplorationCheck
from consistent_samplers.diagnostics.verdicts import (
    FINE_RESOLUTION,
    MAX_RESOLUTION,
    Level,
    Verdict,
    resolution,
)
from consistent_samplers.estimate import Evidence

MIXED_R_HAT = 1.01
"""Largest r-hat of chains that are trusted (Vehtari et al., 2021)."""

MAX_R_HAT = 1.05
"""Largest r-hat of chains that are usable."""

ENOUGH_DRAWS = 400
"""Effective draws, in bulk and tails, of chains that are trusted."""

FEWEST_DRAWS = 100
"""Effective draws, in bulk and tails, of chains that are usable."""

MAX_DIVERGENT = 0.01
"""Share of divergent transitions above which chains are not to be used."""

MAX_BRIDGE_STDERR = 0.25
"""Standard error of log Z, in nats, from which on it tells next to nothing."""

MAX_UNVISITED = 0.02
"""Part of Z that may lie, by one-step draws, where no chain came."""

# Part of Z in a neck from which on it is said.
_SOME_HIDDEN = 0.002

# Standard errors, and nats of rounding, by which log Z of chains may lie below a bound on it.
_BELOW, _ROUNDING = 3.0, 1e-3


class Mixing(NamedTuple):
    """How well chains mixed.

    Attributes:
      r_hat: largest over the coordinates, of ranks, and of ranks of distances from the median.
      bulk: effective draws of the coordinate that has fewest.
      tail: the same for 5 % and 95 % quantiles.
      divergent: share of the transitions that diverged.

    Example:
      >>> from consistent_samplers.diagnostics import Mixing
      >>> print(Mixing(1.002, 900.0, 700.0, 0.0))
      r-hat 1.002, at least 900 effective draws, 700 in the tails
    """

    r_hat: float
    bulk: float
    tail: float
    divergent: float

    def __str__(self) -> str:
        words = f"r-hat {self.r_hat:.3f}, at least {self.bulk:.0f} effective draws, "
        words += f"{self.tail:.0f} in the tails"
        if self.divergent:
            words += f", {100 * self.divergent:.2g} % of the transitions divergent"
        return words


def mixing(position: np.ndarray, divergent: float = 0.0) -> Mixing:
    """How well chains ``[num_chains, num_samples, dim]`` mixed, by ranks (Vehtari et al., 2021).

    Args:
      position: their draws; at least four of each chain.
      divergent: share of the transitions that diverged.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> found = cs.diagnostics.mixing(np.random.default_rng(0).normal(size=(4, 500, 3)))
      >>> found.r_hat < 1.02, found.bulk > 1_000, found.tail > 1_000
      (True, True, True)
    """
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    position = np.asarray(position, np.float64)
    if not np.isfinite(position).all() or np.any(np.ptp(position, axis=1) == 0.0):
        return Mixing(math.inf, 0.0, 0.0, divergent)
    ranks = _normal_ranks(position)
    apart = _normal_ranks(np.abs(position - np.median(position, axis=(0, 1))))
    r_hat = max(float(np.max(split_gelman_rubin(x))) for x in (ranks, apart))
    below = (position <= np.quantile(position, q, axis=(0, 1)) for q in (0.05, 0.95))
    tail = min(float(effective_sample_size(x.astype(float)).min()) for x in below)
    return Mixing(r_hat, float(effective_sample_size(ranks).min()), tail, divergent)


def _normal_ranks(values: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks of ``[num_chains, num_samples, dim]`` among all chains."""
    from scipy.stats import rankdata  # takes half a second to import

    ranks = rankdata(values.reshape(-1, values.shape[-1]), axis=0).reshape(values.shape)
    scores: np.ndarray = ndtri((ranks - 0.375) / (values.shape[0] * values.shape[1] + 0.25))
    return scores


def chains_verdict(
    found: Mixing,
    log_z: Bridge,
    one_step: Evidence,
    exploration: ExplorationCheck | None = None,
    unvisited: float = 0.0,
) -> Verdict:
    """What draws of chains are worth, and log Z between them and the map that they moved in.

    Args:
      found: how they mixed.
      log_z: by bridge sampling.
      one_step: evidence of the map by its own draws, whose ELBO log Z must not lie below.
      exploration: what a look for modes found, in the light of the chains.
      unvisited: part of Z that one-step draws showed where no chain came.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.bridge import Bridge
      >>> mixed = cs.diagnostics.Mixing(1.002, 900.0, 700.0, 0.0)
      >>> evidence = cs.evidence(cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower"))
      >>> cs.diagnostics.chains_verdict(mixed, Bridge(0.0, 0.01), evidence).level
      'trusted'
    """
    bad: list[str] = []
    cautions: list[str] = []
    if exploration is not None and not exploration.passed:
        bad.append(str(exploration))
    if found.r_hat > MIXED_R_HAT:
        (bad if not found.r_hat <= MAX_R_HAT else cautions).append(
            f"The chains agree to an r-hat of {found.r_hat:.3f} only."
        )
    if (least := min(found.bulk, found.tail)) < ENOUGH_DRAWS:
        (bad if least < FEWEST_DRAWS else cautions).append(
            f"Of their draws {least:.0f} are effective in the worst coordinate."
        )
    if found.divergent:
        (bad if found.divergent > MAX_DIVERGENT else cautions).append(
            f"{100 * found.divergent:.2g} % of the transitions diverged: corners may be missed."
        )
    if unvisited > MAX_UNVISITED:
        bad.append(
            f"{100 * min(unvisited, 1.0):.2g} % of Z or more, by one-step draws, lies where no "
            "chain came."
        )
    if exploration is not None and (hidden := exploration.hidden) > _SOME_HIDDEN:
        # What it says is too much more often than not.
        (bad if 0.5 * hidden > MAX_UNVISITED else cautions).append(
            f"About {100 * hidden:.1g} % of Z lies beyond the ends of their draws, in a neck that "
            "they hardly come to: the interval of log Z takes it in."
        )
    if (step := resolution(one_step)) > FINE_RESOLUTION:
        (bad if step > MAX_RESOLUTION else cautions).append(
            f"The log density is computed in steps of {step:.2g} nats, on which chains move."
        )
    if undefined := 100.0 * float(one_step.undefined or 0.0):
        cautions.append(f"The log density is NaN at {undefined:.2g} % of the map's draws.")
    if not log_z.log_z_stderr <= MAX_BRIDGE_STDERR:
        bad.append(
            f"log Z is known to ± {log_z.log_z_stderr:.2g} only: neither the map nor a Gaussian "
            "overlaps the chains enough. Of their draws that says nothing."
        )
    error = math.hypot(log_z.log_z_stderr, float(one_step.elbo_stderr))
    below = float(one_step.elbo) - log_z.log_z
    if one_step.bound != "heuristic" and below > _BELOW * error + _ROUNDING:
        bad.append(
            f"Their log Z of {log_z.log_z:.3f} lies below the bound of {float(one_step.elbo):.3f}: "
            "they have not been everywhere that the map reaches."
        )
    level: Level = "not to be used" if bad else "usable" if cautions else "trusted"
    first = "Chains in the map's latent space can be used." if not bad else "Nor do chains help."
    return Verdict(level, "\n".join([first, *bad, *cautions]))
