"""Corrections that spend more than one step: exact whatever the sampler is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import consistent_samplers as cs
from consistent_samplers.corrections import annealed, resample, resampled_paths
from consistent_samplers.corrections.particles import genealogical_stderr

TARGET = cs.targets.gaussian(jnp.array([1.0, -0.5]), jnp.array([[1.5, 0.4], [0.4, 0.6]]))
LOG_Z = float(TARGET.log_z)


def untrained(constructor, **settings):
    settings = {"base": cs.bases.standard_normal(2), "guidance": None} | settings
    algorithm = constructor(TARGET, **settings)
    return algorithm, algorithm.init(jax.random.key(0))


@pytest.mark.slow
def test_annealing_brings_a_poor_sampler_to_the_truth():
    algorithm, state = untrained(cs.osds)
    key = jax.random.key(1)
    plain = cs.evidence(algorithm.sample(key, state, 1_500))
    result = annealed(key, algorithm, state, 1_500)
    e = cs.evidence(result.draws)
    # Four standard errors: one run in 15,000 fails by chance.
    assert abs(float(e.log_z) - LOG_Z) < 4.0 * float(e.log_z_stderr)
    assert float(e.elbo) <= LOG_Z + 4.0 * float(e.elbo_stderr)
    assert LOG_Z - float(e.elbo) < 0.3 * (LOG_Z - float(plain.elbo)) and float(e.ess) > float(
        plain.ess
    )
    np.testing.assert_allclose(result.log_z, e.log_z, atol=1e-5)
    assert result.acceptance.shape == (8,) and float(result.acceptance.min()) > 0.6
    points = np.asarray(resample(key, result.draws).position)
    np.testing.assert_allclose(points.mean(0), [1.0, -0.5], atol=0.15)
    np.testing.assert_allclose(np.cov(points.T), [[1.5, 0.4], [0.4, 0.6]], atol=0.25)


def test_annealing_leaves_exact_draws_and_their_weights():
    base = cs.bases.GaussianBase(
        jnp.array([1.0, -0.5]), jnp.linalg.cholesky(jnp.array([[1.5, 0.4], [0.4, 0.6]]))
    )
    algorithm, state = untrained(cs.osds, base=base)
    draws = annealed(jax.random.key(2), algorithm, state, 1_500).draws
    np.testing.assert_allclose(draws.log_weight, LOG_Z, atol=1e-4)
    np.testing.assert_allclose(draws.position.mean(0), [1.0, -0.5], atol=4 * 1.3 / 1_500**0.5)
    np.testing.assert_allclose(
        draws.log_density, jax.vmap(TARGET.log_density)(draws.position), atol=1e-4
    )


@pytest.mark.slow
def test_annealing_works_in_the_frames_of_a_mixture():
    target = cs.targets.gmm9()
    base = cs.bases.mixture(
        jnp.zeros(2), jnp.array([[-3.0, 0.0], [3.0, 0.0]]), jnp.tile(4.0 * jnp.eye(2), (2, 1, 1))
    )
    algorithm = cs.osds(target, base=base, guidance=None)
    state = algorithm.init(jax.random.key(0))
    e = cs.evidence(annealed(jax.random.key(1), algorithm, state, 1_500).draws)
    assert abs(float(e.log_z)) < 4.0 * float(e.log_z_stderr) < 0.6


@pytest.mark.slow
def test_resampled_paths_estimate_z_without_bias():
    algorithm, state = untrained(cs.dis, max_steps=8)
    log_z = jax.vmap(
        lambda key: resampled_paths(key, algorithm, state, 256, 8, resample_below=0.8).log_z
    )
    estimates = log_z(jax.random.split(jax.random.key(0), 64))
    z = np.exp(np.asarray(estimates) - LOG_Z)
    assert abs(z.mean() - 1.0) < 4.0 * z.std(ddof=1) / len(z) ** 0.5 < 0.4


def test_without_resampling_the_paths_keep_their_own_weights():
    algorithm, state = untrained(cs.dis, max_steps=8)
    result = resampled_paths(jax.random.key(0), algorithm, state, 2_000, 8, resample_below=0.0)
    e, own = (
        cs.evidence(result.draws),
        cs.evidence(algorithm.sample(jax.random.key(1), state, 2_000)),
    )
    assert abs(float(e.elbo - own.elbo)) < 4.0 * float(jnp.hypot(e.elbo_stderr, own.elbo_stderr))


def test_resampling_leaves_exact_draws():
    base = cs.bases.GaussianBase(
        jnp.array([1.0, -0.5]), jnp.linalg.cholesky(jnp.array([[1.5, 0.4], [0.4, 0.6]]))
    )
    algorithm, state = untrained(cs.dis, base=base, max_steps=8)
    result = resampled_paths(jax.random.key(0), algorithm, state, 2_000, 8)
    np.testing.assert_allclose(result.draws.log_weight, LOG_Z, atol=1e-3)
    np.testing.assert_allclose(result.acceptance, 1.0, atol=1e-3)


@pytest.mark.parametrize("outside", [-jnp.inf, jnp.nan, -100.0])
def test_paths_beyond_the_edge_of_a_target_may_come_back(outside):
    def log_density(x):
        return jnp.where(x[0] > 0.5, -0.5 * jnp.sum(x**2), outside)

    target = cs.Target(log_density, 1)
    truth = 0.5 * np.log(2.0 * np.pi) + scipy.stats.norm.logsf(0.5)
    base = cs.bases.standard_normal(1)
    algorithm = cs.dis(target, base=base, max_steps=8, hidden=(8,), guidance=None)
    state = algorithm.init(jax.random.key(0))

    def one(key):
        result = resampled_paths(key, algorithm, state, 512, 8, resample_below=0.8)
        return result.log_z, result.log_z_stderr, result.acceptance[:-1].min()

    log_z, stderr, least = jax.vmap(one)(jax.random.split(jax.random.key(1), 64))
    z = np.exp(np.asarray(log_z, float) - truth)
    # Were all of them dropped, most of the mass would be missing, and no weight would say so.
    assert abs(z.mean() - 1.0) < 4.0 * z.std(ddof=1) / len(z) ** 0.5 < 0.4
    assert (least < 0.8).all()
    # Copies are no draws: their ancestors say how far log Z is known.
    covered = np.abs(np.log(z)) < 2.0 * np.asarray(stderr)
    assert covered.mean() > 0.8
    assert np.median(stderr) < 1.5 * np.log(z).std(ddof=1)


@pytest.mark.parametrize("num", [2, 5])
def test_the_error_of_log_z_is_that_of_the_mean_of_few_weights(num):
    weight = np.arange(1.0, num + 1.0)
    found = genealogical_stderr(jnp.log(weight), jnp.arange(num))
    np.testing.assert_allclose(found, scipy.stats.sem(weight) / weight.mean(), rtol=1e-5)
    # Copies of a single draw tell nothing of the spread: the error is that of the mean itself.
    alike = genealogical_stderr(jnp.zeros(num), jnp.zeros(num, int))
    np.testing.assert_allclose(alike, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("num_samples", value) for value in (0, 1, 10.0)],
        *[(f"num_{what}", 0) for what in ("temperatures", "moves", "integration_steps")],
        *[("step_size", value) for value in (0.0, -1.0, jnp.nan, jnp.inf)],
    ],
)
def test_annealing_refuses_numbers_out_of_range(name, value):
    algorithm, state = untrained(cs.osds, hidden=(8,), max_steps=1)
    with pytest.raises(ValueError, match=f"{name} must be"):
        annealed(jax.random.key(0), algorithm, state, **{"num_samples": 10} | {name: value})


@pytest.mark.parametrize("num_samples", [0, 1, 10.0])
def test_a_standard_error_takes_two_paths(num_samples):
    algorithm, state = untrained(cs.dis, hidden=(8,), max_steps=2)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 2"):
        resampled_paths(jax.random.key(0), algorithm, state, num_samples, 2)


def test_bad_input_is_refused():
    algorithm, state = untrained(cs.osds)
    with pytest.raises(ValueError, match="num_steps"):
        annealed(jax.random.key(0), algorithm, state, 10, 3)
    student = cs.cdds(TARGET, teacher=algorithm, teacher_state=state, num_points=8)
    with pytest.raises(ValueError, match="no stochastic paths"):
        resampled_paths(jax.random.key(0), student, student.init(jax.random.key(0)), 10, 1)
