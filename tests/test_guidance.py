"""Guidance by soft values: exact weights, whatever the sampler and the values are worth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import consistent_samplers as cs
from consistent_samplers import networks
from consistent_samplers.corrections import guided

KEY = jax.random.key(0)
MEAN, COVARIANCE = np.array([0.4, -0.3]), np.array([[1.2, 0.3], [0.3, 0.7]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)


def algorithm_of(control, target=TARGET, **settings):
    """A sampler of the target with a given control."""
    network = networks.Network(lambda key: jnp.ones(()), lambda p, x, t, d: p * control(x, t, d))
    settings = {"base": cs.bases.standard_normal(2), "guidance": None, "max_steps": 8} | settings
    algorithm = cs.dis(target, network=network, **settings)
    return algorithm, algorithm.init(KEY)


def wrong(x, t, d):
    return 0.3 * jnp.tanh(x) + 0.2


def assert_right(draws, log_z, mean):
    """Four standard errors of log Z, and five of the weighted mean."""
    e = cs.evidence(draws)
    assert abs(float(e.log_z) - log_z) < 4.0 * float(e.log_z_stderr) + 1e-4
    assert draws.bound == "lower"
    assert float(e.elbo) <= log_z + 4.0 * float(e.elbo_stderr)
    weight = np.asarray(jax.nn.softmax(draws.log_weight))
    off = np.abs(weight @ np.asarray(draws.position) - mean)
    assert (off < 5.0 * 1.1 / np.sqrt(len(weight) * float(e.ess))).all()


def test_guided_draws_are_those_of_the_tilted_target():
    algorithm, state = algorithm_of(wrong)
    slope = np.array([0.8, -0.5])
    draws = guided(jax.random.key(2), algorithm, state, lambda x: x @ slope, 4_000, 8)
    mean = MEAN + COVARIANCE @ slope
    log_z = float(TARGET.log_z) + slope @ MEAN + 0.5 * slope @ COVARIANCE @ slope
    assert_right(draws, log_z, mean)
    np.testing.assert_allclose(
        draws.log_density,
        jax.vmap(lambda x: TARGET.log_density(x) + x @ slope)(draws.position),
        atol=1e-4,
    )


@pytest.mark.slow
def test_more_candidates_make_the_weights_even_without_any_derivative():
    algorithm, state = algorithm_of(
        lambda x, t, d: 0.0 * x,
        base=cs.bases.GaussianBase(
            jnp.asarray(MEAN, jnp.float32),
            jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32)),
        ),
    )

    @jax.custom_jvp
    def reward(x):
        return -2.0 * jnp.abs(x - 1.5).sum()

    @reward.defjvp
    def refuse(primals, tangents):
        raise AssertionError("A derivative was asked for.")

    ess = [
        float(cs.evidence(guided(KEY, algorithm, state, reward, 2_000, 8, num_candidates=m)).ess)
        for m in (1, 16)
    ]
    assert ess[1] > 1.5 * ess[0]
    points = TARGET.sample(jax.random.key(3), 400_000)
    truth = float(jnp.log(jnp.exp(jax.vmap(reward.fun)(points)).mean()) + TARGET.log_z)
    found = cs.evidence(guided(KEY, algorithm, state, reward, 8_000, 8, num_candidates=16))
    assert abs(float(found.log_z) - truth) < 4.0 * float(found.log_z_stderr) + 0.02


@pytest.mark.parametrize("outside", [-jnp.inf, -100.0])
def test_a_reward_that_jumps_loses_no_paths(outside):
    # Most paths that end beyond the jump were predicted before not to reach it.
    variance = np.diag(COVARIANCE)
    exact = cs.targets.gaussian(MEAN, np.diag(variance))
    schedule = cs.schedules.linear(0.1, 10.0)
    process = cs.processes.OrnsteinUhlenbeck(schedule)

    def control(x, t, d):
        a = process.signal(t)
        return (a * (variance - 1.0) * x + MEAN) / (a**2 * variance + 1.0 - a**2)

    algorithm, state = algorithm_of(control, exact, schedule=schedule)
    draws = guided(KEY, algorithm, state, lambda x: jnp.where(x[0] > 1.5, 0.0, outside), 8_192, 8)
    truth = float(exact.log_z) + scipy.stats.norm.logsf(1.5, MEAN[0], variance[0] ** 0.5)
    weight = np.exp(np.asarray(draws.log_weight, float) - truth)
    # Values that are not held up lose half of the mass, sixty of their standard errors.
    assert abs(weight.mean() - 1.0) < 4.0 * weight.std() / len(weight) ** 0.5 < 0.2
    beyond = np.asarray(draws.position[:, 0]) > 1.5
    assert beyond.mean() > 1.5 * np.exp(truth - float(exact.log_z))
    assert weight[~beyond].max() < 1e-30


def test_what_cannot_be_corrected_is_said():
    algorithm, state = algorithm_of(wrong)
    with pytest.raises(ValueError, match="num_candidates"):
        guided(KEY, algorithm, state, jnp.sum, 10, 8, num_candidates=0)
    with pytest.raises(ValueError, match="num_steps"):
        guided(KEY, algorithm, state, jnp.sum, 10, 3)
    for reward in (lambda x: x, lambda x: jnp.zeros(1)):
        with pytest.raises(ValueError, match=r"'.* \+ log_reward' must return a scalar"):
            guided(KEY, algorithm, state, reward, 10, 8)
    step = cs.cdds(TARGET, teacher=algorithm, teacher_state=state, num_points=3)
    with pytest.raises(ValueError, match="no stochastic paths"):
        guided(KEY, step, step.init(KEY), jnp.sum, 10, 1)
