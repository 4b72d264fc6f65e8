"""Schedules: closed-form integrals against quadrature, which step counts are allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st

from consistent_samplers import schedules

pytestmark = pytest.mark.usefixtures("strict_ranks")

# Each schedule beside its rate written out again in float64.
SCHEDULES = {
    "linear": (schedules.linear(), lambda t: 10.0 - 9.9 * t),
    "linear-steep": (schedules.linear(0.01, 40.0), lambda t: 40.0 - 39.99 * t),
    "cosine": (schedules.cosine(), lambda t: 0.01 + 9.99 * np.cos(0.5 * np.pi * t) ** 2),
    "constant": (schedules.constant(3.0), lambda t: 3.0 + 0.0 * t),
}
by_schedule = pytest.mark.parametrize(
    ("schedule", "rate"), SCHEDULES.values(), ids=SCHEDULES.keys()
)
times = st.floats(0.0, 1.0, width=32)


@by_schedule
def test_rate(schedule, rate):
    t = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(schedule.rate(jnp.asarray(t)), rate(t), rtol=1e-5, atol=1e-5)


@by_schedule
@given(times, times)
def test_integral_is_the_integral_of_the_rate(schedule, rate, t0, t1):
    expected, _ = scipy.integrate.quad(rate, t0, t1, epsabs=1e-12)
    # The error allowed is relative to the length of the step: short ones must not cancel.
    largest = max(rate(t0), rate(t1))
    # Near the end of the cosine its rate is small, and the rounding of 1 - t weighs more.
    tolerance = 5e-6 * largest * abs(t1 - t0) + 1e-30
    assert abs(float(schedule.integral(t0, t1)) - expected) <= tolerance


@by_schedule
def test_integral_of_a_short_step_does_not_cancel(schedule, rate):
    # Times that float32 holds exactly.
    t0, t1 = 0.75, 0.75 + 2.0**-20
    expected, _ = scipy.integrate.quad(rate, t0, t1)
    np.testing.assert_allclose(schedule.integral(t0, t1), expected, rtol=1e-5)


@given(st.floats(2**-7, 1.0, width=32), st.floats(2**-7, 1.0, width=32))
def test_brownian_rate_and_integral(t0, t1):
    schedule = schedules.brownian()
    np.testing.assert_allclose(schedule.rate(t0), 1 / t0, rtol=1e-6)
    expected, _ = scipy.integrate.quad(lambda t: 1 / t, t0, t1)
    np.testing.assert_allclose(schedule.integral(t0, t1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fall", [2.0, 1_000.0])
@pytest.mark.parametrize(("t0", "t1"), [(0.01, 1.0), (0.25, 0.5), (0.9921875, 1.0)])
def test_geometric_rate_and_integral(fall, t0, t1):
    schedule, variance = schedules.geometric(fall), lambda t: -np.expm1(-2 * np.log(fall) * t)
    expected = np.log1p((variance(t1) - variance(t0)) / variance(t0))
    np.testing.assert_allclose(schedule.integral(t0, t1), expected, rtol=1e-4)
    found, _ = scipy.integrate.quad(lambda t: float(schedule.rate(t)), t0, t1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert schedule.integral(0.0, t1) == np.inf
    with pytest.raises(ValueError, match="fall > 1"):
        schedules.geometric(1.0)


def test_brownian_forgets_everything_from_its_start():
    integral = schedules.brownian().integral
    assert np.isposinf(integral(0.0, 0.125)) and np.isposinf(integral(jnp.zeros(()), 1.0))


@pytest.mark.parametrize("schedule", [schedules.brownian(), schedules.geometric(10.0)])
def test_what_an_infinite_integral_leaves_has_no_derivative(schedule):
    def left(t1):
        return jnp.exp(-schedule.integral(jnp.zeros(()), t1))

    assert jax.value_and_grad(left)(0.25) == (0.0, 0.0)
    # And away from the start it has its own.
    ahead = jax.grad(lambda t1: schedule.integral(jnp.asarray(0.25), t1))(0.5)
    np.testing.assert_allclose(ahead, schedule.rate(0.5), rtol=1e-5)


@pytest.mark.parametrize("factory", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("betas", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_bad_rates(factory, betas):
    with pytest.raises(ValueError, match="0 < beta_min <= beta_max"):
        factory(*betas)


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_bad_constant_rate(beta):
    with pytest.raises(ValueError, match="beta"):
        schedules.constant(beta)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, np.int64(4)])
def test_allowed_num_steps(num_steps):
    schedules.check_num_steps(num_steps, 8)


@pytest.mark.parametrize("num_steps", [0, -1, 3, 16, np.int64(3)])
def test_num_steps_error_names_the_choices(num_steps):
    with pytest.raises(ValueError, match=r"first=-?\d+ does .* Choose one of \[1, 2, 4, 8\]"):
        schedules.check_num_steps(num_steps, 8, "first")


@pytest.mark.parametrize("num_steps", [1.5, 4.0, True, "4", None])
def test_num_steps_must_be_an_integer(num_steps):
    with pytest.raises(ValueError, match=r"num_steps must be an integer, one of \[1, 2, 4, 8\]"):
        schedules.check_num_steps(num_steps, 8)


@pytest.mark.parametrize("max_steps", [0, -2, 3, 12, 4.0])
def test_max_steps_must_be_a_power_of_two(max_steps):
    with pytest.raises(ValueError, match="power of two"):
        schedules.check_max_steps(max_steps)


@pytest.mark.parametrize("max_steps", [1, 2, 128, np.int32(4)])
def test_good_max_steps(max_steps):
    schedules.check_max_steps(max_steps)


def test_time_grid_holds_start_times():
    np.testing.assert_array_equal(schedules.time_grid(4), [0.0, 0.25, 0.5, 0.75])
