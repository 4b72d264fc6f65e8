"""Synthetic targets with known log Z and exact samplers: a funnel, a banana, rings and wells."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.numerics import LOG_2PI, Table, inverse_cdf, safe_sqrt, tabulate
from consistent_samplers.types import Array, PRNGKey


def funnel(dim: int = 10) -> Target:
    """Neal's funnel: a scale that varies over orders of magnitude.

    x_0 ~ N(0, 9) and x_i | x_0 ~ N(0, exp(x_0)) for i > 0; normalised, log Z = 0. Draws are exact,
    not clipped as in common benchmark code. From Neal, Slice sampling, Annals of Statistics 31
    (2003).

    Args:
      dim: dimension, at least 2.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> cs.targets.funnel(dim=3).sample(jax.random.key(0), 1_000).shape
      (1000, 3)
    """
    check_integer("dim", dim, 2)
    log_constant = -0.5 * dim * LOG_2PI - math.log(3)

    def log_density(x: Array) -> Array:
        log_variance, rest = x[0], x[1:]
        # Scaled before it is squared: overflows only far out in the neck.
        z = rest * jnp.exp(-0.5 * log_variance)
        return (
            log_constant
            - 0.5 * (log_variance / 3) ** 2
            - 0.5 * (dim - 1) * log_variance
            - 0.5 * jnp.sum(z**2)
        )

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(rng_key, (num_samples, dim))
        log_variance = 3 * noise[:, :1]
        return jnp.concatenate([log_variance, jnp.exp(0.5 * log_variance) * noise[:, 1:]], axis=1)

    return Target(log_density, dim, name="funnel", log_z=0.0, sample=sample)


def rosenbrock(dim: int = 2) -> Target:
    """Rosenbrock's banana: pairs along a thin curved ridge.

    log ρ(x) = -Σ_i [(1 - u_i)² + 100 (v_i - u_i²)²] over the pairs (u_i, v_i) =
    (x_{2i}, x_{2i+1}): u ~ N(1, 1/2) and v | u ~ N(u², 1/200), so that log Z =
    (dim / 2) log(π / 10). This is the "even" form of Pagani, Wiegand & Nadarajah, An n-dimensional
    Rosenbrock distribution for MCMC testing, Scandinavian Journal of Statistics 49 (2022), without
    their temperature of 20. The form that links every coordinate to the next has no known log Z.

    Args:
      dim: dimension, even.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> float(cs.targets.rosenbrock(dim=2).log_density(jnp.ones(2)))
      -0.0
    """
    num_pairs = _num_pairs(dim)

    def log_density(x: Array) -> Array:
        u, v = x[0::2], x[1::2]
        return -jnp.sum((1 - u) ** 2) - 100 * jnp.sum((v - u**2) ** 2)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(rng_key, (num_samples, num_pairs, 2))
        u = 1 + math.sqrt(1 / 2) * noise[..., 0]
        v = u**2 + math.sqrt(1 / 200) * noise[..., 1]
        return jnp.stack([u, v], axis=-1).reshape(num_samples, dim)

    log_z = 0.5 * dim * math.log(math.pi / 10)
    return Target(log_density, dim, name="rosenbrock", log_z=log_z, sample=sample)


def rings(definition: Literal["scds", "sdss"] = "scds") -> Target:
    """Concentric rings in the plane; two definitions are in use under this name.

    With r = |x|, named after the code bases that use them:

    - ``"scds"``: log ρ = -100 min_k (r - r_k)² with radii r_k = 1, 3, 5: three thin rings, log Z
      = 2.3049. From Zhang & Chen, Path Integral Sampler (arXiv:2111.15141), as in the code of
      self-consistent diffusion samplers.
    - ``"sdss"``: ρ = cos r + 1.001 up to r = 4.5π and exp(4.5π - r) beyond: a disc and two wide
      rings with valleys of 0.001 between them, log Z = 6.6923. That code's own draws follow
      another law: they take the radius from ρ(r), where the plane needs r ρ(r), as here.

    Args:
      definition: which of the two.

    Example:
      >>> import consistent_samplers as cs
      >>> round(cs.targets.rings().log_z, 4), round(cs.targets.rings("sdss").log_z, 4)
      (2.3049, 6.6923)
    """
    if definition == "scds":
        log_profile, radius = _thin_rings()
    elif definition == "sdss":
        log_profile, radius = _cosine_rings()
    else:
        raise ValueError(f'definition must be "scds" or "sdss", got {definition!r}.')

    def log_density(x: Array) -> Array:
        return log_profile(safe_sqrt(jnp.sum(x**2)))

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_radius, key_angle = jax.random.split(rng_key)
        r = inverse_cdf(radius, jax.random.uniform(key_radius, (num_samples,)))
        angle = jax.random.uniform(key_angle, (num_samples,), maxval=2 * math.pi)
        return jnp.stack([r * jnp.cos(angle), r * jnp.sin(angle)], axis=1)

    return Target(log_density, 2, name="rings", log_z=LOG_2PI + radius.log_z, sample=sample)


def _thin_rings() -> tuple[Callable[[Array], Array], Table]:
    """Log density by the radius, and the law of the radius."""
    radii, sharpness = np.array([1.0, 3.0, 5.0]), 100.0

    def log_profile(r: Array) -> Array:
        return -sharpness * jnp.min((r - jnp.asarray(radii, r.dtype)) ** 2)

    # At 0 and at 6 the density is exp(-100) of its peak. The first point is not 0, for the log.
    grid = np.linspace(1e-6, 6.0, 2**13 + 1)
    nearest = np.min((grid[:, None] - radii) ** 2, axis=1)
    return log_profile, tabulate(grid, np.log(grid) - sharpness * nearest)


def _cosine_rings() -> tuple[Callable[[Array], Array], Table]:
    """Log density by the radius, and the law of the radius."""
    edge, level = 4.5 * math.pi, 1.001

    def log_profile(r: Array) -> Array:
        # Each branch is kept finite where the other holds, for the gradient's sake.
        inner = jnp.log(jnp.cos(jnp.minimum(r, edge)) + level)
        return jnp.where(r <= edge, inner, edge - r)

    # ∫ r (cos r + level) dr and ∫ r exp(edge - r) dr, exactly. What lies beyond the grid has
    # probability 1e-12, less than the spacing of float32 uniforms.
    inside = np.linspace(0.0, edge, 2**13 + 1)
    outside = np.linspace(0.0, 30.0, 2**12 + 1)[1:]
    mass_inside = inside * np.sin(inside) + np.cos(inside) - 1 + 0.5 * level * inside**2
    mass_outside = (edge + 1) - (edge + 1 + outside) * np.exp(-outside)
    total = mass_inside[-1] + edge + 1
    cdf = np.concatenate([mass_inside, mass_inside[-1] + mass_outside]) / total
    return log_profile, Table(np.concatenate([inside, edge + outside]), cdf, math.log(total))


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

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = cs.targets.double_wells(dim=2, num_wells=2).sample(jax.random.key(0), 1_000)
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
    low, high = math.sqrt(max(separation - reach, 0.0)), math.sqrt(separation + reach)
    grid = np.linspace(low, high, 2**13 + 1)
    half = tabulate(grid, -((grid**2 - separation) ** 2))
    log_z = num_wells * (math.log(2) + half.log_z) + 0.5 * (dim - num_wells) * LOG_2PI

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

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = cs.targets.many_well(dim=4).sample(jax.random.key(0), 4_000)
      >>> 0.8 < float((x[:, 0] > 0).mean()) < 0.9
      True
    """
    num_pairs = _num_pairs(dim)
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

    log_z = num_pairs * (well.log_z + 0.5 * LOG_2PI)
    return Target(log_density, dim, name="many_well", log_z=log_z, sample=sample)


def _num_pairs(dim: int) -> int:
    """Number of pairs of coordinates; ValueError unless the dimension is even."""
    check_integer("dim", dim, 2)
    if dim % 2:
        raise ValueError(f"dim must be even, since the coordinates go in pairs, got {dim}.")
    return dim // 2
