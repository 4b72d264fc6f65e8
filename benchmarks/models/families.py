"""Models of which each user has many data sets, and what simulates these."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import plate, sample

from benchmarks.models.regressions import groups, regression


class Family(NamedTuple):
    """A model, what simulates its covariates, how many rows a data set has, and what to compare.

    ``compared`` maps sites to what chains can agree on that stay in one of several modes.
    """

    model: Callable[..., Any]
    covariates: Callable[..., Any]
    num_rows: int | tuple[int, int]
    compared: Callable[[dict[str, Any]], dict[str, Any]] = dict


def _uniform(low: float, high: float) -> Callable[..., Any]:
    """One covariate."""
    return lambda key, num: ((jax.random.uniform(key, (num,), minval=low, maxval=high),), {})


def _some_columns(num_columns: int) -> Callable[..., Any]:
    """Rows of standard normal columns, of which some are zero: their weights follow the prior."""

    def covariates(rng_key: Any, num_rows: int) -> Any:
        key_x, key_used = jax.random.split(rng_key)
        used = jax.random.randint(key_used, (), 3, num_columns + 1)
        X = jax.random.normal(key_x, (num_rows, num_columns))
        return (X * (jnp.arange(num_columns) < used),), {}

    return covariates


def _poisson(exposure: Any, y: Any = None) -> None:
    mu = sample("mu", dist.Normal(0.0, 1.0))
    tau = sample("tau", dist.HalfNormal(1.0))
    with plate("groups", exposure.shape[0]):
        rate = sample("rate", dist.Normal(mu, tau))
        sample("y", dist.Poisson(exposure * jnp.exp(rate)), obs=y)


class _Wald(dist.Distribution):
    """First passage of a Brownian motion with drift to a threshold, after a delay (Wald, 1947)."""

    support = dist.constraints.positive
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, drift: Any, threshold: Any, delay: Any) -> None:
        self.mean_time, self.shape_of, self.delay = drift, threshold, delay
        super().__init__(jnp.broadcast_shapes(*map(jnp.shape, (drift, threshold, delay))))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws by the transform of Michael, Schucany and Haas (1976)."""
        shape = (*sample_shape, *self.batch_shape)
        key_normal, key_uniform = jax.random.split(key)
        mean, size = self.shape_of / self.mean_time, self.shape_of**2
        square = jax.random.normal(key_normal, shape) ** 2
        part = mean * square / (2.0 * size)
        low = mean / (1.0 + part + jnp.sqrt(part * (part + 2.0)))
        pick = jax.random.uniform(key_uniform, shape) <= mean / (mean + low)
        return self.delay + jnp.where(pick, low, mean**2 / low)

    def log_prob(self, value: Any) -> Any:
        """Log density; next to none before the delay, and less the farther: chains find back."""
        time = jnp.maximum(value - self.delay, 1e-3)
        away = (self.shape_of - self.mean_time * time) ** 2 / (2.0 * time)
        inside = jnp.log(self.shape_of) - 0.5 * jnp.log(2.0 * jnp.pi * time**3) - away
        return inside - 1e3 * jnp.maximum(self.delay + 1e-3 - value, 0.0)


def _diffusion(fast: Any, y: Any = None) -> None:
    drift = sample("drift", dist.LogNormal(jnp.zeros(2), 0.5).to_event(1))
    threshold = sample("threshold", dist.LogNormal(0.3, 0.3))
    delay = sample("delay", dist.LogNormal(-1.5, 0.3))
    with plate("trials", fast.shape[0]):
        sample("y", _Wald(drift[fast], threshold, delay), obs=y)


def _dose(dose: Any, y: Any = None) -> None:
    top = sample("top", dist.LogNormal(0.0, 0.5))
    half = sample("half", dist.Normal(0.0, 1.0))  # log dose of half the effect
    slope = sample("slope", dist.LogNormal(0.5, 0.4))
    sigma = sample("sigma", dist.HalfNormal(0.3))
    with plate("wells", dose.shape[0]):
        effect = top * jax.nn.sigmoid(slope * (dose - half))
        sample("y", dist.Normal(effect, 0.02 + sigma), obs=y)


def _mixture(num_rows: Any, y: Any = None) -> None:
    loc = sample("loc", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    share = sample("share", dist.Beta(5.0, 5.0))
    with plate("rows", num_rows):
        weights = dist.Categorical(probs=jnp.stack([share, 1.0 - share]))
        sample("y", dist.MixtureSameFamily(weights, dist.Normal(loc, 1.0)), obs=y)


def _ordered(sites: dict[str, Any]) -> dict[str, Any]:
    """The components of a mixture by their place: their names are interchangeable."""
    low = sites["loc"][..., 0] < sites["loc"][..., 1]
    share = np.where(low, sites["share"], 1.0 - sites["share"])
    return {"loc": np.sort(sites["loc"], -1), "share": share}


_LOGISTIC = partial(regression, family="logistic")
FAMILIES = {
    "schools": Family(groups, _uniform(8.0, 20.0), (8, 30)),
    "logistic": Family(_LOGISTIC, _some_columns(10), (20, 200)),
    "logistic_40x6": Family(_LOGISTIC, lambda k, n: ((jax.random.normal(k, (n, 6)),), {}), 40),
    "regression": Family(regression, _some_columns(6), (10, 100)),
    "poisson": Family(_poisson, _uniform(0.5, 5.0), (8, 30)),
    "diffusion": Family(
        _diffusion, lambda k, n: ((jax.random.bernoulli(k, 0.5, (n,)).astype(int),), {}), (30, 150)
    ),
    "dose": Family(_dose, _uniform(-3.0, 3.0), (8, 40)),
    "mixture": Family(_mixture, lambda k, n: ((n,), {}), (20, 60), _ordered),
}
"""Families by the names of the rows."""
