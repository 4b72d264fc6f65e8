"""BlackJAX both ways: our sampler as its algorithm, its kernels as corrections of draws."""

import dataclasses
import functools
import importlib

import blackjax
import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.corrections import move, resample
from consistent_samplers.integrations.blackjax import (
    OneStepMHState,
    build_kernel,
    init,
    init_from_draws,
    one_step_mh,
)
from consistent_samplers.types import Draws

MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[1.5, 0.4], [0.4, 0.6]])
TARGET = cs.targets.gaussian(jnp.array(MEAN), jnp.array(COVARIANCE))
GAUSSIAN = cs.bases.GaussianBase(jnp.array([0.3, 0.2]), jnp.diag(jnp.array([1.7, 1.4])))
MIXTURE = cs.bases.mixture(
    jnp.log(jnp.array([0.4, 0.6])),
    jnp.array([[-0.5, -1.0], [1.5, 0.3]]),
    jnp.tile(1.5 * jnp.eye(2), (2, 1, 1)),
)
NUM_CHAINS = 1_500


@functools.cache
def off(name):
    """A sampler with a random network: off in place and scale, its map no longer affine."""
    base = GAUSSIAN if name == "gaussian" else MIXTURE
    algorithm = cs.osds(TARGET, base=base, guidance=None, hidden=(8,), max_steps=1)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    flat, unravel = jax.flatten_util.ravel_pytree(state.ema_params)
    params = unravel(flat + 0.06 * jax.random.normal(jax.random.key(3), flat.shape))
    state = state._replace(params=params, ema_params=params)
    return cs.TrainedSampler.of(algorithm, state)


@pytest.fixture(scope="module")
def poor():
    return off("gaussian")


@pytest.fixture(scope="module")
def chain(poor):
    return one_step_mh(poor)


def check_follows_target(x):
    """Means, variances and covariance of independent ``x [n, 2]`` at four standard errors.

    Five comparisons, each false by chance once in 16,000.
    """
    x = np.asarray(x, np.float64) - MEAN
    assert np.isfinite(x).all()
    moments = [
        (x[:, 0], 0.0),
        (x[:, 1], 0.0),
        (x[:, 0] ** 2, 1.5),
        (x[:, 1] ** 2, 0.6),
        (x[:, 0] * x[:, 1], 0.4),
    ]
    for values, truth in moments:
        assert abs(values.mean() - truth) < 4.0 * values.std() / len(x) ** 0.5


def exact(seed, n=NUM_CHAINS):
    return jnp.asarray(
        np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, n), jnp.float32
    )


NUM_STEPS = 4


@functools.cache
def compiled(chain):
    """The chain's start and `NUM_STEPS` of its steps, for many chains side by side."""

    def advance(states, key):
        states, infos = jax.vmap(chain.step)(jax.random.split(key, len(states.position)), states)
        return states, (states, infos)

    def run(key, states):
        return jax.lax.scan(advance, states, jax.random.split(key, NUM_STEPS))[1]

    return jax.jit(jax.vmap(chain.init)), jax.jit(run)


def start_exact(chain, seed=0):
    keys = jax.random.split(jax.random.key(100 + seed), NUM_CHAINS)
    return compiled(chain)[0](exact(seed), keys)


# ---- our sampler as an algorithm of BlackJAX


def check_exact_starts_stay_exact(chain):
    _, run = compiled(chain)
    starts = start_exact(chain)
    assert np.isfinite(starts.log_weight).mean() > 0.999
    states, infos = run(jax.random.key(1), starts)
    for position in states.position:
        check_follows_target(position)
    # The test can fail: the proposals alone are far from the target, and many are accepted.
    with pytest.raises(AssertionError):
        check_follows_target(infos.proposal.position[0])
    assert 0.3 < float(infos.acceptance_rate.mean()) < 0.9


def test_exact_starts_stay_exact(chain):
    check_exact_starts_stay_exact(chain)


@pytest.mark.parametrize(("base", "method"), [("mixture", "map"), ("gaussian", "path")])
def test_exact_starts_stay_exact_with_components_and_on_paths(base, method):
    check_exact_starts_stay_exact(one_step_mh(off(base), method=method))


def test_chains_from_anywhere_reach_the_target(chain):
    init, run = compiled(chain)
    far = jnp.tile(jnp.array([6.0, 4.0]), (NUM_CHAINS, 1))
    states = init(far, jax.random.split(jax.random.key(0), NUM_CHAINS))
    np.testing.assert_array_equal(states.position, far)
    for key in jax.random.split(jax.random.key(2), 8):
        after, _ = run(key, states)
        states = jax.tree.map(lambda a: a[-1], after)
    check_follows_target(states.position)


def test_each_transition_is_what_metropolis_and_hastings_say(chain):
    before = start_exact(chain, seed=5)
    after, info = jax.tree.map(lambda a: a[0], compiled(chain)[1](jax.random.key(3), before))
    proposal = info.proposal
    # Weights and densities at what was proposed, by a road of their own: the map inverted there.
    keys = jax.random.split(jax.random.key(0), NUM_CHAINS)
    weight = compiled(chain)[0](proposal.position, keys).log_weight
    np.testing.assert_allclose(proposal.log_weight, weight, atol=1e-3)
    density = jax.vmap(TARGET.log_density)(proposal.position)
    np.testing.assert_allclose(proposal.logdensity, density, atol=1e-3)
    ratio = np.asarray(proposal.log_weight - before.log_weight, np.float64)
    probability = np.exp(np.minimum(ratio, 0.0))
    np.testing.assert_allclose(info.acceptance_rate, probability, rtol=1e-4)
    accepted = np.asarray(info.is_accepted)
    error = np.sqrt((probability * (1 - probability)).sum())
    assert abs(accepted.sum() - probability.sum()) < 4 * error
    for new, old, proposed in zip(after, before, proposal, strict=True):
        taken = accepted.reshape([-1] + [1] * (new.ndim - 1))
        np.testing.assert_array_equal(new, np.where(taken, proposed, old))


def test_it_runs_where_blackjax_runs_its_own(chain):
    assert isinstance(chain, blackjax.SamplingAlgorithm)
    start = jax.tree.map(lambda leaf: leaf[0], start_exact(chain))
    final, (states, infos) = blackjax.util.run_inference_algorithm(
        jax.random.key(4), chain, 1_000, initial_state=start
    )
    assert states.position.shape == (1_000, 2) and infos.is_accepted.shape == (1_000,)
    np.testing.assert_array_equal(final.position, states.position[-1])
    x = np.asarray(states.position)[None]
    batches = x[0].reshape(20, 50, 2).mean(1)  # far longer than the chain remembers
    assert np.all(np.abs(batches.mean(0) - MEAN) < 4.0 * batches.std(0, ddof=1) / 20**0.5)
    stayed = ~np.asarray(infos.is_accepted[1:])
    np.testing.assert_array_equal(np.all(np.diff(x[0], axis=0) == 0, axis=1), stayed)


def test_a_start_among_draws_is_chosen_by_weight(poor):
    keys = jax.random.split(jax.random.key(6), 600)
    starts = jax.jit(jax.vmap(lambda key: init_from_draws(key, poor)))(keys)
    assert isinstance(starts, OneStepMHState)
    x = np.asarray(starts.position)
    # Four standard errors, and a little for the bias of a choice among 64.
    assert np.all(np.abs(x.mean(0) - MEAN) < 0.2)
    assert np.all(np.abs(np.cov(x.T) - COVARIANCE) < 0.4)
    np.testing.assert_allclose(
        starts.logdensity, jax.vmap(TARGET.log_density)(starts.position), atol=1e-3
    )


def test_a_start_without_a_weight_is_left_with_the_first_proposal(poor):
    @flax.struct.dataclass
    class Lost(type(poor.one_step)):
        """One whose map cannot be inverted anywhere."""

        def log_weight(self, *args, **kwargs):
            return jnp.full(1, jnp.nan)

    fields = {f.name: getattr(poor.one_step, f.name) for f in dataclasses.fields(poor.one_step)}
    trained = dataclasses.replace(poor, one_step=Lost(**fields))
    state = init(jnp.array([50.0, 50.0]), trained)
    assert float(state.log_weight) == -np.inf and np.isfinite(state.logdensity)
    state, info = jax.jit(build_kernel(trained))(jax.random.key(0), state)
    assert bool(info.is_accepted) and float(info.acceptance_rate) == 1.0
    np.testing.assert_array_equal(state.position, info.proposal.position)


def test_what_is_no_sampler_or_position_is_refused(poor):
    with pytest.raises(TypeError, match="trained must be a TrainedSampler"):
        one_step_mh(poor.one_step)
    with pytest.raises(ValueError, match="num_steps=3"):
        one_step_mh(poor, 3)
    for make in (one_step_mh, build_kernel):
        with pytest.raises(ValueError, match="method must be one of"):
            make(poor, method="heuristic")
    for position in (jnp.zeros(3), jnp.zeros((4, 2)), 0.0):
        with pytest.raises(ValueError, match=r"position must be one point \[2\]"):
            one_step_mh(poor).init(position)
    with pytest.raises(ValueError, match="init needs an rng_key here"):
        one_step_mh(off("mixture")).init(jnp.zeros(2))
    with pytest.raises(ValueError, match="init needs an rng_key here"):
        one_step_mh(poor, method="path").init(jnp.zeros(2))


# ---- BlackJAX's kernels as corrections

MALA = {"step_size": 0.2}
KERNELS = {
    "hmc": (None, {"num_moves": 15, "num_integration_steps": 4}),
    "nuts": (blackjax.nuts, {"num_moves": 8, "max_num_doublings": 5, "step_size": 0.6}),
    "mala": (blackjax.mala, {"num_moves": 60, **MALA}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_leave_exact_draws_and_repair_wrong_ones(name):
    kernel, arguments = KERNELS[name]
    x = exact(7)
    wrong = 1.5 * jax.random.normal(jax.random.key(8), (NUM_CHAINS, 2)) - 1.0
    with pytest.raises(AssertionError):
        check_follows_target(wrong)
    both = jnp.concatenate([x, wrong])
    moved, rate = move(jax.random.key(7), both, TARGET.log_density, kernel, **arguments)
    assert 0.3 < float(rate) <= 1.0
    check_follows_target(moved[:NUM_CHAINS])
    check_follows_target(moved[NUM_CHAINS:])
    assert np.abs(np.asarray(moved[:NUM_CHAINS] - x)).mean() > 0.3


def test_moved_draws_keep_weights_that_stay_valid():
    """Points of N(0, 2² I) and their weights: E[w f] is Z E[f] before and after few moves."""
    x = 2.0 * jax.random.normal(jax.random.key(10), (8_000, 2))
    log_proposal = jax.vmap(lambda x: jax.scipy.stats.norm.logpdf(x, scale=2.0).sum())(x)
    log_density = jax.vmap(TARGET.log_density)(x)
    draws = Draws(x, log_density - log_proposal, log_density, bound="lower")
    mala = blackjax.mala
    moved, _ = move(jax.random.key(11), draws, TARGET.log_density, mala, num_moves=1, **MALA)
    assert moved.bound == "lower"
    np.testing.assert_array_equal(moved.log_weight, draws.log_weight)
    new_density = jax.vmap(TARGET.log_density)(moved.position)
    np.testing.assert_allclose(moved.log_density, new_density, rtol=1e-5)
    weight = np.exp(np.asarray(moved.log_weight, np.float64) - float(TARGET.log_z))
    away = np.asarray(moved.position, np.float64) - MEAN
    for f, truth in ((away[:, 0], 0.0), (away[:, 0] ** 2, 1.5), (away[:, 0] * away[:, 1], 0.4)):
        values = weight * f
        assert abs(values.mean() - truth) < 4.0 * values.std() / len(f) ** 0.5
    # Resampled, the same draws are equally weighted: none to keep.
    even, _ = move(
        jax.random.key(12),
        resample(jax.random.key(13), draws, 2_000),
        TARGET.log_density,
        mala,
        num_moves=2,
        **MALA,
    )
    assert even.log_weight is None and even.bound is None
    assert len(np.unique(np.asarray(even.position[:, 0]))) > 1_500


def test_draws_are_moved_in_chunks(monkeypatch):
    module = importlib.import_module("consistent_samplers.corrections.moves")
    x = exact(14, n=101)
    built = blackjax.mala(TARGET.log_density, **MALA)
    arguments = (jax.random.key(15), x, TARGET.log_density, built)
    whole, _ = move(*arguments, num_moves=2)
    monkeypatch.setattr(module, "_MAX_FLOATS", 60)
    parts, _ = move(*arguments, num_moves=2)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_what_is_no_kernel_is_refused():
    key, x, rho = jax.random.key(0), jnp.zeros((3, 2)), TARGET.log_density
    with pytest.raises(TypeError, match=r"as blackjax\.nuts does, or be one, got int"):
        move(key, x, rho, 3)
    with pytest.raises(TypeError, match="but made a tuple"):
        move(key, x, rho, lambda log_density: (log_density, 1))
    with pytest.raises(TypeError, match="missing a required argument: 'step_size'"):
        move(key, x, rho, blackjax.mala)
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepsize'"):
        move(key, x, rho, blackjax.nuts, stepsize=0.1)
    with pytest.raises(TypeError, match="takes no parameters"):
        move(key, x, rho, blackjax.mala(rho, 0.1), step_size=0.1)
    with pytest.raises(ValueError, match="num_moves must be"):
        move(key, x, rho, num_moves=0)
    with pytest.raises(ValueError, match="log_density must return a scalar"):
        move(key, x, lambda x: x)
    with pytest.raises(ValueError, match=r"position must be \[num_samples, dim\]"):
        move(key, x[0], rho)
