"""A model's posterior under another prior or likelihood, or powers of them: the same draws."""

import dataclasses
import importlib
import math
from collections.abc import Callable
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
from consistent_samplers.estimate import pareto_smooth
from consistent_samplers.integrations.numpyro.flattening import in_support
from consistent_samplers.integrations.numpyro.model import (
    FlatModel,
    Samples,
    flatten_model,
    log_abs_det,
)
from consistent_samplers.integrations.numpyro.run import Run
from consistent_samplers.targets import Target, rounding
from consistent_samplers.types import Array, ArrayTree

# The key of the resample, of those that a run has.
_RESAMPLE = 10_000
_AT_ONCE = 64


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
        inside = jnp.stack([in_support(found[n]["fn"].support, sites[n]) for n in sites]).all()
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
    for name, power in (("prior_power", prior_power), ("likelihood_power", likelihood_power)):
        if not (isinstance(power, int | float) and math.isfinite(power) and power >= 0):
            raise ValueError(f"{name} must be a number that is not negative, got {power!r}.")
    known, given = run.model, any(map(len, arguments))
    args, kwargs = arguments if given else known.arguments
    if model is not None:
        other = flatten_model(model, args, kwargs)
        was, now = _shapes(known), _shapes(other)
        if was != now:
            raise ValueError(
                f"Draws of the sites {was} cannot be used for a model with the latent sites {now}: "
                "names and shapes must be the same. Run a OneStepSampler of that model."
            )
    else:
        other = known.with_arguments(args, kwargs) if given else known
    powers = jnp.array([prior_power, likelihood_power], float)
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
        found = corrections.reweight(
            key, sampler, target, run.num_samples, run.num_steps, cure=cure
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
