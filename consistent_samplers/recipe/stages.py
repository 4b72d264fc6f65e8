"""The stages of the recipe on a base: how far they go, and what they are worth."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from consistent_samplers import progress
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.algorithms.building import choose_optimizer
from consistent_samplers.algorithms.calibration import Calibration
from consistent_samplers.bases.iterating import folded, split
from consistent_samplers.diagnostics import ExplorationCheck, tail_is_light
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.recipe import base_stage, building, judging, looking, route, warm_start
from consistent_samplers.recipe.ahead import draws_compiled
from consistent_samplers.recipe.calibrating import AnnealedRounds, in_rounds
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.recipe.route import Route
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.training import FitResult, TrainingDivergedError
from consistent_samplers.types import Draws, PRNGKey

# Share of effective draws below which it is not the tail alone that is wrong.
_MENDABLE = 0.1
# Networks whose Jacobian costs what a draw does.
_BY_PARTS = ("structured", "hierarchical")


def train(
    rng_key: PRNGKey, target: Target, start: Start, plan: Plan, begin: float
) -> tuple[TrainedSampler, bool]:
    """All stages on a base as far as they are needed; and whether Ctrl-C cut them short."""
    _, key_fit, key_calibrate, key_check, key_explore = split(rng_key)
    structured = plan.network in _BY_PARTS or hasattr(plan.network, "split")
    density = evaluation.cost(target.log_density, target.dim)
    cost = route.costs(target.dim, plan.hidden, structured, density)
    look = functools.partial(
        looking.look_for_missed_mass, key_explore, target, start, plan.progress_bar
    )
    looks: list[tuple[Draws, ExplorationCheck | None]] = []

    def look_at_base(sampler: Sampler, draws: Draws, worth: Evidence) -> ExplorationCheck | None:
        looks.append((draws, look(sampler, draws, worth, start.modes)))
        return looks[-1][1]

    base_suffices = functools.partial(
        judging.why_base_is_enough,
        rng_key=key_check,
        target=target,
        plan=plan,
        cost=cost,
        look=look_at_base,
    )
    finish = functools.partial(_finish, target=target, start=start, begin=begin)
    try:
        with progress.stage("base", progress_bar=plan.progress_bar):
            alone, draws, worth, enough = base_stage.widest_needed(
                key_check, target, start.base, judging.NUM_CHECK_DRAWS, base_suffices
            )
    except ValueError:
        if plan.effort == "base":
            raise
        alone, draws, worth, enough = Sampler.of_base(start.base), None, None, None
    stages = {} if worth is None else {"base": worth}
    if enough is not None and draws is not None and worth is not None:
        if not (looks and looks[-1][0] is draws):
            look_at_base(alone, draws, worth)
        found = looks[-1][1]
        taken = Route("base", enough, {"base": float(worth.ess)})
        return finish(alone, alone, stages, {}, found, taken), False

    algorithm, state = building.begin(key_fit, target, start, plan)
    untrained, interrupted = state, False
    results: dict[str, FitResult] = {}
    if plan.distillation:
        rounds: tuple[int, ...] = (warm_start.num_iterations(plan.distillation, start.trained),)
        results["distilled"], interrupted = in_rounds(
            key_fit,
            (algorithm,),
            state,
            rounds,
            name="distilled",
            shown_as=("distil",),
            folder=plan.folder,
            progress_bar=plan.progress_bar,
        )
        state = results["distilled"].state

    calibrated, ran, reason = state, 0, "interrupted"
    if not interrupted:
        brief, calibrating = building.calibrations(algorithm, plan)
        reasons: list[str] = []

        def suffices(state: SamplerState) -> bool:
            of = calibrating.sampler(state)
            why = judging.why_calibration_is_enough(of, key_check, target, plan, cost)
            reasons.extend([why] if why else [])
            return why is not None

        first, rounds = warm_start.calibration_start(calibrating, state, start.trained, plan.rounds)
        with draws_compiled(key_check, calibrating.sampler(first), start, plan, cost):
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
            return judging.worth_of(calibrating.sampler(state), key_check, target)

        if not interrupted and (worth_now := weigh(result.state)) is not None:
            result, interrupted = _mend_tail(
                folded(key_check, 1), calibrating, result, worth_now, weigh, plan
            )
        calibrated, results["calibrated"] = result.state, result
        reason = reasons[-1] if reasons else "all of its iterations were run"

    samplers = {"distilled": algorithm.sampler(state)} if plan.distillation else {}
    samplers["calibrated"] = algorithm.sampler(calibrated)
    drawn: dict[str, Draws] = {} if draws is None else {"base": draws}
    problem: ValueError | None = None
    for name, sampler in samplers.items():
        try:
            drawn[name] = sampler.sample(key_check, target, judging.NUM_CHECK_DRAWS, 1)
            stages[name] = evidence(drawn[name])
        except ValueError as error:
            problem = error
            said = (
                f"The {name} sampler of target {target.name!r} was trained, but its draws cannot "
                f"be weighed: {error}"
            )
            if stages:
                warnings.warn(f"{said} The one before is used instead.", stacklevel=3)
    if not stages:
        raise TrainingDivergedError(
            f"{said} The trained state is in this error's .result.state.",
            list(results.values())[-1],
        ) from problem
    best = judging.best_stage(stages)
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
    histories = {name: result.history for name, result in results.items()}
    return finish(one_step, many_steps, stages, histories, found, taken), interrupted


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
