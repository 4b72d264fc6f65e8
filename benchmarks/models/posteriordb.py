"""Models of posteriordb as in its Stan programs (Magnusson et al.), flat priors included."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import deterministic, factor, sample
from numpyro.distributions import constraints

from benchmarks.models.regressions import regression


def _flat(name: str, support: Any = constraints.real, shape: tuple[int, ...] = ()) -> Any:
    return sample(name, dist.ImproperUniform(support, (), shape))


def ark(data: dict[str, Any]) -> None:
    """Autoregression of order K."""
    y, order = data["y"], int(data["K"])
    alpha = sample("alpha", dist.Normal(0.0, 10.0))
    beta = sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
    sigma = sample("sigma", dist.HalfCauchy(2.5))
    before = jnp.stack([y[order - 1 - k : len(y) - 1 - k] for k in range(order)], axis=1)
    sample("y", dist.Normal(alpha + before @ beta, sigma), obs=y[order:])


def eight_schools_noncentered(data: dict[str, Any]) -> None:
    """Eight schools, with standardised effects."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    standard = sample("theta_trans", dist.Normal().expand([len(data["y"])]).to_event(1))
    theta = deterministic("theta", mu + tau * standard)
    sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])


def gp_regr(data: dict[str, Any]) -> None:
    """Gaussian process with a squared exponential kernel; sigma is the noise's variance."""
    rho = sample("rho", dist.Gamma(25.0, 4.0))
    alpha = sample("alpha", dist.HalfNormal(2.0))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    x = data["x"]
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    covariance += sigma * jnp.eye(len(x))
    sample("y", dist.MultivariateNormal(0.0, covariance), obs=data["y"])


def kidscore_momiq(data: dict[str, Any]) -> None:
    """Linear regression with flat coefficients."""
    beta = _flat("beta", constraints.real_vector, (2,))
    sigma = sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * data["mom_iq"]
    sample("y", dist.Normal(mean, sigma), obs=data["kid_score"])


def kilpisjarvi(data: dict[str, Any]) -> None:
    """Linear trend of temperatures by year, as the years are: nearly collinear."""
    alpha = sample("alpha", dist.Normal(data["pmualpha"], data["psalpha"]))
    beta = sample("beta", dist.Normal(data["pmubeta"], data["psbeta"]))
    sigma = _flat("sigma", constraints.positive)
    sample("y", dist.Normal(alpha + beta * data["x"], sigma), obs=data["y"])


def low_dim_gauss_mix(data: dict[str, Any]) -> None:
    """Mixture of two Gaussians with ordered means."""
    mu = _flat("mu", constraints.ordered_vector, (2,))
    factor("prior of mu", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = sample("theta", dist.Beta(5.0, 5.0))
    parts = dist.Normal(mu, sigma).log_prob(data["y"][:, None])
    weights = jnp.log(jnp.stack([theta, 1.0 - theta]))
    factor("y", jax.scipy.special.logsumexp(weights + parts, axis=1).sum())


def logmesquite(data: dict[str, Any]) -> None:
    """Regression on logarithms, all priors flat."""
    beta = _flat("beta", constraints.real_vector, (7,))
    sigma = _flat("sigma", constraints.positive)
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [jnp.ones(len(data["weight"])), *(jnp.log(data[n]) for n in names), data["group"]]
    mean = jnp.stack(columns, axis=1) @ beta
    sample("y", dist.Normal(mean, sigma), obs=jnp.log(data["weight"]))


def blr(data: dict[str, Any]) -> None:
    """Bayesian linear regression."""
    noise = partial(dist.HalfNormal, 10.0)
    regression(data["X"], data["y"], spread=10.0, noise=noise)


_NAMED = (eight_schools_noncentered, gp_regr, kidscore_momiq, kilpisjarvi, low_dim_gauss_mix)
MODELS: dict[str, Callable[[dict[str, Any]], None]] = {"arK": ark}
MODELS |= {model.__name__: model for model in (*_NAMED, logmesquite, blr)}
