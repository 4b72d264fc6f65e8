"""What a trained sampler's draws need is compiled beside its training."""

import contextlib
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.estimate import evidence
from consistent_samplers.recipe import route
from consistent_samplers.recipe.judging import NUM_CHECK_DRAWS
from consistent_samplers.recipe.looking import NUM_PLACED
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import PRNGKey

# Draws that are made for nothing, at most, and of how many the evidence is compiled ahead.
_NUM_DRAWS, _MOST_EVIDENCE = 4 * NUM_CHECK_DRAWS, 100_000


@contextlib.contextmanager
def draws_compiled(
    rng_key: PRNGKey, sampler: Sampler, start: Start, plan: Plan, cost: route.Costs
) -> Iterator[None]:
    """A context beside which the programs of a sampler's draws and weights are compiled.

    On a thread of its own, by a few draws of the untrained sampler for a density of no interest: a
    training leaves the interpreter to others while the compiler works. Not where these draws cost
    more than compiling, and not on several hosts, whose computations must have one order.
    """

    def draw() -> None:
        # Whoever needs a program that cannot be made is told.
        with contextlib.suppress(Exception):
            standin = Target(_standin, sampler.base.dim, name="standin")
            sampler.sample(rng_key, standin, sampler.block_size(NUM_CHECK_DRAWS), 1)
            if start.particles is not None:
                particles = jax.device_put(start.particles[:NUM_PLACED])
                sampler.log_weight(rng_key, standin, particles, 1)
            block = sampler.sample(rng_key, standin, sampler.block_size(plan.num_samples), 1)
            num = min(plan.num_samples, _MOST_EVIDENCE)
            evidence(jax.tree.map(lambda x: np.resize(x, (num, *x.shape[1:])), block))

    if jax.process_count() > 1 or _NUM_DRAWS * cost.map_draw > route.COMPILING:
        yield
        return
    thread = threading.Thread(target=draw, name="compiles draws")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _standin(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)
