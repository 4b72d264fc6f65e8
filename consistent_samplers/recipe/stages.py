"""The stages of the recipe on a base: how far they go, and what they are worth."""

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from consistent_samplers import progress
from consistent_samplers.algorithms import Algorithm, SamplerState, build, calibration
from consistent_samplers.algorithms.building import choose_optimizer
from consistent_samplers.algorithms.calibration import Calibration
from consistent_samplers.algorithms.hierarchical import Hierarchical, hierarchical
from consistent_samplers.algorithms.osds import OSDS
from consistent_samplers.bases import Base, DiagonalBase
from consistent_samplers.bases.base import as_pytree
from consistent_samplers.bases.iterating import folded, split
from consistent_samplers.diagnostics import (
    ExplorationCheck,
    exploration_check,
    mass_elsewhere,
    members_left_out,
    open_directions,
    share_beyond,
    share_unseen,
    standard_error_is_reliable,
    tail_is_light,
)
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.maps import Control, HierarchicalMap, Identity
from consistent_samplers.recipe import base_stage, route, warm_start
from consistent_samplers.recipe.calibrating import AnnealedRounds, in_rounds
from consistent_samplers.recipe.route import Effort, Route
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.training import FitResult, TrainingDivergedError
from consistent_samplers.types import Draws, PRNGKey

# Draws on which the stages of the recipe are compared with each other.
_NUM_CHECK_DRAWS = 4_096
# What a second look's key is folded with: a stage ends the training where two looks say so.
_AGAIN = 2
# Of a third, at many draws, where a density's value is cheap: at most, and operations for them.
_MANY, _MANY_DRAWS, _MANY_OPERATIONS = 3, 65_536, 2e9
# Draws of an iteration of calibration, and of its first round where that may be enough.
_BATCH, _BRIEF_BATCH = 128, 64
# Share of effective draws from which on a full calibration is not gone on with.
_EFFECTIVE_ENOUGH = 0.9
NUM_PLACED = 2_048
"""Particles that are looked up, at most."""

# Nats of excess, and share of effective draws, at which they are.
_DOUBT, _UNEVEN = 0.25, 0.15
# Share of a base's draws outside of the support from which on it is not calibrated.
_MAX_BEYOND = 0.02
# Share below which it is not the tail alone that is wrong.
_MENDABLE = 0.1
# Networks whose Jacobian costs what a draw does.
_BY_PARTS = ("structured", "hierarchical")
# Nats below which two stages are as good as each other: rounding, where the base is exact.
_SAME_ELBO = 1e-3


class Plan(NamedTuple):
    """What was asked for."""

    num_samples: int
    effort: Effort
    max_steps: int
    hidden: tuple[int, ...]
    network: Any
    optimizer: Any
    distillation: int  # iterations of OSDS
    rounds: tuple[int, ...]  # iterations of each round of calibration
    explore: bool
    progress_bar: bool
    folder: Path | None  # of checkpoints


class Start(NamedTuple):
    """What training sets out from."""

    base: Base
    explored: bool  # whether modes were looked for, and are to be looked for again
    modes: Any = None  # that the base was not fitted to
    particle_log_z: float = math.nan
    particles: Any = None
    known: Any = None  # all modes that were found
    trained: TrainedSampler | None = None  # what it goes on from


def distillation(target: Target, base: Base, plan: Plan) -> Algorithm:
    """The recipe's OSDS, unguided.

    On a fitted base the target's gradient costs more (a Hessian in every Jacobian) than it brings.
    """
    objective = OSDS(
        max_steps=plan.max_steps,
        hidden=plan.hidden,
        guidance=None,
        learning_rate=AnnealedRounds(2e-3, (max(plan.distillation, 1),)),
    )
    control = objective.control(as_pytree(base), plan.network)
    return build(target, objective, control=control, optimizer=plan.optimizer)


def train(
    rng_key: PRNGKey, target: Target, start: Start, plan: Plan, begin: float
) -> tuple[TrainedSampler, bool]:
    """All stages on a base as far as they are needed; and whether Ctrl-C cut them short."""
    _, key_fit, key_calibrate, key_check, key_explore = split(rng_key)
    structured = plan.network in _BY_PARTS or hasattr(plan.network, "split")
    density = evaluation.cost(target.log_density, target.dim)
    cost = route.costs(target.dim, plan.hidden, structured, density)

    shown = plan.progress_bar and start.explored

    @progress.stage("look for missed modes", progress_bar=shown)
    def look(
        sampler: Sampler, draws: Draws, worth: Evidence, modes: Any
    ) -> ExplorationCheck | None:
        if not start.explored:
            return None
        found = exploration_check(
            key_explore,
            target,
            draws.position,
            float(worth.log_z),
            log_weight=draws.log_weight,
            particle_log_z=start.particle_log_z,
            modes=modes,
            known=start.known,
        )
        assert draws.log_density is not None
        num_open = len(open_directions(target, draws.position, draws.log_density))
        found = found._replace(num_open=num_open)
        if isinstance(sampler.control, HierarchicalMap):
            weighed = np.isfinite(np.asarray(draws.log_weight))
            left_out = members_left_out(target, sampler, draws.position[weighed])
            elsewhere = mass_elsewhere(key_explore, target, sampler)
            found = found._replace(num_members=left_out.num_members, elsewhere=elsewhere)
        doubtful = found.num_modes > 1 or found.log_z_excess > _DOUBT or float(worth.ess) < _UNEVEN
        heavy = not standard_error_is_reliable(worth)
        if start.particles is None or not (doubtful or heavy):
            return found
        # The particles' log Z may be off itself: where are they?
        particles = jax.device_put(start.particles[:NUM_PLACED])
        there = np.asarray(sampler.log_weight(key_explore, target, particles, 1))
        return found._replace(
            uncovered=share_beyond(draws, there), hidden=share_unseen(draws, there)
        )

    def base_suffices(sampler: Sampler, draws: Draws, worth: Evidence) -> str | None:
        if plan.effort == "base":
            return route.ASKED_FOR
        if plan.effort != "auto":
            return None
        # A NaN here and there is no edge.
        edge = float(worth.outside or 0.0) - float(worth.undefined or 0.0)
        if edge > _MAX_BEYOND:
            return f"{100 * edge:.0f} % of its draws are outside, where calibration learns nothing"
        enough = route.base_is_enough(worth, None, plan.num_samples, cost)
        if enough is None:
            return None
        again = _worth(sampler, folded(key_check, _AGAIN), target)
        if again is None or route.base_is_enough(again, None, plan.num_samples, cost) is None:
            return None
        # What is rare and weighs much shows among many only.
        num = int(min(_MANY_DRAWS, _MANY_OPERATIONS / max(density, 1.0)))
        if num > 2 * _NUM_CHECK_DRAWS:
            many = _worth(sampler, folded(key_check, _MANY), target, num)
            if many is None or not route.many_bear_out(many):
                return None
        found = look(sampler, draws, worth, start.modes)
        return enough if found is None or found.passed else None

    finish = functools.partial(_finish, target=target, start=start, begin=begin)
    try:
        with progress.stage("base", progress_bar=plan.progress_bar):
            alone, draws, worth, enough = base_stage.widest_needed(
                key_check, target, start.base, _NUM_CHECK_DRAWS, base_suffices
            )
    except ValueError:
        if plan.effort == "base":
            raise
        alone, draws, worth, enough = Sampler.of_base(start.base), None, None, None
    stages = {} if worth is None else {"base": worth}
    if enough is not None and draws is not None and worth is not None:
        found = look(alone, draws, worth, start.modes)
        taken = Route("base", enough, {"base": float(worth.ess)})
        return finish(alone, alone, stages, {}, found, taken), False

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
            shown_as=("distil",),
            folder=plan.folder,
            progress_bar=plan.progress_bar,
        )
        state, histories["distilled"] = distilled.state, distilled.history

    calibrated, ran, reason = state, 0, "interrupted"
    if not interrupted:
        brief, calibrating = _calibrations(algorithm, plan)
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
            shown_as=("short", "full") if len(plan.rounds) > 1 else (plan.effort,),
            is_enough=suffices,
            folder=plan.folder,
            progress_bar=plan.progress_bar,
        )
        ran = len(result.history.loss)

        def weigh(state: SamplerState) -> Evidence | None:
            return _worth(calibrating.sampler(state), key_check, target)

        if not interrupted and (worth_now := weigh(result.state)) is not None:
            result, interrupted = _mend_tail(
                folded(key_check, 1), calibrating, result, worth_now, weigh, plan
            )
        calibrated, histories["calibrated"] = result.state, result.history
        reason = reasons[-1] if reasons else "all of its iterations were run"

    samplers = {"distilled": algorithm.sampler(state)} if plan.distillation else {}
    samplers["calibrated"] = algorithm.sampler(calibrated)
    drawn: dict[str, Draws] = {} if draws is None else {"base": draws}
    for name, sampler in samplers.items():
        try:
            drawn[name] = sampler.sample(key_check, target, _NUM_CHECK_DRAWS, 1)
            stages[name] = evidence(drawn[name])
        except ValueError as error:
            said = (
                f"The {name} sampler of target {target.name!r} was trained, but its draws cannot "
                f"be weighed: {error}"
            )
            if not stages:
                raise TrainingDivergedError(
                    f"{said} The trained state is in this error's .result.state.",
                    result if not interrupted else distilled,
                ) from error
            warnings.warn(f"{said} The one before is used instead.", stacklevel=3)
    best = _best_stage(stages)
    # A hierarchical map starts near its base, not at it.
    unmoved = alone if plan.network == "hierarchical" else algorithm.sampler(untrained)
    one_step = {"base": unmoved, **samplers}[best]
    ended_early = len(plan.rounds) > 1 and ran <= plan.rounds[0]
    name = "short" if plan.effort == "short" or ended_early else "full"
    taken = Route(name, reason, {stage: float(e.ess) for stage, e in stages.items()})
    found = None
    if not interrupted:
        try:
            found = look(one_step, drawn[best], stages[best], None)
        except KeyboardInterrupt:
            interrupted = True
            said = "The look for missed modes was interrupted: nothing is known of them."
            warnings.warn(said, RuntimeWarning, stacklevel=3)
    many_steps = algorithm.sampler(state)
    return finish(one_step, many_steps, stages, histories, found, taken), interrupted


def _begin(
    rng_key: PRNGKey, target: Target, start: Start, plan: Plan
) -> tuple[Algorithm, SamplerState]:
    """The recipe's algorithm and the state that it starts from, warm or cold."""
    known = start.trained
    if plan.network == "hierarchical":
        if known is None or not isinstance(known.many_steps.control, HierarchicalMap):
            base = cast(DiagonalBase, start.base)  # else it is refused there
            made = hierarchical(target, base=base, optimizer=plan.optimizer)
            return made, made.init(rng_key)
        moving = hierarchical(target, known.many_steps.control, optimizer=plan.optimizer)
        return moving, warm_start.late(moving, known.many_steps.params, sum(plan.rounds))
    algorithm = distillation(target, start.base, plan)
    if known is None or isinstance(known.many_steps.control, Identity):
        return algorithm, algorithm.init(rng_key)
    control = known.many_steps.control
    assert isinstance(control, Control)
    moved = dataclasses.replace(control, base=start.base)
    algorithm = dataclasses.replace(algorithm, control=moved)
    return algorithm, warm_start.late(algorithm, known.many_steps.params, plan.distillation)


def _calibrations(algorithm: Algorithm, plan: Plan) -> tuple[Algorithm, Algorithm]:
    """What the first and the further rounds of calibration run."""
    rate = AnnealedRounds(1e-2, plan.rounds)
    if isinstance(algorithm.objective, Hierarchical):
        objective = dataclasses.replace(algorithm.objective, learning_rate=rate)
        chosen = choose_optimizer(objective, plan.optimizer)
        whole = dataclasses.replace(algorithm, objective=objective, optimizer=chosen)
        return whole, whole
    whole = calibration(algorithm, learning_rate=rate, optimizer=plan.optimizer)
    # A first round that may be all costs half as much for a few percent of effective draws.
    brief = calibration(
        algorithm,
        learning_rate=rate,
        optimizer=plan.optimizer,
        batch_size=_BRIEF_BATCH if plan.effort in ("auto", "short") else _BATCH,
    )
    return brief, whole


def _why_enough(
    algorithm: Algorithm,
    state: SamplerState,
    rng_key: PRNGKey,
    target: Target,
    plan: Plan,
    cost: route.Costs,
) -> str | None:
    """Why calibration may end, in words: where draws of two keys say so."""
    sampler = algorithm.sampler(state)

    def why(key: PRNGKey) -> str | None:
        worth = _worth(sampler, key, target)
        if worth is None:  # its draws cannot be weighed
            return None
        if float(worth.ess) >= _EFFECTIVE_ENOUGH:
            return "nine tenths of its draws are effective"
        if plan.effort != "auto":
            return None
        return route.calibration_is_enough(worth, plan.num_samples, cost)

    first = why(rng_key)
    return first if first is not None and why(folded(rng_key, _AGAIN)) is not None else None


def _worth(
    sampler: Sampler, rng_key: PRNGKey, target: Target, num_samples: int = _NUM_CHECK_DRAWS
) -> Evidence | None:
    """Evidence of one-step draws; None where they cannot be weighed."""
    try:
        return evidence(sampler.sample(rng_key, target, num_samples, 1))
    except ValueError:
        return None


def _mend_tail(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    result: FitResult,
    worth: Evidence,
    weigh: Callable[[SamplerState], Evidence | None],
    plan: Plan,
) -> tuple[FitResult, bool]:
    """A last round on widened draws, where a few large weights decide; kept where it helps.

    Short of that the base's own draws hardly ever show the map where its tails are too thin.
    """
    if len(plan.rounds) == 1 or tail_is_light(worth) or float(worth.ess) < _MENDABLE:
        return result, False
    num = route.TAIL_ITERATIONS
    rate = AnnealedRounds(3e-3, (num,))
    widened: Any = dataclasses.replace(
        cast(Calibration, algorithm.objective), tail_share=0.5, learning_rate=rate
    )
    optimizer = choose_optimizer(widened, plan.optimizer)
    mending = dataclasses.replace(algorithm, objective=widened, optimizer=optimizer)
    mended, interrupted = in_rounds(
        rng_key,
        (mending,),
        mending.restart(result.state),
        (num,),
        name="calibrated-tail",
        shown_as=("tail",),
        folder=plan.folder,
        progress_bar=plan.progress_bar,
    )
    found = weigh(mended.state)
    if found is None:
        return result, interrupted
    if not tail_is_light(found) and float(found.ess) < float(worth.ess):
        return result, interrupted
    history = jax.tree.map(lambda *parts: np.concatenate(parts), result.history, mended.history)
    return FitResult(mended.state, history), interrupted


def _best_stage(stages: dict[str, Evidence]) -> str:
    """The stage of the best ELBO; the calibrated one where they differ by noise only."""
    best = max(stages, key=lambda name: (float(stages[name].elbo), float(stages[name].ess)))
    if best == "calibrated" or "calibrated" not in stages:
        return best
    last = stages["calibrated"]
    if math.isinf(float(stages[best].elbo)):
        # Draws outside of the support leave no ELBO: the share of effective ones decides.
        return best
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
    start: Start,
    begin: float,
) -> TrainedSampler:
    seconds = time.perf_counter() - begin
    warm = start.trained is not None
    return TrainedSampler(
        target, one_step, many_steps, stages, histories, seconds, exploration, taken, warm
    )
