"""Independence Metropolis-Hastings: chains whose proposals know nothing of where they are.

The acceptance rule is here once, for chains over given draws and for kernels that draw afresh. The
chains have no bias in the limit of many steps, and find no mode that no proposal reaches.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from consistent_samplers.estimate import checked_log_weight
from consistent_samplers.types import Array, Draws, PRNGKey

_Tree = TypeVar("_Tree")

# A chain starts at one of so many draws, chosen by weight: near equilibrium without a warm-up.
NUM_STARTS = 64


def log_acceptance(proposed: Array, current: Array) -> Array:
    """Log min(1, w' / w), the log probability of a move between states of two log weights."""
    # From weight zero everything is accepted, such a state included: a chain may start anywhere.
    return jnp.where(jnp.isneginf(current), 0.0, jnp.minimum(proposed - current, 0.0))


def accept(rng_key: PRNGKey, proposed: Array, current: Array) -> tuple[Array, Array]:
    """The probability that a proposal of one log weight is accepted, and whether it is."""
    probability = jnp.exp(log_acceptance(proposed, current))
    return probability, jax.random.uniform(rng_key, (), probability.dtype) < probability


def choose_start(rng_key: PRNGKey, candidates: _Tree, log_weight: Array) -> _Tree:
    """One of several candidate states, a tree of arrays ``[n, ...]``, drawn by weight (no NaN)."""
    # Where all weigh nothing, any will do.
    chosen = jax.random.categorical(rng_key, jnp.maximum(log_weight, -1e30))
    return jax.tree.map(lambda leaf: leaf[chosen], candidates)


class MetropolisResult(NamedTuple):
    """Chains of `independence_metropolis`.

    Attributes:
      position: ``[num_chains, num_steps, dim]``, states after each step.
      acceptance: ``[num_chains]``, share of proposals that were accepted.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((40, 1)), jnp.zeros(40), bound="lower")
      >>> cs.corrections.independence_metropolis(jax.random.key(0), draws).acceptance.tolist()
      [1.0, 1.0, 1.0, 1.0]
    """

    position: Array
    acceptance: Array


def independence_metropolis(
    rng_key: PRNGKey, draws: Draws, *, num_chains: int = 4, initial: Draws | None = None
) -> MetropolisResult:
    """Independence Metropolis-Hastings with the draws as proposals (Tierney 1994).

    A chain accepts its next proposal with probability min(1, w' / w). Its law tends to the target
    whatever the sampler's quality, at the rate 1 - Z / max w (Mengersen & Tweedie 1996): quickly
    where no weight is far above the mean, and never out of a mode that no draw reaches.

    Args:
      rng_key: PRNG key.
      draws: independent weighted draws, ``position [n, dim]``; n / num_chains of them are
        proposed to each chain, the remainder left out.
      num_chains: number of chains.
      initial: where the chains start, ``position [num_chains, dim]`` with weights; at a draw of
        their own if None. No warm-up is removed.

    Raises:
      ValueError: fewer than two draws a chain, an ``initial`` of another size, or weights that
        cannot be used (see ``estimate.checked_log_weight``).

    Example:
      >>> import jax, consistent_samplers as cs
      >>> x = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> draws = cs.Draws(x, x[:, 0] - 0.5, bound="lower")  # of N(0, 1), weighted towards N(1, 1)
      >>> chains = cs.corrections.independence_metropolis(jax.random.key(1), draws, num_chains=4)
      >>> chains.position.shape, bool(abs(chains.position.mean() - 1.0) < 0.2)
      ((4, 500, 1), True)
    """
    log_weight = checked_log_weight(draws)
    num_steps = log_weight.shape[0] // max(num_chains, 1)
    if num_chains < 1 or num_steps < 2:
        raise ValueError(
            f"{log_weight.shape[0]} draws do not make {num_chains} chains of at least two. Draw "
            "more samples or ask for fewer chains."
        )
    num = num_chains * num_steps
    proposals = draws.position[:num].reshape(num_chains, num_steps, -1)
    log_weight = log_weight[:num].reshape(num_chains, num_steps)
    if initial is None:
        start = proposals[:, 0], log_weight[:, 0]
    else:
        start = initial.position, checked_log_weight(initial)
        if start[0].shape != proposals[:, 0].shape:
            raise ValueError(
                f"initial must hold one state a chain, {proposals[:, 0].shape}, got "
                f"{start[0].shape}."
            )
    position, accepted = _independence_chains(rng_key, start, proposals, log_weight)
    return MetropolisResult(position, accepted.mean(axis=1))


@jax.jit
def _independence_chains(
    rng_key: PRNGKey, start: tuple[Array, Array], proposals: Array, log_weight: Array
) -> tuple[Array, Array]:
    """States ``[num_chains, num_steps, dim]`` and whether each proposal was accepted."""
    log_uniform = jnp.log1p(-jax.random.uniform(rng_key, log_weight.shape, log_weight.dtype))

    def step(
        state: tuple[Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        position, current = state
        proposed, weight, threshold = inputs
        accept = threshold <= log_acceptance(weight, current)
        position = jnp.where(accept, proposed, position)
        return (position, jnp.where(accept, weight, current)), (position, accept)

    chains = jax.vmap(lambda start, inputs: jax.lax.scan(step, start, inputs)[1])
    return chains(start, (proposals, log_weight, log_uniform))
