"""A model's posterior under another prior or likelihood, or powers of them: the same draws."""

import dataclasses
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpyro.infer.util import compute_log_probs

from consistent_samplers import corrections
from consistent_samplers.bases.iterating import folded
from consistent_samplers.compilation import jit, precision
from consistent_samplers.corrections import Reweighted
from consistent_samplers.diagnostics import LEVELS
from consistent_samplers.estimate import pareto_smooth
from consistent_samplers.integrations.numpyro.arguments import name_of
from consistent_samplers.integrations.numpyro.flattening import comes_back, in_support
from consistent_samplers.integrations.numpyro.model import FlatModel, Samples, flatten_model
from consistent_samplers.integrations.numpyro.run import Run
from consistent_samplers.integrations.numpyro.tracing import log_abs_det
from consistent_samplers.targets import Target, rounding
from consistent_samplers.types import Array, ArrayTree

# The key of the resample, of those that a run has.
_RESAMPLE = 10_000
_AT_ONCE = 64
_POWERS = ("prior_power", "likelihood_power")
# Points that tell whether one support is within another, and how far out they are.
_NUM_POINTS, _FAR = 64, 10.0


@dataclasses.dataclass(frozen=True)
class _Changed:
    """Another model's density over the unconstrained sites of a first one."""

    old: Any
    new: Any

    def __call__(self, data: ArrayTree, x: Array) -> Array:
        old_data, new_data, powers = data
        free = self.old.unravel(x)
        values = self.old.constrain_sites(old_data, free)
        sites = {name: values[name] for name, _ in self.old.sites}
        _, _, known = _terms(self.old, old_data, sites)
        log_det = log_abs_det(known, free, sites)
        log_prior, log_likelihood, found = _terms(self.new, new_data, sites)
        each = (
            _held(known[n], found[n]) or in_support(found[n]["fn"].support, sites[n]) for n in sites
        )
        inside = jnp.stack([jnp.asarray(held) for held in each]).all()
        # A power of zero leaves out what may be infinite.
        parts = jnp.stack([log_prior, log_likelihood])
        scaled = jnp.where(powers == 0.0, 0.0, powers * parts).sum()
        return jnp.where(inside, scaled + log_det, -jnp.inf)


def reweight(
    run: Run,
    model: Callable[..., Any] | None,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    prior_power: float,
    likelihood_power: float,
) -> Reweighted:
    """See `OneStepSampler.reweight`."""
    pairs = zip(_POWERS, (prior_power, likelihood_power), strict=True)
    powers = jnp.array([_power(name, value) for name, value in pairs], float)
    known, given = run.model, any(map(len, arguments))
    args, kwargs = arguments if given else known.arguments
    if given:
        taken = known.arguments[1] if model is None else {}
        _check_names(known.functions.model if model is None else model, taken)
    if model is not None:
        other = flatten_model(model, args, kwargs)
        was, now = _shapes(known), _shapes(other)
        if was != now or known.functions.shapes != other.functions.shapes:
            raise ValueError(
                f"Draws of the sites {was} cannot be used for a model with the latent sites {now}: "
                "names and shapes must be the same, unconstrained ones too "
                f"({known.functions.shapes} and {other.functions.shapes}). Run a OneStepSampler of "
                "that model."
            )
    else:
        other = known.with_arguments(args, kwargs) if given else known
    if other is not known:
        _check_supports(known, other)
    density = Partial(_Changed(known.functions, other.functions), (known.data, other.data, powers))
    target = Target(density, known.target.dim, other.target.name, sites=known.target.sites)
    cure = "run a OneStepSampler of the new model"
    if run.chains is not None:
        found = corrections.reweight_chains(
            run.chains, run.verdict, known.target, target, cure=cure
        )
    else:
        sampler = run.trained.sampler_for(run.num_steps)
        key = folded(run.rng_key, 0)  # of the run's own draws
        settings: dict[str, Any] = {"judged": run.verdict, "cure": cure, "guide": known.target}
        found = corrections.reweight(
            key, sampler, target, run.num_samples, run.num_steps, **settings
        )
    smoothed, _ = pareto_smooth(jnp.asarray(found.draws.log_weight))
    key, position = folded(run.rng_key, _RESAMPLE), np.asarray(found.draws.position)
    index = np.asarray(corrections.systematic_indices(key, smoothed, len(position)))
    samples = known.constrain(jax.device_put(position[index]))
    latent = {name: samples[name] for name, _ in known.functions.sites}
    return found._replace(samples=latent)


def sensitivity(run: Run, alphas: tuple[float, float]) -> Any:
    """See `OneStepSampler.sensitivity`."""
    try:
        base, stats = map(importlib.import_module, ("arviz_base", "arviz_stats"))
    except ImportError as error:
        raise ImportError(
            'sensitivity needs ArviZ\'s statistics: pip install "arviz-stats[xarray]".'
        ) from error
    if run.verdict.level == LEVELS[-1]:
        warnings.warn(
            f"This table rests on draws that are not to be used: {run.verdict.words}", stacklevel=3
        )
    chains = run.chains
    num_chains = 1 if chains is None else len(chains.position)
    values = run.samples(run.reweighted)[0] if chains is None else run.chain_samples()
    sites = {name: values[name] for name, _ in run.model.functions.sites}
    log_prior, log_likelihood = _terms_of(run.model.functions, run.model.data, sites)
    groups: dict[str, dict[str, Any]] = {
        "posterior": sites,
        "log_prior": {"joint": log_prior},
        "log_likelihood": {"joint": log_likelihood},
    }
    shaped = {
        group: {k: np.asarray(v).reshape(num_chains, -1, *v.shape[1:]) for k, v in part.items()}
        for group, part in groups.items()
    }
    with np.errstate(divide="ignore", invalid="ignore"):  # of a prior that is constant
        return stats.psense_summary(base.from_dict(shaped), alphas=alphas)


def _power(name: str, value: Any) -> float:
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "biuf" or not 0.0 <= float(number) < math.inf:
        raise ValueError(f"{name} must be a number that is not negative, got {value!r}.")
    return float(number)


def _held(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether all values of a site are in the support of another, which is the same everywhere.

    Far out an inverse may not be finite there.
    """
    a, b = (site["fn"].support for site in (first, second))
    kinds: list[Any] = [jax.tree.structure(support) for support in (a, b)]
    return bool(kinds[0] == kinds[1]) and not jax.tree.leaves(a)


def _check_names(model: Any, taken: Iterable[str]) -> None:
    """Raises where keywords of a model, or those that it took before, have the powers' names."""
    fn = model
    while not inspect.isfunction(fn) and (inner := getattr(fn, "fn", getattr(fn, "func", None))):
        fn = inner
    try:
        names = {*inspect.signature(fn).parameters, *taken}
    except (TypeError, ValueError):
        names = set(taken)
    for name in names.intersection(_POWERS):
        raise ValueError(
            f"Model {name_of(model)!r} has an argument {name!r}, which reweight takes for its own "
            f"power: set it inside, sampler.reweight(lambda y: model(y, {name}=...), y)."
        )


def _check_supports(known: FlatModel, other: FlatModel) -> None:
    """Raises where another model has sites where the draws of the known one cannot be."""

    def within(known_data: ArrayTree, other_data: ArrayTree, x: Array) -> dict[str, Array]:
        functions = other.functions
        values = functions.constrain_sites(other_data, functions.unravel(x))
        sites = {name: values[name] for name, _ in known.functions.sites}
        was = _terms(known.functions, known_data, sites)[2]
        now = _terms(functions, other_data, sites)[2]
        return {
            n: jnp.asarray(_held(now[n], was[n]) or comes_back(was[n]["fn"].support, sites[n]))
            for n in sites
        }

    def every(known_data: ArrayTree, other_data: ArrayTree, points: Array) -> dict[str, Array]:
        return jax.lax.map(lambda x: within(known_data, other_data, x), points)

    shape = _NUM_POINTS, known.target.dim
    points = jax.random.uniform(jax.random.key(0), shape, minval=-_FAR, maxval=_FAR)
    for name, inside in jit(every)(known.data, other.data, points).items():
        if not np.all(inside):
            raise ValueError(
                f"Site {name!r} of the new model has a larger support than the draws have, so that "
                "its log Z and its mass beyond would be left out. Run a OneStepSampler of that "
                "model."
            )


def _terms(functions: Any, data: ArrayTree, sites: Samples) -> tuple[Array, Array, Any]:
    """Log prior and log likelihood ``[]`` at constrained latent sites, and the model's trace.

    Imputed observations count as data.
    """
    log_probs, trace = compute_log_probs(*functions.of(data), sites)
    priors = sites.keys() - {name for name, index in functions.missing if index is not None}
    log_prior = sum((log_probs[n] for n in log_probs if n in priors), start=jnp.zeros(()))
    others = (log_probs[n] for n in log_probs if n not in priors)
    return log_prior, sum(others, start=jnp.zeros(())), trace


def _terms_of(functions: Any, data: ArrayTree, sites: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Log priors and log likelihoods ``[n]`` of sites ``[n, ...]``, in double precision.

    Of a flat prior single precision tells few draws apart.
    """

    def every(data: ArrayTree, sites: Samples) -> tuple[Array, Array]:
        def one(sites: Samples) -> tuple[Array, Array]:
            return _terms(functions, data, sites)[:2]

        return jax.lax.map(one, sites, batch_size=_AT_ONCE)

    try:
        with precision(double=True):
            found = jit(every)(*jax.tree.map(rounding.wide, (data, dict(sites))))
            return np.asarray(found[0]), np.asarray(found[1])
    except Exception:  # a model that fixes its types
        found = jit(every)(data, dict(sites))
        return np.asarray(found[0], float), np.asarray(found[1], float)


def _shapes(model: FlatModel) -> dict[str, tuple[int, ...]]:
    """Constrained shapes of the latent sites."""

    def constrain(x: Array) -> Samples:
        return model.constrain_sites(model.functions.unravel(x))

    shaped = jax.eval_shape(constrain, jnp.zeros(model.target.dim))
    return {name: shaped[name].shape for name, _ in sorted(model.functions.sites)}
