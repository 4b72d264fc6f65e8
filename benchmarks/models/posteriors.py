"""NumPyro models of three targets of the package, whose log Z they are held to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import deterministic, plate, sample

from consistent_samplers import targets
from consistent_samplers.targets import Target, datasets


class Posterior(NamedTuple):
    """A NumPyro model with its data, the target of the same density, and what a figure shows."""

    model: Callable[..., Any]
    arguments: tuple[Any, ...]
    target: Target
    shown: tuple[str, ...]


def _seeds(germinated: Any, total: Any, seed_type: Any, extract: Any) -> None:
    """Random-effects logistic regression of the Seeds data (Crowder, 1978; WinBUGS vol. 1)."""
    names = ("a_0", "a_1", "a_2", "a_12")
    a_0, a_1, a_2, a_12 = (sample(name, dist.Normal(0.0, 10.0)) for name in names)
    tau = sample("tau", dist.Gamma(0.01, 0.01))
    sigma = deterministic("sigma", 1.0 / jnp.sqrt(tau))
    with plate("plates", len(total)):
        b = sample("b", dist.Normal(0.0, sigma))
        logits = a_0 + a_1 * seed_type + a_2 * extract + a_12 * seed_type * extract + b
        sample("germinated", dist.Binomial(total, logits=logits), obs=germinated)


def _cancer(design: Any, labels: Any) -> None:
    """Logistic regression of the breast cancer data with an N(0, 10²) prior."""
    prior = dist.Normal(0.0, 10.0).expand([design.shape[1]]).to_event(1)
    weights = sample("weights", prior)
    # The field's sign convention: weights are minus the usual ones.
    sample("benign", dist.Bernoulli(logits=-design @ weights), obs=labels)


def _funnel(dim: int) -> None:
    """Neal's funnel."""
    log_variance = sample("log_variance", dist.Normal(0.0, 3.0))
    scale = jnp.exp(0.5 * log_variance)
    sample("x", dist.Normal(0.0, scale).expand([dim - 1]).to_event(1))


def _cancer_data() -> tuple[Any, Any]:
    features, labels = datasets.breast_cancer()
    design = np.concatenate([np.ones((len(labels), 1)), features / features.std(axis=0)], axis=1)
    return design.astype(np.float32), labels.astype(np.int32)


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "seeds": lambda: Posterior(
        _seeds, tuple(datasets.seeds()), targets.seeds(), ("a_0", "a_1", "a_2", "a_12", "sigma")
    ),
    "cancer": lambda: Posterior(
        _cancer, _cancer_data(), targets.cancer(), tuple(f"weights[{i}]" for i in (1, 3, 8, 11, 21))
    ),
    "funnel": lambda: Posterior(
        _funnel, (10,), targets.funnel(), ("log_variance", "x[0]", "x[1]", "x[2]", "x[3]")
    ),
}
"""By name."""
