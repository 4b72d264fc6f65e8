"""Controlled Monte Carlo diffusions, held to a Gaussian target, whose control is known."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs

KEY = jax.random.key(0)
MEAN, VARIANCE = 1.5, 0.3
TARGET = cs.targets.gaussian(np.array([MEAN]), np.array([[VARIANCE]]))
BASE = cs.bases.standard_normal(1)
BETA = 2.0


def build(**settings):
    small = {"base": BASE, "max_steps": 16, "batch_size": 64, "hidden": (16,)}
    schedule = cs.schedules.constant(BETA)
    return cs.algorithms.cmcd(
        TARGET, **small | {"train_steps": (16,), "schedule": schedule} | settings
    )


def score_and_velocity(x, t):
    """Of N(m_t, v_t) with 1 / v_t = 1 - t + t / v and m_t = t m v_t / v, as functions of t."""

    def variance(t):
        return 1.0 / (1.0 - t + t / VARIANCE)

    def mean(t):
        return t * MEAN / VARIANCE * variance(t)

    (v, v_dot), (m, m_dot) = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (variance, mean))
    return -(x - m) / v, m_dot + 0.5 * v_dot / v * (x - m)


def optimal(sign=1.0):
    """½ β u* carries the marginals: the velocity of π_t (with the right sign)."""
    return cs.networks.Network(
        lambda rng_key: {}, lambda params, x, t, d: sign * 2.0 / BETA * score_and_velocity(x, t)[1]
    )


@functools.cache
def log_weights(network, num_steps, **settings):
    algorithm = build(network=network, max_steps=num_steps, train_steps=(num_steps,), **settings)
    draws = algorithm.sample(KEY, algorithm.init(KEY), 4_000)
    return np.asarray(draws.log_weight, np.float64) - TARGET.log_z


@pytest.mark.parametrize("integrator", ["exponential", "euler_maruyama"])
def test_kernels_are_langevin_steps_with_the_control_both_ways(integrator):
    algorithm = build(network=optimal(), integrator=integrator)
    params, d, t = algorithm.init(KEY).params, jnp.asarray(1 / 16), jnp.asarray(0.375)
    x, x_next = jnp.array([0.7]), jnp.array([0.4])
    kernels = algorithm.control.kernels(params, (), jax.grad(TARGET.log_density))
    b = BETA / 16
    kept, variance = (1 - b / 2, b) if integrator != "exponential" else (math.exp(-b / 2), 0.0)
    variance = variance or 1 - kept**2
    for kernel, start, at, sign in (
        (kernels.forward(x, t, d), x, t, 1.0),
        (kernels.backward(x_next, t, d), x_next, t + d, -1.0),
    ):
        score, velocity = score_and_velocity(start, at)
        pull = score + start + sign * 2.0 / BETA * velocity
        np.testing.assert_allclose(kernel.mean, kept * start + (1 - kept) * pull, rtol=1e-4)
        np.testing.assert_allclose(kernel.std, variance**0.5, rtol=1e-5)


@pytest.mark.slow
def test_the_velocity_of_the_densities_is_the_optimal_control():
    # Weights are all Z in the limit of short steps: halving them halves the variance.
    coarse, fine = (log_weights(optimal(), n).var() for n in (16, 64))
    assert fine < 0.02
    assert fine < 0.5 * coarse
    # The other sign is worse than none.
    assert log_weights(optimal(-1.0), 64).var() > log_weights(optimal(0.0), 64).var() > 0.2


def test_any_control_has_mean_weight_z():
    for sign in (0.0, 1.0):
        log_weight = log_weights(optimal(sign), 16)
        weight = np.exp(log_weight)
        # Two means at four standard errors: a false alarm in 8,000 seeds.
        stderr = weight.std() / len(weight) ** 0.5
        assert stderr < 0.1
        assert abs(weight.mean() - 1.0) < 4 * stderr
        assert log_weight.mean() < 4 * log_weight.std() / len(weight) ** 0.5


@pytest.mark.parametrize(
    "loss", ["log_variance", pytest.param("reverse_kl", marks=pytest.mark.slow)]
)
def test_training_closes_the_gap_of_annealed_langevin(loss, tmp_path):
    algorithm = build(loss=loss, max_steps=8, train_steps=(8,))
    untrained = cs.evidence(algorithm.sample(KEY, algorithm.init(KEY), 4_000))
    state = cs.fit(KEY, algorithm, 300, progress_bar=False).state
    draws = algorithm.sample(jax.random.key(1), state, 4_000)
    evidence = cs.evidence(draws)
    assert evidence.bound == "lower"
    assert abs(evidence.log_z - TARGET.log_z) < 4 * evidence.log_z_stderr < 0.1
    gap = TARGET.log_z - evidence.elbo
    assert -4 * evidence.elbo_stderr < gap < 0.15 * (TARGET.log_z - untrained.elbo)
    # λ and the rate were learned, and are kept.
    assert float(jnp.abs(state.params["log_rate"])) > 0.01
    trained = cs.TrainedSampler.of(algorithm, state)
    trained.save(tmp_path)
    again = cs.load(tmp_path, TARGET)
    for one in (trained, again):
        chex.assert_trees_all_equal(one.sample(jax.random.key(1), 4_000, 8), draws)


def test_resampled_paths_take_the_densities_that_are_annealed_along():
    algorithm = build(network=optimal(), max_steps=64)
    state = algorithm.init(KEY)
    result = cs.corrections.resampled_paths(KEY, algorithm, state, 1_000, 64, resample_below=0.0)
    # Weights stay even all along, which they would not against other densities.
    assert float(result.acceptance.min()) > 0.9
    assert abs(float(result.log_z) - TARGET.log_z) < 0.02


def test_exponents_rise_from_the_base_to_the_target():
    control = build().control
    params = {"annealing": 3.0 * jax.random.normal(KEY, (16,))}
    share = jax.vmap(functools.partial(control.target_share, params))(jnp.linspace(0.0, 1.0, 33))
    assert float(share[0]) == 0.0
    np.testing.assert_allclose(share[-1], 1.0, rtol=1e-6)
    assert bool((jnp.diff(share) > 0).all())


def test_there_is_no_map():
    algorithm = build()
    state = algorithm.init(KEY)
    with pytest.raises(ValueError, match=r"method must be one of .*'path'"):
        algorithm.sample(KEY, state, 10, method="map")
    for wrong in (
        lambda: cs.calibration(algorithm),
        lambda: cs.corrections.annealed(KEY, algorithm, state, 10),
    ):
        with pytest.raises(ValueError, match="no deterministic map"):
            wrong()
    for noised in (
        lambda: cs.corrections.guided(KEY, algorithm, state, jnp.sum, 10, algorithm.max_steps),
        lambda: cs.corrections.product_paths(
            KEY, [algorithm], [state], [1.0], 10, algorithm.max_steps
        ),
    ):
        with pytest.raises(ValueError, match="predicts no end"):
            noised()
    with pytest.raises(ValueError, match="no probability flow"):
        cs.cdds(TARGET, teacher=algorithm, teacher_state=state)
    with pytest.raises(ValueError, match="no deterministic map"):
        algorithm.control.carry(state.params, jnp.zeros(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "variance"}, "loss must be one of"),
        ({"max_steps": 12}, "power of two"),
        ({"base": cs.bases.standard_normal(3)}, "dimension 3"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_the_papers_preset():
    algorithm = cs.algorithms.cmcd.paper(TARGET, max_steps=4, hidden=(8,))
    assert (algorithm.name, algorithm.control.process.integrator) == (
        "cmcd.paper",
        "euler_maruyama",
    )
