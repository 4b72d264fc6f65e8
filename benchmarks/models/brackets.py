"""Models of known evidence for `benchmarks.brackets`, and three of them as nested sampling asks."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy import stats
from jax.scipy.special import ndtri
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import gamma, halfcauchy, multivariate_normal, multivariate_t

from consistent_samplers.targets import Target, datasets, sonar
from consistent_samplers.types import Array

_SHAPE = _RATE = 2.0  # of the prior of variances

# --- Targets ------------------------------------------------------------------------------------


def eight_schools() -> Target:
    """(mean, log scale, standardised effects); log Z by quadrature over the scale."""
    y, sigma = (np.asarray(part, float) for part in _schools())

    def integrand(tau: float) -> float:
        covariance = np.diag(sigma**2 + tau**2) + 25.0
        return float(
            multivariate_normal(np.zeros(8), covariance).pdf(y) * halfcauchy.pdf(tau, 0, 5)
        )

    z = quad(integrand, 0.0, 20.0, epsabs=0.0)[0] + quad(integrand, 20.0, np.inf, epsabs=0.0)[0]

    def log_density(x: Array) -> Array:
        mu, log_tau, effects = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        prior = stats.norm.logpdf(mu, 0.0, 5.0) + stats.norm.logpdf(effects).sum()
        prior = prior + math.log(2.0) + stats.cauchy.logpdf(tau, 0.0, 5.0) + log_tau
        return prior + stats.norm.logpdf(y, mu + tau * effects, sigma).sum()

    return Target(log_density, 10, "eight_schools", math.log(z))


def hierarchical(groups: int = 50, rows: int = 4) -> Target:
    """(mean, log variance, effects of groups), centred, all conjugate: log Z in closed form."""
    rng, spread, wide = np.random.default_rng(20), 0.5, 4.0  # variances over that of the noise
    effects = 1.0 + math.sqrt(spread) * rng.normal(size=(groups, 1))
    y = (effects + rng.normal(size=(groups, rows))).astype(np.float32)
    together = np.kron(np.eye(groups), np.ones((rows, rows)))
    covariance = np.eye(y.size) + spread * together + wide
    log_z = _log_evidence(y.ravel(), covariance)

    def log_density(x: Array) -> Array:
        mu, log_variance, effects = x[0], x[1], x[2:]
        scale = jnp.exp(0.5 * log_variance)
        prior = _log_inverse_gamma(log_variance) + stats.norm.logpdf(mu, 0.0, 2.0 * scale)
        prior = prior + stats.norm.logpdf(effects, mu, math.sqrt(spread) * scale).sum()
        return prior + stats.norm.logpdf(y, effects[:, None], scale).sum()

    return Target(log_density, groups + 2, "hierarchical", log_z)


def _log_evidence(y: np.ndarray, covariance: np.ndarray) -> float:
    """Of normal data with a covariance up to its scale, whose square is inverse gamma."""
    shape = _RATE / _SHAPE * covariance
    return float(multivariate_t(np.zeros(len(y)), shape, df=2.0 * _SHAPE).logpdf(y))


def _log_inverse_gamma(log_variance: Array) -> Array:
    constant = _SHAPE * math.log(_RATE) - math.lgamma(_SHAPE)
    return constant - _SHAPE * log_variance - _RATE * jnp.exp(-log_variance)


# --- Nested regressions -------------------------------------------------------------------------


def regression(x: Any, y: Any) -> None:
    """Linear regression with conjugate priors."""
    variance = numpyro.sample("variance", dist.InverseGamma(_SHAPE, _RATE))
    scale = jnp.sqrt(variance)
    beta = numpyro.sample("beta", dist.Normal(0.0, scale).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, scale), obs=y)


def nested_regressions(seed: int, rows: int = 40) -> tuple[dict[str, tuple[Any, Any]], float]:
    """Data of two regressions, the smaller without the last column; their log Bayes factor.

    The last coefficient is normal over data sets: evidence for either comes up.
    """
    rng = np.random.default_rng(1_000 + seed)
    x = np.c_[np.ones(rows), rng.normal(size=(rows, 3))].astype(np.float32)
    beta = np.array([1.0, -0.5, 0.5, 0.4 * rng.normal()])
    y = (x @ beta + rng.normal(size=rows)).astype(np.float32)
    parts = {"larger": x, "smaller": x[:, :-1]}
    wide = [part.astype(np.float64) for part in parts.values()]
    log_z = [_log_evidence(y, np.eye(rows) + part @ part.T) for part in wide]
    return {name: (part, y) for name, part in parts.items()}, log_z[0] - log_z[1]


# --- A stream of data ---------------------------------------------------------------------------


def logistic(x: Any, y: Any, prior: Any = None) -> None:
    """Logistic regression with a bias and two slopes, or with a posterior in place of its prior."""
    if prior is None:
        bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    else:
        sites = prior.sites()
        bias, slope = sites["bias"], sites["slope"]
    numpyro.sample("y", dist.Bernoulli(logits=bias + x @ slope), obs=y)


def stream(seed: int, rows: int = 300, num: int = 10) -> tuple[list[tuple[Any, Any]], Any, Any]:
    """Batches of a logistic regression; mean and standard deviation ``[2, 3]``, log Z of all."""
    rng = np.random.default_rng(2_000 + seed)
    x = rng.normal(size=(rows, 2)).astype(np.float32)
    chance = 1.0 / (1.0 + np.exp(1.0 - x @ [1.5, -0.5]))
    y = (rng.uniform(size=rows) < chance).astype(np.float32)
    signed = (2.0 * y - 1.0)[:, None] * np.c_[np.ones(rows), x]

    def log_density(beta: np.ndarray) -> np.ndarray:  # [..., 3]
        prior = -0.125 * (beta**2).sum(-1) - 1.5 * math.log(8.0 * math.pi)
        return prior - np.logaddexp(0.0, -beta @ signed.T).sum(-1)

    # The rectangle rule, around the mode and in the scales of the inverse Hessian.
    found = minimize(lambda beta: -log_density(beta), np.zeros(3))
    chance = 1.0 / (1.0 + np.exp(signed @ found.x))
    hessian = (signed * (chance * (1.0 - chance))[:, None]).T @ signed + 0.25 * np.eye(3)
    root = np.linalg.cholesky(np.linalg.inv(hessian))
    axis = np.linspace(-7.0, 7.0, 43)
    points = found.x + np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3) @ root.T
    values = log_density(points)
    weight = np.exp(values - values.max())
    log_z = values.max() + math.log(weight.sum() * (axis[1] - axis[0]) ** 3)
    log_z += float(np.log(np.diag(root)).sum())
    mean = np.average(points, axis=0, weights=weight)
    std = np.sqrt(np.average((points - mean) ** 2, axis=0, weights=weight))
    batches = list(zip(np.split(x, num), np.split(y, num), strict=True))
    return batches, np.stack([mean, std]), log_z


# --- As nested sampling asks --------------------------------------------------------------------


def _schools() -> tuple[Any, Any]:
    from benchmarks.models.regressions import model_of

    sigma, y = model_of("eight_schools")[1]
    return y, sigma


def _of_schools(u: Array) -> Array:
    y, sigma = _schools()
    tau = 5.0 * jnp.tan(0.5 * math.pi * u[1])
    return stats.norm.logpdf(y, 5.0 * ndtri(u[0]) + tau * ndtri(u[2:]), sigma).sum()


def _of_seeds(u: Array) -> Array:
    germinated, total, x1, x2 = datasets.seeds()
    # Quantiles of log tau: below, its effects are beyond all numbers.
    log_tau = np.linspace(-60.0, 15.0, 6_001)
    below = gamma.cdf(np.exp(log_tau), 0.01, scale=100.0)
    scale = jnp.exp(-0.5 * jnp.interp(u[0], below, log_tau))
    a, b = 10.0 * ndtri(u[1:5]), scale * ndtri(u[5:])
    logits = a[0] + a[1] * x1 + a[2] * x2 + a[3] * x1 * x2 + b
    found = germinated * jax.nn.log_sigmoid(logits)
    found = found + (total - germinated) * jax.nn.log_sigmoid(-logits)
    choices = sum(
        math.log(math.comb(int(n), int(r))) for n, r in zip(total, germinated, strict=True)
    )
    return found.sum() + choices


def _of_sonar() -> Callable[[Array], Array]:
    target = sonar()

    def log_likelihood(u: Array) -> Array:
        x = ndtri(u)
        return target.log_density(x) - stats.norm.logpdf(x).sum()

    return log_likelihood


NESTED: dict[str, Callable[[], tuple[int, Callable[[Array], Array]]]] = {
    "eight_schools": lambda: (10, _of_schools),
    "seeds": lambda: (26, _of_seeds),
    "sonar": lambda: (61, _of_sonar()),
}
"""Dimension and log likelihood of a point of the unit cube, of which the prior is uniform."""
