"""Losses against closed forms, and where their gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistent_samplers import log_det, losses, schedules
from consistent_samplers.processes import OrnsteinUhlenbeck

pytestmark = pytest.mark.usefixtures("strict_ranks")

DIM = 3
seeds = st.integers(0, 2**31 - 1)
weights = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30)
X = jnp.array([0.5, -1.0, 2.0])
T, D = jnp.asarray(0.25), jnp.asarray(0.5)


# ---- control losses


@given(weights)
def test_reverse_kl_is_minus_the_elbo(log_weight):
    loss = losses.reverse_kl(jnp.asarray(log_weight, jnp.float32))
    assert loss.shape == (len(log_weight),)
    np.testing.assert_allclose(loss.mean(), -np.mean(log_weight), rtol=1e-5, atol=1e-5)


def test_tamed_weights_grow_as_a_logarithm_beyond_the_limit():
    log_weight = jnp.array([-7.0, 0.0, 3.0, -10.0 * jnp.e**2, 1e6])
    tamed = losses.tame(log_weight, limit=10.0)
    expected = [-7.0, 0.0, 3.0, -30.0, 10.0 * (1.0 + np.log(1e5))]
    np.testing.assert_allclose(tamed, expected, rtol=1e-6)
    slope = jax.grad(lambda w: losses.tame(w).sum())(log_weight)
    np.testing.assert_allclose(slope, [1.0, 1.0, 1.0, jnp.e**-2, 1e-5], rtol=1e-5)


@given(weights)
def test_log_variance_is_the_unbiased_variance(log_weight):
    loss = losses.log_variance(jnp.asarray(log_weight, jnp.float32))
    assert loss.shape == (len(log_weight),)
    expected = np.var(log_weight, ddof=1)
    np.testing.assert_allclose(loss.mean(), expected, rtol=1e-4, atol=1e-4)


def test_a_single_weight_has_no_variance():
    with pytest.raises(ValueError, match="must be an integer of at least 2, got 1"):
        losses.log_variance(jnp.zeros(1))


def test_log_variance_vanishes_only_at_constant_weights():
    assert losses.log_variance(jnp.full(8, -3.5)).max() == 0.0
    assert losses.log_variance(jnp.full(8, -3.5).at[2].add(0.1)).mean() > 1e-4


# ---- consistency


def pair_of(student, teacher, process):
    return losses.step_pair(student, teacher, process, X, T, D, with_jacobians=True)


def volume_gap(pair):
    return losses.volume_consistency(log_det.slogdet(pair.jacobians).log_abs_det)


def zero(x, t, d):
    return jnp.zeros_like(x)


def constant(x, t, d):
    return jnp.array([1.0, -2.0, 0.5])


def linear(x, t, d):
    return 0.8 * x


@pytest.mark.parametrize(
    ("control", "integrator"),
    [(zero, "exponential"), (zero, "euler_maruyama"), (constant, "exponential")],
)
def test_self_consistent_flows_have_no_loss(control, integrator):
    # A control that is constant is integrated exactly in steps of any size.
    pair = pair_of(control, control, OrnsteinUhlenbeck(integrator=integrator))
    assert losses.state_consistency(pair) < 1e-10
    assert volume_gap(pair) < 1e-10


@pytest.mark.parametrize("integrator", ["exponential", "euler_maruyama"])
def test_inconsistent_flow_in_closed_form(integrator):
    process = OrnsteinUhlenbeck(schedules.constant(2.0), integrator)

    def gain(t, d):
        """One step of the control 0.8 x multiplies by this."""
        if integrator == "exponential":
            return 1 + 0.8 * (np.exp(-(1 - t - d)) - np.exp(-(1 - t)))
        return 1 + 0.8 * d * np.exp(-(1 - t))

    half = [gain(0.25, 0.25), gain(0.5, 0.25)]
    big = gain(0.25, 0.5)
    pair = pair_of(linear, linear, process)
    np.testing.assert_allclose(pair.student, big * X, rtol=1e-5)
    np.testing.assert_allclose(pair.teacher, half[0] * half[1] * X, rtol=1e-5)
    expected = np.mean(((big - half[0] * half[1]) * np.asarray(X)) ** 2)
    np.testing.assert_allclose(losses.state_consistency(pair), expected, rtol=1e-3)
    expected = 0.25 * (DIM * np.log(half[0] * half[1] / big)) ** 2
    np.testing.assert_allclose(volume_gap(pair), expected, rtol=1e-2)
    assert losses.state_consistency(pair) > 1e-4
    assert volume_gap(pair) > 1e-4


def test_jacobians_are_in_the_documented_order():
    process = OrnsteinUhlenbeck(schedules.constant(2.0))
    # A constant teacher has the identity for a Jacobian; the linear student has not.
    pair = pair_of(linear, constant, process)
    identity = jnp.broadcast_to(jnp.eye(DIM), (2, DIM, DIM))
    np.testing.assert_array_equal(pair.jacobians[:2], identity)
    assert float(jnp.abs(pair.jacobians[2] - jnp.eye(DIM)).max()) > 0.1


def test_jacobians_do_not_change_where_steps_land():
    process = OrnsteinUhlenbeck()
    with_jacobians = pair_of(linear, constant, process)
    without = losses.step_pair(linear, constant, process, X, T, D, with_jacobians=False)
    assert without.jacobians is None
    np.testing.assert_allclose(without.student, with_jacobians.student, rtol=1e-6)
    np.testing.assert_allclose(without.teacher, with_jacobians.teacher, rtol=1e-6)


# The volume's loss needs the Jacobians.
@pytest.mark.parametrize(
    ("loss", "with_jacobians"), [("state", False), ("state", True), ("volume", True)]
)
def test_no_gradient_reaches_the_teacher(loss, with_jacobians):
    process = OrnsteinUhlenbeck()

    def value(student_scale, teacher_scale):
        pair = losses.step_pair(
            lambda x, t, d: student_scale * jnp.tanh(x),
            lambda x, t, d: teacher_scale * jnp.tanh(x),
            process,
            X,
            T,
            D,
            with_jacobians=with_jacobians,
        )
        return losses.state_consistency(pair) if loss == "state" else volume_gap(pair)

    to_student, to_teacher = jax.grad(value, argnums=(0, 1))(1.0, 0.5)
    assert to_teacher == 0.0
    assert abs(to_student) > 1e-4


def test_volume_consistency_of_a_batch():
    log_volumes = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 5.0]])
    np.testing.assert_allclose(losses.volume_consistency(log_volumes), [0.0, 1.0])


@given(seed=seeds)
def test_jacobian_penalty_of_a_linear_control(seed):
    rng = np.random.default_rng(seed)
    matrix, probe = rng.normal(size=(DIM, DIM)), rng.normal(size=DIM)
    penalty = losses.jacobian_penalty(
        lambda x, t, d: jnp.asarray(matrix, jnp.float32) @ x, X, T, D, jnp.asarray(probe)
    )
    np.testing.assert_allclose(penalty, ((matrix @ probe) ** 2).sum(), rtol=1e-4)


# ---- monotonicity

shortfalls = jax.jit(jax.vmap(losses.monotonicity_shortfall, in_axes=(0, 0, None)))
patient_shortfalls = jax.jit(
    jax.vmap(
        lambda j, v, m: losses.monotonicity_shortfall(j, v, m, num_iterations=2_000),
        in_axes=(0, 0, None),
    )
)


def jacobians_near_identity(seed: int, dim: int, scale: float, num: int = 64):
    rng = np.random.default_rng(seed)
    jacobians = np.eye(dim) + scale * rng.normal(size=(num, dim, dim)) / dim**0.5
    probes = rng.normal(size=(num, dim))
    symmetric = 0.5 * (jacobians + jacobians.swapaxes(-1, -2))
    smallest = np.linalg.eigvalsh(symmetric)[:, 0]
    return jnp.asarray(jacobians, jnp.float32), jnp.asarray(probes, jnp.float32), smallest


@pytest.mark.parametrize("dim", [1, 2, 10, 30])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_monotonicity_shortfall_against_eigvalsh(dim, scale):
    jacobians, probes, smallest = jacobians_near_identity(dim, dim, scale)
    expected = np.maximum(0.1 - smallest, 0.0) ** 2
    quick = np.asarray(shortfalls(jacobians, probes, 0.1))
    patient = np.asarray(patient_shortfalls(jacobians, probes, 0.1))
    # A Rayleigh quotient is never below the smallest eigenvalue.
    assert np.all(quick <= expected * (1 + 1e-3) + 1e-5)
    assert np.all(patient <= expected * (1 + 1e-3) + 1e-5)
    # Few iterations find most of it; many find all.
    if expected.sum() > 0.1:
        assert quick.sum() > 0.6 * expected.sum()
    np.testing.assert_allclose(patient, expected, rtol=2e-2, atol=1e-3)


def test_shortfall_cases_are_not_all_alike():
    # Guards the test above.
    _, _, smallest = jacobians_near_identity(10, 10, 1.0)
    assert (smallest < 0.1).mean() > 0.1
    _, _, smallest = jacobians_near_identity(10, 10, 0.3)
    assert (smallest > 0.1).all()


@given(seed=seeds)
def test_no_shortfall_where_the_symmetric_part_is_positive_definite(seed):
    jacobians, probes, smallest = jacobians_near_identity(seed, 8, 0.3)
    # The antisymmetric part does not count, however large.
    skew = jnp.zeros((8, 8)).at[0, 1].set(50.0).at[1, 0].set(-50.0)
    found = np.asarray(shortfalls(jacobians + skew[None], probes, 0.1))
    np.testing.assert_array_equal(found[smallest > 0.1 + 1e-4], 0.0)


@pytest.mark.parametrize("diagonal", [1.0, 0.05, -2.0])
def test_shortfall_of_multiples_of_the_identity(diagonal):
    found = losses.monotonicity_shortfall(diagonal * jnp.eye(4), jnp.ones(4), 0.1)
    np.testing.assert_allclose(found, max(0.1 - diagonal, 0.0) ** 2, rtol=1e-4, atol=1e-7)


def test_gradient_of_the_shortfall_lifts_the_smallest_eigenvalue():
    jacobian = jnp.diag(jnp.array([1.0, 0.5, -0.4]))
    grad = jax.grad(losses.monotonicity_shortfall)(jacobian, jnp.ones(3), 0.1)
    # d (0.1 - λ)² / dJ = -2 (0.1 - λ) v vᵀ.
    np.testing.assert_allclose(grad, jnp.diag(jnp.array([0.0, 0.0, -1.0])), atol=2e-2)


def test_gradient_is_finite_at_the_identity():
    grad = jax.grad(losses.monotonicity_shortfall)(jnp.eye(3), jnp.ones(3), 0.1)
    np.testing.assert_array_equal(grad, 0.0)
