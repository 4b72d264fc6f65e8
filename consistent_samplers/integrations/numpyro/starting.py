"""Where a NumPyro model's density is looked for first."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform

from consistent_samplers.integrations.numpyro.model import FlatModel
from consistent_samplers.kernels import kernel
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import check_density
from consistent_samplers.types import Array, PRNGKey

# NumPyro's own radius; and how many of the random points are tried and kept as starts.
_INIT_RADIUS = 2.0
_NUM_INIT_TRIED = 64
_NUM_INIT_KEPT = 4


def starting_points(rng_key: PRNGKey, model: FlatModel) -> Array:
    """The densest of some random points as NumPyro's ``init_to_uniform`` takes them."""
    target = model.target
    # On the host: every small operation on arrays would be compiled by itself.
    points = np.asarray(_uniform_points(rng_key, dim=target.dim))
    values = np.asarray(evaluation.values(target.log_density, points))
    finite = np.isfinite(values)
    if not finite.any():
        for observed in _impossible_data(model):
            raise ValueError(f"Model {target.name!r} has no density anywhere: {observed}")
        check_density(target, jnp.asarray(points[:_NUM_INIT_KEPT]))
    order = np.argsort(-np.where(finite, values, -np.inf))
    return jnp.asarray(points[order[: min(_NUM_INIT_KEPT, int(finite.sum()))]])


@kernel(static=("dim",), effort="least")
def _uniform_points(rng_key: PRNGKey, *, dim: int) -> Array:
    shape = (_NUM_INIT_TRIED, dim)
    return jax.random.uniform(rng_key, shape, minval=-_INIT_RADIUS, maxval=_INIT_RADIUS)


def _impossible_data(model: FlatModel) -> Iterator[str]:
    """Observed sites with values that their distributions cannot give, in words."""
    seeded, args, kwargs = model.functions.of(model.data)
    initialised = handlers.substitute(seeded, substitute_fn=init_to_uniform)
    for name, site in handlers.trace(initialised).get_trace(*args, **kwargs).items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        value, fn = np.asarray(site["value"]), site["fn"]
        if value.dtype.kind == "f" and np.isnan(value).any():
            yield (
                f"the observed site {name!r} holds {np.isnan(value).sum()} NaN of {value.size} "
                "values. Leave them out, mask them (numpyro.handlers.mask), or impute them."
            )
        elif not (possible := np.asarray(fn.support(value))).all():
            yield (
                f"{(~possible).sum()} of {possible.size} values of the observed site {name!r} lie "
                f"outside the support of {type(fn).__name__} ({fn.support}). Check the data."
            )
