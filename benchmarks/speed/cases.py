"""What is timed: sizes, samplers of the recipe, and the bare network beside them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import consistent_samplers as cs
from benchmarks import registry
from benchmarks.methods import shaken
from benchmarks.report import Row, goal
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Base
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Params


class Sizes(NamedTuple):
    """How much is measured: repetitions, and whether tiny sizes do, to try the command."""

    rounds: int
    quick: bool

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of every network."""
        return (4,) if self.quick else (64, 64)


def held(subject: str, what: str, measured: dict[str, float], sense: str, limit: float) -> Row:
    """A row that is held to a goal by its median."""
    goals = {"measured": goal(measured["median"], sense, limit)}
    return {"subject": subject, "what": what, "measured": measured, "goals": goals}


class Timed(NamedTuple):
    """A sampler to time."""

    algorithm: Algorithm
    state: SamplerState

    @property
    def dim(self) -> int:
        """Of the target."""
        return self.algorithm.target.dim

    def sampling(self, num: int, weights: bool = True, num_steps: int = 1) -> Callable[[], Any]:
        """Draws of the map, as a function of nothing."""
        key, target = jax.random.key(1), self.algorithm.target
        sampler = self.algorithm.sampler(self.state)
        return lambda: sampler.sample(key, target, num, num_steps, method="map", weights=weights)

    def iteration(self) -> Callable[[], Any]:
        """A training iteration."""
        step, key = jax.jit(self.algorithm.step), jax.random.key(5)
        return lambda: step(key, self.state)

    def bare(self, num: int, chunk: int | None = None, fresh: bool = False) -> Callable[[], Any]:
        """The network alone at t = 0, of one batch of given points, or of chunks of it in turn.

        Of ``fresh`` points their draws count, too.
        """
        noise = jax.jit(lambda key: jax.random.normal(key, (num, self.dim)))
        x = noise(jax.random.key(2))
        t, d = jnp.zeros(()), jnp.ones(())

        def network(params: Params, x: Array) -> Array:
            return jax.vmap(lambda y: self.algorithm.control.bind(params)(y, t, d))(x)

        def in_chunks(params: Params, x: Array) -> Array:
            return jax.lax.map(lambda y: network(params, y[None])[0], x, batch_size=chunk)

        evaluate = jax.jit(network if chunk is None else in_chunks)
        return lambda: evaluate(self.state.ema_params, noise(jax.random.key(4)) if fresh else x)


def full_base(dim: int) -> Base:
    """A Gaussian with a full covariance, as a fitted base is one."""
    rng = np.random.default_rng(0)
    factor = np.eye(dim) + np.tril(rng.normal(size=(dim, dim)), -1) * 0.3 / np.sqrt(dim)
    return cs.bases.GaussianBase(jnp.zeros(dim), jnp.asarray(0.5 * factor, jnp.float32))


def diagonal_base(dim: int) -> Base:
    """A Gaussian without correlations, whose whitening costs O(dim)."""
    return cs.bases.DiagonalBase(jnp.zeros(dim), 0.5 * jnp.ones(dim))


def mixed_base(dim: int, num: int) -> Base:
    """A mixture of Gaussians with full covariances."""
    loc = 3.0 * np.random.default_rng(0).normal(size=(num, dim))
    return cs.bases.mixture(jnp.zeros(num), jnp.asarray(loc), jnp.tile(jnp.eye(dim), (num, 1, 1)))


def plain_target(dim: int) -> Target:
    """A target that costs next to nothing."""
    return Target(lambda x: -0.5 * jnp.sum(x**2), dim, name="standard normal")


def timed(
    target: Target | str, hidden: tuple[int, ...], base: Base | None = None, **more: Any
) -> Timed:
    """The recipe's sampler with parameters that do something; training would not change its cost.

    Args:
      target: the target, or its name in the registry.
      hidden: widths.
      base: a Gaussian with a full covariance if None.
      **more: settings of OSDS, with 16 finest steps and a general network if not among them.
    """
    built = registry.TARGETS[target].build() if isinstance(target, str) else target
    base = full_base(built.dim) if base is None else base
    settings = {"max_steps": 16, "network": "general", "guidance": None} | more
    algorithm = cs.osds(built, base=base, hidden=hidden, **settings)
    state = algorithm.init(jax.random.key(0))
    params = shaken(jax.random.key(3), state.params, 0.01)  # away from their zeros
    return Timed(algorithm, state._replace(params=params, ema_params=params))
