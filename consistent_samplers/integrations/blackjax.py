"""A trained sampler as a BlackJAX algorithm.

Independence Metropolis-Hastings (Tierney 1994) with the sampler's draws as proposals: accepted with
probability min(1, w' / w), w the importance weight of a draw. The chain's law tends to the target
at the rate 1 - Z / max w (Mengersen & Tweedie 1996), and never to a mode that no proposal reaches.
The other way round, a BlackJAX kernel moves draws in `consistent_samplers.corrections.move`.

With ``method="map"`` this is exact as far as the map is injective: a point that several base draws
map to is visited as many times as often. With ``method="path"`` proposals are ends of stochastic
paths, and chains on the paths are exact whatever the network (Andrieu & Roberts 2009).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from blackjax.base import SamplingAlgorithm

from consistent_samplers.bases.base import one_frame
from consistent_samplers.checks import check_choice
from consistent_samplers.corrections.latent import warn_of_rounding
from consistent_samplers.corrections.metropolis import NUM_STARTS, accept, choose_start
from consistent_samplers.recipe import TrainedSampler
from consistent_samplers.sampler import Sampler
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.types import Array, PRNGKey

ExactMethod: TypeAlias = Literal["map", "path"]

__all__ = [
    "OneStepMHInfo",
    "OneStepMHState",
    "build_kernel",
    "init",
    "init_from_draws",
    "one_step_mh",
]


class OneStepMHState(NamedTuple):
    """State of one chain.

    Attributes:
      position: ``[dim]``, in the target's space.
      logdensity: ``[]``, unnormalised log density there.
      log_weight: ``[]``, log importance weight of the draw that ended there; -inf if it has none.

    Example:
      >>> from consistent_samplers.integrations.blackjax import OneStepMHState
      >>> OneStepMHState._fields
      ('position', 'logdensity', 'log_weight')
    """

    position: Array
    logdensity: Array
    log_weight: Array


class OneStepMHInfo(NamedTuple):
    """What happened in one transition.

    Attributes:
      acceptance_rate: ``[]``, probability with which the proposal was accepted.
      is_accepted: ``[]`` bool.
      proposal: the state that was proposed.

    Example:
      >>> from consistent_samplers.integrations.blackjax import OneStepMHInfo
      >>> OneStepMHInfo._fields
      ('acceptance_rate', 'is_accepted', 'proposal')
    """

    acceptance_rate: Array
    is_accepted: Array
    proposal: OneStepMHState


KernelFn: TypeAlias = Callable[[PRNGKey, OneStepMHState], tuple[OneStepMHState, OneStepMHInfo]]


def init(
    position: Array,
    trained: TrainedSampler,
    rng_key: PRNGKey | None = None,
    num_steps: int = 1,
    *,
    method: ExactMethod = "map",
) -> OneStepMHState:
    """State of a chain that starts at a given point.

    Its weight comes from the sampler run in reverse, so that chains from exact draws stay exact.
    Where the map cannot be inverted it is zero: the chain then leaves with the first proposal.
    ``rng_key`` draws the component of the base and the path, which one step of a map from a
    Gaussian base does not have. The other arguments are those of `one_step_mh`.

    Raises:
      ValueError: a position that is not ``[dim]``, no key where one is needed, or as `one_step_mh`.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.integrations import blackjax
      >>> algorithm = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), guidance=None)
      >>> trained = cs.TrainedSampler.of(algorithm, algorithm.init(jax.random.key(0)))
      >>> bool(jnp.isfinite(blackjax.init(jnp.zeros(2), trained).log_weight))
      True
    """
    sampler, target = _checked_sampler(trained, num_steps, method), trained.target
    position = jnp.asarray(position, float)
    if position.shape != (target.dim,):
        raise ValueError(
            f"position must be one point [{target.dim}] of target {target.name!r}, got shape "
            f"{position.shape}. Take jax.vmap over several chains."
        )
    if rng_key is None:
        if method == "path" or num_steps > 1 or not one_frame(sampler.base):
            raise ValueError(
                "init needs an rng_key here, algorithm.init(position, rng_key): to draw the "
                "component of the base, or the path, that leads to the position."
            )
        rng_key = jax.random.key(0)
    log_weight = sampler.log_weight(rng_key, target, position[None], num_steps, method=method)[0]
    return _state(position, target.log_density(position), log_weight)


def init_from_draws(
    rng_key: PRNGKey, trained: TrainedSampler, num_steps: int = 1, *, method: ExactMethod = "map"
) -> OneStepMHState:
    """State of a chain that starts near the target: at one of 64 draws, chosen by weight.

    Arguments and errors as of `one_step_mh`.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> from consistent_samplers.integrations import blackjax
      >>> algorithm = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), guidance=None)
      >>> trained = cs.TrainedSampler.of(algorithm, algorithm.init(jax.random.key(0)))
      >>> blackjax.init_from_draws(jax.random.key(1), trained).position.shape
      (2,)
    """
    key_draws, key_choice = jax.random.split(rng_key)
    propose = _proposals(trained, num_steps, method)
    states = jax.vmap(propose)(jax.random.split(key_draws, NUM_STARTS))
    return choose_start(key_choice, states, states.log_weight)


def build_kernel(
    trained: TrainedSampler, num_steps: int = 1, *, method: ExactMethod = "map"
) -> KernelFn:
    """The transition ``(rng_key, state) -> (state, info)``; see `one_step_mh`.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.integrations import blackjax
      >>> algorithm = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), guidance=None)
      >>> trained = cs.TrainedSampler.of(algorithm, algorithm.init(jax.random.key(0)))
      >>> state = blackjax.init(jnp.zeros(2), trained)
      >>> state, info = blackjax.build_kernel(trained)(jax.random.key(1), state)
      >>> bool(info.acceptance_rate <= 1.0)
      True
    """
    propose = _proposals(trained, num_steps, method)

    def kernel(rng_key: PRNGKey, state: OneStepMHState) -> tuple[OneStepMHState, OneStepMHInfo]:
        key_propose, key_accept = jax.random.split(rng_key)
        proposal = propose(key_propose)
        probability, accepted = accept(key_accept, proposal.log_weight, state.log_weight)
        new = jax.tree.map(lambda p, s: jnp.where(accepted, p, s), proposal, state)
        return new, OneStepMHInfo(probability, accepted, proposal)

    return kernel


def one_step_mh(
    trained: TrainedSampler, num_steps: int = 1, *, method: ExactMethod = "map"
) -> SamplingAlgorithm:
    """``blackjax.SamplingAlgorithm``: independence Metropolis-Hastings with a sampler's draws.

    ``init(position, rng_key=None)`` starts anywhere (`init`; `init_from_draws` at a draw of the
    sampler), and ``step(rng_key, state)`` is one transition (`build_kernel`). Both are pure: jit,
    vmap over chains, or scan them, or hand them to ``blackjax.util.run_inference_algorithm``.

    Args:
      trained: what ``cs.train_sampler`` or ``cs.load`` returned; of a NumPyro model's
        `OneStepSampler` its ``trained``, whose space is that of the unconstrained sites.
      num_steps: steps of the sampler for each proposal.
      method: ``"map"``, the deterministic map, or ``"path"``, stochastic paths.

    Raises:
      TypeError: ``trained`` is no `TrainedSampler`.
      ValueError: steps or weights that the sampler does not have.

    Example:
      >>> import blackjax, jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.integrations.blackjax import one_step_mh
      >>> algorithm = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), guidance=None)
      >>> state = algorithm.init(jax.random.key(0))  # untrained: proposes draws of the base
      >>> chain = one_step_mh(cs.TrainedSampler.of(algorithm, state))
      >>> run = blackjax.util.run_inference_algorithm
      >>> _, (states, _) = run(jax.random.key(1), chain, 100, initial_position=jnp.ones(2))
      >>> states.position.shape
      (100, 2)
    """

    def init_fn(position: Array, rng_key: PRNGKey | None = None) -> OneStepMHState:
        return init(position, trained, rng_key, num_steps, method=method)

    step = build_kernel(trained, num_steps, method=method)
    warn_of_rounding(trained.base, trained.target)
    return SamplingAlgorithm(init_fn, step)


def _proposals(
    trained: TrainedSampler, num_steps: int, method: ExactMethod
) -> Callable[[PRNGKey], OneStepMHState]:
    sampler = _checked_sampler(trained, num_steps, method)
    log_density = trained.target.log_density

    def propose(rng_key: PRNGKey) -> OneStepMHState:
        drawn = sampler.draw_one(rng_key, log_density, num_steps, method)
        return _state(drawn.position, drawn.log_density, drawn.log_weight)

    return propose


def _state(position: Array, logdensity: Any, log_weight: Any) -> OneStepMHState:
    """A state in one dtype, as ``lax.scan`` wants it; no weight that is unknown."""
    logdensity, log_weight = (jnp.asarray(x, position.dtype) for x in (logdensity, log_weight))
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    return OneStepMHState(position, logdensity, log_weight)


def _checked_sampler(trained: TrainedSampler, num_steps: int, method: ExactMethod) -> Sampler:
    """The sampler of this many steps; raises unless it gives exactly weighted draws."""
    if not isinstance(trained, TrainedSampler):
        raise TypeError(
            "trained must be a TrainedSampler, from cs.train_sampler, cs.load or the trained of a "
            f"OneStepSampler, got {type(trained).__name__}."
        )
    sampler = trained.sampler_for(num_steps, method)
    check_num_steps(num_steps, sampler.max_steps)
    check_choice("method", method, tuple(m for m in sampler.methods if m != "heuristic"))
    return sampler
