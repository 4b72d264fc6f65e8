"""Simulation-based calibration: ranks of what data sets were simulated from, among their draws.

Over data sets of the prior they are uniform if the posteriors are right (Talts, Betancourt,
Simpson, Vehtari & Gelman, 2018), which is judged by simultaneous bands around the distribution
function of the ranks (Säilynoja, Bürkner & Vehtari, 2022).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from consistent_samplers import progress
from consistent_samplers.amortized import simulated
from consistent_samplers.amortized.answering import answered, sites_of
from consistent_samplers.amortized.family import NUM_SAMPLES, AmortizedSampler
from consistent_samplers.amortized.padded import Covariates, PaddedModel
from consistent_samplers.amortized.posterior import judged_all
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.integrations.numpyro.table import label
from consistent_samplers.types import PRNGKey

_NUM_POINTS = 40  # at which distribution functions are compared
_NUM_SIMULATED = 10_000  # sets of uniform ranks for the bands
_LEVEL = 0.05  # of a false alarm, over all coordinates


@dataclasses.dataclass(frozen=True)
class CalibrationCheck:
    """Ranks of the true values among draws; of members, those of the first one.

    Attributes:
      ranks: ``[sets]`` by coordinate, in [0, 1], among the draws of the map as they are.
      weighted: the same by importance weights, of data sets whose weights can be used alone.
      num_used: how many these are.
      limit: largest standardised distance between distribution functions that all coordinates of
        exact posteriors stay below in 95 % of checks.
      weighted_limit: the same of ``weighted``.

    Example:
      >>> import numpy as np, consistent_samplers as cs
      >>> even = {"a": np.linspace(0.001, 0.999, 500)}
      >>> check = cs.amortized.CalibrationCheck(even, {"a": np.zeros(500)}, 500, 3.5, 3.5)
      >>> check.is_uniform, check.is_uniform_weighted
      (True, False)
    """

    ranks: dict[str, np.ndarray]
    weighted: dict[str, np.ndarray]
    num_used: int
    limit: float
    weighted_limit: float

    @property
    def is_uniform(self) -> bool:
        """Whether the map's own draws are calibrated."""
        return max(map(_distance, self.ranks.values())) <= self.limit

    @property
    def is_uniform_weighted(self) -> bool:
        """Whether weighted draws are calibrated."""
        return max(map(_distance, self.weighted.values())) <= self.weighted_limit

    def __str__(self) -> str:
        """Two lines, and the coordinates that are farthest off."""
        num = len(next(iter(self.ranks.values())))
        lines = [f"{num} data sets, {self.num_used} with weights that can be used"]
        for what, ranks, limit in (
            ("as drawn", self.ranks, self.limit),
            ("weighted", self.weighted, self.weighted_limit),
        ):
            worst = max(ranks, key=lambda name: _distance(ranks[name]))
            away = _distance(ranks[worst])
            so = "within" if away <= limit else "outside of"
            lines.append(
                f"{what}: ranks {so} the simultaneous band ({worst}: {away:.1f}, limit {limit:.1f})"
            )
        return "\n".join(lines)

    def plot(self) -> Any:
        """A figure of histograms of ranks, coordinates by columns, as drawn above weighted."""
        import matplotlib.pyplot as plt

        names, num_bins = list(self.ranks), 20
        size = (2.2 * len(names) + 1.0, 4.0)
        figure, axes = plt.subplots(2, len(names), figsize=size, squeeze=False, sharex=True)
        for row, ranks in zip(axes, (self.ranks, self.weighted), strict=True):
            for axis, name in zip(row, names, strict=True):
                num = len(ranks[name])
                expected, spread = num / num_bins, np.sqrt(num / num_bins * (1 - 1 / num_bins))
                axis.axhspan(expected - 2.6 * spread, expected + 2.6 * spread, alpha=0.2)
                axis.hist(ranks[name], bins=num_bins, range=(0.0, 1.0))
                axis.set_title(name, fontsize="small")
        axes[0, 0].set_ylabel("as drawn")
        axes[1, 0].set_ylabel("weighted")
        return figure


def calibration_check(
    rng_key: PRNGKey,
    family: AmortizedSampler,
    num_data_sets: int = 1_000,
    *,
    num_samples: int = NUM_SAMPLES,
    covariates: Covariates | None = None,
    progress_bar: bool = True,
) -> CalibrationCheck:
    """Ranks of the true values among draws, over new simulated data sets.

    Args:
      rng_key: key.
      family: the family to check.
      num_data_sets: number of data sets to simulate.
      num_samples: draws of each.
      covariates: as of `amortize`; needed where the family was loaded.
      progress_bar: show how far it is.

    Raises:
      ValueError: the family was loaded and no covariates are given.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> import numpyro, numpyro.distributions as dist
      >>> def model(x, y=None):
      ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
      ...     with numpyro.plate("rows", x.shape[0]):
      ...         numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
      >>> def covariates(rng_key, num_rows):
      ...     return (jax.random.normal(rng_key, (num_rows,)),), {}
      >>> tiny = dict(num_data_sets=200, num_iterations=(0, 0), progress_bar=False)  # for a test
      >>> family = cs.amortize(
      ...     jax.random.key(0), model, covariates, num_rows=5, observed={"y": "y"}, **tiny
      ... )
      >>> check = family.calibration_check(jax.random.key(1), 200, progress_bar=False)
      >>> check.is_uniform_weighted
      True
    """
    check_key(rng_key)
    check_integer("num_data_sets", num_data_sets, 10)
    covariates = covariates or family.covariates
    if covariates is None:
        raise ValueError("A family that was loaded needs covariates= to simulate data sets.")
    model, keys = family.model, jax.random.split(rng_key, 2)
    pairs = simulated.simulate(keys[0], model, covariates, family.num_rows, num_data_sets)

    at = pairs.globals[:, None], pairs.members[:, None]
    truth = {name: x[:, 0] for name, x in sites_of(model, at, pairs.data).items()}
    with progress.stage("calibration", progress_bar=progress_bar):
        keys = jax.random.split(keys[1], len(pairs))
        given = [(model, jax.tree.map(lambda x, i=i: x[i], pairs.data)) for i in range(len(pairs))]
        samples, log_weight, _ = answered(keys, family, given, num_samples)
    _, verdicts = judged_all(log_weight)
    log_weight = np.where(log_weight < np.inf, log_weight, -np.inf)
    weight = np.exp(log_weight - np.maximum(log_weight.max(1, keepdims=True), -1e30))
    weight /= np.maximum(weight.sum(1, keepdims=True), 1e-30)
    # Ties are broken at random, by those of one value (constants of a Cholesky factor) as by those
    # of a grid: ranks are then uniform.
    random = np.random.default_rng(0)
    names, even, weighted = [], [], []
    for name, index in _coordinates(model, truth):
        place: Any = (..., *index)
        own, drawn = truth[name][place][:, None], samples[name][place]
        u = random.random(len(own))
        less, tied = drawn < own, drawn == own
        names.append(label(name, index))
        even.append((less.sum(1) + u * (1 + tied.sum(1))) / (num_samples + 1))
        weighted.append((weight * less).sum(1) + u * (weight * tied).sum(1))
    used = np.array([verdict.level != "not to be used" for verdict in verdicts])
    return CalibrationCheck(
        dict(zip(names, even, strict=True)),
        dict(zip(names, [x[used] for x in weighted], strict=True)),
        int(used.sum()),
        _limit(len(used), len(names)),
        _limit(int(used.sum()), len(names)),
    )


def _coordinates(
    model: PaddedModel, truth: dict[str, np.ndarray]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Latent sites and indices of their entries, of members the first one's."""
    for name, _, axis in model.sites:
        for index in np.ndindex(truth[name].shape[1:]):
            if axis is None or index[axis] == 0:
                yield name, index


def _distance(ranks: np.ndarray) -> float:
    """Largest distance of the ranks' distribution function from the uniform one, standardised."""
    if not len(ranks):
        return float("inf")
    points = np.arange(1, _NUM_POINTS) / _NUM_POINTS
    share = (ranks[:, None] <= points).mean(0)
    return float(np.abs(_standardised(share, points, len(ranks))).max())


def _standardised(share: Any, points: np.ndarray, num: int) -> Any:
    return (share - points) / np.sqrt(points * (1.0 - points) / num)


def _limit(num: int, num_names: int) -> float:
    """The quantile of `_distance` of ``num`` exact ranks, for all coordinates together."""
    if not num:
        return 0.0
    random, points = np.random.default_rng(1), np.arange(1, _NUM_POINTS) / _NUM_POINTS
    even = np.full(_NUM_POINTS, 1.0 / _NUM_POINTS)
    counts = random.multinomial(num, even, size=_NUM_SIMULATED).cumsum(1)[:, :-1]
    away = np.abs(_standardised(counts / num, points, num)).max(1)
    return float(np.quantile(away, 1.0 - _LEVEL / num_names))
