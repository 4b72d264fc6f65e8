"""Log Z of chains by a bridge to a Gaussian, where their map's own draws hardly overlap them."""

import jax
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
    num, dim = latent.shape[1] // 2, latent.shape[2]
    few = 0.5 * effective < DRAWS_PER_MOMENT * dim
    fitted = gaussian_of(latent[:, :num].reshape(-1, dim), diagonal=few)
    z = fitted.sample(rng_key, NUM_DRAWS)
    there = np.asarray(checked_log_weight(space.weigh(target, z)), np.float64)

    def normal_over_fitted(z: Array) -> np.ndarray:
        normal = jax.scipy.stats.norm.logpdf(z).sum(-1)
        return np.asarray(normal - fitted.log_prob(z), np.float64)

    rest = jax.device_put(latent[:, num:])
    return bridge(there + normal_over_fitted(z), log_weight[:, num:] + normal_over_fitted(rest))


def smaller_error(of_map: Bridge, of_gaussian: Bridge) -> tuple[Bridge, bool]:
    """The bridge with the smaller standard error, and whether it is that of the Gaussian.

    An error that is estimated too small is chosen more often, but the two differ by more than they
    are noisy where it matters: the 95 % interval of the one that is chosen covers log Z as often as
    either's own (`tests/test_bracket.py` holds it on normal, t-shaped and skewed targets).
    """
    replaced = of_gaussian.log_z_stderr < of_map.log_z_stderr
    return (of_gaussian if replaced else of_map), replaced
