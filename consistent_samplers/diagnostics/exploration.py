"""A look for missed modes by something that is not the sampler.

A sampler that has found seven of forty modes has even weights, a perfect Pareto k and an ELBO that
equals its log Z: nothing computed from its own draws can tell. Fresh optimiser starts can, where
modes have basins, and the evidence of tempered particles can, where it is larger.
"""

import math
from typing import NamedTuple

import numpy as np

from consistent_samplers.bases import Modes, find_modes
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

# A mode with a smaller share of Z is not missed, only rare.
_MIN_SHARE = 0.01
# Missed: draws near it are fewer than this part of what its Laplace evidence lets expect.
_MISSED = 0.1
# Nats by which an independent log Z must exceed the sampler's to say so; it is noisy itself.
_EXCESS = 1.0


class ExplorationCheck(NamedTuple):
    """What an independent look found that the draws do not show.

    Attributes:
      num_modes: modes found with at least 1 % of Z by their Laplace evidence.
      num_missed: those that the draws hardly reach.
      missed_share: Laplace evidence of the missed modes relative to the sampler's Z; may exceed 1.
      log_z_excess: log Z of tempered particles above the sampler's in nats, or NaN if not given.

    Example:
      >>> import consistent_samplers as cs
      >>> check = cs.diagnostics.ExplorationCheck(
      ...     num_modes=2, num_missed=1, missed_share=1.0, log_z_excess=float("nan")
      ... )
      >>> check.passed
      False
      >>> print(check)  # doctest: +ELLIPSIS
      1 of 2 modes found by fresh optimiser starts are hardly sampled; by their ...
    """

    num_modes: int
    num_missed: int
    missed_share: float
    log_z_excess: float

    @property
    def passed(self) -> bool:
        """Whether nothing was missed as far as this look can tell."""
        return self.num_missed == 0 and not self.log_z_excess > _EXCESS

    def __str__(self) -> str:
        """The finding in words."""
        if self.passed:
            if not self.num_modes:
                return "Fresh optimiser starts found no mode that holds mass by itself."
            return f"Fresh optimiser starts found {self.num_modes} mode(s), all of them sampled."
        words = []
        if self.num_missed:
            words.append(
                f"{self.num_missed} of {self.num_modes} modes found by fresh optimiser starts are "
                f"hardly sampled; by their Laplace evidence they hold {self.missed_share:.2g} "
                "times the mass that the sampler found"
            )
        if self.log_z_excess > _EXCESS:
            words.append(
                f"tempered particles put log Z {self.log_z_excess:.1f} nats higher than the sampler"
            )
        found = " and ".join(words)
        return (
            f"{found[0].upper()}{found[1:]}"
            ". The figures stand for the part that was found: train again with another rng_key, "
            "init_position at the missed places, or a base that covers them."
        )


def exploration_check(
    rng_key: PRNGKey,
    target: Target,
    position: Array,
    log_z: float,
    *,
    particle_log_z: float = math.nan,
    modes: Modes | None = None,
    num_starts: int = 512,
) -> ExplorationCheck:
    """Compares draws with modes that fresh optimiser starts find.

    Args:
      rng_key: key of the starts; take another than the one the sampler was trained with.
      target: the target.
      position: ``[n, dim]``, draws that follow the sampler (corrected or not).
      log_z: the sampler's estimate of log Z, in nats.
      particle_log_z: log Z of a tempered SMC, e.g. `bases.Exploration.log_z`, if at hand.
      modes: what an independent look has already found (`bases.exploration.find_modes`); a look
        from fresh starts if None.
      num_starts: number of starts of that look.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> right = 2.0 + 0.25 * jax.random.normal(jax.random.key(0), (200, 1))
      >>> check = cs.diagnostics.exploration_check(
      ...     jax.random.key(1), target, right, -0.8, num_starts=16
      ... )
      >>> check.num_modes, check.num_missed, check.passed
      (2, 1, False)
    """
    if modes is None:
        modes = find_modes(rng_key, target, num_starts=num_starts)
    heavy = modes.log_evidence > log_z + math.log(_MIN_SHARE)
    modes = Modes(*(part[heavy] for part in modes))
    # Of a folded sampler log Z may be off by any amount.
    share = np.exp(np.minimum(modes.log_evidence - log_z, 600.0))
    observed = _shares_near(np.asarray(position, np.float64), modes)
    missed = observed < _MISSED * np.minimum(share, 1.0)
    return ExplorationCheck(
        len(share), int(missed.sum()), float(share[missed].sum()), particle_log_z - log_z
    )


def _shares_near(position: np.ndarray, modes: Modes) -> np.ndarray:
    """Share of draws inside each mode's Laplace ellipsoid, ``[num_modes]``."""
    dim = position.shape[1]
    # Six standard deviations beyond the mean of a chi-square of dim degrees: modes are not normal.
    radius = dim + 6.0 * math.sqrt(2.0 * dim)
    shares = []
    for loc, factor in zip(modes.loc, modes.scale_tril, strict=True):
        z = np.linalg.solve(factor, (position - loc).T)
        shares.append(np.mean((z**2).sum(0) < radius))
    return np.asarray(shares)
