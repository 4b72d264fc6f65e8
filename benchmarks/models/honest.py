"""Densities with a known log Z for `benchmarks.honesty`, and how runs on some are made to fail."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from jax.scipy.special import gammaln, logsumexp

import consistent_samplers as cs
from consistent_samplers.bases import GaussianBase
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, PRNGKey

_Base: TypeAlias = Callable[[PRNGKey, Target], Any]
_FREE = {"monotonicity_weight": 0.0, "learning_rate": 3e-2}  # nothing keeps the map from folding


@dataclasses.dataclass(frozen=True)
class Plan:
    """Runs of one kind.

    Attributes:
      target: what is sampled.
      base: makes the base of one run.
      fails: how the run is meant to fail, or "" for one that is meant to work.
      iterations: of calibration.
      settings: of the calibration.
      untrained: scale of random numbers put into the network instead of training it.
    """

    target: Target
    base: _Base
    fails: str = ""
    iterations: int = 300
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    untrained: float = 0.0


def cases() -> list[Plan]:
    """All of them."""
    funnel, banana, wells = cs.targets.funnel(5), cs.targets.rosenbrock(2), cs.targets.many_well(8)
    gmm9, rings = cs.targets.gmm9(), cs.targets.rings()
    return [
        Plan(_correlated(5), _gaussian),
        Plan(_correlated(20), _gaussian, iterations=100),
        Plan(_student(3, 8.0), _gaussian),
        Plan(_student(10, 8.0), _gaussian),
        Plan(funnel, _gaussian, iterations=600),
        Plan(banana, _gaussian, iterations=600),
        Plan(gmm9, cs.bases.fit_mixture),
        Plan(cs.targets.gmm40(2), cs.bases.fit_mixture, iterations=100),
        Plan(_two_modes(5, 8.0, 0.5), cs.bases.fit_mixture),
        Plan(cs.targets.double_wells(5, 2, 3.0), cs.bases.fit_mixture),
        *(Plan(target, _gaussian) for target in _of_one_mode()),
        *(Plan(target, cs.bases.fit_mixture) for target in _of_several_modes()),
        Plan(wells, _gaussian, "a Gaussian on many modes"),
        Plan(gmm9, _wide(5.0), "a Gaussian on many modes"),
        Plan(rings, _wide(3.0), "a Gaussian on many modes"),
        Plan(_two_modes(2, 12.0, 0.5), _at(6.0), "a missed mode"),
        Plan(_two_modes(10, 12.0, 0.5), _at(6.0), "a missed mode"),
        Plan(_two_modes(5, 12.0, 0.2), _at(6.0), "a missed mode"),
        Plan(_student(2, 1.5), _wide(1.0), "heavy tails"),
        Plan(_student(10, 2.0), _wide(1.0), "heavy tails"),
        Plan(_student(20, 2.0), _gaussian, "heavy tails"),
        Plan(_correlated(10), _wide(1.0), "a cut budget", iterations=20),
        Plan(funnel, _wide(1.0), "a cut budget", iterations=20),
        Plan(banana, _wide(1.0), "a cut budget", iterations=20),
        Plan(gmm9, _wide(4.0), "a folded map", untrained=0.6),
        Plan(_correlated(5), _at(0.0), "a folded map", untrained=0.6),
        Plan(rings, _wide(3.0), "a folded map", settings=_FREE),
    ]


def _gaussian(key: PRNGKey, target: Target) -> GaussianBase:
    return cs.bases.fit_gaussian(key, target, num_iterations=300)


def _wide(scale: float) -> _Base:
    return lambda key, target: cs.bases.standard_normal(target.dim, scale)


def _at(loc: float) -> _Base:
    """A Gaussian at (loc, 0, ..., 0)."""
    return lambda key, target: GaussianBase(
        jnp.zeros(target.dim).at[0].set(loc), jnp.eye(target.dim)
    )


# --- Densities ----------------------------------------------------------------------------------


def _of_one_mode() -> list[Target]:
    return [
        *(_correlated(dim) for dim in (2, 10, 15)),
        *(_student(dim, df) for dim, df in ((2, 5.0), (5, 15.0), (15, 30.0))),
        *(_multivariate_t(dim, df) for dim, df in ((2, 6.0), (5, 10.0), (10, 20.0))),
        *(_independent(_logistic, dim) for dim in (3, 10)),
        _independent(_gumbel, 5),
        *(_independent(_log_gamma, *of) for of in ((2, 0.7), (4, 2.0), (10, 5.0))),
        *(_independent(_logit_beta, *of) for of in ((2, 1.0, 1.0), (3, 2.0, 5.0), (8, 4.0, 4.0))),
        *(_independent(_skew_normal, *of) for of in ((2, 3.0), (6, 2.0), (12, 1.0))),
        *(_banana(dim, bend) for dim, bend in ((2, 0.5), (3, 0.3), (6, 0.2))),
        *(_walk(dim) for dim in (5, 12, 20)),
        *(_mean_and_scale(num) for num in (2, 5, 20)),
        *(_groups(dim) for dim in (3, 6, 11)),
        *(_scaled(*of) for of in ((4, 2.0), (10, 3.0), (3, 1.0, 1e3), (3, 1.0, -1e5))),
    ]


def _of_several_modes() -> list[Target]:
    return [
        _mixed("contaminated_3d", 3, [(0.8, 0.0, 1.0), (0.2, 0.0, 4.0)]),
        _mixed("contaminated_8d", 8, [(0.9, 0.0, 1.0), (0.1, 0.0, 2.5)]),
        _mixed("concentric_3d", 3, [(0.65, 0.0, 1.0), (0.35, 0.0, 20.0)]),
        _mixed("concentric_12d", 12, [(0.5, 0.0, 1.0), (0.5, 0.0, 8.0)]),
        _mixed("wide_beside_4d", 4, [(0.6, 0.0, 1.0), (0.4, 10.0, 30.0)]),
        _mixed("spike_and_slab_2d", 2, [(0.5, 0.0, 0.2), (0.5, 0.0, 2.0)]),
        _mixed("shoulder_4d", 4, [(0.7, 0.0, 1.0), (0.3, 2.5, 0.7)]),
        _mixed("three_3d", 3, [(0.2, -6.0, 0.5), (0.5, 0.0, 1.0), (0.3, 6.0, 1.5)]),
        _mixed("unequal_6d", 6, [(0.95, 0.0, 1.0), (0.05, 7.0, 1.0)]),
        _two_modes(3, 4.0, 0.3),
        _two_modes(12, 8.0, 0.6),
        cs.targets.double_wells(6, 3, 2.0),
    ]


def _mixed(name: str, dim: int, parts: list[tuple[float, float, float]]) -> Target:
    """Gaussians of a share, a place on the first axis, and a scale."""
    shares, places, scales = (np.array(part) for part in zip(*parts, strict=True))
    loc = np.zeros((len(parts), dim))
    loc[:, 0] = places

    def log_density(x: Array) -> Array:
        terms = stats.norm.logpdf(x, *(part.astype(x.dtype) for part in (loc, scales[:, None])))
        return logsumexp(terms.sum(1) + np.log(shares).astype(x.dtype))

    return Target(log_density, dim, name, 0.0)


def _two_modes(dim: int, distance: float, share: float) -> Target:
    """Unit Gaussians at ± distance / 2 on the first axis, the right one with a given share."""
    parts = [(share, 0.5 * distance, 1.0), (1.0 - share, -0.5 * distance, 1.0)]
    return _mixed(f"two_modes_{dim}d_{share:g}", dim, parts)


def _correlated(dim: int) -> Target:
    mixing = np.random.default_rng(dim).normal(size=(dim, dim))
    return cs.targets.gaussian(np.arange(dim), mixing @ mixing.T / dim + 0.1 * np.eye(dim))


def _student(dim: int, df: float) -> Target:
    """Independent Student-t coordinates."""
    return Target(lambda x: stats.t.logpdf(x, df).sum(), dim, f"student_t{df:g}_{dim}d", 0.0)


def _independent(log_prob: Callable[..., Array], dim: int, *of: float) -> Target:
    """Coordinates of one density each, turned so that no axis is special."""
    turn = np.linalg.qr(np.random.default_rng(dim).normal(size=(dim, dim)))[0]
    name = f"{log_prob.__name__.strip('_')}{'_'.join(f'{value:g}' for value in of)}_{dim}d"
    return Target(lambda x: log_prob(jnp.asarray(turn) @ x, *of).sum(), dim, name, 0.0)


def _logistic(x: Array) -> Array:
    return jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x)


def _gumbel(x: Array) -> Array:
    return -x - jnp.exp(-x)


def _log_gamma(x: Array, shape: float) -> Array:
    """Of the logarithms of Gamma variables, as scales are without their bounds."""
    return shape * x - jnp.exp(x) - gammaln(shape)


def _logit_beta(x: Array, a: float, b: float) -> Array:
    """Of the logits of Beta variables, as probabilities are without their bounds."""
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return a * jax.nn.log_sigmoid(x) + b * jax.nn.log_sigmoid(-x) + constant


def _skew_normal(x: Array, slope: float) -> Array:
    return math.log(2.0) + stats.norm.logpdf(x) + stats.norm.logcdf(slope * x)


def _multivariate_t(dim: int, df: float) -> Target:
    log_z = 0.5 * dim * math.log(df * math.pi) + math.lgamma(0.5 * df)
    log_z -= math.lgamma(0.5 * (df + dim))
    name = f"multivariate_t{df:g}_{dim}d"
    return Target(lambda x: -0.5 * (df + dim) * jnp.log1p(x @ x / df), dim, name, log_z)


def _banana(dim: int, bend: float) -> Target:
    """All but the first coordinate around a parabola of it."""

    def log_density(x: Array) -> Array:
        rest = stats.norm.logpdf(x[1:], bend * (x[0] ** 2 - 1.0), 0.5)
        return stats.norm.logpdf(x[0]) + rest.sum()

    return Target(log_density, dim, f"banana{bend:g}_{dim}d", 0.0)


def _walk(dim: int) -> Target:
    """A random walk, seen with noise at every step: a Gaussian posterior with its evidence."""
    rng = np.random.default_rng(dim)
    seen = np.cumsum(rng.normal(size=dim)) + 0.5 * rng.normal(size=dim)
    steps = np.minimum(np.arange(1, dim + 1)[:, None], np.arange(1, dim + 1))
    covariance = steps + 0.25 * np.eye(dim)
    log_z = -0.5 * (seen @ np.linalg.solve(covariance, seen) + np.linalg.slogdet(covariance)[1])
    log_z -= 0.5 * dim * math.log(2.0 * math.pi)

    def log_density(x: Array) -> Array:
        prior = stats.norm.logpdf(jnp.diff(x, prepend=0.0)).sum()
        return prior + stats.norm.logpdf(seen, x, 0.5).sum()

    return Target(log_density, dim, f"random_walk_{dim}d", log_z)


def _mean_and_scale(num: int) -> Target:
    """Mean and log variance of a few normal observations, with their conjugate prior."""
    seen = np.random.default_rng(num).normal(3.0, 2.0, size=num)
    shape, rate, strength = 2.0, 2.0, 0.5
    mean = seen.mean()
    after = shape + 0.5 * num
    rest = 0.5 * ((seen - mean) ** 2).sum() + 0.5 * strength * num * mean**2 / (strength + num)
    log_z = math.lgamma(after) - math.lgamma(shape) + shape * math.log(rate)
    log_z -= after * math.log(rate + rest) + 0.5 * num * math.log(2.0 * math.pi)
    log_z += 0.5 * math.log(strength / (strength + num))

    def log_density(x: Array) -> Array:
        mu, log_variance = x
        scale = jnp.exp(0.5 * log_variance)
        # Inverse Gamma, and the Jacobian of the logarithm.
        prior = shape * math.log(rate) - math.lgamma(shape)
        prior = prior - shape * log_variance - rate * jnp.exp(-log_variance)
        prior = prior + stats.norm.logpdf(mu, 0.0, scale / math.sqrt(strength))
        return prior + stats.norm.logpdf(seen, mu, scale).sum()

    return Target(log_density, 2, f"mean_and_scale_{num}", log_z)


def _groups(dim: int) -> Target:
    """A prior of group effects with their scale: a funnel of moderate width."""

    def log_density(x: Array) -> Array:
        scale = jnp.exp(0.5 * x[0])
        return stats.norm.logpdf(x[0]) + stats.norm.logpdf(x[1:], 0.0, scale).sum()

    return Target(log_density, dim, f"groups_{dim}d", log_z=0.0)


def _scaled(dim: int, decades: float, constant: float = 0.0) -> Target:
    """A Gaussian with scales over some decades, and a constant in its log density."""
    scales = np.geomspace(10.0**-decades, 10.0**decades, dim)

    def log_density(x: Array) -> Array:
        # As it is, JAX would keep the array in the precision that it is met in first.
        return stats.norm.logpdf(x / scales.astype(x.dtype)).sum() + constant

    log_z = float(np.log(scales).sum()) + constant
    return Target(log_density, dim, f"scales_{decades:g}_{constant:g}_{dim}d", log_z)
