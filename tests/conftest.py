"""Settings that hold for every test."""

import os
from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings

# Most of the suite's time goes into compilation, and more than half of that into optimising code
# that runs once. The benchmarks run what users run. Read by XLA with the first array, not on
# import.
# Eight virtual devices, for what runs on several; all else runs on the first.
_SETTINGS = {
    "xla_backend_optimization_level": 0,
    "xla_force_host_platform_device_count": 8,
}
if jax.__version_info__ < (
    0,
    11,
):  # XLA ends the process at a flag that it does not know (any more)
    _SETTINGS["xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _SETTINGS.items():
    if _flag not in (_flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{_flags} --{_flag}={_value}".strip()

# Derandomised: a failure of today is a failure of tomorrow. No deadline: the first example pays
# for a compilation. Few examples: two cores.
settings.register_profile("project", deadline=None, derandomize=True, max_examples=12)
settings.load_profile("project")


@pytest.fixture(scope="module")
def strict_ranks() -> Iterator[None]:
    """Broadcasting between ranks is an error: [n] against [n, dim] hides shape mistakes.

    For modules to opt into; not for all of them, since distrax promotes ranks itself.
    """
    with jax.numpy_rank_promotion("raise"):
        yield
