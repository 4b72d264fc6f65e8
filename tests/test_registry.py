"""Values written as JSON and arrays, and read again."""

import dataclasses
import json
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import consistent_samplers as cs
from consistent_samplers import registry
from consistent_samplers.registry import EncodeError


def again(value):
    """A value through encoding, JSON text and decoding."""
    encoded, arrays = registry.encode(value)
    text = json.dumps(encoded, allow_nan=False)
    return registry.decode(json.loads(text), arrays)


def same(a, b):
    if isinstance(a, np.ndarray | jax.Array):
        assert isinstance(b, jax.Array)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and a.shape == b.shape
    elif isinstance(a, dict):
        assert type(a) is type(b) and list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, float) and np.isnan(a):
        assert np.isnan(b)
    else:
        assert type(a) is type(b) and a == b


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.int32, np.bool_, np.uint8]), hnp.array_shapes(max_dims=3)
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    ARRAYS,
    st.sampled_from([np.dtype("float32"), np.dtype("int8"), jnp.dtype("bfloat16")]),
    st.floats(width=32, allow_nan=False).map(np.float32),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_nested_values_come_back(value):
    same(value, again(value))


def test_keys_of_dictionaries_may_look_like_tags():
    for value in ({"tuple": [1]}, {"class": "x", "of": {}}, {"array": 0}, {"dict": {"float": "1"}}):
        assert again(value) == value


def test_numbers_keep_what_they_are():
    assert type(again(np.float64(0.1))) is np.float64
    assert type(again(np.float32(0.1))) is np.float32 and again(np.float32(0.1)) == np.float32(0.1)
    assert again(-0.0).hex() == "-0x0.0p+0" and again(float("-inf")) == -float("inf")
    assert again(jnp.float32) == jnp.dtype("float32") == again(np.float32)
    assert again(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


def test_bases_come_back():
    base = cs.bases.GaussianBase(jnp.arange(2.0), jnp.array([[1.0, 0.0], [0.5, 2.0]]))
    found = again(base)
    assert type(found) is cs.bases.GaussianBase
    jax.tree.map(np.testing.assert_array_equal, base, found)

    locs = jnp.array([[0.0, 0.0], [3.0, 1.0]])
    mixture = cs.bases.mixture(jnp.log(jnp.array([0.3, 0.7])), locs, jnp.stack([jnp.eye(2)] * 2))
    found = again(mixture)
    assert type(found) is cs.bases.MixtureBase
    assert jax.tree.structure(found) == jax.tree.structure(mixture)
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(found.log_prob(x), mixture.log_prob(x))


def test_modules_come_back_without_where_they_are_mounted():
    module = cs.networks.StepConditionedMLP(dim=3, hidden=(8, 4), dtype=jnp.bfloat16, name="inner")
    encoded, _ = registry.encode(module)
    assert not {"parent", "name"} & encoded["of"]["dict"].keys()
    found = again(module)
    assert type(found) is type(module) and found.hidden == (8, 4) and found.dim == 3
    assert jnp.dtype(found.dtype) == jnp.bfloat16 and found.name is None


def test_states_of_optimisers_come_back():
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(0.1))
    )
    state = optimizer.init(params)
    found = again(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    optimizer.update(params, found, params)


@registry.register
@dataclasses.dataclass
class Ring:
    radius: float
    centre: jax.Array
    cached: int = dataclasses.field(default=0, init=False)


@registry.register
class Pair(NamedTuple):
    first: Ring
    second: tuple


@registry.register
class Own:
    def __init__(self, x):
        self.x = x

    def to_arrays(self):
        return {"x": self.x}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["x"])


@registry.register
class Net(nn.Module):
    width: int
    settings: dict

    def __call__(self, x):
        return nn.Dense(self.width)(x)


class Stranger(NamedTuple):
    x: int


def test_registered_classes_come_back():
    value = Pair(Ring(2.0, jnp.ones(2)), (Own(np.arange(3)), None))
    found = again(value)
    assert type(found) is Pair and type(found.first) is Ring
    assert found.first.radius == 2.0 and found.first.centre.tolist() == [1.0, 1.0]
    assert type(found.second[0]) is Own and found.second[0].x.tolist() == [0, 1, 2]
    net = again(Net(4, {"a": (1, 2)}))
    assert net == Net(4, {"a": (1, 2)})


def test_names_are_kept_unless_given():
    assert registry.encode(Own(0))[0]["class"] == f"{__name__}:Own"

    @dataclasses.dataclass
    class Named:
        x: int

    registry.register(Named, "a name of its own")
    assert registry.encode(Named(1))[0]["class"] == "a name of its own"
    assert again(Named(1)) == Named(1)
    with pytest.raises(ValueError, match="already the name"):
        registry.register(Ring, "a name of its own")
    with pytest.raises(ValueError, match="another package"):
        registry.register(Ring, "consistent_samplers.bases.gaussian:GaussianBase")


def test_a_class_may_be_defined_again():
    def define():
        @dataclasses.dataclass
        class Cell:
            x: int

        return registry.register(Cell)

    first, second = define(), define()
    encoded = registry.encode(first(1))
    assert type(registry.decode(*encoded)) is second


@pytest.mark.parametrize("thing", [int, object, len, type("Empty", (), {}), 3])
def test_what_cannot_be_registered_is_refused(thing):
    with pytest.raises(TypeError, match="to_arrays"):
        registry.register(thing)


@pytest.mark.parametrize(
    "value",
    [
        Stranger(1),
        lambda x: x,
        jnp.sin,
        nn.silu,
        optax.adam(1e-3),
        {1: 2},
        {1, 2},
        1j,
        np.array([object()]),
        jax.random.key(0),
        cs.schedules.Schedule(rate=lambda t: t, integral=lambda a, b: b - a),
        jax.tree_util.Partial(jnp.sum, 1.0),
    ],
)
def test_what_is_unknown_is_refused(value):
    with pytest.raises(EncodeError):
        registry.encode([value])


def test_messages_name_the_class_and_the_remedy():
    with pytest.raises(
        EncodeError, match=r"test_registry:Stranger.*register_base.*register_network"
    ):
        registry.encode(Stranger(1))
    with pytest.raises(EncodeError, match=r"nobody:Knows.*Import the module"):
        registry.decode({"class": "nobody:Knows", "of": {"dict": {}}}, [])


def test_classes_of_users_can_be_refused():
    registry.encode(cs.bases.standard_normal(2), users=False)
    with pytest.raises(EncodeError):
        registry.encode((1, Own(0)), users=False)


def test_a_traced_array_is_refused():
    with pytest.raises(EncodeError, match="jit"):
        jax.jit(lambda x: registry.encode(x)[1])(1.0)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "antigravity:x",
        "subprocess:Popen",
        "json.tool:main",
        "consistent_samplers_evil:Base",
        "jaxevil:Base",
        "consistent_samplers.registry:sys.modules",
        "consistent_samplers.registry:importlib.import_module",
        "consistent_samplers.registry:encode",
        "consistent_samplers.registry:EncodeError",
        "consistent_samplers.registry:np.dtype",
        "consistent_samplers.no.such:Thing",
        "consistent_samplers.registry:",
        "flax.core:FrozenDict",
        "jax.numpy:ndarray",
        "",
    ],
)
def test_nothing_else_is_imported_or_called(name, monkeypatch):
    imported = []
    real = registry.importlib.import_module
    monkeypatch.setattr(
        registry.importlib, "import_module", lambda n: (imported.append(n), real(n))[1]
    )
    with pytest.raises(EncodeError):
        registry.decode({"class": name, "of": {"dict": {}}}, [])
    allowed = ("consistent_samplers.", "jax.", "flax.", "optax.")
    assert all(n.startswith(allowed) for n in imported)


@pytest.mark.parametrize(
    "damaged",
    [
        {"array": 3},
        {"what": 1},
        {"tuple": [{"x": 1}]},
        {"class": "consistent_samplers.bases.gaussian:GaussianBase", "of": {"dict": {"loc": 1}}},
        {"float": "no number"},
        {"scalar": 1, "dtype": "float33"},
        {"dtype": "nothing"},
        {"dict": [1]},
        {"tuple": 1},
        {"class": 1, "of": {"dict": {}}},
        {"class": "consistent_samplers.bases.gaussian:GaussianBase", "of": 1},
        {"array": "x"},
    ],
)
def test_damaged_values_are_refused(damaged):
    with pytest.raises(EncodeError):
        registry.decode(damaged, [np.zeros(1)])


def test_our_classes_need_no_import():
    code = """
import sys
from consistent_samplers import registry
assert "consistent_samplers.bases" not in sys.modules
name = "consistent_samplers.bases.gaussian:GaussianBase"
json = {"class": name, "of": {"dict": {"loc": 1, "scale_tril": 2}}}
print(registry.decode(json, []))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert out.strip() == "GaussianBase(loc=1, scale_tril=2)"
