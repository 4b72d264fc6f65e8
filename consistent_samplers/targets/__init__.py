"""Target densities: the class, and ready-made ones with what is known of them.

Ready-made targets raise a ValueError where an argument is out of range.
"""

from consistent_samplers.targets.base import Target, check_density
from consistent_samplers.targets.image import image
from consistent_samplers.targets.lattice import phi4
from consistent_samplers.targets.mixtures import gaussian, gmm9, gmm40, student_t_mixture
from consistent_samplers.targets.particles import (
    dw4,
    lj13,
    lj55,
    particle_coordinates,
    particle_positions,
    particle_symmetries,
)
from consistent_samplers.targets.posteriors import (
    brownian,
    cancer,
    credit,
    credit_likelihood,
    ionosphere,
    lgcp,
    seeds,
    sonar,
)
from consistent_samplers.targets.synthetic import (
    double_wells,
    funnel,
    many_well,
    rings,
    rosenbrock,
)

__all__ = [
    "Target",
    "brownian",
    "cancer",
    "check_density",
    "credit",
    "credit_likelihood",
    "double_wells",
    "dw4",
    "funnel",
    "gaussian",
    "gmm9",
    "gmm40",
    "image",
    "ionosphere",
    "lgcp",
    "lj13",
    "lj55",
    "many_well",
    "particle_coordinates",
    "particle_positions",
    "particle_symmetries",
    "phi4",
    "rings",
    "rosenbrock",
    "seeds",
    "sonar",
    "student_t_mixture",
]
