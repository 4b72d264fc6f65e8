"""Log densities whose terms are too large for single precision, computed in double where they are.

The likelihood of a count of ten million is a sum of terms of 1e8 nats, which single precision has
in steps of 8 nats, however moderate the sum. So a few values are computed in double precision too.
Their mean difference is added to all values: it would shift log Z unseen. What the differences vary
by is noise: where there is much of it, all values are computed anew.
"""

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.compilation import as_partial, compiler_options, is_traced, precision
from consistent_samplers.targets import evaluation
from consistent_samplers.types import LogDensityFn

# Noise, in nats, from which on all values are computed anew, or draws cannot be trusted.
_MAX_NOISE = 0.05
# Size of a density's numbers from which on rounding is measured, which takes half a second of
# compiling (below it rounding costs less than a hundredth of a nat); and from which on a warning
# says that it could not be measured.
_LARGE, _TOO_LARGE = 1e4, 1e6
# Numbers beyond it stand for infinity.
_INFINITE = 1e30
_NUM_MEASURED, _BLOCK = 32, 1_024


def values(log_density: LogDensityFn, points: Any) -> Any:
    """Log densities ``[n]`` at points ``[n, dim]``: `evaluation.values`, mended."""
    return mended(log_density, points, evaluation.values(log_density, points))


def mended(log_density: LogDensityFn, points: Any, values: Any) -> Any:
    """Log densities ``[n]`` with the digits that single precision lost of them.

    They are as given where they are in double precision or traced, or no large numbers are in the
    density.

    Args:
      log_density: of one point, ``[dim] -> []``.
      points: ``[n, dim]``.
      values: ``[n]``, the log densities there as they were computed.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.targets import evaluation, rounding
      >>> def log_density(x):
      ...     return -0.5 * jnp.sum(x**2) + 123456789.0 - jnp.sum(jnp.full(2, 61728394.0))
      >>> points = jnp.ones((4, 1))
      >>> values = evaluation.values(log_density, points)
      >>> rounding.mended(log_density, points, values).tolist()
      [0.5, 0.5, 0.5, 0.5]
    """
    shift, noise = _measure(log_density, points, values)
    if noise > _MAX_NOISE:
        return _in_double(log_density, np.asarray(points)).astype(values.dtype)
    return values + values.dtype.type(shift) if shift else values


def constant(log_density: LogDensityFn, points: Any, values: Any, *, warn: bool = True) -> float:
    """What to add to log densities that cannot be computed anew, in nats; NaN where noise hides it.

    Arguments as of `mended`, and whether to warn of noise.
    """
    shift, noise = _measure(log_density, points, values)
    if noise <= _MAX_NOISE:
        return shift
    if warn:
        warnings.warn(
            f"Single precision is off by {noise:.2g} nats in the log density, differently at every "
            "point, as its terms are too large (those of large counts, say): do not trust results "
            'of it here. Set jax.config.update("jax_enable_x64", True) first.',
            RuntimeWarning,
            stacklevel=3,
        )
    return math.nan


def _measure(log_density: LogDensityFn, points: Any, values: Any) -> tuple[float, float]:
    """Mean and standard deviation of what the first values lack, in nats."""
    if is_traced((as_partial(log_density), points, values)) or values.dtype == np.float64:
        return 0.0, 0.0
    if not all(getattr(x, "is_fully_addressable", True) for x in (points, values)):
        return 0.0, 0.0  # of several hosts
    # First whole, as slices of every length would be compiled.
    few, given = np.asarray(points)[:_NUM_MEASURED], np.asarray(values, float)
    largest = _largest_number(log_density, few.shape[1], given)
    if largest < _LARGE:
        return 0.0, 0.0
    try:
        exact = _in_double(log_density, np.resize(few, (_NUM_MEASURED, few.shape[1])))[: len(few)]
    # Code that fixes its types, or has an array of NumPy's, which JAX has met in single precision.
    except Exception:
        if largest > _TOO_LARGE:
            warnings.warn(
                f"The log density has numbers of {largest:.1g}, and log Z may be off by what "
                "single precision rounds them by. To have it measured, write the density for any "
                "precision, with its data as jax.numpy's arrays or as a model's arguments.",
                RuntimeWarning,
                stacklevel=4,
            )
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        difference = exact - given[: len(few)]
    difference = difference[np.isfinite(difference)]
    return (float(difference.mean()), float(difference.std())) if difference.size else (0.0, 0.0)


def _in_double(log_density: LogDensityFn, points: np.ndarray) -> np.ndarray:
    density, num = as_partial(log_density), len(points)
    size = _NUM_MEASURED if num == _NUM_MEASURED else _BLOCK
    points = np.resize(points.astype(np.float64), (-(-num // size) * size, points.shape[1]))
    # On the host, as not every accelerator has double precision.
    with precision(double=True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        values = functools.partial(
            _program(jax.tree.structure(density)), jax.tree.map(wide, density)
        )
        blocks = [np.asarray(values(block)) for block in points.reshape(-1, size, points.shape[1])]
    return np.concatenate(blocks)[:num]


def wide(leaf: Any) -> Any:
    """An array in double precision, on the host; one of whole numbers as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.targets import rounding
      >>> str(rounding.wide(jnp.zeros(1)).dtype)
      'float64'
    """
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.asarray(leaf, np.float64)
    return np.asarray(leaf) if isinstance(leaf.dtype, np.dtype) else leaf


@functools.lru_cache(maxsize=8)
def _program(structure: Any) -> Any:
    """Values of densities of one structure, a few at once, as data may be large."""
    del structure  # a program for each, so that it goes with the density
    values = functools.partial(jax.lax.map, batch_size=8)
    options = compiler_options("less") or None
    return jax.jit(lambda density, x: values(density, x), compiler_options=options)


def _largest_number(log_density: LogDensityFn, dim: int, values: np.ndarray) -> float:
    """Largest size of the values and of the density's numbers, of which a tenth of a sum is one."""
    largest = np.max(np.abs(values), initial=0.0, where=np.isfinite(values))
    for number in evaluation.numbers(log_density, dim):
        size = np.abs(np.asarray(number, float))
        size = size[size < _INFINITE]
        largest = max(largest, np.max(size, initial=0.0), 0.1 * float(size.sum()))
    return float(largest)
