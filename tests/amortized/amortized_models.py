"""Small models and tiny trainings."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

TINY = dict(num_data_sets=400, num_iterations=(10, 0), progress_bar=False)


def regression(X, y=None):
    b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("rows", X.shape[0]):
        numpyro.sample("y", dist.Normal(X @ b, 0.5), obs=y)


def designs(rng_key, num_rows):
    return (jax.random.normal(rng_key, (num_rows, 2)),), {}


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("schools", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, 3.0))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def errors(rng_key, num_rows):
    return (jax.random.uniform(rng_key, (num_rows,), minval=2.0, maxval=6.0),), {}
