"""Markov chains that propose one-step draws: exact, in every way that MCMC runs chains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import HMC, MCMC, NUTS

from consistent_samplers.bases import GaussianBase
from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler

KEY = jax.random.key(0)
TINY = {
    "num_samples": 100,
    "hidden": (8,),
    "num_calibration_iterations": 20,
    "explore": False,
    "progress_bar": False,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Calibration did not improve:UserWarning"),
    pytest.mark.filterwarnings("ignore:There are not enough devices:UserWarning"),
]
SHAPE, RATE, EVENTS = 3.0, 2.0, np.array([4, 1, 3])


def counts(y):
    """Gamma posterior: shape 3 + 8, rate 2 + 3."""
    rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
    side = numpyro.sample("side", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.deterministic("double", 2.0 * rate + 0.0 * side[0])
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def check_rate(samples):
    """Mean and variance of the rate within four Monte-Carlo errors, by chain."""
    rate = np.asarray(samples["rate"], np.float64)
    mean, variance = 11.0 / 5.0, 11.0 / 25.0
    error = np.sqrt(variance / effective_sample_size(rate))
    assert abs(rate.mean() - mean) < 4 * error
    square = (rate - mean) ** 2
    error = square.std() / np.sqrt(effective_sample_size(square))
    assert abs(square.mean() - variance) < 4 * error
    np.testing.assert_allclose(samples["double"], 2 * samples["rate"], rtol=1e-6)
    if len(rate) > 1:
        assert gelman_rubin(rate) < 1.01


@pytest.fixture(scope="module")
def sampler():
    """Off in place and scale, and hardly trained: what is accepted decides what chains follow."""
    base = GaussianBase(jnp.array([0.6, 0.2, 0.0]), jnp.diag(jnp.array([0.5, 1.3, 1.3])))
    settings = {k: v for k, v in TINY.items() if k != "explore"}
    poor = OneStepSampler(counts, base=base, **(settings | {"num_calibration_iterations": 1}))
    poor.ensure_trained(KEY, EVENTS)
    return poor


@pytest.mark.slow
def test_a_chain_compiled_for_any_data_is_refused(sampler):
    mcmc = MCMC(
        OneStepMH(sampler), num_warmup=0, num_samples=10, jit_model_args=True, progress_bar=False
    )
    with pytest.raises(ValueError, match="leave jit_model_args out"):
        mcmc.run(KEY, EVENTS)


@pytest.mark.parametrize(
    "chain_method",
    [
        pytest.param("sequential", marks=pytest.mark.slow),
        pytest.param("vectorized", marks=pytest.mark.slow),
        "parallel",
    ],
)
def test_chains_follow_the_posterior_without_a_warm_up(sampler, chain_method):
    mcmc = MCMC(
        OneStepMH(sampler),
        num_warmup=0,
        num_samples=4_000,
        num_chains=2,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), EVENTS, extra_fields=("accept_prob", "log_weight"))
    check_rate(mcmc.get_samples(group_by_chain=True))
    accept_prob = mcmc.get_extra_fields(group_by_chain=True)["accept_prob"]
    assert accept_prob.shape == (2, 4_000)
    # A rejected proposal leaves the chain where it is; an accepted one never does.
    rate = np.asarray(mcmc.get_samples(group_by_chain=True)["rate"])
    moved = (np.diff(rate, axis=1) != 0).mean()
    assert abs(moved - float(accept_prob.mean())) < 0.03 and 0.3 < moved < 0.9


@pytest.mark.parametrize(
    "inner",
    [NUTS, functools.partial(HMC, trajectory_length=1.5)],
)
@pytest.mark.slow
def test_an_inner_kernel_explores_what_no_proposal_reaches(inner):
    """Proposals from a base that is far off are hardly ever accepted: the inner kernel works."""
    base = GaussianBase(jnp.array([2.5, 3.0, 0.0]), 0.3 * jnp.eye(3))
    settings = {k: v for k, v in TINY.items() if k not in ("explore", "num_calibration_iterations")}
    poor = OneStepSampler(counts, base=base, num_calibration_iterations=1, **settings)
    mcmc = MCMC(
        OneStepMH(poor, inner),
        num_warmup=200,
        num_samples=1_000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), EVENTS, extra_fields=("accept_prob", "inner.accept_prob"))
    check_rate(mcmc.get_samples(group_by_chain=True))
    extra = mcmc.get_extra_fields()
    assert float(extra["accept_prob"].mean()) < 0.3 < float(extra["inner.accept_prob"].mean())


@pytest.mark.slow
def test_exact_draws_are_all_accepted():
    """On a Gaussian the fitted base is the posterior: every weight is the same."""

    def model():
        numpyro.sample("x", dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 1], [1, 1]])))

    kernel = OneStepMH(OneStepSampler(model, **TINY))
    mcmc = MCMC(kernel, num_warmup=0, num_samples=200, progress_bar=False)
    mcmc.run(KEY, extra_fields=("mean_accept_prob",))  # trains
    assert float(mcmc.get_extra_fields()["mean_accept_prob"][-1]) > 0.98


@pytest.mark.slow
def test_runs_go_on_and_repeat_and_convert(sampler):
    mcmc = MCMC(OneStepMH(sampler), num_warmup=0, num_samples=50, progress_bar=False)
    mcmc.run(jax.random.key(2), EVENTS)
    first = mcmc.get_samples()["rate"]
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.last_state.rng_key, EVENTS)
    assert not np.array_equal(first, mcmc.get_samples()["rate"])
    again = MCMC(OneStepMH(sampler), num_warmup=0, num_samples=50, progress_bar=False)
    again.run(jax.random.key(2), EVENTS)
    np.testing.assert_array_equal(first, again.get_samples()["rate"])
    mcmc.print_summary()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((counts,), "sampler must be a OneStepSampler"), ((None, 3), "sampler must be")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(TypeError, match=message):
        OneStepMH(*arguments)


def test_an_inner_kernel_is_made_here(sampler):
    with pytest.raises(TypeError, match=r"such as numpyro\.infer\.NUTS"):
        OneStepMH(sampler, NUTS(counts))


def test_a_wrong_key_is_refused_by_a_trained_sampler_too(sampler):
    with pytest.raises(TypeError, match="rng_key must be one key"):
        sampler.run(0, EVENTS)


def test_starting_points_are_refused(sampler):
    mcmc = MCMC(OneStepMH(sampler), num_warmup=0, num_samples=5, progress_bar=False)
    with pytest.raises(ValueError, match="leave init_params out"):
        mcmc.run(KEY, EVENTS, init_params={"rate": jnp.zeros(()), "side": jnp.zeros(2)})
