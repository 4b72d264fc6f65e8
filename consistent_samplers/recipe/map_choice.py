"""Which kind of map a target gets: a general one, or one that follows its structure."""

import warnings

from consistent_samplers import progress
from consistent_samplers.bases import fit_diagonal
from consistent_samplers.bases.base import one_frame
from consistent_samplers.recipe import chain_stage, route
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.recipe.route import Effort
from consistent_samplers.recipe.stages import train
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.targets import Target
from consistent_samplers.training import TrainingDivergedError
from consistent_samplers.types import Draws, PRNGKey

HIERARCHICAL_ROUNDS = (500, 1_000)
"""Iterations of a hierarchical map's rounds."""

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
        said = "Another map was to be tried: interrupted, the sampler is the one that there was."
        warnings.warn(said, RuntimeWarning, stacklevel=3)
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
