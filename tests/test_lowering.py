"""What users run is lowered for TPU and CUDA as well, so that no operation without a lowering for
them slips in."""

import re

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


# What a factorisation is called on the two: on CUDA two kernels, on TPU a call of the compiler.
FACTORISATION = {"cusolver_getrf_ffi", "cu_lu_pivots_to_permutation", "LuDecomposition"}


def lower(function, *arguments):
    """The function's module for both platforms."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).mlir_module()


def check(function, *arguments, calls=frozenset()):
    """Lowers a function: its results are what it computes here, and it calls nothing but ``calls``.

    Whatever else it does is then made of operations that every platform has.
    """
    module = lower(function, *arguments)
    (main,) = re.findall(r"func\.func public @main\(.*", module)
    found = re.findall(r"tensor<([^>]*)>", main.split("->")[1])
    shapes = jax.tree.leaves(jax.eval_shape(function, *arguments))
    kinds = {"float32": "f32", "int32": "i32", "bool": "i1", "uint32": "ui32"}
    assert found == ["x".join([*map(str, s.shape), kinds[s.dtype.name]]) for s in shapes]
    assert set(re.findall(r"custom_call @(\w+)", module)) == set(calls)


def data(key):
    """A key as export takes it."""
    return jax.random.key_data(key)


@pytest.mark.parametrize("name", [*NAMES, "calibration", "mixture", "structured"])
@pytest.mark.slow
def test_training_steps(name):
    algorithm = build(name)
    state = algorithm.init(KEY)

    def step(key, state):
        state, info = algorithm.step(jax.random.wrap_key_data(key), state)
        return jax.tree.leaves(state), jax.tree.leaves(info)

    # Small determinants are eliminated by hand where they are differentiated; a student's are not.
    calls = FACTORISATION if name == "cdds" else ()
    check(lambda key: step(key, state), data(KEY), calls=calls)


@pytest.mark.parametrize("name", ["osds", "cdds", "dis", "mixture", "structured"])
@pytest.mark.slow
def test_draws_of_every_kind_and_their_evidence(name):
    algorithm = build(name)
    state = algorithm.init(KEY)

    def run(key, method, weights):
        key = jax.random.wrap_key_data(key)
        draws = algorithm.sample(key, state, 30, 2, method=method, weights=weights)
        return jax.tree.leaves((draws, cs.evidence(draws) if weights else ()))

    for method in algorithm.methods:
        for weights in (False, True):
            calls = FACTORISATION if weights and method == "map" and name != "structured" else ()
            check(lambda key, m=method, w=weights: run(key, m, w), data(KEY), calls=calls)


@pytest.mark.parametrize("name", ["osds", "dis", "structured"])
def test_reverse_weights_and_round_trips(name):
    algorithm = build(name)
    state, control = algorithm.init(KEY), algorithm.control
    gradient = jax.grad(TARGET.log_density) if control.guided else None

    def run(key, x):
        key = jax.random.wrap_key_data(key)
        weights = [
            algorithm.reverse_log_weight(key, state, x, 2, method=method)
            for method in algorithm.methods
            if method != "heuristic"
        ]
        return weights, control.round_trip(state.ema_params, key, 2, gradient)

    calls = () if name == "structured" else FACTORISATION
    check(run, data(KEY), jnp.zeros((5, 3)), calls=calls)


def test_an_operation_without_a_lowering_is_noticed():
    """LAPACK's Schur decomposition exists on the CPU only: the guard would see its like."""
    with pytest.raises(NotImplementedError):
        lower(lambda x: jax.scipy.linalg.schur(x)[0], jnp.eye(3))
