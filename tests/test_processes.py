"""Kernels and simulators against closed forms: detailed balance, Gaussian targets, E[w] = Z."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from consistent_samplers import schedules, simulate
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck

pytestmark = pytest.mark.usefixtures("strict_ranks")

DIM = 3
INTEGRATORS = ["exponential", "denoising", "euler_maruyama"]
by_integrator = pytest.mark.parametrize("integrator", INTEGRATORS)
SCHEDULES = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "constant": schedules.constant(2.0),
}
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
seeds = st.integers(0, 2**31 - 1)


@st.composite
def steps(draw):
    """Start time and size of a step that a sampler of 64 fine steps may take, as float32."""
    num_steps = 2 ** draw(st.integers(0, 6))
    k = draw(st.integers(0, num_steps - 1))
    return np.float32(k / num_steps), np.float32(1 / num_steps)


def points(seed: int, num: int) -> tuple[jax.Array, ...]:
    values = np.random.default_rng(seed).normal(size=(num, DIM))
    return tuple(jnp.asarray(values, jnp.float32))


# ---- one step


def test_gaussian_kernel_log_prob():
    kernel = GaussianKernel(jnp.array([1.0, 2.0]), jnp.asarray(0.5))
    x = np.array([0.3, 2.2])
    z = (x - np.array([1.0, 2.0])) / 0.5
    expected = (-0.5 * z**2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum()
    np.testing.assert_allclose(kernel.log_prob(jnp.asarray(x)), expected, rtol=1e-6)


@by_schedule
@given(t=st.floats(0.0, 1.0, width=32), seed=seeds)
def test_signal_is_what_the_noising_leaves(schedule, t, seed):
    process = OrnsteinUhlenbeck(schedule)
    (x1,) = points(seed, 1)
    # One exact noising step from the target to t: x_t | x_1 ~ N(a x_1, (1 - a²) I).
    kernel = process.backward_kernel(x1, np.float32(t), np.float32(1.0) - np.float32(t))
    a = process.signal(t)
    np.testing.assert_allclose(kernel.mean, a * x1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kernel.std**2, 1 - a**2, rtol=1e-4, atol=1e-6)


def test_signal_in_closed_form():
    process = OrnsteinUhlenbeck(schedules.constant(2.0))
    np.testing.assert_allclose(process.signal(jnp.asarray(0.25)), np.exp(-0.75), rtol=1e-6)


@by_schedule
@pytest.mark.parametrize("shift", [0.0, 1.5], ids=["zero", "constant"])
@given(step=steps(), seed=seeds)
def test_constant_control_is_in_detailed_balance(schedule, shift, step, seed):
    # The control m belongs to the target N(m, I), with marginals N(a m, I): the base where it
    # is zero. Forward and backward kernels are then exact in steps of any size.
    process, (t, d) = OrnsteinUhlenbeck(schedule), step
    x, noise = points(seed, 2)
    control = jnp.full(DIM, shift)
    forward = process.forward_kernel(x, control, t, d)
    y = forward.mean + forward.std * noise
    backward = process.backward_kernel(y, t, d)

    def marginal(x, t):
        return simulate.standard_normal_log_prob(x - process.signal(t) * control)

    there = marginal(x, t) + forward.log_prob(y)
    back = marginal(y, t + d) + backward.log_prob(x)
    np.testing.assert_allclose(there, back, rtol=1e-5, atol=5e-4)


def test_euler_maruyama_is_not_in_detailed_balance():
    # Guards the test above: it can tell kernels apart.
    process = OrnsteinUhlenbeck(schedules.constant(2.0), "euler_maruyama")
    x, y = points(0, 2)
    x = 3.0 * x
    t, d = np.float32(0.0), np.float32(0.5)
    there = process.forward_kernel(x, jnp.zeros(DIM), t, d).log_prob(y)
    back = process.backward_kernel(y, t, d).log_prob(x)
    base = simulate.standard_normal_log_prob
    assert abs(float(base(x) + there - base(y) - back)) > 0.1


@by_schedule
@given(step=steps(), seed=seeds)
def test_exponential_flow_step_in_terms_of_the_score(schedule, step, seed):
    process, (t, d) = OrnsteinUhlenbeck(schedule), step
    x, control = points(seed, 2)
    growth = np.exp(0.5 * np.float64(schedule.integral(t, t + d)))
    v = process.score(x, control, t)
    expected = growth * np.asarray(x) + (growth - 1) * np.asarray(v)
    np.testing.assert_allclose(process.flow_step(x, control, t, d), expected, rtol=1e-4, atol=1e-4)


@by_schedule
@pytest.mark.parametrize("kind", ["forward", "backward", "flow"])
def test_integrators_agree_to_second_order(schedule, kind):
    x, control = points(1, 2)
    t = np.float32(0.5)

    def gap(d):
        out = []
        for integrator in INTEGRATORS:
            process = OrnsteinUhlenbeck(schedule, integrator)
            if kind == "flow":
                out.append((process.flow_step(x, control, t, d), jnp.zeros(())))
            elif kind == "forward":
                kernel = process.forward_kernel(x, control, t, d)
                out.append((kernel.mean, kernel.std**2))
            else:
                kernel = process.backward_kernel(x, t, d)
                out.append((kernel.mean, kernel.std**2))
        exact = out[INTEGRATORS.index("exponential")]
        return [
            float(jnp.abs(a - b).max())
            for other in out
            for a, b in zip(exact, other, strict=True)
            if other is not exact
        ]

    # The local error is of order d²: a quarter of the step, a sixteenth of the gap.
    for coarse, fine in zip(gap(np.float32(1 / 16)), gap(np.float32(1 / 64)), strict=True):
        assert fine < 3e-2
        assert fine <= coarse / 10 + 1e-6


@pytest.mark.parametrize("integrator", ["denoising", "euler_maruyama"])
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.brownian(),
        schedules.geometric(10.0),
        schedules.Schedule(lambda t: 1.0 / jnp.sqrt(t), lambda t0, t1: 2 * (t1**0.5 - t0**0.5)),
    ],
)
def test_steps_of_an_infinite_rate_are_refused_unless_they_are_exact(schedule, integrator):
    with pytest.raises(ValueError, match=r"finite rates.*Take integrator='exponential'"):
        OrnsteinUhlenbeck(schedule, integrator)
    assert OrnsteinUhlenbeck(schedule, "exponential").schedule == schedule


def test_unknown_integrator():
    with pytest.raises(ValueError, match="euler_maruyama"):
        OrnsteinUhlenbeck(integrator="heun")


# ---- whole paths, Gaussian target

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.8, 0.4], [0.4, 0.5]])
# a(0) = exp(-5): the marginal at the base is the base but for 0.7 %.
MIXING = schedules.linear(0.1, 19.9)


def gaussian_log_density(x: jax.Array) -> jax.Array:
    """Log density of N(MEAN, COVARIANCE), normalised: log Z = 0."""
    precision = jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32)
    centred = x - jnp.asarray(MEAN, jnp.float32)
    return -0.5 * centred @ precision @ centred - 0.5 * float(
        np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]
    )


def optimal_control(process: OrnsteinUhlenbeck, x, t, d):
    """u* = (∇ log p_t + x) / a with p_t = N(a m, a² C + (1 - a²) I)."""
    a = process.signal(t)
    marginal = a**2 * jnp.asarray(COVARIANCE, jnp.float32) + (1 - a**2) * jnp.eye(2)
    gap = x - a * jnp.asarray(MEAN, jnp.float32)
    # Two by two: the inverse by hand, to stay away from LAPACK inside a scan.
    (p, q), (r, s) = marginal
    solved = jnp.stack([s * gap[0] - q * gap[1], p * gap[1] - r * gap[0]]) / (p * s - q * r)
    return (x - solved) / a


@by_integrator
def test_flow_with_the_optimal_control_converges_to_the_closed_form_map(integrator):
    process = OrnsteinUhlenbeck(MIXING, integrator)
    control = functools.partial(optimal_control, process)
    # The flow of a Gaussian is affine: m + C^½ S^-½ (x - a m), S the covariance at the base.
    a = np.exp(-5.0)
    marginal = a**2 * COVARIANCE + (1 - a**2) * np.eye(2)
    slope = scipy.linalg.sqrtm(COVARIANCE) @ np.linalg.inv(scipy.linalg.sqrtm(marginal))
    x0 = jax.random.normal(jax.random.key(0), (200, 2))
    expected = MEAN + (np.asarray(x0, np.float64) - a * MEAN) @ slope.T

    errors, gaps, spreads = [], [], []
    for num_steps in (32, 128, 512):
        paths = jax.jit(
            jax.vmap(lambda x, k=num_steps: simulate.flow_path(control, process, x, k))
        )(x0)
        log_weight = jax.vmap(lambda p: simulate.flow_log_weight(p, gaussian_log_density))(paths)
        errors.append(float(np.abs(paths.position[:, -1] - expected).max()))
        gaps.append(abs(float(log_weight.mean())))
        spreads.append(float(log_weight.std()))
    # First order: a quarter of the step size, a quarter of the error.
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3
    assert errors[2] < 0.03
    assert gaps[2] < 0.02
    assert spreads[2] < 0.05 and spreads[2] < 0.3 * spreads[0]


@by_integrator
def test_stochastic_paths_with_the_optimal_control_reproduce_the_target(integrator):
    process = OrnsteinUhlenbeck(MIXING, integrator)
    kernels = simulate.noising_kernels(functools.partial(optimal_control, process), process)
    num = 2_000
    key_base, key_path = jax.random.split(jax.random.key(1))
    x0 = jax.random.normal(key_base, (num, 2))
    keys = jax.random.split(key_path, num)
    variances, gaps = [], []
    for num_steps in (32, 128, 512):
        paths = jax.jit(
            jax.vmap(
                lambda key, x, k=num_steps: simulate.stochastic_path(
                    key, x, kernels, gaussian_log_density, k
                )
            )
        )(keys, x0)
        stderr = float(paths.log_weight.std()) / num**0.5
        # log Z = 0, and every mean log weight is a lower bound on it.
        assert float(paths.log_weight.mean()) < 4 * stderr
        variances.append(float(paths.log_weight.var()))
        gaps.append(-float(paths.log_weight.mean()))
    assert variances[1] < 0.5 * variances[0] and variances[2] < 0.5 * variances[1]
    assert gaps[2] < 0.04
    end = np.asarray(paths.position[:, -1])
    # Four standard errors of a mean, and of a (co)variance.
    scale = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_array_less(np.abs(end.mean(0) - MEAN), 4 * scale / num**0.5 + 0.01)
    error = np.abs(np.cov(end.T) - COVARIANCE)
    assert error.max() < 4 * COVARIANCE.max() * (2 / num) ** 0.5 + 0.01


# ---- weights of any control

LOG_Z = 1.3


def scaled_log_density(x: jax.Array) -> jax.Array:
    """A tight Gaussian times exp(LOG_Z), with lighter tails than the sampler's."""
    return LOG_Z + jax.scipy.stats.norm.logpdf(x, 0.3, 0.7).sum()


def some_control(x, t, d):
    """Nonlinear, not optimal for anything, dependent on everything."""
    weights = jnp.array([[0.5, -0.8, 0.2], [0.9, 0.1, -0.4], [-0.3, 0.6, 0.7]])
    return 0.4 * jnp.tanh(weights @ x + t + d)


def check_mean_weight(log_weight: jax.Array) -> None:
    ratio = np.exp(np.asarray(log_weight, np.float64) - LOG_Z)
    stderr = ratio.std() / len(ratio) ** 0.5
    # A large error bar would let anything pass.
    assert stderr < 0.02
    assert abs(ratio.mean() - 1.0) < 4 * stderr
    assert ratio.std() > 0.05


@by_integrator
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_mean_weight_of_stochastic_paths_is_z(integrator, num_steps):
    # A slow schedule: with β d of order one the Euler kernels' weights have no variance.
    process = OrnsteinUhlenbeck(schedules.linear(0.3, 0.9), integrator)
    kernels = simulate.noising_kernels(some_control, process)
    num = 20_000
    keys = jax.random.split(jax.random.key(num_steps), num)
    x0 = jax.random.normal(jax.random.key(7), (num, DIM))
    paths = jax.jit(
        jax.vmap(
            lambda key, x: simulate.stochastic_path(key, x, kernels, scaled_log_density, num_steps)
        )
    )(keys, x0)
    check_mean_weight(paths.log_weight)


@by_integrator
@pytest.mark.parametrize("num_steps", [1, 4])
def test_mean_weight_of_an_injective_flow_is_z(integrator, num_steps):
    process = OrnsteinUhlenbeck(schedules.linear(0.3, 0.9), integrator)
    x0 = jax.random.normal(jax.random.key(7), (20_000, DIM))
    paths = jax.jit(jax.vmap(lambda x: simulate.flow_path(some_control, process, x, num_steps)))(x0)
    assert bool((paths.sign > 0).all())
    log_weight = jax.vmap(lambda p: simulate.flow_log_weight(p, scaled_log_density))(paths)
    check_mean_weight(log_weight)


def scaled_kernels(scale: jax.Array | float, process: OrnsteinUhlenbeck) -> simulate.PathKernels:
    return simulate.noising_kernels(lambda x, t, d: scale * some_control(x, t, d), process)


@by_integrator
def test_given_paths_weigh_what_simulated_ones_do(integrator):
    process = OrnsteinUhlenbeck(schedules.constant(1.0), integrator)
    kernels = scaled_kernels(1.0, process)
    path = jax.jit(
        lambda x: simulate.stochastic_path(jax.random.key(0), x, kernels, scaled_log_density, 8)
    )(jnp.ones(DIM))
    log_ratio = simulate.path_log_ratio(path.position, kernels, 8)
    np.testing.assert_allclose(log_ratio, path.log_ratio, rtol=1e-4, atol=1e-5)
    log_weight = simulate.path_log_weight(path.position, log_ratio, scaled_log_density)
    np.testing.assert_allclose(log_weight, path.log_weight, rtol=1e-4)
    # A stretch of the path, at its own times.
    stretch = simulate.path_log_ratio(path.position[3:6], kernels, 8, 3)
    np.testing.assert_allclose(stretch, path.log_ratio[3:5], rtol=1e-4, atol=1e-5)
    misplaced = simulate.path_log_ratio(path.position[3:6], kernels, 8)
    assert float(jnp.abs(misplaced - stretch).max()) > 1e-3


def test_kernels_that_weigh_do_not_move():
    process = OrnsteinUhlenbeck(schedules.constant(1.0))
    key, x0 = jax.random.key(0), jnp.ones(DIM)

    def path(moving, weighing):
        weights = None if weighing is None else scaled_kernels(weighing, process)
        return simulate.stochastic_path(
            key,
            x0,
            scaled_kernels(moving, process),
            scaled_log_density,
            4,
            density_kernels=weights,
        )

    own, same, other = path(1.0, None), path(1.0, 1.0), path(1.0, 0.5)
    np.testing.assert_allclose(same.log_weight, own.log_weight, rtol=1e-5)
    np.testing.assert_allclose(other.position, own.position, rtol=1e-5, atol=1e-6)
    expected = simulate.path_log_ratio(own.position, scaled_kernels(0.5, process), 4)
    np.testing.assert_allclose(other.log_ratio, expected, rtol=1e-4, atol=1e-5)
    # The derivative splits into what moves and what weighs; the path gradient keeps the first.
    total = jax.grad(lambda s: path(s, None).log_weight)(1.0)
    parts = jax.grad(lambda m, w: path(m, w).log_weight, (0, 1))(1.0, 1.0)
    np.testing.assert_allclose(sum(parts), total, rtol=1e-4)
    assert min(abs(float(part)) for part in parts) > 1e-3


@pytest.mark.parametrize("integrator", ["exponential", "denoising"])
def test_backward_paths_noise_the_target(integrator):
    process, num, num_steps = OrnsteinUhlenbeck(schedules.linear(0.3, 2.0), integrator), 4_000, 4
    rng = np.random.default_rng(0)
    x1 = jnp.asarray(rng.multivariate_normal(MEAN, COVARIANCE, num), jnp.float32)
    kernels = simulate.noising_kernels(lambda x, t, d: x, process)
    keys = jax.random.split(jax.random.key(0), num)
    paths = jax.jit(jax.vmap(lambda k, x: simulate.backward_path(k, x, kernels, num_steps)))
    position = np.asarray(paths(keys, x1), np.float64)
    np.testing.assert_array_equal(position[:, -1], x1)
    for k in range(num_steps):
        a = float(process.signal(k / num_steps))
        covariance = a**2 * COVARIANCE + (1 - a**2) * np.eye(2)
        # 16 means and 12 (co)variances at 4.5 standard errors: a false alarm in 5,000 runs.
        stderr = np.sqrt(np.diag(covariance) / num)
        np.testing.assert_array_less(np.abs(position[:, k].mean(0) - a * MEAN), 4.5 * stderr)
        error = np.abs(np.cov(position[:, k].T) - covariance)
        assert error.max() < 4.5 * covariance.max() * (2 / num) ** 0.5


# ---- the papers' heuristic weight, and the inverse


def test_heuristic_weight_adds_up_traces_of_the_frozen_control():
    process, num_steps = OrnsteinUhlenbeck(), 4
    x0 = jnp.array([0.5, -1.0, 2.0])
    # For multiples of the identity a Rademacher probe gives the trace exactly.
    x1, log_weight = simulate.heuristic_flow_log_weight(
        jax.random.key(0),
        x0,
        lambda x, t, d: 0.9 * x,
        lambda x, t, d: 0.4 * x,
        process,
        scaled_log_density,
        num_steps,
    )
    t = np.arange(num_steps) / num_steps
    beta = 10.0 - 9.9 * t
    signal = np.exp(-0.5 * (0.1 * (1 - t) + 9.9 * (1 - t) ** 2 / 2))
    volume = (0.5 * beta * signal * 0.4 * DIM / num_steps).sum()
    expected = scaled_log_density(x1) - simulate.standard_normal_log_prob(x0) + volume
    np.testing.assert_allclose(log_weight, expected, rtol=1e-4)
    moved = simulate.flow_map(lambda x, t, d: 0.9 * x, process, x0, num_steps)
    np.testing.assert_allclose(x1, moved, rtol=1e-5)


@by_integrator
def test_invert_flow_undoes_an_injective_map(integrator):
    process = OrnsteinUhlenbeck(schedules.constant(1.0), integrator)

    @jax.jit
    @jax.vmap
    def round_trip(x):
        return simulate.invert_flow(
            some_control, process, simulate.flow_map(some_control, process, x, 4), 4
        )

    x0 = jax.random.normal(jax.random.key(0), (32, DIM))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(round_trip(x0), x0, atol=1e-4)


def test_newton_finds_its_way_back_through_a_steep_map_that_does_not_fold():
    # One step is x + u: each coordinate moves by a wave of the one before it, so none folds.
    process = OrnsteinUhlenbeck(schedules.constant(200.0))

    def waves(x, t, d):
        return 0.9 * jnp.sin(3.0 * jnp.roll(x, 1)) * jnp.array([0.0, 1.0, 1.0, 1.0, 1.0])

    @jax.jit
    @jax.vmap
    def round_trip(x):
        return simulate.invert_flow(waves, process, simulate.flow_map(waves, process, x, 1), 1)

    x0 = 1.5 * jax.random.normal(jax.random.key(0), (200, 5))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(round_trip(x0), x0, atol=1e-3)


def test_invert_flow_does_not_find_its_way_back_through_a_fold():
    process = OrnsteinUhlenbeck(schedules.constant(5.0))

    def bending(x, t, d):
        # One step is about x - 1.8 tanh(2 x): three preimages near the origin.
        return -2.0 * jnp.tanh(2.0 * x)

    x0 = 0.3 * jax.random.normal(jax.random.key(0), (64, DIM))
    path = jax.vmap(lambda x: simulate.flow_path(bending, process, x, 1))(x0)
    assert float((path.sign < 0).mean()) > 0.1

    @jax.jit
    @jax.vmap
    def error(x):
        back = simulate.invert_flow(bending, process, simulate.flow_map(bending, process, x, 1), 1)
        return jnp.linalg.norm(back - x)

    with jax.numpy_rank_promotion("allow"):
        assert float((error(x0) > 0.1).mean()) > 0.5


def test_newton_stops_where_it_has_arrived():
    process, calls = OrnsteinUhlenbeck(), []

    def counted(x, t, d):
        calls.append(None)
        return 0.5 * x

    y = simulate.flow_step(counted, process, jnp.ones(2), jnp.zeros(()), jnp.ones(()))
    counts = []
    # Run step by step, so that evaluations are seen: a linear map is solved by one iteration.
    for most in (1, 10):
        calls.clear()
        with jax.disable_jit(), jax.numpy_rank_promotion("allow"):
            x = simulate.invert_step(
                counted, process, y, jnp.zeros(()), jnp.ones(()), num_iterations=most
            )
        np.testing.assert_allclose(x, 1.0, rtol=1e-5)
        counts.append(len(calls))
    assert counts[0] == counts[1]
