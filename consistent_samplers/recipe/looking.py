"""The recipe's look for mass that a stage missed, by what that stage does not know."""

from typing import Any

import jax
import numpy as np

from consistent_samplers import progress
from consistent_samplers.bases.modes import NUM_STARTS
from consistent_samplers.diagnostics import (
    ExplorationCheck,
    exploration_check,
    mass_elsewhere,
    mass_in_necks,
    members_left_out,
    open_directions,
    share_beyond,
    share_unseen,
    standard_error_is_reliable,
)
from consistent_samplers.estimate import Evidence
from consistent_samplers.maps import HierarchicalMap, LaplaceMap
from consistent_samplers.recipe.plan import Start
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.targets.structure import named
from consistent_samplers.types import Draws, PRNGKey

NUM_PLACED = 2_048
"""Particles that are looked up, at most."""

# They are from so many nats of excess on, or below this share of effective draws.
_DOUBT, _UNEVEN = 0.25, 0.15
# Starts of a hierarchical map's look, a batch of gradients: most of its members' modes are looked
# for one member at a time.
_HIERARCHICAL_STARTS = 128


def look_for_missed_mass(
    rng_key: PRNGKey,
    target: Target,
    start: Start,
    progress_bar: bool,
    sampler: Sampler,
    draws: Draws,
    worth: Evidence,
    modes: Any,
) -> ExplorationCheck | None:
    """What a look finds that draws do not show; None where modes were not to be looked for.

    ``modes`` are those of an earlier look from fresh starts; None has it look again.
    """
    if not start.explored:
        return None
    hierarchical = isinstance(sampler.control, HierarchicalMap | LaplaceMap)
    with progress.stage("look for missed modes", progress_bar=progress_bar):
        found = exploration_check(
            rng_key,
            target,
            draws.position,
            float(worth.log_z),
            log_weight=draws.log_weight,
            particle_log_z=start.particle_log_z,
            modes=modes,
            known=start.known,
            num_starts=_HIERARCHICAL_STARTS if hierarchical else NUM_STARTS,
        )
        assert draws.log_density is not None and draws.log_weight is not None
        hidden = mass_in_necks(target, draws.position, draws.log_weight)
        along = open_directions(target, draws.position, draws.log_density)
        above_all = np.unique(np.abs(along).argmax(1))
        where = named(above_all, target.dim, target.sites)
        found = found._replace(num_open=len(along), open_along=where, hidden=hidden)
        if hierarchical:
            weighed = np.isfinite(np.asarray(draws.log_weight))
            inside = draws.position[weighed]
            left_out = members_left_out(target, sampler, inside)
            elsewhere = mass_elsewhere(rng_key, target, sampler, inside)
            found = found._replace(num_members=left_out.num_members, elsewhere=elsewhere)
        doubtful = found.num_modes > 1 or found.log_z_excess > _DOUBT or float(worth.ess) < _UNEVEN
        heavy = not standard_error_is_reliable(worth)
        if start.particles is None or not (doubtful or heavy):
            return found
        # The particles' log Z may be off itself: where are they?
        particles = jax.device_put(start.particles[:NUM_PLACED])
        there = np.asarray(sampler.log_weight(rng_key, target, particles, 1))
        hidden = max(hidden, share_unseen(draws, there))
        return found._replace(uncovered=share_beyond(draws, there), hidden=hidden)
