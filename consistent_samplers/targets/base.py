"""The target: an unnormalised log density as a pure function, with what is known of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from consistent_samplers.checks import check_integer
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.structure import Structure, find_structure
from consistent_samplers.types import Array, LogDensityFn, PRNGKey


@dataclasses.dataclass(frozen=True)
class Target:
    """An unnormalised density ρ on R^dim, with Z = ∫ρ.

    Attributes:
      log_density: pure, differentiable function of one point ``[dim] -> []``, -inf outside the
        support. Given as ``jax.tree_util.Partial(function, data)`` it brings its arrays along, and
        what is compiled for it serves other data of the same shapes as well.
      dim: dimension of the space.
      name: a label for tables and messages.
      log_z: the true log Z in nats where it is known, else None.
      sample: exact sampler ``(rng_key, num_samples) -> [num_samples, dim]``, or None.
      sites: names and sizes of the parts of a point, in order, where they have any.

    Raises:
      TypeError: ``log_density`` or ``sample`` is not callable, or it cannot be traced by JAX.
      ValueError: ``dim`` is not a positive integer, or ``log_density`` does not return one
        real number for one point.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.Target(log_density=lambda x: -0.5 * jnp.sum(x**2), dim=2, name="bell")
      >>> float(target.log_density(jnp.ones(2)))
      -1.0
    """

    log_density: LogDensityFn
    dim: int
    name: str = "target"
    log_z: float | None = None
    sample: Callable[[PRNGKey, int], Array] | None = None
    sites: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.log_density):
            raise TypeError(
                "log_density must be a function of one point [dim] that returns a scalar, "
                f"got {type(self.log_density).__name__}."
            )
        check_integer("dim", self.dim)
        if self.sample is not None and not callable(self.sample):
            raise TypeError("sample must be a function (rng_key, num_samples) -> [n, dim] or None.")
        point = jax.ShapeDtypeStruct((self.dim,), jnp.zeros(0).dtype)
        # A Partial is a new object each time, but traced only once as the argument of a function.
        function = (_call,) if isinstance(self.log_density, Partial) else ()
        try:
            out = jax.eval_shape(*function, self.log_density, point)
        except Exception as error:
            raise TypeError(
                f"log_density of target {self.name!r} could not be traced on one point of shape "
                f"[{self.dim}]. Write it with jax.numpy, without Python branches on values. "
                f"JAX said: {error}"
            ) from error
        shape = getattr(out, "shape", None)
        if shape is None:
            raise ValueError(
                f"log_density of target {self.name!r} must return one scalar array for one point, "
                f"got a {type(out).__name__}."
            )
        if shape != ():
            raise ValueError(
                f"log_density of target {self.name!r} must return a scalar for one point of shape "
                f"[{self.dim}], got shape {shape}. Sum over the last axis, and leave batches to "
                "jax.vmap."
            )
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(
                f"log_density of target {self.name!r} must return a real number, got {out.dtype}."
            )

    @functools.cached_property
    def structure(self) -> Structure:
        """Which coordinates depend on which, told by Hessians; looked for when first asked for."""
        return find_structure(self.log_density, self.dim, sites=self.sites)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def check_density(target: Target, points: ArrayLike) -> None:
    """Raises if the log density cannot be sampled from, judged at some points.

    A point where it is NaN counts as outside of its support.

    Args:
      target: the target.
      points: ``[num_points, dim]``.

    Raises:
      ValueError: +inf anywhere, or NaN or -inf (zero density) everywhere.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.Target(lambda x: jnp.log(x[0]), dim=1)
      >>> cs.targets.check_density(target, jnp.array([[1.0], [2.0]]))
    """
    points = np.asarray(points)
    values = np.asarray(evaluation.values(target.log_density, points))
    num_inf = int(np.isposinf(values).sum())
    if num_inf:
        raise ValueError(
            f"The log density of target {target.name!r} is +inf at {num_inf} of {len(points)} "
            "points tried. A density must be finite: look for an overflow or a division by zero."
        )
    num_nan = int(np.isnan(values).sum())
    if num_nan == len(points):
        raise ValueError(
            f"The log density of target {target.name!r} is NaN at all {num_nan} points tried. Look "
            "for log or sqrt of a negative number, 0/0 or inf - inf; return -inf where the density "
            "is zero."
        )
    if not np.isfinite(values).any():
        nan = f" (NaN at {num_nan})" if num_nan else ""
        raise ValueError(
            f"The log density of target {target.name!r} is -inf at all {len(points)} points{nan} "
            "tried: none of them has any density. Move or rescale the target, or map its support "
            "to the whole space (NumPyro models do this by themselves)."
        )
