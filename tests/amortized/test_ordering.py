"""Globals that drive the spread of others are drawn before them, whatever their names."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st

import consistent_samplers as cs
from consistent_samplers.amortized.ordering import ordered
from consistent_samplers.amortized.probing import padded_model


@given(st.permutations(range(4)))
def test_drivers_come_last_in_whatever_order_they_are_given(places):
    """A scale, that of a second scale, and two values that have the latter."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=2_000)
    second = np.exp(0.7 * first) * rng.normal(size=2_000)
    others = np.exp(np.clip(second, -3.0, 3.0)) * rng.normal(size=(2, 2_000))
    away = np.stack([first, second, *others], axis=1)
    found = [places[i] for i in ordered(away[:, places])]
    assert found[-2:] == [1, 0]


@pytest.mark.parametrize("size", [0, 1, 5])
def test_the_models_own_order_stays_where_nothing_drives_anything(size):
    away = np.random.default_rng(1).normal(size=(1_000, size))
    # Linear dependence and far values tell nothing of spreads.
    away[:, 1:] += away[:, :1]
    away[::50] *= 100.0
    assert ordered(away) == tuple(range(size))


def model(x, scale, y=None):
    """Sites are in the order of their names."""
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    sigma = numpyro.sample(scale, dist.HalfNormal(1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def covariates(scale):
    return lambda rng_key, num_rows: ((jax.random.normal(rng_key, (num_rows, 2)), scale), {})


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_positions_have_globals_in_their_order(order):
    padded = padded_model(model, covariates("sigma"), (4, 6), {"y": "y"})
    padded = dataclasses.replace(padded, order=order)
    sites = {"beta": jnp.array([10.0, 11.0]), "sigma": jnp.array(12.0)}
    at, members = padded.ravel(sites)
    np.testing.assert_array_equal(at, 10.0 + np.array(order))
    again = padded.unravel(at, members)
    assert all((again[name] == value).all() for name, value in sites.items())


@pytest.mark.slow
def test_a_family_is_as_good_whatever_its_scale_is_called():
    """Few rows: the coefficients' tails are those of the scale."""
    medians, draws = [], []
    rng = np.random.default_rng(0)
    sets = []
    for _ in range(60):
        x = rng.normal(size=(6, 2)).astype(np.float32)
        y = x @ rng.normal(size=2) + rng.normal(size=6)
        sets.append((x, y.astype(np.float32)))
    for scale, place in (("a_scale", 0), ("sigma", 2)):
        family = cs.amortize(
            jax.random.key(0),
            model,
            covariates(scale),
            num_rows=(5, 10),
            observed={"y": "y"},
            num_data_sets=4_000,
            num_iterations=(300, 300),
            progress_bar=False,
        )
        # Drawn first of all.
        assert family.model.order[-1] == place
        found = family.condition_many(
            jax.random.key(1), [((x, scale), {"y": y}) for x, y in sets], num_samples=1_000
        )
        medians.append(np.median(found.evidence.ess))
        draws.append(found.evidence.log_z)
    assert min(medians) > 0.85 and abs(medians[0] - medians[1]) < 0.05, medians
    assert np.median(np.abs(draws[0] - draws[1])) < 0.05
