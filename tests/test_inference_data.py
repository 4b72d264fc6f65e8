"""Conversion to ArviZ: groups, values and what the model says of the data."""

import importlib
import importlib.util
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, Predictive

from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler

# ArviZ 1 is made of arviz_base and arviz_stats, which is what the tests install.
ARVIZ = [name for name in ("arviz", "arviz_base") if importlib.util.find_spec(name)]
if not ARVIZ:
    pytest.skip("conversion needs arviz or arviz-base", allow_module_level=True)

Y = np.array([1.0, 2.0, 0.5], np.float32)
NUM = 500


def model(y, scale):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.deterministic("twice", 2.0 * mu)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu.sum(), scale), obs=y)
    numpyro.factor("nothing", 0.0)


@pytest.fixture(scope="module")
def sampler():
    made = OneStepSampler(
        model,
        num_samples=NUM,
        explore=False,
        max_steps=1,
        hidden=(8,),
        num_iterations=10,
        num_calibration_iterations=20,
        progress_bar=False,
    )
    with warnings.catch_warnings():
        # A Gaussian leaves calibration nothing to improve.
        warnings.filterwarnings("ignore", "Calibration did not improve")
        made.run(jax.random.key(0), Y, scale=0.5)
    return made


@pytest.mark.parametrize("resampled", [None, False])
def test_groups(sampler, resampled):
    data = sampler.to_arviz(resampled=resampled)
    samples = sampler.get_samples(resampled=resampled)
    for name in ("mu", "twice"):
        np.testing.assert_array_equal(data["posterior"][name].values[0], samples[name])
    weights = data["sample_stats"]["log_weight"].values
    assert weights.shape == (1, NUM)
    if resampled is False:
        np.testing.assert_array_equal(weights[0], sampler.get_weighted_samples()[1])
    np.testing.assert_array_equal(data["observed_data"]["y"].values, Y)
    expected = dist.Normal(samples["mu"].sum(1)[:, None], 0.5).log_prob(Y)
    found = data["log_likelihood"]["y"].values[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert list(data["log_likelihood"].data_vars) == ["y"]  # and not the factor
    predicted = data["posterior_predictive"]["y"].values
    assert predicted.shape == (1, NUM, 3)
    residual = predicted[0] - np.asarray(samples["mu"].sum(1))[:, None]
    assert abs(residual.std() / 0.5 - 1) < 5 / np.sqrt(2 * residual.size)
    again = sampler.to_arviz(resampled=resampled, log_likelihood=False)
    np.testing.assert_array_equal(again["posterior_predictive"]["y"].values, predicted)
    assert not hasattr(again, "log_likelihood")


# A few rows that a posterior rests on are no matter of the file.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.parametrize("name", ARVIZ)
def test_arviz_works_on_it(sampler, monkeypatch, name):
    if name == "arviz_base":
        monkeypatch.setitem(sys.modules, "arviz", None)  # as if it were not installed
    stats = pytest.importorskip({"arviz": "arviz", "arviz_base": "arviz_stats"}[name])
    data = sampler.to_arviz()
    summary = stats.summary(data, kind="stats")
    assert list(summary.index) == ["mu[0]", "mu[1]", "twice[0]", "twice[1]"]
    mean = np.asarray(sampler.get_samples()["mu"]).mean(0)
    np.testing.assert_allclose(summary["mean"].astype(float)[:2], mean, atol=0.01)
    loo = stats.loo(data)
    assert np.isfinite(float(getattr(loo, "elpd_loo", getattr(loo, "elpd", np.nan))))


def test_predictive_takes_the_samples(sampler):
    samples = sampler.get_samples()
    new = jnp.zeros(5)  # as many as wanted, where nothing is observed
    drawn = Predictive(handlers.uncondition(model), samples)(jax.random.key(1), new, scale=0.5)
    assert drawn["y"].shape == (NUM, 5)
    means = samples["mu"].sum(1)[:, None]
    assert abs(float((drawn["y"] - means).std()) / 0.5 - 1) < 5 / np.sqrt(2 * NUM * 5)
    np.testing.assert_allclose(drawn["twice"], samples["twice"], rtol=1e-6)


@pytest.mark.slow
def test_chains_convert_as_any_of_numpyro(sampler):
    """`OneStepMH` behind ``MCMC``: what NumPyro's own converters need is there."""
    mcmc = MCMC(
        OneStepMH(sampler),
        num_warmup=0,
        num_samples=20,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), Y, scale=0.5, extra_fields=("accept_prob",))
    from_numpyro = importlib.import_module(ARVIZ[-1]).from_numpyro
    data = from_numpyro(mcmc, log_likelihood=True)
    assert data["posterior"]["mu"].shape == (2, 20, 2)
    np.testing.assert_array_equal(
        data["posterior"]["twice"].values, mcmc.get_samples(group_by_chain=True)["twice"]
    )
    assert data["log_likelihood"]["y"].shape == (2, 20, 3)


def test_before_run():
    with pytest.raises(RuntimeError, match="before to_arviz"):
        OneStepSampler(model).to_arviz()
