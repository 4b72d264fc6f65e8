"""Compiling ahead of time: an image, a continuous integration or an idle minute does it once."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers import kernels
from consistent_samplers.estimate import evidence
from consistent_samplers.recipe.training import train_sampler
from consistent_samplers.targets import Target


@kernels.on_warm
def warm(*, dim: int, **options: Any) -> kernels.Info:
    """Compiles and keeps what ``cs.train_sampler`` and draws need in some dimension.

    It trains on a density of one bent mode, once as far as the base and once in full.

    Args:
      dim: dimension of the densities to come.
      **options: as for `train_sampler`, where other programs depend on them: ``hidden``,
        ``network``, ``max_steps``.

    Returns:
      What is kept by then.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.kernels.warm(dim=10)  # doctest: +SKIP
    """

    def bent(x: jax.Array) -> jax.Array:
        return -0.5 * jnp.sum(x**2) - 0.1 * jnp.sum((x[1:] - 0.3 * x[:-1] ** 2) ** 2)

    target = Target(bent, dim, name="warm-up")
    with warnings.catch_warnings():
        # What this density's sampler is worth is of no interest.
        warnings.simplefilter("ignore")
        for effort in ("auto", "full"):
            trained = train_sampler(
                jax.random.key(0), target, progress_bar=False, **{"effort": effort, **options}
            )
            for num_samples in (100, 10_000):
                evidence(trained.sample(jax.random.key(1), num_samples))
    return kernels.info()
