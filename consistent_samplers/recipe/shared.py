"""The recipe's algorithms, compiled once for all data of the same shapes.

Where the target's density is a ``jax.tree_util.Partial`` over its data, the algorithm's functions
become Partials over data and base: a sampler of other data is then another set of inputs to what is
compiled already.
"""

import dataclasses
import itertools
from typing import Any, Literal

import optax
from jax.tree_util import Partial

from consistent_samplers.algorithms import Algorithm, SamplerState, calibration
from consistent_samplers.algorithms.base import PerDraw
from consistent_samplers.algorithms.sampling import batched
from consistent_samplers.bases import Base
from consistent_samplers.recipe.settings import Settings
from consistent_samplers.targets.base import Target
from consistent_samplers.types import LogDensityFn, PRNGKey

_PEAK_LEARNING_RATE = {"distilled": 2e-3, "calibrated": 1e-2}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training, comparable by its settings: ``Partial(stage, density, base)`` is a step.

    Attributes:
      settings: of the network and its steps.
      name: ``"distilled"`` trains OSDS, ``"calibrated"`` its single step.
      rounds: iterations that its learning rate is planned for: each round warms up and anneals, so
        that training may end after any of them.
    """

    settings: Settings
    name: Literal["distilled", "calibrated"]
    rounds: tuple[int, ...]

    @property
    def num_iterations(self) -> int:
        """Of all rounds."""
        return sum(self.rounds)

    def algorithm(self, target: Target, base: Base) -> Algorithm:
        """What this stage trains on a target."""
        peak = _PEAK_LEARNING_RATE[self.name]
        learning_rate = optax.join_schedules(
            [_warmup_cosine(peak, num) for num in self.rounds],
            list(itertools.accumulate(self.rounds))[:-1],
        )
        if self.name == "distilled":
            own = self.settings.build(target, base, learning_rate)
        else:
            own = calibration(self.settings.build(target, base), learning_rate=learning_rate)
        own = share_sampling(own, self.settings)
        density = target.log_density
        if not isinstance(density, Partial):
            return own
        return dataclasses.replace(own, step=Partial(self, density, base))

    def __call__(
        self, density: LogDensityFn, base: Base, rng_key: PRNGKey, state: SamplerState
    ) -> tuple[SamplerState, Any]:
        """One iteration."""
        target = _plain(density, base)
        return self.algorithm(target, base).step(rng_key, state)


def share_sampling(algorithm: Algorithm, settings: Settings) -> Algorithm:
    """The algorithm that these settings build, drawing with what is compiled for all data."""
    density, base = algorithm.target.log_density, algorithm.base
    if not isinstance(density, Partial):
        return algorithm
    per_draw = PerDraw(*(Partial(_One(settings, name), density, base) for name in PerDraw._fields))
    sample, reverse = batched(
        algorithm.control, base.dim, settings.max_steps, algorithm.bounds, 1, per_draw
    )
    return dataclasses.replace(
        algorithm, sample=sample, reverse_log_weight=reverse, per_draw=per_draw
    )


@dataclasses.dataclass(frozen=True)
class _One:
    """One of the functions in `PerDraw`, of density and base as well."""

    settings: Settings
    name: str

    def __call__(self, density: LogDensityFn, base: Base, *args: Any) -> Any:
        target = _plain(density, base)
        return getattr(self.settings.build(target, base).per_draw, self.name)(*args)


def _plain(density: LogDensityFn, base: Base) -> Target:
    """A target whose algorithms are compiled as part of what is being traced, not shared."""
    return Target(lambda x: density(x), base.dim)


def _warmup_cosine(peak: float, num_iterations: int) -> optax.Schedule:
    """A tenth of the run to warm up (at most 100 iterations), then a cosine to zero."""
    warmup = max(1, min(100, num_iterations // 10))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_iterations, warmup + 1))
