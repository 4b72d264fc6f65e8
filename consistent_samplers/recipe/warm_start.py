"""Going on from the sampler of a similar target, such as the posterior of other data."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Base, refit_base
from consistent_samplers.maps import Control, HierarchicalMap, Identity
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Params, PRNGKey

# Share of the iterations, the last ones of their schedule, that a warm start runs; and the share of
# its effective draws below which it is given up.
_SHARE = 1 / 3
_ENOUGH = 0.5


def check_start(start: TrainedSampler, target: Target) -> None:
    """Raises a TypeError or ValueError unless a sampler can be gone on from."""
    if not isinstance(start, TrainedSampler):
        raise TypeError(
            "start must come from cs.train_sampler or cs.load, got "
            f"{type(start).__name__}; an algorithm of your own goes on with cs.fit(..., state=...)."
        )
    if start.target.dim != target.dim:
        raise ValueError(
            f"start has {start.target.dim} dimensions, but target {target.name!r} has "
            f"{target.dim}: train without it."
        )


def network_of(start: TrainedSampler) -> str | None:
    """The network that goes on, as `train_sampler` names it; None of a base alone."""
    control = start.many_steps.control
    if isinstance(control, HierarchicalMap):
        return "hierarchical"
    if isinstance(control, Control):
        return "structured" if control.structured else "general"
    return None


def moved_base(rng_key: PRNGKey, target: Target, start: TrainedSampler) -> Base:
    """The base of a sampler, moved to a similar target."""
    return refit_base(rng_key, target, start.base)


def num_iterations(planned: int, start: TrainedSampler | None) -> int:
    """Iterations of a stage that was planned for so many, from a start or without one."""
    return planned if start is None else max(1, round(_SHARE * planned))


def late(algorithm: Algorithm, params: Params, planned: int) -> SamplerState:
    """A state on trained parameters with a fresh optimiser, its learning rate late in the schedule.

    What has been done counts: nothing is annealed or warmed up again.
    """
    blank = SamplerState(params, params, (), jnp.zeros((), jnp.int32))
    restarted = algorithm.restart(blank)
    begun = planned - max(1, round(_SHARE * planned))

    def shifted(part: Any) -> Any:
        if isinstance(part, optax.ScaleByScheduleState):
            return part._replace(count=jnp.full_like(part.count, begun))
        return part

    opt_state = jax.tree.map(
        shifted,
        restarted.opt_state,
        is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
    )
    return restarted._replace(opt_state=opt_state, iteration=jnp.asarray(begun, jnp.int32))


def calibration_start(
    algorithm: Algorithm,
    state: SamplerState,
    start: TrainedSampler | None,
    rounds: tuple[int, ...],
) -> tuple[SamplerState, tuple[int, ...]]:
    """Where calibration sets out from, and for how many iterations a round."""
    if start is None or isinstance(start.unguided.control, Identity):
        return algorithm.restart(state), rounds
    planned = sum(rounds)
    return late(algorithm, start.unguided.params, planned), (num_iterations(planned, start),)


def where_it_falls_short(trained: TrainedSampler, start: TrainedSampler) -> str | None:
    """What speaks against a warm start, in words; None where it is as good as could be hoped."""
    if trained.exploration is not None and not trained.exploration.passed:
        return f"is not enough ({trained.exploration})"
    reached, before = _one_step_ess(trained), _one_step_ess(start)
    if not reached >= _ENOUGH * before:
        return (
            f"ended with {100 * reached:.3g} % of its draws effective, where the sampler that it "
            f"went on from had {100 * before:.3g} %"
        )
    return None


def _one_step_ess(trained: TrainedSampler) -> float:
    """Share of effective draws of the best stage."""
    if not trained.stages:
        return 0.0
    return float(max(trained.stages.values(), key=lambda stage: float(stage.elbo)).ess)
