"""How a product of one-dimensional mixtures is fitted: to the marginals of tempered particles."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases.exploration import Exploration, explore
from consistent_samplers.bases.iterating import one_thread
from consistent_samplers.bases.mixture import ProductMixtureBase
from consistent_samplers.targets.base import Target
from consistent_samplers.types import PRNGKey


@one_thread
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
      >>> import jax
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> target = cs.targets.double_wells(dim=2, num_wells=2)
      >>> particles = np.asarray(target.sample(jax.random.key(0), 400))
      >>> modes = cs.bases.Modes(np.zeros((0, 2)), np.zeros((0, 2, 2)), np.zeros(0))
      >>> found = cs.bases.Exploration(modes, particles, log_z=target.log_z)
      >>> base = cs.bases.fit_product_mixture(
      ...     jax.random.key(1), target, exploration=found, max_components=2
      ... )
      >>> base.loc.shape, base.loc.round(0).tolist()
      ((2, 2), [[2.0, -2.0], [-2.0, 2.0]])
    """
    from sklearn.mixture import GaussianMixture

    if exploration is None:
        exploration = explore(rng_key, target)
    particles = np.asarray(exploration.particles, np.float64)
    log_weights = np.full((target.dim, max_components), -np.inf)
    loc = np.repeat(particles.mean(0)[:, None], max_components, 1)
    scale = np.repeat(np.maximum(particles.std(0), 1e-6)[:, None], max_components, 1)
    for i, values in enumerate(particles.T):
        centre, spread = values.mean(), max(values.std(), 1e-6)
        scaled = ((values - centre) / spread)[:, None]
        fits = [
            GaussianMixture(k, random_state=0, reg_covar=1e-6).fit(scaled)
            for k in range(1, max_components + 1)
        ]
        fitted = min(fits, key=lambda f: f.bic(scaled))
        k = fitted.n_components
        log_weights[i, :k] = np.log(fitted.weights_)
        loc[i, :k] = centre + spread * fitted.means_[:, 0]
        scale[i, :k] = spread * np.sqrt(fitted.covariances_[:, 0, 0])
    used = max(int(np.isfinite(log_weights).sum(1).max()), 1)
    return ProductMixtureBase(*(jnp.asarray(a[:, :used], float) for a in (log_weights, loc, scale)))


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
