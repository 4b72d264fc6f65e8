"""A family of data sets: one training for all of them, exact weights for each."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import progress
from consistent_samplers.amortized import fitting
from consistent_samplers.amortized.answering import (
    TIMES,
    Answers,
    answered,
    sets_at_once,
    with_more,
)
from consistent_samplers.amortized.conditional import ConditionalMap, Standard
from consistent_samplers.amortized.coverage import MAX_MISSED, MUCH_MISSED
from consistent_samplers.amortized.escalation import Samplers, Shortly, escalated
from consistent_samplers.amortized.padded import (
    Covariates,
    DataSet,
    PaddedModel,
    first_rows,
    of_size,
)
from consistent_samplers.amortized.posterior import AMORTIZED, Posterior, Posteriors, judged_all
from consistent_samplers.bases.iterating import pair
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.diagnostics import Verdict
from consistent_samplers.integrations.numpyro.arguments import Call
from consistent_samplers.recipe import Route
from consistent_samplers.types import Array, Params, PRNGKey

if TYPE_CHECKING:
    from consistent_samplers.amortized.calibration import CalibrationCheck

NUM_SAMPLES = 2_000
"""Draws of each data set, unless asked for otherwise."""


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

        Where the weights of the family's draws are not to be used, they are resampled from many
        more; where these fall short, a short training on this data set alone follows, from the
        family's map; and where that does, an `OneStepSampler`. A
        data set of another number of rows than was simulated is answered as it is, by programs
        that are compiled for its size.

        Args:
          rng_key: key.
          *model_args: of the model.
          num_samples: number of draws.
          escalate: whether more draws and such trainings may follow.
          progress_bar: show its progress.
          **model_kwargs: of the model, with what is observed.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: the arguments are of another structure or shape than those simulated, lack
            what is observed, or hold NaN or numbers that would change in the type of those.
        """
        check_key(rng_key)
        given = self._read([(model_args, model_kwargs)])
        many, samplers = self._answered(rng_key, given, num_samples, escalate, progress_bar)
        size = int(given[0][1].mask.sum())
        of_draws = {n: None if axis is None else 1 + axis for n, axis in self.model.outputs}
        samples = {
            name: jnp.asarray(first_rows(x[0], of_draws[name], size))
            for name, x in many.samples.items()
        }
        own = samplers.get(0)
        return Posterior(
            many.rng_key,
            samples,
            jnp.asarray(many.log_weight[0]),
            jax.tree.map(lambda x: x[0], many.evidence) if own is None else own.evidence,
            many.verdicts[0],
            many.routes[0],
            own,
        )

    def condition_many(
        self,
        rng_key: PRNGKey,
        data_sets: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
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
          escalate: whether more draws, or a training of its own, follow for each that is not to
            be used; see `condition`.
          progress_bar: show how far it is.

        Raises:
          TypeError: ``rng_key`` is not a single key, or the data sets are no such pairs.
          ValueError: see `condition`.
        """
        check_key(rng_key)
        given = self._read(data_sets)
        return self._answered(rng_key, given, num_samples, escalate, progress_bar)[0]

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
          EncodeError: the model's arguments hold a class that is not registered (`register_base`).
        """
        from consistent_samplers.amortized.keeping import save

        save(self, path)

    def _answered(
        self,
        rng_key: PRNGKey,
        given: list[tuple[PaddedModel, DataSet]],
        num_samples: int,
        escalate: bool,
        progress_bar: bool,
    ) -> tuple[Posteriors, Samplers]:
        """Answers to data sets, and the samplers of those that have one of their own."""
        check_integer("num_samples", num_samples, 100)

        def of(key: PRNGKey, index: Iterable[int], num: int, num_iterations: int = 0) -> Posteriors:
            key_draw, key_rest = pair(key)
            some = [given[i] for i in index]
            keys = jax.random.split(key_draw, len(some))
            what = "short training" if num_iterations else "posteriors"
            with progress.stage(what, progress_bar=progress_bar):
                answers = answered(keys, self, some, num, num_iterations)
            return self._judged(key_rest, [int(data.mask.sum()) for _, data in some], answers)

        def more(key: PRNGKey, index: int) -> Posteriors:
            samples = {name: x[index][None] for name, x in many.samples.items()}
            before = samples, many.log_weight[index][None]
            answers = with_more(key, self, given[index], *before, len(given))
            return self._judged(key, [int(given[index][1].mask.sum())], answers)

        def again(key: PRNGKey, index: Sequence[int]) -> Posteriors:
            return of(key, index, num_again, fitting.OWN_ITERATIONS)

        def call(index: int) -> Call:
            model, data = given[index]
            exactly = of_size(model, int(data.mask.sum()))
            return exactly.arguments(exactly.cut(data))

        num_again = TIMES * num_samples
        many = of(rng_key, range(len(given)), num_samples)
        if not escalate:
            return many, {}
        # A map that misses modes is not mended by going on from it.
        at_once = sets_at_once(self.model, num_again, fitting.OWN_ITERATIONS)
        shortly = Shortly(again, at_once) if self.missed <= MUCH_MISSED else None
        return escalated(many, more, shortly, self.model.model, call, progress_bar)

    def _judged(self, rng_key: PRNGKey, rows: list[int], answers: Answers) -> Posteriors:
        """What draws are worth, with what speaks against the data set or the family."""
        samples, log_weight, away = answers
        found, verdicts = judged_all(log_weight)
        log_weight = np.where(log_weight < np.inf, log_weight, -np.inf)
        least, most = self.num_rows
        sizes = np.array(rows)
        outside = (sizes < least) | (sizes > most)
        unlike = ~(away <= self.farthest) | outside
        for i in np.flatnonzero(unlike):
            given = f" of {sizes[i]} rows, {least} to {most} were simulated" if outside[i] else ""
            verdicts[i] = verdicts[i].with_finding(
                f"This data set{given} is unlike the simulated ones: the map was not trained for "
                "it."
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

    def _read(self, data_sets: Iterable[Any]) -> list[tuple[PaddedModel, DataSet]]:
        """Data sets as arrays, each with the model of its shapes.

        Those of the sizes that were simulated have one shape. No other is filled up: whether a
        model takes that was looked at for these sizes alone.
        """
        if not isinstance(data_sets, Iterable):
            raise TypeError(
                "data_sets must be a list of pairs (args, kwargs), got "
                f"{type(data_sets).__name__}; condition takes one data set."
            )
        found, (least, most) = [], self.num_rows
        for i, given in enumerate(data_sets):
            fine = isinstance(given, tuple | list) and len(given) == 2
            if not fine or not isinstance(given[0], tuple | list) or not isinstance(given[1], dict):
                raise TypeError(
                    f"Data set {i} must be the model's arguments as (args, kwargs), such as "
                    f"((X,), {{'y': y}}); got {type(given).__name__}."
                )
            data = self.model.read(tuple(given[0]), dict(given[1]))
            size = len(data.mask)
            model = self.model if least <= size <= most else of_size(self.model, size)
            found.append((model, model.filled(data)))
        if not found:
            raise ValueError("data_sets is empty: give one pair (args, kwargs) or more.")
        return found
