"""Which NumPyro models can be sampled: continuous latent sites, data that are numbers."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

_WRAPPERS = (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)


def check_trace(name: str, trace: dict[str, Any]) -> None:
    """Raises unless the model's density is continuous and complete, its data numbers."""
    sampled = [s for s in trace.values() if s["type"] == "sample"]
    latent = [s for s in sampled if not s["is_observed"]]
    for site in (s for s in sampled if s["is_observed"]):
        value = site["value"]
        about = f"Observed site {site['name']!r} of model {name!r}"
        if not isinstance(value, np.ndarray | np.generic | jax.Array | float | int):
            raise TypeError(
                f"{about} holds a {type(value).__name__}, and NumPyro takes arrays: give "
                "jax.numpy.asarray of it."
            )
        dtype = getattr(value, "dtype", np.dtype(float))
        if getattr(dtype, "kind", "f") not in "biufcV":
            raise TypeError(f"{about} holds {dtype.type.__name__}, not numbers. Encode them first.")
        if isinstance(value, np.ndarray | np.generic | int) and _overflows(value):
            raise TypeError(
                f"{about} holds whole numbers of 2**31 and more, which JAX would wrap around: give "
                "them as floats."
            )
    for site in latent:
        if isinstance(innermost(site["fn"]), dist.Delta):
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
    for site in (s for s in trace.values() if s["type"] == "plate"):
        size, subsample_size = site["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"Plate {site['name']!r} of model {name!r} is subsampled ({subsample_size} of "
                f"{size}), so the density would change from call to call. Leave out subsample_size."
            )
    if not any(np.size(site["value"]) for site in latent):
        raise ValueError(
            f"Model {name!r} has no latent site, so there is nothing to sample: every "
            "numpyro.sample in it is observed or empty."
        )


def innermost(fn: Any) -> Any:
    """The distribution inside of plates' and handlers' expansions, masks and event dimensions."""
    return list(layers(fn))[-1]


def layers(fn: Any) -> Iterator[Any]:
    """A distribution, and those inside of plates' and handlers' expansions, masks and so on."""
    yield fn
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
        yield fn


def _overflows(value: Any) -> bool:
    """Whether whole numbers change as JAX takes them over."""
    value = np.asarray(value)
    if value.dtype.kind not in "iu" or not value.size:
        return False
    limits = np.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
    return bool(value.max() > limits.max or value.min() < limits.min)
