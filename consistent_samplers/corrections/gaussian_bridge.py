"""Chains held against a Gaussian that is fitted to them, where their map hardly overlaps them."""

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bridge import Bridge, bridge
from consistent_samplers.corrections.latent_space import DRAWS_PER_MOMENT, NUM_DRAWS, gaussian_of
from consistent_samplers.estimate import checked_log_weight
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, PRNGKey


def bridge_to_gaussian(
    rng_key: PRNGKey,
    space: Sampler,
    target: Target,
    latent: np.ndarray,
    log_weight: np.ndarray,
    effective: float,
) -> Bridge:
    """Log Z between the second half of each chain and a Gaussian fitted to the first.

    The two halves keep fit and bridge apart (Overstall & Forster, 2010). ``latent`` is
    ``[num_chains, num_samples, dim]``.
    """
    return bridge(
        *with_gaussian(rng_key, space, target, latent, log_weight, effective, NUM_DRAWS, 1.0)
    )


def with_gaussian(
    rng_key: PRNGKey,
    space: Sampler,
    target: Target,
    latent: np.ndarray,
    log_weight: np.ndarray,
    effective: float,
    num_samples: int,
    share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Log weights of draws of a mixture, and of the second half of each chain under it.

    Of the draws in the latent space a share is from the Gaussian that is fitted to the first half
    of the chains, the rest is the map's own.

    Args:
      rng_key: key.
      space: the map that the chains moved in.
      target: the target.
      latent: ``[num_chains, m, dim]``, where they were in its latent space.
      log_weight: ``[num_chains, m]``, of the map there.
      effective: draws that the chains are worth.
      num_samples: n, draws of the mixture.
      share: of the Gaussian.

    Returns:
      ``[n]`` and ``[num_chains, m - m // 2]``.
    """
    half, dim = latent.shape[1] // 2, latent.shape[2]
    few = 0.5 * effective < DRAWS_PER_MOMENT * dim
    fitted = gaussian_of(latent[:, :half].reshape(-1, dim), diagonal=few)
    key_fitted, key_own, key_which = jax.random.split(rng_key, 3)
    ours = jax.random.bernoulli(key_which, share, (num_samples, 1))
    own = jax.random.normal(key_own, (num_samples, dim))
    z = jnp.where(ours, fitted.sample(key_fitted, num_samples), own)

    def normal_over_mixture(z: Array) -> np.ndarray:
        normal = jax.scipy.stats.norm.logpdf(z).sum(-1)
        # In units of the normal's density.
        own = -np.inf if share == 1.0 else np.log1p(-share)
        mixture = jnp.logaddexp(own, np.log(share) + fitted.log_prob(z) - normal)
        return np.asarray(-mixture, np.float64)

    there = np.asarray(checked_log_weight(space.weigh(target, z)), np.float64)
    rest = jax.device_put(latent[:, half:])
    return there + normal_over_mixture(z), log_weight[:, half:] + normal_over_mixture(rest)


def smaller_error(of_map: Bridge, of_gaussian: Bridge) -> tuple[Bridge, bool]:
    """The bridge with the smaller standard error, and whether it is that of the Gaussian.

    An error that is estimated too small is chosen more often, but the two differ by more than they
    are noisy where it matters: the 95 % interval of the one that is chosen covers log Z as often as
    either's own (`tests/test_bracket.py` holds it on normal, t-shaped and skewed targets).
    """
    replaced = of_gaussian.log_z_stderr < of_map.log_z_stderr
    return (of_gaussian if replaced else of_map), replaced
