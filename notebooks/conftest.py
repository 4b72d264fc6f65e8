"""How the test runs execute the notebooks: with small budgets, each in a kernel of its own."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first notebook is in the fast suite; all others are among the slow tests."""
    for item in items:
        if item.path.suffix == ".ipynb" and not item.path.name.startswith("1_"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """What a notebook's kernel inherits."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSISTENT_SAMPLERS_QUICK", "1")
        # The kernel starts in the notebook's folder, where a clone that is not installed would not
        # be found, and the first cell would fetch the package instead.
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        # Pictures are rendered as a reader sees them, whatever the tests themselves draw with.
        patch.delenv("MPLBACKEND", raising=False)
        return (yield)
