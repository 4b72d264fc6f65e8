"""Settings that hold for every test."""

from collections.abc import Iterator

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
