"""A family of data sets: one training for all of them, exact weights for each."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import progress
from consistent_samplers.amortized import drawing, fitting
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.conditional import ConditionalMap, Fitted, Standard
from consistent_samplers.amortized.coverage import MAX_MISSED, MUCH_MISSED
from consistent_samplers.amortized.escalation import Samplers, escalated
from consistent_samplers.amortized.frames import frames_of
from consistent_samplers.amortized.padded import Covariates, DataSet, PaddedModel
from consistent_samplers.amortized.posterior import AMORTIZED, Posterior, Posteriors, judged_all
from consistent_samplers.bases.iterating import pair
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.diagnostics import Verdict
from consistent_samplers.recipe import Route
from consistent_samplers.types import Array, Params, PRNGKey

if TYPE_CHECKING:
    from consistent_samplers.amortized.calibration import CalibrationCheck

NUM_SAMPLES = 2_000
"""Draws of each data set, unless asked for otherwise."""

_AT_ONCE, _TRAINED_AT_ONCE = 16, 4
_MAX_FLOATS = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class AmortizedSampler:
    """Posteriors of a model for any data set of a family; made by `amortize` or `load_family`.

    Attributes:
      model: the model, with its shapes.
      num_rows: least and most rows that were simulated.
      map: the conditional map.
      params: its parameters.
      standard: how features are spread over simulated data sets.
      starts: where searches for modes begin.
      farthest: distance of features from the simulated ones beyond which a data set is unlike them.
      missed: share of posterior mass, on average over simulated data sets, that the map misses.
      probes: data sets, positions and their log densities, which the model is known by.
      covariates: what simulated arguments; None of a family that was loaded.
      history: mean loss of each hundred iterations, by stage.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> import numpyro, numpyro.distributions as dist
      >>> def model(x, y=None):
      ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
      ...     with numpyro.plate("rows", x.shape[0]):
      ...         numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
      >>> def covariates(rng_key, num_rows):
      ...     return (jax.random.normal(rng_key, (num_rows,)),), {}
      >>> tiny = dict(num_data_sets=200, num_iterations=(5, 5), progress_bar=False)  # for a test
      >>> family = cs.amortize(
      ...     jax.random.key(0), model, covariates, num_rows=(3, 6), observed={"y": "y"}, **tiny
      ... )
      >>> one = family.condition(jax.random.key(1), jnp.ones(4), y=jnp.ones(4))
      >>> one.get_samples()["slope"].shape, one.verdict.level, one.route.name
      ((2000,), 'trusted', 'amortized')
    """

    model: PaddedModel
    num_rows: tuple[int, int]
    map: ConditionalMap
    params: Params
    standard: Standard
    starts: tuple[Array, Array]
    farthest: float
    missed: float
    probes: Any
    covariates: Covariates | None = None
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def condition(
        self,
        rng_key: PRNGKey,
        *model_args: Any,
        num_samples: int = NUM_SAMPLES,
        escalate: bool = True,
        progress_bar: bool = False,
        **model_kwargs: Any,
    ) -> Posterior:
        """The posterior of one data set, given as the model's own arguments.

        Where the weights of the family's draws are not to be used, a short training on this data
        set alone follows, from the family's map; where that falls short, an `OneStepSampler`.

        Args:
          rng_key: key.
          *model_args: of the model.
          num_samples: number of draws.
          escalate: whether such trainings may follow.
          progress_bar: show its progress.
          **model_kwargs: of the model, with what is observed.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: the arguments are of another structure, shape or type than those simulated,
            lack what is observed, or hold NaN.
        """
        check_key(rng_key)
        data_sets = [(model_args, model_kwargs)]
        many, samplers = self._answered(rng_key, data_sets, num_samples, escalate, progress_bar)
        first = jax.tree.map(lambda x: x[0], (many.samples, many.log_weight, many.evidence))
        samples, log_weight, found = first
        return Posterior(
            many.rng_key,
            jax.device_put(samples),
            jnp.asarray(log_weight),
            found,
            many.verdicts[0],
            many.routes[0],
            samplers.get(0),
        )

    def condition_many(
        self,
        rng_key: PRNGKey,
        data_sets: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
        *,
        num_samples: int = NUM_SAMPLES,
        escalate: bool = False,
        progress_bar: bool = True,
    ) -> Posteriors:
        """The posteriors of many data sets, in batches.

        Args:
          rng_key: key.
          data_sets: the model's arguments ``(args, kwargs)`` of each, with what is observed.
          num_samples: draws of each.
          escalate: whether a training of its own follows for each that is not to be used; see
            `condition`.
          progress_bar: show how far it is.

        Raises:
          TypeError: ``rng_key`` is not a single key, or the data sets are no such pairs.
          ValueError: see `condition`.
        """
        check_key(rng_key)
        return self._answered(rng_key, data_sets, num_samples, escalate, progress_bar)[0]

    def calibration_check(
        self, rng_key: PRNGKey, num_data_sets: int = 1_000, **settings: Any
    ) -> "CalibrationCheck":
        """Ranks of the true values over new simulated data sets; see `calibration_check`.

        Args:
          rng_key: key.
          num_data_sets: to simulate.
          **settings: of `calibration_check`.
        """
        from consistent_samplers.amortized.calibration import calibration_check

        return calibration_check(rng_key, self, num_data_sets, **settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keeps the family in a folder; see `load_family`.

        Args:
          path: the folder; made if it does not exist.

        Raises:
          CheckpointError: the folder cannot be written to.
        """
        from consistent_samplers.amortized.keeping import save

        save(self, path)

    def _answered(
        self,
        rng_key: PRNGKey,
        data_sets: Sequence[Any],
        num_samples: int,
        escalate: bool,
        progress_bar: bool,
    ) -> tuple[Posteriors, Samplers]:
        """Answers to data sets, and the samplers of those that have one of their own."""
        check_integer("num_samples", num_samples, 100)
        model, data = self._padded(data_sets)

        def of(key: PRNGKey, data: DataSet, num_iterations: int) -> Posteriors:
            key_draw, key_rest = pair(key)
            keys = jax.random.split(key_draw, len(data.mask))
            what = "short training" if num_iterations else "posteriors"
            with progress.stage(what, progress_bar=progress_bar):
                drawn = answers(self, model, num_samples, num_iterations)(keys, data)
            return self._judged(key_rest, data, *drawn)

        def again(key: PRNGKey, index: np.ndarray) -> Posteriors:
            return of(key, jax.tree.map(lambda x: x[index], data), fitting.OWN_ITERATIONS)

        many = of(rng_key, data, 0)
        if not escalate:
            return many, {}
        # A map that misses modes is not mended by going on from it.
        shortly = again if self.missed <= MUCH_MISSED else None
        return escalated(many, shortly, self.model.model, data_sets, progress_bar)

    def _judged(
        self,
        rng_key: PRNGKey,
        data: DataSet,
        samples: dict[str, np.ndarray],
        log_weight: np.ndarray,
        away: np.ndarray,
    ) -> Posteriors:
        """What draws are worth, with what speaks against the data set or the family."""
        found, verdicts = judged_all(log_weight)
        log_weight = np.where(log_weight < np.inf, log_weight, -np.inf)
        least, most = self.num_rows
        sizes = data.mask.sum(1)
        outside = (sizes < least) | (sizes > most) if self.model.has_rows else sizes < 0
        unlike = ~(away <= self.farthest) | outside
        for i in np.flatnonzero(unlike):
            rows = f" of {sizes[i]} rows, {least} to {most} were simulated" if outside[i] else ""
            verdicts[i] = verdicts[i].with_finding(
                f"This data set{rows} is unlike the simulated ones: the map was not trained for it."
            )
        if self.missed > MAX_MISSED:
            verdicts = [self._lowered(verdict) for verdict in verdicts]
        trusted = np.array([v.level != "not to be used" for v in verdicts])
        shares = [float(x) for x in np.asarray(found.ess)]
        reason = "one training for all data sets"
        routes = [Route(AMORTIZED, reason, {AMORTIZED: share}) for share in shares]
        none = np.zeros(len(trusted), bool)
        answer = samples, log_weight, found, tuple(verdicts), tuple(routes), trusted, none, unlike
        return Posteriors(rng_key, *answer)

    def _lowered(self, verdict: Verdict) -> Verdict:
        """A verdict that knows what the family misses."""
        words = (
            f"In at least {100 * self.missed:.2g} % of simulated data sets the values that they "
            "were simulated from lie where this family hardly draws: a mode may be missing."
        )
        level = "usable" if verdict.level == "trusted" else verdict.level
        if self.missed > MUCH_MISSED:
            level = "not to be used"
        return verdict.with_finding(words)._replace(level=level)

    def _padded(self, data_sets: Sequence[Any]) -> tuple[PaddedModel, DataSet]:
        """Data sets as one, and the model for the largest of them."""
        if not len(data_sets):
            raise ValueError("data_sets is empty: give one pair (args, kwargs) or more.")
        for i, given in enumerate(data_sets):
            fine = isinstance(given, tuple | list) and len(given) == 2
            if not fine or not isinstance(given[0], tuple | list) or not isinstance(given[1], dict):
                raise TypeError(
                    f"Data set {i} must be the model's arguments as (args, kwargs), such as "
                    f"((X,), {{'y': y}}); got {type(given).__name__}."
                )
        most = max(self.model.rows_of(*given) for given in data_sets)
        model = self.model
        if most > model.max_rows:
            model = _larger(model, most)
        padded = [model.pad(tuple(args), dict(kwargs)) for args, kwargs in data_sets]
        return model, jax.tree.map(lambda *xs: np.stack(xs), *padded)


@functools.lru_cache(maxsize=8)
def _larger(model: PaddedModel, num_rows: int) -> PaddedModel:
    """The model for more rows than were simulated."""
    return model.with_rows(num_rows)


@functools.lru_cache(maxsize=8)
def answers(
    family: AmortizedSampler, model: PaddedModel, num_samples: int, num_iterations: int = 0
) -> Callable[..., Any]:
    """A function of keys and data sets: samples, log weights, distance from the simulated ones.

    Args:
      family: the family.
      model: its model, of the shapes of the data sets.
      num_samples: draws of each.
      num_iterations: of a training on each data set alone, before it is drawn.
    """
    of_all = Fitted(family.map, family.params, family.standard)

    def one(key: PRNGKey, data: DataSet) -> tuple[Any, ...]:
        fitted, num_modes = of_all, of_all.map.num_modes
        frames = frames_of(model, family.starts, data, num_modes)
        if num_iterations:
            key, key_train = jax.random.split(key)
            fitted = fitting.of_one(key_train, model, fitted, frames, data, num_iterations)
        drawn = drawing.drawn(key, model, fitted, frames, data, num_samples)
        at_globals, members, log_weight = drawn
        samples = jax.vmap(lambda *at: model.constrain(at, data))(at_globals, members)
        return samples, log_weight, distance(frames.features[0], family.standard)

    coordinates = model.num_globals + model.max_rows * max(model.num_each, 1)
    at_once = max(1, min(_AT_ONCE, _MAX_FLOATS // (num_samples * coordinates)))
    if num_iterations:
        at_once = min(at_once, _TRAINED_AT_ONCE)
    return in_blocks(one, at_once)


def distance(features: Array, standard: Standard) -> Array:
    """How far features ``[..., f]`` lie from those of simulated data sets, ``[...]``."""
    away = (features - standard.data_set[0]) / standard.data_set[1]
    return jnp.mean(jnp.log1p(away**2), -1)
