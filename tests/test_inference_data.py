"""Conversion to ArviZ: groups, values and what the model says of the data."""

import warnings

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from consistent_samplers.integrations.numpyro import OneStepSampler

arviz = pytest.importorskip("arviz", reason="conversion needs arviz (pip install arviz)")

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
    assert "log_likelihood" not in list(again.groups())


def test_arviz_works_on_it(sampler):
    summary = arviz.summary(sampler.to_arviz(), kind="stats")
    assert list(summary.index) == ["mu[0]", "mu[1]", "twice[0]", "twice[1]"]
    assert np.isfinite(float(arviz.loo(sampler.to_arviz()).elpd_loo))


def test_before_run():
    with pytest.raises(RuntimeError, match="before to_arviz"):
        OneStepSampler(model).to_arviz()
