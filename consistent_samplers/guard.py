"""A guard against faults of JAX on CPUs that make some compiled computations wait for ever.

In jaxlib 0.10.0 to 0.11.0 a call of LAPACK for a large batch hands parts of it to the threads that
XLA computes with, and waits for them; where all of these threads wait like that, none is left to do
the parts. In 0.11.1 and 0.11.2 the same happens to Fourier transforms. Versions before and after
these are free of it.

It takes as many such calls side by side as there are threads. XLA's default scheduler brings them
about within one computation; the one that saves memory runs them one after another. JAX brings them
about with several computations: it starts one and goes on to the next before the first has ended.
So the package asks for that scheduler, and for computations one after another, when it is imported.
Both are read when the first backend starts: where that has happened by then, each of the package's
programs is compiled with that scheduler instead, and waited for. What this cannot help are several
threads of one process that compute, and several devices that are all one CPU.
"""

import functools
import os
import sys
from importlib import metadata

import jax

FLAG = "xla_cpu_enable_concurrency_optimized_scheduler"
"""XLA's flag for the scheduler at fault; the compiler has an option of another name."""

_OPTION = "xla_cpu_scheduler_type"
_SAVES_MEMORY = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
# First version with a fault, and first one without one again. XLA ends the process at a flag that
# it does not know: all of these know it.
_FIRST_CONCERNED, _FIRST_MENDED = (0, 10), (0, 12)


def compute_in_turn() -> None:
    """Turns off what makes computations wait, unless the user names a scheduler or it is too late.

    Too late is where a CPU backend runs already and has read its flags; see `scheduler_option`.
    """
    # Whether JAX has started a backend, without starting one.
    bridge = sys.modules.get("jax._src.xla_bridge")
    if scheduler_option() and "cpu" not in getattr(bridge, "_backends", {}):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=false".strip()
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def scheduler_option() -> dict[str, str]:
    """What the compiler is told for each program: nothing, where the process's flags do.

    A program that is told something must be waited for as well.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not _is_installed_concerned() or FLAG in flags or _OPTION in flags:
        return {}
    return {_OPTION: _SAVES_MEMORY}


def is_concerned(version: str) -> bool:
    """Whether a version of jaxlib has one of the faults."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return _FIRST_CONCERNED <= (major, minor) < _FIRST_MENDED


@functools.cache
def _is_installed_concerned() -> bool:
    return is_concerned(metadata.version("jaxlib"))
