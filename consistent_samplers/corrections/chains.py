"""Chains of NUTS in the latent space of a sampler's map, where one step falls short.

There the target is p0(z) w(z), close to a standard normal as far as the map is good, whatever the
geometry of the target itself (Hoffman et al., 2019, NeuTra).
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from consistent_samplers.bases import Base
from consistent_samplers.bases.base import one_frame
from consistent_samplers.bases.iterating import folded
from consistent_samplers.bridge import Bridge, bridge
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.corrections.gaussian_bridge import bridge_to_gaussian, smaller_error
from consistent_samplers.corrections.latent import weigh_latent
from consistent_samplers.corrections.latent_space import NUM_DRAWS, latent_space
from consistent_samplers.corrections.metropolis import accept
from consistent_samplers.diagnostics import (
    ENOUGH_DRAWS,
    MAX_DIVERGENT,
    MIXED_R_HAT,
    ExplorationCheck,
    Mixing,
    mixing,
)
from consistent_samplers.estimate import checked_log_weight
from consistent_samplers.maps import Identity
from consistent_samplers.sampler import Sampler
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, PRNGKey

LEAST_SAMPLES = 250
"""Draws of each chain at least, however many gradients they take."""

# Iterations of a dispatch: between two of them a chain can be shown, and stopped.
_SEGMENT = 50
_MAX_TREE_DEPTH, _ACCEPTANCE = 8, 0.9
# By which steps get shorter where transitions diverged, twice where many did.
_SHORTER, _MANY = 0.25, 0.1
# Draws of a base of several components that are proposed after each move: a gradient each, where a
# move takes fifteen, and neighbours of a chain are as good as independent.
_JUMPS = 4
# Standard error of log Z, in nats, from which on another sampler than the map is asked for it.
_CLOSE = 0.05


class Chains(NamedTuple):
    """Draws of chains, and how well they mixed.

    Attributes:
      position: ``[num_chains, num_samples, dim]``.
      log_weight: ``[num_chains, num_samples]``, of ``sampler``.
      diverging: ``[num_chains, num_samples]`` bool, transitions that did, or that ended where the
        map folds.
      mixing: r-hat and effective draws.
      log_z: between their draws and the map's, or where these hardly overlap those of a Gaussian in
        its latent space, by bridge sampling.
      sampler: the map that they moved in, or a base of several components.
      unvisited: part of Z that one-step draws showed where no chain came; see `recipe.with_chains`.
      map_replaced: whether ``sampler`` is not the one that was given.
      bridge_replaced: whether ``log_z`` is that of a Gaussian fitted to the chains' first half.
      exploration: what a look for modes means for their draws, or None where nobody looked.
      latent: ``[num_chains, num_samples, dim]``, where they were in the latent space of
        ``sampler``; None where it has several components.

    Example:
      >>> from consistent_samplers.corrections import Chains
      >>> Chains._fields[:5]
      ('position', 'log_weight', 'diverging', 'mixing', 'log_z')
    """

    position: Array
    log_weight: Array
    diverging: Array
    mixing: Mixing
    log_z: Bridge
    sampler: Sampler
    unvisited: float = 0.0
    map_replaced: bool = False
    bridge_replaced: bool = False
    exploration: ExplorationCheck | None = None
    latent: np.ndarray | None = None

    def __str__(self) -> str:
        return f"{self.mixing}; {self.log_z}"


def latent_chains(
    rng_key: PRNGKey,
    target: Target,
    sampler: Sampler,
    *,
    num_chains: int = 4,
    num_warmup: int = 300,
    num_samples: int = 1_000,
    max_samples: int | None = None,
    max_gradients: float = math.inf,
    gaussian: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Chains:
    """Chains of NUTS in the latent space of a sampler, from weighted draws of it.

    Where the map folds or is not inverted, so that chains would count points twice, it is replaced
    by the Gaussian of the sampler's weighted draws, or by the base alone if that has the larger
    ELBO. Where the base has several components, chains move in the space of that Gaussian, and
    after each move draws of the base are proposed to them: that leads from mode to mode. Weights
    are then those of the base. Steps and diagonal masses are adapted for each chain during the
    warm-up. The calculation is one program, with the density in it.

    Args:
      rng_key: key.
      target: the target.
      sampler: whose deterministic map, in one step, is the latent space.
      num_chains: chains, moved together.
      num_warmup: iterations of each that are left out.
      num_samples: draws of each.
      max_samples: draws of each up to which chains go on, doubling them, while they are not mixed
        (`diagnostics.MIXED_R_HAT`, `diagnostics.ENOUGH_DRAWS`); ``num_samples`` if None. If it is
        given and transitions diverge (`diagnostics.MAX_DIVERGENT`), chains start once more from
        where they are, with a quarter of the shortest steps or, if many diverge, a sixteenth.
      max_gradients: gradients of a chain from which on it ends, with its draws until then, 250 at
        least if so many were asked for: where a geometry is hard, a transition takes hundreds.
      gaussian: replace the map in any case, as where its determinant is dear.
      progress: told the iterations that were done, some at a time.

    Raises:
      ValueError: numbers that are not positive, or no draw of the sampler has a weight.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(2), jnp.ones(2)), cs.bases.standard_normal(2)
      >>> sampler = cs.Sampler.of_base(base)
      >>> chains = cs.corrections.latent_chains(
      ...     jax.random.key(0), target, sampler, num_warmup=100, num_samples=100)
      >>> bool(abs(chains.log_z.log_z - target.log_z) < 0.1)
      True
    """
    check_key(rng_key)
    check_integer("num_chains", num_chains, 2)
    check_integer("num_warmup", num_warmup)
    check_integer("num_samples", num_samples, 4)
    space, start, log_weight = latent_space(
        folded(rng_key, 0), target, sampler, num_chains, gaussian
    )
    several = not one_frame(sampler.base)
    landscape = _Landscape(as_partial(target.log_density), space, sampler.base if several else None)
    keys = jax.random.split(folded(rng_key, 1), num_chains)
    begin, go_on = _programs(jax.tree.structure(landscape))
    state = begin(landscape, keys, start, num_warmup=num_warmup)
    kept: list[Any] = []
    least = min(num_samples, LEAST_SAMPLES)
    told, calmer, dispatched, gradients = 0, False, itertools.count(), 0
    adapted = num_warmup  # iterations of the first warm-up, whatever is left out later
    while True:
        while (done := len(kept) * _SEGMENT) < num_warmup + num_samples:
            if gradients > max_gradients and done >= num_warmup + least:
                num_samples = done - num_warmup
                break
            key = folded(folded(rng_key, 3), next(dispatched))
            state, drawn = go_on(landscape, key, state, num_warmup=adapted)
            *drawn, num_steps = jax.device_get(drawn)
            kept.append(drawn)
            # Chains are moved together: all take as long as the one with the most.
            gradients += int(num_steps.max(axis=1).sum())
            if progress is not None:
                done = min(done + _SEGMENT, num_warmup + num_samples)
                progress(done - told)
                told = done
        latent, diverging = (
            np.swapaxes(np.concatenate(parts)[num_warmup : num_warmup + num_samples], 0, 1)
            for parts in zip(*kept, strict=True)
        )
        if max_samples is not None and not calmer and diverging.mean() > MAX_DIVERGENT:
            state, calmer = _calmer(state, float(diverging.mean())), True
            kept, told, num_warmup = [], 0, _SEGMENT
            continue
        if 2 * num_samples > (max_samples or num_samples) or gradients > max_gradients:
            break
        if _are_mixed(latent):
            break
        num_samples *= 2
    found = space.weigh(target, jax.device_put(latent.reshape(-1, target.dim)))
    position = np.asarray(found.position).reshape(latent.shape)
    weights = np.asarray(found.log_weight).reshape(latent.shape[:2])
    assert found.flow is not None
    # Where the map folds, what its latent space says of a point is not the whole.
    diverging = diverging | np.asarray(found.flow.folded).reshape(diverging.shape)
    mixed = mixing(position, float(diverging.mean()))
    of_space, weighed = weights, space
    if several:
        # Of all components, as no Gaussian overlaps modes apart.
        weighed = (
            sampler if isinstance(sampler.control, Identity) else Sampler.of_base(sampler.base)
        )
        own = weighed.sample(folded(rng_key, 4), target, NUM_DRAWS, 1)
        log_weight = np.asarray(checked_log_weight(own), np.float64)
        there = weighed.log_weight(folded(rng_key, 4), target, found.position, 1)
        weights = np.asarray(there).reshape(latent.shape[:2])
    drawn = jax.device_put((position, weights, diverging))
    log_z, replaced = bridge(log_weight, weights), False
    if log_z.log_z_stderr > _CLOSE:
        key = folded(rng_key, 2)
        other = bridge_to_gaussian(key, space, target, latent, of_space, mixed.bulk)
        log_z, replaced = smaller_error(log_z, other)
    return Chains(
        drawn[0],
        drawn[1],
        drawn[2],
        mixed,
        log_z,
        weighed,
        map_replaced=weighed is not sampler,
        bridge_replaced=replaced,
        latent=None if several else latent,
    )


class _Landscape(NamedTuple):
    """What chains move on: arguments of their programs, which know another of its kind again."""

    density: Partial
    space: Sampler
    proposals: Base | None  # a base of several components, whose draws are proposed

    def potential(self, z: Array) -> Array:
        """``-log p0(z) w(z)``."""
        target = Target(self.density, self.space.base.dim)
        weight = weigh_latent(self.space, target)(z, ()).log_weight
        return -(weight + standard_normal_log_prob(z))

    def kernel(self) -> Any:
        """NUTS on it."""
        from numpyro.infer import NUTS

        return NUTS(
            potential_fn=self.potential,
            max_tree_depth=_MAX_TREE_DEPTH,
            target_accept_prob=_ACCEPTANCE,
        )


# Of the last kinds of densities and maps: what JAX keeps for others goes with them.
@functools.lru_cache(maxsize=8)
def _programs(structure: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The compiled `_begin` and `_go_on` for landscapes of one structure, without their arrays."""
    begin, go_on = (
        jit(functools.partial(function), static_argnames="num_warmup")
        for function in (_begin, _go_on)
    )
    return begin, go_on


def _begin(landscape: _Landscape, keys: PRNGKey, start: Array, *, num_warmup: int) -> Any:
    """The state of chains at the start, of which ``num_warmup`` iterations adapt."""
    return landscape.kernel().init(keys, num_warmup, start, (), {})


def _go_on(
    landscape: _Landscape, rng_key: PRNGKey, state: Any, *, num_warmup: int
) -> tuple[Any, Any]:
    """The state of all chains after a dispatch, and of each iteration what is kept."""
    kernel = landscape.kernel()
    # It has to have begun; what that computes, nobody needs here.
    jax.eval_shape(lambda: kernel.init(state.rng_key, num_warmup, state.z, (), {}))

    def step(state: Any, key: PRNGKey) -> tuple[Any, Any]:
        state = kernel.sample(state, (), {})
        for i in range(0 if landscape.proposals is None else _JUMPS):
            state = _jumped(jax.random.fold_in(key, i), state, landscape)
        return state, (state.z, state.diverging, state.num_steps)

    return jax.lax.scan(step, state, jax.random.split(rng_key, _SEGMENT))


def _jumped(rng_key: PRNGKey, state: Any, landscape: _Landscape) -> Any:
    """States of NUTS, each after the proposal of a draw of a base with several components.

    Independence Metropolis-Hastings (Tierney, 1994): gradients do not pass between modes.
    """
    space, base = landscape.space.base, landscape.proposals
    assert base is not None

    def one(key: PRNGKey, z: Array, energy: Array, slope: Array) -> tuple[Array, ...]:
        key_component, key_draw, key_accept = jax.random.split(key, 3)
        component = base.draw_component(key_component)
        x = base.unwhiten(jax.random.normal(key_draw, z.shape, z.dtype), component)
        proposed = space.whiten(x, ())
        new_energy, new_slope = jax.value_and_grad(landscape.potential)(proposed)
        new = -new_energy - base.log_prob(x)
        _, accepted = accept(key_accept, new, -energy - base.log_prob(space.unwhiten(z, ())))
        accepted &= jnp.isfinite(new_slope).all()
        new_state, old_state = (proposed, new_energy, new_slope), (z, energy, slope)
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new_state, old_state)

    keys = jax.random.split(rng_key, len(state.z))
    moved = jax.vmap(one)(keys, state.z, state.potential_energy, state.z_grad)
    return state._replace(z=moved[0], potential_energy=moved[1], z_grad=moved[2])


def _calmer(state: Any, divergent: float) -> Any:
    """The state of chains, to go on with steps shorter than those of any of them.

    By how much depends on the share of transitions that diverged.
    """
    adapted, shorter = state.adapt_state, _SHORTER**2 if divergent > _MANY else _SHORTER
    steps = jnp.full_like(adapted.step_size, shorter * jnp.min(adapted.step_size))
    adapted = adapted._replace(step_size=steps)
    return state._replace(adapt_state=adapted)


def _are_mixed(latent: np.ndarray) -> bool:
    found = mixing(latent)
    return found.r_hat <= MIXED_R_HAT and min(found.bulk, found.tail) >= ENOUGH_DRAWS
