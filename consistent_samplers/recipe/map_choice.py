"""Which kind of map a target gets: a general one, or one that follows its structure."""

import dataclasses
import functools
import time
import warnings

from consistent_samplers import progress
from consistent_samplers.algorithms.laplace import Laplace, laplace
from consistent_samplers.bases import fit_diagonal
from consistent_samplers.bases.base import one_frame
from consistent_samplers.bases.iterating import split
from consistent_samplers.estimate import evidence
from consistent_samplers.maps import HierarchicalMap, LaplaceMap, laplace_map
from consistent_samplers.recipe import chain_stage, judging, route
from consistent_samplers.recipe.calibrating import AnnealedRounds, in_rounds
from consistent_samplers.recipe.looking import look_for_missed_mass
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.recipe.route import Effort, Route
from consistent_samplers.recipe.stages import train
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.training import TrainingDivergedError
from consistent_samplers.types import Draws, PRNGKey

HIERARCHICAL_ROUNDS = (500, 1_000)
"""Iterations of a hierarchical map's rounds."""

LAPLACE_ITERATIONS = 500
"""Iterations of a map that places members by Newton's steps."""

# Operations of its training, at most (a minute or two of two cores), and those that a derivative of
# the curvature takes, in gradients.
_MOST_OPERATIONS, _THIRD_ORDER = 1e12, 3.0
_INTERRUPTED = "Another map was to be tried: interrupted, the sampler is the one that there was."

# Operations of a general map's short calibration (seconds to a minute of two cores) from which on a
# hierarchical one is trained first where members fan out from few globals, up to which share.
_DEAR_GENERAL, _FEW_GLOBALS = 1e11, 0.5


def of_many_dimensions(
    target: Target,
    given: bool,
    effort: Effort,
    num_iterations: int,
) -> str:
    """The network of a target of many dimensions, unless a base is given: what structure allows."""
    if given or effort == "base" or num_iterations > 0:
        return "structured"
    # Without globals it is a product, whose factors may have several modes: a base sees to these.
    return "hierarchical" if target.structure.has_members else "structured"


def is_dear_fan(target: Target, plan: Plan) -> bool:
    """Whether members fan out from few globals, and a general map is dear."""
    if plan.network != "general" or plan.distillation or plan.effort == "base":
        return False
    cost = route.costs(target.dim, plan.hidden, False, 0.0)
    return cost.calibration(route.SHORT_ITERATIONS) >= _DEAR_GENERAL and _is_fan(target)


def _is_fan(target: Target) -> bool:
    """Whether members hang on globals alone, and on few.

    Members that depend on other members, as along time, are a general map's where that can be had.
    """
    structure = target.structure
    few = len(structure.globals) <= _FEW_GLOBALS * target.dim
    return structure.has_members and structure.depth == 1 and few


def or_hierarchical(
    rng_key: PRNGKey, trained: TrainedSampler, cold: Start, plan: Plan, begin: float
) -> tuple[TrainedSampler, bool, list[Draws] | None]:
    """The better of what was trained and of a hierarchical map, where one is worth trying.

    That is where the former falls short, or is a fan's on a base of several components, as these
    are taken for the shape of one mode too. The latter is taken where it alone does not fall short,
    else the one of the better ELBO of draws that neither was trained on. Second, whether Ctrl-C
    came; third, the draws by which the sampler falls short, an empty list if it does not, None if
    nobody looked.
    """
    target = trained.target
    try:
        # A base that two looks found enough is not looked at again where a density is dear.
        by_base = trained.route is not None and trained.route.name == "base"
        if by_base and chain_stage.fresh_draws_are_dear(target):
            return trained, False, []
        draws = chain_stage.fresh_draws(rng_key, trained)
        short = chain_stage.falls_short(trained, draws)
        kept = draws if short else []
        if trained.exploration is not None and trained.exploration.lacks_modes:
            return trained, False, None
        several = not (by_base or one_frame(trained.one_step.base))
        if not (target.structure.has_members if short else several and _is_fan(target)):
            return trained, False, kept
        with progress.stage("fit a base", progress_bar=plan.progress_bar):
            fitted = fit_diagonal(rng_key, target, init_position=draws[0].position[:64])
        start = cold._replace(base=fitted, modes=None)
        folder = None if plan.folder is None else plan.folder / "hierarchical"
        # Once weights fell short, training on is quicker than the chains that would follow.
        plan = plan._replace(
            network="hierarchical", rounds=HIERARCHICAL_ROUNDS, folder=folder, effort="full"
        )
        other, interrupted = train(rng_key, target, start, plan, begin)
        if other.exploration is not None and other.exploration.lacks_modes:
            return trained, interrupted, kept
        found = chain_stage.fresh_draws(rng_key, other)
        other_short = chain_stage.falls_short(other, found)
    except KeyboardInterrupt:
        warnings.warn(_INTERRUPTED, RuntimeWarning, stacklevel=3)
        return trained, True, None
    except (ValueError, TrainingDivergedError):  # nothing that could be better
        return trained, False, None
    better = short
    if short == other_short:
        worths = [float(next(reversed(of.stages.values())).elbo) for of in (trained, other)]
        better = worths[1] > worths[0]
    if better:
        return other, interrupted, found if other_short else []
    return trained, interrupted, kept


def shown_short(rng_key: PRNGKey, trained: TrainedSampler) -> list[Draws] | None:
    """Fresh draws by which a hierarchical map falls short where another may follow.

    An empty list if it does not; None of another map, and where members cannot be placed.
    """
    if not _may_follow(trained):
        return None
    try:
        draws = chain_stage.fresh_draws(rng_key, trained)
    except KeyboardInterrupt:
        warnings.warn(_INTERRUPTED, RuntimeWarning, stacklevel=3)
        return []  # nothing more is wanted
    except ValueError:
        return None
    return draws if chain_stage.falls_short(trained, draws) else []


def _may_follow(trained: TrainedSampler) -> bool:
    found, target = trained.exploration, trained.target
    if not isinstance(trained.one_step.control, HierarchicalMap) or not target.structure.blocks:
        return False
    lacking = found is not None and found.lacks_modes
    return not lacking and _laplace_operations(target) <= _MOST_OPERATIONS


def or_laplace(
    rng_key: PRNGKey, trained: TrainedSampler, draws: list[Draws] | None, start: Start, plan: Plan
) -> tuple[TrainedSampler, bool, list[Draws] | None]:
    """What was trained, or where that falls short a map that places members by Newton's steps.

    ``draws`` are those of `shown_short`. The other map is taken where it does not fall short
    itself. The rest as of `or_hierarchical`.
    """
    target, control, begin = trained.target, trained.one_step.control, time.perf_counter()
    if not draws or not _may_follow(trained):
        return trained, False, draws
    assert isinstance(control, HierarchicalMap)
    key_fresh, key_fit, key_check, key_look = split(rng_key)[:4]
    try:
        fitted = control.started()
        with progress.stage("place members", progress_bar=plan.progress_bar):
            made = laplace_map(target, fitted)
        rate = AnnealedRounds(1e-2, (LAPLACE_ITERATIONS,))
        algorithm = laplace(target, made, optimizer=plan.optimizer, learning_rate=rate)
        result, interrupted = in_rounds(
            key_fit,
            (algorithm,),
            algorithm.init(key_fit),
            (LAPLACE_ITERATIONS,),
            name="laplace",
            shown_as=("laplace",),
            folder=plan.folder,
            progress_bar=plan.progress_bar,
        )
        if interrupted:
            return trained, True, None
        sampler = algorithm.sampler(result.state)
        drawn = sampler.sample(key_check, target, judging.NUM_CHECK_DRAWS, 1)
        worth = evidence(drawn)
        look = functools.partial(look_for_missed_mass, key_look, target, start, plan.progress_bar)
        seen = look(sampler, drawn, worth, None)
        stages = trained.stages | {"laplace": worth}
        shares = {name: float(stage.ess) for name, stage in stages.items()}
        other = dataclasses.replace(
            trained,
            one_step=sampler,
            many_steps=trained.one_step,
            stages=stages,
            histories=trained.histories | {"laplace": result.history},
            training_seconds=trained.training_seconds + time.perf_counter() - begin,
            exploration=seen,
            route=Route("full", "members are placed by Newton's steps on the density", shares),
        )
        if seen is not None and seen.lacks_modes:
            return trained, False, draws
        fresh = chain_stage.fresh_draws(key_fresh, other)
        short = chain_stage.falls_short(other, fresh)
    except KeyboardInterrupt:
        warnings.warn(_INTERRUPTED, RuntimeWarning, stacklevel=3)
        return trained, True, None
    except (ValueError, TrainingDivergedError):  # nothing that could be better
        return trained, False, draws
    return (trained, False, draws) if short else (other, False, [])


def _laplace_operations(target: Target) -> float:
    """Operations of the training of a `LaplaceMap`."""
    size = max(index.shape[1] for index in target.structure.blocks)
    points = LAPLACE_ITERATIONS * Laplace.batch_size
    gradients = points * (LaplaceMap.num_newton + 1) * (1 + size) * _THIRD_ORDER
    return gradients * evaluation.cost(target.log_density, target.dim)
