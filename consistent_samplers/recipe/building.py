"""The algorithms that the recipe trains, and the states that they start from."""

import dataclasses
from typing import cast

from consistent_samplers.algorithms import Algorithm, SamplerState, build, calibration
from consistent_samplers.algorithms.building import choose_optimizer
from consistent_samplers.algorithms.hierarchical import Hierarchical, hierarchical
from consistent_samplers.algorithms.osds import OSDS
from consistent_samplers.bases import Base, DiagonalBase
from consistent_samplers.bases.base import as_pytree
from consistent_samplers.maps import Control, HierarchicalMap, Identity
from consistent_samplers.recipe import warm_start
from consistent_samplers.recipe.calibrating import AnnealedRounds
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.targets import Target
from consistent_samplers.types import PRNGKey

# Draws of an iteration of calibration, and of its first round where that may be enough.
_BATCH, _BRIEF_BATCH = 128, 64


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


def begin(
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


def calibrations(algorithm: Algorithm, plan: Plan) -> tuple[Algorithm, Algorithm]:
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
