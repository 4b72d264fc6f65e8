"""Weighted particles that are resampled between steps: what sequential Monte Carlo shares."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from consistent_samplers.algorithms import Algorithm
from consistent_samplers.corrections.reweighting import systematic_indices
from consistent_samplers.estimate import effective_sample_size
from consistent_samplers.maps import AnnealedControl, StochasticFlow
from consistent_samplers.schedules import check_num_steps, time_grid
from consistent_samplers.types import Array, ArrayTree, PRNGKey

_Particle = TypeVar("_Particle", bound=ArrayTree)
Advance: TypeAlias = Callable[[PRNGKey, _Particle, Array, Array], tuple[_Particle, Array, Array]]

# Nats below the mean weight that a particle counts as at least where it is chosen or dropped. A
# density that ends somewhere says of a path beyond its edge that it is worth nothing, though it may
# come back: if all of those were dropped, their mass would be missing from any number of draws that
# one makes. At most e^-2 of the particles are spent on it.
_MOST_BEHIND = 2.0


def check_paths(algorithm: Algorithm, num_steps: int, *, noised: bool = False) -> None:
    """Raises a ValueError unless a sampler has paths of ``num_steps`` Gaussian steps.

    For ``noised`` they must reverse the noising process, of which its control predicts the end.
    """
    check_num_steps(num_steps, algorithm.max_steps)
    if "path" not in algorithm.methods:
        raise ValueError(
            f"{algorithm.name!r} has no stochastic paths to resample: its methods are "
            f"{algorithm.methods}. Take an iterative sampler, cs.osds or cs.scds."
        )
    if isinstance(algorithm.control, StochasticFlow):
        raise ValueError(
            f"Layers of {algorithm.name!r} are no Gaussian steps that paths could be resampled "
            "between. Take the weighted draws of algorithm.sample, which "
            "cs.corrections.resample makes equal, or train cs.dis, cs.osds or cs.scds."
        )
    if noised and isinstance(algorithm.control, AnnealedControl):
        raise ValueError(
            f"{algorithm.name!r} follows annealed Langevin dynamics in place of a noising process: "
            "its control predicts no end of a path. Train cs.dis, cs.osds or cs.scds."
        )


def resampled_steps(
    rng_key: PRNGKey,
    particles: _Particle,
    advance: Advance[_Particle],
    num_steps: int,
    resample_below: Array | float,
) -> tuple[_Particle, Array, Array, Array]:
    """Particles after ``num_steps`` equal steps d of [0, 1], resampled systematically.

    A particle is chosen by its path's weight and its outlook, what the rest of the path is thought
    to be worth; copies keep the ratio of their weight to what they were chosen by. So outlooks
    before the end, and holding them up, leave E[mean weight] as it is. Where the share of effective
    particles falls below ``resample_below`` after any step but the last, those of little worth are
    dropped for copies of others (the auxiliary particle filter; Pitt & Shephard, 1999).

    Args:
      rng_key: PRNG key.
      particles: pytree of arrays ``[n, ...]``, of equal weight.
      advance: ``(rng_key, particle, t [], d []) -> (particle, log weight gained [], outlook [])``,
        logarithms; NaN counts as -inf.
      num_steps: number of steps.
      resample_below: never if it is 0.

    Returns:
      Particles, their log weights ``[n]`` with the last outlook, the number ``[n]`` of the particle
      at the start that each descends from, and the share of effective ones after each step, before
      its resampling: ``[num_steps]``.
    """
    num, d = jax.tree.leaves(particles)[0].shape[0], jnp.asarray(1.0 / num_steps)

    def step(
        carry: tuple[_Particle, Array, Array, Array, Array], inputs: tuple[Array, PRNGKey]
    ) -> tuple[tuple[_Particle, Array, Array, Array, Array], Array]:
        particles, origin, log_weight, least, _ = carry
        t, key = inputs
        key_move, key_choose = jax.random.split(key)
        keys = jax.random.split(key_move, num)
        particles, gained, outlook = jax.vmap(advance, (0, 0, None, None))(keys, particles, t, d)
        log_weight = log_weight + jnp.where(jnp.isnan(gained), -jnp.inf, gained)
        outlook = jnp.where(jnp.isnan(outlook), -jnp.inf, outlook)
        last = t + d > 1.0 - 0.5 * d
        worth = log_weight + jnp.where(last, outlook, jnp.maximum(outlook, least))
        effective = effective_sample_size(worth)
        mean = logsumexp(worth) - jnp.log(num)
        held = jnp.maximum(worth, jnp.where(jnp.isneginf(mean), 0.0, mean) - _MOST_BEHIND)
        # The last step's weights are the result. NaN, where nothing is worth anything, is due too.
        due = ~(effective >= resample_below) & ~last
        index = jnp.where(due, systematic_indices(key_choose, held, num), jnp.arange(num))
        even = logsumexp(held) - jnp.log(num)
        # What was held up once is dropped no further for the same outlook.
        least = jnp.where(outlook < least, least, -jnp.inf)
        least = jnp.where(due & (held > worth) & (log_weight > -jnp.inf), held - log_weight, least)
        log_weight = jnp.where(due, log_weight - held + even, log_weight)
        particles, origin, log_weight, least = jax.tree.map(
            lambda leaf: leaf[index], (particles, origin, log_weight, least)
        )
        return (particles, origin, log_weight, least, worth), effective

    inputs = (time_grid(num_steps), jax.random.split(rng_key, num_steps))
    nothing = jnp.zeros(num)
    start = (particles, jnp.arange(num), nothing, nothing - jnp.inf, nothing)
    (particles, origin, *_, worth), effective = jax.lax.scan(step, start, inputs)
    return particles, worth, origin, effective


def genealogical_stderr(log_weight: Array, origin: Array) -> Array:
    """Standard error of the log of the mean weight of dependent copies, in nats.

    With S_i the share of the weights that descends from particle i of n at the start, the relative
    variance is Σ_i (S_i - 1/n)² (Chan & Lai, "A general theory of particle filters in hidden
    Markov models and some applications", 2013), times n / (n - 1) for the mean that was estimated.
    Without resampling it is that of n weights.

    Args:
      log_weight: log weights ``[n]``, of two or more.
      origin: ``[n]``, each particle's number at the start.

    Returns:
      ``[]``; NaN where no weight is positive.
    """
    num = log_weight.shape[0]
    shares = jnp.zeros(num).at[origin].add(jax.nn.softmax(log_weight))
    return jnp.sqrt(num / (num - 1) * jnp.sum((shares - 1.0 / num) ** 2))
