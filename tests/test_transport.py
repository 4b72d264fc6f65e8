"""The benchmarks' Sinkhorn distance against exact transport."""

import numpy as np
import pytest

from benchmarks.transport import sinkhorn
from consistent_samplers.diagnostics import wasserstein2


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_sinkhorn_is_near_exact_transport(shift):
    # Equal but for noise, and far apart: both ends of what a table shows.
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(2, 400, 2)).astype(np.float32)
    y += np.float32(shift)
    exact = wasserstein2(x, y) ** 2
    # The entropic plan spreads by about the regularisation, .03 here, per dimension at most.
    assert 0.99 * exact < sinkhorn(x, y) < 1.01 * exact + 0.06


@pytest.mark.slow
def test_sinkhorn_converges_on_heavy_tails():
    rng = np.random.default_rng(11)
    noise = rng.normal(size=(2, 400, 10))
    funnels = np.append(3.0 * noise[..., :1], np.exp(1.5 * noise[..., :1]) * noise[..., 1:], axis=2)
    x, y = funnels.astype(np.float32)
    assert sinkhorn(x, y) == pytest.approx(wasserstein2(x, y) ** 2, rel=0.03)
