"""A guard against faults of JAX on CPUs that make some compiled computations wait for ever.

In jaxlib 0.10.0 to 0.11.0 a call of LAPACK for a large batch hands parts of it to the threads that
XLA computes with, and waits for them; where all of these threads wait like that, none is left to do
the parts. In 0.11.1 and 0.11.2 the same happens to Fourier transforms. Versions before and after
these are free of it.

It takes as many such calls side by side as there are threads, which are as many as processors: two
are met often. So the package asks for 16 when it is imported, for the scheduler of XLA that brings
fewest side by side, and for one computation after another. These are read when the backend starts.
Where that has happened by then, as in a notebook, it is started anew; arrays stay as they are, and
functions are compiled again. XLA's flags are read once in a process: there each of the
package's programs is compiled with that scheduler, and waited for. A backend with several devices,
or with arrays that are bound to one, stays as it is. A warning then says what to do: waiting for
ever is rare with few threads, not impossible.
"""

import functools
import importlib
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

import jax
from jax.extend import backend

FLAG = "xla_cpu_enable_concurrency_optimized_scheduler"
"""XLA's flag for the scheduler at fault; the compiler has an option of another name."""

NUM_THREADS = 16
"""Threads that XLA computes with, where there are fewer processors: no calls side by side were seen
to take all of them, up to 128 independent ones in one computation; on two processors more threads
take longer."""

_THREADS = "PJRT_NPROC"
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_OPTION = "xla_cpu_scheduler_type"
_SAVES_MEMORY = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
# First version with a fault, and first one without one again. XLA ends the process at a flag that
# it does not know: all of these know it.
_FIRST_CONCERNED, _FIRST_MENDED = (0, 10), (0, 12)


def keep_threads_free() -> None:
    """Asks XLA for what keeps a thread free, unless the user chose a scheduler.

    Warns:
      RuntimeWarning: a CPU backend runs already and has read its settings, or the environment asks
        for fewer threads.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not _is_installed_concerned() or f"{FLAG}=true" in flags or _OPTION in flags:
        return
    _keep_lapack_single()
    # What JAX has started, without starting anything.
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = tuple(getattr(bridge, "_backends", ()))
    asked = os.environ.get(_THREADS)
    wants_more = asked is None and _num_threads() < NUM_THREADS
    late = "cpu" in started and not (wants_more and started == ("cpu",) and _nothing_is_bound())
    if not late:
        if FLAG not in flags and not started:
            os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=false".strip()
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        if wants_more:
            os.environ[_THREADS] = str(NUM_THREADS)
        if "cpu" in started:
            backend.clear_backends()
    if (threads := _num_threads()) < NUM_THREADS:
        why = "JAX was in use before consistent_samplers was imported, and " if late else ""
        cure = "Import consistent_samplers first, or set" if late and asked is None else "Set"
        warnings.warn(
            f"{why}XLA has {threads} threads: jaxlib {_installed()} may wait for ever in batches "
            f"of matrix factorisations or Fourier transforms. {cure} {_THREADS}={NUM_THREADS} "
            "before Python starts.",
            RuntimeWarning,
            stacklevel=3,
        )


def _nothing_is_bound() -> bool:
    """Whether a backend that runs can be started anew without anybody's noticing.

    Not where arrays were put on a device of it by name: that device would not be the new one.
    """
    return (
        jax.device_count() == 1
        and not isinstance(jax.numpy.zeros(()), jax.core.Tracer)
        and not any(array.committed for array in jax.live_arrays())
    )


def _keep_lapack_single() -> None:
    """Asks SciPy's LAPACK, which XLA calls, for one thread: each of XLA's calls it by itself.

    Else these wait for one another's: 128 factorisations of 60 × 60 matrices with their gradients
    take seconds instead of 20 ms.
    """
    if any(name in os.environ for name in _BLAS_THREADS):
        return
    if "scipy.linalg" in sys.modules:
        from threadpoolctl import ThreadpoolController

        for library in ThreadpoolController().lib_controllers:
            if "scipy" in Path(library.filepath).parent.name:
                library.set_num_threads(1)
        return
    # Read when the library is loaded; for this one alone, not for NumPy's and other processes'.
    os.environ[_BLAS_THREADS[0]] = "1"
    try:
        importlib.import_module("scipy.linalg")
    finally:
        del os.environ[_BLAS_THREADS[0]]


def _num_threads() -> int:
    """As many as XLA takes: what the environment says, or one for each processor."""
    for name in (_THREADS, "NPROC"):  # the second is any program's: it is no choice of the user's
        if (value := os.environ.get(name, "")).isdecimal():
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    return is_concerned(_installed())


def _installed() -> str:
    return metadata.version("jaxlib")
