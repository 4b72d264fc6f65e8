"""A look for mass that a sampler missed, by what the sampler does not know.

Nothing computed from a sampler's own draws tells what they miss. Fresh optimiser starts find modes,
and draws around these measure the mass there; tempered particles find mass that has no mode.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from consistent_samplers.bases import Modes, find_modes
from consistent_samplers.bases.iterating import folded
from consistent_samplers.bases.masses import ellipsoid_distances, masses_around
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

# A mode with a smaller share of Z counts as none in words.
_MIN_SHARE = 0.01
# Part of Z, beyond what errors explain, that may lie around modes and not in the draws' weights.
_MAX_MISSED = 0.01
# Standard errors that are allowed for, of the weights and (of a logarithm) of the draws around.
_ERRORS_OF_WEIGHTS, _ERRORS_AROUND = 4.0, 3.0
# Nats by which an independent log Z must exceed the sampler's to say so; it is noisy itself.
_EXCESS = 1.0
# Share of particles in places that the sampler weighs far too low, above which it misses them.
_MAX_UNCOVERED = 0.05


class ExplorationCheck(NamedTuple):
    """What an independent look found that the draws do not show.

    Attributes:
      num_modes: modes found with at least 1 % of Z around them.
      num_missed: modes around which the draws' weights lack mass.
      missed_share: the mass that they lack, beyond what errors explain, relative to the sampler's
        Z; may exceed 1.
      log_z_excess: log Z of tempered particles above the sampler's in nats, or NaN if not given.
      uncovered: share of the particles in places that the sampler hardly reaches, or NaN if not
        looked at; where it is small the excess is the particles' own error.
      missed: ``[num_missed, dim]``, where the missed modes are, or None.

    Example:
      >>> import consistent_samplers as cs
      >>> check = cs.diagnostics.ExplorationCheck(2, 1, missed_share=1.0, log_z_excess=float("nan"))
      >>> print(check.passed, check)  # doctest: +ELLIPSIS
      False 1 of 2 modes that fresh optimiser starts found lack mass ...
    """

    num_modes: int
    num_missed: int
    missed_share: float
    log_z_excess: float
    uncovered: float = math.nan
    missed: Any = None

    @property
    def passed(self) -> bool:
        """Whether nothing was missed as far as this look can tell."""
        return self.num_missed == 0 and not self._exceeded

    @property
    def _exceeded(self) -> bool:
        return self.log_z_excess > _EXCESS and not self.uncovered <= _MAX_UNCOVERED

    def __str__(self) -> str:
        if self.passed:
            if not self.num_modes:
                return "Fresh optimiser starts found no mode that holds mass by itself."
            return f"Fresh optimiser starts found {self.num_modes} mode(s), all of them sampled."
        words = []
        if self.num_missed:
            words.append(
                f"{self.num_missed} of {max(self.num_modes, self.num_missed)} modes that fresh "
                "optimiser starts found lack mass among the draws, at least "
                f"{self.missed_share:.2g} times what the sampler found in all"
            )
        if self._exceeded:
            words.append(
                f"tempered particles put log Z {self.log_z_excess:.1f} nats higher than the sampler"
            )
        found = " and ".join(words)
        return f"{found[0].upper()}{found[1:]}: the figures stand for the part that was found."


def exploration_check(
    rng_key: PRNGKey,
    target: Target,
    position: Array,
    log_z: float,
    *,
    log_weight: Array | None = None,
    particle_log_z: float = math.nan,
    modes: Modes | None = None,
    num_starts: int = 512,
) -> ExplorationCheck:
    """Compares the mass around modes that fresh optimiser starts find with what draws have there.

    Both sides are measured by draws, over the same ellipsoids, and with their errors: around a mode
    by a t-distribution of its Laplace covariance, and by the sampler's draws with their weights.

    Args:
      rng_key: key of the starts; take another than the one the sampler was trained with.
      target: the target.
      position: ``[n, dim]``, draws that follow the sampler (corrected or not).
      log_z: the sampler's estimate of log Z, in nats.
      log_weight: ``[n]``, of the draws; they count the same if None.
      particle_log_z: log Z of a tempered SMC, e.g. `bases.Exploration.log_z`, if at hand.
      modes: what `bases.exploration.find_modes` found already; a look from fresh starts if None.
      num_starts: number of starts of that look.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> key = jax.random.key(0)
      >>> right = 2.0 + 0.25 * jax.random.normal(key, (200, 1))
      >>> check = cs.diagnostics.exploration_check(key, target, right, -0.8, num_starts=16)
      >>> check.num_modes, check.num_missed, check.passed
      (2, 1, False)
    """
    if modes is None:
        modes = find_modes(rng_key, target, num_starts=num_starts)
    excess = particle_log_z - log_z
    if not len(modes.loc):
        return ExplorationCheck(0, 0, 0.0, excess)
    found = masses_around(folded(rng_key, 1), target, modes)
    # Of a folded sampler log Z may be off by any amount.
    log_share = np.minimum(found.log_mass - log_z, 600.0)
    points = np.asarray(position, np.float64)
    weight = np.full(len(points), 1.0 / len(points))
    if log_weight is not None:
        weight = np.exp(np.asarray(log_weight, np.float64) - log_z) / len(points)
    inside = (ellipsoid_distances(modes, points) <= 1.0).astype(np.float64)
    # A weight more than was seen stands for the draws that were not.
    error = np.sqrt(inside @ weight**2 + 1.0 / len(points) ** 2)
    with np.errstate(invalid="ignore"):
        least = np.exp(log_share - _ERRORS_AROUND * found.relative_error)
    lack = np.nan_to_num(least) - inside @ weight - _ERRORS_OF_WEIGHTS * error
    lacking = lack > 0.0
    share = float(lack[lacking].sum())
    if share <= _MAX_MISSED:
        lacking[:] = False
        share = 0.0
    num_modes = int((log_share > math.log(_MIN_SHARE)).sum())
    missed = modes.loc[lacking] if lacking.any() else None
    return ExplorationCheck(num_modes, int(lacking.sum()), share, excess, missed=missed)
