"""The three batched functions of a density against the density itself."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from consistent_samplers.targets import evaluation


def log_density(scale, x):
    return -jnp.sum(jnp.cosh(x / scale)) + x[0] * x[1]


DENSITY = Partial(log_density, jnp.asarray(1.5))


def points(num):
    return jax.random.normal(jax.random.key(num), (num, 3))


@pytest.mark.parametrize("num", [1, 5, 128, 129, 1_024, 2_500])
def test_batches_of_every_length_agree_with_single_points(num):
    x = points(num)
    value, grad = jax.jit(jax.vmap(jax.value_and_grad(lambda y: DENSITY(y))))(x)
    np.testing.assert_allclose(evaluation.values(DENSITY, x), value, rtol=1e-5)
    found = evaluation.values_and_grads(DENSITY, x)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1], grad, rtol=1e-4, atol=1e-5)
    v = points(num + 1)[:num]
    products = jax.jit(jax.vmap(lambda y, w: jax.hessian(lambda z: DENSITY(z))(y) @ w))(x, v)
    found = evaluation.hessian_products(DENSITY, x, v)
    np.testing.assert_allclose(found, products, rtol=1e-4, atol=1e-5)


def test_hessians_are_made_of_products():
    x = points(7)
    expected = jax.jit(jax.vmap(jax.hessian(lambda y: DENSITY(y))))(x)
    np.testing.assert_allclose(evaluation.hessians(DENSITY, x), expected, rtol=1e-4, atol=1e-5)


def test_other_data_compile_nothing():
    calls = []

    def counted(scale, x):
        calls.append(None)
        return -jnp.sum((x / scale) ** 2)

    for scale in (1.0, 2.0):
        density = Partial(counted, jnp.asarray(scale))
        found = evaluation.values(density, jnp.ones((2_000, 3)))
        np.testing.assert_allclose(found, -3.0 / scale**2)
        if scale == 1.0:
            traced = len(calls)
    assert len(calls) == traced > 0


def test_few_batch_sizes_are_compiled():
    evaluation._program.cache_clear()
    density = Partial(log_density, jnp.asarray(0.7))
    for num in (1, 2, 128, 300, 512):
        evaluation.values_and_grads(density, points(num))
    program = evaluation._program("values_and_grads", jax.tree.structure(density))
    # One point, a batch, a large batch; arrays of NumPy and of JAX count apart.
    compiled = program._cache_size()
    assert compiled <= 6
    for num in (3, 100, 200, 900, 1_025, 5_000):
        evaluation.values_and_grads(density, points(num))
    assert program._cache_size() == compiled


def test_a_density_is_traced_once_for_all_of_its_programs():
    calls = []

    def counted(x):
        calls.append(None)
        return -jnp.sum(x**4)

    for num in (1, 128, 600):
        evaluation.values(counted, points(num))
        evaluation.values_and_grads(counted, points(num))
        evaluation.hessian_products(counted, points(num), points(num))
    assert len(calls) == 1


@pytest.mark.skipif(
    not hasattr(jax.monitoring, "unregister_event_duration_listener"),
    reason="a jax that does not let go of a listener",
)
def test_programs_of_a_density_are_compiled_on_other_threads_before_they_are_asked_for():
    """Its own code runs on the caller's alone, for handlers of NumPyro know no threads."""
    running, compiling = set(), []

    def density(x):
        running.add(threading.current_thread())
        return -0.5 * jnp.sum(x**2)

    def listen(event, seconds, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiling.append(threading.current_thread())

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        evaluation.compile_ahead(density, 3)
        x = np.ones((5, 3), np.float32)
        found = evaluation.values_and_grads(density, x)
        evaluation.values_and_grads(density, x[:1])
        evaluation.hessian_products(density, x, x)
        evaluation.values(density, np.ones((300, 3), np.float32))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    np.testing.assert_allclose(found[1], -x)
    assert running == {threading.current_thread()}
    assert compiling and threading.current_thread() not in compiling


def test_what_cannot_be_compiled_ahead_is_told_where_it_is_needed():
    def refusing(x):
        raise TypeError("not of this density")

    evaluation.compile_ahead(refusing, 3)
    with pytest.raises(TypeError, match="not of this density"):
        evaluation.values(refusing, points(300))


def test_inside_a_traced_computation_they_are_part_of_it():
    x, v = points(4), points(5)[:4]

    def total(x):
        value, grad = evaluation.values_and_grads(DENSITY, x)
        product = evaluation.hessian_products(DENSITY, x, v)
        return evaluation.values(DENSITY, x).sum() + value.sum() + grad.sum() + product.sum()

    eager = total(x)
    np.testing.assert_allclose(jax.jit(total)(x), eager, rtol=1e-5)
    assert jnp.isfinite(jax.grad(total)(x)).all()
    # Points that are constants of the computation as well.
    constant = jax.jit(lambda: evaluation.values(DENSITY, x))()
    np.testing.assert_allclose(constant, evaluation.values(DENSITY, x), rtol=1e-6)


def test_cost_grows_with_the_density():
    def dense(matrix, x):
        return -jnp.sum((matrix @ x) ** 2)

    small, large = (evaluation.cost(Partial(dense, jnp.ones((n, 8))), 8) for n in (10, 1_000))
    assert 50 < large / small < 200


@pytest.mark.parametrize(
    ("call", "least"),
    [
        (lambda m: jnp.log(jnp.diagonal(jnp.linalg.cholesky(m))).sum(), 3.0),
        (lambda m: jnp.linalg.slogdet(m)[1], 3.0),
        (lambda m: jnp.linalg.inv(m).sum(), 6.0),
        (lambda m: jnp.linalg.eigvalsh(m).min(), 8.0),
        (lambda m: jnp.linalg.svd(m, compute_uv=False).min(), 12.0),
    ],
    ids=["cholesky", "slogdet", "inv", "eigh", "svd"],
)
def test_cost_counts_what_lapack_does(call, least, monkeypatch):
    """The compiler counts products of matrices alone: a Gaussian process looked too cheap."""

    def cubes(size=120):  # with a gradient, without what makes the matrix
        eye = jnp.eye(size)
        called, made = (
            evaluation.cost(lambda x, of=of: of(2.0 * eye + x[0]), 2) for of in (call, jnp.sum)
        )
        return (called - made) / size**3

    assert cubes() > least
    monkeypatch.setattr(evaluation, "_LAPACK", {})
    assert cubes() < 0.8 * least
