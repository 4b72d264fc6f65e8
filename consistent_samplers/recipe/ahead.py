"""What a training and a trained sampler's draws need is compiled beside what comes before."""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.algorithms.hierarchical import hierarchical
from consistent_samplers.bases import DiagonalBase, Fit, standard_normal
from consistent_samplers.bases.base import as_pytree
from consistent_samplers.bases.exploration import NUM_PARTICLES
from consistent_samplers.compilation import is_double, precision
from consistent_samplers.diagnostics.members import compile_look
from consistent_samplers.estimate import evidence
from consistent_samplers.maps import HierarchicalMap, hierarchical_map
from consistent_samplers.recipe import building, route
from consistent_samplers.recipe.judging import NUM_CHECK_DRAWS
from consistent_samplers.recipe.looking import NUM_PLACED
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import PRNGKey

# Draws that are made for nothing, at most, and of how many the evidence is compiled ahead.
_NUM_DRAWS, _MOST_EVIDENCE = 4 * NUM_CHECK_DRAWS, 100_000
# Share of effective draws from which on a Gaussian will often do.
_EVEN = 0.9


def compile_training(rng_key: PRNGKey, dim: int, plan: Plan, gaussian: Fit) -> None:
    """Begins to compile what calibrates a step on a Gaussian, where that alone will hardly do.

    Comes back at once; see `draws_compiled`, which follows. A training that needs none of it, or
    another base, compiled it for another day.
    """

    def iterate() -> None:
        base = as_pytree(standard_normal(dim))
        algorithm = building.distillation(_target(dim), base, plan)
        brief, whole = building.calibrations(algorithm, plan)
        state, _ = brief.advance(rng_key, whole.restart(algorithm.init(rng_key)))
        if threading.main_thread().is_alive():  # else the process waits for this thread to end
            _draw(rng_key, whole.sampler(state), plan, np.zeros((NUM_PARTICLES, dim)))

    needed = plan.effort == "full" or (plan.effort != "base" and gaussian.ess < _EVEN)
    if needed and _is_cheap(route.costs(dim, plan.hidden, plan.network == "structured", 0.0)):
        _beside(iterate)


def compile_iterations(rng_key: PRNGKey, target: Target, plan: Plan) -> None:
    """Begins to compile what trains a hierarchical map, beside the fit of its base.

    Comes back at once, with the target's structure known.
    """
    if plan.effort == "base" or target.structure.is_dense or jax.process_count() > 1:
        return
    base = DiagonalBase(jnp.zeros(target.dim), jnp.ones(target.dim))
    control = hierarchical_map(base, target.structure)

    def iterate() -> None:
        algorithm = hierarchical(_target(target.dim), control, optimizer=plan.optimizer)
        brief, _ = building.calibrations(algorithm, plan)
        brief.advance(rng_key, brief.restart(algorithm.init(rng_key)))

    _beside(iterate)


@contextlib.contextmanager
def draws_compiled(
    rng_key: PRNGKey, sampler: Sampler, start: Start, plan: Plan, cost: route.Costs
) -> Iterator[None]:
    """A context beside which the programs of a sampler's draws and weights are compiled.

    On a thread of its own, by a few draws of the untrained sampler for a density of no interest: a
    training leaves the interpreter to others while the compiler works. Not where these draws cost
    more than compiling, and not on several hosts, whose computations must have one order.
    """
    if not _is_cheap(cost):
        yield
        return

    def draw() -> None:
        _draw(rng_key, sampler, plan, start.particles)
        if isinstance(sampler.control, HierarchicalMap):
            compile_look(sampler)
            # Seconds; the look for modes needs it where draws are few for so many dimensions.
            importlib.import_module("sklearn.covariance")

    thread = _beside(draw)
    try:
        yield
    finally:
        thread.join()


def _draw(rng_key: PRNGKey, sampler: Sampler, plan: Plan, particles: Any) -> None:
    """Draws as a training and its user will, of a density of no interest."""
    target = _target(sampler.base.dim)
    sampler.sample(rng_key, target, sampler.block_size(NUM_CHECK_DRAWS), 1)
    if particles is not None:
        placed = jax.device_put(particles[:NUM_PLACED].astype(jnp.result_type(float)))
        sampler.log_weight(rng_key, target, placed, 1)
    block = sampler.sample(rng_key, target, sampler.block_size(plan.num_samples), 1)
    num = min(plan.num_samples, _MOST_EVIDENCE)
    evidence(jax.tree.map(lambda x: np.resize(x, (num, *x.shape[1:])), block))


def _is_cheap(cost: route.Costs) -> bool:
    return jax.process_count() == 1 and _NUM_DRAWS * cost.map_draw <= route.COMPILING


def _beside(work: Callable[[], None]) -> threading.Thread:
    """A thread that runs something. Whoever needs a program that cannot be made is told there."""
    double = is_double()

    def run() -> None:
        with contextlib.suppress(Exception), precision(double=double):
            work()

    thread = threading.Thread(target=run, name="compiles ahead")
    thread.start()
    return thread


def _target(dim: int) -> Target:
    return Target(_standin, dim, name="standin")


def _standin(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)
