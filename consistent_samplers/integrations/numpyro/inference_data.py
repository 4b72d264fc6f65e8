"""Draws of a NumPyro model as ArviZ takes them, with what the model says of the data."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_likelihood

from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.types import Array, PRNGKey


def to_inference_data(
    model: Callable[..., Any],
    model_args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
    posterior: Samples,
    sample_stats: dict[str, Array],
    *,
    predictive_key: PRNGKey | None,
    with_log_likelihood: bool,
) -> Any:
    """An ArviZ object of one chain.

    Args:
      model: the NumPyro model.
      model_args: its arguments.
      model_kwargs: its keyword arguments.
      posterior: constrained and deterministic sites, ``[num_samples, ...]``.
      sample_stats: a number of each draw by name, ``[num_samples]``.
      predictive_key: key of posterior predictive draws; None for none.
      with_log_likelihood: also the log likelihood of each observation.

    Returns:
      ``arviz.InferenceData`` (ArviZ 0.22 and 0.23) or ``xarray.DataTree`` (ArviZ 1).

    Raises:
      ImportError: ArviZ is not installed.
    """
    build = _builder()
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(*model_args, **model_kwargs)
    observed = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"] and not _is_factor(site)
    }
    groups: dict[str, dict[str, Any]] = {
        "posterior": _one_chain(posterior),
        "sample_stats": _one_chain(sample_stats),
    }
    if observed and with_log_likelihood:
        values = log_likelihood(model, posterior, *model_args, **model_kwargs)
        groups["log_likelihood"] = _one_chain({k: values[k] for k in observed})
    if observed and predictive_key is not None:
        free = handlers.uncondition(model)
        draws = Predictive(free, posterior, return_sites=list(observed))(
            predictive_key, *model_args, **model_kwargs
        )
        groups["posterior_predictive"] = _one_chain(draws)
    if observed:
        groups["observed_data"] = {name: np.asarray(value) for name, value in observed.items()}
    return build(groups)


def _builder() -> Callable[[dict[str, dict[str, Any]]], Any]:
    """``from_dict`` of whichever ArviZ there is; ArviZ itself before the part it is made of."""
    try:
        arviz = importlib.import_module("arviz")
    except ImportError:
        try:
            arviz = importlib.import_module("arviz_base")
        except ImportError as error:
            raise ImportError(
                "to_arviz needs ArviZ: pip install arviz (0.22 or newer) or arviz-base."
            ) from error
    if hasattr(arviz, "InferenceData"):  # before ArviZ 1
        return lambda groups: arviz.from_dict(**groups)
    return lambda groups: arviz.from_dict(groups)


def _is_factor(site: dict[str, Any]) -> bool:
    """Whether a site is a ``numpyro.factor``: observed in name only."""
    return type(site["fn"]).__name__ == "Unit"


def _one_chain(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in values.items()}
