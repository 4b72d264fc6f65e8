"""Every method in one table, and how it is trained within a budget to a `Sampler`."""

import contextlib
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

import consistent_samplers as cs
from benchmarks import registry
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import GaussianBase
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws
from consistent_samplers.types import Method as Transitions


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method is built and trained.

    Attributes:
      build: makes the algorithm; None for what does not train, and for the recipe.
      rate: peak learning rate: a cosine decay to zero goes over the iterations of a budget in
        iterations; a budget in seconds keeps it constant.
      batch_size: of an iteration.
      steps: numbers of steps of a row, unless told.
      quick: iterations of a row of the quick tables, and `quick_steps` its steps.
      full: iterations of a row of the full tables.
      quick_steps: `steps` if None.
      warmup: shares of the iterations after which curricula that count iterations end.
      teacher: the method that is trained first, with the budget of the row; then the student,
        which takes three times as many of the cheaper iterations.
      calibrated: whether the single step is calibrated after that.
      settings: others.
    """

    build: Callable[..., Algorithm] | None = None
    rate: float = 5e-3
    batch_size: int = 256
    steps: tuple[int, ...] = (1,)
    quick: int = 1
    full: int = 5_000
    quick_steps: tuple[int, ...] | None = None
    warmup: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teacher: str | None = None
    calibrated: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_LONG, _FEW, _POWERS = (1, 8, 128), (1, 2, 4), (1, 2, 4, 8, 16)
_ANNEALED = {"anneal_iterations": 0.5}
_OSDS = {"warmup_iterations": 0.2, "anneal_iterations": 0.3}
_CURRICULUM = {"steps_iterations": 0.3, "size_iterations": 0.5}
_LEARNED = {"learned_kernels": "both", "loss": "reverse_kl"}

METHODS: dict[str, Method] = {
    "base": Method(),
    "nuts": Method(),
    "dis": Method(cs.dis, 5e-3, 256, _LONG, 1_200, 5_000, (1, 128), _ANNEALED),
    "dds": Method(cs.dds, 5e-3, 256, _LONG, 800, 5_000, (1, 128), _ANNEALED),
    "pis": Method(cs.pis, 5e-3, 256, _LONG, 800, 5_000, (1, 128), _ANNEALED),
    "cdds": Method(cs.cdds, 2e-3, 256, _FEW, 1_200, 5_000, (1, 2), teacher="dis"),
    "scds": Method(
        cs.scds, 3e-3, 256, (1, 2, 4, 8, 32), 2_500, 5_000, (1, 32), _CURRICULUM | _ANNEALED
    ),
    "osds": Method(cs.osds, 2e-3, 128, _POWERS, 1_000, 3_000, (1, 16), _OSDS),
    "osds-calibrated": Method(
        cs.osds, 2e-3, 128, _POWERS, 2_000, 6_000, (1, 16), _OSDS, calibrated=True
    ),
    "dis-learned": Method(
        cs.dis, 5e-3, 128, (2, 4, 8, 128), 1_000, 5_000, None, _ANNEALED, settings=_LEARNED
    ),
    "recipe": Method(None, 0.0, 0, _POWERS, 1_800, 1_800, (1,)),
    # The papers' own, but for a batch that two cores can carry within the same budget.
    "dis.paper": Method(cs.dis.paper, 5e-3, 256, _LONG),
    "osds.paper": Method(
        cs.osds.paper, 5e-4, 128, (1, 2, 4, 8, 128), 1_000, 3_000, None, {"warmup_iterations": 0.2}
    ),
}

_MANY_DIMENSIONS, _STRUCTURED = 100, {"network": "structured", "guidance": None}
"""Above it our own methods take the network whose determinants come by parts."""
_MAX_FACTORISED_DIM = 500
"""Above it a general network's map is drawn but not weighed: each draw takes the determinant of a
full matrix, and each inversion a score of them."""
_CALIBRATION: dict[str, Any] = {"batch_size": 128, "learning_rate": 2e-3}
_CALIBRATION_SHARE, _RECIPE_SHARE, _STUDENT_SHARE = 0.5, 5.0 / 6.0, 3.0
# Of the recipe, whose rows show few-step draws as well.
_RECIPE_MAX_STEPS = 16


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
      seconds: of training, without compilation.
      methods: transitions whose weights are measured, its default first; none for NUTS.
      note: what diverged or is left out, or "".
      chains: ``(rng_key, num_samples) -> [num_samples, dim]`` of NUTS, in place of ``trained``.
    """

    trained: cs.TrainedSampler
    seconds: float
    methods: tuple[Transitions, ...]
    note: str = ""
    chains: Callable[[Array, int], Array] | None = None

    @property
    def max_steps(self) -> int:
        """Most steps."""
        return self.trained.many_steps.max_steps

    def draw(self, rng_key: Array, num: int, num_steps: int, method: Transitions) -> Draws:
        """Weighted draws."""
        return self.trained.sample(rng_key, num, num_steps, method=method)

    def reverse(self, rng_key: Array, x: Array, num_steps: int, method: Transitions) -> Array:
        """Log weights of given points."""
        sampler = self.trained.sampler_for(num_steps, method)
        return sampler.log_weight(rng_key, self.trained.target, x, num_steps, method=method)


class Trainer:
    """Trains one method on one target, for any number of seeds: what they share compiles once.

    Args:
      method: its name in `METHODS`.
      target: the target.
      base: where it starts.
      budget: of each training.
      steps: numbers of steps that will be asked for.

    Raises:
      ValueError: no such method, or a budget in seconds where iterations are needed.
    """

    def __init__(
        self,
        method: str,
        target: Target,
        base: GaussianBase,
        budget: Budget,
        steps: Sequence[int] = (1,),
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
        if budget.iterations is None and method == "recipe":
            raise ValueError(f"{method} takes a budget in iterations such as 2000it, not {budget}.")
        self._name, self._method = method, METHODS[method]
        self._target, self._base, self._budget, self._steps = target, base, budget, steps
        # What is left for the method before calibration.
        self._own = budget.share(1.0 - _CALIBRATION_SHARE * self._method.calibrated)

    def train(self, seed: int) -> Sampler:
        """Trains with one seed."""
        key = jax.random.key(seed)
        if self._name in ("base", "nuts"):
            # What every other method has to beat: importance sampling from the base alone.
            alone = cs.Sampler.of_base(self._base)
            trained = cs.TrainedSampler(self._target, alone, alone)
            if self._name == "base":
                return Sampler(trained, 0.0, alone.methods)
            chains = functools.partial(registry.nuts_draws, target=self._target, base=self._base)
            return Sampler(trained, 0.0, (), chains=lambda key, num: chains(key, num_samples=num))
        if self._name == "recipe":
            return self._recipe(key)
        if self._method.teacher is not None:
            key_teacher, key = jax.random.split(key)
            taught, seconds, note = train(key_teacher, self._teacher, self._budget)
            # Each seed has a student of its own: its teacher's parameters are part of it.
            budget = self._budget.share(_STUDENT_SHARE)
            given: dict[str, Any] = {"teacher": self._teacher, "teacher_state": taught}
            algorithm = self._build(self._name, budget, **given)
        else:
            algorithm, budget, seconds, note = self._algorithm, self._own, 0.0, ""
        state, taken, told = train(key, algorithm, budget)
        one_step, seconds, note = state, seconds + taken, note + told
        if self._method.calibrated:
            share = self._budget.share(_CALIBRATION_SHARE)
            step = cs.calibration(algorithm, **_scheduled(_CALIBRATION, share))
            start = step.restart(state)
            one_step, taken, told = train(jax.random.fold_in(key, 1), step, share, start)
            seconds, note = seconds + taken, note + told
        sampler = (algorithm.sampler(one_step), algorithm.sampler(state))
        return _measurable(cs.TrainedSampler(self._target, *sampler), seconds, note)

    @functools.cached_property
    def _algorithm(self) -> Algorithm:
        return self._build(self._name, self._own, base=self._base)

    @functools.cached_property
    def _teacher(self) -> Algorithm:
        assert self._method.teacher is not None
        return self._build(self._method.teacher, self._budget, base=self._base)

    def _build(self, name: str, budget: Budget, **given: Any) -> Algorithm:
        """A method with its settings on this target."""
        method = METHODS[name]
        assert method.build is not None
        settings = {
            "batch_size": method.batch_size,
            "learning_rate": method.rate,
            **method.settings,
        }
        if self._target.dim > _MANY_DIMENSIONS and "base" in given and not name.endswith(".paper"):
            settings = _STRUCTURED | settings
        if budget.iterations is not None:
            parts = method.warmup.items()
            settings |= {key: round(part * budget.iterations) for key, part in parts}
        if name == "dis-learned":
            powers = {k for k in self._steps if k > 1} | {128}
            settings |= {"train_steps": tuple(sorted(powers)), "max_steps": 128}
        return method.build(self._target, **_scheduled(settings, budget), **given)

    def _recipe(self, key: Array) -> Sampler:
        total = self._budget.iterations
        assert total is not None
        calibration = max(1, round(_RECIPE_SHARE * total))
        # It chooses its own base, as it does for a user.
        trained = cs.train_sampler(
            key,
            self._target,
            max_steps=_RECIPE_MAX_STEPS,
            num_iterations=max(1, total - calibration),
            num_calibration_iterations=calibration,
            progress_bar=False,
        )
        return _measurable(trained, trained.training_seconds, "")


def train(
    rng_key: Array, algorithm: Algorithm, budget: Budget, state: SamplerState | None = None
) -> tuple[SamplerState, float, str]:
    """The state, the seconds and a note of ``cs.fit`` within a budget, compilation left out.

    Training that diverges keeps its last good state, and the note says when.
    """
    key_init, key_steps = jax.random.split(rng_key)
    if state is None:
        state = algorithm.init(key_init)

    def fit(state: SamplerState, num: int) -> SamplerState:
        with warnings.catch_warnings():
            # Of iterations that were skipped.
            warnings.simplefilter("ignore", RuntimeWarning)
            return cs.fit(key_steps, algorithm, num, state=state, progress_bar=False).state

    with contextlib.suppress(cs.TrainingDivergedError):
        fit(state, 1)
    done, chunk, note = 0, 10, ""
    most, seconds = budget.iterations or math.inf, budget.seconds or math.inf
    start = time.perf_counter()
    while done < most and time.perf_counter() - start < seconds:
        num = int(min(chunk, most - done))
        try:
            state = fit(state, num)
        except cs.TrainingDivergedError as error:
            state, note = error.result.state, f"diverged after {done} iterations; "
            break
        done += num
        # Chunks of about a second, and not past the end of a budget in seconds.
        elapsed = time.perf_counter() - start
        chunk = max(1, int(done / elapsed * min(1.0, max(seconds - elapsed, 0.0))))
    return state, time.perf_counter() - start, note


def _scheduled(settings: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Settings with the learning rate as a cosine over the iterations of the budget, if known."""
    if budget.iterations is None:
        return settings
    schedule = optax.cosine_decay_schedule(settings["learning_rate"], budget.iterations)
    return settings | {"learning_rate": schedule}


def _measurable(trained: cs.TrainedSampler, seconds: float, note: str) -> Sampler:
    """A trained sampler with the transitions that can be weighed in reasonable time."""
    sampler, dim = trained.many_steps, trained.base.dim
    if dim <= _MAX_FACTORISED_DIM or sampler.control.structured:
        return Sampler(trained, seconds, sampler.methods, note)
    methods = tuple(method for method in sampler.methods if method != "map")
    return Sampler(trained, seconds, methods, note + "weights of the map left out: d³ a draw")
