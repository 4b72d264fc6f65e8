"""Settings for tests, for notebooks, and for the examples in docstrings (``--doctest-modules``)."""

import os
import sys
from collections.abc import Iterator

import jax
import pytest

# Most of the suite's time goes into compilation, and more than half of that into optimising code
# that runs once. The benchmarks run what users run. Read by XLA with the first array, not on
# import.
# Eight virtual devices, for what runs on several; all else runs on the first.
_SETTINGS = {
    "xla_backend_optimization_level": 0,
    "xla_force_host_platform_device_count": 8,
    # As the package itself asks for; here JAX may start before it is imported.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}
# XLA ends the process at a flag that it does not know (any more).
if jax.__version_info__ < (0, 11):
    _SETTINGS["xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _SETTINGS.items():
    if _flag not in (_flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{_flags} --{_flag}={_value}".strip()

os.environ.setdefault("MPLBACKEND", "Agg")
# Tests neither read nor fill the user's folder of compiled programs.
os.environ.setdefault("CONSISTENT_SAMPLERS_CACHE", "off")


@pytest.fixture(autouse=True)
def close_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Closes what an example has drawn."""
    yield
    if isinstance(request.node, pytest.DoctestItem) and "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
