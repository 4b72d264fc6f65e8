"""Regressions and means of groups with priors to choose, and small data sets for some of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import plate, sample

SHAPES = {
    "kidscore": (434, 3),
    "linear": (100, 5),
    "logistic": (200, 6),
    "poisson": (150, 4),
    "logistic_100000x30": (100_000, 30),
    "tiny": (30, 2),
}
"""Rows and columns of the regressions of `model_of`."""
SCHOOLS = np.array([[28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]], np.float32)
"""Scores of the eight schools and their errors."""


def regression(
    x: Any,
    y: Any = None,
    family: str = "linear",
    loc: Any = 0.0,
    spread: Any = 1.0,
    noise: Callable[[], Any] = dist.HalfNormal,
) -> None:
    """A model of rows; ``loc`` and ``spread`` of the coefficients' normals, prior of the noise."""
    mean = x @ sample("beta", dist.Normal(loc, spread).expand([x.shape[1]]).to_event(1))
    if family == "linear":
        outcome: Any = dist.Normal(mean, sample("sigma", noise()))
    else:
        logistic = family == "logistic"
        outcome = dist.Bernoulli(logits=mean) if logistic else dist.Poisson(jnp.exp(mean))
    with plate("rows", x.shape[0]):
        sample("y", outcome, obs=y)


def groups(
    errors: Any,
    y: Any = None,
    spread: float = 5.0,
    scale: Any = dist.HalfCauchy,
    centred: Any = True,
) -> None:
    """Means of groups that are seen with known errors: eight schools, with the defaults."""
    mu, tau = sample("mu", dist.Normal(0.0, spread)), sample("tau", scale(spread))
    with plate("groups", errors.shape[0]):
        theta = sample("theta", dist.Normal(mu, tau) if centred else dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(theta if centred else mu + tau * theta, errors), obs=y)


def model_of(name: str) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """A model and its data, simulated with a fixed seed but for the eight schools.

    The first column of a regression is its intercept. Kidscore has the shape and the scales of
    the scores of 434 children by their mothers' high school and IQ.
    """
    if name == "eight_schools":
        return partial(groups, centred=False), tuple(jnp.asarray(SCHOOLS[::-1]))
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPES[name])
    x[:, 0] = 1.0
    kind = {"kidscore": "linear", "tiny": "poisson"}.get(name, name.partition("_")[0])
    if name == "kidscore":
        x[:, 1:] = np.stack([x[:, 1] > -0.8, 100.0 + 15.0 * x[:, 2]], axis=1)
        y = x @ np.array([26.0, 6.0, 0.56]) + rng.normal(0.0, 18.0, len(x))
    else:
        mean = x @ rng.normal(0.0, 0.5, x.shape[1])
        if kind == "linear":
            y = rng.normal(mean)
        elif kind == "logistic":
            y = rng.binomial(1, 1.0 / (1.0 + np.exp(-mean)))
        else:
            y = rng.poisson(np.exp(mean))
    spread = 100.0 if name == "kidscore" else 2.5
    noise = partial(dist.HalfCauchy, 2.5)
    model = partial(regression, family=kind, spread=spread, noise=noise)
    return model, (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
