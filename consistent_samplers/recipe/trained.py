"""A trained sampler of one target: what it gives, and how it is kept on disk."""

import dataclasses
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from consistent_samplers import checkpoint
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.algorithms.calibration import CalibrationInfo
from consistent_samplers.algorithms.osds import OSDSInfo
from consistent_samplers.bases import Base, GaussianBase, MixtureBase, ProductMixtureBase
from consistent_samplers.diagnostics import ExplorationCheck, verdict
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.recipe.settings import Settings
from consistent_samplers.recipe.shared import share_sampling
from consistent_samplers.streaming import CHUNK_SIZE, stream_evidence
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Bound, Draws, PRNGKey

_KIND = "trained sampler"
_BASES = {base.__name__: base for base in (GaussianBase, MixtureBase, ProductMixtureBase)}
_INFOS = {info.__name__: info for info in (OSDSInfo, CalibrationInfo)}
# Points at which a target is compared with the one that a sampler was trained on.
_NUM_COMPARED = 8
_COMPARED_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class TrainedSampler:
    """A trained sampler of one target.

    Attributes:
      algorithm: what was trained (holds the target and the base).
      state: the distilled sampler, for any number of steps; untrained where nothing was distilled.
      one_step_state: the same network calibrated for one step.
      stages: evidence after each stage, on the same number of draws, all at one step: ``"base"``,
        ``"distilled"`` where that was asked for, and ``"calibrated"``.
      histories: training history of ``"distilled"`` and ``"calibrated"``, as far as they went.
      training_seconds: wall time of `train_sampler`, compilation included.
      exploration: what an independent look for modes found, or None without exploration.
      settings: what the algorithm was made of; None for one that was made by hand, which cannot be
        saved.
      warm_started: whether training went on from a sampler of another target.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.recipe import Settings
      >>> target, base = cs.targets.gaussian(jnp.zeros(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = Settings(max_steps=1, hidden=(8,), network="general").build(target, base)
      >>> state = algorithm.init(jax.random.key(0))
      >>> trained = cs.TrainedSampler(algorithm, state, state, {}, {}, 0.0)  # see `train_sampler`
      >>> draws = trained.sample(jax.random.key(1), 100)
      >>> draws.position.shape, draws.log_weight.shape, draws.bound
      ((100, 1), (100,), 'lower-if-injective')
      >>> evidence = trained.evidence(jax.random.key(2), 100)
      >>> abs(float(evidence.log_z) - target.log_z) < 1e-3  # base and target agree
      True
    """

    algorithm: Algorithm
    state: SamplerState
    one_step_state: SamplerState
    stages: dict[str, Evidence]
    histories: dict[str, Any]
    training_seconds: float
    exploration: ExplorationCheck | None = None
    settings: Settings | None = None
    warm_started: bool = False

    @property
    def target(self) -> Target:
        """The target."""
        return self.algorithm.target

    @property
    def base(self) -> Base:
        """The base that was fitted to the target."""
        return self.algorithm.base

    def state_for(
        self, num_steps: int = 1, bound: Bound | None = "lower-if-injective"
    ) -> SamplerState:
        """The state that draws in ``num_steps`` steps: the calibrated one for a single map."""
        return self.one_step_state if num_steps == 1 and bound != "lower" else self.state

    def sample(
        self,
        rng_key: PRNGKey,
        num_samples: int,
        num_steps: int = 1,
        *,
        bound: Bound | None = "lower-if-injective",
        mesh: Mesh | None = None,
    ) -> Draws:
        """Draws ``num_samples`` points in ``num_steps`` network evaluations each.

        Args:
          rng_key: key.
          num_samples: number of draws.
          num_steps: sampler steps, a power of two up to the ``max_steps`` that it was trained with.
            One step is calibrated on its exact likelihood, and usually the best.
          bound: kind of weights (see `Algorithm.sample`); None for draws without weights,
            which costs one network evaluation a step and nothing else.
          mesh: devices to spread the draws over; the draws are the same.

        Raises:
          ValueError: ``num_steps`` is not one the sampler was trained for, or ``bound`` is not
            a kind of evidence.
        """
        state = self.state_for(num_steps, bound)
        return self.algorithm.sample(rng_key, state, num_samples, num_steps, bound=bound, mesh=mesh)

    def evidence(
        self,
        rng_key: PRNGKey,
        num_samples: int = 10_000,
        num_steps: int = 1,
        *,
        bound: Bound = "lower-if-injective",
        mesh: Mesh | None = None,
    ) -> Evidence:
        """ELBO and log Z with their standard errors from fresh draws.

        ``bound="lower"`` uses the stochastic path of `state`: usually looser, but a bound by
        construction.
        """

        def sample(rng_key: PRNGKey, num_samples: int) -> Draws:
            return self.sample(rng_key, num_samples, num_steps, bound=bound, mesh=mesh)

        if isinstance(num_samples, int) and num_samples > CHUNK_SIZE:
            return stream_evidence(rng_key, sample, num_samples)
        return evidence(sample(rng_key, num_samples))

    def verdict(self, evidence: Evidence) -> str:
        """What some evidence is worth, the look for modes included, and what to try."""
        return verdict(evidence, self.exploration)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keeps the sampler in a folder, in place of one that was kept there before.

        Everything but the target, which is code, and the optimiser's state: see `load`. JSON and
        msgpack, no pickle.

        Args:
          path: the folder; made if it does not exist.

        Raises:
          CheckpointError: the folder cannot be written to.
          ValueError: the sampler was made by hand.
        """
        if self.settings is None:
            raise ValueError(
                "Only what cs.train_sampler made can be saved, and built again. Keep the state of "
                "an algorithm of your own with checkpoint_dir of cs.fit."
            )
        compared = self.base.sample(jax.random.key(0), _NUM_COMPARED)
        fields = {f.name: getattr(self.base, f.name) for f in dataclasses.fields(self.base)}  # type: ignore[arg-type]
        arrays = {
            "base": {k: np.asarray(v) for k, v in fields.items() if v is not None},
            "state": _kept_of(self.state),
            "one_step_state": _kept_of(self.one_step_state),
            "stages": {name: _numbers_of(stage) for name, stage in self.stages.items()},
            "histories": {
                name: {k: np.asarray(v) for k, v in info._asdict().items()}
                for name, info in self.histories.items()
            },
            "compared": {
                "position": np.asarray(compared),
                "log_density": np.asarray(jax.lax.map(self.target.log_density, compared)),
            },
        }
        if self.exploration is not None:
            found = self.exploration._asdict()
            arrays["exploration"] = {k: np.asarray(v) for k, v in found.items()}
        header = {
            "target": self.target.name,
            "dim": self.target.dim,
            "settings": self.settings._asdict(),
            "base": type(self.base).__name__,
            "stages": {
                name: {"bound": e.bound, "num_samples": e.num_samples}
                for name, e in self.stages.items()
            },
            "histories": {name: type(info).__name__ for name, info in self.histories.items()},
            "training_seconds": self.training_seconds,
            "warm_started": self.warm_started,
        }
        checkpoint.write(path, _KIND, header, arrays)


def load(path: str | os.PathLike[str], target: Target) -> TrainedSampler:
    """Reads what `TrainedSampler.save` kept, onto the devices of this process.

    Args:
      path: the folder.
      target: what the sampler was trained on. Another density of the same dimension is taken too,
        with a warning: weights are always those of the target given here.

    Raises:
      CheckpointError: the folder holds no trained sampler, a damaged one, one of a newer version of
        this package, or one of another dimension.

    Example:
      >>> import tempfile
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.recipe import Settings
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> settings = Settings(max_steps=2, hidden=(8,), network="general")
      >>> algorithm = settings.build(target, base)
      >>> state = algorithm.init(jax.random.key(0))
      >>> trained = cs.TrainedSampler(algorithm, state, state, {}, {}, 0.0, settings=settings)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     trained.save(folder)
      ...     again = cs.load(folder, target)
      >>> again.settings == trained.settings, again.algorithm.name
      (True, 'osds')
    """
    header, arrays = checkpoint.read(path, _KIND)
    try:
        if header["dim"] != target.dim:
            raise checkpoint.CheckpointError(
                f"The sampler in {path} has {header['dim']} dimensions (target "
                f"{header['target']!r}), but the target {target.name!r} has {target.dim}."
            )
        base = _BASES[header["base"]](**{k: jnp.asarray(v) for k, v in arrays["base"].items()})
        settings = Settings(
            **(header["settings"] | {"hidden": tuple(header["settings"]["hidden"])})
        )
        algorithm = share_sampling(settings.build(target, base), settings)
        state, one_step_state = (
            _state_of(algorithm, arrays[name]) for name in ("state", "one_step_state")
        )
        stages = {
            name: _evidence_of(arrays["stages"][name], static)
            for name, static in header["stages"].items()
        }
        histories = {
            name: _INFOS[kind](**arrays["histories"][name])
            for name, kind in header["histories"].items()
        }
        exploration = None
        if "exploration" in arrays:
            exploration = ExplorationCheck(
                **{k: v.item() for k, v in arrays["exploration"].items()}
            )
        compared, seconds = arrays["compared"], header["training_seconds"]
        warm_started = header.get("warm_started", False)
        was = np.asarray(compared["log_density"], np.float64)
        position = jnp.asarray(compared["position"])
    except (KeyError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"The sampler in {path} is incomplete ({error!r}): it was not written by this package, "
            "or damaged on the way."
        ) from error
    now = np.asarray(jax.lax.map(target.log_density, position), np.float64)
    with np.errstate(invalid="ignore"):  # two that are -inf agree
        difference = np.where(now == was, 0.0, np.abs(now - was))
    if not np.all(difference <= _COMPARED_TOLERANCE * (1.0 + np.abs(was))):
        warnings.warn(
            f"The density of target {target.name!r} is not the one that the sampler in {path} was "
            f"trained on: they differ by up to {np.nanmax(difference):.3g} nats at "
            f"{_NUM_COMPARED} points. Its draws are weighted for the new one; train again where "
            "the weights turn out uneven.",
            stacklevel=2,
        )
    return TrainedSampler(
        algorithm,
        state,
        one_step_state,
        stages,
        histories,
        seconds,
        exploration,
        settings,
        warm_started,
    )


def _kept_of(state: SamplerState) -> dict[str, Any]:
    """What of a state is worth keeping without its optimiser."""
    return {
        "params": checkpoint.to_arrays(state.params),
        "ema_params": checkpoint.to_arrays(state.ema_params),
        "iteration": np.asarray(state.iteration),
    }


def _state_of(algorithm: Algorithm, kept: dict[str, Any]) -> SamplerState:
    """A state with a fresh optimiser on kept parameters."""
    like = jax.eval_shape(algorithm.init, jax.random.key(0))
    ema_params = checkpoint.from_arrays(like.ema_params, kept["ema_params"], "parameters")
    params = checkpoint.from_arrays(like.params, kept["params"], "parameters")
    averaged = like._replace(params=ema_params, ema_params=ema_params)
    iteration = jnp.asarray(kept["iteration"])
    return algorithm.restart(averaged)._replace(params=params, iteration=iteration)


def _numbers_of(e: Evidence) -> dict[str, np.ndarray]:
    static = ("bound", "num_samples")
    fields = {f.name: getattr(e, f.name) for f in dataclasses.fields(e) if f.name not in static}
    return {name: np.asarray(value) for name, value in fields.items() if value is not None}


def _evidence_of(numbers: dict[str, np.ndarray], static: dict[str, Any]) -> Evidence:
    fields: dict[str, Any] = {name: jnp.asarray(value) for name, value in numbers.items()}
    return Evidence(**fields, **static)
