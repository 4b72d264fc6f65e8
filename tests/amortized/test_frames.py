"""What maps start from: modes that hold the mass, and tails."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st

from consistent_samplers.amortized import fitting, modes, simulated
from consistent_samplers.amortized.conditional import ConditionalMap
from consistent_samplers.amortized.probing import padded_model


def curve(dose, y=None):
    """Searches from the prior's mean end in modes of much noise and no curve one time in seven."""
    top = numpyro.sample("top", dist.LogNormal(0.0, 0.5))
    half = numpyro.sample("half", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.LogNormal(0.5, 0.4))
    noise = numpyro.sample("noise", dist.LogNormal(-2.0, 0.5))
    with numpyro.plate("wells", dose.shape[0]):
        effect = top * jax.nn.sigmoid(slope * (dose - half))
        numpyro.sample("y", dist.Normal(effect, noise), obs=y)


def doses(rng_key, num_rows):
    return (jax.random.uniform(rng_key, (num_rows,), minval=-3.0, maxval=3.0),), {}


@pytest.mark.slow
def test_modes_are_those_that_hold_the_mass():
    rows = (8, 20)
    model = padded_model(curve, doses, rows, {"y": "y"})
    pairs = simulated.simulate(jax.random.key(0), model, doses, rows, 500)
    prepared = fitting.prepare(model, fitting.starts_of(pairs), pairs, 1)
    # What a data set was simulated from is a draw of its posterior.
    away = np.linalg.norm(prepared.u[:, 0], axis=1)
    assert (away > 10.0).mean() < 0.02
    assert np.median(away) < 1.3 * np.sqrt(st.chi2(4).median())


def test_an_arm_where_a_search_is_stuck_is_no_mode():
    """The log of a scale close to nothing: Laplace's method would take it to hold a lot."""

    def counts(exposure, y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("groups", exposure.shape[0]):
            rate = numpyro.sample("rate", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Poisson(exposure * jnp.exp(rate)), obs=y)

    def exposures(rng_key, num_rows):
        return (jax.random.uniform(rng_key, (num_rows,), minval=0.5, maxval=5.0),), {}

    model = padded_model(counts, exposures, (8, 20), {"y": "y"})
    pairs = simulated.simulate(jax.random.key(0), model, exposures, (8, 20), 300)
    assert modes.survey(model, fitting.starts_of(pairs), pairs).num_modes == 1


def test_no_exponential_tail_outweighs_the_draws_of_globals():
    made = ConditionalMap(2, 0, hidden=8)
    params = made.init(jax.random.key(0), 3, 0)
    far = jnp.array([[-50.0, 0.0], [0.0, 50.0], [30.0, -30.0]])
    log_prob = jax.vmap(lambda u: made.log_prob_globals(params, jnp.zeros(32), u))(far)
    assert (log_prob > -jnp.abs(far).sum(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("heavy", "wide"), [(True, st.t(3)), (False, st.norm)])
def test_the_maps_density_is_that_of_its_draws(heavy, wide):
    """Some draws of a global are wider, in training and in answers, and the density knows."""
    made = ConditionalMap(2, 0, hidden=8, heavy=heavy)
    params = made.init(jax.random.key(0), 3, 0)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    context = jax.random.normal(jax.random.key(2), (32,))

    def one(key):
        z, _ = made.latent(key, 0)
        u, log_q = made.draw_globals(params, context, z)
        return z, u, log_q, made.log_prob_globals(params, context, u)

    z, u, log_q, log_prob = jax.vmap(one)(jax.random.split(jax.random.key(3), 50_000))
    np.testing.assert_allclose(log_q, log_prob, atol=2e-3)
    # Four standard deviations, as a Gaussian has them six times in a hundred thousand.
    share = 2.0 * (0.9 * st.norm.sf(4.0) + 0.1 * wide.sf(2.0))
    assert (np.abs(z) > 4.0).mean() == pytest.approx(share, rel=0.1)
    spread = jnp.std(u, 0)
    normal = st.multivariate_normal(np.mean(u, 0), np.diag(spread**2))
    weight = np.exp(normal.logpdf(u) - np.asarray(log_prob, float))
    assert weight.mean() == pytest.approx(1.0, abs=5.0 * weight.std() / len(u) ** 0.5)
    assert weight.std() < 3.0


def test_draws_of_members_come_with_their_density():
    made = ConditionalMap(1, 2, hidden=8)
    params = made.init(jax.random.key(0), 3, 2)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    context, u = jax.random.normal(jax.random.key(2), (32,)), jnp.array([0.4])
    features, z = jax.random.normal(jax.random.key(3), (2, 50, 2))
    v, log_q = made.draw_members(params, context, u, features, z)
    assert jnp.abs(v - z).max() > 0.1
    expected = made.log_prob_members(params, context, u, features, v)
    np.testing.assert_allclose(log_q, expected, atol=1e-3)
