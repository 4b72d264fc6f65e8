"""One-step posterior draws of NumPyro models, used like ``numpyro.infer.MCMC``.

A model becomes a `Target` over its unconstrained latent sites, flattened into one vector with
the Jacobians of NumPyro's transforms included; with proper priors, log Z is then the model's log
marginal likelihood. Draws go back through the model, which also gives deterministic sites.
"""

import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

from consistent_samplers.bases.iterating import folded, pair
from consistent_samplers.bracket import Bracket
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.corrections import Reweighted
from consistent_samplers.integrations.numpyro.arguments import identify, name_of
from consistent_samplers.integrations.numpyro.model import (
    FlatModel,
    Samples,
    flatten_model,
)
from consistent_samplers.integrations.numpyro.results import Results
from consistent_samplers.integrations.numpyro.reweighting import reweight, sensitivity
from consistent_samplers.integrations.numpyro.run import Run
from consistent_samplers.integrations.numpyro.starting import starting_points
from consistent_samplers.recipe import Route, TrainedSampler, load, train_sampler
from consistent_samplers.recipe.chain_stage import where_needed
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.types import Array, PRNGKey

_TRAIN_PARAMETERS = inspect.signature(train_sampler).parameters
# The model and the sampler's own arguments give these; the others are the caller's to set.
_OURS = ("rng_key", "target", "init_position", "num_samples", "start", "progress_bar")
_TRAIN_SETTINGS = tuple(name for name in _TRAIN_PARAMETERS if name not in _OURS)


class OneStepSampler(Results):
    """Posterior draws of a NumPyro model in one network evaluation each.

    Works with every model whose latent sites are continuous, those under
    ``numpyro.handlers.reparam`` included. The first `run` trains, and later runs with the same
    arguments (data) only draw. On other data training goes on from the sampler that there is, which
    a warning says; with arrays of the same shapes nothing is compiled again. Of data that the model
    reads from elsewhere, such as a global variable, a change in place may not be seen. What needs
    draws or a trained sampler raises RuntimeError before `run`.

    Args:
      model: a function with NumPyro primitives, or a handler around one.
      num_samples: draws of each run.
      num_steps: sampler steps of each draw. Only the single step is calibrated.
      progress_bar: show a line for each stage of training, with the time that is left, where
        standard error is a terminal or in a notebook.
      **train_settings: settings of `consistent_samplers.train_sampler`, e.g. ``effort``,
        ``num_calibration_iterations``, ``network``, ``max_steps``; a ``base`` lives in the
        flattened unconstrained space.

    Raises:
      TypeError: ``model`` is not callable, or a setting that ``train_sampler`` does not have.
      ValueError: ``num_samples`` is not an integer of at least 2, or ``num_steps`` is not a power
        of two up to ``max_steps``.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> import numpyro, numpyro.distributions as dist
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
        # What was trained, and on the model of which arguments.
        self._training: tuple[FlatModel, TrainedSampler] | None = None

    def run(self, rng_key: PRNGKey, *model_args: Any, **model_kwargs: Any) -> None:
        """Draws ``num_samples`` weighted samples, after training where these arguments need it.

        The same key gives the same training and the same draws.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: the model has a discrete or delta latent site, a subsampled plate, no latent
            site, a density that is NaN, +inf or zero everywhere, or other latent sites than it
            was trained on.
        """
        self.ensure_trained(rng_key, *model_args, **model_kwargs)
        key = folded(rng_key, 1)
        run = Run(key, self.flat_model, self.trained, self.num_samples, self.num_steps)
        if run.verdict.level == "not to be used" and self._may_chain:
            # These draws say what those that ended the training did not.
            trained = where_needed(
                folded(rng_key, 2),
                self.trained,
                draws=(run.draws,),
                num_samples=self.num_samples,
                progress_bar=self.progress_bar,
            )
            if trained.chains is not None:
                self._training = (self.flat_model, trained)
                run = dataclasses.replace(run, trained=trained)
        self._run = run

    def ensure_trained(self, rng_key: PRNGKey, *model_args: Any, **model_kwargs: Any) -> None:
        """Trains where `run` would, without drawing; errors as of `run`."""
        check_key(rng_key)
        if self._training is None:
            self.train(rng_key, *model_args, **model_kwargs)
            return
        known = self.flat_model
        other = identify(self.model, model_args, model_kwargs) != known.identity
        if other or known.has_changed():
            model = known.with_arguments(model_args, model_kwargs)
            what = "arguments of" if other else "values in"
            warnings.warn(
                f"Other {what} model {name_of(self.model)!r}: training goes on from the "
                "sampler that was trained before. Call .train(rng_key, ...) to train anew.",
                stacklevel=3,
            )
            self._train(rng_key, model, self.trained)

    def train(self, rng_key: PRNGKey, *model_args: Any, **model_kwargs: Any) -> None:
        """Trains anew on these arguments and drops earlier draws; errors as of `run`."""
        check_key(rng_key)
        self._train(rng_key, flatten_model(self.model, model_args, model_kwargs), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keeps the trained sampler in a folder; errors as of `TrainedSampler.save`."""
        self._trained_or_raise("save")[1].save(path)

    def load(self, path: str | os.PathLike[str], *model_args: Any, **model_kwargs: Any) -> None:
        """Takes a sampler from the folder of `save` instead of training; drops earlier draws.

        With other arguments of the model than it was trained on, the draws are weighted for these,
        and a warning says so.

        Raises:
          CheckpointError: see `consistent_samplers.load`.
          ValueError: the model, as for `run`.
        """
        model = flatten_model(self.model, model_args, model_kwargs)
        trained = load(path, model.target)
        check_num_steps(self.num_steps, trained.many_steps.max_steps)
        self._training, self._run = (model, trained), None

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
          weights: also return log weights ``[num_samples]``, which costs a Jacobian a draw.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: ``num_samples`` is not a positive integer.
        """
        check_key(rng_key)
        model, trained = self._trained_or_raise("draw")
        draws = trained.sample(rng_key, num_samples, self.num_steps, weights=weights)
        samples = model.constrain(draws.position)
        return samples if draws.log_weight is None else (samples, draws.log_weight)

    def bracket(self, rng_key: PRNGKey, num_samples: int = 10_000) -> Bracket:
        """Log Z from both sides; see `recipe.TrainedSampler.bracket`.

        Args:
          rng_key: key.
          num_samples: draws of the one-step sampler.

        Raises:
          RuntimeError: nothing is trained yet.
          ValueError: no draw of the sampler has a weight.
        """
        return self._trained_or_raise("bracket")[1].bracket(rng_key, num_samples)

    def reweight(
        self,
        model: Callable[..., Any] | None = None,
        *model_args: Any,
        prior_power: float = 1.0,
        likelihood_power: float = 1.0,
        **model_kwargs: Any,
    ) -> Reweighted:
        """The last run's draws under another prior or likelihood, with a verdict.

        Nothing is trained; the draws are those of chains where `get_samples` gives these. Log Z is
        that of ∏ prior^a likelihood^b with the two powers (Kallioinen et al., 2024);
        ``numpyro.factor`` and imputed observations count as likelihood.

        Args:
          model: another one with the same latent sites, by names and shapes; a support may be
            smaller. The sampler's own if None.
          *model_args: its data; those of the last run if neither these nor keywords are given.
          prior_power: a, not negative.
          likelihood_power: b, not negative.
          **model_kwargs: its keywords.

        Raises:
          RuntimeError: there was no run.
          ValueError: other latent sites, a negative power, or no draw has a density.
        """
        run = self._last_run("reweight")
        arguments = model_args, model_kwargs
        return reweight(run, model, arguments, prior_power, likelihood_power)

    def sensitivity(self, alphas: tuple[float, float] = (0.99, 1.01)) -> Any:
        """ArviZ's table of each site's sensitivity to powers of prior and likelihood, of psense.

        Above 0.05 a site is sensitive; to both, prior and data are in conflict (Kallioinen et al.,
        2024, Statistics and Computing 34:57).

        Args:
          alphas: the powers that the derivative is taken between.

        Raises:
          ImportError: ``arviz-stats`` is not installed.
          RuntimeError: there was no run.
        """
        return sensitivity(self._last_run("sensitivity"), alphas)

    @property
    def trained(self) -> TrainedSampler:
        """The trained sampler on the flattened space."""
        return self._trained_or_raise("trained")[1]

    @property
    def route(self) -> Route | None:
        """How far training went and why."""
        return self._trained_or_raise("route")[1].route

    @property
    def is_trained(self) -> bool:
        """Whether there is a trained sampler."""
        return self._training is not None

    @property
    def flat_model(self) -> FlatModel:
        """The model as a density on the flattened space."""
        return self._trained_or_raise("flat_model")[0]

    @property
    def _may_chain(self) -> bool:
        """Whether chains are run where one step falls short, as `train_sampler` would."""
        given = self._train_settings
        own_budget = given.get("num_calibration_iterations") is not None
        without = own_budget or given.get("effort") in ("base", "short")
        return self.trained.chains is None and not without

    def _train(self, rng_key: PRNGKey, model: FlatModel, start: TrainedSampler | None) -> None:
        key_init, key_train = pair(folded(rng_key, 0))
        settings = dict(self._train_settings)
        if settings.get("checkpoint_dir") is not None:
            # A run on other data is another run, which must not go on from this one's checkpoints.
            settings["checkpoint_dir"] = Path(settings["checkpoint_dir"]) / model.digest()
        trained = train_sampler(
            key_train,
            model.target,
            init_position=starting_points(key_init, model, settings.get("base")),
            num_samples=self.num_samples,
            start=start,
            progress_bar=self.progress_bar,
            **settings,
        )
        self._training, self._run = (model, trained), None

    def _trained_or_raise(self, what: str) -> tuple[FlatModel, TrainedSampler]:
        if self._training is None:
            raise RuntimeError(f"Nothing is trained yet: call run(rng_key, ...) before {what}.")
        return self._training
