"""A look for mass that a sampler missed, by what the sampler does not know.

Nothing computed from a sampler's own draws tells what they miss. Fresh optimiser starts find modes,
and draws around these measure the mass there; tempered particles find mass that has no mode.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases import Modes, find_modes
from consistent_samplers.bases.iterating import folded
from consistent_samplers.bases.masses import ellipsoid_distances, masses_around
from consistent_samplers.bases.modes import merged
from consistent_samplers.compilation import is_traced
from consistent_samplers.diagnostics.beyond import mass_beyond
from consistent_samplers.estimate import Evidence
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
# Share of particles in places that the sampler hardly reaches, above which it misses them: what
# a thousand particles tell.
_MAX_UNCOVERED = 0.1


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
      num_open: directions along which the density does not fall off (`open_directions`).
      open_along: names of the coordinates that these lie along most; "" where nobody looked.
      hidden: part of Z beyond the draws, by particles of larger weight than any of them
        (`share_unseen`) or by where necks lead to (`mass_in_necks`); NaN if not looked at.
        `informed` widens intervals for it.
      num_members: members of a hierarchy that have mass where the map hardly goes
        (`members_left_out`).
      elsewhere: log of the mass of a second fit in another place, relative to the first
        (`mass_elsewhere`); -inf if it found nothing.
      farther: mass farther out than all draws, relative to the sampler's Z (`mass_farther`); 0 if
        there is none.

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
    num_open: int = 0
    hidden: float = math.nan
    num_members: int = 0
    elsewhere: float = -math.inf
    farther: float = 0.0
    open_along: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was missed as far as this look can tell."""
        return not (self.lacks_modes or self._exceeded or self._beyond or self.farther > 0.0)

    @property
    def lacks_modes(self) -> bool:
        """Whether places were missed that no chain from the sampler's draws would come to."""
        missed = self.num_missed + self.num_open + self.num_members
        return missed > 0 or self.elsewhere > -math.inf

    @property
    def _exceeded(self) -> bool:
        return self.log_z_excess > _EXCESS and not self.uncovered <= _MAX_UNCOVERED

    @property
    def _beyond(self) -> bool:
        return self.uncovered > _MAX_UNCOVERED

    def __str__(self) -> str:
        if self.passed:
            if not self.num_modes:
                return "Fresh optimiser starts found no mode that holds mass by itself."
            return f"Fresh optimiser starts found {self.num_modes} mode(s), all of them sampled."
        words = []
        if self.num_open:
            of = f" (of {self.open_along} above all)" if self.open_along else ""
            words.append(
                f"the density does not fall off along {self.num_open} direction(s){of}, as if "
                "there were no prior: it has no finite log Z, or none that draws can tell"
            )
        if self.num_missed:
            words.append(
                f"{self.num_missed} of {max(self.num_modes, self.num_missed)} modes that fresh "
                "optimiser starts found lack mass among the draws, at least "
                f"{self.missed_share:.2g} times what the sampler found in all"
            )
        if self.num_members:
            words.append(
                f"{self.num_members} members of the hierarchy have another mode, given the others, "
                "that the sampler leaves out, as where the data leave a sign open"
            )
        if self.elsewhere > -math.inf:
            words.append(
                "a second fit found mass in another place, as if all signs of a part could be "
                f"changed: exp({self.elsewhere:.1f}) times that of the first"
            )
        if self.farther > 0.0:
            words.append(
                f"draws at larger scales found mass farther out than all of the sampler's, "
                f"{self.farther:.2g} times what it found"
            )
        if self._exceeded:
            words.append(
                f"tempered particles put log Z {self.log_z_excess:.1f} nats higher than the sampler"
            )
        if self._beyond:
            words.append(
                f"{100 * self.uncovered:.0f} % of tempered particles are where hardly a draw comes"
            )
        found = " and ".join(words)
        return f"{found[0].upper()}{found[1:]}. The figures stand for the part that was found."


def informed(evidence: Evidence, exploration: ExplorationCheck | None) -> Evidence:
    """The same evidence, its standard error wide enough for what particles say its weights hide.

    Args:
      evidence: concrete or traced evidence.
      exploration: what `exploration_check` found, or None where nobody looked.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> evidence = cs.evidence(cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower"))
      >>> found = cs.diagnostics.ExplorationCheck(1, 0, 0.0, 0.0, hidden=2.0)
      >>> more = cs.diagnostics.informed(evidence, found)
      >>> bool(more.log_z_stderr >= 2.0), float(more.unseen)
      (True, 1.0)
    """
    if exploration is None or evidence.unseen is None or not exploration.hidden > 0.0:
        return evidence
    seen, stderr = evidence.unseen, evidence.log_z_stderr
    traced = is_traced((seen, stderr, exploration.hidden))
    # On the host where it can be: every small operation on arrays would be compiled by itself.
    xp: Any = jnp if traced else np
    seen, stderr = xp.asarray(seen), xp.asarray(stderr)
    # Of the standard error what is hidden is twice `unseen`, in quadrature.
    unseen = xp.maximum(seen, seen.dtype.type(0.5) * exploration.hidden)
    stderr = xp.sqrt(stderr**2 + 4.0 * (unseen**2 - seen**2))
    if not traced:
        unseen, stderr = jax.device_put((unseen.astype(seen.dtype), stderr.astype(seen.dtype)))
    return dataclasses.replace(evidence, unseen=unseen, log_z_stderr=stderr)


def exploration_check(
    rng_key: PRNGKey,
    target: Target,
    position: Array,
    log_z: float,
    *,
    log_weight: Array | None = None,
    particle_log_z: float = math.nan,
    modes: Modes | None = None,
    known: Modes | None = None,
    num_starts: int = 512,
) -> ExplorationCheck:
    """What draws lack of the mass around modes that fresh optimiser starts find.

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
      known: modes to look around beside those of the fresh starts.
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
    if known is not None:
        modes = merged(modes, known)
    excess = particle_log_z - log_z
    farther = mass_beyond(folded(rng_key, 2), target, position, log_z)
    if not len(modes.loc):
        return ExplorationCheck(0, 0, 0.0, excess, farther=farther)
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
    num_missed = int(lacking.sum())
    return ExplorationCheck(num_modes, num_missed, share, excess, missed=missed, farther=farther)
