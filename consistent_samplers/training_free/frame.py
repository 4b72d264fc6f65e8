"""The coordinates that samplers without training work in: those where a base is N(0, I)."""

import jax.numpy as jnp

from consistent_samplers.bases import Base, standard_normal
from consistent_samplers.bases.base import as_pytree, one_frame
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, LogDensityFn


def choose_frame(target: Target, base: Base | None) -> Base:
    """A base of one frame, N(0, I) if None, as an argument of compiled functions.

    Raises:
      ValueError: a base of another dimension, or of several frames.
    """
    base = standard_normal(target.dim) if base is None else base
    if base.dim != target.dim:
        raise ValueError(f"The base has {base.dim} dimensions, the target has {target.dim}.")
    if not one_frame(base):
        raise ValueError(
            "The base must have one frame, and a mixture has several: take a Gaussian, such as "
            "cs.bases.fit_gaussian(rng_key, target)."
        )
    return as_pytree(base)


def whitened(density: LogDensityFn, frame: Base) -> LogDensityFn:
    """A log density on the z of a frame, -inf where it is NaN."""
    on_frame = frame.whitened_log_density(density, ())

    def log_density(z: Array) -> Array:
        value = on_frame(z)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    return log_density
