"""Which marginals of a map's draws have a density in closed form."""

from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from consistent_samplers.bases.base import Base, one_frame
from consistent_samplers.bases.diagonal import DiagonalBase
from consistent_samplers.bases.gaussian import GaussianBase
from consistent_samplers.bases.mixture import MixtureBase, ProductMixtureBase, mixture
from consistent_samplers.maps.control import Control
from consistent_samplers.maps.hierarchical import HierarchicalMap
from consistent_samplers.maps.identity import Identity
from consistent_samplers.maps.laplace import LaplaceMap
from consistent_samplers.types import Params


def marginal(
    control: Control | Identity | HierarchicalMap | LaplaceMap, params: Params, index: np.ndarray
) -> tuple[Any, Params] | None:
    """A map and its parameters whose draws are some coordinates of another map's; None if none is.

    There is one for all coordinates of a map with a density (`Control.log_prob`), for any
    coordinates of a base alone, but of a mixture with heavy tails, and for the globals of a
    hierarchical map or a `LaplaceMap`, which come first in their triangles.

    Args:
      control: the map.
      params: its parameters.
      index: ``[m]``, ascending.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> identity = cs.maps.Identity(cs.bases.standard_normal(3))
      >>> cs.maps.marginal(identity, {}, np.array([0, 2]))[0].dim
      2
    """
    if len(index) == control.dim:
        return (control, params) if has_density(control) else None
    if isinstance(control, Identity):
        of_base = _of_base(control.base, index)
        return None if of_base is None else (Identity(of_base), {})
    if isinstance(control, HierarchicalMap | LaplaceMap):
        globals, base = np.asarray(control.globals), cast(DiagonalBase, control.base)
        if np.array_equal(np.sort(globals), index):
            loc, scale = base.loc[index], base.scale[index]
            alone = jnp.asarray(np.searchsorted(index, globals), jnp.int32)
            start = jnp.zeros((2, len(index)))  # of fresh parameters
            kept = HierarchicalMap(DiagonalBase(loc, scale), alone, (), start)
            return kept, {"globals": params["globals"], "groups": []}
    return None


def has_density(control: Control | Identity | HierarchicalMap | LaplaceMap) -> bool:
    """Whether `Control.log_prob` of a map is in closed form, or found by inverting it.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.maps.has_density(cs.maps.Identity(cs.bases.standard_normal(3)))
      True
    """
    if not isinstance(control, Control):
        return not control.guided
    frames = one_frame(control.base) or hasattr(control.base, "num_components")
    return frames and not control.guided


def _of_base(base: Base, index: np.ndarray) -> Base | None:
    if isinstance(base, DiagonalBase):
        return DiagonalBase(base.loc[index], base.scale[index])
    if isinstance(base, GaussianBase):
        return GaussianBase(base.loc[index], jnp.asarray(_factors(base.scale_tril, index)))
    if isinstance(base, ProductMixtureBase):
        return ProductMixtureBase(base.log_weights[index], base.loc[index], base.scale[index])
    if isinstance(base, MixtureBase) and base.tail is None:
        factors = _factors(base.scale_tril, index)
        return mixture(base.log_weights, base.loc[:, index], jnp.asarray(factors))
    return None


def _factors(scale_tril: Any, index: np.ndarray) -> np.ndarray:
    """Cholesky factors ``[..., m, m]`` of parts of covariances, on the host."""
    rows = np.asarray(scale_tril, np.float64)[..., index, :]
    return np.linalg.cholesky(rows @ np.swapaxes(rows, -1, -2)).astype(jnp.result_type(float))
