"""Simulation-based calibration: what is counted, and that simuk takes our draws."""

import importlib.util

import jax
import matplotlib as mpl
import numpy as np
import pytest
from numpyro.infer import Predictive

mpl.use("Agg")

from benchmarks import calibration

RNG = np.random.default_rng(0)


def test_coverage_is_counted_by_parameter():
    # Ranks of a right sampler, and of one that is too sure of itself.
    right, narrow = (np.arange(1_000) + 0.5) / 1_000, np.repeat([0.001, 0.999], 500)
    found = calibration.coverage(np.stack([right, narrow], axis=1))
    expected = {"50": [25, 0, 50], "80": [40, 0, 80], "95": [47.5, 0, 95]}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values)


def excesses(shares):
    """Largest excess of each parameter's line, and the band's half width."""
    row = {"target": "a", "num": len(shares), "shares": shares.tolist()}
    (ax,) = calibration.figure([row]).axes
    lines = np.array([line.get_ydata() for line in ax.get_lines()])
    return np.abs(lines).max(axis=1), ax.patches[0].get_height() / 2.0


def test_ranks_that_are_uniform_stay_in_the_band():
    shares = RNG.uniform(size=(200, 300))
    largest, band = excesses(shares)
    # Of 100 parameters 95, within binomial errors; the grid of the lines makes them some more.
    assert 0.95 - 3.0 * np.sqrt(0.05 * 0.95 / 300) < (largest < band).mean() < 0.995
    largest, band = excesses(0.25 + 0.5 * shares)
    assert (largest > band).all()


@pytest.mark.parametrize("name", calibration.MODELS)
def test_models_simulate_their_data(name):
    model, size = calibration.MODELS[name]
    drawn = Predictive(model, num_samples=3)(jax.random.key(0))
    assert drawn["y"].shape == (3, size) and np.isfinite(drawn["y"]).all()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("simuk") is None, reason="needs simuk")
def test_simuk_ranks_our_draws():
    row = calibration.calibrated("linear", 4, 200, 0)
    shares = np.array(row["shares"])
    assert shares.shape == (4, 4) and shares.min() > 0.0 and shares.max() < 1.0
    assert sum(row["levels"].values()) == 4
