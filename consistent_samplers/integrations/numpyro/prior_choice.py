"""Which density yesterday's posterior has as a prior: the map's, or one fitted to its draws."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import constraints

from consistent_samplers import bases, corrections
from consistent_samplers.bases.iterating import MAX_DENSE_DIM, folded
from consistent_samplers.checks import check_choice, check_key
from consistent_samplers.corrections import Chains
from consistent_samplers.diagnostics import (
    EVEN_ESS,
    LEVELS,
    NEARLY_EXACT_ESS,
    Verdict,
    informed,
)
from consistent_samplers.estimate import (
    Evidence,
    checked_log_weight,
    effective_sample_size,
    evidence,
    pareto_smooth,
)
from consistent_samplers.integrations.numpyro.flattening import Flat, Placed, same
from consistent_samplers.integrations.numpyro.model import FlatModel
from consistent_samplers.integrations.numpyro.prior import Density, Prior
from consistent_samplers.integrations.numpyro.sampler import OneStepSampler
from consistent_samplers.maps import Identity, marginal
from consistent_samplers.recipe import TrainedSampler, train_sampler
from consistent_samplers.sampler import Sampler
from consistent_samplers.types import Draws, PRNGKey

_NUM_DRAWS = 20_000
# Draws that a fitted mixture is judged by.
_NUM_JUDGED = 4_000
# Of a fitted mixture, and the dimension above which it has one: BIC would not take more.
_MAX_COMPONENTS, _MAX_SEVERAL_DIM = 8, 32
# By route: the share of effective draws below which training goes on, and its iterations. Over ten
# batches what a base alone is off by adds up to a third of a standard deviation.
_FURTHER = {"base": (NEARLY_EXACT_ESS, 250), "short": (EVEN_ESS, 1_500)}
_MAX_FURTHER_DIM = 100  # of the general map
# Share of effective draws below which the note says what to do.
_CLOSE = 0.9
# The name of the only part of a point without names.
_UNNAMED = "x"


def as_prior(
    sampler: TrainedSampler | OneStepSampler,
    sites: str | Sequence[str] | None = None,
    *,
    density: Density | None = None,
    rng_key: PRNGKey | None = None,
) -> Prior:
    """A NumPyro distribution that has a sampler's posterior as its density, normalised.

    Of a `OneStepSampler` it is over the latent sites, constrained, one after the other in the order
    of their names; of a `TrainedSampler` over points ``[dim]``. Two densities are on offer:

    - ``"map"``: the exact one of the one-step map, by its inverse, which is in closed form for a
      base alone and a hierarchical map, else Newton's method. Of some sites only it is exact too
      for a Gaussian base or mixture alone, and for the global ones of a hierarchical map.
    - ``"draws"``: a mixture of Gaussians over the unconstrained sites, fitted by EM to draws that
      are resampled by their weights, or to chains where these were run. Its mean and covariance are
      the posterior's to the error of the draws, its shape is a mixture's.

    The map differs from the posterior as far as its weights are uneven, and such errors add up over
    a stream of data. Training goes as far as draws need, a prior needs more: by default a sampler
    that is the base alone, or was calibrated for a short while, is trained on first, which takes
    seconds, if less than 99.9 % or 99 % of its draws are effective. Then ``"map"`` is taken where
    99 % are, or more than of the mixture's, and ``"draws"`` elsewhere and where the map has no such
    marginal. The fields ``density``, ``ess`` and ``note`` say which it is and how close.

    Args:
      sampler: a trained one.
      sites: names of some sites, for their marginal; all but imputed observations if None.
      density: ``"map"`` or ``"draws"``, of the sampler as it is; chosen as above if None.
      rng_key: key of the draws that it is judged by and fitted to; key 0 if None.

    Raises:
      RuntimeError: the `OneStepSampler` is not trained yet.
      TypeError: ``sampler`` is no trained sampler.
      ValueError: no such site, a site whose support depends on other sites, or ``density="map"``
        where there is none.

    Warns:
      UserWarning: the draws are not to be used: the verdict's words.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> import numpyro, numpyro.distributions as dist
      >>> from consistent_samplers.integrations.numpyro import OneStepSampler
      >>> def model(y, prior=None):
      ...     if prior is None:
      ...         site = {"mu": numpyro.sample("mu", dist.Normal(0.0, 2.0))}
      ...     else:
      ...         site = prior.sites()
      ...     numpyro.sample("y", dist.Normal(site["mu"], 1.0), obs=y)
      >>> sampler = OneStepSampler(model, effort="base", progress_bar=False)
      >>> sampler.run(jax.random.key(0), jnp.array([1.0, 2.0]))  # yesterday's data
      >>> prior = cs.as_prior(sampler)
      >>> today = OneStepSampler(model, effort="base", progress_bar=False)
      >>> today.run(jax.random.key(1), jnp.array([3.5]), prior)
      >>> print(f"{today.get_samples()['mu'].mean():.1f}")  # all three data: 6.5 / 3.25
      2.0
    """
    trained, model = _parts_of(sampler)
    if density is not None:
        check_choice("density", density, get_args(Density))
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    names, index = _chosen(trained, model, sites)
    whole = len(index) == trained.target.dim
    found = _judged(folded(rng_key, 0), trained)
    if density is None and whole and (further := _further(rng_key, trained, found.share)):
        other = _judged(folded(rng_key, 0), further)
        found = max(found, other, key=lambda judged: judged.share)
    points = _weighted_points(folded(rng_key, 1), found)
    support = _support(trained, model, names, points)
    own, chained = found.trained.one_step, found.chains is not None
    of_map = marginal(own.control, own.params, index) if "map" in own.methods else None
    if of_map is None and density == "map":
        raise ValueError(
            "The one-step map has no density in closed form over these sites: leave out "
            'density="map".'
        )
    uneven = found.share < EVEN_ESS and (len(index) <= MAX_DENSE_DIM or chained)
    if of_map is None or density == "draws" or (density is None and uneven):
        most = _MAX_COMPONENTS if len(index) <= _MAX_SEVERAL_DIM else 1
        base = bases.fit_to_draws(points[:, index], max_components=most)
        close = _share(base, trained, folded(rng_key, 2)) if whole else None
        better = close is None or close >= found.share or chained
        if of_map is None or density == "draws" or better:
            of = "draws of chains" if chained else "weighted draws"
            words = f"A mixture of {base.num_components} Gaussians, fitted to {of}"
            return _told(Prior(Identity(base), {}, support, "draws", close, words), found.verdict)
    assert of_map is not None
    words = "The density of the one-step map" + ("" if whole else "'s marginal")
    prior = Prior(*of_map, support, "map", found.share, words)
    return _told(prior, found.trained.verdict(found.evidence))


class _Judged(NamedTuple):
    """A trained sampler with weighted draws and what they are worth."""

    trained: TrainedSampler
    draws: Draws
    evidence: Evidence
    chains: Chains | None
    verdict: Verdict

    @property
    def share(self) -> float:
        return float(self.evidence.ess)


def _judged(rng_key: PRNGKey, trained: TrainedSampler) -> _Judged:
    draws = trained.sample(rng_key, _NUM_DRAWS)
    found = informed(evidence(draws), trained.exploration)
    chains, _, verdict = trained.concluded(found)
    return _Judged(trained, draws, found, chains, verdict)


def _further(rng_key: PRNGKey, trained: TrainedSampler, share: float) -> TrainedSampler | None:
    """The sampler trained on from its base, where that went only as far as draws needed."""
    name = "" if trained.route is None else trained.route.name
    enough, num_iterations = _FURTHER.get(name, (0.0, 0))
    if share >= enough or trained.target.dim > _MAX_FURTHER_DIM:
        return None
    with warnings.catch_warnings():
        # If it is no better, it is not taken.
        warnings.simplefilter("ignore", UserWarning)
        further = train_sampler(
            folded(rng_key, 3),
            trained.target,
            base=trained.base,
            num_calibration_iterations=num_iterations,
            explore=False,
            progress_bar=False,
        )
    # Modes were looked for, around this base.
    return dataclasses.replace(further, exploration=trained.exploration)


def _weighted_points(rng_key: PRNGKey, found: _Judged) -> np.ndarray:
    """Points ``[n, dim]`` of the posterior: draws resampled by their weights, or of chains."""
    if found.chains is not None:
        position = np.asarray(found.chains.position)
        return position.reshape(-1, position.shape[-1])
    smoothed, _ = pareto_smooth(checked_log_weight(found.draws))
    kept = corrections.systematic_indices(rng_key, smoothed, _NUM_DRAWS)
    return np.asarray(found.draws.position)[np.asarray(kept)]


def _told(prior: Prior, verdict: Verdict) -> Prior:
    """The prior with a note, after a warning where the draws behind it are not to be used."""
    if prior.ess is None:
        close = "; how close to the posterior's marginal is not measured."
    else:
        close = f"; {100 * prior.ess:.3g} % of its draws are effective for the posterior."
        if prior.ess < _CLOSE:
            other = "" if prior.density == "draws" else ', or as_prior(..., density="draws")'
            close += f' To come closer: train with effort="full"{other}.'
    prior.note += close
    if verdict.level == LEVELS[-1]:
        warnings.warn(
            f"This prior rests on draws that are not to be used: {verdict.words}", stacklevel=3
        )
    return prior


def _parts_of(sampler: Any) -> tuple[TrainedSampler, FlatModel | None]:
    if isinstance(sampler, OneStepSampler):
        return sampler.trained, sampler.flat_model
    if isinstance(sampler, TrainedSampler):
        return sampler, None
    raise TypeError(
        "as_prior takes a TrainedSampler or a OneStepSampler that was run, got "
        f"{type(sampler).__name__}."
    )


def _sizes(trained: TrainedSampler) -> dict[str, int]:
    """Unconstrained coordinates of all parts of a point, in order."""
    return dict(trained.target.sites) or {_UNNAMED: trained.target.dim}


def _chosen(
    trained: TrainedSampler, model: FlatModel | None, sites: str | Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Names of the sites asked for, in order, and their coordinates."""
    sizes = _sizes(trained)
    imputed = {} if model is None else dict(model.functions.missing)
    known = [name for name in sizes if imputed.get(name) is None]
    wanted = known if sites is None else [sites] if isinstance(sites, str) else list(sites)
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"There is no latent site {name!r}. There are {', '.join(known)}. Deterministic "
                "sites and imputed observations have no density of their own."
            )
    if not wanted:
        raise ValueError("sites names no site: leave it out for all of them.")
    ends = np.cumsum(list(sizes.values()))
    places = zip(sizes, sizes.values(), ends, strict=True)
    index = [np.arange(end - size, end) for name, size, end in places if name in wanted]
    return [name for name in sizes if name in wanted], np.concatenate(index)


def _share(base: bases.MixtureBase, trained: TrainedSampler, rng_key: PRNGKey) -> float:
    """Share of a base's draws that are effective for the posterior."""
    draws = Sampler.of_base(base).sample(rng_key, trained.target, _NUM_JUDGED)
    return float(effective_sample_size(jnp.asarray(draws.log_weight)))


def _support(
    trained: TrainedSampler, model: FlatModel | None, names: list[str], points: np.ndarray
) -> Flat:
    """The support of the sites, with the means and standard deviations of points ``[n, dim]``."""
    sizes, begin, parts = _sizes(trained), 0, []
    supports = {} if model is None else _supports(model, names, points)
    for name, size in sizes.items():
        values, begin = points[:, begin : begin + size], begin + size
        if name in names:
            support, shape = supports.get(name, (constraints.real_vector, (size,)))
            loc, scale = values.mean(0), values.std(0)
            scale = np.where(scale > 0.0, scale, 1.0)  # a single draw has all the weight
            placed = (jnp.asarray(x.reshape(shape), float) for x in (loc, scale))
            parts.append(Placed(support, *placed))
    return Flat(tuple(names), tuple(parts))


def _supports(
    model: FlatModel, names: list[str], points: np.ndarray
) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Supports and unconstrained shapes of sites, all axes their event."""
    found = []
    for point in (points.min(0), points.max(0)):
        values = model.constrain_sites(model.functions.unravel(jnp.asarray(point)))
        latent = {name: values[name] for name, _ in model.functions.sites}
        seeded, args, kwargs = model.functions.of(model.data)
        found.append(handlers.trace(handlers.substitute(seeded, latent)).get_trace(*args, **kwargs))
    supports = {}
    for name in names:
        first, second = (trace[name]["fn"].support for trace in found)
        if not same(first, second):
            raise ValueError(
                f"The support of site {name!r} depends on other sites ({first}, elsewhere "
                f"{second}), so that it has none of its own. Take as_prior(sampler.trained), over "
                "the unconstrained space, or give the site a fixed support and scale it in the "
                "model."
            )
        axes = jnp.ndim(found[0][name]["value"]) - first.event_dim
        shape = model.functions.shapes[name]
        supports[name] = constraints.independent(first, axes) if axes else first, shape
    return supports
