"""Log Z of a trained sampler from both sides, and what that is worth."""

import math
from typing import TYPE_CHECKING

import numpy as np

from consistent_samplers.bases.iterating import folded
from consistent_samplers.bracket import Bracket, bracket, weighted_bounds
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.corrections.chains import Chains
from consistent_samplers.corrections.gaussian_bridge import with_gaussian
from consistent_samplers.diagnostics import LEVELS, informed
from consistent_samplers.estimate import checked_log_weight, evidence
from consistent_samplers.types import Bound, PRNGKey

if TYPE_CHECKING:
    from consistent_samplers.recipe.trained import TrainedSampler

_MAP_REPLACED = (
    "Both bounds are of the sampler's base or a Gaussian of its draws, in place of its map, which "
    "has several components, folds, is not inverted or is dear."
)
_MAP_WEIGHED = (
    "Both bounds are by the weights of the map's own draws: the chains moved in the sampler's base "
    "or a Gaussian of its draws, which are farther from the target."
)
_MAP_BEFORE = (
    "Both bounds are of the map before Newton's steps, in whose latent space the chains moved."
)
_BRIDGE_REPLACED = (
    "log Z is bridged to a Gaussian fitted to the first half of the chains, in place of the map, "
    "which hardly overlaps them."
)
_WITH_GAUSSIAN = (
    "Both bounds are of draws of which half are from a Gaussian fitted to the first half of the "
    "chains in their latent space: the map alone hardly comes where some of the chains' draws are."
)
_BRIDGED_TO_BOTH = (
    "log Z is bridged from the second half of the chains to draws of which half are from a "
    "Gaussian fitted to their first half."
)
_WIDE = 0.05
"""Nats between the bounds from which on other draws are tried."""
_NO_MAP = "there are no chains, which move in the latent space of a map, and here are paths alone."


def bracketed(rng_key: PRNGKey, trained: "TrainedSampler", num_samples: int) -> Bracket:
    """See `TrainedSampler.bracket`."""
    from consistent_samplers.recipe.chain_stage import with_chains

    check_key(rng_key)
    check_integer("num_samples", num_samples, 4)
    if "map" not in trained.one_step.methods:
        return _of_weights(rng_key, trained, num_samples, _NO_MAP)
    chained = trained
    if trained.chains is None:
        chained = with_chains(folded(rng_key, 1), trained, progress_bar=False)
    chains = chained.chains
    assert chains is not None
    worth = chained.chains_verdict(folded(rng_key, 2))
    if worth.level == LEVELS[-1]:
        said = worth.words.partition("\n")[2]
        return _of_weights(rng_key, trained, num_samples, f"the chains are not to be used.\n{said}")
    draws = chains.sampler.sample(folded(rng_key, 0), trained.target, num_samples)
    found = bracket(np.asarray(draws.log_weight), np.asarray(chains.log_weight))
    notes = []
    if chains.bridge_replaced:
        # Decided before, without the draws above: their own bridge is that of the same map.
        found = found._replace(log_z=chains.log_z.log_z, stderr=chains.log_z.log_z_stderr)
        notes.append(_BRIDGE_REPLACED)
    found, of_bounds = _with_closest_bounds(rng_key, trained, chains, found, num_samples)
    # Half a step between numbers of its size, as `estimate.evidence` takes it.
    step = float(np.finfo(np.asarray(draws.log_weight).dtype).eps) * abs(found.log_z)
    # What neither comes to, neither the bridge nor the bound above has.
    seen = chains.exploration
    hidden = 0.0 if seen is None else float(np.nan_to_num(seen.hidden))
    if not chains.bridge_replaced:  # else its error has it
        found = found._replace(stderr=math.hypot(found.stderr, hidden))
    assert found.upper_stderr is not None
    return found._replace(
        note=_note(draws.bound, of_bounds + notes),
        level=worth.level,
        stderr=math.hypot(found.stderr, 0.5 * step),
        upper_stderr=math.hypot(found.upper_stderr, hidden),
    )


def _with_closest_bounds(
    rng_key: PRNGKey, trained: "TrainedSampler", chains: Chains, found: Bracket, num_samples: int
) -> tuple[Bracket, list[str]]:
    """The bracket of chains with the closest bounds that there are, and what they are of."""
    of_bounds, of_bridge = [_MAP_REPLACED] * chains.map_replaced, list[str]()
    before = trained.unguided is not trained.one_step and not chains.map_replaced
    of_bounds += [_MAP_BEFORE] * before
    assert found.upper is not None
    if chains.latent is not None and found.upper - found.lower > _WIDE:
        latent, weight = chains.latent, np.asarray(chains.log_weight)
        space, effective = chains.sampler, chains.mixing.bulk
        key, target = folded(rng_key, 3), trained.target
        weights = with_gaussian(key, space, target, latent, weight, effective, num_samples, 0.5)
        beside = bracket(*weights)
        found, closer = _narrower(found, beside)
        of_bounds += [_WITH_GAUSSIAN] * closer
        if closer and not chains.bridge_replaced:
            found = found._replace(
                log_z=beside.log_z,
                stderr=beside.stderr,
                num_target_draws=beside.num_target_draws,
            )
            of_bridge.append(_BRIDGED_TO_BOTH)
    if chains.map_replaced or before:
        of_map = _of_weights(rng_key, trained, num_samples, "")
        # What the map leaves out is missing from the bound by its weights: the bridge knows.
        found, closer = _narrower(found, of_map, missing=max(0.0, found.log_z - of_map.log_z))
        of_bounds = [_MAP_WEIGHED] if closer else of_bounds
    return found, of_bounds + of_bridge


def _narrower(found: Bracket, other: Bracket, missing: float = 0.0) -> tuple[Bracket, bool]:
    """A bracket with another's bounds if these are closer, and whether they are."""
    assert found.upper is not None
    if other.upper is None or other.upper - other.lower >= found.upper - found.lower:
        return found, False
    assert other.upper_stderr is not None
    closer = found._replace(
        lower=other.lower,
        lower_stderr=other.lower_stderr,
        upper=other.upper,
        upper_stderr=math.hypot(other.upper_stderr, missing),
    )
    return closer, True


def _of_weights(
    rng_key: PRNGKey, trained: "TrainedSampler", num_samples: int, without: str
) -> Bracket:
    """Without chains that can be used: the weights stand for them, if those can be used."""
    num_steps = trained.default_steps
    draws = trained.sample(folded(rng_key, 0), num_samples, num_steps)
    own = informed(evidence(draws), trained.exploration)
    judged = trained.verdict(own)
    log_z, stderr = float(own.log_z), float(own.log_z_stderr)
    lower, lower_stderr, upper, upper_stderr = weighted_bounds(checked_log_weight(draws))
    found = Bracket(lower, lower_stderr, None, None, log_z, stderr, "importance", 0)
    steps = "one step" if num_steps == 1 else f"{num_steps} steps"
    if judged.level == LEVELS[-1]:
        said = judged.words.partition("\nTo improve")[0]
        notes = [f"No bound above: {without}", f"Nor are the weights of {steps}.\n{said}"]
    else:
        notes = [f"The bound above is one by the weights of {steps}: {without}"]
        # What the weights' tail may hide, log Z has from the same draws.
        found = found._replace(upper=upper, upper_stderr=max(upper_stderr, stderr))
    return found._replace(note=_note(own.bound, notes), level=judged.level)


def _note(bound: Bound | None, lines: list[str]) -> str:
    heuristic = ["The lower one is a heuristic, no bound."] * (bound == "heuristic")
    return "\n".join([*lines, *heuristic])
