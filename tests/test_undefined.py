"""Densities that are NaN in places, or have derivatives of one kind only."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint
from jax.scipy.stats import norm

import consistent_samplers as cs
from consistent_samplers.algorithms.batches import batch_elbo
from consistent_samplers.algorithms.learning import within_support
from consistent_samplers.targets import evaluation

KEY = jax.random.key(0)
EDGE = 2.0


def inside(x):
    """A standard normal that cannot be computed beyond an edge."""
    return jnp.where(jnp.abs(x[0]) > EDGE, jnp.nan, norm.logpdf(x).sum())


@pytest.fixture(scope="module")
def evidence():
    base = cs.bases.standard_normal(2, scale=1.2)
    settings = {"base": base, "effort": "base", "progress_bar": False}
    return cs.train_sampler(KEY, cs.Target(inside, 2), **settings).evidence(KEY, 20_000)


def test_a_point_where_the_density_is_nan_is_outside_of_its_support(evidence):
    truth = math.log(2.0 * norm.cdf(EDGE) - 1.0)
    assert abs(float(evidence.log_z) - truth) < 4.0 * float(evidence.log_z_stderr)
    expected = 2.0 * norm.cdf(-EDGE / 1.2)
    np.testing.assert_allclose(evidence.undefined, expected, rtol=0.1)
    np.testing.assert_array_equal(evidence.outside, evidence.undefined)


def test_it_is_counted_and_said(evidence):
    assert "outside   9." in str(evidence) and "where it is NaN" in str(evidence)
    said = str(cs.diagnostics.verdict(evidence))
    assert "NaN at 9." in said and "outside of its support" in said


def test_streams_count_the_same():
    draws = cs.train_sampler(
        KEY, cs.Target(inside, 2), base=cs.bases.standard_normal(2), effort="base"
    ).sample(KEY, 2_000)

    def sample(rng_key, num_samples):
        begin = 0 if (rng_key == jax.random.fold_in(KEY, 0)).all() else 1_000
        return jax.tree.map(lambda x: x[begin : begin + num_samples], draws)

    found = cs.streaming.stream_evidence(KEY, sample, 2_000, chunk_size=1_000)
    whole = cs.evidence(draws)
    np.testing.assert_allclose(found.undefined, whole.undefined, rtol=1e-6)
    np.testing.assert_allclose(found.outside, whole.outside, rtol=1e-6)
    np.testing.assert_allclose(found.log_z, whole.log_z, rtol=1e-5)


@pytest.mark.slow
def test_training_goes_on_beyond_nan():
    """Calibration, whose batches meet such points in every iteration."""
    settings = {"num_calibration_iterations": 100, "progress_bar": False, "hidden": (16,)}
    base = cs.bases.standard_normal(2, scale=1.2)
    trained = cs.train_sampler(KEY, cs.Target(inside, 2), base=base, **settings)
    found = trained.evidence(KEY, 20_000)
    truth = math.log(2.0 * norm.cdf(EDGE) - 1.0)
    assert abs(float(found.log_z) - truth) < 4.0 * float(found.log_z_stderr) + 0.01


@pytest.mark.parametrize(
    "density",
    [
        lambda x: jnp.where(x > 0.0, -0.5 * x**2, -jnp.inf),
        lambda x: 2.0 * jnp.log(x) - x,
        lambda x: 0.5 * jnp.log(x) - x**1.5,
        lambda x: jnp.where(x > 0.0, -jnp.sqrt(x), -40.0),  # finite, but with a gradient of NaN
    ],
)
def test_where_a_density_says_nothing_its_derivatives_are_zero(density):
    held = within_support(density)
    for derivative in (jax.grad, lambda f: jax.grad(jax.grad(f)), lambda f: jax.hessian(f)):
        assert derivative(held)(-1.0) == 0.0
        np.testing.assert_allclose(derivative(held)(1.5), derivative(density)(1.5), rtol=1e-6)
    # As a learned map sees it, backwards through a derivative that was taken forwards.
    assert jax.grad(lambda x: jax.jvp(jax.grad(held), (x,), (1.0,))[1])(-1.0) == 0.0
    np.testing.assert_array_equal(held(-1.0), density(-1.0))


BOUNDED = {
    "dis": lambda **s: cs.dis(loss="reverse_kl", train_steps=(2,), **s),
    "osds": cs.osds,
    "dgfs": lambda **s: cs.algorithms.dgfs(segment_share=1.0, train_steps=(2,), **s),
    "snf": cs.algorithms.snf,
    "cmcd": lambda **s: cs.algorithms.cmcd(loss="path_gradient", **s),
}


@pytest.mark.parametrize(
    "name", [n if n == "dis" else pytest.param(n, marks=pytest.mark.slow) for n in BOUNDED]
)
@pytest.mark.parametrize(
    "density",
    [
        lambda x: jnp.where(x[0] > 0.0, -0.5 * x[0] ** 2, -jnp.inf),
        lambda x: 0.5 * jnp.log(x[0]) - x[0] ** 1.5,
    ],
    ids=["-inf", "NaN"],
)
def test_every_loss_learns_where_the_target_ends(name, density):
    small = {"base": cs.bases.standard_normal(1), "max_steps": 2, "hidden": (8,), "batch_size": 32}
    algorithm = BOUNDED[name](target=cs.Target(density, 1), **small)
    state = algorithm.init(KEY)
    after, info = algorithm.step(KEY, state)
    assert np.isfinite(info.loss) and 0.0 < info.gradient_norm < np.inf
    assert np.isfinite(info.elbo)  # of the draws inside, and of their share
    moved = jax.tree.map(lambda old, new: jnp.abs(new - old).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0.0


def test_training_reports_a_bound_also_where_the_target_ends():
    # Of a normalised half-normal, from the normal: log 2 inside, half of the draws.
    inside = jnp.arange(100) < 50
    np.testing.assert_allclose(
        batch_elbo(jnp.where(inside, jnp.log(2.0), -jnp.inf)), 0.0, atol=1e-6
    )
    np.testing.assert_allclose(
        batch_elbo(jnp.where(inside, jnp.log(2.0), jnp.nan), inside), 0.693, atol=1e-3
    )
    assert batch_elbo(jnp.full(4, -jnp.inf)) == -jnp.inf
    np.testing.assert_allclose(batch_elbo(jnp.arange(3.0)), 1.0)


@pytest.mark.slow
def test_calibration_reports_the_bound_too():
    def log_density(x):
        return jnp.where(x[0] > 0.0, jnp.log(2.0) + norm.logpdf(x[0]), -jnp.inf)

    target, base = cs.Target(log_density, 1), cs.bases.standard_normal(1)
    algorithm = cs.osds(target, base=base, hidden=(8,), max_steps=1, guidance=None)
    calibrated = cs.calibration(algorithm, batch_size=64)
    info = calibrated.step(KEY, calibrated.restart(algorithm.init(KEY)))[1]
    # Pairs z and -z: half of the draws are inside.
    np.testing.assert_allclose(info.elbo, 0.0, atol=1e-5)


def by_ode(x):
    """-|x|^2 e^-2 / 2 through the solution of y' = -y, whose derivatives are reverse-mode only."""
    end = odeint(lambda y, t: -y, x, jnp.array([0.0, 1.0]), rtol=1e-6)[-1]
    return -0.5 * jnp.sum(end**2)


def by_loop(x):
    """-8 |x|^2 through a loop of a length known at run time: derivatives in forward mode only."""
    length = jnp.where(x[0] < 1e9, 4, 5)
    _, scaled = jax.lax.while_loop(
        lambda carry: carry[0] < length, lambda carry: (carry[0] + 1, 2.0**0.5 * carry[1]), (0, x)
    )
    return -2.0 * jnp.sum(scaled**2)


@pytest.mark.parametrize(("density", "curvature"), [(by_ode, math.exp(-2.0)), (by_loop, 64.0)])
def test_derivatives_of_one_kind_are_enough(density, curvature):
    x = jax.random.normal(KEY, (5, 3))
    value, grad = evaluation.values_and_grads(density, x)
    np.testing.assert_allclose(value, -0.5 * curvature * (x**2).sum(1), rtol=1e-3)
    np.testing.assert_allclose(grad, -curvature * x, rtol=1e-3, atol=1e-5)
    product = evaluation.hessian_products(density, x, x)
    np.testing.assert_allclose(product, -curvature * x, rtol=1e-3, atol=1e-5)


def test_a_mistake_in_a_density_is_no_matter_of_derivatives():
    with pytest.raises(TypeError, match="odd"):
        evaluation.hessian_products(odd, jnp.ones((1, 2)), jnp.ones((1, 2)))


def odd(x):
    raise TypeError("odd")
