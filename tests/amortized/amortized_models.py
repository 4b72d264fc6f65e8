"""Small models and tiny trainings."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from consistent_samplers.amortized import fitting, probing, simulated
from consistent_samplers.amortized.conditional import ConditionalMap, Standard
from consistent_samplers.amortized.family import AmortizedSampler
from consistent_samplers.amortized.frames import frames_of

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


def column(rng_key, num_rows):
    return (jax.random.normal(rng_key, (num_rows,)),), {}


def slope(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def centred(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal((x - x.mean()) * b, 1.0), obs=y)


def probed(model, covariates=column, rows=(2, 6)):
    """The model of a family, held to its rows on a few data sets."""
    padded = probing.padded_model(model, covariates, rows, {"y": "y"})
    pairs = simulated.simulate(jax.random.key(0), padded, covariates, rows, 40)
    simulated.check_padding(padded, pairs)
    return padded, pairs


def bare(model, covariates=column, rows=(2, 6)):
    """A family without a map."""
    padded = probing.padded_model(model, covariates, rows, {"y": "y"})
    none = (None,) * 4
    return AmortizedSampler(padded, rows, *none, 1e9, 0.0, None, covariates)


def untrained(model, covariates=column, rows=(2, 6)):
    """A family whose draws are those of its frames: weights are exact for any map."""
    padded, pairs = probed(model, covariates, rows)
    starts = fitting.starts_of(pairs)
    one = jax.tree.map(lambda x: x[0], pairs.data)
    frames = jax.eval_shape(lambda data: frames_of(padded, starts, data, 1), one)
    sizes = frames.features.shape[-1], 3 * padded.num_each
    standard = Standard(*(jnp.stack([jnp.zeros(n), jnp.ones(n)]) for n in sizes))
    made = ConditionalMap(padded.num_globals, padded.num_each)
    params = made.init(jax.random.key(1), *sizes)
    some = jax.tree.map(lambda x: x[:4], pairs)
    values = jax.jit(jax.vmap(padded.log_density))((some.globals, some.members), some.data)
    kept = (tuple(some), values), covariates
    return AmortizedSampler(padded, rows, made, params, standard, starts, 1e9, 0.0, *kept)
