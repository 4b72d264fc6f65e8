"""Settings of every method in one place, and how a method is trained within a budget.

A trained method is a `Sampler`, whatever stood behind it.
"""

import contextlib
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

import consistent_samplers as cs
from benchmarks import registry
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import GaussianBase
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, Method

# --- Settings -----------------------------------------------------------------------------------
# Peak learning rates: a cosine decay to zero goes over the iterations of a budget in iterations;
# a budget in seconds keeps them constant.

SETTINGS: dict[str, dict[str, Any]] = {
    "dis": {"batch_size": 256, "learning_rate": 5e-3},
    "dis-learned": {
        "batch_size": 128,
        "learning_rate": 5e-3,
        "learned_kernels": "both",
        "loss": "reverse_kl",
    },
    "dds": {"batch_size": 256, "learning_rate": 5e-3},
    "pis": {"batch_size": 256, "learning_rate": 5e-3},
    "scds": {"batch_size": 256, "learning_rate": 3e-3},
    "osds": {"batch_size": 128, "learning_rate": 2e-3},
    "osds-calibrated": {"batch_size": 128, "learning_rate": 2e-3},
    "cdds": {"batch_size": 256, "learning_rate": 2e-3},
    "cdds-calibrated": {"batch_size": 256, "learning_rate": 2e-3},
    "progressive": {"batch_size": 256, "learning_rate": 1e-3},
    # The papers' own, but for a batch that two cores can carry within the same budget.
    "dis.paper": {"batch_size": 256, "learning_rate": 5e-3},
    "dds.paper": {"batch_size": 256, "learning_rate": 5e-3},
    "pis.paper": {"batch_size": 256, "learning_rate": 5e-3},
    "scds.paper": {"batch_size": 256, "learning_rate": 5e-3},
    "osds.paper": {"batch_size": 128, "learning_rate": 5e-4},
    "cdds.paper": {"batch_size": 256, "learning_rate": 1e-3},
}
MANY_DIMENSIONS = 100
"""Above it our own methods take the network whose determinants come by parts."""
MANY_DIMENSIONS_SETTINGS: dict[str, Any] = {"network": "structured", "guidance": None}
_MAX_FACTORISED_DIM = 500
"""Above it a general network's map is drawn but not weighed: each draw takes the determinant of a
full matrix, and each inversion a score of them."""

CALIBRATION: dict[str, Any] = {"batch_size": 128, "learning_rate": 2e-3}
CALIBRATION_SHARE = 0.5
"""Of the budget of osds-calibrated, for the calibration of the single step; what cdds-calibrated
adds to the budgets of teacher and student."""
RECIPE_CALIBRATION_SHARE = 5.0 / 6.0
"""The same for the recipe, where it distils first: its own are then 300 iterations and 1,500."""
# Its rows show few-step draws as well.
_RECIPE_MAX_STEPS = 16
STUDENT_SHARE = 3.0
"""Iterations of a CDDS student for each of its teacher's: they cost a tenth."""

TEACHERS = {
    "cdds": "dis",
    "cdds-calibrated": "dis",
    "progressive": "dis",
    "cdds.paper": "dis.paper",
}
"""Distillation trains this teacher first, with the budget of the row."""

# Iterations of the rows of the tables; see also the targets and methods in table.py. Curricula
# that count iterations (osds' warm-up, scds' levels) end within these shares of the budget.
QUICK_ITERATIONS: dict[str, int] = {
    "dis": 1_200,
    "dis-learned": 1_000,
    "dds": 800,
    "pis": 800,
    "cdds": 1_200,
    "cdds-calibrated": 1_200,
    "scds": 2_500,
    "osds": 1_000,
    "osds-calibrated": 2_000,
    "recipe": 1_800,
}
FULL_ITERATIONS: dict[str, int] = {
    "dis": 5_000,
    "dis-learned": 5_000,
    "dis.paper": 5_000,
    "dds": 5_000,
    "pis": 5_000,
    "cdds": 5_000,
    "cdds-calibrated": 5_000,
    "scds": 5_000,
    "osds": 3_000,
    "osds.paper": 3_000,
    "osds-calibrated": 6_000,
    "recipe": 1_800,
    "progressive": 5_000,
}
WARMUP_SHARES = {
    **{name: {"anneal_iterations": 0.5} for name in ("dis", "dis-learned", "dds", "pis")},
    "osds": {"warmup_iterations": 0.2, "anneal_iterations": 0.3},
    "osds-calibrated": {"warmup_iterations": 0.1, "anneal_iterations": 0.15},
    "osds.paper": {"warmup_iterations": 0.2},
    "scds": {"steps_iterations": 0.3, "size_iterations": 0.5, "anneal_iterations": 0.5},
    "scds.paper": {"steps_iterations": 0.3, "size_iterations": 0.5},
}

STEPS: dict[str, tuple[int, ...]] = {
    "base": (1,),
    "nuts": (1,),
    **dict.fromkeys(("dis", "dds", "pis", "dis.paper", "dds.paper", "pis.paper"), (1, 8, 128)),
    "dis-learned": (2, 4, 8, 128),
    **dict.fromkeys(("cdds", "cdds.paper", "progressive"), (1, 2, 4)),
    "cdds-calibrated": (1,),
    "scds": (1, 2, 4, 8, 32),
    **dict.fromkeys(("scds.paper", "osds.paper"), (1, 2, 4, 8, 128)),
    **dict.fromkeys(("osds", "osds-calibrated", "recipe"), (1, 2, 4, 8, 16)),
}
"""Numbers of steps of a row unless told; its keys are the methods there are."""

QUICK_STEPS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("dis", "dds", "pis"), (1, 128)),
    "cdds": (1, 2),
    "recipe": (1,),
    "scds": (1, 32),
    **dict.fromkeys(("osds", "osds-calibrated"), (1, 16)),
}
"""Fewer of them where compilation would take most of the time; `STEPS` for other methods."""

METHODS = tuple(STEPS)

# Students take their network from their teacher.
_BUILT_ON_A_BASE = frozenset(SETTINGS) - frozenset(TEACHERS)

# --- Samplers -----------------------------------------------------------------------------------

_CONSTRUCTORS: dict[str, Callable[..., Algorithm]] = {
    "dis": cs.dis,
    "dis-learned": cs.dis,
    "dds": cs.dds,
    "pis": cs.pis,
    "scds": cs.scds,
    "osds": cs.osds,
    "osds-calibrated": cs.osds,
    "cdds": cs.cdds,
    "cdds-calibrated": cs.cdds,
    "dis.paper": cs.dis.paper,
    "dds.paper": cs.dds.paper,
    "pis.paper": cs.pis.paper,
    "scds.paper": cs.scds.paper,
    "osds.paper": cs.osds.paper,
    "cdds.paper": cs.cdds.paper,
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a method trains: a number of iterations or of seconds, one of them.

    Attributes:
      iterations: training iterations, or None.
      seconds: seconds of training, compilation not included, or None.
    """

    iterations: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads "2000", "2000it" or "60s".

        Raises:
          ValueError: anything else.
        """
        number = text.removesuffix("it").removesuffix("s")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        in_seconds = text.endswith("s")
        if not 0 < value < float("inf") or (not in_seconds and value != int(value)):
            raise ValueError(
                f'A budget is a number of iterations ("2000" or "2000it") or of seconds ("60s"), '
                f"got {text!r}."
            )
        return cls(seconds=value) if in_seconds else cls(iterations=int(value))

    def __str__(self) -> str:
        return f"{self.iterations}it" if self.seconds is None else f"{self.seconds:g}s"

    def share(self, part: float) -> "Budget":
        """A part of it, of at least one iteration."""
        if self.iterations is None:
            assert self.seconds is not None
            return Budget(seconds=part * self.seconds)
        return Budget(iterations=max(1, round(part * self.iterations)))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A trained method.

    Attributes:
      trained: what draws and weighs, with parameters of their own for a calibrated single step.
      training: what training took, for the row: stages with iterations, seconds and so on.
      methods: transitions whose weights are measured, its default first; none for NUTS.
      left_out: which weights are left out and why, or None.
      chains: ``(rng_key, num_samples) -> [num_samples, dim]`` of NUTS, in place of ``trained``.
    """

    trained: cs.TrainedSampler
    training: dict[str, Any]
    methods: tuple[Method, ...]
    left_out: str | None = None
    chains: Callable[[Array, int], Array] | None = None

    @property
    def max_steps(self) -> int:
        """Most steps."""
        return self.trained.many_steps.max_steps

    @property
    def guided(self) -> bool:
        """Whether each network evaluation also evaluates the target's gradient."""
        return self.trained.many_steps.control.guided

    def draw(self, rng_key: Array, num: int, num_steps: int, method: Method) -> Draws:
        """Weighted draws."""
        return self.trained.sample(rng_key, num, num_steps, method=method)

    def reverse(self, rng_key: Array, position: Array, num_steps: int, method: Method) -> Array:
        """Log weights of given points."""
        trained = self.trained
        sampler = trained.sampler_for(num_steps, method)
        return sampler.log_weight(rng_key, trained.target, position, num_steps, method=method)


class Trainer:
    """Trains one method on one target, for any number of seeds.

    What does not depend on the seed is compiled once.

    Args:
      method: name of the method.
      target: the target.
      base: where it starts.
      budget: of each training.
      steps: numbers of steps that will be asked for.
      overrides: settings on top of the method's own.

    Raises:
      ValueError: no such method, or a budget in seconds where iterations are needed.
    """

    def __init__(
        self,
        method: str,
        target: Target,
        base: GaussianBase,
        budget: Budget,
        steps: Sequence[int],
        overrides: dict[str, Any] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
        if budget.iterations is None and method in ("progressive", "recipe"):
            raise ValueError(
                f"{method} plans its rounds in iterations. Give a budget such as 2000it, not "
                f"{budget}."
            )
        self._method = method
        self._target, self._base = target, base
        self._budget, self._steps = budget, tuple(steps)
        self._overrides = overrides or {}

    def train(self, seed: int) -> Sampler:
        """Trains with one seed."""
        key = jax.random.key(seed)
        if self._method in ("base", "nuts"):
            # What every other method has to beat: importance sampling from the base alone.
            alone = cs.Sampler.of_base(self._base)
            trained = cs.TrainedSampler(self._target, alone, alone)
            if self._method == "base":
                return Sampler(trained, {}, alone.methods)
            chains = functools.partial(registry.nuts_draws, target=self._target, base=self._base)
            return Sampler(trained, {}, (), chains=lambda key, num: chains(key, num_samples=num))
        if self._method == "recipe":
            return self._recipe(key)
        if self._method in TEACHERS:
            return self._distil(key)
        algorithm = self._algorithm
        calibrated = self._method == "osds-calibrated"
        share = 1.0 - CALIBRATION_SHARE if calibrated else 1.0
        state, stage = train(key, algorithm, self._budget.share(share))
        training: dict[str, Any] = {self._method.split("-")[0]: stage}
        one_step = state
        if calibrated:
            key_calibrate = jax.random.fold_in(key, 1)
            start = self._calibrated.restart(state)
            one_step, training["calibration"] = train(
                key_calibrate, self._calibrated, self._budget.share(CALIBRATION_SHARE), start
            )
        return _from_algorithm(algorithm, state, one_step, training)

    @functools.cached_property
    def _algorithm(self) -> Algorithm:
        share = 1.0 - CALIBRATION_SHARE if self._method == "osds-calibrated" else 1.0
        return self._build(self._method, self._budget.share(share))

    @functools.cached_property
    def _calibrated(self) -> Algorithm:
        settings = _scheduled(CALIBRATION, self._budget.share(CALIBRATION_SHARE))
        return cs.calibration(self._algorithm, **settings)

    @functools.cached_property
    def _teacher(self) -> Algorithm:
        return self._build(TEACHERS[self._method], self._budget)

    def _build(self, method: str, budget: Budget, **extra: Any) -> Algorithm:
        """A method with its settings on this target."""
        settings = _settings(method, self._target.dim)
        if budget.iterations is not None:
            shares = WARMUP_SHARES.get(method, {})
            warmup = {name: round(part * budget.iterations) for name, part in shares.items()}
            settings = warmup | settings
        if method == "dis-learned":
            powers = {k for k in self._steps if k > 1} | {128}
            settings = {"train_steps": tuple(sorted(powers)), "max_steps": 128} | settings
        if method == self._method:
            settings = settings | self._overrides
        if method not in TEACHERS:
            extra = {"base": self._base} | extra
        return _CONSTRUCTORS[method](self._target, **_scheduled(settings, budget), **extra)

    def _distil(self, key: Array) -> Sampler:
        """Teacher first, then the student, which takes more of the cheaper iterations."""
        key_teacher, key_student = jax.random.split(key)
        teacher_state, teacher_stage = train(key_teacher, self._teacher, self._budget)
        given: dict[str, Any] = {"teacher": self._teacher, "teacher_state": teacher_state}
        if self._method == "progressive":
            assert self._budget.iterations is not None
            num_rounds = self._teacher.max_steps.bit_length() - 1
            settings = _settings("progressive", self._target.dim)
            per_round = max(1, self._budget.iterations // num_rounds)
            student = cs.progressive_distillation(
                self._target,
                iterations_per_round=per_round,
                **given,
                **_scheduled(settings, self._budget),
            )
        else:
            student = self._build(self._method, self._budget.share(STUDENT_SHARE), **given)
        # Each seed has a student of its own: its teacher's parameters are part of it.
        share = 1.0 if self._method == "progressive" else STUDENT_SHARE
        state, stage = train(key_student, student, self._budget.share(share))
        stages = {f"teacher ({TEACHERS[self._method]})": teacher_stage, self._method: stage}
        one_step = state
        if self._method == "cdds-calibrated":
            budget = self._budget.share(CALIBRATION_SHARE)
            calibrated = cs.calibration(student, **_scheduled(CALIBRATION, budget))
            one_step, stages["calibration"] = train(
                jax.random.fold_in(key_student, 1), calibrated, budget, calibrated.restart(state)
            )
        return _from_algorithm(student, state, one_step, stages)

    def _recipe(self, key: Array) -> Sampler:
        total = self._budget.iterations
        assert total is not None
        # It chooses its own base, as it does for a user.
        calibration = round(RECIPE_CALIBRATION_SHARE * total)
        trained = cs.train_sampler(
            key,
            self._target,
            max_steps=_RECIPE_MAX_STEPS,
            num_iterations=max(1, total - calibration),
            num_calibration_iterations=max(1, calibration),
            progress_bar=False,
        )
        stage: dict[str, Any] = {"iterations": total, "seconds": trained.training_seconds}
        stage["compiled"] = False
        stage["base"] = type(trained.base).__name__
        return _measurable(trained, {"recipe": stage})


def train(
    rng_key: Array, algorithm: Algorithm, budget: Budget, state: SamplerState | None = None
) -> tuple[SamplerState, dict[str, Any]]:
    """Trains by ``cs.fit`` within a budget that does not pay for compilation.

    Args:
      rng_key: key.
      algorithm: what to train.
      budget: iterations or seconds.
      state: where to start; ``algorithm.init`` if None.

    Returns:
      The state, and what it took: iterations, seconds, seconds of compilation, the ELBO of the
      last iterations. Training that diverges keeps its last good state, and says when.
    """
    key_init, key_steps = jax.random.split(rng_key)
    if state is None:
        state = algorithm.init(key_init)

    def fit(state: SamplerState, num: int) -> cs.FitResult:
        with warnings.catch_warnings():
            # Of iterations that were skipped: they are counted.
            warnings.simplefilter("ignore", RuntimeWarning)
            return cs.fit(key_steps, algorithm, num, state=state, progress_bar=False)

    start = time.perf_counter()
    with contextlib.suppress(cs.TrainingDivergedError):
        fit(state, 1)
    compile_seconds = time.perf_counter() - start
    done, num_bad, chunk, elbo, diverged_at = 0, 0, 10, float("nan"), None
    most, seconds = budget.iterations or math.inf, budget.seconds or math.inf
    start = time.perf_counter()
    while done < most and time.perf_counter() - start < seconds:
        num = int(min(chunk, most - done))
        try:
            state, history = fit(state, num)
        except cs.TrainingDivergedError as error:
            state, diverged_at = error.result.state, done
            break
        good = np.isfinite(history.loss)
        done, num_bad = done + num, num_bad + int((~good).sum())
        elbo = float(np.mean(history.elbo[good])) if good.any() else elbo
        # Chunks of about a second, and not past the end of a budget in seconds.
        elapsed = time.perf_counter() - start
        chunk = max(1, int(done / elapsed * min(1.0, max(seconds - elapsed, 0.0))))
    return state, {
        "iterations": done,
        "seconds": time.perf_counter() - start,
        "compile_seconds": compile_seconds,
        "last_elbo": elbo,
        "skipped_iterations": num_bad,
        "diverged_at": diverged_at,
    }


def _scheduled(settings: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Settings with the learning rate as a cosine over the iterations of the budget, if known."""
    rate = settings["learning_rate"]
    if budget.iterations is None or callable(rate):
        return settings
    return settings | {"learning_rate": optax.cosine_decay_schedule(rate, budget.iterations)}


def _from_algorithm(
    algorithm: Algorithm, state: SamplerState, one_step: SamplerState, training: dict[str, Any]
) -> Sampler:
    """A sampler whose one-step map may have parameters of its own (calibrated)."""
    trained = cs.TrainedSampler(
        algorithm.target, algorithm.sampler(one_step), algorithm.sampler(state)
    )
    return _measurable(trained, training)


def _measurable(trained: cs.TrainedSampler, training: dict[str, Any]) -> Sampler:
    """A trained sampler with the transitions that can be weighed in reasonable time."""
    sampler, dim = trained.many_steps, trained.base.dim
    if dim <= _MAX_FACTORISED_DIM or sampler.control.structured:
        return Sampler(trained, training, sampler.methods)
    left_out = (
        f"exact weights of the map: a general network in {dim} dimensions takes the determinant "
        "of a full matrix for each draw"
    )
    methods = tuple(method for method in sampler.methods if method != "map")
    return Sampler(trained, training, methods, left_out)


def _settings(method: str, dim: int) -> dict[str, Any]:
    """Of a method on a target of so many dimensions."""
    settings = SETTINGS.get(method, {})
    if dim > MANY_DIMENSIONS and method in _BUILT_ON_A_BASE and not method.endswith(".paper"):
        settings = MANY_DIMENSIONS_SETTINGS | settings
    return settings


def settings_of(method: str, dim: int) -> dict[str, Any]:
    """The settings of a row, for its JSON."""
    settings = dict(_settings(method, dim))
    if method in WARMUP_SHARES:
        settings["shares of the iterations"] = WARMUP_SHARES[method]
    if method == "recipe":
        settings["calibration's share"] = RECIPE_CALIBRATION_SHARE
    if method in ("osds-calibrated", "cdds-calibrated"):
        settings["calibration"] = CALIBRATION | {"share of the budget": CALIBRATION_SHARE}
    if method in TEACHERS:
        settings["teacher"] = {TEACHERS[method]: settings_of(TEACHERS[method], dim)}
        if method != "progressive":
            settings["iterations relative to the teacher's"] = STUDENT_SHARE
    return {
        k: np.asarray(v).item() if isinstance(v, np.generic) else v for k, v in settings.items()
    }
