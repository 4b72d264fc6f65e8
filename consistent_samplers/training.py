"""The training loop: chunks of compiled iterations that can be watched, stopped and resumed."""

import contextlib
import dataclasses
import functools
import os
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from consistent_samplers import checkpoint, progress
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.iterations import run_inside, run_outside
from consistent_samplers.algorithms.protocol import SamplerState
from consistent_samplers.bases.iterating import pair
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.compilation import Effort
from consistent_samplers.sharding import on_mesh, replicate, spans_hosts, wait_for_hosts
from consistent_samplers.targets import evaluation
from consistent_samplers.types import PRNGKey

MAX_SKIPPED_SHARE = 0.1
"""Share of a chunk's iterations that may meet NaN or inf before it counts as diverged."""
LOWERED_STEP = 0.1
"""Size of the updates, relative to those before, after training has diverged once."""

_KIND = "training"
# Draws that an error counts those outside of the support of.
_NUM_ENDS = 256
_FEWEST_IDLE = 10
_Folder: TypeAlias = str | os.PathLike[str]


class FitResult(NamedTuple):
    """A trained state and how it came about.

    Attributes:
      state: the final state.
      history: the algorithm's info NamedTuple with NumPy arrays ``[num_iterations]``; shorter where
        Ctrl-C ended training early. Iterations whose loss or gradient is NaN or inf were skipped.

    Example:
      >>> import consistent_samplers as cs
      >>> state, history = cs.FitResult(state="trained", history={"loss": [2.0, 1.0]})
      >>> len(history["loss"])  # one entry an iteration
      2
    """

    state: SamplerState
    history: Any


class TrainingDivergedError(RuntimeError):
    """Training met NaN or inf again and again, or no density at all. The last good state is kept.

    Attributes:
      result: `FitResult` up to the last chunk whose losses and parameters were all finite.

    Example:
      >>> import consistent_samplers as cs
      >>> error = cs.TrainingDivergedError("met NaN", cs.FitResult("the last good one", history=()))
      >>> error.result.state
      'the last good one'
    """

    def __init__(self, message: str, result: FitResult) -> None:
        super().__init__(message)
        self.result = result


@dataclasses.dataclass(frozen=True)
class _Run:
    """How far training has come, replaced as a whole: Ctrl-C finds no half of it."""

    state: SamplerState
    infos: tuple[Any, ...] = ()
    done: int = 0
    num_skipped: int = 0
    lowered: bool = False

    def result(self, like: Callable[[], Any]) -> FitResult:
        """``like`` gives the shape of one info, for a history of none."""
        history = _join(self.infos) if self.infos else _history_like(like(), 0)
        return FitResult(self.state, history)


def fit(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    num_iterations: int,
    *,
    state: SamplerState | None = None,
    progress_bar: bool = True,
    chunk_size: int = 100,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 10.0,
    mesh: Mesh | None = None,
    compile_effort: Effort = "less",
) -> FitResult:
    """The state of an algorithm after training, and its history.

    Iteration i uses the key ``fold_in(rng_key, i)``, so that the result does not depend on how
    the run is cut into chunks, continued from a state, or killed and resumed. Ctrl-C ends it with
    the state that was reached, and a warning. Iterations that meet NaN or inf change nothing; where
    they are many, training goes on from the last good chunk with updates of a tenth, once.

    Args:
      rng_key: key.
      algorithm: what to train.
      num_iterations: training iterations to run.
      state: a state to go on from; ``algorithm.init`` if None.
      progress_bar: show a bar with the current ELBO and the time left, in a terminal or notebook.
      chunk_size: iterations of a chunk, after which NaN is noticed and checkpoints are written.
      checkpoint_dir: folder to keep the run in. The same call with the same folder goes on from
        where it was, to bitwise the same parameters as without a break.
      checkpoint_seconds: least time between two checkpoints.
      mesh: devices to spread each batch over, if their number divides it (`sharding.data_mesh`). Of
        several hosts all make the same call, and the first writes the checkpoints.
      compile_effort: what compiling may cost on CPUs, see `compilation.Effort`.

    Raises:
      TypeError: ``rng_key`` is not a single key, or ``mesh`` no mesh.
      ValueError: ``num_iterations`` or ``chunk_size`` is not a positive integer.
      CheckpointError: ``checkpoint_dir`` cannot be written to, is damaged, holds another run, or
        another process trains there.
      RuntimeError: another host stopped.
      TrainingDivergedError: a parameter became NaN or inf, or more than `MAX_SKIPPED_SHARE` of a
        chunk's losses or gradients did, a second time; or no point of a chunk, and of ten
        iterations, had a density. Carries the last good state.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> algorithm = cs.dis(target, base=base, max_steps=1, hidden=(8,), batch_size=8)
      >>> result = cs.fit(jax.random.key(0), algorithm, 5, progress_bar=False)
      >>> int(result.state.iteration), result.history.loss.shape
      (5, (5,))
    """
    check_integer("num_iterations", num_iterations)
    check_integer("chunk_size", chunk_size)
    check_key(rng_key)
    key_init, key_steps = pair(rng_key)
    if state is None:
        state = algorithm.init(key_init)
    # On CPUs with the density outside, compiled by itself; elsewhere many iterations a dispatch.
    outside = algorithm.asks_outside and mesh is None and jax.default_backend() == "cpu"
    inside = functools.partial(run_inside, chunk_size=chunk_size, effort=compile_effort, mesh=mesh)
    run_chunk = run_outside if outside else inside

    def info_like() -> Any:
        return jax.eval_shape(algorithm.step, key_steps, state)[1]

    run, identity = _Run(state), {}
    several_hosts = mesh is not None and spans_hosts(mesh)
    # Of several hosts one shows the progress and writes what all of them compute alike.
    first_host = not several_hosts or jax.process_index() == 0
    folder = checkpoint_dir if first_host else None
    with contextlib.nullcontext() if folder is None else checkpoint.reserved(folder):
        if checkpoint_dir is not None:
            identity = _identity(rng_key, algorithm, state)
            if checkpoint.exists(checkpoint_dir):
                run = _read(checkpoint_dir, identity, run, info_like, num_iterations)
            if several_hosts:
                wait_for_hosts("checkpoint read")
            if first_host:
                _write(checkpoint_dir, identity, run)
        if mesh is not None:
            run = dataclasses.replace(run, state=replicate(run.state, mesh))
        written = time.monotonic()
        with tqdm(
            desc=progress.label(algorithm.name),
            total=num_iterations,
            initial=run.done,
            unit="it",
            disable=progress.hidden(progress_bar and first_host),
        ) as bar:
            try:
                while run.done < num_iterations:
                    num_run = min(chunk_size, num_iterations - run.done)
                    with on_mesh(mesh):
                        reached, info = run_chunk(algorithm, key_steps, run.state, num_run)
                    bad = _is_bad(info)
                    idle = _is_idle((*run.infos, info), run.done + num_run == num_iterations)
                    if idle or bad.mean() > MAX_SKIPPED_SHARE or not _all_finite(reached.params):
                        key = None if several_hosts else rng_key
                        run = _lower_or_stop(run, algorithm, bad, info_like, idle, key)
                        continue
                    done, num_skipped = run.done + num_run, run.num_skipped + int(bad.sum())
                    run = _Run(reached, (*run.infos, info), done, num_skipped, run.lowered)
                    bar.update(num_run)
                    bar.set_postfix_str(f"ELBO {np.mean(info.elbo[~bad]):.3f}")
                    due = time.monotonic() - written >= checkpoint_seconds
                    if checkpoint_dir is not None and due and first_host:
                        _write_or_warn(checkpoint_dir, identity, run)
                        written = time.monotonic()
            except KeyboardInterrupt:
                warnings.warn(
                    f"Training of {algorithm.name!r} was interrupted after {run.done} of "
                    f"{num_iterations} iterations; the state reached by then is returned.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            except jax.errors.JaxRuntimeError as error:
                if not several_hosts:
                    raise
                then = f"goes on from the last checkpoint in {checkpoint_dir}"
                if checkpoint_dir is None:
                    then = "begins anew, as there is no checkpoint_dir"
                raise RuntimeError(
                    f"Training of {algorithm.name!r} on {jax.process_count()} hosts ended after "
                    f"{run.done} of {num_iterations} iterations, most likely because a host "
                    "stopped or cannot be reached. Start all of them again with the same call: it "
                    f"{then}."
                ) from error
        if checkpoint_dir is not None and first_host:
            _write_or_warn(checkpoint_dir, identity, run)
    if run.num_skipped:
        warnings.warn(
            f"{run.num_skipped} of {run.done} iterations of {algorithm.name!r} met NaN or inf "
            "and were skipped. If there are many, lower the learning rate or fit a better base.",
            RuntimeWarning,
            stacklevel=2,
        )
    return run.result(info_like)


def _is_bad(info: Any) -> np.ndarray:
    """Which iterations' losses or gradients were not finite: ``[num_iterations]``."""
    return ~(np.isfinite(info.loss) & np.isfinite(getattr(info, "gradient_norm", 0.0)))


def _is_idle(infos: tuple[Any, ...], ended: bool) -> bool:
    """Whether the last chunk, of `_FEWEST_IDLE` or with those before, met no point to learn from.

    That is one with a density. Runs that end sooner are judged by all that they have.
    """
    elbo = np.concatenate([info.elbo for info in infos[-_FEWEST_IDLE:]])
    norm = [getattr(info, "gradient_norm", np.ones_like(info.elbo)) for info in infos]
    nothing = np.isneginf(elbo) & (np.concatenate(norm[-_FEWEST_IDLE:]) == 0.0)
    last = nothing[-max(_FEWEST_IDLE, len(infos[-1].elbo)) :]
    return bool(last.all()) and (ended or len(last) >= _FEWEST_IDLE)


def _share_outside(rng_key: PRNGKey, algorithm: Algorithm, state: SamplerState) -> float:
    """Share of the draws of a state whose density is zero."""
    draws = algorithm.sample(rng_key, state, _NUM_ENDS, weights=False)
    finite = np.isfinite(np.asarray(draws.position)).all(axis=1)
    values = np.asarray(evaluation.values(algorithm.target.log_density, draws.position))
    return float(np.mean(finite & ~np.isfinite(values)))


def _lower_or_stop(
    run: _Run, algorithm: Algorithm, bad: np.ndarray, info_like: Any, idle: bool, rng_key: Any
) -> _Run:
    """The last good state with smaller updates, if that was not tried before and may help."""
    where = run.done + (int(np.argmax(bad)) if bad.any() else len(bad) - 1)
    name = f"Training of {algorithm.name!r} on target {algorithm.target.name!r}"
    met = f"{name} met NaN or inf"
    if run.lowered or idle:
        outside = 0.0 if rng_key is None else _share_outside(rng_key, algorithm, run.state)
        happened = f"{met} at iteration {where}, after its updates had been lowered once."
        if idle:
            last = run.done + len(bad) - 1
            happened = f"{name} met no point with a density for a while, up to iteration {last}."
        causes = "Causes"
        if outside > 0.0:
            causes = (
                f"The density is zero at {outside:.0%} of the ends: take a base that covers its "
                "support (cs.bases.fit), or map the support to the whole space. Other causes"
            )
        raise TrainingDivergedError(
            f"{happened} {causes}: too large a learning rate, a base far from the target (fit: "
            "cs.bases.fit_gaussian), or a density that overflows. The last good state is in this "
            "error's .result.state.",
            run.result(info_like),
        )
    warnings.warn(
        f"{met} at iteration {where}. It goes on from iteration {run.done} with updates of "
        f"{LOWERED_STEP} times the size.",
        RuntimeWarning,
        stacklevel=3,
    )
    scale = jnp.asarray(run.state.step_scale) * LOWERED_STEP
    return dataclasses.replace(run, state=run.state._replace(step_scale=scale), lowered=True)


def _identity(rng_key: PRNGKey, algorithm: Algorithm, state: SamplerState) -> dict[str, Any]:
    """What tells one run from another, as JSON."""
    return {
        "algorithm": algorithm.name,
        "target": algorithm.target.name,
        "dim": algorithm.target.dim,
        "rng_key": checkpoint.numbers_of(rng_key),
        "start": checkpoint.digest((state.params, state.iteration)),
    }


def _write(folder: _Folder, identity: dict[str, Any], run: _Run) -> None:
    header = {**identity, "done": run.done, "skipped": run.num_skipped, "lowered": run.lowered}
    history = checkpoint.to_arrays(_join(run.infos)) if run.infos else {}
    arrays = {"state": checkpoint.to_arrays(run.state), "history": history}
    checkpoint.write(folder, _KIND, header, arrays)


def _write_or_warn(folder: _Folder, identity: dict[str, Any], run: _Run) -> None:
    """A full disk ends no training."""
    try:
        _write(folder, identity, run)
    except checkpoint.CheckpointError as error:
        warnings.warn(f"{error} Training goes on.", RuntimeWarning, stacklevel=3)


def _read(
    folder: _Folder, identity: dict[str, Any], start: _Run, info_like: Any, num_iterations: int
) -> _Run:
    header, arrays = checkpoint.read(folder, _KIND)
    other = [name for name, value in identity.items() if header.get(name) != value]
    if other or header["done"] > num_iterations:
        found = f"a run of {header['done']} iterations, more than the {num_iterations} asked for"
        if other:
            found = f"a training run of another {' and '.join(other)}"
        remedy = "Take another folder, or delete that one."
        raise checkpoint.CheckpointError(f"{folder} holds {found}. {remedy}")
    infos: tuple[Any, ...] = ()
    if header["done"]:
        like = _history_like(info_like(), header["done"])
        history = checkpoint.from_arrays(like, arrays["history"], "history")
        infos = (jax.tree.map(np.asarray, history),)
    state = checkpoint.from_arrays(start.state, arrays["state"], "state")
    return _Run(state, infos, header["done"], header["skipped"], header["lowered"])


def _all_finite(tree: Any) -> bool:
    # On the host: a computation for every shape would be compiled.
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def _history_like(info: Any, length: int) -> Any:
    return jax.tree.map(lambda x: np.zeros(length, x.dtype), info)


def _join(infos: tuple[Any, ...]) -> Any:
    """The infos of all chunks as one."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *infos)
