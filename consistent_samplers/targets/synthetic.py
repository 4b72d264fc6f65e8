"""Synthetic targets with closed-form log Z and exact samplers."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.tables import Table, inverse_cdf, tabulate
from consistent_samplers.types import Array, PRNGKey

_LOG_2PI = math.log(2 * math.pi)


def funnel(dim: int = 10) -> Target:
    """Neal's funnel: a scale that varies over orders of magnitude.

    x_0 ~ N(0, 9) and x_i | x_0 ~ N(0, exp(x_0)) for i > 0; normalised, log Z = 0. The sampler
    is exact: unlike in common benchmark code, draws are not clipped to [-30, 30].
    From Neal, Slice sampling, Annals of Statistics 31 (2003).

    Args:
      dim: dimension, at least 2.

    Raises:
      ValueError: ``dim`` is not an integer of at least 2.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.targets.funnel(dim=3)
      >>> draws = target.sample(jax.random.key(0), 1_000)
      >>> draws.shape, 2.5 < float(draws[:, 0].std()) < 3.5
      ((1000, 3), True)
    """
    check_integer("dim", dim, 2)
    log_constant = -0.5 * dim * _LOG_2PI - math.log(3)

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
    (dim / 2) log(π / 10) and draws are exact. This is the "even" form of Pagani, Wiegand &
    Nadarajah, An n-dimensional Rosenbrock distribution for MCMC testing, Scandinavian Journal of
    Statistics 49 (2022), without their temperature of 20. The form that links every coordinate
    to the next has no known log Z from three dimensions on; at dim = 2 the two are the same.

    Args:
      dim: dimension, even.

    Raises:
      ValueError: ``dim`` is not an even integer of at least 2.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.rosenbrock(dim=2)
      >>> float(target.log_density(jnp.ones(2))), round(target.log_z, 4)  # log(π / 10)
      (-0.0, -1.1579)
    """
    check_integer("dim", dim, 2)
    if dim % 2:
        raise ValueError(f"dim must be even, since the coordinates go in pairs, got {dim}.")

    def log_density(x: Array) -> Array:
        u, v = x[0::2], x[1::2]
        return -jnp.sum((1 - u) ** 2) - 100 * jnp.sum((v - u**2) ** 2)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(rng_key, (num_samples, dim // 2, 2))
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
      self-consistent diffusion samplers. Continuous; its slope jumps half-way between two rings,
      where ρ = exp(-100).
    - ``"sdss"``: ρ = cos r + 1.001 up to r = 4.5π and exp(4.5π - r) beyond: a disc and two wide
      rings with valleys of 0.001 between them, log Z = 6.6923. ρ steps from 1.001 to 1 at
      r = 4.5π. That code's own draws follow another law: they take the radius from ρ(r), where
      the plane needs r ρ(r), as here.

    Args:
      definition: which of the two.

    Raises:
      ValueError: an unknown definition.

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
        squared = jnp.sum(x**2)
        # The slope of the square root at 0 is infinite, which would make the gradient NaN.
        away = squared > 0
        return log_profile(jnp.where(away, jnp.sqrt(jnp.where(away, squared, 1.0)), 0.0))

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_radius, key_angle = jax.random.split(rng_key)
        r = inverse_cdf(radius, jax.random.uniform(key_radius, (num_samples,)))
        angle = jax.random.uniform(key_angle, (num_samples,), maxval=2 * math.pi)
        return jnp.stack([r * jnp.cos(angle), r * jnp.sin(angle)], axis=1)

    log_z = _LOG_2PI + radius.log_z
    return Target(log_density, 2, name="rings", log_z=log_z, sample=sample)


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
