"""How products of one-dimensional mixtures are fitted: to particles, and by coordinate ascent.

Given the others, the law of a coordinate with the largest ELBO is

    q_i(x_i) ∝ exp E[log ρ(x_i, x_-i)],   x_-i from the other laws

(Bishop, "Pattern recognition and machine learning", 2006, equation 10.9). Here it is tabulated for
all coordinates at once.
"""

import math
import warnings
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from consistent_samplers.bases import iterating
from consistent_samplers.bases.exploration import Exploration, explore
from consistent_samplers.bases.iterating import affordable
from consistent_samplers.bases.mixture import ProductMixtureBase
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import PRNGKey

_NUM_ROUNDS = 2
_MOST_DRAWS, _FEWEST_DRAWS = 16, 4  # of the other coordinates, in a mean
# Points of a table: evenly over all that was found, and around each component.
_NUM_EVEN, _NUM_AROUND, _REACH, _MARGIN = 64, 96, 5.0, 0.25
_MOST_COMPONENTS, _NUM_EM = 5, 250
_NATS = 0.03  # that all mixtures together may miss of their tables
_WIDE = 0.01  # share of a fit that goes into the tails
_MOST_POINTS = 65_536  # at once
# Nats by which a coordinate's density is much less than before, and the largest share of particles
# at which it may be: a product that leaves out one of two modes has much less at half of them.
_MUCH_LESS, _MOST_LEFT_OUT = 3.0, 0.02
# Log weights, means and standard deviations ``[dim, k]``.
_Parts: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


@iterating.one_thread
def fit_product_mixture(
    rng_key: PRNGKey,
    target: Target,
    *,
    exploration: Exploration | None = None,
    max_components: int = 3,
) -> ProductMixtureBase:
    """A product of one-dimensional mixtures, fitted to the marginals of tempered particles.

    For modes that multiply: two in each of thirty coordinates are 2^30 of them, which no list of
    components holds.

    Args:
      rng_key: key.
      target: the target.
      exploration: what `explore` found; a new look if None.
      max_components: largest number of components of a coordinate, found by BIC.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> key, target = jax.random.key(0), cs.targets.double_wells(dim=2, num_wells=2)
      >>> found = cs.bases.explore(key, target, num_starts=16, num_particles=400)
      >>> cs.bases.fit_product_mixture(key, target, exploration=found).loc.shape  # two in each
      (2, 2)
    """
    from sklearn.mixture import GaussianMixture

    if exploration is None:
        exploration = explore(rng_key, target)
    particles, sizes = np.asarray(exploration.particles, np.float64), range(1, max_components + 1)
    log_weights = np.full((target.dim, max_components), -np.inf)
    loc = np.repeat(particles.mean(0)[:, None], max_components, 1)
    scale = np.repeat(np.maximum(particles.std(0), 1e-6)[:, None], max_components, 1)
    for i, values in enumerate(particles.T):
        centre, spread = values.mean(), max(values.std(), 1e-6)
        scaled = ((values - centre) / spread)[:, None]
        fits = [GaussianMixture(k, random_state=0, reg_covar=1e-6).fit(scaled) for k in sizes]
        fitted = min(fits, key=lambda f: f.bic(scaled))
        k = fitted.n_components
        log_weights[i, :k] = np.log(fitted.weights_)
        loc[i, :k] = centre + spread * fitted.means_[:, 0]
        scale[i, :k] = spread * np.sqrt(fitted.covariances_[:, 0, 0])
    used = max(int(np.isfinite(log_weights).sum(1).max()), 1)
    return ProductMixtureBase(*(jnp.asarray(a[:, :used], float) for a in (log_weights, loc, scale)))


def mean_field(
    rng_key: PRNGKey, target: Target, base: ProductMixtureBase, found: Exploration
) -> ProductMixtureBase:
    """A product near the best one, by two rounds from ``base``; itself where a round is too dear.

    Each coordinate is looked at wherever an optimum or a particle was found: particles that have
    lost one of two modes in some of many coordinates do not lose it for the product. What ends
    without mass where the particles have it, as where signs are bound together, is not taken.

    Args:
      rng_key: key of the draws that the means are over.
      target: the target.
      base: where to start.
      found: optima and particles.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.bases.product_fit import mean_field
      >>> key, target = jax.random.key(0), cs.targets.many_well(2)
      >>> found = cs.bases.explore(key, target, num_starts=8, num_particles=200)
      >>> start = cs.bases.fit_product_mixture(key, target, exploration=found)
      >>> base = mean_field(key, target, start, found)
      >>> bool(cs.bases.judge(key, target, base).elbo > target.log_z - 0.1)
      True
    """
    extent = found.extent
    if extent is None:
        around = np.concatenate([found.modes.loc, found.particles])
        extent = np.stack([around.min(0), around.max(0)])
    each = target.dim * (_NUM_EVEN + _NUM_AROUND) * _NUM_ROUNDS
    num_draws = int(min(_MOST_DRAWS, affordable(target) / each))
    if num_draws < _FEWEST_DRAWS:
        return base
    refined = base
    for key in iterating.split(rng_key)[:_NUM_ROUNDS]:
        grid = _grid(refined, extent)
        draws = np.asarray(refined.sample(key, num_draws))
        table = _tabulated(target, grid, draws)
        # Where no product is inside of the support there is nothing to refine.
        if not np.isfinite(table).any(axis=1).all():
            return base
        refined = _of_table(grid, table)
    return base if _leaves_out(found.particles, refined, base) else refined


def _leaves_out(particles: Any, product: ProductMixtureBase, before: ProductMixtureBase) -> bool:
    """Whether some of the particles ``[n, dim]`` have hardly any mass in a coordinate by now."""
    now, then = (
        np.asarray(logsumexp(of.log_joint(particles), axis=-1)) for of in (product, before)
    )
    return bool(((now < then - _MUCH_LESS).mean(0) > _MOST_LEFT_OUT).any())


def fit_product(*args: Any, **kwargs: Any) -> ProductMixtureBase:
    """The former name of `fit_product_mixture`, for one version more.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.bases.fit_product_mixture is not cs.bases.fit_product  # warns, and does the same
      True
    """
    warnings.warn(
        "fit_product is now called fit_product_mixture.", DeprecationWarning, stacklevel=2
    )
    return fit_product_mixture(*args, **kwargs)


def _grid(base: ProductMixtureBase, extent: np.ndarray) -> np.ndarray:
    """Places ``[dim, n]`` in ascending order, over an extent ``[2, dim]`` and each mixture."""
    parts = (np.asarray(part, np.float64) for part in (base.log_weights, base.loc, base.scale))
    low, high = extent.astype(np.float64)
    margin = _MARGIN * (high - low)
    even, rows = np.linspace(low - margin, high + margin, _NUM_EVEN, axis=1), []
    for line, weights, loc, scale in zip(even, *parts, strict=True):
        used = np.isfinite(weights)
        steps = np.linspace(-_REACH, _REACH, -(-_NUM_AROUND // used.sum()))[:, None]
        rows.append(np.concatenate([line, (steps * scale[used] + loc[used]).ravel()[:_NUM_AROUND]]))
    return np.sort(np.stack(rows), axis=1)


def _tabulated(target: Target, grid: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mean log density ``[dim, n]`` with each coordinate at its places, the others from draws."""
    dim, num = grid.shape
    total, step = np.zeros((dim, num)), max(1, _MOST_POINTS // num)
    for draw in draws:
        for first in range(0, dim, step):
            some = np.arange(first, min(first + step, dim))
            points = np.tile(draw, (len(some), num, 1))
            points[np.arange(len(some))[:, None], np.arange(num), some[:, None]] = grid[some]
            values = evaluation.values(target.log_density, points.reshape(-1, dim))
            total[some] += np.asarray(values, np.float64).reshape(len(some), num)
    return np.where(np.isnan(total), -np.inf, total / len(draws))


def _of_table(grid: np.ndarray, log_density: np.ndarray) -> ProductMixtureBase:
    """Mixtures of the fewest components that are near the tables, or of the most."""
    with np.errstate(divide="ignore"):
        log_mass = log_density + np.log(np.gradient(grid, axis=1))
    mass = np.exp(log_mass - logsumexp(log_mass, axis=1, keepdims=True))
    # And some of its square root's, for the tails: weights there would be large else.
    log_mass = 0.5 * (log_mass + np.log(np.gradient(grid, axis=1)))
    wide = np.exp(log_mass - logsumexp(log_mass, axis=1, keepdims=True))
    mass = (1.0 - _WIDE) * mass + _WIDE * wide
    fits = [_by_em(grid, mass, k) for k in range(1, _MOST_COMPONENTS + 1)]
    # A component more has to be worth its part of what may be missed.
    costs = [
        k * _NATS / len(grid) - (mass * logsumexp(_log_joint(grid, *parts), axis=2)).sum(1)
        for k, parts in enumerate(fits)
    ]
    best, shape = np.argmin(costs, axis=0), (len(grid), _MOST_COMPONENTS)
    weights, _, _ = whole = np.full(shape, -np.inf), *(np.tile(p, shape[1]) for p in fits[0][1:])
    for i, parts in enumerate(fits):
        for of, part in zip(whole, parts, strict=True):
            of[best == i, : i + 1] = part[best == i]
    used = int(np.isfinite(weights).sum(1).max())
    return ProductMixtureBase(*(jnp.asarray(a[:, :used], float) for a in whole))


def _by_em(x: np.ndarray, mass: np.ndarray, k: int) -> _Parts:
    """Mixtures of ``k`` components fitted to masses at places ``[dim, n]``, by EM.

    All coordinates at once; scikit-learn's, which takes points without masses, would not do.
    They start as parts of even length, from the first to the last thousandth of the mass.
    """
    cumulative, last = np.cumsum(mass, 1), x.shape[1] - 1
    ends = (np.minimum((cumulative < share).sum(1), last) for share in (1e-3, 1.0 - 1e-3))
    low, high = (x[np.arange(len(x)), end][:, None] for end in ends)
    length = np.maximum(high - low, 1e-9 * (1.0 + np.abs(low)))
    share = np.eye(k)[np.clip((x - low) / length * k, 0, k - 1).astype(int)]
    for _ in range(_NUM_EM if k > 1 else 1):
        weighed = share * mass[..., None]
        total = np.maximum(weighed.sum(1), 1e-6)
        loc = (weighed * x[..., None]).sum(1) / total
        variance = (weighed * (x[..., None] - loc[:, None]) ** 2).sum(1) / total
        scale = np.maximum(np.sqrt(variance), 1e-3 * length)
        parts = np.log(total / total.sum(1, keepdims=True)), loc, scale
        joint = _log_joint(x, *parts)
        share = np.exp(joint - joint.max(2, keepdims=True))
        share /= share.sum(2, keepdims=True)
    return parts


def _log_joint(
    x: np.ndarray, log_weights: np.ndarray, loc: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Log π + log N by coordinate, place and component."""
    z = (x[..., None] - loc[:, None]) / scale[:, None]
    joint: np.ndarray = (log_weights - np.log(scale))[:, None] - 0.5 * (
        z**2 + math.log(2 * math.pi)
    )
    return joint
