"""The whole recipe with good defaults: fit a base, distil if asked to, calibrate, check."""

import dataclasses
import functools
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.algorithms.base import check_base, check_choice
from consistent_samplers.algorithms.control import NetworkKind
from consistent_samplers.bases import Base, fit_base, fit_gaussian, refit_base
from consistent_samplers.checks import check_integer, check_key, check_widths
from consistent_samplers.compilation import as_partial, jit_with
from consistent_samplers.diagnostics import exploration_check
from consistent_samplers.estimate import evidence
from consistent_samplers.recipe.settings import Settings
from consistent_samplers.recipe.shared import Stage
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.schedules import check_max_steps
from consistent_samplers.targets.base import Target, check_density
from consistent_samplers.training import FitResult, TrainingDivergedError, fit
from consistent_samplers.types import Array, Draws, PRNGKey

# Draws on which the stages of the recipe are compared with each other.
_NUM_CHECK_DRAWS = 4_096
# Above it, determinants of a general network's steps are too dear to train on, and an iteration
# of any network takes longer.
_MAX_GENERAL_DIM = 100
# Share of the iterations, the last ones of their schedule, that a warm start runs; and the share of
# its effective draws below which it is given up.
_WARM_SHARE = 1 / 3
_WARM_ENOUGH = 0.5
_CHUNK_SIZE = 100
# Calibration of a general network: what most targets need, and what the others get in addition. The
# second round is run where less than this share of the draws is effective after the first.
_CALIBRATION_ROUNDS = (250, 1_250)
_EFFECTIVE_ENOUGH = 0.9
# Nats below which two stages are as good as each other: rounding, where the base is exact.
_SAME_ELBO = 1e-3


class _Start(NamedTuple):
    """What training sets out from.

    Attributes:
      base: the base.
      particle_log_z: of the exploration, or NaN.
      explored: whether to look for modes again afterwards.
      trained: the sampler that it goes on from, or None.
    """

    base: Base
    particle_log_z: float
    explored: bool
    trained: TrainedSampler | None


class _Budget(NamedTuple):
    """Iterations of the stages.

    Attributes:
      distillation: of OSDS.
      calibration: of each round of calibration.
    """

    distillation: int
    calibration: tuple[int, ...]


def train_sampler(
    rng_key: PRNGKey,
    target: Target,
    *,
    base: Base | None = None,
    init_position: Array | None = None,
    max_steps: int = 1,
    hidden: tuple[int, ...] = (64, 64),
    network: NetworkKind | None = None,
    num_iterations: int | None = None,
    num_calibration_iterations: int | None = None,
    explore: bool = True,
    start: TrainedSampler | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> TrainedSampler:
    """Trains a one-step sampler: fits a base, and calibrates a single step from it.

    Asked for more steps, it first distils a sampler of all numbers of steps by OSDS. The single
    step is calibrated on its exact likelihood in either case, is no better for the distillation,
    and has a tighter ELBO than 2 to 16 distilled steps (``python -m benchmarks steps``).

    Args:
      rng_key: key.
      target: what to sample.
      base: where samples start; the best of several kinds if None, see `explore`.
      init_position: ``[dim]`` or ``[n, dim]``, points where the target is known to have mass,
        for fitting the base.
      max_steps: most steps that the sampler is to draw in, a power of two; more than one has it
        distilled.
      hidden: widths of the network's hidden layers.
      network: ``"general"``, the default up to 100 dimensions, or ``"structured"``, the default
        above: a looser bound and a smaller share of effective draws, but weighted draws for the
        price of a few network evaluations instead of ``dim + 1``, and quicker training.
      num_iterations: iterations of OSDS. If None, 300, or 100 above 100 dimensions, where
        ``max_steps`` exceeds one, and none elsewhere. Without any, more steps than one are no
        better than the base.
      num_calibration_iterations: iterations of calibration. If None 250, and 1,250 more where less
        than nine tenths of the draws are effective by then; 300 above 100 dimensions.
      explore: look for modes by many optimiser starts and tempered SMC, and take the best of a
        Gaussian, a mixture and a product of mixtures as base (`bases.fit_base`); afterwards look
        again from fresh starts for modes that the draws do not show, and warn of them. False fits
        a Gaussian at once: quicker, where the target is known to have one mode.
      start: a sampler of a similar target, such as the posterior of other data, to go on from: its
        base is moved and its network trained for a third of the iterations, without a new
        exploration; ``max_steps``, ``hidden`` and ``network`` are its own. Where that ends with
        less than half its share of effective draws, or misses modes, a warning says so and training
        begins anew.
      progress_bar: show progress with the current ELBO.
      checkpoint_dir: folder to keep the training in: a call that was killed and is made again
        goes on from there (the base is fitted anew, with the same result). One folder for each
        target; a warm start, which is short, keeps nothing there.

    Returns:
      A `TrainedSampler`; after Ctrl-C during the training of the network, with what it had reached
      and a warning. A stage whose training diverges keeps its last good state, with a
      warning, and the calibrated step is kept only if its ELBO is no worse.

    Raises:
      TypeError: ``target`` is no `Target`, or ``rng_key`` is not a single key.
      ValueError: the density is NaN, +inf, or zero everywhere it was tried; base or start differ
        from the target in dimension; or a number of iterations, steps or units makes no sense.
      TrainingDivergedError: the draws of the trained sampler have no usable weights (the density
        is NaN or +inf where it was not before); carries the trained state.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.array([0.5]), jnp.ones(1))
      >>> base = cs.bases.standard_normal(1)  # fitted to the target if not given
      >>> tiny = dict(hidden=(8,), num_calibration_iterations=5, progress_bar=False)  # for a test
      >>> trained = cs.train_sampler(jax.random.key(0), target, base=base, **tiny)
      >>> list(trained.stages), trained.stages["calibrated"].bound
      (['base', 'calibrated'], 'lower-if-injective')
      >>> trained.sample(jax.random.key(1), 1_000, bound=None).position.shape
      (1000, 1)
    """
    begin = time.perf_counter()
    if not isinstance(target, Target):
        raise TypeError(
            f"target must be a cs.Target, got {type(target).__name__}. Wrap a log density of one "
            "point: cs.Target(log_density, dim)."
        )
    check_key(rng_key)
    check_max_steps(max_steps)
    check_widths(hidden)
    large = target.dim > _MAX_GENERAL_DIM
    if network is None:
        network = "structured" if large else "general"
    check_choice("network", network, ("general", "structured"))
    if num_iterations is None:
        most = start.settings.max_steps if start and start.settings else max_steps
        num_iterations = 0 if most == 1 else 100 if large else 300
    check_integer("num_iterations", num_iterations, minimum=0)
    rounds = (300,) if large else _CALIBRATION_ROUNDS
    if num_calibration_iterations is not None:
        check_integer("num_calibration_iterations", num_calibration_iterations)
        rounds = (num_calibration_iterations,)
    key_base, *_ = jax.random.split(rng_key, 4)
    # Its functions of the density are then compiled once, for every part of what follows.
    target = dataclasses.replace(target, log_density=as_partial(target.log_density))
    budget = _Budget(num_iterations, rounds)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    if start is not None:
        settings = _settings_of(start, target)
        moved = refit_base(key_base, target, start.base) if base is None else base
        check_base(target, moved)
        warm = _Start(moved, math.nan, explore and base is None, start)
        trained = _train(rng_key, target, warm, settings, budget, progress_bar, None, begin)
        short = _where_it_falls_short(trained, start)
        if short is None:
            return trained
        warnings.warn(
            f"The warm start on target {target.name!r} {short}: training begins anew.",
            stacklevel=2,
        )
        max_steps, hidden, network = settings
    particle_log_z = math.nan
    explored = base is None and explore
    if base is None and explore:
        fitted = fit_base(key_base, target, init_position=init_position)
        base, particle_log_z = fitted.base, fitted.exploration.log_z
    elif base is None:
        base = fit_gaussian(key_base, target, init_position=init_position)
    else:
        check_base(target, base)
        check_density(target, base.sample(key_base, 64))
    settings = Settings(max_steps, tuple(hidden), network)
    cold = _Start(base, particle_log_z, explored, None)
    return _train(rng_key, target, cold, settings, budget, progress_bar, folder, begin)


def _train(
    rng_key: PRNGKey,
    target: Target,
    start: _Start,
    settings: Settings,
    budget: _Budget,
    progress_bar: bool,
    folder: Path | None,
    begin: float,
) -> TrainedSampler:
    """Both stages on a base, and what they are worth."""
    _, key_fit, key_calibrate, key_check = jax.random.split(rng_key, 4)
    key_explore = jax.random.fold_in(rng_key, 4)
    warm = start.trained
    distillation = Stage(settings, "distilled", (max(budget.distillation, 1),))
    algorithm = distillation.algorithm(target, start.base)
    untrained = _at_once(algorithm.init, key_fit)
    run = functools.partial(_fit_or_keep, progress_bar=progress_bar, folder=folder)

    def check(state: SamplerState) -> Draws:
        return algorithm.sample(key_check, state, _NUM_CHECK_DRAWS)

    state = untrained if warm is None else _going_on(algorithm, warm.state, distillation)
    distilled, interrupted = FitResult(state, None), False
    if budget.distillation:
        num = _num_warm(distillation) if warm else budget.distillation
        distilled, interrupted = run(key_fit, algorithm, distillation, state, num, "distilled")
    calibrated, histories = distilled, {"distilled": distilled.history}
    if not interrupted:
        stage = Stage(settings, "calibrated", budget.calibration)
        calibration = stage.algorithm(target, start.base)
        if warm is None:
            state, rounds = _at_once(calibration.restart, distilled.state), budget.calibration
        else:
            state = _going_on(calibration, warm.one_step_state, stage)
            rounds = (_num_warm(stage),)
        calibrated, interrupted = _calibrate(
            run, key_calibrate, calibration, stage, state, rounds, check
        )
        histories["calibrated"] = calibrated.history
    histories = {name: history for name, history in histories.items() if history is not None}

    # An untrained control is zero: its single step is the base itself.
    states = {"base": untrained, "distilled": distilled.state, "calibrated": calibrated.state}
    if not budget.distillation:
        del states["distilled"]
    try:
        draws = {name: check(state) for name, state in states.items()}
        stages = {name: evidence(drawn) for name, drawn in draws.items()}
    except ValueError as error:
        raise TrainingDivergedError(
            f"The sampler of target {target.name!r} was trained, but its draws cannot be weighed: "
            f"{error} The trained state is in this error's .result.state.",
            calibrated,
        ) from error
    best = max(stages, key=lambda name: float(stages[name].elbo))
    # On a target that the base already fits, the stages differ by noise only.
    noise = 2.0 * float(stages["calibrated"].elbo_stderr) + _SAME_ELBO
    if float(stages["calibrated"].elbo) >= float(stages[best].elbo) - noise:
        best = "calibrated"
    else:
        warnings.warn(
            f"Calibration did not improve the one-step ELBO ({stages['calibrated'].elbo:.3f}); "
            f"the {best} sampler ({stages[best].elbo:.3f}) is used instead. Try more iterations "
            "or another rng_key.",
            stacklevel=3,
        )
    exploration = None
    if start.explored and not interrupted:
        exploration = exploration_check(
            key_explore,
            target,
            draws[best].position,
            float(stages[best].log_z),
            particle_log_z=start.particle_log_z,
        )
        # A warm start that misses modes is given up with a warning of its own.
        if not exploration.passed and warm is None:
            warnings.warn(str(exploration), stacklevel=3)
    return TrainedSampler(
        algorithm,
        distilled.state,
        states[best],
        stages,
        histories,
        time.perf_counter() - begin,
        exploration,
        settings,
        warm is not None,
    )


def _at_once(function: Callable[[Any], SamplerState], argument: Any) -> SamplerState:
    """Compiled as one, where every operation would be compiled by itself."""
    return jit_with(_call, function, effort="least")(argument)


def _call(function: Callable[[Any], SamplerState], argument: Any) -> SamplerState:
    return function(argument)


def _settings_of(start: TrainedSampler, target: Target) -> Settings:
    if start.settings is None:
        raise ValueError(
            "start must come from cs.train_sampler or cs.load; an algorithm of your own goes on "
            "with cs.fit(..., state=...)."
        )
    if start.target.dim != target.dim:
        raise ValueError(
            f"start has {start.target.dim} dimensions, but target {target.name!r} has "
            f"{target.dim}: train without it."
        )
    return start.settings


def _calibrate(
    run: Callable[..., tuple[FitResult, bool]],
    rng_key: PRNGKey,
    algorithm: Algorithm,
    stage: Stage,
    state: SamplerState,
    rounds: tuple[int, ...],
    check: Callable[[SamplerState], Draws],
) -> tuple[FitResult, bool]:
    """Rounds of calibration until one is enough; and whether Ctrl-C cut them short."""
    histories = []
    for i, num in enumerate(rounds):
        name = stage.name if i == 0 else f"{stage.name}-{i + 1}"
        result, interrupted = run(rng_key, algorithm, stage, state, num, name)
        state = result.state
        histories.append(result.history)
        last = i == len(rounds) - 1 or len(result.history.loss) < num
        if last or _is_effective(check(state)):
            break
    history = jax.tree.map(lambda *parts: np.concatenate(parts), *histories)
    return FitResult(state, history), interrupted


def _is_effective(draws: Draws) -> bool:
    """Whether calibration may end: never on draws that cannot be weighed."""
    try:
        return float(evidence(draws).ess) >= _EFFECTIVE_ENOUGH
    except ValueError:
        return False


def _going_on(algorithm: Algorithm, state: SamplerState, stage: Stage) -> SamplerState:
    """A trained state with a fresh optimiser, its learning rate late in the schedule.

    What has been done counts: nothing is annealed or warmed up again.
    """
    begun = stage.num_iterations - _num_warm(stage)

    def late(part: Any) -> Any:
        if isinstance(part, optax.ScaleByScheduleState):
            return part._replace(count=jnp.full_like(part.count, begun))
        return part

    restarted = _at_once(algorithm.restart, state)
    opt_state = jax.tree.map(
        late, restarted.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
    )
    return restarted._replace(opt_state=opt_state, iteration=state.iteration)


def _num_warm(stage: Stage) -> int:
    return max(1, round(_WARM_SHARE * stage.num_iterations))


def _where_it_falls_short(trained: TrainedSampler, start: TrainedSampler) -> str | None:
    """What speaks against a warm start, in words; None where it is as good as could be hoped."""
    if trained.exploration is not None and not trained.exploration.passed:
        return f"is not enough ({trained.exploration})"
    reached, before = _one_step_ess(trained), _one_step_ess(start)
    if not reached >= _WARM_ENOUGH * before:
        return (
            f"ended with {100 * reached:.3g} % of its draws effective, where the sampler that it "
            f"went on from had {100 * before:.3g} %"
        )
    return None


def _one_step_ess(trained: TrainedSampler) -> float:
    """Share of effective draws of the best stage."""
    return float(max(trained.stages.values(), key=lambda stage: float(stage.elbo)).ess)


def _fit_or_keep(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    stage: Stage,
    state: SamplerState,
    num_iterations: int,
    name: str,
    *,
    folder: Path | None,
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
            # The same for every budget of a stage, as what is compiled depends on it.
            chunk_size=min(_CHUNK_SIZE, stage.num_iterations),
            checkpoint_dir=None if folder is None else folder / name,
            # In many dimensions running takes longer than compiling.
            compile_effort="less" if algorithm.base.dim > _MAX_GENERAL_DIM else "least",
        )
    except TrainingDivergedError as error:
        warnings.warn(f"{error} The recipe goes on from that state.", stacklevel=4)
        return error.result, False
    return result, len(result.history.loss) < num_iterations
