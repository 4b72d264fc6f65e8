"""The scheduler that may hang is turned off, unless the user says otherwise."""

import pathlib
import subprocess
import sys

import pytest

from consistent_samplers import guard

concerned = pytest.mark.skipif(
    not guard.is_concerned(guard.metadata.version("jaxlib")), reason="a jaxlib without the fault"
)


def flags_after(statement, printed=False, **environment):
    code = f"import os, warnings\n{statement}\nprint('flags', os.environ.get('XLA_FLAGS', ''))"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={"PATH": "/usr/bin", "HOME": "/", "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    before, flags = done.stdout.split("flags ", 1)
    return (before if printed else flags).strip(), done.stderr


@concerned
def test_importing_the_package_turns_the_scheduler_off():
    flags, said = flags_after("import consistent_samplers")
    assert flags == f"--{guard.FLAG}=false"
    assert "RuntimeWarning" not in said


def threads_of(said_so):
    """XLA's threads in a process with some environment, and what was said on importing."""
    if not pathlib.Path("/proc/self/task").exists():
        pytest.skip("counts threads by Linux's /proc")
    count = """
import consistent_samplers, jax, pathlib
jax.numpy.ones(2) + 1
names = [p.read_text().strip() for p in pathlib.Path("/proc/self/task").glob("*/comm")]
print(names.count("tf_XLAEigen"))
"""
    printed, said = flags_after(count, printed=True, **said_so)
    return int(printed), said


@pytest.mark.slow
@concerned
def test_xla_has_threads_to_spare():
    for said_so in ({}, {"NPROC": "3"}):  # what other programs go by
        threads, said = threads_of(said_so)
        assert threads >= guard.NUM_THREADS and "RuntimeWarning" not in said
    # A process that such a process starts has them as well, and computes in turn.
    inherited = {"PJRT_NPROC": "16", "XLA_FLAGS": f"--{guard.FLAG}=false"}
    in_turn = "import consistent_samplers, jax; from jax._src import xla_bridge as x"
    in_turn += "; print(x._CPU_ENABLE_ASYNC_DISPATCH.value)"
    assert flags_after(in_turn, printed=True, **inherited)[0] == "False"


@concerned
@pytest.mark.parametrize(
    ("before", "environment", "expected"),
    [
        ("", {}, [1]),
        ("import scipy.linalg", {}, [1]),
        ("", {"OPENBLAS_NUM_THREADS": "2"}, [2]),
        # In use before, with threads to spare: nothing else is changed there.
        ("import jax.numpy as jnp; jnp.ones(2) + 1", {"PJRT_NPROC": "16"}, [1]),
    ],
)
def test_the_lapack_that_xla_calls_has_one_thread(before, environment, expected):
    """Sixteen calls of it side by side would otherwise share, and wait for, a few threads."""
    count = f"""
{before}
import consistent_samplers, scipy.linalg, threadpoolctl
found = threadpoolctl.ThreadpoolController().lib_controllers
print([x.num_threads for x in found if "scipy" in x.filepath.split("/")[-2]])
print([name for name in os.environ if name.endswith("_NUM_THREADS")])
"""
    printed, _ = flags_after(count, printed=True, **environment)
    threads, left = map(eval, printed.splitlines())
    if not threads:
        pytest.skip("SciPy's LAPACK is not a library that threadpoolctl knows")
    assert threads == expected
    assert left == [name for name in environment if name.endswith("_NUM_THREADS")]


@concerned
def test_fewer_threads_that_the_user_asks_for_are_warned_of():
    threads, said = threads_of({"PJRT_NPROC": "3"})
    assert threads == 3
    assert "XLA has 3 threads" in said and "Set PJRT_NPROC=16 before Python starts" in said


@concerned
def test_flags_of_the_user_stay():
    own = f"--xla_cpu_enable_fast_math=false --{guard.FLAG}=true"
    assert flags_after("import consistent_samplers", XLA_FLAGS=own)[0] == own
    other = "--xla_cpu_enable_fast_math=false"
    flags, _ = flags_after("import consistent_samplers", XLA_FLAGS=other)
    assert flags == f"{other} --{guard.FLAG}=false"


TOLD = """
import consistent_samplers
from consistent_samplers.compilation import compiler_options
print([*compiler_options('full')])
"""


@concerned
def test_a_backend_that_runs_already_is_started_anew():
    """What was made before goes on as it was, and has threads to spare."""
    before = """
import pathlib, jax, jax.numpy as jnp
x, key, program = jnp.arange(3.0), jax.random.key(0), jax.jit(lambda x: 2 * x)
mesh = jax.make_mesh((1,), ("one",))
was = [program(x), jax.random.normal(key, 3)]
threads = lambda: [
    p.read_text().strip() for p in pathlib.Path("/proc/self/task").glob("*/comm")
].count("tf_XLAEigen")
few = threads()
"""
    after = """
print(all(map(jnp.array_equal, was, [program(x), jax.random.normal(key, 3)])))
ours = jax.device_put(jnp.ones(3), jax.NamedSharding(mesh, jax.sharding.PartitionSpec("one")))
print((ours + x).tolist(), threads() - few >= 16)
"""
    printed, said = flags_after(before + TOLD + after, printed=True)
    assert "Warning" not in said
    told, same, *rest = printed.splitlines()
    assert told.startswith("['xla_cpu_scheduler_type'") and same == "True"
    assert rest == ["[1.0, 2.0, 3.0] True"]


@pytest.mark.slow
@concerned
@pytest.mark.parametrize(
    ("before", "flags"),
    [
        ("jax.device_put(1.0, jax.devices()[0])", ""),
        ("1.0", "--xla_force_host_platform_device_count=2"),
    ],
)
def test_where_flags_came_too_late_each_program_is_told(before, flags):
    """A backend with several devices, or arrays bound to one, stays."""
    use = f"import jax, jax.numpy as jnp; jnp.ones(2) + 1; x = {before}{TOLD}"
    given = {"XLA_FLAGS": flags} if flags else {}
    printed, said = flags_after(use, printed=True, **given)
    assert printed.startswith("['xla_cpu_scheduler_type'")
    assert "set PJRT_NPROC=16 before Python starts" in said
    assert flags_after(use, **given)[0] == flags
    # What it says helps: XLA has these threads then.
    _, said = flags_after(use, PJRT_NPROC="16", **given)
    assert "Warning" not in said
    named = f"{flags} --{guard.FLAG}=true".strip()
    assert flags_after(use, printed=True, XLA_FLAGS=named)[0].startswith("[]")


@concerned
def test_flags_that_another_package_drops_are_made_up_for(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{guard.FLAG}=false")
    assert guard.scheduler_option() == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert guard.scheduler_option() != {}


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.7.2", False), ("0.9.2", False), ("0.10.2", True), ("0.11.2", True), ("0.12.0.1", False)],
)
def test_versions(version, expected):
    assert guard.is_concerned(version) == expected


# A computation of some 100 ms; a call that returns before it has ended takes none.
SLOW = """
import time, jax, jax.numpy as jnp
def slow(x):
    return jax.lax.fori_loop(0, 200, lambda i, x: jnp.tanh(x @ x), x)
x = jnp.ones((300, 300))
def shares(program):
    program(x).block_until_ready()
    begin = time.time()
    y = program(x)
    returned = time.time() - begin
    y.block_until_ready()
    print(returned / (time.time() - begin) > 0.5)
"""


@concerned
@pytest.mark.parametrize("late", [False, True])
def test_one_computation_ends_before_the_next_one_starts(late):
    bound = "import jax; x = jax.device_put(1.0, jax.devices()[0]); "
    use = bound * late + "import consistent_samplers"
    ours = "from consistent_samplers import compilation, kernels\nshares(compilation.jit(slow))"
    ours += "\nshares(kernels.kernel()(slow))"
    plain = "\nshares(jax.jit(slow))"
    printed, _ = flags_after(use + SLOW + ours + plain, printed=True)
    # Where it is too late, what is not ours starts one after another.
    assert printed.split() == ["True", "True", str(not late)]
