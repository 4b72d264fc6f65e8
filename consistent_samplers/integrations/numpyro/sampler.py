"""One-step posterior draws of NumPyro models, used like ``numpyro.infer.MCMC``.

A model becomes a `Target` over its unconstrained latent sites, flattened into one vector with
the Jacobians of NumPyro's transforms included; with proper priors, log Z is then the model's log
marginal likelihood. Draws go back through the model, which also gives deterministic sites.

    sampler = OneStepSampler(model)
    sampler.run(jax.random.key(0), x, y=y)      # trains on the first run, then draws
    sampler.print_summary()
    posterior = sampler.get_samples()
"""

import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

import jax
import numpy as np

from consistent_samplers import corrections, diagnostics
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.estimate import (
    Evidence,
    checked_log_weight,
    evidence,
    pareto_smooth,
)
from consistent_samplers.integrations.numpyro.inference_data import to_inference_data
from consistent_samplers.integrations.numpyro.model import (
    FlatModel,
    Samples,
    flatten_model,
    identify,
    name_of,
    starting_points,
)
from consistent_samplers.integrations.numpyro.summary import summary_table
from consistent_samplers.recipe import Route, TrainedSampler, load, train_sampler
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.types import Array, Draws, PRNGKey

MIN_RESAMPLED_EFFECTIVE = 10
"""Effective draws below which resampling would only repeat a handful of points."""

MAX_OVERSAMPLING = 10
"""Candidates drawn for resampling, at most, in units of ``num_samples``."""

# Floats of candidate positions held at once (256 MiB).
_MAX_CANDIDATE_FLOATS = 2**26

_TRAIN_PARAMETERS = inspect.signature(train_sampler).parameters
# What train_sampler takes from the caller; the other arguments come from the model.
_TRAIN_SETTINGS = tuple(
    name
    for name in _TRAIN_PARAMETERS
    if name not in ("rng_key", "target", "init_position", "num_samples", "start", "progress_bar")
)


@dataclasses.dataclass(frozen=True)
class _Training:
    """What was trained, and on which arguments: themselves, and as they are told apart."""

    model: FlatModel
    model_args: tuple[Any, ...]
    model_kwargs: dict[str, Any]
    arguments: Any
    trained: TrainedSampler


@dataclasses.dataclass
class _Run:
    """The draws of one run; constrained samples are made when they are first asked for.

    Attributes:
      rng_key: key of the draws.
      draws: weighted one-step draws.
      evidence: made from their weights.
      reweighted: whether the weights allow resampling.
      samples: constrained samples and the log weights of the draws that they came from, by
        whether they are resampled.
    """

    rng_key: PRNGKey
    draws: Draws
    evidence: Evidence
    reweighted: bool
    samples: dict[bool, tuple[Samples, Array]] = dataclasses.field(default_factory=dict)


class OneStepSampler:
    """Posterior draws of a NumPyro model in one network evaluation each.

    Works with every model whose latent sites are continuous, those under
    ``numpyro.handlers.reparam`` included. The first `run` trains, and later runs with the same
    arguments (data) only draw. On other data training goes on from the sampler that there is, which
    a warning says; with arrays of the same shapes nothing is compiled again. Data that the model
    reads from elsewhere, such as a global variable, cannot be told apart.

    Args:
      model: a function with NumPyro primitives, or a handler around one.
      num_samples: draws of each run.
      num_steps: sampler steps of each draw. Only the single step is calibrated.
      progress_bar: show progress while training.
      **train_settings: settings of `consistent_samplers.train_sampler`, e.g. ``effort``,
        ``num_calibration_iterations``, ``network``, ``max_steps``; a ``base`` lives in the
        flattened unconstrained space.

    Raises:
      TypeError: ``model`` is not callable, or a setting that ``train_sampler`` does not have.
      ValueError: ``num_samples`` is not an integer of at least 2, or ``num_steps`` is not a power
        of two up to ``max_steps``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpyro
      >>> import numpyro.distributions as dist
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.integrations.numpyro import OneStepSampler
      >>> def model(y):
      ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
      ...     numpyro.sample("y", dist.Normal(0.0, scale), obs=y)
      >>> tiny = dict(max_steps=1, num_iterations=5, num_calibration_iterations=5)  # for a test
      >>> tiny |= dict(hidden=(8,), base=cs.bases.standard_normal(1))  # fitted if not given
      >>> sampler = OneStepSampler(model, num_samples=4_000, progress_bar=False, **tiny)
      >>> sampler.run(jax.random.key(0), y=jnp.array([0.3, -0.8, 1.1]))  # trains, then draws
      >>> samples = sampler.get_samples()
      >>> samples["scale"].shape, bool((samples["scale"] > 0).all())
      ((4000,), True)
      >>> sampler.evidence.bound
      'lower-if-injective'
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_samples: int = 10_000,
        num_steps: int = 1,
        progress_bar: bool = True,
        **train_settings: Any,
    ) -> None:
        if not callable(model):
            raise TypeError(
                "model must be a function with NumPyro primitives (or a handler around one), "
                f"got {type(model).__name__}."
            )
        unknown = [name for name in train_settings if name not in _TRAIN_SETTINGS]
        if unknown:
            raise TypeError(
                f"OneStepSampler got an unexpected setting {unknown[0]!r}. Besides num_samples, "
                f"num_steps and progress_bar it takes those of train_sampler: "
                f"{', '.join(_TRAIN_SETTINGS)}."
            )
        check_integer("num_samples", num_samples, 2)
        max_steps = train_settings.get("max_steps", _TRAIN_PARAMETERS["max_steps"].default)
        check_num_steps(num_steps, max_steps)
        self.model = model
        self.num_samples = num_samples
        self.num_steps = num_steps
        self.progress_bar = progress_bar
        self._train_settings = train_settings
        self._training: _Training | None = None
        self._run: _Run | None = None

    def run(self, rng_key: PRNGKey, *model_args: Any, **model_kwargs: Any) -> None:
        """Draws ``num_samples`` weighted samples, after training where these arguments need it.

        The same key gives the same training and the same draws.

        Args:
          rng_key: key.
          *model_args: arguments of the model.
          **model_kwargs: keyword arguments of the model.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: the model has a discrete or delta latent site, a subsampled plate, no latent
            site, or a density that is NaN, +inf or zero everywhere; or other latent sites than
            the arguments that it was trained on gave it.
        """
        self.ensure_trained(rng_key, *model_args, **model_kwargs)
        key = jax.random.fold_in(rng_key, 1)
        draws = self._sample(jax.random.fold_in(key, 0), self.num_samples)
        worth = evidence(draws)
        self._run = _Run(key, draws, worth, _weights_allow_resampling(worth))

    def ensure_trained(self, rng_key: PRNGKey, *model_args: Any, **model_kwargs: Any) -> None:
        """Trains on these arguments unless that has been done, as `run` does, without drawing.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: as `run`.
        """
        check_key(rng_key)
        if self._training is None:
            self.train(rng_key, *model_args, **model_kwargs)
        elif identify(self.model, model_args, model_kwargs) != self._training.arguments:
            self._training = self._go_on(self._training, rng_key, model_args, model_kwargs)
            self._run = None

    def train(self, rng_key: PRNGKey, *model_args: Any, **model_kwargs: Any) -> None:
        """Trains anew on these arguments, whatever was trained before; drops earlier draws.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: as `run`.
        """
        check_key(rng_key)
        self._training = self._train(rng_key, model_args, model_kwargs)
        self._run = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keeps the trained sampler in a folder (see `TrainedSampler.save`).

        Raises:
          RuntimeError: nothing was trained yet.
          CheckpointError: the folder cannot be written to.
        """
        self._trained_or_raise("save").trained.save(path)

    def load(self, path: str | os.PathLike[str], *model_args: Any, **model_kwargs: Any) -> None:
        """Takes a trained sampler from a folder instead of training; drops earlier draws.

        Args:
          path: the folder that `save` was given.
          *model_args: arguments of the model. With others than it was trained on, the draws are
            weighted for these, and a warning says so.
          **model_kwargs: keyword arguments of the model.

        Raises:
          CheckpointError: see `consistent_samplers.load`.
          ValueError: the model, as for `run`.
        """
        model = flatten_model(self.model, model_args, model_kwargs)
        trained = load(path, model.target)
        check_num_steps(self.num_steps, trained.many_steps.max_steps)
        self._training = self._known(model, model_args, model_kwargs, trained)
        self._run = None

    def get_samples(self, *, resampled: bool | None = None) -> Samples:
        """Constrained and deterministic sites of the last run, as equally weighted draws.

        Where the weights allow it (see `reweighted`), the draws are corrected by
        sampling-importance-resampling with Pareto-smoothed weights, from up to ten times as many
        candidates so that few draws appear twice. Elsewhere they are what the trained sampler
        gives, and a warning says so.

        Args:
          resampled: True always corrects, False never does.

        Returns:
          Arrays ``[num_samples, ...]`` by name.

        Raises:
          RuntimeError: before `run`.
        """
        run = self._last_run("get_samples")
        if resampled is None:
            resampled = run.reweighted
            if not resampled:
                warnings.warn(
                    "These draws are not corrected by their importance weights, which are too "
                    f"uneven for it: they follow the trained sampler, not exactly the posterior. "
                    f"{self.trained.verdict(run.evidence)} (get_samples(resampled=False) says that "
                    "this is wanted.)",
                    stacklevel=2,
                )
        return dict(self._samples_of(run, resampled)[0])

    def get_weighted_samples(self) -> tuple[Samples, Array]:
        """The last run's one-step draws as they are, with their log weights ``[num_samples]``.

        Raises:
          RuntimeError: before `run`.
        """
        samples, log_weight = self._samples_of(self._last_run("get_weighted_samples"), False)
        return dict(samples), log_weight

    def to_arviz(
        self,
        *,
        resampled: bool | None = None,
        log_likelihood: bool = True,
        rng_key: PRNGKey | None = None,
    ) -> Any:
        """The last run's draws as ArviZ takes them, in one chain.

        Groups: the posterior as from `get_samples`; sample statistics, ``log_weight``: the log
        importance weight of the one-step draw that each came from; the log likelihood of each
        observation; posterior predictive draws; the observed data. Models whose likelihood is a
        ``numpyro.factor`` have the first two only.

        Args:
          resampled: as in `get_samples`.
          log_likelihood: whether to compute it.
          rng_key: key of the posterior predictive draws; the run's own if None.

        Returns:
          ``arviz.InferenceData``, or ``xarray.DataTree`` with ArviZ 1.

        Raises:
          ImportError: ArviZ is not installed.
          RuntimeError: before `run`.
        """
        run = self._last_run("to_arviz")
        posterior = self.get_samples(resampled=resampled)
        chosen = run.reweighted if resampled is None else resampled
        training = self._trained_or_raise("to_arviz")
        key = jax.random.fold_in(run.rng_key, MAX_OVERSAMPLING + 1) if rng_key is None else rng_key
        return to_inference_data(
            self.model,
            training.model_args,
            training.model_kwargs,
            posterior,
            {"log_weight": self._samples_of(run, chosen)[1]},
            predictive_key=key,
            with_log_likelihood=log_likelihood,
        )

    @overload
    def draw(
        self, rng_key: PRNGKey, num_samples: int, *, weights: Literal[False] = ...
    ) -> Samples: ...

    @overload
    def draw(
        self, rng_key: PRNGKey, num_samples: int, *, weights: Literal[True]
    ) -> tuple[Samples, Array]: ...

    def draw(
        self, rng_key: PRNGKey, num_samples: int, *, weights: bool = False
    ) -> Samples | tuple[Samples, Array]:
        """Fresh draws of the trained sampler, any number of them, fast and not resampled.

        Args:
          rng_key: key.
          num_samples: number of draws; each new number compiles once.
          weights: also compute log weights, which costs a Jacobian a draw.

        Returns:
          Samples as in `get_samples`; with ``weights``, the pair
          ``(samples, log_weight [num_samples])``.

        Raises:
          RuntimeError: nothing was trained yet.
          TypeError: ``rng_key`` is not a single key.
          ValueError: ``num_samples`` is not a positive integer.
        """
        check_key(rng_key)
        constrain = self._trained_or_raise("draw").model.constrain
        draws = self._sample(rng_key, num_samples, weights=weights)
        samples = constrain(draws.position)
        return samples if draws.log_weight is None else (samples, draws.log_weight)

    def print_summary(self, prob: float = 0.9, exclude_deterministic: bool = True) -> None:
        """Prints a table in the habit of ``MCMC.print_summary``, then what it is worth.

        Args:
          prob: mass of the highest-density interval.
          exclude_deterministic: leave out deterministic sites.

        Raises:
          RuntimeError: before `run`.
        """
        run = self._last_run("print_summary")
        latent = self._trained_or_raise("print_summary").model.latent
        samples = {
            name: np.asarray(value)
            for name, value in self._samples_of(run, run.reweighted)[0].items()
            if name in latent or not exclude_deterministic
        }
        print(summary_table(samples, prob, self._num_effective(run)))
        print(run.evidence)
        how = (
            f"reweighted: resampled from {self._num_blocks(run) * self.num_samples} weighted draws"
            if run.reweighted
            else "not reweighted: the weights are too uneven, so they follow the sampler itself"
        )
        print(f"draws     {how}")
        if self.route is not None:
            print(f"route     {self.route}")
        if self.trained.warm_started:
            print("training  went on from a sampler of other data")
        print(f"\n{self.trained.verdict(run.evidence)}")

    def diagnostics(self) -> dict[str, Any]:
        """What the last run's draws are worth, as plain numbers.

        Returns:
          ``ess`` (share), ``pareto_k``, ``folded`` (share), ``round_trip_error`` (None where not
          measured), ``bound``, ``reweighted``, ``verdict``, ``training_seconds``,
          ``stage_elbos``: the one-step ELBO after each stage of training; ``route``: how far
          training went; ``warm_started``: whether it went on from a sampler of other data.

        Raises:
          RuntimeError: before `run`.
        """
        run = self._last_run("diagnostics")
        trained, worth = self.trained, run.evidence
        return {
            "ess": float(worth.ess),
            "pareto_k": float(worth.pareto_k),
            "folded": None if worth.folded is None else float(worth.folded),
            "round_trip_error": (
                None if worth.round_trip_error is None else float(worth.round_trip_error)
            ),
            "bound": worth.bound,
            "reweighted": run.reweighted,
            "verdict": trained.verdict(worth),
            "training_seconds": trained.training_seconds,
            "stage_elbos": {name: float(stage.elbo) for name, stage in trained.stages.items()},
            "route": None if trained.route is None else trained.route.name,
            "warm_started": trained.warm_started,
        }

    @property
    def evidence(self) -> Evidence:
        """Evidence from the last run's weighted draws (RuntimeError before `run`)."""
        return self._last_run("evidence").evidence

    @property
    def reweighted(self) -> bool:
        """Whether `get_samples` corrects the last run's draws by their weights.

        It does if at least `MIN_RESAMPLED_EFFECTIVE` draws are effective and
        `diagnostics.weights_are_reliable` (RuntimeError before `run`).
        """
        return self._last_run("reweighted").reweighted

    @property
    def trained(self) -> TrainedSampler:
        """The trained sampler on the flattened space (RuntimeError before training)."""
        return self._trained_or_raise("trained").trained

    @property
    def route(self) -> Route | None:
        """How far training went and why (RuntimeError before training)."""
        return self._trained_or_raise("route").trained.route

    @property
    def is_trained(self) -> bool:
        """Whether there is a trained sampler."""
        return self._training is not None

    @property
    def flat_model(self) -> FlatModel:
        """The model as a density on the flattened space (RuntimeError before training)."""
        return self._trained_or_raise("flat_model").model

    def _train(
        self, rng_key: PRNGKey, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> _Training:
        model = flatten_model(self.model, model_args, model_kwargs)
        trained = self._train_on(model, rng_key, None)
        return self._known(model, model_args, model_kwargs, trained)

    def _go_on(
        self,
        known: _Training,
        rng_key: PRNGKey,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> _Training:
        """Training on other data, from what is known."""
        model = known.model.with_arguments(model_args, model_kwargs)
        if model is None:
            model = flatten_model(self.model, model_args, model_kwargs)
        was, now = (dict(m.functions.sites) for m in (known.model, model))
        if was != now:
            raise ValueError(
                f"With these arguments model {name_of(self.model)!r} has the latent sites {now} "
                f"(unconstrained shapes), and this sampler was trained on {was}. Call "
                ".train(rng_key, ...) to train anew, or make a new OneStepSampler."
            )
        warnings.warn(
            f"Other arguments of model {name_of(self.model)!r}: training goes on from the sampler "
            "that was trained before. Call .train(rng_key, ...) to train anew.",
            stacklevel=4,
        )
        trained = self._train_on(model, rng_key, known.trained)
        return self._known(model, model_args, model_kwargs, trained)

    def _known(
        self,
        model: FlatModel,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
        trained: TrainedSampler,
    ) -> _Training:
        arguments = identify(self.model, model_args, model_kwargs)
        return _Training(model, model_args, model_kwargs, arguments, trained)

    def _train_on(
        self, model: FlatModel, rng_key: PRNGKey, start: TrainedSampler | None
    ) -> TrainedSampler:
        key_init, key_train = jax.random.split(jax.random.fold_in(rng_key, 0))
        settings = dict(self._train_settings)
        if settings.get("checkpoint_dir") is not None:
            # A run on other data is another run, which must not go on from this one's checkpoints.
            settings["checkpoint_dir"] = Path(settings["checkpoint_dir"]) / model.digest()
        return train_sampler(
            key_train,
            model.target,
            init_position=starting_points(key_init, model),
            num_samples=self.num_samples,
            start=start,
            progress_bar=self.progress_bar,
            **settings,
        )

    def _sample(self, rng_key: PRNGKey, num_samples: int, *, weights: bool = True) -> Draws:
        return self.trained.sample(rng_key, num_samples, self.num_steps, weights=weights)

    def _samples_of(self, run: _Run, resampled: bool) -> tuple[Samples, Array]:
        if resampled not in run.samples:
            constrain = self._trained_or_raise("get_samples").model.constrain
            position, log_weight = run.draws.position, checked_log_weight(run.draws)
            if resampled:
                position, log_weight = self._resample(run)
            run.samples[resampled] = constrain(position), log_weight
        return run.samples[resampled]

    def _resample(self, run: _Run) -> tuple[Array, Array]:
        """Resampled positions from the run's own and more candidates, and their log weights."""
        blocks = [run.draws] + [
            self._sample(jax.random.fold_in(run.rng_key, i), self.num_samples)
            for i in range(1, self._num_blocks(run))
        ]
        # On the host: joins and gathers of every length would each be compiled.
        position = np.concatenate([np.asarray(block.position) for block in blocks])
        log_weight = np.concatenate([np.asarray(checked_log_weight(block)) for block in blocks])
        key = jax.random.fold_in(run.rng_key, MAX_OVERSAMPLING)
        smoothed, _ = pareto_smooth(jax.device_put(log_weight))
        index = np.asarray(corrections.systematic_indices(key, smoothed, self.num_samples))
        chosen: tuple[Array, Array] = jax.device_put((position[index], log_weight[index]))
        return chosen

    def _num_blocks(self, run: _Run) -> int:
        """Blocks of ``num_samples`` candidates: twice as many effective ones as are asked for."""
        wanted = round(2.0 / max(float(run.evidence.ess), 1e-6))
        affordable = _MAX_CANDIDATE_FLOATS // run.draws.position.size
        return max(1, min(wanted, MAX_OVERSAMPLING, affordable))

    def _num_effective(self, run: _Run) -> float:
        blocks = self._num_blocks(run) if run.reweighted else 1
        return self.num_samples * min(1.0, blocks * float(run.evidence.ess))

    def _last_run(self, what: str) -> _Run:
        if self._run is None:
            raise RuntimeError(f"No draws yet: call run(rng_key, ...) before {what}.")
        return self._run

    def _trained_or_raise(self, what: str) -> _Training:
        if self._training is None:
            raise RuntimeError(f"Nothing is trained yet: call run(rng_key, ...) before {what}.")
        return self._training


def _weights_allow_resampling(worth: Evidence) -> bool:
    """Whether a Pareto-smoothed resample can be trusted and is not a handful of points."""
    enough = float(worth.ess) * worth.num_samples >= MIN_RESAMPLED_EFFECTIVE
    return enough and diagnostics.weights_are_reliable(worth)
