"""Adjoint sampling, held to a Gaussian target, whose control is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.algorithms.adjoint import EndPoints
from consistent_samplers.targets import evaluation

KEY = jax.random.key(0)
MEAN, VARIANCE = 0.8, 0.5
TARGET = cs.targets.gaussian(np.array([MEAN]), np.array([[VARIANCE]]))
SCHEDULES = {
    "brownian": cs.schedules.brownian(),
    "geometric": cs.schedules.geometric(10.0),
    "cosine": cs.schedules.cosine(),
}


def build(target=TARGET, **settings):
    small = {"base": cs.bases.standard_normal(1), "max_steps": 8, "hidden": (16,)}
    small |= {"batch_size": 128, "num_fresh": 16, "buffer_capacity": 512, "learning_rate": 1e-2}
    small |= {"anneal_iterations": 0}
    return cs.algorithms.adjoint_sampling(target, **small | settings)


def optimal(process, x, t):
    """u* = (E[x_1 | x_t] - a x) / (1 - a²) for the Gaussian target."""
    a = process.signal(t)
    gain = a * VARIANCE / (a**2 * VARIANCE + 1.0 - a**2)
    return (MEAN + gain * (x - a * MEAN) - a * x) / (1.0 - a**2)


def optimal_network(process):
    """The optimal control, and a shift and a gain that are trained."""
    return cs.networks.Network(
        lambda rng_key: jnp.zeros(2),
        lambda params, x, t, d: optimal(process, x, t) + params[0] + params[1] * x,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_optimal_control_is_the_fixed_point(schedule):
    process = cs.processes.OrnsteinUhlenbeck(SCHEDULES[schedule])
    num, batch, repeats = 8_192, 128, 100
    settings = {"buffer_capacity": num, "batch_size": batch, "schedule": SCHEDULES[schedule]}
    algorithm = build(network=optimal_network(process), **settings)
    state = algorithm.init(KEY)
    # Ends of the optimal paths, by hand, beside 16 fresh ones.
    end = TARGET.sample(KEY, num)
    adjoint = -(end - MEAN) / VARIANCE + end
    memory = EndPoints(end, adjoint, (), jnp.ones(num, bool), jnp.asarray(0))
    state = state._replace(memory=memory)

    @jax.jit
    @jax.vmap
    def gradient(key):
        now = cs.algorithms.Now(key, algorithm.control, state)
        evaluate = jax.vmap(TARGET.log_density)
        return jax.grad(lambda p: algorithm.objective(p, now, evaluate).parts[0])(state.params)

    found = np.asarray(gradient(jax.random.split(KEY, repeats))["control"])
    # Of the repeats, and of the ends that all of them draw from. Six means at four standard errors:
    # a false alarm in 2,500 seeds.
    stderr = found.std(0) * (1 / repeats + batch / num) ** 0.5
    assert np.all((stderr > 1e-3) & (stderr < 0.1))
    np.testing.assert_array_less(np.abs(found.mean(0)), 4 * stderr)


@pytest.mark.parametrize(
    "schedule",
    ["brownian", *(pytest.param(s, marks=pytest.mark.slow) for s in list(SCHEDULES)[1:])],
)
def test_training_approaches_the_optimal_control(schedule):
    algorithm = build(schedule=SCHEDULES[schedule])
    state, history = cs.fit(KEY, algorithm, 300, progress_bar=False)
    process, d = algorithm.control.process, jnp.asarray(1 / 8)
    t = jnp.repeat(jnp.arange(8) / 8, 200)
    a = process.signal(t)
    noise = jax.random.normal(KEY, t.shape)
    x = (a * MEAN + jnp.sqrt(a**2 * VARIANCE + 1.0 - a**2) * noise)[:, None]
    found = jax.vmap(algorithm.control.bind(state.ema_params), (0, 0, None))(x, t, d)
    best = jax.vmap(lambda x, t: optimal(process, x, t))(x, t)
    # Untrained the error is the mean square of the control.
    assert float(jnp.mean((found - best) ** 2)) < 0.03 * float(jnp.mean(best**2))
    assert history.elbo[-20:].mean() > history.elbo[:20].mean() + 0.2
    for method, bound in (("path", "lower"), ("map", "lower-if-injective")):
        draws = algorithm.sample(jax.random.key(1), state, 4_000, method=method)
        evidence = cs.evidence(draws)
        assert evidence.bound == bound
        # At four standard errors: a false alarm in 16,000 seeds.
        assert abs(evidence.log_z - TARGET.log_z) < 4 * evidence.log_z_stderr < 0.1
        assert TARGET.log_z - evidence.elbo < 0.15


def test_the_buffer_goes_round_and_asks_for_fresh_ends_only(monkeypatch):
    asked, ask = [], evaluation.values_and_grads

    def values_and_grads(density, points):
        asked.append(points.shape)
        return ask(density, points)

    monkeypatch.setattr(evaluation, "values_and_grads", values_and_grads)
    algorithm = build(buffer_capacity=40)
    state = algorithm.init(KEY)
    for i in range(3):
        state, _ = algorithm.step(jax.random.fold_in(KEY, i), state)
    assert asked == [(16, 1)] * 3
    memory = state.memory
    assert int(memory.num_added) == 48
    assert bool(memory.usable.all())
    expected = -(memory.position - MEAN) / VARIANCE + memory.position
    np.testing.assert_allclose(memory.adjoint, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_ends_without_a_density_teach_nothing():
    def log_density(x):
        return jnp.where(x[0] > 0.0, -0.5 * jnp.sum(x**2), jnp.nan)

    algorithm = build(cs.Target(log_density, dim=1), num_fresh=64)
    state, info = algorithm.step(KEY, algorithm.init(KEY))
    memory = state.memory
    np.testing.assert_array_equal(memory.usable[:64], memory.position[:64, 0] > 0.0)
    assert 0 < int(memory.usable.sum()) < 64
    assert bool(jnp.isfinite(info.loss))
    nothing = build(cs.Target(lambda x: jnp.nan * x[0], dim=1))
    state, info = nothing.step(KEY, nothing.init(KEY))
    assert (float(info.loss), bool(state.memory.usable.any())) == (0.0, False)


@pytest.mark.slow
def test_frames_of_a_mixture_keep_their_components():
    target = cs.targets.gmm9()
    shape = jnp.array([[[1.0, 0.0], [0.5, 2.0]], [[3.0, 0.0], [0.0, 1.0]]])
    base = cs.bases.mixture(jnp.zeros(2), jnp.array([[-5.0, 0.0], [5.0, 5.0]]), shape)
    algorithm = build(target, base=base, max_steps=2, max_adjoint=30.0)
    state = algorithm.init(KEY)
    state, _ = algorithm.step(KEY, state)
    memory = jax.tree.map(lambda leaf: leaf[:16], state.memory[:4])

    def log_ratio(z, component):
        whitened = base.whitened_log_density(target.log_density, component)
        return whitened(z) + 0.5 * jnp.sum(z**2)

    expected = np.asarray(jax.vmap(jax.grad(log_ratio))(memory[0], memory[2]))
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    longest = 30.0 * 2**0.5
    assert 0 < (length > longest).sum() < 16
    shortened = expected * np.minimum(1.0, longest / length)
    np.testing.assert_allclose(memory[1], shortened, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_fresh": 0}, "num_fresh=0 must be at least 1"),
        ({"num_fresh": 600}, "at most buffer_capacity=512"),
        ({"max_adjoint": 0.0}, "max_adjoint must be positive"),
        ({"learned_kernels": "both"}, "learned_kernels must be None"),
        ({"integrator": "euler_maruyama"}, "schedule of finite rates"),
        ({"integrator": "denoising", "schedule": cs.schedules.brownian()}, "finite rates"),
        ({"max_steps": 12}, "power of two"),
        ({"base": cs.bases.standard_normal(3)}, "dimension 3"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_the_papers_preset():
    algorithm = cs.algorithms.adjoint_sampling.paper(TARGET, max_steps=4, hidden=(8,))
    assert algorithm.name == "adjoint_sampling.paper"
    assert float(algorithm.control.process.signal(0.0)) == 0.0
