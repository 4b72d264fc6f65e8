"""How much mass lies around optima, measured by draws: curvature alone does not tell."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from consistent_samplers.bases import iterating
from consistent_samplers.bases.iterating import affordable
from consistent_samplers.bases.modes import Modes
from consistent_samplers.targets import rounding
from consistent_samplers.targets.base import Target
from consistent_samplers.types import PRNGKey

# Draws around each optimum, and least degrees of freedom of the t-distribution that they come from;
# as many as dimensions above that, where its radius would spread far beyond theirs.
_NUM_DRAWS, _MIN_DEGREES = 256, 4

# Of a mass by draws, above which the Laplace evidence is believed instead.
_MAX_RELATIVE_ERROR = 0.5
# Nats within which, and three errors, the two agree.
_AGREED = 0.1


class Masses(NamedTuple):
    """What importance sampling finds in the ellipsoids around optima; host arrays ``[num_modes]``.

    Attributes:
      log_mass: log of the mass in each, in nats; -inf where no draw met any.
      relative_error: its standard error, as a part of the mass.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bases.masses import Masses
      >>> Masses(np.zeros(1), np.full(1, 0.1)).log_mass.tolist()
      [0.0]
    """

    log_mass: np.ndarray
    relative_error: np.ndarray


def ellipsoid_distances(modes: Modes, points: np.ndarray) -> np.ndarray:
    """Squared distances ``[num_modes, n]`` from optima in their Laplace covariances.

    Relative to the ellipsoids that hold nearly all of a Gaussian's mass: inside of it up to 1.
    """
    radius = _square_radius(modes.loc.shape[1])
    distances = np.empty((len(modes.loc), len(points)))
    for k, (loc, factor) in enumerate(zip(modes.loc, modes.scale_tril, strict=True)):
        z = np.linalg.solve(factor, (points - loc).T)
        distances[k] = (z**2).sum(0) / radius
    return distances


def weighed(rng_key: PRNGKey, target: Target, modes: Modes) -> Modes:
    """Modes with the mass around them as their evidence, the largest first.

    Where draws agree with it the Laplace evidence stays. Where they do not tell the mass within
    half of it, that evidence is raised by as much as draws raise those of the other modes: beside
    masses of heavy tails, which it misses by many nats, it would drop a mode like them.

    Args:
      rng_key: key.
      target: the target.
      modes: what `find_modes` found.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> from consistent_samplers.bases.masses import weighed
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> modes = cs.bases.find_modes(jax.random.key(0), target, num_starts=16)
      >>> weighed(jax.random.key(1), target, modes).log_evidence.shape
      (2,)
    """
    if len(modes.loc) < 2:
        return modes
    found = masses_around(rng_key, target, modes)
    known = found.relative_error < _MAX_RELATIVE_ERROR
    # Within its error the Laplace evidence agrees where modes are normal, and has none itself.
    with np.errstate(invalid="ignore"):
        apart = np.abs(found.log_mass - modes.log_evidence)
    other = known & (apart > _AGREED + 3.0 * found.relative_error)
    log_mass = np.where(other, found.log_mass, modes.log_evidence)
    both = known & np.isfinite(modes.log_evidence)
    if both.any():
        raised = np.median(log_mass[both] - modes.log_evidence[both])
        log_mass = np.where(known, log_mass, modes.log_evidence + max(raised, 0.0))
    order = np.argsort(-log_mass)
    return Modes(modes.loc[order], modes.scale_tril[order], log_mass[order])


@iterating.one_thread
def masses_around(rng_key: PRNGKey, target: Target, modes: Modes) -> Masses:
    """The mass in each optimum's ellipsoid, by draws from a t-distribution around it.

    An expensive density gets fewer draws; where even 32 for each optimum would take too long, the
    optima of the smallest Laplace evidence get none.

    Args:
      rng_key: key.
      target: the target.
      modes: optima and their Laplace covariances.

    Example:
      >>> import jax, numpy as np, consistent_samplers as cs
      >>> from consistent_samplers.bases.masses import masses_around
      >>> target = cs.Target(lambda x: -0.5 * x @ x, dim=1)
      >>> modes = cs.bases.find_modes(jax.random.key(0), target, num_starts=16)
      >>> found = masses_around(jax.random.key(1), target, modes)
      >>> bool(abs(found.log_mass[0] - 0.919) < 0.2)  # log sqrt(2 pi)
      True
    """
    num_modes, dim = modes.loc.shape
    per_mode = int(min(_NUM_DRAWS, 3.0 * affordable(target) / max(num_modes, 1)))
    measured = num_modes if per_mode >= 32 else int(3.0 * affordable(target) / 32)
    per_mode, measured = max(per_mode, 32), min(measured, num_modes)
    log_mass, error = np.full(num_modes, -np.inf), np.full(num_modes, np.inf)
    if measured == 0:
        return Masses(log_mass, error)
    degrees = max(dim, _MIN_DEGREES)
    normal = iterating.normals(rng_key, measured * per_mode, dim + degrees).astype(np.float64)
    chi_square = (normal[:, dim:] ** 2).sum(1, keepdims=True)
    z = (normal[:, :dim] / np.sqrt(chi_square / degrees)).reshape(measured, per_mode, dim)
    points = modes.loc[:measured, None] + np.einsum("kij,knj->kni", modes.scale_tril[:measured], z)
    square = (z**2).sum(-1)
    flat = points.reshape(-1, dim).astype(jnp.result_type(float))
    value = np.asarray(rounding.values(target.log_density, flat), np.float64)
    value = np.where(np.isnan(value), -np.inf, value).reshape(measured, per_mode)
    log_det = np.log(np.diagonal(modes.scale_tril[:measured], axis1=1, axis2=2)).sum(1)
    log_weight = value + log_det[:, None] - _log_student(square, dim, degrees)
    log_weight = np.where(square <= _square_radius(dim), log_weight, -np.inf)
    largest = log_weight.max(1)
    safe = np.where(np.isfinite(largest), largest, 0.0)
    weight = np.exp(log_weight - safe[:, None])
    mean = weight.mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass[:measured] = np.log(mean) + safe
        relative = weight.std(1, ddof=1) / np.sqrt(per_mode) / mean
    error[:measured] = np.where(mean > 0, relative, np.inf)
    return Masses(log_mass, error)


def _square_radius(dim: int) -> float:
    # Six standard deviations beyond the mean of a chi-square of dim degrees: modes are not normal.
    return float(dim + 6.0 * np.sqrt(2.0 * dim))


def _log_student(square: np.ndarray, dim: int, degrees: int) -> np.ndarray:
    """Log density of the multivariate t at a squared distance, without its covariance's part."""
    constant = gammaln(0.5 * (degrees + dim)) - gammaln(0.5 * degrees)
    constant -= 0.5 * dim * np.log(degrees * np.pi)
    log_density: np.ndarray = constant - 0.5 * (degrees + dim) * np.log1p(square / degrees)
    return log_density
