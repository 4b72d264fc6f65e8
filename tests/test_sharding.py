"""Eight virtual devices give what one gives; pmap and shard_map take the parts as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import consistent_samplers as cs
from consistent_samplers import sharding

KEY = jax.random.key(0)
TARGET = cs.targets.gaussian(jnp.array([1.0, -1.0]), jnp.array([[2.0, 0.6], [0.6, 0.5]]))
BASE = cs.bases.standard_normal(2, 1.5)


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    return sharding.data_mesh(jax.devices()[:8])


def close(one, many):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, many)


def noisy(state):
    """The state with noise on every parameter: a control that is not zero, for draws that tell."""
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    return state._replace(params=params, ema_params=params)


def check_moved(draws, algorithm, *settings, **named):
    """The draws are not those of the untrained network: what made them was not the identity."""
    unmoved = algorithm.sample(KEY, algorithm.init(KEY), len(draws.position), *settings, **named)
    assert float(jnp.abs(draws.position - unmoved.position).max()) > 0.1
    if draws.log_weight is not None:
        assert float(jnp.abs(draws.log_weight - unmoved.log_weight).max()) > 0.05


SETTINGS = {"max_steps": 4, "hidden": (8,)}
ALGORITHMS = {
    "osds": lambda batch: cs.osds(TARGET, base=BASE, batch_size=batch, **SETTINGS),
    "calibration": lambda batch: cs.calibration(
        cs.osds(TARGET, base=BASE, **SETTINGS), batch_size=batch
    ),
    "dis": lambda batch: cs.dis(
        TARGET, base=BASE, batch_size=batch, train_steps=[4], loss="log_variance", **SETTINGS
    ),
}


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        pytest.param("calibration", 64, marks=pytest.mark.slow),
        ("dis", 12),  # does not divide
        pytest.param("dis", 64, marks=pytest.mark.slow),
        pytest.param("osds", 64, marks=pytest.mark.slow),
    ],
)
def test_training_is_the_same_on_eight_devices(mesh, name, batch_size):
    algorithm = ALGORITHMS[name](batch_size)
    start = noisy(algorithm.init(KEY))
    settings = {"state": start, "progress_bar": False, "chunk_size": 4}
    one = cs.fit(KEY, algorithm, 4, **settings)
    many = cs.fit(KEY, algorithm, 4, mesh=mesh, **settings)
    close(one.history, many.history)
    close(one.state.params, many.state.params)
    # Four iterations with a rate of their own each: much further than the two may differ.
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.state.params, start.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    leaf = jax.tree.leaves(many.state.params)[0]
    assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8


def test_batches_are_really_split(mesh):
    """Each device holds an eighth: not all of it, eight times."""

    def spread(x):
        return sharding.shard_batch({"x": x, "odd": x[:3]})

    with sharding.on_mesh(mesh):
        parts = jax.jit(spread)(jnp.ones((64, 2)))
    assert parts["x"].sharding.shard_shape((64, 2)) == (8, 2)
    assert parts["odd"].sharding.shard_shape((3, 2)) == (3, 2)
    # The compiled step works on an eighth, too: the samples' gradients are summed over devices.
    algorithm = ALGORITHMS["dis"](64)
    state = algorithm.init(KEY)
    with sharding.on_mesh(mesh):
        step = jax.jit(algorithm.step).lower(KEY, sharding.replicate(state, mesh))
    assert "all-reduce" in step.compile().as_text()


@pytest.mark.parametrize("num_samples", [64, 61])
@pytest.mark.parametrize(("method", "weights"), [("map", False), ("path", True), ("map", True)])
def test_draws_are_the_same_on_eight_devices(mesh, num_samples, method, weights):
    algorithm = cs.osds(TARGET, base=BASE, guidance=None, **SETTINGS)
    state = noisy(algorithm.init(KEY))
    settings = {"method": method, "weights": weights}
    one = algorithm.sample(KEY, state, num_samples, 2, **settings)
    many = algorithm.sample(KEY, state, num_samples, 2, mesh=mesh, **settings)
    close(one, many)
    assert len(many.position.sharding.device_set) == 8
    check_moved(one, algorithm, 2, **settings)
    if weights:
        close(cs.evidence(one), cs.evidence(many))


@pytest.mark.slow
def test_arrays_bound_to_one_device_are_taken_to_the_mesh(mesh):
    """As results of stored programs are, and what a user has put there."""
    algorithm = ALGORITHMS["osds"](64)
    density = jax.tree_util.Partial(
        lambda mean, x: -0.5 * jnp.sum((x - mean) ** 2),
        jax.device_put(jnp.ones(2), jax.devices()[0]),
    )
    algorithm = dataclasses.replace(algorithm, target=cs.Target(density, dim=2))
    key, state = jax.device_put((KEY, noisy(algorithm.init(KEY))), jax.devices()[0])
    bound = dataclasses.replace(algorithm, control=jax.device_put(algorithm.control, key.device))
    draws = [a.sample(key, state, 64, mesh=mesh) for a in (algorithm, bound)]
    close(*draws)
    trained = [cs.fit(key, a, 2, state=state, mesh=mesh).state.params for a in (algorithm, bound)]
    close(*trained)


@pytest.mark.slow
def test_meshes_of_any_shape_and_axis_type(mesh):
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    square = Mesh(devices, ("hosts", "devices"), axis_types=(AxisType.Explicit,) * 2)
    algorithm = ALGORITHMS["dis"](64)
    start = noisy(algorithm.init(KEY))
    settings = {"state": start, "progress_bar": False, "chunk_size": 4}
    close(
        cs.fit(KEY, algorithm, 4, mesh=mesh, **settings).history,
        cs.fit(KEY, algorithm, 4, mesh=square, **settings).history,
    )
    draws = algorithm.sample(KEY, start, 30, mesh=square)
    check_moved(draws, algorithm)
    close(draws, algorithm.sample(KEY, start, 30))


def test_what_eight_devices_hold_is_kept_and_loaded_on_one(mesh, tmp_path):
    algorithm = cs.osds(TARGET, base=BASE, guidance=None, **SETTINGS)
    state = noisy(algorithm.init(KEY))
    spread = sharding.replicate(state, mesh)
    cs.TrainedSampler.of(algorithm, spread).save(tmp_path)
    loaded = cs.load(tmp_path, TARGET)
    leaf = jax.tree.leaves(loaded.many_steps.params)[0]
    assert len(leaf.sharding.device_set) == 1
    draws = algorithm.sample(KEY, state, 9, 4)
    check_moved(draws, algorithm, 4)
    close(draws, loaded.sample(KEY, 9, 4))


def test_a_mesh_must_be_one():
    algorithm = ALGORITHMS["dis"](8)
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh"):
        cs.fit(KEY, algorithm, 1, mesh=jax.devices())
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh"):
        algorithm.sample(KEY, algorithm.init(KEY), 8, mesh=8)


@pytest.mark.slow
def test_the_parts_run_under_pmap_and_shard_map(mesh):
    """Simulators, losses and evidence by hand: what `mesh` does, and its equivalents."""
    algorithm = cs.osds(TARGET, base=BASE, guidance=None, **SETTINGS)
    params = sharding.replicate(noisy(algorithm.init(KEY)).ema_params, mesh)
    keys = jax.random.split(KEY, 64)

    def log_weights(params, keys):
        def one(key):
            drawn = algorithm.control.draw(params, key, 4, "path")
            return TARGET.log_density(drawn.position) + drawn.log_ratio

        return jax.vmap(one)(keys)

    def loss(params, keys):
        return cs.losses.log_variance(log_weights(params, keys)).mean()

    expected, expected_loss = log_weights(params, keys), loss(params, keys)
    # Nor are these the weights of the base: the control moves its draws.
    unmoved = log_weights(algorithm.init(KEY).ema_params, keys)
    assert np.abs(np.asarray(expected) - np.asarray(unmoved)).max() > 0.1

    by_pmap = jax.pmap(log_weights, in_axes=(None, 0), devices=jax.devices()[:8])
    close(expected, by_pmap(params, keys.reshape(8, 8)).reshape(64))

    spread = PartitionSpec("batch")
    by_shard_map = jax.jit(
        jax.shard_map(
            log_weights,
            mesh=mesh,
            in_specs=(PartitionSpec(), spread),
            out_specs=spread,
            check_vma=False,
        )
    )
    found = by_shard_map(params, keys)
    close(expected, found)
    close(
        cs.evidence(cs.Draws(jnp.zeros((64, 2)), expected, bound="lower")),
        cs.evidence(cs.Draws(jnp.zeros((64, 2)), found, bound="lower")),
    )
    # Left to the compiler: the batch is sharded, and the loss is the sum over devices.
    sharded = jax.device_put(keys, NamedSharding(mesh, spread))
    close(expected_loss, jax.jit(loss)(params, sharded))
