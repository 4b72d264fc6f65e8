"""NumPyro models as densities on R^dim: flattening, checks, starting points, fingerprints."""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import constrain_fn, helpful_support_errors, potential_energy

from consistent_samplers.targets.base import Target, check_density
from consistent_samplers.types import Array, PRNGKey

Samples: TypeAlias = dict[str, Array]
"""Constrained and deterministic sites by name, each ``[num_samples, ...]``."""

# Outputs of one chunk of constrained draws held at once: floats (16 MiB), and draws.
_MAX_CHUNK_FLOATS = 2**22
_MAX_CHUNK = 16_384

# NumPyro's own radius; and how many of the random points are tried and kept as starts.
_INIT_RADIUS = 2.0
_NUM_INIT_TRIED = 64
_NUM_INIT_KEPT = 4


@dataclasses.dataclass(frozen=True)
class FlatModel:
    """A model with its arguments, as a density on R^dim.

    Attributes:
      target: log density over the flattened unconstrained latent sites.
      constrain: positions ``[n, dim]`` to sites and deterministics; compiled, in chunks.
      latent: names of the latent sites.
      unravel: one position ``[dim]`` to unconstrained sites.
      constrain_sites: unconstrained sites of one draw to sites and deterministics.
    """

    target: Target
    constrain: Callable[[Array], Samples]
    latent: tuple[str, ...]
    unravel: Callable[[Array], Samples]
    constrain_sites: Callable[[Samples], Samples]


def flatten_model(
    model: Callable[..., Any], model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
) -> FlatModel:
    """Traces a model and turns it into a density on R^dim.

    This is ``numpyro.infer.initialize_model`` without its search for a starting point, which
    gives up on a density that is NaN without saying so; our own checks name the cause.

    Raises:
      ValueError: a latent site that cannot be sampled, a subsampled plate, or no latent site.
    """
    name = name_of(model)
    initialised = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_uniform)
    trace = handlers.trace(initialised).get_trace(*model_args, **model_kwargs)
    _check_trace(name, trace)

    prototype = {}
    for site_name, site in trace.items():
        if site["type"] == "sample" and not site["is_observed"]:
            with helpful_support_errors(site, raise_warnings=True):
                transform = dist.biject_to(site["fn"].support)
            # One dtype for all sites, that of the sampler.
            prototype[site_name] = jnp.zeros(transform.inverse_shape(site["fn"].shape()))
    flat, unravel = ravel_pytree(prototype)
    # Parameters (of neural networks, say) keep their initial values, as under MCMC.
    fixed = {k: s["value"] for k, s in trace.items() if s["type"] in ("param", "mutable")}

    def seeded_model(*args: Any, **kwargs: Any) -> Any:
        # A fresh handler each time: it stores keys, which must not leak out of a JAX trace.
        return handlers.seed(handlers.substitute(model, data=fixed), 0)(*args, **kwargs)

    def log_density(x: Array) -> Array:
        return -potential_energy(seeded_model, model_args, model_kwargs, unravel(x))

    def constrain_sites(sites: Samples) -> Samples:
        return constrain_fn(
            seeded_model, model_args, model_kwargs, sites, return_deterministic=True
        )

    def constrain_one(x: Array) -> Samples:
        return constrain_sites(unravel(x))

    target = Target(log_density, dim=flat.shape[0], name=name)
    outputs = jax.tree.leaves(jax.eval_shape(constrain_one, flat))
    num_floats = sum(math.prod(output.shape) for output in outputs)
    chunk = max(1, min(_MAX_CHUNK, _MAX_CHUNK_FLOATS // max(1, num_floats)))
    constrain = jax.jit(lambda x: jax.lax.map(constrain_one, x, batch_size=chunk))
    return FlatModel(target, constrain, tuple(prototype), unravel, constrain_sites)


def _check_trace(name: str, trace: dict[str, Any]) -> None:
    """Raises unless the model's density is continuous and complete."""
    latent = [s for s in trace.values() if s["type"] == "sample" and not s["is_observed"]]
    for site in latent:
        if isinstance(site["fn"], dist.Delta):
            raise ValueError(
                f"Latent site {site['name']!r} of model {name!r} has a Delta distribution, which "
                "has no density. Use numpyro.deterministic for a value that is computed."
            )
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"Latent site {site['name']!r} of model {name!r} is discrete "
                f"({type(site['fn']).__name__}); only continuous sites can be sampled. Sum it out "
                "in the model, e.g. with numpyro.distributions.MixtureSameFamily; enumeration by "
                "numpyro.contrib.funsor is not supported."
            )
    for site in trace.values():
        if site["type"] != "plate":
            continue
        size, subsample_size = site["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"Plate {site['name']!r} of model {name!r} is subsampled ({subsample_size} of "
                f"{size}), so the density would change from call to call. Leave out "
                "subsample_size."
            )
    if not latent:
        raise ValueError(
            f"Model {name!r} has no latent site, so there is nothing to sample: every "
            "numpyro.sample in it is observed."
        )


def starting_points(rng_key: PRNGKey, target: Target) -> Array:
    """The densest of some random points as NumPyro's ``init_to_uniform`` takes them.

    Raises:
      ValueError: the density is finite at none of them, with the cause.
    """
    points = jax.random.uniform(
        rng_key, (_NUM_INIT_TRIED, target.dim), minval=-_INIT_RADIUS, maxval=_INIT_RADIUS
    )
    values = jax.jit(lambda x: jax.lax.map(target.log_density, x))(points)
    finite = jnp.isfinite(values)
    if not finite.any():
        check_density(target, points[:_NUM_INIT_KEPT])
    order = jnp.argsort(jnp.where(finite, values, -jnp.inf), descending=True)
    return points[order[: min(_NUM_INIT_KEPT, int(finite.sum()))]]


def identify(arguments: Any) -> Any:
    """Structure and content of model arguments, comparable by ``==``.

    Arrays are identified by shape, dtype and a hash of their bytes, never by address.
    """
    leaves, structure = jax.tree.flatten(arguments)
    return structure, [_identify_leaf(leaf) for leaf in leaves]


def _identify_leaf(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype.hasobject:
        # The bytes would be addresses: keep the objects alive, and let them compare themselves.
        return array.shape, array.ravel().tolist()
    return array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()


def name_of(model: Any) -> str:
    """Name of the function inside handlers and partials."""
    while not hasattr(model, "__name__"):
        inner = getattr(model, "fn", None) or getattr(model, "func", None)
        if inner is None:
            return type(model).__name__
        model = inner
    return model.__name__
