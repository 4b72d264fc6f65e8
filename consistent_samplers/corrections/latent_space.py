"""The space that chains move in: that of a sampler's map, or of a Gaussian in its place."""

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases import Base, GaussianBase
from consistent_samplers.bases.base import one_frame
from consistent_samplers.diagnostics import MAX_ROUND_TRIP_ERROR
from consistent_samplers.estimate import checked_log_weight, evidence
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, PRNGKey

NUM_DRAWS = 4_096
"""Draws of a sampler that chains start at some of, and that the bridge stands on."""
DRAWS_PER_MOMENT = 10.0
"""Effective draws for each dimension from which on weighted moments are better than plain ones, and
those of chains from which on a covariance is better than standard deviations alone."""


def latent_space(
    rng_key: PRNGKey, target: Target, sampler: Sampler, num_chains: int, gaussian: bool
) -> tuple[Sampler, Array, np.ndarray]:
    """The sampler whose latent space chains move in, starts in it, log weights of its draws.

    It has one frame; starts are ``[num_chains, dim]``, log weights ``[n]``.
    """
    key_draws, key_start, key_latent = jax.random.split(rng_key, 3)
    z = jax.random.normal(key_latent, (NUM_DRAWS, target.dim))
    single = one_frame(sampler.base)
    if single and not gaussian and (sampler.control.injective or _is_bijective(sampler, target)):
        weighed = sampler.weigh(target, z)
        start = z[_distinct(key_start, weighed, num_chains)]
    else:
        draws = sampler.sample(key_draws, target, NUM_DRAWS, 1)
        bases: list[Base] = [_moments(draws, float(evidence(draws).ess))]
        # In many dimensions so few draws do not tell a covariance: a fitted base is closer.
        bases += [sampler.base] * single
        spaces = [Sampler.of_base(base) for base in bases]
        each = [space.weigh(target, z) for space in spaces]
        best = int(np.argmax([np.mean(np.asarray(found.log_weight)) for found in each]))
        sampler, weighed, chosen = spaces[best], each[best], _distinct(key_start, draws, num_chains)
        start = jax.vmap(lambda x: sampler.base.whiten(x, ()))(draws.position[chosen])
    return sampler, start, np.asarray(checked_log_weight(weighed), np.float64)


def _is_bijective(sampler: Sampler, target: Target) -> bool:
    """Whether draws show neither folds nor places where the map cannot be inverted."""
    found = evidence(sampler.sample(jax.random.key(0), target, NUM_DRAWS, 1))
    error = float(found.round_trip_error or 0.0)
    return not float(found.folded or 0.0) and error <= MAX_ROUND_TRIP_ERROR


def _distinct(rng_key: PRNGKey, draws: Draws, num: int) -> Array:
    """Indices of distinct draws, chosen by weight (Gumbel's trick)."""
    log_weight = checked_log_weight(draws)
    noisy = log_weight + jax.random.gumbel(rng_key, log_weight.shape, log_weight.dtype)
    index: Array = jax.lax.top_k(noisy, num)[1]
    return index


def _moments(draws: Draws, ess: float) -> GaussianBase:
    """The Gaussian of draws, weighted if enough of them are effective."""
    weight = None
    if ess * len(draws.position) > DRAWS_PER_MOMENT * draws.position.shape[1]:
        log_weight = np.asarray(checked_log_weight(draws), np.float64)
        weight = np.exp(log_weight - log_weight.max())
    return gaussian_of(np.asarray(draws.position), weight)


def gaussian_of(
    x: np.ndarray, weight: np.ndarray | None = None, diagonal: bool = False
) -> GaussianBase:
    """The Gaussian with the moments of ``x`` ``[n, dim]``."""
    dtype, x = x.dtype, np.asarray(x, np.float64)
    loc = np.average(x, axis=0, weights=weight)
    covariance = np.atleast_2d(np.cov(x, rowvar=False, aweights=weight))
    variances = np.diag(np.diag(covariance))
    scale_tril = np.linalg.cholesky(variances if diagonal else covariance + 1e-9 * variances)
    return GaussianBase(jnp.asarray(loc, dtype), jnp.asarray(scale_tril, dtype))
