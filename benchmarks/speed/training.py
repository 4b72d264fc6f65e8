"""An iteration of the paper's OSDS against its evaluations of network and target gradient.

Forward and pulled back to parameters and points: one a path and step of the simulation; one of the
student's step, and one each for the tangents of its trace and of the Jacobian penalty. Forward
only: two of the teacher's steps, two of the tangents of its traces. The bare function makes as
many in batches of the same size, at given points, each batch pulled back at once: no path, no weights, no
losses, no optimiser, and nothing is kept over the steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import consistent_samplers as cs
from benchmarks import registry, timing
from benchmarks.report import Row
from benchmarks.speed import cases
from consistent_samplers.algorithms import Algorithm
from consistent_samplers.types import Array, Params


def measure(sizes: cases.Sizes) -> list[Row]:
    """An iteration over its bare evaluations."""
    name, num_steps, batch = sizes.paper
    target = registry.TARGETS[name].build()
    paper = cs.osds.paper(target, max_steps=num_steps, batch_size=batch, hidden=sizes.hidden)
    sampler = cases.started(paper)
    needed = Evaluations(both=((num_steps, batch), (3, batch)), forward=((4, batch),))
    bare, points = needed.function(sampler.algorithm)
    seconds = timing.interleaved(
        {"iteration": sampler.iteration(), "bare": lambda: bare(sampler.state.params, *points)},
        sizes.rounds,
    )
    what = f"osds.paper, N = {num_steps}, batch {batch}, d = {target.dim}: an iteration over its"
    what += " bare evaluations, forward and backward"
    cost = timing.spread(seconds["iteration"] / seconds["bare"])
    return [cases.held(name, what, cost, "<=", 1.6)]


class Evaluations(NamedTuple):
    """Network evaluations (with the target's gradient where the network has it) of an iteration.

    Attributes:
      both: numbers of batches and their sizes, forward and pulled back to parameters and points.
      forward: the same, forward only.
    """

    both: tuple[tuple[int, int], ...]
    forward: tuple[tuple[int, int], ...] = ()

    def function(self, algorithm: Algorithm) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A compiled function that makes them at given points, and its points.

        Batches of one kind follow each other in a ``lax.scan`` at one time each, as the steps of
        a simulation do, but none waits for the one before.
        """

        def evaluate(params: Params, both: Any, forward: Any) -> Any:
            grads = jax.tree.map(jnp.zeros_like, params)
            outputs = []

            def values(params: Params, x: Array, t: Array) -> Array:
                d = jnp.asarray(1.0 / 16.0)
                return jax.vmap(lambda y: cases.control_of(algorithm, params)(y, t, d))(x)

            def pulled(grads: Params, inputs: tuple[Array, Array]) -> tuple[Params, Array]:
                x, t = inputs
                value, pull_back = jax.vjp(lambda p, x: values(p, x, t), params, x)
                by_params, by_x = pull_back(value)
                return jax.tree.map(jnp.add, grads, by_params), by_x

            for x in both:
                times = jnp.arange(len(x)) / len(x)
                grads, by_x = jax.lax.scan(pulled, grads, (x, times))
                outputs.append(by_x)
            for x in forward:
                times = jnp.arange(len(x)) / len(x)
                outputs.append(jax.lax.map(lambda args: values(params, *args), (x, times)))
            return grads, outputs

        def points(shapes: Sequence[tuple[int, int]]) -> list[Array]:
            key, dim = jax.random.key(4), algorithm.target.dim
            return [jax.random.normal(key, (*shape, dim)) for shape in shapes]

        return jax.jit(evaluate), (points(self.both), points(self.forward))
