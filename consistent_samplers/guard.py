"""A guard against a fault of XLA on CPUs that makes some compiled computations wait for ever.

In the versions concerned, the scheduler that runs independent parts of one computation side by side
may lose a task where several of them call LAPACK (met in NumPyro models with ``LKJCholesky`` on two
cores). The older scheduler does not. XLA reads its flags when its first backend starts, so that the
package asks for the older one when it is imported.
"""

import os
import sys
import warnings
from importlib import metadata

FLAG = "xla_cpu_enable_concurrency_optimized_scheduler"
"""XLA's flag for the scheduler at fault."""

# First version with the fault, and first one without it again. XLA ends the process at a flag that
# it does not know: all of these know it.
_FIRST_CONCERNED, _FIRST_MENDED = (0, 8), (0, 12)


def choose_scheduler() -> None:
    """Turns the scheduler at fault off, unless a flag of the user's names it.

    Warns where a CPU backend runs already and has read its flags.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not is_concerned(metadata.version("jaxlib")) or FLAG in flags:
        return
    # Whether JAX has started a backend, without starting one.
    bridge = sys.modules.get("jax._src.xla_bridge")
    if "cpu" in getattr(bridge, "_backends", {}):
        warnings.warn(
            "JAX was in use before consistent_samplers was imported. With this version of jaxlib a "
            "density that solves triangular systems or factorises matrices may then wait for ever "
            f"on CPUs. Import consistent_samplers first, or set XLA_FLAGS=--{FLAG}=false.",
            RuntimeWarning,
            stacklevel=3,
        )
    else:
        os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=false".strip()


def is_concerned(version: str) -> bool:
    """Whether a version of jaxlib has the fault."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return _FIRST_CONCERNED <= (major, minor) < _FIRST_MENDED
