"""Whether a stage of the recipe is enough, and which of them is the best."""

import math
import warnings
from collections.abc import Callable

from consistent_samplers.bases.iterating import folded
from consistent_samplers.diagnostics import ExplorationCheck
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.recipe import route
from consistent_samplers.recipe.plan import Plan
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Draws, PRNGKey

NUM_CHECK_DRAWS = 4_096
"""Draws on which the stages of the recipe are compared with each other."""

# What a second look's key is folded with: a stage ends the training where two looks say so.
_AGAIN = 2
# A third look, at many draws, where a density is cheap: the number that its key is folded with, and
# most draws and operations.
_MANY, _MANY_DRAWS, _MANY_OPERATIONS = 3, 65_536, 2e9
# Share of effective draws from which on a full calibration is not gone on with.
_EFFECTIVE_ENOUGH = 0.9
# Share of a base's draws outside of the support from which on it is not calibrated.
_MAX_BEYOND = 0.02
# Nats below which two stages are as good as each other: rounding, where the base is exact.
_SAME_ELBO = 1e-3


def why_base_is_enough(
    sampler: Sampler,
    draws: Draws,
    worth: Evidence,
    *,
    rng_key: PRNGKey,
    target: Target,
    plan: Plan,
    cost: route.Costs,
    look: Callable[[Sampler, Draws, Evidence], ExplorationCheck | None],
) -> str | None:
    """Why the base alone will do, in words; None where it will not.

    Draws of a second key must say so too, many draws must bear it out, and the ``look`` for missed
    modes must find none.
    """
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
    again = worth_of(sampler, folded(rng_key, _AGAIN), target)
    if again is None or route.base_is_enough(again, None, plan.num_samples, cost) is None:
        return None
    # What is rare and weighs much shows among many only.
    num = int(min(_MANY_DRAWS, _MANY_OPERATIONS / max(cost.density, 1.0)))
    if num > 2 * NUM_CHECK_DRAWS:
        many = worth_of(sampler, folded(rng_key, _MANY), target, num)
        if many is None or not route.many_bear_out(many):
            return None
    found = look(sampler, draws, worth)
    return enough if found is None or found.passed else None


def why_calibration_is_enough(
    sampler: Sampler, rng_key: PRNGKey, target: Target, plan: Plan, cost: route.Costs
) -> str | None:
    """Why calibration may end, in words: where draws of two keys say so; else None."""

    def why(key: PRNGKey) -> str | None:
        worth = worth_of(sampler, key, target)
        if worth is None:  # its draws cannot be weighed
            return None
        if float(worth.ess) >= _EFFECTIVE_ENOUGH:
            return "nine tenths of its draws are effective"
        if plan.effort != "auto":
            return None
        return route.calibration_is_enough(worth, plan.num_samples, cost)

    first = why(rng_key)
    return first if first is not None and why(folded(rng_key, _AGAIN)) is not None else None


def worth_of(
    sampler: Sampler, rng_key: PRNGKey, target: Target, num_samples: int = NUM_CHECK_DRAWS
) -> Evidence | None:
    """Evidence of one-step draws; None where they cannot be weighed."""
    try:
        return evidence(sampler.sample(rng_key, target, num_samples, 1))
    except ValueError:
        return None


def best_stage(stages: dict[str, Evidence]) -> str:
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
