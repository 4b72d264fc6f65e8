"""A training whose only use is what it compiles."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers.estimate import evidence
from consistent_samplers.recipe.training import train_sampler
from consistent_samplers.targets import Target


def rehearse(dim: int, **options: Any) -> None:
    """Trains on a density of one bent mode, once as far as needed and once in full, and draws."""

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
