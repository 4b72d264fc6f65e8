"""DGFS, trajectory balance with local search, and the chains of the latter."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.algorithms import local_search
from consistent_samplers.algorithms.learning import ask
from consistent_samplers.algorithms.protocol import Now
from consistent_samplers.bases import GaussianBase

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.8, 0.4], [0.4, 0.5]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)
KEY = jax.random.key(0)
SEARCHING = {"num_searched": 32, "search_steps": 50, "burn_in": 20, "replay_capacity": 512}
OWN = {"dgfs": {}, "gflownet": SEARCHING}
by_name = pytest.mark.parametrize("name", OWN)


def build(name, target=TARGET, **settings):
    """A small sampler, with the whole target from the start."""
    small = {
        "base": cs.bases.standard_normal(2, scale=1.3),
        "max_steps": 8,
        "train_steps": (8,),
        "batch_size": 64,
        "hidden": (16,),
        "anneal_iterations": 0,
    }
    return getattr(cs.algorithms, name)(target, **(small | OWN[name] | settings))


# ---- training


@functools.cache
def trained(name):
    algorithm = build(name)
    return algorithm, cs.fit(KEY, algorithm, 400, progress_bar=False)


@pytest.mark.slow
@by_name
def test_training_finds_log_z(name):
    algorithm, (state, history) = trained(name)
    evidence = cs.evidence(algorithm.sample(jax.random.key(1), state, 4_000))
    assert evidence.bound == "lower"
    # A false alarm in 16,000 runs; a large error bar would let anything pass.
    assert evidence.log_z_stderr < 0.02
    assert abs(evidence.log_z - TARGET.log_z) < 4 * evidence.log_z_stderr
    assert -0.4 < evidence.elbo - TARGET.log_z < 4 * evidence.elbo_stderr
    # What training reports is the ELBO of its paths, of stretches an estimate.
    assert history.elbo[0] < TARGET.log_z - 0.8
    np.testing.assert_allclose(history.elbo[-50:].mean(), evidence.elbo, atol=0.15)


def test_learned_log_z_is_close():
    # The parameter is a tenth of it, for a rate of its own.
    log_z = 10.0 * trained("gflownet")[1].state.params["log_z"]
    np.testing.assert_allclose(log_z, TARGET.log_z, atol=0.15)


def test_buffer_of_local_search_has_the_moments_of_the_target():
    memory = trained("gflownet")[1].state.memory
    kept = np.isfinite(memory.found.log_weight)
    assert 0.4 < kept.mean() < 0.8
    x = 1.3 * np.asarray(memory.found.position)[kept]
    # Some 300 points of 32 chains, worth a hundred or so independent ones: four standard errors.
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.36)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.45)


@pytest.mark.slow
def test_buffer_of_local_search_holds_modes_that_the_base_hardly_reaches():
    def log_density(x):
        far = jnp.stack([-0.5 * jnp.sum((x - m) ** 2) / 0.3**2 for m in (-4.0, 4.0)])
        return jax.nn.logsumexp(far)

    shares = {}
    for num_searched in (0, 32):
        settings = {"num_searched": num_searched, "base": cs.bases.standard_normal(1)}
        algorithm = build("gflownet", cs.Target(log_density, 1), **settings)
        memory = cs.fit(KEY, algorithm, 150, progress_bar=False).state.memory
        buffer = memory.found if num_searched else memory
        x = np.asarray(buffer.position)[np.isfinite(buffer.log_weight)]
        shares[num_searched] = [float(np.mean(abs(x - m) < 1.0)) for m in (-4.0, 4.0)]
    assert min(shares[32]) > 0.2 and sum(shares[32]) > 0.95
    # Without it the buffer holds what the sampler's own paths reach.
    assert sum(shares[0]) < 0.9


# ---- what an iteration asks for


def asked(algorithm, state):
    """Points whose densities an iteration asks for."""
    now = Now(KEY, algorithm.control, state)
    return ask(now, objective=algorithm.objective, fold=False)


@pytest.mark.parametrize(("share", "num_points"), [(0.25, 5), (1.0, 17)])
def test_dgfs_asks_for_the_density_on_a_stretch_of_each_path(share, num_points):
    algorithm = build("dgfs", max_steps=16, train_steps=(16,), batch_size=32, segment_share=share)
    points = asked(algorithm, algorithm.init(KEY))
    assert points.shape == (32 * num_points, 2)
    # Of a path without a control each point is near the next one: they are consecutive.
    paths = np.asarray(points).reshape(32, num_points, 2) / 1.3
    if share < 1.0:
        assert np.mean((paths[:, -1] - paths[:, 0]) ** 2) < 1.5
        assert np.mean((paths[:, 1:] - paths[:, :-1]) ** 2) < 0.6


@pytest.mark.slow
def test_decay_weighs_longer_pieces():
    states, losses = [], []
    for decay in (1.0, 2.0):
        algorithm = build("dgfs", decay=decay, segment_share=1.0)
        states.append(algorithm.init(KEY))
        losses.append(float(algorithm.step(KEY, states[-1])[1].loss))
    chex.assert_trees_all_equal(*states)
    # The base is not the target, and longer pieces are further from balance.
    assert losses[1] > 1.05 * losses[0]


@pytest.mark.slow
def test_proposals_ride_along_in_one_call():
    algorithm = build("gflownet")
    state = algorithm.init(KEY)
    points = asked(algorithm, state)
    assert points.shape == (64 + 64 + 32, 2)
    # The chains start at the last of them: nothing else was asked.
    state, _ = algorithm.step(KEY, state)
    chex.assert_trees_all_close(1.3 * state.memory.chains.position, points[-32:], rtol=1e-5)


@pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_chains_keep_density_and_gradient_of_where_they_are(inside):
    base = GaussianBase(jnp.array([0.5, -0.2]), jnp.array([[1.1, 0.0], [0.3, 0.9]]))
    algorithm = build("gflownet", base=base)
    step, state = jax.jit(algorithm.step) if inside else algorithm.step, algorithm.init(KEY)
    for i in range(4):
        state, _ = step(jax.random.key(i), state)
    chains = state.memory.chains
    of_frame = base.whitened_log_density(TARGET.log_density)
    value, gradient = jax.vmap(jax.value_and_grad(of_frame))(chains.position)
    np.testing.assert_allclose(chains.log_density, value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(chains.gradient, gradient, rtol=1e-4, atol=1e-4)
    # They move, and have started at different times.
    assert float(jnp.abs(chains.position).min()) > 0.0
    assert len(np.unique(chains.age)) > 20


# ---- chains by themselves


@functools.cache
def run_chains(log_density, num=2_000, num_steps=200):
    """Positions ``[num]`` after a number of steps, and how many of the last moves were taken."""
    value_and_grad = jax.vmap(jax.value_and_grad(log_density))

    def step(chains, inputs):
        i, key = inputs
        key_start, key_move, key_accept = jax.random.split(key, 3)
        starts = jax.random.normal(key_start, (num, 1))
        proposals = local_search.propose(key_move, chains, starts, 10_000)
        answer = value_and_grad(proposals.position)
        gain = (1.0 + i) ** -0.5
        after = local_search.accept(
            key_accept, chains, proposals, *answer, lifetime=10_000, gain=gain
        )
        return after, jnp.mean(after.position != chains.position)

    inputs = (jnp.arange(float(num_steps)), jax.random.split(KEY, num_steps))
    start = local_search.init(num, 1, 1)
    chains, taken = jax.jit(lambda: jax.lax.scan(step, start, inputs))()
    return np.asarray(chains.position[:, 0]), float(taken[-50:].mean())


def gaussian(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2) / 0.5**2


def quartic(x):
    return -0.25 * jnp.sum(x**4)


@pytest.mark.parametrize(
    ("log_density", "mean", "square", "fourth"),
    # Of x⁴ / 4: E[x²] = 2 Γ(3/4) / Γ(1/4) and E[x⁴] = 1.
    [(gaussian, 1.0, 1.25, 2.6875), (quartic, 0.0, 2 * math.gamma(0.75) / math.gamma(0.25), 1.0)],
    ids=["gaussian", "quartic"],
)
def test_chains_keep_the_target(log_density, mean, square, fourth):
    x, taken = run_chains(log_density)
    for power, expected in ((1, mean), (2, square), (4, fourth)):
        values = x**power
        # A false alarm in 16,000 runs for each.
        assert abs(values.mean() - expected) < 4 * values.std() / len(x) ** 0.5
    np.testing.assert_allclose(taken, local_search.ACCEPTANCE, atol=0.02)


def test_a_chain_that_is_outside_of_the_support_starts_anew():
    chains = local_search.init(4, 2, 8)
    starts = jnp.arange(8.0).reshape(4, 2)
    proposals = local_search.propose(KEY, chains, starts, 8)
    np.testing.assert_array_equal(proposals.position, starts)
    values = jnp.array([0.0, -jnp.inf, jnp.nan, 1.0])
    gradient = jnp.full((4, 2), jnp.nan)
    settings = {"lifetime": 8, "gain": jnp.ones(())}
    after = local_search.accept(KEY, chains, proposals, values, gradient, **settings)
    np.testing.assert_array_equal(after.log_density, [0.0, -jnp.inf, -jnp.inf, 1.0])
    chex.assert_tree_all_finite((after.position, after.gradient, after.log_step))
    again = local_search.propose(KEY, after, starts, 8)
    np.testing.assert_array_equal(again.is_start, [False, True, True, False])
    # And one that stands well does not go where there is no density.
    outside = jnp.full(4, -jnp.inf)
    stays = local_search.accept(KEY, after, again, outside, gradient, **settings)
    np.testing.assert_array_equal(stays.position[::3], after.position[::3])
    assert stays.log_step < after.log_step


# ---- settings


def test_without_chains_the_buffer_is_that_of_the_other_samplers():
    algorithm = build("gflownet", num_searched=0)
    state, _ = algorithm.step(KEY, algorithm.init(KEY))
    assert state.memory.num_added == 64
    assert asked(algorithm, state).shape == (128, 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dgfs", {"segment_share": 0.0}, "segment_share must be above 0"),
        ("dgfs", {"segment_share": 1.5}, "at most 1, got 1.5"),
        ("dgfs", {"decay": 0.0}, "decay must be positive"),
        ("dgfs", {"schedule": cs.schedules.linear()}, "dgfs is a Brownian motion"),
        ("gflownet", {"num_searched": -1}, "num_searched must be an integer of at least 0"),
        ("gflownet", {"search_steps": 0}, "search_steps must be a positive integer"),
        ("gflownet", {"burn_in": 50}, "burn_in=50 must be below search_steps=50"),
        ("gflownet", {"replay_share": 0.0}, "needs a replay_share"),
        ("gflownet", {"loss": "reverse_kl"}, "replay_share=1.0 with loss"),
        ("gflownet", {"num_searched": 1_000}, "at least num_searched=1000, got 512"),
    ],
)
def test_wrong_settings(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


@by_name
def test_papers_presets_take_overrides(name):
    algorithm = getattr(cs.algorithms, name).paper(TARGET, max_steps=4, hidden=(8,))
    assert (algorithm.name, algorithm.max_steps) == (f"{name}.paper", 4)
    assert algorithm.objective.train_steps == (4,)
