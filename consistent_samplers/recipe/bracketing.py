"""Log Z of a trained sampler from both sides, and what that is worth."""

import math
from typing import TYPE_CHECKING

import numpy as np

from consistent_samplers.bases.iterating import folded
from consistent_samplers.bracket import Bracket, bracket, weighted_bounds
from consistent_samplers.checks import check_integer, check_key
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
_BRIDGE_REPLACED = (
    "log Z is bridged to a Gaussian fitted to the first half of the chains, in place of the map, "
    "which hardly overlaps them."
)
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
    if chains.map_replaced:
        found, note = _narrower(found, _of_weights(rng_key, trained, num_samples, ""))
        notes.insert(0, note)
    # Half a step between numbers of its size, as `estimate.evidence` takes it.
    step = float(np.finfo(np.asarray(draws.log_weight).dtype).eps) * abs(found.log_z)
    # What neither comes to, neither the bridge nor the bound above has.
    seen = chains.exploration
    hidden = 0.0 if seen is None else float(np.nan_to_num(seen.hidden))
    if not chains.bridge_replaced:  # else its error has it
        found = found._replace(stderr=math.hypot(found.stderr, hidden))
    assert found.upper_stderr is not None
    return found._replace(
        note=_note(draws.bound, notes),
        level=worth.level,
        stderr=math.hypot(found.stderr, 0.5 * step),
        upper_stderr=math.hypot(found.upper_stderr, hidden),
    )


def _narrower(of_chains: Bracket, of_map: Bracket) -> tuple[Bracket, str]:
    """The bracket of a map's replacement, with the bounds of the map's weights if these are closer.

    What the map leaves out is missing from the bound by its weights: the bridge says how much.
    """
    assert of_chains.upper is not None
    if of_map.upper is None or of_map.upper - of_map.lower >= of_chains.upper - of_chains.lower:
        return of_chains, _MAP_REPLACED
    assert of_map.upper_stderr is not None
    missing = max(0.0, of_chains.log_z - of_map.log_z)
    closer = of_chains._replace(
        lower=of_map.lower,
        lower_stderr=of_map.lower_stderr,
        upper=of_map.upper,
        upper_stderr=math.hypot(of_map.upper_stderr, missing),
    )
    return closer, _MAP_WEIGHED


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
