"""A picture as a density in the plane."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey


def image(
    array: ArrayLike | None = None,
    half_width: float = 4.0,
    floor: float = 1e-3,
    decay: float = 0.25,
) -> Target:
    """Density that looks like a grey-scale picture: many modes of any shape.

    Pixels stand on an even grid over a box around the origin, upright (row 0 on top), aspect
    kept, the longer side on ``[-half_width, half_width]``. In the box ρ is the bilinear
    interpolation of the intensities (the largest being 1) plus ``floor``; outside it is its value
    at the nearest point of the box times ``exp(-distance² / (2 decay²))``. log Z is in closed form
    and the sampler is exact. ρ is continuous; its slope jumps on the lines of the grid.

    After Wu, Köhler & Noé, Stochastic normalizing flows (arXiv:2002.06707), and self-consistent
    diffusion samplers, which interpolate the logarithm, with jumps; their pictures are not shipped.

    Args:
      array: intensities ``[height, width]``, not negative, at least 2 pixels a side; five shapes
        in different shades, 64 by 64, if None.
      half_width: half the longer side of the box.
      floor: added to the intensities, relative to the largest, so that log ρ is finite.
      decay: standard deviation of the tails outside the box.

    Raises:
      ValueError: an array of the wrong rank or size, with values that are negative or not finite
        or all zero; another argument that is not positive and finite.

    Example:
      >>> import consistent_samplers as cs
      >>> round(cs.targets.image([[0.0, 1.0], [1.0, 0.0]]).log_z, 3)
      3.619
    """
    for name, value in (("half_width", half_width), ("floor", floor), ("decay", decay)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    intensity = _check_intensity(_drawing() if array is None else array)
    # The first axis of a picture counts downwards, the second coordinate of the plane upwards.
    value = intensity[::-1] / intensity.max() + floor
    last = np.array(value.shape[::-1]) - 1  # the last pixel along x and along y
    spacing = 2 * half_width / last.max()
    corner = 0.5 * spacing * last  # the box is [-corner, corner]

    def log_density(x: Array) -> Array:
        edge = jnp.asarray(corner, x.dtype)
        inside = jnp.clip(x, -edge, edge)
        place = (inside + edge) / spacing
        cell = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, jnp.asarray(last - 1, jnp.int32))
        column, row = cell
        s, t = place - cell.astype(x.dtype)
        pixels = jnp.asarray(value, x.dtype)
        lower = (1 - s) * pixels[row, column] + s * pixels[row, column + 1]
        upper = (1 - s) * pixels[row + 1, column] + s * pixels[row + 1, column + 1]
        distance = (x - inside) / decay
        return jnp.log((1 - t) * lower + t * upper) - 0.5 * jnp.sum(distance**2)

    # A frame of cells is laid around the box. Along a tail the density is a half Gaussian times
    # a constant, of integral decay √(π/2), so the frame's cells are as wide as that.
    framed = np.pad(value, 1, mode="edge")
    tail = decay * math.sqrt(math.pi / 2)
    widths = [np.concatenate([[tail], np.full(n, spacing), [tail]]) for n in last]
    mean = (framed[:-1, :-1] + framed[:-1, 1:] + framed[1:, :-1] + framed[1:, 1:]) / 4
    mass = (mean * widths[0] * widths[1][:, None]).ravel()
    # Upper ends of the cells' shares of all 32-bit integers: finer than float32 uniforms, so
    # that cells of a large picture keep their probabilities.
    ends = np.minimum(np.cumsum(mass)[:-1] / mass.sum() * 2.0**32, 2**32 - 1).astype(np.uint32)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        key_cell, key_place, key_tail = jax.random.split(rng_key, 3)
        bits = jax.random.bits(key_cell, (num_samples,), jnp.uint32)
        cell = jnp.searchsorted(jnp.asarray(ends), bits, side="right")
        row, column = jnp.divmod(cell, last[0] + 2)
        uniform = jax.random.uniform(key_place, (num_samples, 2))
        pixels = jnp.asarray(framed, uniform.dtype)
        lower = pixels[row, column], pixels[row, column + 1]
        upper = pixels[row + 1, column], pixels[row + 1, column + 1]
        s = _linear(lower[0] + upper[0], lower[1] + upper[1], uniform[:, 0])
        below, above = ((1 - s) * left + s * right for left, right in (lower, upper))
        t = _linear(below, above, uniform[:, 1])
        # Cell 0 is the tail before the first pixel, cell last + 1 the one behind the last.
        place = jnp.stack([column - 1 + s, row - 1 + t], axis=1)
        cell = jnp.stack([column, row], axis=1)
        excess = decay * jnp.abs(jax.random.normal(key_tail, (num_samples, 2), uniform.dtype))
        edge = jnp.asarray(corner, uniform.dtype)[None, :]
        after = cell > jnp.asarray(last)[None, :]
        x = jnp.where(after, edge + excess, place * spacing - edge)
        return jnp.where(cell == 0, -edge - excess, x)

    return Target(log_density, 2, name="image", log_z=math.log(mass.sum()), sample=sample)


def _linear(left: Array, right: Array, uniform: Array) -> Array:
    """Inverse CDF of the density on [0, 1] that runs linearly from left to right, unnormalised.

    Solves left s + (right - left) s²/2 = u (left + right)/2 in the form that has no cancellation.
    """
    target = uniform * (left + right)
    return target / (left + jnp.sqrt(left**2 + (right - left) * target))


def _check_intensity(array: ArrayLike) -> np.ndarray:
    """The picture in float64; ValueError if it is none."""
    intensity = np.asarray(array)
    if intensity.ndim != 2:
        raise ValueError(
            f"array must be a grey-scale picture [height, width], got shape {intensity.shape}. "
            "Average the channels of a colour picture."
        )
    if min(intensity.shape) < 2:
        raise ValueError(f"array must have at least 2 pixels a side, got shape {intensity.shape}.")
    if not (np.issubdtype(intensity.dtype, np.number) or intensity.dtype == bool):
        raise ValueError(f"array must hold numbers, got {intensity.dtype}.")
    if np.iscomplexobj(intensity):
        raise ValueError(f"array must hold real numbers, got {intensity.dtype}.")
    intensity = intensity.astype(np.float64)
    if not np.isfinite(intensity).all():
        raise ValueError("array must be finite. Look for NaN or inf in it.")
    if (low := intensity.min()) < 0:
        raise ValueError(f"array must not be negative, its smallest value is {low}. Subtract that.")
    if intensity.max() == 0:
        raise ValueError("array is zero everywhere: a density needs some light.")
    return intensity


def _drawing() -> np.ndarray:
    """Five shapes on black, ``[64, 64]`` in [0, 1], with edges about a pixel soft."""
    size = 64
    axis = np.linspace(-1, 1, size)
    x, y = np.meshgrid(axis, -axis)

    def filled(signed_distance: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(signed_distance * size, -40, 40)))

    def distance_to(a: float, b: float) -> np.ndarray:
        return np.hypot(x - a, y - b)

    disc = filled(distance_to(-0.5, 0.5) - 0.25)
    ring = 0.7 * filled(np.abs(distance_to(0.5, 0.45) - 0.28) - 0.06)
    dot = filled(distance_to(0.5, 0.45) - 0.08)
    square = filled(np.maximum(np.abs(x + 0.5), np.abs(y + 0.5)) - 0.26) * (0.55 + x / 2 + 0.35)
    triangle = 0.45 * filled(np.maximum(-0.75 - y, 0.87 * np.abs(x - 0.5) + 0.5 * (y + 0.15)))
    return np.clip(disc + ring + dot + square + triangle, 0, 1)
