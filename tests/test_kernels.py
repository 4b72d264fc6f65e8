"""Programs kept on disk: the same results, nobody else's code, and no harm in a damaged file."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consistent_samplers as cs
from consistent_samplers import kernels, programs, registry, store
from consistent_samplers.bases.gaussian import GaussianBase
from consistent_samplers.kernels import kernel
from consistent_samplers.recipe import warming
from consistent_samplers.types import FlowDiagnostics

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
counts_compilations = pytest.mark.skipif(
    not hasattr(jax.monitoring, "unregister_event_duration_listener"),
    reason="a jax that does not let go of a listener",
)

# What the functions below leave when Python runs them: once for every trace.
RUNS = []


def _affine(a, tree, *, num=1):
    RUNS.append(num)
    return {"sum": num * a + tree["b"], "none": None, "pair": (a @ a, [tree["b"].sum()])}


def _flow(a):
    RUNS.append("flow")
    return FlowDiagnostics(folded=a > 0, round_trip_error=a)


def _keys(key, *, num):
    RUNS.append("keys")
    return jax.random.split(key, 3), jax.random.normal(key, (num,))


def _base(base, x, scale=2.0):
    RUNS.append("base")
    return base.log_prob(x) * scale, base


def _scaled(a, b=1.0, *, num):
    RUNS.append("scaled")
    return a * num + b


class Theirs(NamedTuple):
    x: jax.Array


@dataclasses.dataclass(frozen=True)
class Setting:
    power: int = 2


def _powered(a, *, setting):
    RUNS.append("powered")
    return a**setting.power if isinstance(setting, Setting) else a * setting[0]


def _theirs(a):
    RUNS.append("theirs")
    return Theirs(a)


def _wrong(a):
    raise ValueError(f"no such shape {a.shape}")


def _printing(a):
    jax.debug.callback(lambda x: None, a)
    return a + 1.0


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of programs of the test's own."""
    monkeypatch.setenv("CONSISTENT_SAMPLERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_warned", False)
    monkeypatch.setattr(store, "unwritable", set())
    RUNS.clear()
    return tmp_path / "cache"


def made(function, **options):
    """A kernel as a new process would have it: nothing is compiled yet."""
    return kernel(store=True, **options)(function)


def files(folder):
    return sorted(folder.glob("*/*.program"))


A, TREE = jnp.eye(3) + 0.5, {"b": jnp.arange(3.0)}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_same_as_jit_when_compiled_and_when_read(folder):
    expected = jax.jit(_affine, static_argnames="num")(A, TREE, num=3)
    RUNS.clear()
    for runs in (1, 0):
        affine = made(_affine, static=("num",))
        for _ in range(2):
            assert_same(affine(A, TREE, num=3), expected)
        assert len(RUNS) == runs
        RUNS.clear()
    assert len(files(folder)) == 1
    found = kernels.info()
    assert found.enabled and found.folder == folder and found.num_programs == 1
    assert found.num_bytes == files(folder)[0].stat().st_size
    assert str(found).startswith("1 compiled program, ")


def test_every_static_value_shape_and_type_has_its_program(folder):
    affine = made(_affine, static=("num",))
    for num in (1, 2, True, 1.0):
        assert_same(
            affine(A, TREE, num=num), jax.jit(lambda a, t, n=num: _affine(a, t, num=n))(A, TREE)
        )
    assert len(files(folder)) == 4
    assert_same(affine(A, TREE), _affine(A, TREE))
    assert len(files(folder)) == 4
    affine(A[:2, :2], {"b": jnp.zeros(2)})
    affine(A.astype(jnp.bfloat16), TREE)
    affine(A, {"b": TREE["b"], "c": None})
    assert len(files(folder)) == 7


def test_inside_of_transformations_it_is_part_of_them(folder):
    affine = made(_affine, static=("num",))

    def total(a, call=affine):
        return call(a, TREE, num=2)["pair"][0].sum() + call(a, TREE)["sum"].sum()

    def expected(a):
        return total(a, _affine)

    np.testing.assert_allclose(jax.jit(total)(A), expected(A), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(A), jax.grad(expected)(A), rtol=1e-6)
    stack = jnp.stack([A, 2 * A])
    np.testing.assert_allclose(jax.vmap(total)(stack), jax.vmap(expected)(stack), rtol=1e-6)
    hessian = jax.jit(jax.vmap(jax.hessian(total)))(stack)
    np.testing.assert_allclose(hessian, jax.vmap(jax.hessian(expected))(stack), rtol=1e-5)
    # Constants of another program, before and after it was compiled by itself.
    constant = jax.jit(lambda: affine(A, TREE, num=2)["sum"])()
    assert not folder.exists()
    assert_same(affine(A, TREE, num=2)["sum"], constant)
    assert_same(jax.jit(lambda x: x * affine(A, TREE, num=2)["sum"])(1.0), constant)
    assert_same(jax.grad(lambda x: (x * affine(A, TREE, num=2)["sum"]).sum())(1.0), constant.sum())
    with jax.disable_jit():
        assert_same(affine(A, TREE, num=2)["sum"], constant)
        assert_same(affine(A, TREE, num=7)["sum"], 7 * A + TREE["b"])


@pytest.mark.parametrize(
    "key", [jax.random.key(1), jax.random.PRNGKey(1), jax.random.key(1, impl="rbg")]
)
def test_both_styles_of_keys(key, folder):
    expected = jax.jit(_keys, static_argnames="num")(key, num=4)
    RUNS.clear()
    for _ in range(2):
        assert_same(made(_keys, static=("num",))(key, num=4), expected)
    assert len(RUNS) == 1 and len(files(folder)) == 1


def test_our_structures_and_those_of_optimisers(folder):
    state = optax.adam(1e-3).init({"w": jnp.ones(2)})
    base = GaussianBase(jnp.zeros(2), jnp.eye(2))
    expected = jax.jit(_base)(base, jnp.ones(2))
    RUNS.clear()
    for _ in range(2):
        assert isinstance(made(_flow)(jnp.ones(2)), FlowDiagnostics)
        assert_same(made(_base)(base, jnp.ones(2)), expected)
        assert_same(made(_identity)(state), state)
    assert sorted(RUNS) == ["base", "flow", "identity"]
    assert len(files(folder)) == 3


def _identity(tree):
    RUNS.append("identity")
    return tree


def test_static_arguments_are_given_by_name():
    scaled = made(_scaled, static=("num",))
    for found in (scaled(2.0, num=3), scaled(a=2.0, num=3), scaled(2.0, b=1.0, num=3)):
        assert float(found) == 7.0
    with pytest.raises(TypeError, match="needs the argument 'num'"):
        scaled(2.0)
    with pytest.raises(TypeError):
        scaled(2.0, 4.0, 5.0, num=3)
    for other in ("nothing", "b"):
        with pytest.raises(TypeError, match="no keyword-only arguments"):
            made(_scaled, static=(other,))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda n: scaled(2.0, num=n))(3)


def test_numbers_and_numpy_arrays_are_arguments(folder):
    for b in (1, 1.0, np.float32(1.0), np.ones(2, np.float32), np.ones(2), jnp.ones(2)):
        expected = jax.jit(_scaled, static_argnames="num")(np.ones(2, np.float32), b, num=2)
        for _ in range(2):
            found = made(_scaled, static=("num",))(np.ones(2, np.float32), b, num=2)
            assert_same(found, expected)
    # Python's numbers give way to the types of arrays, kept or not.
    half = made(_scaled, static=("num",))(jnp.ones(2, jnp.bfloat16), 1.0, num=2)
    assert half.dtype == jnp.bfloat16


def test_settings_of_jax_are_part_of_a_program(folder):
    affine = made(_flow)
    assert affine(jnp.ones(2)).round_trip_error.dtype == jnp.float32
    with enable_x64(True):
        assert affine(np.ones(2)).round_trip_error.dtype == jnp.float64
        assert affine(jnp.ones(2, jnp.float32)).round_trip_error.dtype == jnp.float32
    with jax.default_matmul_precision("highest"):
        affine(jnp.ones(2))
    assert len(files(folder)) == 4


@pytest.mark.parametrize("setting", [Setting(2), [2.0, Setting()], [2.0, {"of": Setting()}]])
def test_a_users_class_is_never_stored(setting, folder):
    # Not even one that checkpoints may hold: its code may change without ours.
    registry.register(Setting)
    powered = made(_powered, static=("setting",))
    np.testing.assert_allclose(powered(jnp.asarray(2.0), setting=setting), 4.0)
    assert not folder.exists()
    powered(jnp.asarray(2.0), setting=[2.0])
    assert len(files(folder)) == 1


def test_neither_are_users_structures_and_functions(folder):
    out = made(_theirs)(jnp.ones(2))
    assert isinstance(out, Theirs)
    assert made(_identity)(Theirs(jnp.ones(2))).x.shape == (2,)
    partial = jax.tree_util.Partial(lambda s, x: s * x, jnp.ones(2))
    assert made(_identity)(partial)(2.0).tolist() == [2.0, 2.0]
    # Outside of the package and without leave; with values from around its definition.
    kernel()(_flow)(jnp.ones(2))
    power = 3
    assert kernel(store=True)(lambda x: x**power)(2) == 8
    assert not folder.exists()


def test_static_arguments_without_a_hash():
    powered = made(_powered, static=("setting",))
    setting = [2.0]
    assert float(powered(jnp.asarray(3.0), setting=setting)) == 6.0
    count = len(RUNS)
    powered(jnp.asarray(3.0), setting=setting)
    assert len(RUNS) == count
    assert float(powered(jnp.asarray(3.0), setting=[5.0])) == 15.0


def test_arrays_on_several_devices_are_computed_there(folder):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(jnp.ones(4), jax.sharding.NamedSharding(mesh, jax.P("x")))
    flow = made(_flow)
    assert len(flow(spread).round_trip_error.sharding.device_set) == 2
    assert not folder.exists()
    other = jax.device_put(jnp.ones(4), jax.devices()[1])
    for x in (jnp.ones(4), other, spread, jnp.ones(4)):
        assert flow(x).round_trip_error.sharding.device_set == x.sharding.device_set
    with jax.default_device(jax.devices()[2]):
        assert flow(np.ones(4)).folded.devices() == {jax.devices()[2]}


def test_errors_of_the_function_are_its_own():
    with pytest.raises(ValueError, match="no such shape"):
        made(_wrong)(jnp.ones(2))


def test_what_cannot_be_kept_is_compiled():
    with pytest.warns(RuntimeWarning, match="without being kept"):
        assert made(_printing)(1.0) == 2.0
    jax.effects_barrier()


def spoil(path, how):
    content = path.read_bytes()
    match how:
        case "flipped":
            path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "header":
            path.write_bytes(content.replace(b"program", b"progrem", 1))
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "short":
            path.write_bytes(content[:10])
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            path.write_bytes(os.urandom(1_000))
        case "folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    "how", ["flipped", "header", "truncated", "short", "empty", "foreign", "folder"]
)
def test_a_damaged_file_is_replaced(how, folder):
    made(_flow)(jnp.ones(3))
    (path,) = files(folder)
    whole = path.read_bytes()
    spoil(path, how)
    with pytest.warns(RuntimeWarning) as caught:
        assert_same(made(_flow)(jnp.ones(3)), _flow(jnp.ones(3)))
    assert len(caught) == 1
    if how != "folder":
        assert len(path.read_bytes()) > 0.5 * len(whole)
        RUNS.clear()
        made(_flow)(jnp.ones(3))
        assert not RUNS


def test_a_program_under_another_name_is_not_used(folder):
    made(_flow)(jnp.ones(3))
    (first,) = files(folder)
    made(_flow)(jnp.ones(4))
    (second,) = set(files(folder)) - {first}
    second.write_bytes(first.read_bytes())
    with pytest.warns(RuntimeWarning, match="another program"):
        assert made(_flow)(jnp.ones(4)).folded.shape == (4,)


def test_a_program_that_xla_cannot_read_is_compiled_again(folder):
    made(_flow)(jnp.ones(3))
    (path,) = files(folder)
    kept = store._from_bytes(path.read_bytes(), path.stem)
    path.write_bytes(store._to_bytes(kept._replace(program=b"nothing"), path.stem))
    with pytest.warns(RuntimeWarning, match="cannot be used and will be replaced"):
        assert_same(made(_flow)(jnp.ones(3)), _flow(jnp.ones(3)))
    RUNS.clear()
    made(_flow)(jnp.ones(3))
    assert not RUNS


def test_a_folder_that_cannot_be_written_is_said_once(folder):
    folder.write_text("no folder")
    with pytest.warns(RuntimeWarning, match="cannot be kept") as caught:
        for num in range(1, 4):
            made(_flow)(jnp.ones(num))
    assert len(caught) == 1
    assert kernels.info().num_programs == 0 and kernels.clear() == 0


def test_a_full_disk_is_no_error(folder, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="No space left"):
        patch.setattr(Path, "write_bytes", full)
        made(_flow)(jnp.ones(3))
    assert not files(folder) and not list(folder.glob("*/.*"))


def test_a_read_only_folder_is_read(folder, monkeypatch):
    made(_flow)(jnp.ones(3))
    monkeypatch.setattr(store, "unwritable", {folder})
    RUNS.clear()
    made(_flow)(jnp.ones(3))
    assert not RUNS
    made(_flow)(jnp.ones(4))
    assert len(files(folder)) == 1


@pytest.mark.parametrize("what", ["_versions", "_source", "_machine", "XLA_FLAGS"])
def test_other_versions_have_other_programs(what, folder, monkeypatch):
    made(_flow)(jnp.ones(3))
    if what == "XLA_FLAGS":
        monkeypatch.setenv(what, os.environ.get(what, "") + " --xla_other=1")
    else:
        home = store if what == "_machine" else programs
        monkeypatch.setattr(home, what, lambda: "another")
    made(_flow)(jnp.ones(3))
    assert RUNS == ["flow"] * 2
    assert len(files(folder)) == 2
    assert kernels.clear() == 2 and kernels.clear() == 0


def test_off_is_off(folder, monkeypatch):
    monkeypatch.setenv("CONSISTENT_SAMPLERS_CACHE", "off")
    made(_flow)(jnp.ones(3))
    assert kernels.info() == (None, False, 0, 0) and kernels.clear() == 0
    assert "off" in str(kernels.info()) and not folder.exists()


def test_the_least_recently_used_go_first(folder, monkeypatch):
    for num in (1, 2, 3):
        made(_flow)(jnp.ones(num))
        for path in files(folder):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 1_000))
    oldest = min(files(folder), key=lambda p: p.stat().st_mtime)
    left_over = oldest.with_name(".killed.1.2.partial")
    left_over.write_bytes(b"x")
    os.utime(left_over, (0, 0))
    made(_flow)(jnp.ones(1))  # read: the oldest is the newest now
    size = sum(p.stat().st_size for p in files(folder))
    monkeypatch.setattr(store, "_MAX_BYTES", bound := int(1.1 * size))
    made(_flow)(jnp.ones(4))
    assert oldest in files(folder) and len(files(folder)) == 3
    assert sum(p.stat().st_size for p in files(folder)) <= bound
    assert not left_over.exists()


def test_the_users_cache_of_programs_stays_theirs(folder, tmp_path):
    theirs = tmp_path / "theirs"
    names = [
        *store._USERS_CACHE,
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    wanted = {
        "jax_compilation_cache_dir": str(theirs),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 1,
    }
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        store.compilation_cache.reset_cache()
        jax.jit(lambda x: x * 1.25)(1.0)
        in_theirs = {p.name for p in theirs.iterdir()}
        assert in_theirs
        made(_flow)(jnp.ones(3))
        assert {name: getattr(jax.config, name) for name in names} == before | wanted
        assert not any("consistent_samplers" in p.name for p in theirs.iterdir())
        jax.jit(lambda x: x * 1.75)(1.0)
        assert {p.name for p in theirs.iterdir()} > in_theirs
        (path,) = files(folder)
        RUNS.clear()
        made(_flow)(jnp.ones(3))
        assert not RUNS and files(folder) == [path]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        store.compilation_cache.reset_cache()


@counts_compilations
def test_a_program_is_compiled_once_and_then_called():
    events = []

    def listen(event, duration, **kwargs):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        flow, x = made(_flow), jnp.ones(3)
        flow(x)
        assert sum("backend_compile" in event for event in events) >= 1
        committed = jax.device_put(jnp.ones(3), jax.devices()[0])
        flow(committed)
        events.clear()
        for _ in range(3):
            flow(x), flow(committed)
        assert not events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@counts_compilations
def test_arrays_put_on_a_device_need_no_other_compilation():
    # A function under `jax.jit` would be compiled once more for them.
    x, compiled = jnp.ones(3), []
    leaves = (x, np.ones(3, np.float32), jax.device_put(x, jax.devices()[0]))

    def listen(event, duration, **kwargs):
        compiled.append("backend_compile" in event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        flow = made(_flow)
        for leaf in leaves:
            flow(leaf)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert sum(compiled) == 1


@pytest.mark.slow
def test_programs_are_dropped_before_a_process_has_all_its_mappings(folder, monkeypatch):
    """XLA ends a process that has as many as Linux allows; some sixty trainings come to it."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system counts no mappings")

    def mappings():
        return maps.read_bytes().count(b"\n")

    @kernel()
    def total(x):
        return jnp.cumsum(jnp.sort(x)) @ jnp.exp(x)

    def grow(sizes):
        before = mappings()
        for n in sizes:
            np.testing.assert_allclose(total(jnp.zeros(n)), 0.0)
        return mappings() - before

    grow(range(1, 6))
    unbounded = grow(range(6, 26))
    assert unbounded > 100
    limit = 2 * (mappings() + unbounded // 2)
    monkeypatch.setattr(kernels, "_max_mappings", lambda: limit)
    assert grow(range(26, 106)) < unbounded
    np.testing.assert_allclose(total(jnp.zeros(1)), 0.0)  # what was dropped is compiled again


def test_warming_trains_as_far_as_each_route_and_returns_what_is_kept(monkeypatch):
    trained = []

    def train_sampler(rng_key, target, **options):
        trained.append((target.dim, options["effort"], options["hidden"]))
        base = cs.bases.standard_normal(target.dim)
        return cs.train_sampler(rng_key, target, base=base, progress_bar=False, effort="base")

    monkeypatch.setattr(warming, "train_sampler", train_sampler)
    assert cs.kernels.warm(dim=3, hidden=(8,)) == cs.kernels.info()
    assert trained == [(3, "auto", (8,)), (3, "full", (8,))]


MODULE = """
import json, sys, time
import jax, jax.numpy as jnp
from consistent_samplers.kernels import kernel, info
from consistent_samplers.types import FlowDiagnostics

RUNS = []

@kernel(static=("num",), store=True)
def slow(key, tree, *, num):
    RUNS.append(num)
    x = tree["x"]
    for i in range(num):
        x = jnp.sin(x @ x + i) + jax.random.normal(key, x.shape)
    x = x + jnp.linalg.cholesky(x @ x.T + 100.0 * jnp.eye(4))
    return FlowDiagnostics(x > 0, x), jax.random.split(key)

def main():
    key, tree = jax.random.key(0), {"x": jnp.eye(4)}
    start = time.perf_counter()
    flow, keys = slow(key, tree, num=8)
    jax.block_until_ready(flow)
    print(json.dumps({
        "runs": len(RUNS),
        "seconds": time.perf_counter() - start,
        "value": flow.round_trip_error.tolist(),
        "key": jax.random.key_data(keys).tolist(),
        "programs": info().num_programs,
    }))
"""


def processes(tmp_path, folder, num):
    """What as many processes at once say."""
    (tmp_path / "kept_module.py").write_text(textwrap.dedent(MODULE))
    environment = os.environ | {"CONSISTENT_SAMPLERS_CACHE": str(folder)}
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error::RuntimeWarning",
                "-c",
                "import kept_module as m; m.main()",
            ],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(num)
    ]
    said = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    return said


def test_the_second_process_reads_what_the_first_compiled(tmp_path, folder):
    (first,) = processes(tmp_path, folder, 1)
    (second,) = processes(tmp_path, folder, 1)
    assert (first["runs"], second["runs"]) == (1, 0)
    assert second["programs"] == 1
    assert first["value"] == second["value"] and first["key"] == second["key"]


@pytest.mark.slow
def test_processes_that_start_at_once(tmp_path, folder):
    agree(processes(tmp_path, folder, 3), folder)


@pytest.mark.slow
def test_ten_processes_that_start_at_once(tmp_path, folder):
    agree(processes(tmp_path, folder, 10), folder)
    (after,) = processes(tmp_path, folder, 1)
    assert after["runs"] == 0


def agree(said, folder):
    assert all(one["value"] == said[0]["value"] for one in said)
    assert len(files(folder)) == 1 and not list(folder.glob("*/.*"))


def test_whoever_reads_while_others_write_reads_one_whole_program(folder):
    contents = [os.urandom(200_000) for _ in range(10)]
    path = folder / "here" / "key.program"

    def write_and_read(content):
        for _ in range(20):
            store.write(folder, path, "key", store.Kept([0], content))
            assert store.read(path, "key").program in contents

    with warnings.catch_warnings(), ThreadPoolExecutor(10) as pool:
        warnings.simplefilter("error")
        list(pool.map(write_and_read, contents))


def test_threads_share_what_is_compiled(folder):
    flow = made(_flow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: flow(i * jnp.ones(3)).round_trip_error.sum(), range(16)))
    assert [float(x) for x in found] == [3.0 * i for i in range(16)]
    assert RUNS == ["flow"] and len(files(folder)) == 1
