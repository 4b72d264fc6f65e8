"""Small NumPyro models with simulated data, for the time to first draws."""

from collections.abc import Callable
from typing import Any

SHAPES = {
    "kidscore": (434, 3),
    "linear": (100, 5),
    "logistic": (200, 6),
    "poisson": (150, 4),
    "logistic_100000x30": (100_000, 30),
    "tiny": (30, 2),
}
"""Rows and columns of the regressions."""


def model_of(name: str) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """A NumPyro model and its data, simulated with a fixed seed but for the eight schools.

    The first column of a regression is its intercept. Kidscore has the shape and the scales of
    the scores of 434 children by their mothers' high school and IQ.
    """
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist

    def eight_schools(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", len(y)):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("obs", dist.Normal(mu + tau * theta, sigma), obs=y)

    def regression(x: Any, y: Any) -> None:
        prior = dist.Normal(0.0, 100.0 if name == "kidscore" else 2.5)
        mean = x @ numpyro.sample("beta", prior.expand([x.shape[1]]).to_event(1))
        if name in ("kidscore", "linear"):
            sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
            numpyro.sample("y", dist.Normal(mean, sigma), obs=y)
        elif name.startswith("logistic"):
            numpyro.sample("y", dist.Bernoulli(logits=mean), obs=y)
        else:
            numpyro.sample("y", dist.Poisson(jnp.exp(mean)), obs=y)

    if name == "eight_schools":
        scores = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        return eight_schools, (jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]), scores)
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPES[name])
    x[:, 0] = 1.0
    y: Any
    if name == "kidscore":
        x[:, 1:] = np.stack([x[:, 1] > -0.8, 100.0 + 15.0 * x[:, 2]], axis=1)
        y = x @ np.array([26.0, 6.0, 0.56]) + rng.normal(0.0, 18.0, len(x))
    else:
        mean = x @ rng.normal(0.0, 0.5, x.shape[1])
        if name == "linear":
            y = rng.normal(mean)
        elif name.startswith("logistic"):
            y = rng.binomial(1, 1.0 / (1.0 + np.exp(-mean)))
        else:
            y = rng.poisson(np.exp(mean))
    return regression, (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
