"""What users get who change nothing: default arguments, from the density or the model on."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import special

import consistent_samplers as cs
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.maps import Control, Identity

KEY = jax.random.key(0)
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def check(trained: cs.TrainedSampler, evidence: cs.Evidence, log_z: float):
    """Log Z within its error, an error that says something, and a verdict to trust."""
    assert float(evidence.log_z_stderr) < 0.02
    assert abs(float(evidence.log_z) - log_z) < 3 * float(evidence.log_z_stderr)
    assert float(evidence.elbo) < log_z + 3 * float(evidence.elbo_stderr)
    assert trained.exploration.passed
    assert cs.diagnostics.is_trustworthy(evidence, trained.exploration)


@pytest.mark.slow
def test_a_target_that_no_base_fits():
    def log_density(x):  # a wave: x_1 is N(sin 2 x_0, 1/4), x_0 has the tails of a quartic
        return -0.1 * x[0] ** 4 - 2.0 * (x[1] - jnp.sin(2.0 * x[0])) ** 2

    log_z = np.log(special.gamma(0.25) / (2 * 0.1**0.25)) + 0.5 * np.log(np.pi / 2.0)
    trained = cs.train_sampler(KEY, cs.Target(log_density, 2))
    assert isinstance(trained.one_step.control, Control)
    assert trained.route.name != "base"
    assert list(trained.stages) == ["base", "calibrated"]
    base, calibrated = (trained.stages[name] for name in ("base", "calibrated"))
    assert float(base.ess) < 0.3 and float(calibrated.ess) > 0.7
    evidence = trained.evidence(jax.random.key(2))
    assert evidence.bound == "lower-if-injective"
    check(trained, evidence, log_z)
    # Weighted draws have the moments of the target: E x_0² = Γ(3/4) / (Γ(1/4) √0.1).
    draws = trained.sample(jax.random.key(3), 20_000)
    mean, std = cs.corrections.weighted_moments(draws)
    variance = special.gamma(0.75) / (special.gamma(0.25) * 0.1**0.5)
    np.testing.assert_allclose(mean, 0.0, atol=0.05)
    assert float(std[0]) ** 2 == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("bend", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_in_double_precision(bend):
    """With a base that is taken as it is, and with one that is not."""
    with enable_x64(True):

        def log_density(x):
            return -0.5 * x[0] ** 2 - 0.5 * (x[1] - bend * x[0] ** 2) ** 2

        target = cs.Target(log_density, 2)
        trained = cs.train_sampler(KEY, target, progress_bar=False)
        assert (trained.route.name == "base") == (bend == 0.0)
        evidence = trained.evidence(jax.random.key(1))
        assert evidence.log_z.dtype == jnp.float64
        error = max(3 * float(evidence.log_z_stderr), 1e-9)
        assert abs(float(evidence.log_z) - np.log(2 * np.pi)) < error
        assert trained.verdict(evidence).level != "not to be used"


def test_a_model_that_its_base_fits():
    y, heads = np.array([1, 0, 2, 1]), np.array(7)

    def model(y, heads):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        chance = numpyro.sample("chance", dist.Beta(2.0, 2.0))
        with numpyro.plate("days", len(y)):
            numpyro.sample("y", dist.Poisson(rate), obs=y)
        numpyro.sample("heads", dist.Binomial(10, chance), obs=heads)

    sampler = OneStepSampler(model)
    sampler.run(KEY, y, heads)
    assert isinstance(sampler.trained.one_step.control, Identity)
    # Conjugate both: the posterior is Gamma(6, 5) and Beta(9, 5), and the evidence is known.
    log_z = special.gammaln(6) - 6 * np.log(5.0) - special.gammaln(y + 1).sum()
    log_z += np.log(special.comb(10, 7)) + special.betaln(9, 5) - special.betaln(2, 2)
    check(sampler.trained, sampler.evidence, log_z)
    assert sampler.reweighted
    samples = sampler.get_samples()
    assert samples["rate"].shape == samples["chance"].shape == (10_000,)
    rate, chance = (np.asarray(samples[name]) for name in ("rate", "chance"))
    assert rate.mean() == pytest.approx(6 / 5, abs=0.03)
    assert rate.std() == pytest.approx(6**0.5 / 5, rel=0.05)
    assert chance.mean() == pytest.approx(9 / 14, abs=0.01)
    assert chance.std() == pytest.approx((9 * 5 / (14**2 * 15)) ** 0.5, rel=0.05)
