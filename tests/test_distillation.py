"""Distillation: CDDS, progressive halving and SCDS, against the affine flow of a Gaussian."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import consistent_samplers as cs
from consistent_samplers import networks, schedules, simulate
from consistent_samplers.bases import GaussianBase
from consistent_samplers.maps import DenoisingProcess

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.8, 0.4], [0.4, 0.5]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)
KEY = jax.random.key(0)
SCHEDULE = schedules.linear(0.1, 10.0)


def small_teacher(**settings) -> cs.Algorithm:
    """An untrained teacher with settings of its own."""
    return cs.dis(
        TARGET,
        **(
            {
                "base": cs.bases.standard_normal(2),
                "max_steps": 32,
                "batch_size": 16,
                "hidden": (16,),
                "guidance": None,
                "elementwise_gain": True,
                "schedule": SCHEDULE,
                "integrator": "exponential",
            }
            | settings
        ),
    )


def optimal_control(process, x, t, d):
    """u* = (∇ log p_t + x) / a for the Gaussian target, finite at t = 1 as well."""
    a = process.signal(t)
    (p, q), (r, s) = a**2 * jnp.asarray(COVARIANCE, jnp.float32) + (1 - a**2) * jnp.eye(2)
    gap = x - a * jnp.asarray(MEAN, jnp.float32)
    # Two by two: the inverse by hand, to stay away from LAPACK inside a scan.
    solved = jnp.stack([s * gap[0] - q * gap[1], p * gap[1] - r * gap[0]]) / (p * s - q * r)
    return (x - solved) / a


def closed_form_end(x, t: float):
    """Where the probability flow from x at time t ends: m + C^½ S^-½ (x - a m)."""
    a = np.exp(-0.5 * (10.0 * (1 - t) - 4.95 * (1 - t**2)))
    marginal = a**2 * COVARIANCE + (1 - a**2) * np.eye(2)
    slope = scipy.linalg.sqrtm(COVARIANCE) @ np.linalg.inv(scipy.linalg.sqrtm(marginal))
    return MEAN + (np.asarray(x, np.float64) - a * MEAN) @ slope.T


def perturbed(state, scale: float):
    """The state with noise on every parameter that samples."""
    leaves, structure = jax.tree.flatten(state.ema_params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return state._replace(ema_params=jax.tree.unflatten(structure, noisy))


def map_error(algorithm, state) -> float:
    """Root mean squared distance of the one-step map to the flow of the target."""
    control = algorithm.control
    x0 = jax.random.normal(jax.random.key(9), (500, 2))
    u = control.bind(state.ema_params)
    x1 = jax.vmap(lambda x: simulate.flow_map(u, control.process, x, 1))(x0)
    return float(np.sqrt(np.mean((np.asarray(x1) - closed_form_end(x0, 0.0)) ** 2)))


@functools.cache
def exact_teacher() -> tuple[cs.Algorithm, cs.SamplerState]:
    """A teacher whose control is the closed form plus a network, which is zero at first."""
    teacher = small_teacher()
    own, process = teacher.control.network, teacher.control.process

    def apply(params, x, t, d):
        return optimal_control(process, x, t, d) + own.apply(params, x, t, d)

    def init(rng_key):
        return own.init(rng_key, jnp.zeros(2), jnp.zeros(()), jnp.ones(()))

    control = teacher.control.replace(network=networks.Network(init, apply))
    return dataclasses.replace(teacher, control=control), teacher.init(KEY)


# ---- CDDS


@functools.cache
def distilled(skip: str):
    teacher, teacher_state = exact_teacher()
    algorithm = cs.cdds(
        TARGET,
        teacher=teacher,
        teacher_state=teacher_state,
        num_points=9,
        skip=skip,
        max_steps=4,
        batch_size=128,
        learning_rate=5e-3,
    )
    state, history = cs.fit(KEY, algorithm, 800, progress_bar=False)
    return algorithm, state, history


@pytest.mark.slow
@pytest.mark.parametrize("skip", ["flow", "paper"])
def test_cdds_learns_the_affine_flow_of_a_gaussian(skip):
    algorithm, state, history = distilled(skip)
    before, after = map_error(algorithm, algorithm.init(KEY)), map_error(algorithm, state)
    assert after < 0.2 * before
    assert after < 0.1
    # Not from the base alone: from any time, the student ends where the flow does.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 2)), jnp.float32)
    u = algorithm.control.bind(state.ema_params)
    for t in (0.25, 0.625):
        ends = jax.vmap(
            lambda x, t=t: simulate.flow_step(
                u, algorithm.control.process, x, jnp.asarray(t), jnp.asarray(1 - t)
            )
        )(x)
        error = np.sqrt(np.mean((np.asarray(ends) - closed_form_end(x, t)) ** 2))
        assert error < 0.15
    draws = algorithm.sample(KEY, state, 2_000)
    evidence = cs.evidence(draws)
    assert evidence.bound == "lower-if-injective"
    assert -0.1 < evidence.elbo - TARGET.log_z < 4 * evidence.elbo_stderr
    # Times of the earlier points: all but the last.
    assert set(np.round(history.time * 8).tolist()) == set(range(8))


@pytest.mark.slow
def test_the_student_of_an_exact_teacher_starts_as_the_teacher():
    teacher, teacher_state = exact_teacher()
    algorithm = distilled("flow")[0]
    state = algorithm.init(jax.random.key(7))
    chex.assert_trees_all_equal(state.params, {"control": teacher_state.ema_params["control"]})
    x, t = jnp.array([0.3, -1.0]), jnp.asarray(0.25)
    found = algorithm.control.bind(state.params)(x, t, 1.0 - t)
    expected = teacher.control.bind(teacher_state.ema_params)(x, t, jnp.asarray(1 / 32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_skip_scalings(t):
    x, network = np.random.default_rng(0).normal(size=(2, 3))
    d = jnp.asarray(1.0 - t)
    paper = DenoisingProcess(SCHEDULE, skip="paper", data_std=0.5)
    tau = 1.0 - t
    total = tau**2 + 0.25
    expected = 0.25 / total * x + 0.5 * tau / total**0.5 * network
    args = (jnp.asarray(x), jnp.asarray(network), jnp.asarray(t), d)
    np.testing.assert_allclose(paper.flow_step(*args), expected, rtol=1e-5)
    flow = DenoisingProcess(SCHEDULE, skip="flow")
    a = np.exp(-0.5 * (10.0 * tau - 4.95 * (1 - t**2)))
    np.testing.assert_allclose(flow.flow_step(*args), x + (1 - a) * network, rtol=1e-4, atol=1e-6)


@functools.cache
def undistilled(base_scale: float) -> cs.Algorithm:
    base = GaussianBase(jnp.asarray(MEAN), base_scale * jnp.asarray(np.linalg.cholesky(COVARIANCE)))
    teacher = small_teacher(base=base, max_steps=8)
    state = teacher.init(KEY)
    return cs.cdds(
        TARGET, teacher=teacher, teacher_state=state, num_points=4, skip="flow", max_steps=4
    )


def check_mean_is_one(log_ratio) -> None:
    """At four standard errors: a false alarm in 16,000 runs."""
    ratio = np.exp(np.asarray(log_ratio, np.float64))
    stderr = ratio.std() / len(ratio) ** 0.5
    # A large error bar would let anything pass, and so would weights that are all alike.
    assert stderr < 0.03
    assert ratio.std() > 0.05
    assert abs(ratio.mean() - 1.0) < 4 * stderr


@pytest.mark.parametrize("num_steps", [1, 4])
def test_mean_weight_of_cdds_is_z_for_any_parameters(num_steps):
    # A base wider than the target, for weights of finite variance; and a small perturbation, since
    # with 0.04 the one-step map no longer reaches every point (the mean weight then falls short).
    algorithm = undistilled(1.3)
    state = perturbed(algorithm.init(KEY), 0.02)
    draws = algorithm.sample(KEY, state, 20_000, num_steps)
    assert not draws.flow.folded.any()
    assert float(jnp.nanmax(draws.flow.round_trip_error)) < 1e-3
    check_mean_is_one(draws.log_weight - TARGET.log_z)
    unmoved = algorithm.sample(KEY, algorithm.init(KEY), 20_000, num_steps)
    assert float(jnp.abs(draws.log_weight - unmoved.log_weight).max()) > 0.05


def test_reverse_weights_of_cdds_have_the_mean_of_one_over_z():
    # A base narrower than the target, for reciprocal weights of finite variance.
    algorithm = undistilled(0.8)
    state = perturbed(algorithm.init(KEY), 0.04)
    exact = TARGET.sample(jax.random.key(1), 20_000)
    log_weight = algorithm.reverse_log_weight(KEY, state, exact, 4)
    chex.assert_tree_all_finite(log_weight)
    check_mean_is_one(TARGET.log_z - log_weight)


# ---- progressive distillation


@pytest.mark.slow
def test_progressive_distillation_halves_down_to_one_step():
    teacher, teacher_state = exact_teacher()
    algorithm = cs.progressive_distillation(
        TARGET,
        teacher=teacher,
        teacher_state=teacher_state,
        iterations_per_round=120,
        batch_size=64,
        learning_rate=5e-3,
    )
    start = algorithm.init(KEY)
    chex.assert_trees_all_equal(start.params, start.memory, teacher_state.ema_params)
    state, history = cs.fit(KEY, algorithm, 600, progress_bar=False)
    np.testing.assert_allclose(
        history.step_size, np.repeat(2.0 ** np.arange(1, 6) / 32, 120), rtol=1e-6
    )
    before, after = map_error(algorithm, start), map_error(algorithm, state)
    assert after < 0.25 * before
    assert algorithm.methods == ("map", "path")


# ---- SCDS


@pytest.fixture(scope="module")
def self_consistent():
    algorithm = cs.scds(
        TARGET,
        base=cs.bases.standard_normal(2),
        max_steps=16,
        first_steps=4,
        steps_iterations=120,
        size_iterations=240,
        anneal_iterations=0,
        batch_size=64,
        num_consistency_samples=64,
        learning_rate=5e-3,
        hidden=(32,),
        guidance=None,
        elementwise_gain=False,
        schedule=SCHEDULE,
        integrator="exponential",
    )
    return algorithm, cs.fit(KEY, algorithm, 500, progress_bar=False)


@pytest.mark.slow
def test_scds_curricula_grow_as_documented(self_consistent):
    history = self_consistent[1].history
    # N doubles from 4 to 16, for equal times each until the last; then it stays.
    expected = np.repeat([4, 8, 16], [60, 60, 380])
    np.testing.assert_array_equal(history.num_steps, expected)
    # The largest d goes from 2/N to 1 over 240 iterations, log2 N sizes for equal times each.
    levels = np.log2(expected).astype(int)
    iteration = np.arange(500)
    level = 1 + np.minimum(iteration * (levels - 1) // 240, levels - 1)
    np.testing.assert_allclose(history.max_step, 2.0**level / expected)
    assert (history.max_step[0], history.max_step[120]) == (0.5, 0.25)
    assert np.all(history.max_step[240:] == 1.0)


def test_scds_learns_the_affine_flow_in_one_step(self_consistent):
    algorithm, (state, _) = self_consistent
    before, after = map_error(algorithm, algorithm.init(KEY)), map_error(algorithm, state)
    evidence = cs.evidence(algorithm.sample(KEY, state, 2_000))
    assert after < 0.35 * before
    assert evidence.bound == "lower-if-injective"
    assert -0.5 < evidence.elbo - TARGET.log_z < 4 * evidence.elbo_stderr


@pytest.mark.slow
def test_one_step_does_not_run_away_on_the_funnel():
    target = cs.targets.funnel()
    base = cs.bases.fit_gaussian(KEY, target)
    algorithm = cs.scds(target, base=base)
    # Where aims are not clipped, draws are hundreds of thousands away before the 900th iteration.
    state = cs.fit(KEY, algorithm, 1_000, progress_bar=False).state
    draws = algorithm.sample(KEY, state, 2_000)
    assert np.abs(np.asarray(jax.vmap(base.whiten)(draws.position))).max() < 30.0


# ---- reproducible, and refusing


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    def run():
        # Built anew, so that nothing that they hold is shared.
        teacher = small_teacher(max_steps=4)
        algorithm = cs.cdds(
            TARGET,
            teacher=teacher,
            teacher_state=teacher.init(KEY),
            num_points=3,
            max_steps=2,
            batch_size=8,
            teacher_paths="stochastic",
            target_network="ema",
            teacher_params="last",
        )
        state, history = cs.fit(KEY, algorithm, 10, progress_bar=False)
        return state, history, algorithm.sample(KEY, state, 100, 2, weights=False)

    chex.assert_trees_all_equal(run(), run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_points": 1}, "num_points must be 2 to 33"),
        ({"num_points": 34}, "num_points must be 2 to 33"),
        ({"teacher_steps": 8, "num_points": 10}, "2 to 9 for 8 teacher steps"),
        ({"teacher_steps": 64}, "teacher_steps=64 does not divide"),
        ({"teacher_steps": 0}, "teacher_steps=0 does not divide"),
        ({"num_points": 2.5}, "num_points must be a positive integer"),
        ({"max_steps": 3}, "power of two"),
        ({"skip": "score"}, "skip must be one of"),
        ({"teacher_params": "first"}, "teacher_params must be one of"),
        ({"teacher_paths": "sde"}, "teacher_paths must be one of"),
        ({"target_network": "teacher"}, "target_network must be one of"),
    ],
)
def test_wrong_settings_of_cdds(settings, message):
    teacher, state = exact_teacher()
    with pytest.raises(ValueError, match=message):
        cs.cdds(TARGET, teacher=teacher, teacher_state=state, **settings)


@pytest.mark.parametrize("constructor", [cs.cdds, cs.progressive_distillation])
def test_wrong_teachers(constructor):
    teacher, state = exact_teacher()
    other = cs.targets.gaussian(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="Distil a teacher of this target"):
        constructor(other, teacher=teacher, teacher_state=state)
    student = distilled("flow")[0]
    with pytest.raises(ValueError, match="no probability flow of several steps"):
        constructor(TARGET, teacher=student, teacher_state=state)


def test_what_cdds_does_not_offer():
    algorithm, state, _ = distilled("flow")
    with pytest.raises(ValueError, match=r"method must be one of .*'map'.* got 'path'"):
        algorithm.sample(KEY, state, 10, method="path")
    with pytest.raises(ValueError, match="got 'path'"):
        algorithm.reverse_log_weight(KEY, state, jnp.zeros((2, 2)), method="path")
    with pytest.raises(ValueError, match=r"\[1, 2, 4\]"):
        algorithm.sample(KEY, state, 10, 8)
    # Its map has one step: more are a chain with noise in between.
    with pytest.raises(ValueError, match=r"num_steps=2 .* \[1\]"):
        cs.calibration(algorithm, num_steps=2)
