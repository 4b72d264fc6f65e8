"""Contrastive energy prediction, and the network whose gradient is the control."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers import networks, registry
from consistent_samplers.algorithms.protocol import Now
from consistent_samplers.bases import GaussianBase

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.8, 0.4], [0.4, 0.5]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)
SCALE = 1.3
KEY = jax.random.key(0)


def build(target=TARGET, **settings):
    small = {
        "base": cs.bases.standard_normal(2, scale=SCALE),
        "max_steps": 8,
        "batch_size": 256,
        "hidden": (16,),
    }
    return cs.algorithms.contrastive(target, **(small | settings))


@functools.cache
def trained():
    algorithm = build()
    return algorithm, cs.fit(KEY, algorithm, 400, progress_bar=False)


# ---- truth


def score_error(algorithm, state):
    """Mean squared distance of a(t) u to a(t) u* on the optimal marginals, and the size of that.

    Relative to the score, as the control acts: where a is small next to nothing is learned of it,
    and next to nothing depends on it.
    """
    process, rng = algorithm.control.process, np.random.default_rng(0)
    mean, covariance = MEAN / SCALE, COVARIANCE / SCALE**2
    x, t, best = [], [], []
    for time in np.arange(8) / 8:
        a = float(process.signal(time))
        marginal = a**2 * covariance + (1 - a**2) * np.eye(2)
        points = rng.multivariate_normal(a * mean, marginal, size=200)
        # The score of the noised target is -x + a u*.
        score = -np.linalg.solve(marginal, (points - a * mean).T).T
        x.append(points)
        t.append(np.full(200, time))
        best.append(score + points)
    x, t, best = (jnp.asarray(np.concatenate(part), jnp.float32) for part in (x, t, best))
    control = algorithm.control.bind(state.ema_params)
    found = jax.vmap(control, (0, 0, None))(x, t, jnp.asarray(1.0 / 8))
    found = jax.vmap(process.signal)(t)[:, None] * found
    return float(jnp.mean((found - best) ** 2)), float(jnp.mean(best**2))


@pytest.mark.slow
def test_training_approaches_the_optimal_control():
    algorithm, (state, history) = trained()
    error, size = score_error(algorithm, state)
    assert error < 0.01 * size
    draws = algorithm.sample(jax.random.key(1), state, 4_000)
    evidence = cs.evidence(draws)
    assert evidence.bound == "lower" and draws.flow is None
    # A false alarm in 16,000 runs; a large error bar would let anything pass.
    assert evidence.log_z_stderr < 0.02
    assert abs(evidence.log_z - TARGET.log_z) < 4 * evidence.log_z_stderr
    assert -0.4 < evidence.elbo - TARGET.log_z < 4 * evidence.elbo_stderr
    # What training reports is the base's, at the start and at the end.
    base = cs.Draws(algorithm.base.sample(KEY, 20_000))
    log_ratio = jax.vmap(TARGET.log_density)(base.position)
    elbo = float(jnp.mean(log_ratio - algorithm.base.log_prob(base.position)))
    np.testing.assert_allclose(history.elbo.mean(), elbo, atol=0.1)
    assert elbo < evidence.elbo - 1.0
    assert history.ess.min() > 0.0 and history.ess.max() < 1.0


@pytest.mark.slow
def test_mixtures_of_frames_have_one_control_each():
    """Over a base of two components the energy is the target's given the component as well."""
    target = cs.targets.gmm9()
    base = cs.bases.fit(KEY, target)
    algorithm = build(target, base=base, batch_size=128)
    state = cs.fit(KEY, algorithm, 100, progress_bar=False).state
    evidence = cs.evidence(algorithm.sample(jax.random.key(1), state, 4_000))
    assert abs(evidence.log_z - target.log_z) < 4 * evidence.log_z_stderr


# ---- the loss


def test_an_iteration_asks_for_base_draws_alone():
    algorithm, points = build(batch_size=4_000), []
    state = algorithm.init(KEY)

    def evaluate(x):
        points.append(x)
        return jax.vmap(TARGET.log_density)(x)

    loss = algorithm.objective(state.params, Now(KEY, algorithm.control, state), evaluate)
    (asked,) = points
    assert asked.shape == (4_000, 2)
    np.testing.assert_allclose(asked.mean(0), 0.0, atol=0.1)
    np.testing.assert_allclose(np.cov(asked.T), SCALE**2 * np.eye(2), atol=0.2)
    # Untrained shares are even: the divergence is log K less the entropy of the weights.
    log_weight = jax.vmap(TARGET.log_density)(asked) - algorithm.base.log_prob(asked)
    share = jax.nn.softmax(log_weight)
    expected = np.log(4_000) + float(jnp.sum(share * jnp.log(share)))
    np.testing.assert_allclose(loss.parts[0], expected, rtol=1e-4)
    np.testing.assert_allclose(loss.info.ess, 1.0 / (4_000 * jnp.sum(share**2)), rtol=1e-3)


def test_candidates_without_density_have_no_share():
    half = cs.Target(lambda x: jnp.where(x[0] > 0, jnp.sqrt(x[0]) - x @ x, -jnp.inf), 2)
    nothing = cs.Target(lambda x: jnp.nan * x[0], 2)
    moved = []
    for target in (half, nothing):
        algorithm = build(target)
        start = algorithm.init(KEY)
        state, info = algorithm.step(KEY, start)
        chex.assert_tree_all_finite((state, info.loss, info.gradient_norm, info.ess))
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.params, state.params)
        moved.append(max(jax.tree.leaves(gaps)))
    assert moved[0] > 0.0 and moved[1] == 0.0
    assert info.loss == info.ess == 0.0


# ---- the network


def test_potential_is_the_gradient_of_its_scalar():
    network, x = networks.Potential(3, hidden=(8,)), jnp.array([0.3, -0.8, 1.1])
    t, d = jnp.asarray(0.4), jnp.asarray(0.25)
    params = network.init(KEY, x, t, d)
    np.testing.assert_array_equal(network.apply(params, x, t, d), jnp.zeros(3))
    leaves, structure = jax.tree.flatten(params)
    noisy = [leaf + 0.3 * jax.random.normal(KEY, leaf.shape) for leaf in leaves]
    params = jax.tree.unflatten(structure, noisy)
    scalar = functools.partial(network.apply, params, method="scalar")
    found = network.apply(params, x, t, d)
    assert float(jnp.abs(found).min()) > 1e-2
    np.testing.assert_allclose(found, jax.grad(scalar)(x, t, d), rtol=1e-5)
    # The control of a potential has a symmetric Jacobian.
    jacobian = jax.jacfwd(lambda x: network.apply(params, x, t, d))(x)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-4)
    # An outlier is not pulled.
    np.testing.assert_allclose(network.apply(params, 1e3 * x, t, d), 0.0, atol=1e-3)
    assert registry.decode(*registry.encode(network)) == network


def test_a_sampler_is_saved_and_read(tmp_path):
    algorithm = build()
    state = algorithm.init(KEY)
    cs.TrainedSampler.of(algorithm, state).save(tmp_path / "kept")
    loaded = cs.load(tmp_path / "kept", TARGET)
    draws = algorithm.sample(KEY, state, 50, 2, method="path")
    again = loaded.sample(KEY, 50, 2, method="path")
    np.testing.assert_array_equal(draws.position, again.position)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "number of candidates .* at least 2, got 1"),
        ({"num_times": 0}, "num_times must be a positive integer"),
        ({"max_steps": 12}, "power of two"),
        ({"hidden": ()}, "hidden must be the widths"),
        ({"base": cs.bases.standard_normal(3)}, "dimension 3"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("network", ["structured", networks.StepConditionedMLP(2, (8,))])
def test_a_network_without_a_scalar_is_refused(network):
    with pytest.raises(TypeError, match="a method scalar"):
        build(network=network)


def test_a_base_of_another_kind_and_the_papers_preset():
    base = GaussianBase(jnp.array([0.5, -0.2]), jnp.array([[1.1, 0.0], [0.3, 0.9]]))
    state, info = build(base=base).step(KEY, build(base=base).init(KEY))
    chex.assert_tree_all_finite((state, info))
    algorithm = cs.algorithms.contrastive.paper(TARGET, max_steps=4, hidden=(8,))
    assert (algorithm.name, algorithm.max_steps) == ("contrastive.paper", 4)
