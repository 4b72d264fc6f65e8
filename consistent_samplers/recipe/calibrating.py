"""The stages of the recipe that train a network, each of them kept where it diverges."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers import progress
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.training import FitResult, TrainingDivergedError, fit
from consistent_samplers.types import Array, PRNGKey

CHUNK_SIZE = 50
"""Iterations between two looks at the clock and at NaN."""


@dataclasses.dataclass(frozen=True)
class AnnealedRounds:
    """A learning rate that each round warms up and anneals, so that training may end after any.

    A tenth of the round to warm up (at most 100 iterations), then a cosine to zero.
    """

    peak: float
    rounds: tuple[int, ...]  # iterations of each

    def __call__(self, count: Any) -> Array:
        """The rate at an iteration."""
        parts = [_warmup_cosine(self.peak, num) for num in self.rounds]
        ends = np.cumsum(self.rounds)[:-1].tolist()
        return jnp.asarray(optax.join_schedules(parts, ends)(count))


def _warmup_cosine(peak: float, num_iterations: int) -> optax.Schedule:
    warmup = max(1, min(100, num_iterations // 10))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_iterations, warmup + 1))


def in_rounds(
    rng_key: PRNGKey,
    algorithms: Sequence[Algorithm],
    state: SamplerState,
    rounds: tuple[int, ...],
    *,
    name: str,
    shown_as: Sequence[str],
    is_enough: Callable[[SamplerState], bool] = lambda _: False,
    folder: Path | None = None,
    progress_bar: bool = True,
) -> tuple[FitResult, bool]:
    """Rounds of training until one is enough; and whether Ctrl-C cut them short.

    A round that diverges ends the training with its last good state, and a warning. The algorithms,
    one a round, have states of one kind; ``name`` is the stage's, for checkpoints in ``folder``,
    and ``shown_as`` what each round is called on the screen.
    """
    histories = []
    run = functools.partial(_fit_or_keep, progress_bar=progress_bar)
    interrupted = False
    for i, (algorithm, num) in enumerate(zip(algorithms, rounds, strict=True)):
        own = None if folder is None else folder / (name if i == 0 else f"{name}-{i + 1}")
        with progress.named(shown_as[i]):
            result, interrupted = run(rng_key, algorithm, state, num, own)
        state = result.state
        histories.append(result.history)
        cut_short = len(result.history.loss) < num
        if i == len(rounds) - 1 or cut_short or is_enough(state):
            break
    history = jax.tree.map(lambda *parts: np.concatenate(parts), *histories)
    return FitResult(state, history), interrupted


def _fit_or_keep(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    state: SamplerState,
    num_iterations: int,
    folder: Path | None,
    *,
    progress_bar: bool,
) -> tuple[FitResult, bool]:
    """`fit`, going on with the last good state if it diverges; and whether Ctrl-C cut it short."""
    try:
        result = fit(
            rng_key,
            algorithm,
            num_iterations,
            state=state,
            progress_bar=progress_bar,
            chunk_size=min(CHUNK_SIZE, num_iterations),
            checkpoint_dir=folder,
        )
    except TrainingDivergedError as error:
        warnings.warn(f"{error} The recipe goes on from that state.", stacklevel=5)
        return error.result, False
    return result, len(result.history.loss) < num_iterations
