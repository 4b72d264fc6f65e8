"""Methods of the table that train nothing, as functions of a key, a target and a base."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import consistent_samplers as cs
from benchmarks.tempering import parallel_tempering
from consistent_samplers import corrections, training_free
from consistent_samplers.bases import GaussianBase
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, PRNGKey

_CHAINS, _WARMUP = 64, 100


class Drawn(NamedTuple):
    """Draws, the density's evaluations that they took, and log Z where the weights do not say."""

    draws: Draws
    num_evaluations: int
    log_z: float | None = None


Draw: TypeAlias = Callable[[PRNGKey, Target, GaussianBase, int], Drawn]


def _tempering(rng_key: PRNGKey, target: Target, base: GaussianBase, num: int) -> Drawn:
    found = parallel_tempering(rng_key, target, base, math.ceil(num / 32))
    position = jnp.asarray(found.position).reshape(-1, target.dim)[:num]
    return Drawn(Draws(position), found.num_evaluations, found.log_z)


def _polar_slice(rng_key: PRNGKey, target: Target, base: GaussianBase, num: int) -> Drawn:
    key_start, key_run = jax.random.split(rng_key)
    each = math.ceil(num / _CHAINS) + _WARMUP
    start = base.sample(key_start, _CHAINS)
    chains = training_free.polar_slice(key_run, target, start, each, base=base)
    kept = chains.position[:, _WARMUP:].reshape(-1, target.dim)[:num]
    return Drawn(Draws(kept), int(chains.num_evaluations.sum()))


def _counted(sampler: Callable[..., training_free.CountedDraws]) -> Draw:
    def draw(rng_key: PRNGKey, target: Target, base: GaussianBase, num: int) -> Drawn:
        return Drawn(*sampler(rng_key, target, num, base=base))

    return draw


def _independence(rng_key: PRNGKey, target: Target, base: GaussianBase, num: int) -> Drawn:
    """Metropolis chains whose proposals are the base's draws."""
    key_draw, key_run = jax.random.split(rng_key)
    draws = cs.Sampler.of_base(base).sample(key_draw, target, num)
    position = corrections.independence_metropolis(key_run, draws).position
    return Drawn(Draws(position.reshape(-1, target.dim)), num)


def _soft_values(rng_key: PRNGKey, target: Target, base: GaussianBase, num: int) -> Drawn:
    """SVDD from the base to the target, whose ratio is the reward; the control is zero."""
    own = Target(lambda x: base.log_prob(x[None])[0], base.dim, "base")
    algorithm = cs.dis(own, base=base, max_steps=16, hidden=(8,))

    def reward(x: Array) -> Array:
        return target.log_density(x) - own.log_density(x)

    state, steps, candidates = algorithm.init(rng_key), 16, 8
    draws = corrections.guided(
        rng_key, algorithm, state, reward, num, steps, num_candidates=candidates
    )
    return Drawn(draws, num * (steps * candidates + 1))


def _split(rng_key: PRNGKey, target: Target, base: GaussianBase, num: int) -> Drawn:
    """Consensus of two shards, each the square root of the density."""
    half = Target(lambda x: 0.5 * target.log_density(x), target.dim, "half")
    each = math.ceil(num / _CHAINS)
    chains = cs.consensus.split_gibbs(
        rng_key, [half, half], each, base=base, num_chains=_CHAINS, num_warmup=_WARMUP
    )
    position = chains.position.reshape(-1, target.dim)[:num]
    # Six gradients a transition.
    return Drawn(Draws(position), _CHAINS * (each + _WARMUP) * 2 * 6)


UNTRAINED: dict[str, Draw] = {
    "tempering": _tempering,
    "polar-slice": _polar_slice,
    "ensemble-score": _counted(training_free.ensemble_score),
    "reverse-diffusion": _counted(training_free.reverse_diffusion),
    "walk-jump": _counted(training_free.walk_jump),
    "independence": _independence,
    "soft-values": _soft_values,
    "split-gibbs": _split,
}
