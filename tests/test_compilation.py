"""What is compiled once, and what the compiler is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import consistent_samplers as cs
from consistent_samplers import compilation
from consistent_samplers.compilation import jit_with


def scaled(log_density, x):
    return 2.0 * log_density(x)


@pytest.mark.parametrize("effort", ["full", "less", "least"])
@pytest.mark.parametrize("as_partial", [False, True])
def test_every_effort_computes_the_same(monkeypatch, effort, as_partial):
    # The tests' own flags are left alone by it.
    monkeypatch.setenv("XLA_FLAGS", "")

    def density(x):
        return -0.5 * jnp.sum(x**2)

    first = Partial(density) if as_partial else density
    compiled = jit_with(scaled, first, effort=effort)
    np.testing.assert_allclose(compiled(jnp.ones(3)), -3.0)
    # Inside what transforms it as well, where JAX takes no options.
    np.testing.assert_allclose(jax.jit(compiled)(jnp.ones(3)), -3.0)
    np.testing.assert_allclose(jax.vmap(compiled)(jnp.ones((2, 3))), -3.0)
    np.testing.assert_allclose(jax.grad(compiled)(jnp.ones(3)), -2.0)


def test_errors_of_what_is_compiled_are_its_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    traced = []

    def fail(first, x):
        traced.append(x)
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        jit_with(fail, jnp.sum, effort="least")(jnp.ones(3))
    assert len(traced) == 1


def asked_for(monkeypatch, effort, flags, backend="cpu"):
    """The compiler's options."""
    seen = {}

    def jit(function, compiler_options=None, **options):
        seen.update(compiler_options or {})
        return function

    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(compilation, "_is_known", lambda name, value, b: b == "cpu")
    monkeypatch.setattr(jax, "jit", jit)
    jit_with(scaled, jnp.sum, effort=effort)
    return seen


def test_less_effort_is_asked_for_where_it_is_known(monkeypatch):
    level = "xla_backend_optimization_level"
    assert asked_for(monkeypatch, "full", "") == {}
    assert asked_for(monkeypatch, "less", "") == {level: 1}
    assert set(asked_for(monkeypatch, "least", "")) == {level, "xla_cpu_use_fusion_emitters"}
    assert asked_for(monkeypatch, "least", "", backend="gpu") == {}
    # A user's own flag wins.
    assert level not in asked_for(monkeypatch, "least", f"--{level}=3")


def test_options_that_a_compiler_does_not_know_are_found_out():
    assert compilation._is_known("xla_backend_optimization_level", 1, "cpu")
    assert not compilation._is_known("xla_no_such_option", 1, "cpu")
    assert not compilation._is_known("xla_backend_optimization_level", 1, "tpu")


def test_a_second_training_on_the_same_density_traces_nothing():
    calls = []

    def log_density(x):
        calls.append(None)
        return -0.5 * jnp.sum((x - 0.3) ** 2)

    target = cs.Target(log_density, 2)

    def train(seed):
        return cs.train_sampler(
            jax.random.key(seed),
            target,
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=2,
            num_calibration_iterations=2,
            progress_bar=False,
        )

    train(0)
    traced = len(calls)
    assert traced > 0
    train(1)
    assert len(calls) == traced
