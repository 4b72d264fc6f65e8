"""Half precision on the stochastic paths of training, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers import simulate

NUM_STEPS = 8
BASE = cs.bases.standard_normal(2)


def target():
    return cs.targets.gaussian(jnp.array([0.5, -1.0]), jnp.array([[0.5, 0.1], [0.1, 1.5]]))


def moved(params):
    """Parameters that do something."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def build(path_dtype, algorithm=cs.dis):
    return algorithm(
        target(), base=BASE, max_steps=NUM_STEPS, hidden=(16,), batch_size=16, path_dtype=path_dtype
    )


def test_weights_of_half_precision_paths_have_mean_z():
    algorithm = build(jnp.bfloat16)
    params = moved(algorithm.init(jax.random.key(0)).params)

    log_density = BASE.whitened_log_density(target().log_density, ())

    def log_weights(control):
        @jax.jit
        @jax.vmap
        def one(key, x0):
            return simulate.stochastic_path(
                key, x0, control.kernels(params), log_density, NUM_STEPS
            ).log_weight

        keys = jax.random.split(jax.random.key(1), 20_000)
        return np.asarray(one(keys, jax.random.normal(jax.random.key(2), (20_000, 2))), np.float64)

    half, full = log_weights(algorithm.control.on_training_paths()), log_weights(algorithm.control)
    gap = np.abs(half - full)
    # Other paths, by more than float32's rounding and less than a control of another kind.
    assert 1e-4 < np.median(gap) < 0.5
    weight = np.exp(half - target().log_z)
    error = (weight.mean() - 1.0) / (weight.std() / np.sqrt(len(weight)))
    assert abs(error) < 4.0  # false alarms: 6e-5


@pytest.mark.parametrize("algorithm", [cs.dis, cs.osds, cs.scds], ids=["dis", "osds", "scds"])
def test_training_paths_are_in_half_precision_and_parameters_are_not(algorithm):
    half, full = build(jnp.bfloat16, algorithm), build(None, algorithm)
    state = half.init(jax.random.key(0))
    assert "bf16" in str(jax.make_jaxpr(half.step)(jax.random.key(2), state))
    assert "bf16" not in str(jax.make_jaxpr(full.step)(jax.random.key(2), state))
    after, info = jax.eval_shape(half.step, jax.random.key(2), state)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((after.params, info.loss)))


@pytest.mark.parametrize("method", ["path", "map"])
def test_draws_and_their_weights_are_in_full_precision(method):
    half, full = build(jnp.bfloat16), build(None)
    state = half.init(jax.random.key(0))
    state = state._replace(params=moved(state.params), ema_params=moved(state.ema_params))
    a, b = (x.sample(jax.random.key(1), state, 8, 4, method=method) for x in (half, full))
    np.testing.assert_array_equal(a.log_weight, b.log_weight)


def test_structured_networks_refuse_another_precision():
    with pytest.raises(ValueError, match="path_dtype"):
        cs.osds(target(), base=BASE, network="structured", guidance=None, path_dtype=jnp.bfloat16)


def test_full_precision_paths_are_the_controls_own():
    control = build(None).control
    assert control.on_training_paths() is control
