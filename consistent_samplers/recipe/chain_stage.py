"""Chains where one step falls short: whether they are worth their time, and what they change."""

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from consistent_samplers import progress
from consistent_samplers.bases.base import one_frame
from consistent_samplers.bases.iterating import pair
from consistent_samplers.corrections.chains import LEAST_SAMPLES, Chains, latent_chains
from consistent_samplers.diagnostics import ExplorationCheck, mass_in_necks
from consistent_samplers.diagnostics.beyond import mass_beyond, share_beyond
from consistent_samplers.estimate import checked_log_weight, evidence
from consistent_samplers.recipe.route import ASKED_FOR, Route
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Array, Draws, PRNGKey

_NUM_CHAINS = 4
# Iterations of warm-up and draws of a chain: where gradients are cheap, and where they are dear.
_MOST, _FEWEST = (300, 1_000), (150, LEAST_SAMPLES)
# Times as many draws as that up to which chains go on that have not mixed.
_FURTHER = 4
# Gradients of an iteration in a space that is nearly Gaussian; operations of all gradients up to
# which chains are long (ten seconds of two cores), move in the map's space, and are run unasked.
_GRADIENTS, _CHEAP, _DEAR, _AFFORDABLE = 15, 1e11, 4e11, 1e13
# Operations of all gradients from which on chains end as they are, and those that dispatching a
# gradient costs.
_ENOUGH, _LEAST_COST = 5e11, 1e5
# One-step draws that chains are held against, and nats above all of the chains' weights.
_NUM_FRESH, _ABOVE = 10_000, 0.5
# Operations of all their densities from which on they take seconds.
_SECONDS_OF_DRAWS = 4e10
# Part of Z that some draws hide and others show, from which on it is no matter of a heavy tail.
_NOTICEABLE = 0.05
# By how much other draws of the same sampler may look worse.
_MORE_K, _LESS = 0.03, 0.95
# Operations of a gradient, relative to those of a draw with its determinant.
_MAP_GRADIENT = 3.0


def where_needed(
    rng_key: PRNGKey,
    trained: TrainedSampler,
    wanted: bool | None = None,
    *,
    draws: Sequence[Draws] = (),
    num_samples: int = 10_000,
    particles: Array | None = None,
    progress_bar: bool = True,
) -> TrainedSampler:
    """A trained sampler, with chains where one step falls short and they can be expected to help.

    Args:
      rng_key: key.
      trained: the sampler.
      wanted: whether chains were asked for; None leaves it to the evidence.
      draws: one-step draws that were found to fall short; fresh ones of two keys are judged if
        there are none.
      num_samples: draws that are wanted.
      particles: see `with_chains`.
      progress_bar: show the chains' progress.
    """
    if wanted is False:
        return trained
    reason, target = ASKED_FOR, trained.target
    try:
        if wanted is None:
            trained = _remembering(trained, draws)
            if _operations(evaluation.cost(target.log_density, target.dim), _FEWEST) > _AFFORDABLE:
                return trained
            if not draws:
                draws = fresh_draws(rng_key, trained)
                if not falls_short(trained, draws):
                    return trained
                trained = _remembering(trained, draws)
            elif trained.exploration is not None and trained.exploration.lacks_modes:
                return trained
            reason = "the weights of one step are not to be used"
        return with_chains(
            rng_key,
            trained,
            num_samples=num_samples,
            draws=draws,
            particles=particles,
            reason=reason,
            progress_bar=progress_bar,
        )
    except KeyboardInterrupt:
        said = "Chains were interrupted: the draws are those of the trained sampler alone."
        warnings.warn(said, RuntimeWarning, stacklevel=3)
    except ValueError as error:  # no draw with a weight
        warnings.warn(f"No chains were run: {error}", RuntimeWarning, stacklevel=3)
    return trained


def fresh_draws_are_dear(target: Target) -> bool:
    """Whether `fresh_draws` take seconds."""
    cost = evaluation.cost(target.log_density, target.dim)
    return 2.0 * _NUM_FRESH * cost > _SECONDS_OF_DRAWS


def fresh_draws(rng_key: PRNGKey, trained: TrainedSampler) -> list[Draws]:
    """One-step draws of two keys."""
    return [trained.sample(key, _NUM_FRESH) for key in pair(rng_key)]


def falls_short(trained: TrainedSampler, draws: Sequence[Draws]) -> bool:
    """Whether one step is not to be used although no modes were missed, which more would not find.

    By the evidence of any of the draws, as others may show it with a little more of the tail.
    """
    if trained.exploration is not None and trained.exploration.lacks_modes:
        return False
    try:
        worths = [evidence(part) for part in draws]
    except ValueError:  # draws that cannot be weighed
        return False

    def darker(worth: Any) -> Any:
        # On the host: every small operation on arrays would be compiled by itself.
        k, ess = np.asarray(worth.pareto_k), np.asarray(worth.ess)
        return dataclasses.replace(worth, pareto_k=k + _MORE_K, ess=_LESS * ess)

    return any(trained.verdict(darker(worth)).level == "not to be used" for worth in worths)


def _remembering(trained: TrainedSampler, draws: Sequence[Draws]) -> TrainedSampler:
    """The sampler with what some of its draws show and others hide: the next may be as lucky."""
    found = trained.exploration
    if found is None or not (hidden := _hidden_from_others(draws)) > _NOTICEABLE:
        return trained
    hidden = max(hidden, float(np.nan_to_num(found.hidden)))
    return dataclasses.replace(trained, exploration=found._replace(hidden=hidden))


def _hidden_from_others(draws: Sequence[Draws]) -> float:
    """Largest part of Z, as some draws have it, where weights exceed all those of others."""
    weights = [np.asarray(checked_log_weight(part), np.float64) for part in draws]
    if len(weights) < 2:
        return 0.0
    highest = [float(weight.max()) for weight in weights]
    parts = [np.exp(weight - max(highest)) for weight in weights]
    beyond = (
        part[weight > least + _ABOVE].sum() / len(part)
        for part, weight in zip(parts, weights, strict=True)
        for least in highest
    )
    return float(max(beyond) / np.mean([part.mean() for part in parts]))


def with_chains(
    rng_key: PRNGKey,
    trained: TrainedSampler,
    *,
    num_samples: int = 4_000,
    draws: Sequence[Draws] = (),
    particles: Array | None = None,
    reason: str = ASKED_FOR,
    progress_bar: bool = True,
) -> TrainedSampler:
    """A trained sampler with chains of NUTS in its latent space (`corrections.latent_chains`).

    Four chains, moved together: 1,000 draws of each after 300 iterations of warm-up, or down to 250
    after 150 where gradients are dear; up to four times as many where they have not mixed by then.
    Where gradients through the map would be dearer still, chains move in the latent space of the
    Gaussian with the moments of its weighted draws. The sampler returned has them as ``chains``,
    says so in its ``route``, and ``chains.exploration`` is what the look for modes means for them.

    Args:
      rng_key: key.
      trained: what `train_sampler` or `load` returned.
      num_samples: draws of all chains; 250 to 1,000 of each are taken, and more if they must.
      draws: one-step draws, whose largest weights the chains are to have met; fresh ones if none.
      particles: ``[n, dim]``, of a tempered SMC, to see whether the chains reach them.
      reason: why, in words, for ``route``.
      progress_bar: show how far they are.

    Raises:
      ValueError: no draw of the sampler has a weight.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(2), jnp.ones(2)), cs.bases.standard_normal(2)
      >>> trained = cs.train_sampler(
      ...     jax.random.key(0), target, base=base, effort="base", progress_bar=False)
      >>> trained = cs.with_chains(jax.random.key(1), trained, num_samples=1, progress_bar=False)
      >>> trained.route.name, trained.chains.position.shape
      ('chains', (4, 250, 2))
    """
    begin = time.perf_counter()
    target, sampler = trained.target, trained.unguided
    density = evaluation.cost(target.log_density, target.dim)
    by_map = density + _MAP_GRADIENT * sampler.map_cost()
    gaussian = _operations(by_map, _FEWEST) > _DEAR or not one_frame(sampler.base)
    cost = density if gaussian else by_map
    warmup, most = _FEWEST if _operations(cost, _MOST) > _CHEAP else _MOST
    num = min(max(-(-num_samples // _NUM_CHAINS), _FEWEST[1]), most)
    hidden = progress.hidden(progress_bar)
    with tqdm(desc="chains", total=warmup + num, unit="it", disable=hidden) as bar:
        chains = latent_chains(
            rng_key,
            target,
            sampler,
            num_chains=_NUM_CHAINS,
            num_warmup=warmup,
            num_samples=num,
            max_samples=_FURTHER * num,
            max_gradients=_ENOUGH / (_NUM_CHAINS * max(cost, _LEAST_COST)),
            gaussian=gaussian,
            progress=bar.update,
        )
    draws = draws or fresh_draws(rng_key, trained)
    unvisited = max(_unvisited(rng_key, chains, trained, part) for part in draws)
    seen = _seen_by(rng_key, chains, trained, particles)
    if seen is not None:
        log_z = chains.log_z
        stderr = math.hypot(log_z.log_z_stderr, float(np.nan_to_num(seen.hidden)))
        chains = chains._replace(log_z=log_z._replace(log_z_stderr=stderr))
    chains = chains._replace(unvisited=unvisited, exploration=seen)
    name, shares = "chains", {} if trained.route is None else trained.route.stages
    return dataclasses.replace(
        trained,
        chains=chains,
        route=Route(name, reason, shares),
        training_seconds=trained.training_seconds + time.perf_counter() - begin,
    )


def _operations(cost: float, iterations: tuple[int, int]) -> float:
    """Operations of all chains, of those of one gradient."""
    return _NUM_CHAINS * sum(iterations) * _GRADIENTS * cost


def _unvisited(rng_key: PRNGKey, chains: Chains, trained: TrainedSampler, draws: Draws) -> float:
    """Part of Z, as one-step draws have it, that lies where weights exceed all of the chains'."""
    weight = np.asarray(checked_log_weight(draws), np.float64)
    there = weight
    if chains.sampler.control is not trained.one_step.control:
        found = chains.sampler.log_weight(rng_key, trained.target, draws.position, 1)
        there = np.asarray(found, np.float64)
    beyond = ~(there <= float(chains.log_weight.max()) + _ABOVE)
    with np.errstate(over="ignore"):
        return float(np.exp(weight[beyond] - chains.log_z.log_z).sum() / len(weight))


def _seen_by(
    rng_key: PRNGKey, chains: Chains, trained: TrainedSampler, particles: Array | None
) -> ExplorationCheck | None:
    """What the look for modes means for draws of the chains."""
    found = trained.exploration
    if found is None or not trained.stages:
        return found
    dim = trained.target.dim
    of_one_step = float(next(reversed(trained.stages.values())).log_z)
    found = found._replace(log_z_excess=found.log_z_excess + of_one_step - chains.log_z.log_z)
    position, log_weight = chains.position.reshape(-1, dim), chains.log_weight.reshape(-1)
    hidden = mass_in_necks(trained.target, position, log_weight, of_target=True)
    found = found._replace(hidden=hidden)
    if found.farther > 0.0:
        farther = mass_beyond(rng_key, trained.target, position, chains.log_z.log_z)
        found = found._replace(farther=farther)
    if particles is None:
        return found
    there = np.asarray(chains.sampler.log_weight(rng_key, trained.target, particles, 1))
    draws = Draws(position, log_weight)
    return found._replace(uncovered=share_beyond(draws, there, of_target=True))
