"""Where a NumPyro model's density is looked for first."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.initialization import init_to_sample, init_to_uniform
from numpyro.infer.util import unconstrain_fn

from consistent_samplers.algorithms.building import check_base
from consistent_samplers.bases import Base
from consistent_samplers.compilation import jit
from consistent_samplers.integrations.numpyro.model import FlatModel
from consistent_samplers.kernels import kernel
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import check_density
from consistent_samplers.types import Array, PRNGKey

# NumPyro's own radius; and how many of the random points are tried and kept as starts.
_INIT_RADIUS = 2.0
_NUM_INIT_TRIED = 64
_NUM_INIT_KEPT = 4
# Draws of the prior where no random point has a density, and those that may allow the data.
_NUM_OF_PRIOR, _NUM_LOOKED_AT = 256, 16


def starting_points(rng_key: PRNGKey, model: FlatModel, base: Base | None = None) -> Array:
    """The densest of some draws of a base, else of points as NumPyro's ``init_to_uniform`` takes.

    Of draws of the prior where none of these has a density: data may bound a scale from below.

    Raises:
      ValueError: none of them has a density, or one that is infinite.
    """
    target = model.target
    if base is None:
        points = np.asarray(_uniform_points(rng_key, dim=target.dim))
    else:
        check_base(target, base)
        points = np.asarray(base.sample(rng_key, _NUM_INIT_TRIED))
    # On the host: every small operation on arrays would be compiled by itself.
    values = np.asarray(evaluation.values(target.log_density, points))
    finite = np.isfinite(values)
    if not finite.any():
        for observed in _impossible_data(model):
            raise ValueError(f"Model {target.name!r} has no density anywhere: {observed}")
        if base is None:
            points = np.concatenate([points, _prior_points(rng_key, model)])
            values = np.asarray(evaluation.values(target.log_density, points))
            finite = np.isfinite(values)
        check_density(target, points)
    order = np.argsort(-np.where(finite, values, -np.inf))
    return jnp.asarray(points[order[: min(_NUM_INIT_KEPT, int(finite.sum()))]])


@kernel(static=("dim",), effort="least")
def _uniform_points(rng_key: PRNGKey, *, dim: int) -> Array:
    shape = (_NUM_INIT_TRIED, dim)
    return jax.random.uniform(rng_key, shape, minval=-_INIT_RADIUS, maxval=_INIT_RADIUS)


def _prior_points(rng_key: PRNGKey, model: FlatModel) -> np.ndarray:
    """Unconstrained draws ``[n, dim]`` of the prior; none of a prior that has no draws."""
    functions = model.functions

    def one(key: PRNGKey) -> Array:
        seeded, args, kwargs = functions.of(model.data, key)
        drawn = handlers.substitute(seeded, substitute_fn=init_to_sample)
        trace = handlers.trace(drawn).get_trace(*args, **kwargs)
        sites = {name: trace[name]["value"] for name, _ in functions.sites}
        return functions.ravel(unconstrain_fn(seeded, args, kwargs, sites))

    try:
        return np.asarray(jit(jax.vmap(one))(jax.random.split(rng_key, _NUM_OF_PRIOR)))
    except Exception:  # whatever a prior raises that cannot be drawn
        return np.zeros((0, model.target.dim), np.float32)


def _impossible_data(model: FlatModel) -> Iterator[str]:
    """Observed sites with values that their distributions cannot give, in words.

    What is possible may depend on the latent sites: of several draws of these, none allows it.
    """
    allowed: dict[str, Any] = {}
    for i in range(_NUM_LOOKED_AT):
        strategy = init_to_sample if i % 2 else init_to_uniform
        seeded, args, kwargs = model.functions.of(model.data, i)
        initialised = handlers.substitute(seeded, substitute_fn=strategy)
        trace = handlers.trace(initialised).get_trace(*args, **kwargs)
        observed = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
        for site in observed:
            name, value = site["name"], np.asarray(site["value"])
            if value.dtype.kind == "f" and np.isnan(value).any():
                yield (
                    f"the observed site {name!r} holds {np.isnan(value).sum()} NaN of "
                    f"{value.size} values. Leave them out, mask them (numpyro.handlers.mask), or "
                    "impute them."
                )
            possible = np.asarray(site["fn"].support(value))
            allowed[name] = allowed.get(name, False) | possible
        if all(possible.all() for possible in allowed.values()):
            return
    for site in observed:
        possible, fn = allowed[site["name"]], site["fn"]
        if not possible.all():
            yield (
                f"{(~possible).sum()} of {possible.size} values of the observed site "
                f"{site['name']!r} lie outside the support of {type(fn).__name__} ({fn.support}). "
                "Check the data."
            )
