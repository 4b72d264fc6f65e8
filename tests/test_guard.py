"""The scheduler that may hang is turned off, unless the user says otherwise or it is too late."""

import subprocess
import sys

import pytest

from consistent_samplers import guard

concerned = pytest.mark.skipif(
    not guard.is_concerned(guard.metadata.version("jaxlib")), reason="a jaxlib without the fault"
)


def flags_after(statement, **environment):
    code = f"import os, warnings\n{statement}\nprint('flags', os.environ.get('XLA_FLAGS', ''))"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={"PATH": "/usr/bin", "HOME": "/", "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split("flags ", 1)[1].strip(), done.stderr


@concerned
def test_importing_the_package_turns_the_scheduler_off():
    flags, said = flags_after("import consistent_samplers")
    assert flags == f"--{guard.FLAG}=false"
    assert "RuntimeWarning" not in said


@concerned
def test_flags_of_the_user_stay():
    own = f"--xla_cpu_enable_fast_math=false --{guard.FLAG}=true"
    assert flags_after("import consistent_samplers", XLA_FLAGS=own)[0] == own
    other = "--xla_cpu_enable_fast_math=false"
    flags, _ = flags_after("import consistent_samplers", XLA_FLAGS=other)
    assert flags == f"{other} --{guard.FLAG}=false"


@concerned
def test_too_late_is_said_with_the_cure():
    use = "import jax.numpy as jnp; jnp.ones(2) + 1; import consistent_samplers"
    flags, said = flags_after(use)
    assert flags == ""
    assert f"set XLA_FLAGS=--{guard.FLAG}=false" in said
    # What names it in time is not warned about.
    assert "RuntimeWarning" not in flags_after(use, XLA_FLAGS=f"--{guard.FLAG}=false")[1]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.7.2", False), ("0.8.0", True), ("0.9.2", True), ("0.10.2", True), ("0.12.0.1", False)],
)
def test_versions(version, expected):
    assert guard.is_concerned(version) == expected
