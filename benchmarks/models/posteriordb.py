"""NumPyro models of posteriordb."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

# As in the Stan programs of the data base (Magnusson et al.), flat priors included.


def _flat(name: str, support: Any = constraints.real, shape: tuple[int, ...] = ()) -> Any:
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def ark(data: dict[str, Any]) -> None:
    """Autoregression of order K."""
    y, order = data["y"], int(data["K"])
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    before = jnp.stack([y[order - 1 - k : len(y) - 1 - k] for k in range(order)], axis=1)
    numpyro.sample("y", dist.Normal(alpha + before @ beta, sigma), obs=y[order:])


def eight_schools_noncentered(data: dict[str, Any]) -> None:
    """Eight schools, with standardised effects."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    standard = numpyro.sample("theta_trans", dist.Normal().expand([len(data["y"])]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * standard)
    numpyro.sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])


def gp_regr(data: dict[str, Any]) -> None:
    """Gaussian process with a squared exponential kernel; sigma is the noise's variance."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = data["x"]
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    covariance += sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=data["y"])


def kidscore_momiq(data: dict[str, Any]) -> None:
    """Linear regression with flat coefficients."""
    beta = _flat("beta", constraints.real_vector, (2,))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample(
        "y", dist.Normal(beta[0] + beta[1] * data["mom_iq"], sigma), obs=data["kid_score"]
    )


def kilpisjarvi(data: dict[str, Any]) -> None:
    """Linear trend of temperatures by year, as the years are: nearly collinear."""
    alpha = numpyro.sample("alpha", dist.Normal(data["pmualpha"], data["psalpha"]))
    beta = numpyro.sample("beta", dist.Normal(data["pmubeta"], data["psbeta"]))
    sigma = _flat("sigma", constraints.positive)
    numpyro.sample("y", dist.Normal(alpha + beta * data["x"], sigma), obs=data["y"])


def low_dim_gauss_mix(data: dict[str, Any]) -> None:
    """Mixture of two Gaussians with ordered means."""
    mu = _flat("mu", constraints.ordered_vector, (2,))
    numpyro.factor("prior of mu", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    parts = dist.Normal(mu, sigma).log_prob(data["y"][:, None])
    weights = jnp.log(jnp.stack([theta, 1.0 - theta]))
    numpyro.factor("y", jax.scipy.special.logsumexp(weights + parts, axis=1).sum())


def logmesquite(data: dict[str, Any]) -> None:
    """Regression on logarithms, all priors flat."""
    beta = _flat("beta", constraints.real_vector, (7,))
    sigma = _flat("sigma", constraints.positive)
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [jnp.ones(len(data["weight"])), *(jnp.log(data[n]) for n in names), data["group"]]
    mean = jnp.stack(columns, axis=1) @ beta
    numpyro.sample("y", dist.Normal(mean, sigma), obs=jnp.log(data["weight"]))


def blr(data: dict[str, Any]) -> None:
    """Bayesian linear regression."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([int(data["D"])]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(data["X"] @ beta, sigma), obs=data["y"])


MODELS: dict[str, Callable[[dict[str, Any]], None]] = {
    "arK": ark,
    "eight_schools_noncentered": eight_schools_noncentered,
    "gp_regr": gp_regr,
    "kidscore_momiq": kidscore_momiq,
    "kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix": low_dim_gauss_mix,
    "logmesquite": logmesquite,
    "blr": blr,
}
