"""What users run is lowered for TPU and CUDA as well, so that no operation without a lowering for
them slips in."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

import consistent_samplers as cs

KEY = jax.random.key(0)
TARGET = cs.targets.funnel(3)
BASE = cs.bases.standard_normal(3, 1.5)
MIXTURE = cs.bases.mixture(
    jnp.zeros(2), jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), jnp.stack([jnp.eye(3)] * 2)
)
PLATFORMS = ("cuda", "tpu")
SETTINGS = {"max_steps": 4, "hidden": (8,)}


def build(name):
    if name == "cdds":
        teacher = cs.dis(TARGET, base=BASE, **SETTINGS)
        state = teacher.init(KEY)
        return cs.cdds(TARGET, teacher=teacher, teacher_state=state, num_points=4)
    if name == "mixture":
        return cs.osds(TARGET, base=MIXTURE, guidance=None, **SETTINGS)
    if name == "structured":
        return cs.osds(TARGET, base=BASE, guidance=None, network="structured", **SETTINGS)
    if name == "calibration":
        return cs.calibration(cs.osds(TARGET, base=BASE, **SETTINGS))
    if name == "osds.paper":
        return cs.osds.paper(TARGET, base=BASE, **SETTINGS)
    return {"osds": cs.osds, "scds": cs.scds, "dis": cs.dis, "dds": cs.dds, "pis": cs.pis}[name](
        TARGET, base=BASE, **SETTINGS
    )


NAMES = ("osds", "osds.paper", "scds", "cdds", "dis", "dds", "pis")


def lower(function, *arguments):
    """The function's module for both platforms."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).mlir_module()


def data(key):
    """A key as export takes it."""
    return jax.random.key_data(key)


@pytest.mark.parametrize("name", [*NAMES, "calibration", "mixture", "structured"])
def test_training_steps(name):
    algorithm = build(name)
    state = algorithm.init(KEY)

    def step(key, state):
        state, info = algorithm.step(jax.random.wrap_key_data(key), state)
        return jax.tree.leaves(state), jax.tree.leaves(info)

    assert "func.func" in lower(lambda key: step(key, state), data(KEY))


@pytest.mark.parametrize("name", ["osds", "cdds", "dis", "mixture", "structured"])
def test_draws_of_every_kind_and_their_evidence(name):
    algorithm = build(name)
    params = algorithm.init(KEY).ema_params

    def run(key, bound):
        keys = jax.random.split(jax.random.wrap_key_data(key), 30)
        draws = jax.vmap(lambda key: algorithm.per_draw.draw(params, key, 2, bound))(keys)
        if bound is None:
            return draws.position
        return jax.tree.leaves(cs.evidence(draws))

    for bound in (None, *algorithm.bounds):
        assert "func.func" in lower(lambda key, bound=bound: run(key, bound), data(KEY))


@pytest.mark.parametrize("name", ["osds", "dis", "structured"])
def test_reverse_weights_and_round_trips(name):
    algorithm = build(name)
    params = algorithm.init(KEY).ema_params

    def run(key, x):
        key = jax.random.wrap_key_data(key)
        weights = [
            algorithm.per_draw.reverse(params, key, x, 2, bound)
            for bound in algorithm.bounds
            if bound != "heuristic"
        ]
        return weights, algorithm.per_draw.round_trip(params, key, 2)

    assert "func.func" in lower(run, data(KEY), jnp.zeros(3))


def test_an_operation_without_a_lowering_is_noticed():
    """LAPACK's Schur decomposition exists on the CPU only: the guard would see its like."""
    with pytest.raises(NotImplementedError):
        lower(lambda x: jax.scipy.linalg.schur(x)[0], jnp.eye(3))
