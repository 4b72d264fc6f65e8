"""Settings that hold for every test."""

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings

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


@pytest.fixture(autouse=True)
def _few_mappings() -> Iterator[None]:
    """Compiled programs are dropped before a process has as many mappings as Linux allows.

    Each takes several of the 65,530; XLA crashes beyond, which a thousand tests in one process come
    to. What is needed again is compiled again, or read from what is kept.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
