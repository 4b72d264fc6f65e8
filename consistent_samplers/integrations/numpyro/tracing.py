"""What a trace of a NumPyro model tells of its sites."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform

from consistent_samplers.integrations.numpyro.checking import layers
from consistent_samplers.types import Array


def trace_of(
    model: Callable[..., Any], model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The model's sites, their values abstract where nothing of what is read of them depends on it.

    With values every small operation of a model is compiled by itself: a second for a regression.
    """
    found: dict[str, Any] = {}

    def run() -> None:
        initialised = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_uniform)
        found.update(handlers.trace(initialised).get_trace(*model_args, **model_kwargs))

    try:
        jax.eval_shape(run)
        sites = found.values()
        kept = [s["value"] for s in sites if s["type"] in ("param", "mutable")]
        kept += [s["fn"].support for s in sites if s["type"] == "sample" and not s["is_observed"]]
        kept += [s["fn"] for s in sites if _fills_up(found, s["name"])]
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(kept)):
            return found
    except Exception:  # a model that looks at values, or a fault of it, which is met again
        pass
    found.clear()
    run()
    return found


def missing_values(
    model: str, trace: dict[str, Any], name: str, shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Coordinates of a site of ``obs_mask=`` that stand for missing values; None of other sites.

    Its other coordinates are used nowhere and have no density, so that nothing samples them.
    """
    if not _fills_up(trace, name):
        return None
    site = fn = trace[name]["fn"]
    mask: Any = True
    while fn is not None:  # the innermost mask is that of ``obs_mask=``
        mask = getattr(fn, "_mask", mask)
        fn = getattr(fn, "base_dist", None)
    varies = np.broadcast_to(mask, site.batch_shape)
    # A coordinate that stays at zero must add nothing: the logarithm of a Jacobian that is one.
    transform = dist.biject_to(site.support)
    origin = jnp.zeros(shape)
    log_det = transform.log_abs_det_jacobian(origin, transform(origin))
    if np.any(np.where(varies, 0.0, log_det)):
        raise ValueError(
            f"Site {name.removesuffix('_unobserved')!r} of model {model!r} has an obs_mask and a "
            f"distribution on {site.support}, for which the observed entries cannot be left out. "
            "Give the missing values a site of their own, and put both together in the model."
        )
    varies = varies.reshape(varies.shape + (1,) * (len(shape) - varies.ndim))
    return tuple(np.flatnonzero(np.broadcast_to(varies, shape)).tolist())


def is_scaled(site: dict[str, Any]) -> bool:
    """Whether a site has a Jacobian, and may be scaled or masked by a handler."""
    support = site["fn"].support
    if getattr(support, "base_constraint", support) is dist.constraints.real:
        return False
    masked = any(isinstance(fn, dist.MaskedDistribution) for fn in layers(site["fn"]))
    return masked or site.get("scale") is not None


def log_abs_det(trace: dict[str, Any], free: dict[str, Array], sites: dict[str, Array]) -> Array:
    """Log |det| ``[]`` of the map from unconstrained sites to constrained ones of a model's trace.

    Neither scaled nor masked, whatever the trace says of the sites.
    """
    each = (
        jnp.sum(dist.biject_to(trace[n]["fn"].support).log_abs_det_jacobian(free[n], sites[n]))
        for n in sites
    )
    return sum(each, start=jnp.zeros(()))


def _fills_up(trace: dict[str, Any], name: str) -> bool:
    """Whether a site is what ``numpyro.sample(..., obs_mask=)`` fills observed values up with."""
    site = name.removesuffix("_unobserved")
    return site != name and f"{site}_observed" in trace and site in trace
