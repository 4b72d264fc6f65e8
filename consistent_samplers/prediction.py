"""How well models predict what they saw, each value left out in turn: PSIS-LOO, by ArviZ."""

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from consistent_samplers.diagnostics import LEVELS

_MISSING = "Prediction is left out: it needs ArviZ (pip install arviz, 0.22 or newer)."


class Prediction(NamedTuple):
    """Expected log predictive density of a model by leave-one-out.

    Attributes:
      elpd: its sum over the observed values, in nats.
      stderr: its standard error, over other data.
      num_parameters: effective number of parameters.
      pareto_k: largest Pareto k of the values; above `good_k` the figure is not to be relied on.
      good_k: what ArviZ accepts.
      pointwise: ``[n]``, of each observed value.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.prediction import Prediction
      >>> a = Prediction(-6.0, 1.0, 2.0, 0.3, 0.7, np.array([-1.0, -2.0, -3.0]))
      >>> a.ahead_of(a._replace(pointwise=a.pointwise - 0.5))
      (1.5, 0.0)
    """

    elpd: float
    stderr: float
    num_parameters: float
    pareto_k: float
    good_k: float
    pointwise: np.ndarray

    def ahead_of(self, other: "Prediction") -> tuple[float, float] | None:
        """How much better it predicts than another, in nats, and the standard error of that.

        None where the two split the data into values in different ways.
        """
        if self.pointwise.shape != other.pointwise.shape:
            return None
        difference = self.pointwise - other.pointwise
        return float(difference.sum()), float(np.sqrt(difference.size * difference.var()))


def predict(
    samplers: Mapping[str, Any], sites: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Prediction], list[str]]:
    """Predictions of NumPyro models from the draws of their last runs, and what is left out.

    Pareto-smoothed importance sampling (Vehtari, Gelman & Gabry, 2017) as ArviZ has it, of
    `OneStepSampler.to_arviz`.

    Args:
      samplers: by name.
      sites: names of the observed sites of each, in the order in which their values are those of
        the others; a sampler without an entry is left out.

    Example:
      >>> from consistent_samplers.prediction import predict
      >>> predict({}, {})
      ({}, [])
    """
    found: dict[str, Prediction] = {}
    notes: list[str] = []
    for name in (name for name in samplers if sites.get(name)):
        if samplers[name].verdict.level == LEVELS[-1]:
            notes.append(f"elpd_loo of {name} is left out: its draws are not to be used.")
            continue
        try:
            of_model = _loo(samplers[name].to_arviz(), sites[name])
        except ImportError:
            return {}, [*notes, _MISSING]
        if of_model is None:
            notes.append(f"elpd_loo of {name} is left out: its data are a single value to it.")
            continue
        found[name] = of_model
        if not of_model.pareto_k <= of_model.good_k:
            notes.append(
                f"elpd_loo of {name} is not to be relied on: Pareto k is up to "
                f"{of_model.pareto_k:.2f}."
            )
    return found, notes


def _loo(data: Any, sites: Sequence[str]) -> Prediction | None:
    # `to_arviz` gives ``InferenceData`` of ArviZ before 1, else a tree of ArviZ's newer parts.
    old = type(data).__name__ == "InferenceData"
    arviz = importlib.import_module("arviz" if old else "arviz_stats")
    parts = ("p_loo", "loo_i") if old else ("p", "elpd_i")
    pointwise: list[np.ndarray] = []
    num_parameters, pareto_k, good_k = 0.0, -math.inf, math.inf
    for site in sites:
        if data["log_likelihood"][site].ndim < 3:  # chains and draws alone
            return None
        of_site, varies = _take_out_fixed(data, site, old)
        if varies.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a large Pareto k, which is told
                found = arviz.loo(data, pointwise=True, var_name=site)
            num, each = (getattr(found, part) for part in parts)
            num_parameters += float(num)
            of_site[varies] = np.asarray(each, np.float64).ravel()
            pareto_k = float(np.maximum(pareto_k, np.max(np.asarray(found.pareto_k))))
            good_k = float(found.good_k)
        # A log density of zero in all draws: a mask leaves the value out.
        pointwise.append(of_site[varies | (of_site != 0.0)])
    joined = np.concatenate(pointwise)
    if not joined.size:
        return None
    stderr = float(np.sqrt(joined.size * joined.var()))
    return Prediction(float(joined.sum()), stderr, num_parameters, pareto_k, good_k, joined)


def _take_out_fixed(data: Any, site: str, old: bool) -> tuple[np.ndarray, np.ndarray]:
    """Takes values whose log density is the same in all draws out of the data: ArviZ fails on them.

    Returns log densities ``[n]`` of the first draw, and which of the values vary.
    """
    group = data["log_likelihood"]
    values = group[site]
    each = np.asarray(values, np.float64).reshape(*values.shape[:2], -1)
    varies = np.ptp(each, axis=(0, 1)) > 0.0
    if not varies.all():
        flat = values.stack({f"{site}_varying": values.dims[2:]})
        kept = flat.drop_vars(flat.coords).isel({f"{site}_varying": np.flatnonzero(varies)})
        changed = (group if old else group.to_dataset()).drop_vars(site).assign({site: kept})
        if old:
            data.log_likelihood = changed
        else:
            group.dataset = changed
    return each[0, 0].copy(), varies
