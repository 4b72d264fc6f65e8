"""What objectives share: a density outside or inside, networks and optimisers of one's own."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consistent_samplers as cs
from consistent_samplers import networks
from consistent_samplers.algorithms import Now
from consistent_samplers.algorithms.objectives import CONTROL_LOSSES
from consistent_samplers.bases import GaussianBase

TARGET = cs.targets.funnel(2)
BASE = GaussianBase(jnp.array([0.5, -0.2]), jnp.array([[1.1, 0.0], [0.3, 0.9]]))
MIXTURE = cs.bases.mixture(
    jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 0.5]]), jnp.stack([jnp.eye(2)] * 2)
)
KEY = jax.random.key(0)
CONSTRUCTORS = {"osds": cs.osds, "scds": cs.scds, "dis": cs.dis, "dds": cs.dds, "pis": cs.pis}
# Of algorithms that start from another.
STUDENTS = ("calibration", "cdds", "progressive")

VARIANTS = {
    "osds.hutchinson": {"volume": "hutchinson", "jacobian_weight": 0.1},
    "osds.structured": {"network": "structured"},
    "osds.log_variance": {"control_loss": "log_variance"},
    "scds.reverse_kl": {"control_loss": "reverse_kl"},
    **{f"dis.{loss}": {"loss": loss} for loss in CONTROL_LOSSES},
    "dis.learned": {"learned_kernels": "both"},
    "dis.replay": {"replay_share": 0.5, "replay_capacity": 64},
    "dis.mixture": {"base": MIXTURE},
    "dis.tempered": {"anneal_iterations": 10, "train_steps": (1, 2)},
}
NAMES = (*CONSTRUCTORS, *STUDENTS)
# They compile much: for the long run, but for "dis".
SLOW = ("scds", "cdds", "osds", "dds", "pis", "calibration", "progressive")


def slow(name: str):
    return pytest.param(name, marks=pytest.mark.slow)


def build(name: str, target=TARGET, *, optimizer=None, **settings) -> cs.Algorithm:
    """A small algorithm without guidance."""
    if name in STUDENTS:
        origin = build("osds" if name == "calibration" else "dis", target, **settings)
        if name == "calibration":
            return cs.calibration(origin, batch_size=8, optimizer=optimizer)
        taught = {"teacher": origin, "teacher_state": started(origin)}
        if name == "progressive":
            return cs.progressive_distillation(target, batch_size=8, optimizer=optimizer, **taught)
        return cs.cdds(
            target, num_points=2, max_steps=2, batch_size=8, optimizer=optimizer, **taught
        )
    small = {"base": BASE, "max_steps": 2, "batch_size": 8, "hidden": (8,), "guidance": None}
    small |= {"optimizer": optimizer, "anneal_iterations": 0} | VARIANTS.get(name, {}) | settings
    if name.split(".")[0] in ("dis", "dds", "pis"):
        small.setdefault("train_steps", (2,))  # each number of them is compiled
    elif name.split(".")[0] == "scds":
        small.setdefault("first_steps", 2)
    return CONSTRUCTORS[name.split(".")[0]](target, **small)


def started(algorithm: cs.Algorithm) -> cs.SamplerState:
    """A state whose every parameter counts: untrained last layers are zero."""
    state = algorithm.init(KEY)
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return algorithm.restart(state._replace(ema_params=jax.tree.unflatten(structure, noisy)))


def moves(before: cs.SamplerState, after: cs.SamplerState):
    return jax.tree.map(lambda a, b: np.asarray(b - a), before.params, after.params)


def check_same_moves(found, expected) -> None:
    """To rounding, measured by the largest move, which is none of rounding's."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    assert largest > 1e-5
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4 * largest + 1e-7)


@pytest.mark.parametrize(
    ("constructor", "settings", "message"),
    [
        (cs.scds, {"first_steps": 12, "max_steps": 32}, "first_steps=12 does not divide the 32"),
        (cs.scds, {"first_steps": 1.5}, "first_steps must be a positive integer"),
        (cs.scds, {"num_consistency_samples": 0}, "num_consistency_samples must be"),
        (cs.osds, {"num_consistency_samples": 2.0}, "num_consistency_samples must be"),
        (cs.dis, {"train_steps": (3,)}, "each of train_steps=3 does not divide the 4"),
        (cs.dis, {"train_steps": (2.0,)}, "each of train_steps must be an integer"),
        (cs.progressive_distillation, {"iterations_per_round": 0}, "iterations_per_round must be"),
        (cs.dis, {"max_steps": 4.0}, "max_steps must be a power of two"),
    ],
)
def test_a_number_that_is_refused_is_called_by_its_name(constructor, settings, message):
    common = {"base": BASE, "max_steps": 4, "hidden": (8,)}
    if constructor is cs.progressive_distillation:
        teacher = cs.dis(TARGET, **common)
        common = {"teacher": teacher, "teacher_state": teacher.init(KEY)}
    with pytest.raises(ValueError, match=message):
        constructor(TARGET, **common | settings)


def test_numbers_of_numpy_are_numbers():
    algorithm = cs.dis(
        TARGET, base=BASE, max_steps=np.int64(4), hidden=(8,), train_steps=(np.int64(2),)
    )
    assert type(algorithm.max_steps) is int and type(algorithm.objective.train_steps[0]) is int
    draws = algorithm.sample(KEY, algorithm.init(KEY), 10, np.int64(2), weights=False)
    assert draws.position.shape == (10, 2)


@pytest.mark.parametrize(
    ("constructor", "settings", "fewest"),
    [
        (cs.dis, {}, 2),
        (cs.dis, {"loss": "reverse_kl"}, 1),
        (cs.scds, {}, 2),
        (cs.osds, {"control_loss": "log_variance"}, 2),
        (cs.osds, {}, 1),
        (cs.algorithms.cmcd, {}, 2),
        (cs.algorithms.snf, {}, 1),
    ],
)
def test_a_batch_has_as_many_draws_as_its_loss_takes(constructor, settings, fewest):
    settings = {"base": BASE, "max_steps": 2, "hidden": (8,)} | settings
    for batch_size in (fewest - 1, 8.0):
        with pytest.raises(ValueError, match=r"batch_size.* must be"):
            constructor(TARGET, batch_size=batch_size, **settings)
    assert constructor(TARGET, batch_size=fewest, **settings).objective.batch_size == fewest


# ---- the density


@pytest.mark.parametrize("name", ["dis", *SLOW, *VARIANTS])
@pytest.mark.slow
def test_a_density_outside_teaches_what_one_inside_does(name):
    # No Adam, which makes a whole step of a gradient that is rounding alone.
    algorithm = build(name, optimizer=optax.sgd(1e-2))
    assert algorithm.asks_outside
    state = started(algorithm)
    outside, info = algorithm.step(KEY, state)
    inside, same = jax.jit(algorithm.step)(KEY, state)
    chex.assert_tree_all_finite((outside.params, info))
    assert float(info.gradient_norm) > 1e-3
    chex.assert_trees_all_close(info, same, rtol=1e-4, atol=1e-5)
    check_same_moves(moves(state, outside), moves(state, inside))
    chex.assert_trees_all_close(outside.ema_params, inside.ema_params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(outside.memory, inside.memory, rtol=1e-4, atol=1e-4)
    assert outside.iteration == inside.iteration == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dis", slow("osds")])
def test_what_fit_repeats_is_the_step_with_a_key_of_each_iteration(name):
    algorithm = build(name)
    state = started(algorithm)
    first, _ = algorithm.advance(KEY, state)
    second, info = algorithm.advance(KEY, first)
    by_hand = algorithm.step(jax.random.fold_in(KEY, 1), first)
    chex.assert_trees_all_close((second, info), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dis", *map(slow, [*SLOW, "dis.trajectory_balance"])])
def test_nothing_of_ours_is_compiled_with_the_density(name):
    traces = 0

    def log_density(x):
        nonlocal traces
        traces += 1
        return -0.5 * jnp.sum((x - 1.0) ** 2)

    target = cs.Target(log_density, 2)
    before = traces
    algorithm = build(name, target)
    state = cs.fit(KEY, algorithm, 3, progress_bar=False).state
    for num in (100, 1_500):
        draws = algorithm.sample(KEY, state, num)
        algorithm.reverse_log_weight(KEY, state, draws.position)
    # Values, and values with gradients, however much is computed with them.
    assert 1 <= traces - before <= 3


@pytest.mark.slow
def test_a_guided_control_has_the_density_inside():
    algorithm = build("osds", guidance="ratio")
    assert not algorithm.asks_outside
    state = started(algorithm)
    here, there = algorithm.step(KEY, state), jax.jit(algorithm.step)(KEY, state)
    chex.assert_trees_all_close(here[1], there[1], rtol=1e-4, atol=1e-5)


# ---- networks and optimisers of one's own


class Bent(nn.Module):
    """One hidden layer over everything."""

    dim: int

    @nn.compact
    def __call__(self, x, t, d):
        """The control."""
        hidden = jnp.tanh(nn.Dense(4)(jnp.concatenate([x, jnp.stack([t, d])])))
        return nn.Dense(self.dim)(hidden)


PAIR = networks.Network(
    init=lambda rng_key: {"w": 0.1 * jax.random.normal(rng_key, (2, 2)), "b": jnp.zeros(2)},
    apply=lambda params, x, t, d: params["w"] @ jnp.tanh(x) + (1.0 + t + d) * params["b"],
)
OWN = {"module": Bent(2), "pair": PAIR}


def gradient(algorithm: cs.Algorithm, rng_key, state: cs.SamplerState):
    """Of the loss, by differentiating it as it is written."""
    density = algorithm.target.log_density
    inside = jax.grad(density) if algorithm.control.guided else None
    now = Now(rng_key, algorithm.control, state, algorithm.extra, inside)

    def loss(params):
        return sum(algorithm.objective(params, now, jax.vmap(density)).parts)

    return jax.jit(jax.grad(loss))(state.params)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("osds", "pair"),
        ("dis", "module"),
        *(
            pytest.param(name, own, marks=pytest.mark.slow)
            for name in NAMES
            for own in OWN
            if (name, own) not in (("osds", "pair"), ("dis", "module"))
        ),
    ],
)
@pytest.mark.slow
def test_a_network_of_ones_own_learns_by_an_optimiser_of_ones_own(name, own):
    settings = {"gradient_clip": 1e9} if name == "scds" else {}
    algorithm = build(name, network=OWN[own], optimizer=optax.sgd(1e-3), **settings)
    assert algorithm.control.network is OWN[own]
    state = started(algorithm)
    assert set(state.params) == {"control"}
    after, info = algorithm.step(KEY, state)
    grads = gradient(algorithm, KEY, state)
    check_same_moves(moves(state, after), jax.tree.map(lambda g: np.asarray(-1e-3 * g), grads))
    if name != "scds":  # which clips the gradients of its parts
        np.testing.assert_allclose(info.gradient_norm, optax.tree.norm(grads), rtol=1e-3)
    draws = algorithm.sample(KEY, after, 20, 1, method="map")
    chex.assert_tree_all_finite((draws.position, draws.log_weight))
    # Its own map and no other: the base draws, moved by the network.
    u = algorithm.control.bind(after.ema_params)
    key_base = jax.random.split(jax.random.fold_in(KEY, 3))[0]
    z0 = jax.random.normal(key_base, (2,))
    z1 = cs.simulate.flow_map(u, algorithm.control.process, z0, 1)
    np.testing.assert_allclose(draws.position[3], BASE.unwhiten(z1, ()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_guided_network_of_ones_own_learns_with_its_gate():
    algorithm = build("osds", guidance="ratio", network=PAIR, optimizer=optax.sgd(1e-3))
    state = started(algorithm)
    assert set(state.params) == {"control", "gate"}
    after, _ = algorithm.step(KEY, state)
    expected = jax.tree.map(lambda g: np.asarray(-1e-3 * g), gradient(algorithm, KEY, state))
    check_same_moves(moves(state, after), expected)


def test_a_network_is_shown_the_component_of_a_mixture_if_it_takes_it():
    class Featured(nn.Module):
        """A shift for each component."""

        @nn.compact
        def __call__(self, x, t, d, features=None):
            """The control."""
            return nn.Dense(2)(features)

    algorithm = build("osds", base=MIXTURE, network=Featured())
    state = started(algorithm)
    after, info = algorithm.step(KEY, state)
    chex.assert_tree_all_finite((after, info))
    first, second = (
        algorithm.control.bind(after.params, jnp.asarray(k))(
            jnp.zeros(2), jnp.zeros(()), jnp.ones(())
        )
        for k in (0, 1)
    )
    assert float(jnp.abs(first - second).max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_optimiser_is_refused(name):
    with pytest.raises(TypeError, match="optimizer must be an optax transformation"):
        build(name, optimizer=1e-3)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_what_is_no_network_is_refused(name):
    with pytest.raises(TypeError, match="network must be 'general'"):
        build(name, network=jnp.tanh)
    with pytest.raises(TypeError, match=r"to a control \[2\], but Bent to \[3\]"):
        build(name, network=Bent(3))


@pytest.mark.slow
def test_settings_of_an_algorithm_make_its_optimiser():
    algorithm = build("osds", learning_rate=0.1, gradient_clip=1e-3)
    state = started(algorithm)
    grads = gradient(algorithm, KEY, state)
    adam = optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(0.1))
    updates, _ = adam.update(grads, adam.init(state.params), state.params)
    after, _ = algorithm.step(KEY, state)
    chex.assert_trees_all_close(
        moves(state, after), jax.tree.map(np.asarray, updates), rtol=1e-2, atol=1e-3
    )
