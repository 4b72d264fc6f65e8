"""The training loop: chunks of compiled iterations, with a progress bar and a NaN stop."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from consistent_samplers.algorithms.base import Algorithm, SamplerState
from consistent_samplers.types import PRNGKey

MAX_SKIPPED_SHARE = 0.1
"""Share of a chunk's iterations that may meet NaN or inf, and be skipped, before it stops."""


class FitResult(NamedTuple):
    """A trained state and how it came about.

    Attributes:
      state: the final state.
      history: the algorithm's info NamedTuple with NumPy arrays ``[num_iterations]``.
    """

    state: SamplerState
    history: Any


class TrainingDivergedError(RuntimeError):
    """Training met NaN or inf. The last good state is kept.

    Attributes:
      result: `FitResult` up to the last chunk whose losses and parameters were all finite.
    """

    def __init__(self, message: str, result: FitResult) -> None:
        super().__init__(message)
        self.result = result


def fit(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    num_iterations: int,
    *,
    state: SamplerState | None = None,
    progress_bar: bool = True,
    chunk_size: int = 100,
) -> FitResult:
    """Trains an algorithm.

    Iteration i uses the key ``fold_in(rng_key, i)``, so that the result does not depend on how
    the run is cut into chunks or continued from a state.

    Args:
      rng_key: key.
      algorithm: what to train.
      num_iterations: training iterations to run.
      state: a state to go on from; ``algorithm.init`` if None.
      progress_bar: show a bar with the current ELBO.
      chunk_size: iterations compiled into one call. NaN is noticed, and the bar moves, at the
        end of a chunk.

    Raises:
      ValueError: ``num_iterations`` or ``chunk_size`` is not a positive integer.
      TrainingDivergedError: a parameter became NaN or inf, or more than `MAX_SKIPPED_SHARE` of a
        chunk's losses did; carries the last good state. Fewer are skipped, with a warning.
    """
    for name, value in (("num_iterations", num_iterations), ("chunk_size", chunk_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    key_init, key_steps = jax.random.split(rng_key)
    if state is None:
        state = algorithm.init(key_init)
    chunk_size = min(chunk_size, num_iterations)

    # Always chunk_size iterations, of which the last chunk may skip some: one compilation.
    @jax.jit
    def run_chunk(state: SamplerState, num_run: jax.Array) -> tuple[SamplerState, Any]:
        def iterate(state: SamplerState, i: jax.Array) -> tuple[SamplerState, Any]:
            key = jax.random.fold_in(key_steps, state.iteration)
            new_state, info = algorithm.step(key, state)
            keep = i < num_run
            return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new_state, state), info

        return jax.lax.scan(iterate, state, jnp.arange(chunk_size))

    infos: list[Any] = []
    bar = tqdm(total=num_iterations, disable=not progress_bar, desc=algorithm.name, unit="it")
    with bar:
        done = num_skipped = 0
        while done < num_iterations:
            num_run = min(chunk_size, num_iterations - done)
            new_state, info = run_chunk(state, jnp.asarray(num_run))
            info = jax.tree.map(lambda x, n=num_run: np.asarray(x)[:n], info)
            bad = ~np.isfinite(info.loss)
            num_skipped += int(bad.sum())
            if bad.mean() > MAX_SKIPPED_SHARE or not _all_finite(new_state.params):
                where = done + (int(np.argmax(bad)) if bad.any() else num_run - 1)
                raise TrainingDivergedError(
                    f"Training of {algorithm.name!r} on target {algorithm.target.name!r} met NaN "
                    f"or inf at iteration {where}. Likely causes: too large a learning rate, a "
                    "base far from the target (fit one: cs.bases.fit_gaussian), or a density "
                    "that overflows. The last good state is in this error's .result.state.",
                    FitResult(state, _join(infos, info)),
                )
            state, done = new_state, done + num_run
            infos.append(info)
            bar.update(num_run)
            bar.set_postfix_str(f"ELBO {np.mean(info.elbo[~bad]):.3f}")
    if num_skipped:
        warnings.warn(
            f"{num_skipped} of {num_iterations} iterations of {algorithm.name!r} met NaN or inf "
            "and were skipped. If there are many, lower the learning rate or fit a better base.",
            RuntimeWarning,
            stacklevel=2,
        )
    return FitResult(state, _join(infos, infos[0]))


def _all_finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def _join(infos: list[Any], like: Any) -> Any:
    """Concatenates the infos of all chunks; empty arrays of the right kind if there are none."""
    if not infos:
        return jax.tree.map(lambda x: x[:0], like)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *infos)
