"""The page on parts of one's own runs as it is written."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import consistent_samplers as cs

pytestmark = pytest.mark.slow  # the page trains

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """The names that the page's blocks define, run in order."""
    module = types.ModuleType("extending_page")
    sys.modules[module.__name__] = module
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), vars(module))
    yield vars(module)
    del sys.modules[module.__name__]


def test_algorithm_of_the_page_reaches_the_evidence(page):
    evidence = page["evidence"]
    assert evidence.bound == "lower"
    # A Gaussian from a Gaussian: the ELBO is tight, and no more than a bound.
    gap = page["log_z"] - float(evidence.elbo)
    assert -3.0 * float(evidence.elbo_stderr) < gap < 0.05
    assert float(evidence.log_z) == pytest.approx(page["log_z"], abs=0.05)


def test_algorithm_of_the_page_has_its_settings_checked(page):
    assert page["plain"].paper(page["target"]).name == "plain.paper"
    with pytest.raises(TypeError, match=r"cs\.plain has no setting 'hiden'. It takes: .*hidden"):
        page["plain"](page["target"], hiden=(8,))


def test_base_of_the_page_is_a_density_with_its_draws(page):
    base = page["heavy"]
    # In one dimension, the density integrates to one on a grid.
    one = type(base)(base.loc[:1], base.scale[:1])
    grid = np.linspace(-400.0, 400.0, 400_001, dtype=np.float32)[:, None]
    density = np.exp(np.asarray(one.log_prob(grid), np.float64))
    assert density.sum() * 800.0 / 400_000 == pytest.approx(1.0, abs=1e-3)
    x = base.sample(jax.random.key(0), 5)
    log_normal = jax.scipy.stats.norm.logpdf(base.whiten(x)).sum(-1)
    corrections = [base.log_correction(each) for each in x]
    np.testing.assert_allclose(log_normal - base.log_prob(x), corrections, rtol=1e-4, atol=1e-5)


def test_parts_of_the_page_are_trained_and_kept(page):
    trained, again, target = page["trained"], page["again"], page["target"]
    assert isinstance(again.base, page["SinhBase"])
    assert isinstance(again.one_step.control.network, page["Small"])
    key = jax.random.key(3)
    ours, read = (cs.evidence(s.sample(key, 2_000)) for s in (trained, again))
    assert float(ours.log_z) == pytest.approx(float(read.log_z), abs=1e-4)
    assert abs(float(ours.log_z) - target.log_z) < 5 * float(ours.log_z_stderr) + 1e-3
