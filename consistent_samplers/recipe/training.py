"""The whole recipe with good defaults: fit a base, and train as far as the draws asked for need."""

import dataclasses
import functools
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import optax

from consistent_samplers.algorithms import Algorithm, SamplerState, build, calibration
from consistent_samplers.algorithms.building import check_base
from consistent_samplers.algorithms.osds import OSDS
from consistent_samplers.bases import Base, fit_base, fit_gaussian
from consistent_samplers.bases.base import as_pytree
from consistent_samplers.bases.iterating import split
from consistent_samplers.checks import check_choice, check_integer, check_key, check_widths
from consistent_samplers.compilation import as_partial
from consistent_samplers.diagnostics import ExplorationCheck, exploration_check
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.maps import Control, Identity
from consistent_samplers.recipe import base_stage, route, warm_start
from consistent_samplers.recipe.calibrating import AnnealedRounds, in_rounds
from consistent_samplers.recipe.route import EFFORTS, Effort, Route
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.sampler import Sampler
from consistent_samplers.schedules import check_max_steps
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.targets.base import check_density
from consistent_samplers.training import TrainingDivergedError
from consistent_samplers.types import Array, Draws, PRNGKey

# Draws on which the stages of the recipe are compared with each other.
_NUM_CHECK_DRAWS = 4_096
# Above it, determinants of a general network's steps are too dear to train on.
_MAX_GENERAL_DIM = 100
_LARGE_ITERATIONS = 300
# Draws of an iteration of calibration, and of its first round where that may be enough.
_BATCH, _BRIEF_BATCH = 128, 64
# Share of effective draws from which on a full calibration is not gone on with.
_EFFECTIVE_ENOUGH = 0.9
# Nats below which two stages are as good as each other: rounding, where the base is exact.
_SAME_ELBO = 1e-3


class _Plan(NamedTuple):
    """What was asked for.

    Attributes:
      num_samples: effective draws.
      effort: how far training goes.
      max_steps: most steps of a draw.
      hidden: widths of the hidden layers.
      network: kind of network, or one's own.
      optimizer: one's own, or None.
      distillation: iterations of OSDS.
      rounds: iterations of each round of calibration.
      explore: whether to look for modes.
      progress_bar: show progress.
      folder: of checkpoints, or None.
    """

    num_samples: int
    effort: Effort
    max_steps: int
    hidden: tuple[int, ...]
    network: Any
    optimizer: Any
    distillation: int
    rounds: tuple[int, ...]
    explore: bool
    progress_bar: bool
    folder: Path | None


class _Start(NamedTuple):
    """What training sets out from.

    Attributes:
      base: the base.
      explored: whether modes were looked for, and are to be looked for again.
      modes: what the look found that the base was not fitted to, or None.
      particle_log_z: of the exploration, or NaN.
      trained: the sampler that it goes on from, or None.
    """

    base: Base
    explored: bool
    modes: Any = None
    particle_log_z: float = math.nan
    trained: TrainedSampler | None = None


def train_sampler(
    rng_key: PRNGKey,
    target: Target,
    *,
    base: Base | None = None,
    init_position: Array | None = None,
    num_samples: int = 10_000,
    effort: Effort = "auto",
    max_steps: int = 1,
    hidden: tuple[int, ...] = (64, 64),
    network: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int | None = None,
    num_calibration_iterations: int | None = None,
    explore: bool = True,
    start: TrainedSampler | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> TrainedSampler:
    """Trains a one-step sampler: fits a base, and calibrates a single step from it where needed.

    The cheapest route that gives the draws asked for is taken: the base alone if its weights can be
    trusted and drawing more of it is cheaper than training; else a short calibration of one step
    on its exact likelihood; else a long one (`recipe.route`). ``trained.route`` says which and
    why. Asked for more steps, it first distils a sampler of all numbers of steps by OSDS.

    Args:
      rng_key: key.
      target: what to sample.
      base: where samples start; the best of several kinds if None, see `explore`.
      init_position: ``[dim]`` or ``[n, dim]``, points where the target is known to have mass,
        for fitting the base.
      num_samples: effective draws that are wanted, which the route is chosen for.
      effort: ``"auto"``, or how far to go whatever the weights are worth: ``"base"``,
        ``"short"`` or ``"full"``, for a sampler of many later draws.
      max_steps: most steps that the sampler is to draw in, a power of two; more than one has it
        distilled, and trained in full.
      hidden: widths of the network's hidden layers.
      network: ``"general"``, the default up to 100 dimensions; ``"structured"``, the default
        above: a looser bound and a smaller share of effective draws, but weighted draws for the
        price of a few network evaluations instead of ``dim + 1``, and quicker training; or one's
        own: a linen module or anything with ``init`` and ``apply``, called as
        (x [dim], t [], d []) -> [dim].
      optimizer: an optax transformation; Adam on an annealed learning rate if None.
      num_iterations: iterations of OSDS. If None, 300, or 100 above 100 dimensions, where
        ``max_steps`` exceeds one, and none elsewhere. Without any, more steps than one are no
        better than the base.
      num_calibration_iterations: iterations of calibration, which are then run whatever the base
        is worth. If None, as the route says: 250, and 1,250 more in full where less than nine
        tenths of the draws are effective by then; 300 above 100 dimensions.
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
      TypeError: ``target`` is no `Target`, ``rng_key`` is not a single key, or network or optimiser
        are none.
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
      >>> trained.sample(jax.random.key(1), 1_000, weights=False).position.shape
      (1000, 1)
    """
    begin = time.perf_counter()
    if not isinstance(target, Target):
        raise TypeError(
            f"target must be a cs.Target, got {type(target).__name__}. Wrap a log density of one "
            "point: cs.Target(log_density, dim)."
        )
    check_key(rng_key)
    check_integer("num_samples", num_samples)
    check_choice("effort", effort, EFFORTS)
    check_max_steps(max_steps)
    check_widths(hidden)
    if start is not None:
        warm_start.check_start(start, target)
        max_steps = start.many_steps.max_steps
    large = target.dim > _MAX_GENERAL_DIM
    if num_iterations is None:
        num_iterations = 0 if max_steps == 1 else 100 if large else 300
    check_integer("num_iterations", num_iterations, minimum=0)
    rounds = (_LARGE_ITERATIONS,) if large else (route.SHORT_ITERATIONS, route.FURTHER_ITERATIONS)
    if num_calibration_iterations is not None:
        check_integer("num_calibration_iterations", num_calibration_iterations)
        rounds, effort = (num_calibration_iterations,), "full"
    if num_iterations and effort == "auto":
        effort = "full"
    plan = _Plan(
        num_samples,
        effort,
        max_steps,
        tuple(hidden),
        network or ("structured" if large else "general"),
        optimizer,
        num_iterations,
        rounds[:1] if effort == "short" else rounds,
        explore,
        progress_bar,
        None if checkpoint_dir is None else Path(checkpoint_dir),
    )
    # Built before minutes are spent, for what is wrong with network or optimiser.
    _distillation(target, base or _any_base(target.dim), plan)
    # Known again by JAX: its functions are then compiled once, for every part of what follows.
    target = dataclasses.replace(target, log_density=as_partial(target.log_density))
    key_base = split(rng_key)[0]
    if start is not None:
        moved = warm_start.moved_base(key_base, target, start) if base is None else base
        check_base(target, moved)
        warm = _Start(as_pytree(moved), explore and base is None, trained=start)
        trained = _train(rng_key, target, warm, plan._replace(folder=None), begin)
        short = warm_start.where_it_falls_short(trained, start)
        if short is None:
            return trained
        warnings.warn(
            f"The warm start on target {target.name!r} {short}: training begins anew.",
            stacklevel=2,
        )
    cold = _cold_start(key_base, target, base, init_position, explore)
    return _train(rng_key, target, cold, plan, begin)


def _any_base(dim: int) -> Base:
    from consistent_samplers.bases import standard_normal

    return standard_normal(dim)


def _cold_start(
    rng_key: PRNGKey,
    target: Target,
    base: Base | None,
    init_position: Array | None,
    explore: bool,
) -> _Start:
    """A base, given or fitted."""
    if base is not None:
        check_base(target, base)
        check_density(target, base.sample(rng_key, 64))
        return _Start(as_pytree(base), False)
    if not explore:
        return _Start(fit_gaussian(rng_key, target, init_position=init_position), False)
    fitted = fit_base(rng_key, target, init_position=init_position)
    # A Gaussian is fitted from starts of its own: the modes that others found are an independent
    # look. A mixture is made of them.
    modes = fitted.exploration.modes if fitted.kind == "gaussian" else None
    return _Start(fitted.base, True, modes, fitted.exploration.log_z)


def _distillation(target: Target, base: Base, plan: _Plan) -> Algorithm:
    """The recipe's OSDS.

    The gradient of the target is left out of the control: on a fitted base it costs more (a
    Hessian in every Jacobian) than it brings, and one step stays one network evaluation.
    """
    objective = OSDS(
        max_steps=plan.max_steps,
        hidden=plan.hidden,
        guidance=None,
        learning_rate=AnnealedRounds(2e-3, (max(plan.distillation, 1),)),
    )
    control = objective.control(as_pytree(base), plan.network)
    return build(target, objective, control=control, optimizer=plan.optimizer)


def _train(
    rng_key: PRNGKey, target: Target, start: _Start, plan: _Plan, begin: float
) -> TrainedSampler:
    """All stages on a base as far as they are needed, and what they are worth."""
    _, key_fit, key_calibrate, key_check, key_explore = split(rng_key)
    structured = plan.network == "structured" or hasattr(plan.network, "split")
    density = evaluation.cost(target.log_density, target.dim)
    cost = route.costs(target.dim, plan.hidden, structured, density)

    def look(draws: Draws, worth: Evidence, modes: Any) -> ExplorationCheck | None:
        if not start.explored:
            return None
        return exploration_check(
            key_explore,
            target,
            draws.position,
            float(worth.log_z),
            particle_log_z=start.particle_log_z,
            modes=modes,
        )

    def base_suffices(worth: Evidence, draws: Draws) -> str | None:
        if plan.effort == "base":
            return "asked for"
        if plan.effort != "auto":
            return None
        enough = route.base_is_enough(worth, None, plan.num_samples, cost)
        found = look(draws, worth, start.modes) if enough else None
        return enough if found is None or found.passed else None

    finish = functools.partial(_finish, target=target, start=start, begin=begin)
    try:
        alone, draws, worth, enough = base_stage.widest_needed(
            key_check, target, start.base, _NUM_CHECK_DRAWS, base_suffices
        )
    except ValueError:
        if plan.effort == "base":
            raise
        alone, draws, worth, enough = base_stage.alone(start.base), None, None, None
    stages = {} if worth is None else {"base": worth}
    if enough is not None and draws is not None and worth is not None:
        found = look(draws, worth, start.modes)
        taken = Route("base", enough, {"base": float(worth.ess)})
        return finish(alone, alone, stages, {}, found, taken)

    algorithm, state = _begin(key_fit, target, start, plan)
    untrained, histories, interrupted = state, {}, False
    if plan.distillation:
        rounds: tuple[int, ...] = (warm_start.num_iterations(plan.distillation, start.trained),)
        distilled, interrupted = in_rounds(
            key_fit,
            (algorithm,),
            state,
            rounds,
            name="distilled",
            folder=plan.folder,
            progress_bar=plan.progress_bar,
        )
        state, histories["distilled"] = distilled.state, distilled.history

    calibrated, ran, reason = state, 0, "interrupted"
    if not interrupted:
        rate = AnnealedRounds(1e-2, plan.rounds)
        calibrating = calibration(algorithm, learning_rate=rate, optimizer=plan.optimizer)
        # A first round that may be all costs half as much for a few percent of effective draws.
        brief = calibration(
            algorithm,
            learning_rate=rate,
            optimizer=plan.optimizer,
            batch_size=_BRIEF_BATCH if plan.effort in ("auto", "short") else _BATCH,
        )
        reasons: list[str] = []

        def suffices(state: SamplerState) -> bool:
            why = _why_enough(calibrating, state, key_check, target, plan, cost)
            reasons.extend([why] if why else [])
            return why is not None

        first, rounds = warm_start.calibration_start(calibrating, state, start.trained, plan.rounds)
        result, interrupted = in_rounds(
            key_calibrate,
            (brief, calibrating)[: len(rounds)],
            first,
            rounds,
            name="calibrated",
            is_enough=suffices,
            folder=plan.folder,
            progress_bar=plan.progress_bar,
        )
        calibrated, histories["calibrated"] = result.state, result.history
        ran = len(result.history.loss)
        reason = reasons[-1] if reasons else "all of its iterations were run"

    samplers = {"distilled": algorithm.sampler(state)} if plan.distillation else {}
    samplers["calibrated"] = algorithm.sampler(calibrated)
    drawn: dict[str, Draws] = {} if draws is None else {"base": draws}
    try:
        for name, sampler in samplers.items():
            drawn[name] = sampler.sample(key_check, target, _NUM_CHECK_DRAWS, 1)
            stages[name] = evidence(drawn[name])
    except ValueError as error:
        raise TrainingDivergedError(
            f"The sampler of target {target.name!r} was trained, but its draws cannot be weighed: "
            f"{error} The trained state is in this error's .result.state.",
            result if not interrupted else distilled,
        ) from error
    best = _best_stage(stages)
    one_step = {"base": algorithm.sampler(untrained), **samplers}[best]
    ended_early = len(plan.rounds) > 1 and ran <= plan.rounds[0]
    name = "short" if plan.effort == "short" or ended_early else "full"
    taken = Route(name, reason, {stage: float(e.ess) for stage, e in stages.items()})
    found = None if interrupted else look(drawn[best], stages[best], None)
    if found is not None and not found.passed and start.trained is None:
        # A warm start that misses modes is given up with a warning of its own.
        warnings.warn(str(found), stacklevel=3)
    return finish(one_step, algorithm.sampler(state), stages, histories, found, taken)


def _begin(
    rng_key: PRNGKey, target: Target, start: _Start, plan: _Plan
) -> tuple[Algorithm, SamplerState]:
    """The recipe's algorithm and the state that it starts from, warm or cold."""
    algorithm = _distillation(target, start.base, plan)
    known = start.trained
    if known is None or isinstance(known.many_steps.control, Identity):
        return algorithm, algorithm.init(rng_key)
    control = known.many_steps.control
    assert isinstance(control, Control)
    moved = dataclasses.replace(control, base=start.base)
    algorithm = dataclasses.replace(algorithm, control=moved)
    return algorithm, warm_start.late(algorithm, known.many_steps.params, plan.distillation)


def _why_enough(
    algorithm: Algorithm,
    state: SamplerState,
    rng_key: PRNGKey,
    target: Target,
    plan: _Plan,
    cost: route.Costs,
) -> str | None:
    """Why calibration may end, in words: never on draws that cannot be weighed."""
    try:
        worth = evidence(algorithm.sampler(state).sample(rng_key, target, _NUM_CHECK_DRAWS, 1))
    except ValueError:
        return None
    if float(worth.ess) >= _EFFECTIVE_ENOUGH:
        return "nine tenths of its draws are effective"
    if plan.effort == "auto":
        return route.calibration_is_enough(worth, plan.num_samples, cost)
    return None


def _best_stage(stages: dict[str, Evidence]) -> str:
    """The stage of the best ELBO; the calibrated one where they differ by noise only."""
    best = max(stages, key=lambda name: float(stages[name].elbo))
    last = stages["calibrated"]
    # On a target that the base already fits, the stages differ by noise only.
    noise = 2.0 * float(last.elbo_stderr) + _SAME_ELBO
    if float(last.elbo) >= float(stages[best].elbo) - noise:
        return "calibrated"
    warnings.warn(
        f"Calibration did not improve the one-step ELBO ({last.elbo:.3f}); the {best} sampler "
        f"({stages[best].elbo:.3f}) is used instead. Try more iterations or another rng_key.",
        stacklevel=4,
    )
    return best


def _finish(
    one_step: Sampler,
    many_steps: Sampler,
    stages: dict[str, Evidence],
    histories: dict[str, Any],
    exploration: ExplorationCheck | None,
    taken: Route,
    *,
    target: Target,
    start: _Start,
    begin: float,
) -> TrainedSampler:
    seconds = time.perf_counter() - begin
    warm = start.trained is not None
    return TrainedSampler(
        target, one_step, many_steps, stages, histories, seconds, exploration, taken, warm
    )
