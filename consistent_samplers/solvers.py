"""Draws of an iterative sampler by the solvers of the literature, on uniform and learned grids."""

import functools
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers.algorithms.learning import within_support
from consistent_samplers.checks import check_choice, check_integer, check_key
from consistent_samplers.compilation import as_partial, is_traced, jit
from consistent_samplers.maps import Control
from consistent_samplers.sampler import Sampler, weighed
from consistent_samplers.simulate import solvers, standard_normal_log_prob
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Bound, Draws, LogDensityFn, PRNGKey

Solver: TypeAlias = Literal["flow", "dpm++", "path", "sa", "restart"]
"""How the flow or the SDE is solved, by `simulate.solvers`:

- ``"flow"``: first order, deterministic; exact determinant of the whole map.
- ``"dpm++"``: DPM-Solver++(2M), second order, deterministic; exact determinant likewise.
- ``"path"``: the process's own stochastic steps.
- ``"sa"``: SA-Solver's two-step predictor, stochastic.
- ``"restart"``: the flow with noise added back and parts repeated.
"""

_SOLVERS: dict[Solver, Any] = {
    "flow": solvers.map_solver(solvers.flow),
    "dpm++": solvers.map_solver(solvers.dpm_solver),
    "path": solvers.path,
    "sa": solvers.sa_solver,
    "restart": solvers.restart,
}
_BOUNDS: dict[Solver, Bound] = {
    **dict.fromkeys(("flow", "dpm++", "restart"), "lower-if-injective"),
    **dict.fromkeys(("path", "sa"), "lower"),
}
_BATCH_SIZE = 256


def solve(
    rng_key: PRNGKey,
    sampler: Sampler,
    target: Target,
    num_samples: int,
    solver: Solver = "dpm++",
    num_steps: int = 16,
    *,
    times: Array | None = None,
) -> Draws:
    """Weighted draws of a trained control by a solver, with E[w] = Z whatever the control is.

    Any number of steps will do, on any grid. The control is asked at the smallest step it was
    trained at, as samplers of small steps are; what was calibrated for one step is none.

    Args:
      rng_key: key.
      sampler: with a `maps.Control` (`Algorithm.sampler`, `TrainedSampler.many_steps`).
      target: what the weights are for.
      num_samples: number of draws.
      solver: see `Solver`.
      num_steps: of the grid, network evaluations of a draw but for ``"restart"``; see
        `num_evaluations`.
      times: ``[num_steps + 1]``, from 0 to 1, ascending; equal steps if None. `learned_times`
        finds one. ``"restart"`` has a grid of its own and takes the number alone.

    Returns:
      Draws whose ``bound`` is ``"lower"`` for the stochastic solvers, else
      ``"lower-if-injective"``, with the share that folds.

    Raises:
      TypeError: the sampler has no control (a base alone, a hierarchical map).
      ValueError: no such solver, or times that are no grid.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.eye(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.dis(target, base=base, max_steps=8, hidden=(8,))
      >>> sampler = algorithm.sampler(algorithm.init(jax.random.key(0)))  # not trained
      >>> draws = cs.solvers.solve(jax.random.key(1), sampler, target, 500, "dpm++", num_steps=5)
      >>> draws.position.shape, draws.bound
      ((500, 1), 'lower-if-injective')
    """
    grid, density = _checked(rng_key, sampler, target, solver, num_steps, times)
    check_integer("num_samples", num_samples)
    keys = jax.random.split(rng_key, num_samples)
    drawn = _solved(keys, sampler, density, grid, solver=solver)
    folded = drawn.folded if _BOUNDS[solver] != "lower" else None
    return weighed(target, drawn.position, drawn.log_ratio, _BOUNDS[solver], folded)


def num_evaluations(solver: Solver, num_steps: int) -> int:
    """Network evaluations of a draw of `solve`: the steps, of ``"restart"`` those repeated too.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.solvers.num_evaluations("dpm++", 10), cs.solvers.num_evaluations("restart", 10)
      (10, 18)
    """
    check_choice("solver", solver, get_args(Solver))
    check_integer("num_steps", num_steps)
    return solvers.restart_evaluations(num_steps) if solver == "restart" else num_steps


def learned_times(
    rng_key: PRNGKey,
    sampler: Sampler,
    target: Target,
    num_steps: int,
    solver: Solver = "path",
    *,
    num_iterations: int = 200,
    batch_size: int = 128,
    learning_rate: float = 0.05,
) -> Array:
    """A time grid ``[num_steps + 1]`` that maximises the solver's ELBO, the control as it is.

    Few steps are placed where they matter by the gradient of E[log w], which is a bound on any
    grid (in the sense of Sabour, Fidler & Kreis, "Align your steps", 2024, who bound a KL between
    path measures; here it is the ELBO itself). The increments are a softmax, trained by Adam from
    equal ones. Draws outside of the target's support have no say.

    Args:
      rng_key: key.
      sampler: as of `solve`.
      target: the target.
      num_steps: of the grid; two or more.
      solver: whose ELBO; not ``"restart"``.
      num_iterations: of Adam.
      batch_size: draws of each.
      learning_rate: of Adam, on the logarithms of the increments.

    Raises:
      TypeError: as of `solve`.
      ValueError: as of `solve`, ``"restart"``, whose grid is its own, or an ELBO that is never
        finite.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.eye(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.dis(target, base=base, max_steps=8, hidden=(8,))
      >>> sampler = algorithm.sampler(algorithm.init(jax.random.key(0)))
      >>> key = jax.random.key(1)
      >>> cs.solvers.learned_times(key, sampler, target, 4, num_iterations=5).shape
      (5,)
    """
    if solver == "restart":
        raise ValueError('"restart" has a grid of its own: learn that of another solver.')
    check_integer("num_steps", num_steps, 2)
    check_integer("num_iterations", num_iterations)
    check_integer("batch_size", batch_size)
    _, density = _checked(rng_key, sampler, target, solver, num_steps, None)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))

    def loss(logits: Array, key: PRNGKey, sampler: Sampler, density: LogDensityFn) -> Array:
        keys, density = jax.random.split(key, batch_size), within_support(density)
        drawn = _draws(keys, sampler, density, _grid(logits), solver)
        log_weight = jax.vmap(density)(drawn.position) + drawn.log_ratio
        good = jnp.isfinite(log_weight)
        return -jnp.where(good, log_weight, 0.0).sum() / good.sum()

    @jit
    def learn(key: PRNGKey, sampler: Sampler, density: LogDensityFn) -> tuple[Array, Array]:
        def iterate(carry: Any, key: PRNGKey) -> tuple[Any, Array]:
            logits, state = carry
            value, gradient = jax.value_and_grad(loss)(logits, key, sampler, density)
            usable = jnp.isfinite(value) & jnp.isfinite(gradient).all()
            updates, state = optimizer.update(jnp.where(usable, gradient, 0.0), state)
            return (optax.apply_updates(logits, updates), state), usable

        start = jnp.zeros(num_steps)
        carry = (start, optimizer.init(start))
        (logits, _), usable = jax.lax.scan(iterate, carry, jax.random.split(key, num_iterations))
        return _grid(logits), usable.any()

    grid, learned = learn(rng_key, sampler, density)
    if not is_traced(learned) and not learned:
        raise ValueError(
            f"The ELBO of solver {solver!r} was not finite, or its gradient, in any of "
            f"{num_iterations} iterations: there is nothing to learn a grid from. Check that the "
            "target has a density where the sampler draws, or take equal steps, times=None."
        )
    return grid


def _grid(logits: Array) -> Array:
    inner = jnp.cumsum(jax.nn.softmax(logits))[:-1]
    return jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)])


@functools.partial(jit, static_argnames="solver")
def _solved(
    keys: Array, sampler: Sampler, density: LogDensityFn, grid: Array, *, solver: Solver
) -> Any:
    return _draws(keys, sampler, density, grid, solver, batch_size=_BATCH_SIZE)


def _draws(
    keys: Array,
    sampler: Sampler,
    density: LogDensityFn,
    grid: Array,
    solver: Solver,
    batch_size: int | None = None,
) -> Any:
    """Proposals of one key each."""
    control: Any = sampler.control
    gradient = jax.grad(density) if control.guided else None
    smallest = 1.0 / sampler.max_steps

    def one(key: PRNGKey) -> Any:
        key_base, key_path = jax.random.split(key)
        z0, component = control.start_point(key_base)
        u = solvers.drift(control.bind(sampler.params, component, gradient), smallest)
        end = _SOLVERS[solver](key_path, u, control.process, z0, grid)
        log_ratio = end.log_ratio - standard_normal_log_prob(z0)
        return control.landed(end.position, component, log_ratio, end.folded)

    return jax.lax.map(one, keys, batch_size=batch_size) if batch_size else jax.vmap(one)(keys)


def _checked(
    rng_key: PRNGKey,
    sampler: Sampler,
    target: Target,
    solver: Solver,
    num_steps: int,
    times: Array | None,
) -> tuple[Array, LogDensityFn]:
    """The grid and the density of arguments that are right."""
    check_key(rng_key)
    check_choice("solver", solver, get_args(Solver))
    check_integer("num_steps", num_steps)
    if type(sampler.control) is not Control:  # those derived from it move otherwise
        raise TypeError(
            f"A solver needs a trained control, got a sampler of {type(sampler.control).__name__}: "
            "take algorithm.sampler(state) of cs.dis, cs.scds or cs.osds."
        )
    if target.dim != sampler.base.dim:
        raise ValueError(f"The sampler has dimension {sampler.base.dim}, the target {target.dim}.")
    if times is None:
        return jnp.linspace(0.0, 1.0, num_steps + 1), as_partial(target.log_density)
    grid = np.asarray(times)
    ends = grid.ndim == 1 and len(grid) > 1 and grid[0] == 0.0 and np.isclose(grid[-1], 1.0)
    if solver == "restart" or not (ends and (np.diff(grid) > 0.0).all()):
        raise ValueError(
            f"times must ascend from 0 to 1, of a solver other than 'restart', got {times} for "
            f"{solver!r}."
        )
    if len(grid) != num_steps + 1:
        raise ValueError(
            f"times hold {len(grid) - 1} steps, but num_steps={num_steps}: pass "
            f"num_steps={len(grid) - 1} with them."
        )
    return jnp.asarray(grid), as_partial(target.log_density)
