"""Products of one-dimensional wells: exponentially many modes, all known."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.tables import inverse_cdf, tabulate
from consistent_samplers.types import Array, PRNGKey

_LOG_2PI = math.log(2 * math.pi)


def double_wells(dim: int = 5, num_wells: int = 5, separation: float = 4.0) -> Target:
    """Independent double wells and standard normals: 2^num_wells separated modes.

    log ρ(x) = -Σ_{i<m} (x_i² - δ)² - ½ Σ_{i≥m} x_i², with m = ``num_wells`` and δ =
    ``separation``: modes at ±√δ in each of the first m coordinates. The defaults are the field's
    MW54; (50, 5, 2.0) is MW52. From Wu, Köhler & Noé, Stochastic normalizing flows
    (arXiv:2002.06707); in this form Richter & Berner (arXiv:2307.01198).

    Args:
      dim: dimension.
      num_wells: number of double-well coordinates, 1 to ``dim``.
      separation: squared distance of the wells from the origin, positive.

    Raises:
      ValueError: an argument out of range.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.targets.double_wells(dim=2, num_wells=2)
      >>> x = target.sample(jax.random.key(0), 1_000)
      >>> sorted(set(cs.diagnostics.sign_modes(x, 2).tolist()))  # all four modes
      [0, 1, 2, 3]
    """
    check_integer("dim", dim, 1)
    check_integer("num_wells", num_wells, 1)
    if num_wells > dim:
        raise ValueError(f"num_wells must be at most dim = {dim}, got {num_wells}.")
    if not (math.isfinite(separation) and separation > 0):
        raise ValueError(
            f"separation must be positive and finite, got {separation!r}: below zero a coordinate "
            "has a single well."
        )
    separation = float(separation)
    # The wells are symmetric: tabulate |x|, where (x² - δ)² is at most 49 (exp(-49) = 5e-22).
    reach = 7.0
    grid = np.linspace(
        math.sqrt(max(separation - reach, 0.0)), math.sqrt(separation + reach), 2**13 + 1
    )
    half = tabulate(grid, -((grid**2 - separation) ** 2))
    log_z = num_wells * (math.log(2) + half.log_z) + 0.5 * (dim - num_wells) * _LOG_2PI

    def log_density(x: Array) -> Array:
        wells, rest = x[:num_wells], x[num_wells:]
        return -jnp.sum((wells**2 - separation) ** 2) - 0.5 * jnp.sum(rest**2)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_size, key_sign, key_rest = jax.random.split(rng_key, 3)
        shape = (num_samples, num_wells)
        wells = inverse_cdf(half, jax.random.uniform(key_size, shape))
        wells = wells * jax.random.rademacher(key_sign, shape, wells.dtype)
        rest = jax.random.normal(key_rest, (num_samples, dim - num_wells))
        return jnp.concatenate([wells, rest], axis=1)

    return Target(log_density, dim, name="double_wells", log_z=log_z, sample=sample)


def many_well(dim: int = 32) -> Target:
    """Pairs of an uneven double well and a standard normal: 2^(dim / 2) modes, all unequal.

    log ρ(x) = Σ_i [½ u_i + 6 u_i² - u_i⁴] - ½ Σ_i v_i² over the pairs (u_i, v_i) =
    (x_{2i}, x_{2i+1}). The well at u > 0 has 84.4 % of the mass; log Z = 164.6957 at dim = 32.
    From Noé et al., Boltzmann generators (arXiv:1812.01729); in this form Midgley et al., Flow
    annealed importance sampling bootstrap (FAB, arXiv:2208.01893).

    Args:
      dim: dimension, even.

    Raises:
      ValueError: ``dim`` is not an even integer of at least 2.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.targets.many_well(dim=4)
      >>> x = target.sample(jax.random.key(0), 4_000)
      >>> 0.8 < float((x[:, 0] > 0).mean()) < 0.9
      True
    """
    check_integer("dim", dim, 2)
    if dim % 2:
        raise ValueError(f"dim must be even, since the coordinates go in pairs, got {dim}.")
    num_pairs = dim // 2
    # At ±3.6 the density of a well is below exp(-86) = 4e-38 of its integral.
    grid = np.linspace(-3.6, 3.6, 2**13 + 1)
    well = tabulate(grid, 0.5 * grid + 6 * grid**2 - grid**4)

    def log_density(x: Array) -> Array:
        u, v = x[0::2], x[1::2]
        # Horner's form: u⁴ alone would overflow float32 earlier.
        return jnp.sum(u * (0.5 + u * (6 - u**2))) - 0.5 * jnp.sum(v**2)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_wells, key_rest = jax.random.split(rng_key)
        u = inverse_cdf(well, jax.random.uniform(key_wells, (num_samples, num_pairs)))
        v = jax.random.normal(key_rest, (num_samples, num_pairs))
        return jnp.stack([u, v], axis=-1).reshape(num_samples, dim)

    log_z = num_pairs * (well.log_z + 0.5 * _LOG_2PI)
    return Target(log_density, dim, name="many_well", log_z=log_z, sample=sample)
