"""The choice among the kinds of base, after a look at the target."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from consistent_samplers.bases.base import Base
from consistent_samplers.bases.exploration import NUM_PARTICLES, Exploration, explore
from consistent_samplers.bases.gaussian import GaussianBase
from consistent_samplers.bases.gaussian_fit import fit_gaussian
from consistent_samplers.bases.iterating import MAX_DENSE_DIM, split
from consistent_samplers.bases.judging import Fit, judge
from consistent_samplers.bases.laplace import check_starts, usable_everywhere
from consistent_samplers.bases.mixture import MixtureBase, ProductMixtureBase, mixture
from consistent_samplers.bases.mixture_fit import fit_mixture, train_mixture
from consistent_samplers.bases.modes import Modes, fall_between
from consistent_samplers.bases.product_fit import fit_product_mixture, mean_field
from consistent_samplers.bases.scales import mass_farther
from consistent_samplers.targets import rounding
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_EVEN = 0.9  # share of a Gaussian's effective draws above which particles are not looked at
_MINOR = 0.01  # an optimum with a smaller share of the largest one's evidence counts as no mode,
_DIP = 1.0  # nor does one on the way to which the density falls by less than this, in nats
_SPIKE_NATS = 5.0  # by which log weights exceed the ELBO at a spike
_UNSEEN_NATS = 2.0  # by which the particles' log Z must exceed the Gaussian's ELBO to look further
_NUM_INSIDE = 8  # points inside of the support to start from, where it has to be looked for
_INSIDE = 0.99  # share of draws inside of the support, below which a flow makes up for nothing
_WIDER = 1.1  # than particles, of a Gaussian
_FLOW_NATS = 1.0  # by which components of one mode must beat a Gaussian before calibration


class FittedBase(NamedTuple):
    """The best of several kinds of base.

    Attributes:
      base: the base.
      kind: ``"gaussian"``, ``"mixture"`` or ``"product"``.
      fits: how well each kind that was tried fits.
      exploration: what they were fitted to.

    Example:
      >>> import consistent_samplers as cs
      >>> base, fits = cs.bases.standard_normal(2), {"gaussian": cs.bases.Fit(-1.2, 0.1, 0.8)}
      >>> cs.bases.FittedBase(base, "gaussian", fits, exploration=None).kind
      'gaussian'
    """

    base: Base
    kind: str
    fits: dict[str, Fit]
    exploration: Exploration


def fit(rng_key: PRNGKey, target: Target, *, init_position: Array | None = None) -> Base:
    """The base that the recipe takes for a target: that of `fit_base`, with the same arguments.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 1.0) ** 2), dim=1)
      >>> cs.bases.fit(jax.random.key(0), target).loc.round(2).tolist()
      [1.0]
    """
    return fit_base(rng_key, target, init_position=init_position).base


def fit_base(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    told: Callable[[Fit], object] = lambda _: None,
) -> FittedBase:
    """The best of a Gaussian, a mixture and a product of mixtures, fitted to a target.

    The target is explored first (`explore`). Where no dip of the density lies between the optima,
    and the particles see little more than the Gaussian does, the Gaussian is taken: one step of a
    flow shapes a single mode better than more components do. Otherwise the best ELBO of all wins;
    it does not know of a mode that no exploration met. A product that wins is refined by coordinate
    ascent. Tempered particles are left out where more
    than nine tenths of the Gaussian's own draws are effective, optimisers find no other mode, and
    draws at larger scales no mass that lies farther out.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points where the target is known to have mass.
      told: called with how well a Gaussian fits, before other kinds are tried.

    Raises:
      ValueError: the density is NaN, +inf, or zero everywhere it was tried.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 1.0) ** 2), dim=1)
      >>> cs.bases.fit_base(jax.random.key(0), target).kind  # doctest: +SKIP
      'gaussian'
    """
    key_explore, key_gaussian, key_mixture, key_product, key_judge = split(rng_key)
    gaussian = _fitted_gaussian(key_gaussian, target, init_position)
    bases: dict[str, Base] = {"gaussian": gaussian}
    fits = {"gaussian": judge(key_judge, target, gaussian)}
    told(fits["gaussian"])
    # Particles set out from around the optima: where there is one, of which a Gaussian shows all
    # but a few percent, they see no more than its draws do.
    even = fits["gaussian"].ess > _EVEN
    farther = _farther(key_gaussian, target, gaussian, fits["gaussian"].elbo) if even else None
    for num in (0, NUM_PARTICLES) if even else (NUM_PARTICLES,):
        found = explore(key_explore, target, init_position=init_position, num_particles=num)
        num_modes = _num_separate(target, found.modes)
        spikes = _num_spikes(target, found.modes, gaussian, fits["gaussian"].elbo)
        # The one that the Gaussian is at may be no spike.
        num_modes = max(num_modes, 1 + spikes if spikes else 0)
        if num_modes <= 1:
            break
    simple = num_modes <= 1 and not found.log_z > fits["gaussian"].elbo + _UNSEEN_NATS
    # At an edge the gradients that a Gaussian is fitted by say nothing: particles tell its width.
    has_edges = fits["gaussian"].inside <= _INSIDE
    if (has_edges or found.inside < 1.0) and _usable(found.particles):
        as_particles = _of_particles(found.particles)
        fit = judge(key_judge, target, as_particles)
        if fit.inside <= _INSIDE and fit.ess > fits["gaussian"].ess:
            has_edges, bases["gaussian"], fits["gaussian"] = True, as_particles, fit
    if farther is not None and num_modes <= 1:
        bases["mixture"], num_modes = train_mixture(key_mixture, target, farther), 2
        fits["mixture"] = judge(key_judge, target, bases["mixture"])
    elif (has_edges or not simple) and target.dim <= MAX_DENSE_DIM:
        bases["mixture"] = fit_mixture(key_mixture, target, exploration=found)
        if _usable(found.particles):
            product = fit_product_mixture(key_product, target, exploration=found)
            bases["product"] = product
        for kind in bases.keys() - fits.keys():
            fits[kind] = judge(key_judge, target, bases[kind])
        if max(fits, key=lambda kind: fits[kind].elbo) == "product":
            bases["product"], fits["product"] = _refined(
                key_product, key_judge, target, product, found
            )
    if has_edges:
        # No flow makes up for draws outside.
        kind = max(bases, key=lambda kind: fits[kind].ess)
        return FittedBase(bases[kind], kind, fits, found)
    best = max(fits.values(), key=lambda fit: fit.elbo)
    # The simpler kind where they differ by noise only, or by what a flow makes up for more easily
    # than on several components; not where several modes were seen, of which it may lack one.
    margin = 2.0 * best.elbo_stderr + (_FLOW_NATS if num_modes <= 1 else 0.0)
    kind = next((kind for kind in bases if fits[kind].elbo >= best.elbo - margin), "gaussian")
    return FittedBase(bases[kind], kind, fits, found)


def _refined(
    rng_key: PRNGKey,
    key_judge: PRNGKey,
    target: Target,
    product: ProductMixtureBase,
    found: Exploration,
) -> tuple[ProductMixtureBase, Fit]:
    """The better of a product of particles' marginals and what coordinate ascent makes of it."""
    both = (product, mean_field(rng_key, target, product, found))
    judged = [(base, judge(key_judge, target, base)) for base in both]
    return max(judged, key=lambda of: of[1].elbo)


def _fitted_gaussian(rng_key: PRNGKey, target: Target, init_position: Array | None) -> GaussianBase:
    """A Gaussian; where its few starts are all outside of the support, from where many found it."""
    try:
        return fit_gaussian(rng_key, target, init_position=init_position)
    except ValueError as error:
        try:
            found = explore(rng_key, target, init_position=init_position)
        except ValueError:
            raise error from None
    inside = found.modes.loc if len(found.modes.loc) else found.particles
    points = jax.device_put(inside[:_NUM_INSIDE].astype(jnp.result_type(float)))
    return fit_gaussian(rng_key, target, init_position=points)


def _farther(
    rng_key: PRNGKey, target: Target, gaussian: GaussianBase, log_z: float
) -> MixtureBase | None:
    """The Gaussian with a second component for mass that lies farther out than its draws."""
    loc, factor = (np.asarray(part, np.float64) for part in (gaussian.loc, gaussian.scale_tril))
    found = mass_farther(rng_key, target, loc, factor, log_z)
    if not found.is_there or found.covariance is None:
        return None
    ridge = 1e-6 * np.diag(np.diagonal(found.covariance))
    factors = np.stack([factor, np.linalg.cholesky(found.covariance + ridge)])
    parts = np.log([1.0, found.share]), np.stack([loc, found.loc]), factors
    return mixture(*(jnp.asarray(part, gaussian.loc.dtype) for part in parts))


def _usable(particles: np.ndarray) -> bool:
    return len(particles) > 0 and bool(np.isfinite(particles).all())


def _of_particles(particles: np.ndarray) -> GaussianBase:
    """A Gaussian of the particles' moments, a little wider for those that a finite number lacks."""
    dtype, dim = jnp.result_type(float), particles.shape[1]
    covariance = np.cov(particles.T.astype(np.float64)).reshape(dim, dim)
    ridge = 1e-6 * np.diagonal(covariance).mean() * np.eye(dim)
    factor = np.linalg.cholesky(covariance + ridge)
    return GaussianBase(jnp.asarray(particles.mean(0), dtype), jnp.asarray(_WIDER * factor, dtype))


def _num_separate(target: Target, modes: Modes) -> int:
    """Number of optima with mass that a dip of the density parts from the best one.

    Optimisers end in many places along a ridge or a flat neck, all of them in one mode.
    """
    loc = _with_mass(modes)
    if len(loc) <= 1:
        return len(loc)
    return 1 + int(np.sum(fall_between(target, loc[1:], loc[0]) > _DIP))


def _num_spikes(target: Target, modes: Modes, gaussian: GaussianBase, elbo: float) -> int:
    """Number of optima with mass whose density is far above the Gaussian's, dip or no dip.

    Those in the neck of a funnel hold next to nothing of the mass, which is exp(elbo) at least.
    """
    loc = _with_mass(modes)
    massive = modes.log_evidence[: len(loc)] > elbo + math.log(_MINOR)
    if len(loc) <= 1 or not massive.any():
        return 0
    loc = loc[massive]
    values = rounding.values(target.log_density, loc.astype(jnp.result_type(float)))
    factor = np.asarray(gaussian.scale_tril, np.float64)
    z = scipy.linalg.solve_triangular(factor, (loc - np.asarray(gaussian.loc)).T, lower=True)
    log_prob = -0.5 * (z**2 + math.log(2.0 * math.pi)).sum(0) - np.log(np.diagonal(factor)).sum()
    return int(np.sum(np.asarray(values, np.float64) - log_prob > elbo + _SPIKE_NATS))


def _with_mass(modes: Modes) -> np.ndarray:
    """Optima ``[n, dim]`` that together hold nearly all, the best first."""
    # What is left out has a hundredth of the mass, however many they are.
    mass = np.exp(modes.log_evidence - modes.log_evidence.max(initial=-np.inf))
    rest = mass.sum() - np.cumsum(mass)
    return modes.loc[: 1 + int(np.sum(rest > _MINOR * mass.sum()))]


def refit_base(rng_key: PRNGKey, target: Target, base: Base) -> Base:
    """A base of the same kind for a target much like the one that a base was fitted to.

    A Gaussian and a mixture move from where they are, so that a mode that appeared elsewhere is not
    seen. A product of mixtures is fitted anew, and a base of another class stays as it is.

    Args:
      rng_key: key.
      target: the target.
      base: what to start from.

    Raises:
      ValueError: the density is NaN, +inf, or zero everywhere it was tried.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 0.5) ** 2), dim=1)
      >>> base = cs.bases.refit_base(jax.random.key(0), target, cs.bases.standard_normal(1))
      >>> base.loc.round(1).tolist()
      [0.5]
    """
    if isinstance(base, GaussianBase):
        return fit_gaussian(rng_key, target, init_position=base.loc)
    if isinstance(base, MixtureBase):
        key_train, key_judge, *_ = split(rng_key)
        check_starts(target, np.asarray(base.loc), usable_everywhere)
        trained = train_mixture(key_train, target, base)
        better = judge(key_judge, target, trained).elbo > judge(key_judge, target, base).elbo
        return trained if better else base
    if isinstance(base, ProductMixtureBase):
        key_explore, key_product, key_judge, *_ = split(rng_key)
        found = explore(key_explore, target)
        product = fit_product_mixture(key_product, target, exploration=found)
        return _refined(key_product, key_judge, target, product, found)[0]
    return base
