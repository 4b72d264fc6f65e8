"""Two processes on this machine, as two hosts: the same result, and what happens when one dies."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import two_hosts

from consistent_samplers import checkpoint

SCRIPT = Path(__file__).with_name("two_hosts.py")


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def launch(folder, dies=False):
    """Exit codes and standard errors of both processes; the second one may have to die."""
    port = free_port()
    root = str(SCRIPT.parents[1])
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(i), str(port), str(folder), *(["die"] * (dies and i))],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def expected():
    """One process, one device."""
    return two_hosts.run(None, None)


def check(folder, expected):
    results = [np.load(folder / f"result-{i}.npz") for i in range(2)]
    np.testing.assert_array_equal(results[0]["params"], results[1]["params"])
    np.testing.assert_array_equal(results[0]["evidence"], results[1]["evidence"])
    np.testing.assert_allclose(results[0]["params"], expected[0], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(results[0]["evidence"], expected[1], rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_two_hosts_give_what_one_gives(tmp_path, expected):
    codes, errors = launch(tmp_path)
    assert codes == [0, 0], errors
    check(tmp_path, expected)
    header, _ = checkpoint.read(tmp_path / "checkpoint", "training")
    assert header["done"] == two_hosts.NUM_ITERATIONS


@pytest.mark.slow
def test_a_host_that_dies_is_told_and_training_resumes(tmp_path, expected):
    codes, errors = launch(tmp_path, dies=True)
    assert codes[1] == -9
    assert codes[0] not in (0, -9)
    # Ours where a collective fails, JAX's own where it hangs until the heartbeats stop.
    told = "most likely because a host stopped", "most likely indicates that another task died"
    assert any(words in errors[0] for words in told), errors[0]
    header, _ = checkpoint.read(tmp_path / "checkpoint", "training")
    assert 0 < header["done"] < two_hosts.NUM_ITERATIONS
    codes, errors = launch(tmp_path)
    assert codes == [0, 0], errors
    check(tmp_path, expected)
