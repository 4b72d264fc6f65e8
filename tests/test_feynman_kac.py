"""Powers and products of targets: exact whatever the controls, even where they are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.corrections import product_paths

BASE = cs.bases.GaussianBase(jnp.array([0.3, 0.0]), jnp.diag(jnp.array([1.2, 1.0])))
SCHEDULE = cs.schedules.linear(0.1, 10.0)
# Means and variances by coordinate.
ONE, OTHER = ((1.0, -0.5), (0.6, 0.8)), ((-0.5, 0.3), (0.5, 0.9))
KEY = jax.random.key(1)


def sampler(moments, num_steps=8, off=0.0, **settings):
    """Around ``BASE``, with the exact control of a Gaussian target, or one that is ``off``."""
    mean, variance = map(np.array, moments)
    process = cs.processes.OrnsteinUhlenbeck(SCHEDULE)
    m = BASE.whiten(jnp.asarray(mean, jnp.float32))
    s = jnp.asarray(variance, jnp.float32) / jnp.diagonal(BASE.scale_tril) ** 2

    def control(params, x, t, d):
        a = process.signal(t)
        return (a * (s - 1.0) * x + m) / (a**2 * s + 1.0 - a**2) + off

    network = cs.networks.Network(lambda key: (), control)
    settings = {"schedule": SCHEDULE, "guidance": None, "base": BASE} | settings
    target = cs.targets.gaussian(mean, np.diag(variance))
    algorithm = cs.dis(target, network=network, max_steps=num_steps, **settings)
    return algorithm, algorithm.init(jax.random.key(0))


def product(all_moments, exponents):
    """Log normaliser, mean and variance of a product of powers of Gaussian densities."""
    means, variances = (np.array(x) for x in zip(*all_moments, strict=True))
    weights = np.array(exponents)[:, None] / variances
    precision = weights.sum(0)
    mean = (weights * means).sum(0) / precision
    log_z = -0.5 * (weights * (means - mean) ** 2).sum() + 0.5 * np.log(2 * np.pi / precision).sum()
    return log_z, mean, 1.0 / precision


def run(all_moments, exponents, key=KEY, num_samples=256, num_steps=8, off=0.0, **settings):
    algorithms, states = zip(*(sampler(m, num_steps, off) for m in all_moments), strict=True)
    return product_paths(key, algorithms, states, exponents, num_samples, num_steps, **settings)


CASES = {
    "tempered": ((ONE,), (2.0,)),
    "flattened": ((ONE,), (0.5,)),
    "product": ((ONE, OTHER), (1.0, 1.0)),
    "guidance": ((ONE, OTHER), (1.8, -0.5)),
}


@pytest.mark.parametrize("off", [0.0, 0.2])
@pytest.mark.parametrize("case", CASES)
def test_normaliser_and_moments_are_unbiased(case, off):
    all_moments, exponents = CASES[case]
    log_z, mean, variance = product(all_moments, exponents)

    def one(key):
        """Mean over the draws of w, w (x - mean) and w ((x - mean)² - variance)."""
        draws = run(all_moments, exponents, key, off=off, resample_below=0.7).draws
        weight, gap = jnp.exp(draws.log_weight - log_z)[:, None], draws.position - mean
        terms = jnp.concatenate([weight, weight * gap, weight * (gap**2 - variance)], axis=1)
        return terms.mean(0)

    terms = np.array(jax.jit(jax.vmap(one))(jax.random.split(KEY, 64)))
    terms[:, 0] -= 1.0
    # Five means over independent runs, at 4 standard errors: one false alarm in 3,000.
    stderr = terms.std(0, ddof=1) / len(terms) ** 0.5
    np.testing.assert_array_less(np.abs(terms.mean(0)), 4.0 * stderr)
    assert stderr.max() < 0.08


def test_a_first_power_has_the_weights_of_the_path():
    # No resampling, and B = 1: the sampler's own paths and kernels.
    algorithm, state = sampler(ONE, off=0.2)
    result = product_paths(KEY, [algorithm], [state], [1.0], 4_000, 8, resample_below=0.0)
    own = cs.evidence(algorithm.sample(jax.random.key(2), state, 4_000, 8))
    e = cs.evidence(result.draws)
    assert result.draws.bound == "lower"
    assert abs(float(e.elbo - own.elbo)) < 4.0 * float(jnp.hypot(e.elbo_stderr, own.elbo_stderr))
    np.testing.assert_allclose(e.ess, own.ess, rtol=0.2)


@pytest.mark.slow
def test_exact_scores_and_short_steps_leave_even_draws():
    all_moments, exponents = CASES["tempered"]
    result = run(all_moments, exponents, num_samples=2_000, num_steps=64, resample_below=1.0)
    plain = run(all_moments, exponents, num_samples=2_000, num_steps=64, resample_below=0.0)
    # Resampled by V after every step, all that is left is the steps' error.
    assert float(result.acceptance[-1]) > 0.9 > 0.5 > float(plain.acceptance[-1])
    log_z, mean, _ = product(all_moments, exponents)
    np.testing.assert_allclose(result.log_z, log_z, atol=0.15)
    np.testing.assert_allclose(result.draws.position.mean(0), mean, atol=0.1)
    density = 2.0 * jax.vmap(sampler(ONE)[0].target.log_density)(result.draws.position)
    np.testing.assert_allclose(result.draws.log_density, density, rtol=1e-4, atol=1e-4)


def test_the_base_alone_needs_no_weights():
    # Without a control, the paths are a stationary N(0, I / B) in the frame of the base.
    own = (np.asarray(BASE.loc), np.diag(np.asarray(BASE.scale_tril)) ** 2)
    result = run((own,), (3.0,), key=jax.random.PRNGKey(1))
    np.testing.assert_allclose(result.log_z, product((own,), (3.0,))[0], atol=1e-4)
    np.testing.assert_allclose(result.acceptance, 1.0, atol=1e-4)


def test_a_brownian_motion_has_an_infinite_rate_at_the_base():
    target = cs.targets.gaussian(jnp.zeros(2), jnp.ones(2))
    algorithm = cs.pis(target, base=BASE, hidden=(8,), max_steps=4, guidance="ratio")
    state = algorithm.init(jax.random.key(0))
    result = product_paths(KEY, [algorithm], [state], [1.5], 1_000, 4)
    log_z = product((((0.0, 0.0), (1.0, 1.0)),), (1.5,))[0]
    log_z += 1.5 * float(target.log_z) - 1.5 * np.log(2 * np.pi)
    e = cs.evidence(result.draws)
    np.testing.assert_allclose(result.log_z, log_z, atol=4.0 * float(e.log_z_stderr))
    assert float(e.log_z_stderr) < 0.05


def test_bad_input_is_refused():
    algorithm, state = sampler(ONE)
    several = cs.bases.mixture(jnp.zeros(2), jnp.zeros((2, 2)), jnp.tile(jnp.eye(2), (2, 1, 1)))
    others = {
        "their base": {"base": cs.bases.standard_normal(2)},
        "their noising process": {"schedule": cs.schedules.cosine()},
    }
    for message, settings in others.items():
        other, other_state = sampler(OTHER, **settings)
        with pytest.raises(ValueError, match=message):
            product_paths(KEY, [algorithm, other], [state, other_state], [1.0, 1.0], 8, 8)
    for arguments, message in (
        (([algorithm], [state], [1.0, 1.0], 8, 8), "1 samplers, 1 states and 2 exponents"),
        (([algorithm], [state], [-1.0], 8, 8), "positive sum"),
        (([algorithm] * 2, [state] * 2, [1.0, 0.0], 8, 8), "not zero"),
        (([algorithm], [state], [1.0], 8, 3), "num_steps=3"),
        (([algorithm], [state], [1.0], 1, 8), "num_samples must be an integer of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            product_paths(KEY, *arguments)
    mixed = cs.dis(algorithm.target, base=several, hidden=(8,), max_steps=8)
    with pytest.raises(ValueError, match="several frames"):
        product_paths(KEY, [mixed], [mixed.init(KEY)], [1.0], 8, 8)
