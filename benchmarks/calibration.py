"""Simulation-based calibration of NumPyro models (Talts et al., 2018), by ArviZ's simuk.

Parameters come from the prior, data from the parameters, draws from the posterior of the data: the
rank of a parameter among its draws is uniform, and an interval of mass p holds it with probability
p. simuk simulates and ranks; the draws are those of `OneStepSampler.run`, which trains for the
first data set and goes on from there for the others.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import plate, sample
from scipy.stats import kstwo

from benchmarks.case import Benchmark, Case
from benchmarks.models.regressions import SCHOOLS, groups, regression
from benchmarks.report import Report, Row
from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler

PROBABILITIES = (0.5, 0.8, 0.95)
_X = np.insert(np.random.default_rng(0).normal(size=(40, 2)), 0, 1.0, axis=1).astype(np.float32)
# Of the coefficients, that of the level first.
_LOC, _SPREAD = np.array([0.5, 0.0, 0.0]), np.array([0.5, 0.7, 0.7])


def _mixture(y: Any = None) -> None:
    share = sample("share", dist.Beta(2.0, 2.0))
    low = sample("low", dist.Normal(-2.0, 0.5))
    gap = sample("gap", dist.Gamma(8.0, 2.0))
    parts = dist.Normal(jnp.stack([low, low + gap]), 1.0)
    chosen = dist.Categorical(jnp.stack([share, 1.0 - share]))
    with plate("rows", 50):
        sample("y", dist.MixtureSameFamily(chosen, parts), obs=y)


_regression = partial(regression, _X, loc=_LOC, spread=_SPREAD)
_groups = partial(groups, scale=dist.HalfNormal)
MODELS: dict[str, tuple[Callable[..., None], int]] = {
    "schools": (partial(_groups, SCHOOLS[1], centred=False), 8),
    "linear": (_regression, 40),
    "logistic": (partial(_regression, family="logistic"), 40),
    "poisson": (partial(_regression, family="poisson"), 40),
    "mixture": (_mixture, 50),
    "groups": (partial(_groups, np.full(20, 0.3, np.float32), spread=1.0), 20),
}
"""Models of data ``y``, simulated without, and how many values these have."""


def calibrated(name: str, num: int, num_samples: int, seed: int) -> dict[str, Any]:
    """Shares of the draws below each parameter, by data set; levels of verdicts; seconds."""
    from arviz_base import from_dict  # which simuk is made on
    from simuk import SBC

    model, size = MODELS[name]
    sampler, levels = OneStepSampler(model, progress_bar=False), Counter[str]()

    class Calibration(SBC):
        def _get_posterior_samples_numpyro(self, prior_predictive_draw: dict[str, Any]) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other data, and of draws that are flagged
                key = jax.random.key(int(self._seeds[self._simulations_complete]))
                sampler.run(key, **prior_predictive_draw)
                drawn = sampler.get_samples()
            levels[sampler.verdict.level] += 1
            # As many of one step as of chains, whose neighbours are alike.
            thin = {k: np.asarray(v)[:: len(v) // num_samples] for k, v in drawn.items()}
            kept = {k: v[None, :num_samples] for k, v in thin.items()}
            return from_dict({"posterior": kept})["posterior"]

    begin = time.perf_counter()
    found = Calibration(OneStepMH(sampler), num, seed=seed, data_dir={"y": np.zeros(size)})
    found.run_simulations()
    ranks = {k: np.asarray(v)[0] for k, v in found.simulations["prior_sbc"].items()}
    flat = np.concatenate([r.reshape(num, -1) for r in ranks.values()], axis=1)
    shares = (flat + 0.5) / (num_samples + 1)
    return {"levels": dict(levels), "seconds": time.perf_counter() - begin, "shares": shares}


def coverage(shares: Any) -> dict[str, list[float]]:
    """Per cent of data sets inside central intervals: of all parameters, the least, the most."""
    off = np.abs(np.asarray(shares) - 0.5)
    inside = {f"{100 * p:.0f}": 100.0 * (off < 0.5 * p).mean(axis=0) for p in PROBABILITIES}
    return {name: [float(x.mean()), float(x.min()), float(x.max())] for name, x in inside.items()}


def measure(case: Case) -> list[Row]:
    """Ranks and coverage of one model."""
    num = case.settings["num"]
    row = calibrated(case.target, num, case.settings["num_samples"], case.seed)
    levels = ", ".join(f"{count} {level}" for level, count in row.pop("levels").items())
    errors = ", ".join(f"{100 * np.sqrt(p * (1 - p) / num):.1f}" for p in PROBABILITIES)
    row |= {"num": num, "verdicts": levels, "errors": errors} | coverage(row["shares"])
    return [row | {"shares": np.round(row["shares"], 3).tolist()}]


def figure(rows: Sequence[Row]) -> Any:
    """Ranks: their distribution less the uniform one, a line for each parameter.

    95 of 100 of them stay within the band over its whole length (Kolmogorov and Smirnov).
    """
    from consistent_samplers.plotting import style

    at = np.linspace(0.0, 1.0, 101)
    axes = style.row_of_axes(None, len(rows), columns=3)
    for ax, row in zip(axes, rows, strict=True):
        below = (np.array(row["shares"])[:, :, None] <= at).mean(axis=0) - at
        band = kstwo.ppf(0.95, row["num"])
        ax.axhspan(-band, band, color=style.BASE, alpha=0.3, linewidth=0)
        ax.plot(at, below.T, color=style.DRAWS, linewidth=0.8)
        ax.set(title=row["target"], xlabel="rank / draws", ylabel="share of data sets, excess")
        style.tidy(ax)
    return axes[0].figure


BENCHMARK = Benchmark(
    name="calibration",
    names=lambda settings: MODELS,
    measure=measure,
    options={
        "--num": (100, "simulated data sets of each model"),
        "--num-samples": (500, "draws of each posterior"),
        "--seed": (0, "of the data sets"),
    },
    report=Report(
        __doc__,
        """model: {target} | data sets: {num} | 50 %: {50:.0f} | 80 %: {80:.0f} | 95 %: {95:.0f} |
        errors: {errors} | verdicts: {verdicts} | seconds: {seconds:.0f}""",
        """Coverage in per cent of central intervals: of all parameters together, then the
        least and the most of one. Errors: the binomial ones of one parameter.""",
        figure=figure,
    ),
)
