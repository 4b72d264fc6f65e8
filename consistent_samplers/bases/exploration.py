"""Looking for a target's mass before a base is fitted: many optimiser starts, tempered SMC.

The two fail in different ways. Optimisers find every mode whose basin a start meets, in any
dimension, but say nothing of mass that has no mode (a ring, a funnel's neck) and weigh a mode by
its curvature alone. Tempered particles weigh what they reach, but in many dimensions a population
reaches few of many modes.
"""

import math
from typing import NamedTuple

import numpy as np

from consistent_samplers.bases.iterating import normals, split
from consistent_samplers.bases.limits import MAX_DENSE_DIM
from consistent_samplers.bases.modes import (
    NUM_STARTS,
    Modes,
    climb,
    climb_size,
    covering,
    distinct,
    find_modes,
)
from consistent_samplers.bases.tempering import NUM_PARTICLES, tempered_particles
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey


class Exploration(NamedTuple):
    """What a look around found.

    Attributes:
      modes: optima; there may be none.
      particles: ``[num_particles, dim]``, of a tempered SMC that ended at the target; none above
        200 dimensions or for very expensive densities, where too few could be afforded.
      log_z: its estimate of log Z in nats, or NaN without particles.

    Example:
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> modes = cs.bases.Modes(np.zeros((1, 2)), np.eye(2)[None], np.zeros(1))
      >>> cs.bases.Exploration(modes, np.zeros((0, 2)), log_z=float("nan")).particles.shape
      (0, 2)
    """

    modes: Modes
    particles: np.ndarray
    log_z: float


def explore(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = NUM_STARTS,
    num_particles: int = NUM_PARTICLES,
) -> Exploration:
    """Looks for the target's mass by optimiser starts and tempered SMC.

    Expensive densities get fewer starts, as in `find_modes`, and 512 particles at least, or none
    where even these would take more than 400 Gflop.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points known to have mass.
      num_starts: optimiser starts; at most 16 above 200 dimensions.
      num_particles: particles of the SMC; 0 leaves it out, and the second climb with it.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 1.0) ** 2), dim=1)
      >>> found = cs.bases.explore(jax.random.key(0), target, num_starts=8, num_particles=200)
      >>> found.modes.loc.round(2).tolist(), found.particles.shape
      ([[1.0]], (200, 1))
    """
    key_modes, key_particles, key_again, *_ = split(rng_key)
    modes = find_modes(key_modes, target, init_position=init_position, num_starts=num_starts)
    if target.dim > MAX_DENSE_DIM or num_particles == 0:
        return Exploration(modes, np.zeros((0, target.dim)), math.nan)
    particles, log_z = tempered_particles(key_particles, target, modes, num_particles=num_particles)
    if not len(particles):
        return Exploration(modes, particles, log_z)
    # Again from where the particles are, and around what was found at its own scale: the modes,
    # half of the rest particles, the others wide.
    num_starts, num_iterations = climb_size(target, num_starts)
    loc, scale = covering(modes, target.dim)
    known = modes.loc[:num_starts].astype(loc.dtype)
    num_chosen = (num_starts - len(known)) // 2
    # Resampled particles are in an order: at even distances of it.
    chosen = particles[np.linspace(0, len(particles) - 1, num_chosen).astype(int)]
    wide = loc + scale * normals(key_again, num_starts - len(known) - num_chosen, target.dim)
    starts = np.concatenate([known, chosen, wide])
    step = np.full(num_starts, np.linalg.norm(scale) / math.sqrt(target.dim), loc.dtype)
    found = distinct(target, *climb(target, starts, step, num_iterations))
    return Exploration(found, particles, log_z)
