"""NumPyro models of the benchmark posteriors, with the log Z they are held to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from consistent_samplers import targets
from consistent_samplers.targets import datasets


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A NumPyro model with its data.

    Attributes:
      model: the model.
      arguments: what it is called with.
      log_z: true log evidence, from the package's target of the same density.
      shown: five coordinates to draw in the figure, as `race.flat_sites` names them.
    """

    model: Callable[..., Any]
    arguments: tuple[Any, ...]
    log_z: float
    shown: tuple[str, ...]


def seeds_model(germinated: Any, total: Any, seed_type: Any, extract: Any) -> None:
    """Random-effects logistic regression of the Seeds data (Crowder, 1978; WinBUGS vol. 1)."""
    a_0 = numpyro.sample("a_0", dist.Normal(0.0, 10.0))
    a_1 = numpyro.sample("a_1", dist.Normal(0.0, 10.0))
    a_2 = numpyro.sample("a_2", dist.Normal(0.0, 10.0))
    a_12 = numpyro.sample("a_12", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.Gamma(0.01, 0.01))
    numpyro.deterministic("sigma", 1.0 / jnp.sqrt(tau))
    with numpyro.plate("plates", len(total)):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0 / jnp.sqrt(tau)))
        logits = a_0 + a_1 * seed_type + a_2 * extract + a_12 * seed_type * extract + b
        numpyro.sample("germinated", dist.Binomial(total, logits=logits), obs=germinated)


def cancer_model(design: Any, labels: Any) -> None:
    """Logistic regression of the breast cancer data with an N(0, 10²) prior."""
    weights = numpyro.sample(
        "weights", dist.Normal(0.0, 10.0).expand([design.shape[1]]).to_event(1)
    )
    # The field's sign convention: weights are minus the usual ones.
    numpyro.sample("benign", dist.Bernoulli(logits=-design @ weights), obs=labels)


def funnel_model(dim: int) -> None:
    """Neal's funnel."""
    log_variance = numpyro.sample("log_variance", dist.Normal(0.0, 3.0))
    scale = jnp.exp(0.5 * log_variance)
    numpyro.sample("x", dist.Normal(0.0, scale).expand([dim - 1]).to_event(1))


def seeds() -> Posterior:
    """Seeds, 26 unconstrained dimensions."""
    shown = ("a_0", "a_1", "a_2", "a_12", "sigma")
    return Posterior(seeds_model, tuple(datasets.seeds()), _true_log_z(targets.seeds()), shown)


def cancer() -> Posterior:
    """Breast cancer, 31 dimensions."""
    features, labels = datasets.breast_cancer()
    design = np.concatenate([np.ones((len(labels), 1)), features / features.std(axis=0)], axis=1)
    shown = tuple(f"weights[{i}]" for i in (1, 3, 8, 11, 21))
    data = design.astype(np.float32), labels.astype(np.int32)
    return Posterior(cancer_model, data, _true_log_z(targets.cancer()), shown)


def funnel() -> Posterior:
    """Neal's funnel, 10 dimensions."""
    shown = ("log_variance", *(f"x[{i}]" for i in range(4)))
    return Posterior(funnel_model, (10,), 0.0, shown)


def _true_log_z(target: targets.Target) -> float:
    assert target.log_z is not None
    return target.log_z


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "seeds": seeds,
    "cancer": cancer,
    "funnel": funnel,
}
"""By name."""
