"""Every method in one table, and how it is trained for some iterations to a `Sampler`."""

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

import consistent_samplers as cs
from benchmarks import race
from benchmarks.untrained import UNTRAINED
from consistent_samplers import algorithms
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import GaussianBase
from consistent_samplers.targets import Target
from consistent_samplers.types import Array
from consistent_samplers.types import Method as Transitions


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method is built and trained.

    Attributes:
      build: makes the algorithm; None for what does not train, and for the recipe.
      rate: peak learning rate, from which a cosine goes to zero.
      batch_size: of an iteration.
      iterations: of a row of the quick and of the full tables.
      steps: numbers of steps of a row of the full tables, and `quick` of the quick ones.
      warmup: shares of the iterations after which curricula that count iterations end.
      teacher: the method that is trained first, with the budget of the row; then the student,
        which takes three times as many of the cheaper iterations.
      calibrated: whether half of the iterations go into the calibration of the single step.
      settings: others.
    """

    build: Callable[..., Algorithm] | None = None
    rate: float = 5e-3
    batch_size: int = 256
    iterations: tuple[int, int] = (1, 1)
    steps: tuple[int, ...] = (1,)
    quick: tuple[int, ...] = (1,)
    warmup: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teacher: str | None = None
    calibrated: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_LONG, _POWERS, _ANNEALED = (1, 8, 128), (1, 2, 4, 8, 16), {"anneal_iterations": 0.5}
_OSDS = {"warmup_iterations": 0.2, "anneal_iterations": 0.3}
_SCDS = {"steps_iterations": 0.3, "size_iterations": 0.5, "anneal_iterations": 0.5}
_LEARNED = {"learned_kernels": "both", "loss": "reverse_kl"}
_FEW = (2, 4, 8, 128)

METHODS: dict[str, Method] = {
    "base": Method(),
    "nuts": Method(),
    "dis": Method(cs.dis, 5e-3, 256, (1_200, 5_000), _LONG, (1, 128), _ANNEALED),
    "dds": Method(cs.dds, 5e-3, 256, (800, 5_000), _LONG, (1, 128), _ANNEALED),
    "pis": Method(cs.pis, 5e-3, 256, (800, 5_000), _LONG, (1, 128), _ANNEALED),
    "cdds": Method(cs.cdds, 2e-3, 256, (1_200, 5_000), (1, 2, 4), (1, 2), teacher="dis"),
    "scds": Method(cs.scds, 3e-3, 256, (2_500, 5_000), (1, 2, 4, 8, 32), (1, 32), _SCDS),
    "osds": Method(cs.osds, 2e-3, 128, (1_000, 3_000), _POWERS, (1, 16), _OSDS),
    "osds-calibrated": Method(
        cs.osds, 2e-3, 128, (2_000, 6_000), _POWERS, (1, 16), _OSDS, calibrated=True
    ),
    "dis-learned": Method(
        cs.dis, 5e-3, 128, (1_000, 5_000), _FEW, _FEW, _ANNEALED, None, False, _LEARNED
    ),
    "recipe": Method(iterations=(1_800, 1_800), steps=_POWERS),
    **{
        name: Method(build, rate, 256, (800, 5_000), (1, 16, 128), (128,), _ANNEALED)
        for name, build, rate in (
            ("adjoint", algorithms.adjoint_sampling, 1e-3),
            ("dgfs", algorithms.dgfs, 2e-3),
            ("gflownet", algorithms.gflownet, 2e-3),
            ("contrastive", algorithms.contrastive, 1e-3),
        )
    },
    "cmcd": Method(
        algorithms.cmcd, 2e-3, 256, (800, 5_000), (64,), (64,), settings={"max_steps": 64}
    ),
    "snf": Method(algorithms.snf, 5e-3, 128, (800, 5_000), (8,), (8,), settings={"max_steps": 8}),
    **dict.fromkeys(UNTRAINED, Method()),
    # The papers' own, but for a batch that two cores can carry within the same budget.
    "dis.paper": Method(cs.dis.paper, 5e-3, 256, (1_000, 5_000), _LONG, _LONG),
    "osds.paper": Method(
        cs.osds.paper, 5e-4, 128, (1_000, 3_000), _LONG, _LONG, {"warmup_iterations": 0.2}
    ),
}

# Above so many dimensions our own methods take the network whose determinants come by parts; above
# the second number a general network's map is drawn but not weighed, which takes O(d³) a draw.
_MANY_DIMENSIONS, _MAX_FACTORISED_DIM = 100, 500
_CALIBRATION: dict[str, Any] = {"batch_size": 128, "learning_rate": 2e-3}


class Sampler(NamedTuple):
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


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains one method on one target, for any number of seeds: what they share compiles once.

    Attributes:
      name: of the method, in `METHODS`.
      target: the target.
      base: where it starts.
      iterations: of each training.
      steps: numbers of steps that will be asked for.
    """

    name: str
    target: Target
    base: GaussianBase
    iterations: int
    steps: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.name!r}.")

    def train(self, seed: int) -> Sampler:
        """Trains with one seed."""
        key, method, total = jax.random.key(seed), METHODS[self.name], self.iterations
        if self.name in ("base", "nuts"):
            # What every other method has to beat: importance sampling from the base alone.
            alone = cs.Sampler.of_base(self.base)
            trained = cs.TrainedSampler(self.target, alone, alone)
            if self.name == "base":
                return Sampler(trained, 0.0, alone.methods)
            return Sampler(trained, 0.0, (), chains=functools.partial(_chains, self.target))
        if self.name == "recipe":
            # It chooses its own base, as it does for a user; its rows show few-step draws as well.
            split: dict[str, Any] = {"num_iterations": max(1, total // 6), "max_steps": 16}
            split["num_calibration_iterations"] = max(1, total - total // 6)
            trained = cs.train_sampler(key, self.target, progress_bar=False, **split)
            return _measurable(trained, trained.training_seconds, "")
        seconds, note, algorithm = 0.0, "", self._algorithm
        if method.teacher is not None:
            key_teacher, key = jax.random.split(key)
            taught, seconds, note = train(key_teacher, algorithm, total)
            # Each seed has a student of its own: its teacher's parameters are part of it.
            total *= 3
            algorithm = self._build(self.name, total, teacher=algorithm, teacher_state=taught)
        own = total // 2 if method.calibrated else total
        state, taken, told = train(key, algorithm, own)
        one_step, seconds, note = state, seconds + taken, note + told
        if method.calibrated:
            step = cs.calibration(algorithm, **_scheduled(_CALIBRATION, total - own))
            start, key = step.restart(state), jax.random.fold_in(key, 1)
            one_step, taken, told = train(key, step, total - own, start)
            seconds, note = seconds + taken, note + told
        samplers = algorithm.sampler(one_step), algorithm.sampler(state)
        return _measurable(cs.TrainedSampler(self.target, *samplers), seconds, note)

    @functools.cached_property
    def _algorithm(self) -> Algorithm:
        """What is trained first: the teacher of a student."""
        method = METHODS[self.name]
        share = self.iterations // 2 if method.calibrated else self.iterations
        return self._build(method.teacher or self.name, share, base=self.base)

    def _build(self, name: str, iterations: int, **given: Any) -> Algorithm:
        """A method with its settings on this target."""
        method = METHODS[name]
        assert method.build is not None
        settings: dict[str, Any] = {"batch_size": method.batch_size, "learning_rate": method.rate}
        settings |= method.settings
        if self.target.dim > _MANY_DIMENSIONS and "base" in given and not name.endswith(".paper"):
            settings |= {"network": "structured", "guidance": None}
        settings |= {k: round(share * iterations) for k, share in method.warmup.items()}
        if name == "dis-learned":
            powers = {k for k in self.steps if k > 1} | {128}
            settings |= {"train_steps": tuple(sorted(powers)), "max_steps": 128}
        return method.build(self.target, **_scheduled(settings, iterations), **given)


def train(
    rng_key: Array, algorithm: Algorithm, iterations: int, state: SamplerState | None = None
) -> tuple[SamplerState, float, str]:
    """The state, the seconds and a note of ``cs.fit``, compilation left out.

    Training that diverges keeps its last good state, and the note says so.
    """
    key_init, key = jax.random.split(rng_key)
    state = algorithm.init(key_init) if state is None else state
    fit = functools.partial(cs.fit, key, algorithm, state=state, progress_bar=False)
    with warnings.catch_warnings():
        # Of iterations that were skipped.
        warnings.simplefilter("ignore", RuntimeWarning)
        with contextlib.suppress(cs.TrainingDivergedError):
            fit(1)
        start = time.perf_counter()
        try:
            found, note = fit(iterations).state, ""
        except cs.TrainingDivergedError as error:
            found, note = error.result.state, "diverged; "
    return found, time.perf_counter() - start, note


def shaken(rng_key: Array, params: Any, scale: float) -> Any:
    """Parameters with normal noise of a scale."""
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(leaves, jax.random.split(rng_key, len(leaves)), strict=True)
    return jax.tree.unflatten(tree, [x + scale * jax.random.normal(k, x.shape) for x, k in pairs])


def _chains(target: Target, rng_key: Array, num: int) -> Array:
    """Draws ``[num, dim]`` of NUTS."""
    block = -(-num // (2 * race.CHAINS))
    return race.nuts(race.Subject(target), rng_key, block=block).samples["x"][:num]


def _scheduled(settings: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Settings with the learning rate as a cosine over the iterations."""
    rate = optax.cosine_decay_schedule(settings["learning_rate"], max(1, iterations))
    return settings | {"learning_rate": rate}


def _measurable(trained: cs.TrainedSampler, seconds: float, note: str) -> Sampler:
    """A trained sampler with the transitions that can be weighed in reasonable time."""
    sampler, dim = trained.many_steps, trained.base.dim
    if dim <= _MAX_FACTORISED_DIM or sampler.control.structured:
        return Sampler(trained, seconds, sampler.methods, note)
    methods = tuple(method for method in sampler.methods if method != "map")
    return Sampler(trained, seconds, methods, note + "weights of the map left out: d³ a draw")
