"""Where a training iteration and a draw spend their time: the pieces, timed one by one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import consistent_samplers as cs
from benchmarks import registry, timing
from benchmarks.speed_cases import Case, Evaluations, Sizes, bare_network, case, started
from consistent_samplers import log_det, losses, simulate
from consistent_samplers.algorithms import Now
from consistent_samplers.algorithms.objectives import PathLoss
from consistent_samplers.bases import fit_gaussian

_MARGIN = 0.05
_Pieces = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def profile(sizes: Sizes) -> dict[str, Any]:
    """Milliseconds, operations and bytes of each whole, of its bare evaluations and its pieces.

    Pieces are compiled apart, so that they need not add up to the whole, in which XLA may fuse
    them or find two of them the same.
    """
    name, num = sizes.profiled
    target = registry.TARGETS[name].build()
    # Calibration takes another, dearer gradient where weights are far apart, as on no fitted base.
    sampler = case(target, sizes.hidden, base=fit_gaussian(jax.random.key(0), target))
    rows: list[dict[str, Any]] = []
    wholes = {
        f"draw without weights (of {num:,})": _draw(sampler, num, False),
        f"weighted draw (of {num:,})": _draw(sampler, num, True),
        "calibration iteration": _calibration(sampler),
        "osds.paper iteration": _paper(sampler, sizes),
    }
    for whole, pieces in wholes.items():
        compiled = {label: (jax.jit(f), args) for label, (f, args) in pieces.items()}
        seconds = timing.interleaved(
            {label: functools.partial(f, *args) for label, (f, args) in compiled.items()},
            sizes.rounds,
        )
        first = next(iter(seconds))
        for label, (function, args) in compiled.items():
            rows.append(
                {
                    "whole": whole,
                    "piece": label,
                    "ms": 1e3 * timing.spread(seconds[label])["median"],
                    "share": timing.ratio(seconds[label], seconds[first])["median"],
                    **timing.counts(function, *args),
                }
            )
            row = rows[-1]
            print(f"  {whole}: {label}: {row['ms']:.2f} ms, {row['share']:.0%}", flush=True)
    return {"rows": rows, "goals": [], "settings": {"target": name, "dim": sampler.dim}}


def _draw(sampler: Case, num: int, weights: bool) -> _Pieces:
    """A call's draws, the density at them included; its round trips, 256 a call, beside."""
    algorithm, params = sampler.algorithm, sampler.state.ema_params
    control, base, dim = algorithm.control, algorithm.base, sampler.dim
    density = jax.vmap(algorithm.target.log_density)
    key, index = jax.random.key(0), jnp.arange(num)
    component: Any = base.draw_component(key)
    x = jax.random.normal(jax.random.key(1), (num, dim))
    t, d = jnp.zeros(()), jnp.ones(())

    def keys_of(key: Any, index: Any) -> Any:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

    keys = keys_of(key, index)

    def whole(params: Any, keys: Any) -> Any:
        drawn = jax.vmap(lambda key: control.draw(params, key, 1, "map", weights))(keys)
        return drawn, density(drawn.position) if weights else None

    def one_step(params: Any, x: Any) -> Any:
        u = control.bind(params)
        return jax.vmap(lambda y: simulate.flow_step_and_jacobian(u, control.process, y, t, d))(x)

    def normals(keys: Any) -> Any:
        return jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (dim,)))(keys)

    def round_trips(params: Any, keys: Any) -> Any:
        return jax.vmap(lambda key: control.round_trip(params, key, 1))(keys)

    pieces: _Pieces = {
        "whole": (whole, (params, keys)),
        "bare network": (bare_network(algorithm), (params, x)),
        "keys of all draws": (keys_of, (key, index)),
        "normals, a key a draw": (normals, (keys,)),
        "normals, one key for all": (lambda key: jax.random.normal(key, (num, dim)), (key,)),
        "base: unwhiten": (jax.vmap(lambda z: base.unwhiten(z, component)), (x,)),
    }
    if not weights:
        return pieces
    jacobians = one_step(params, x)[1]
    copies = jnp.tile(x[: max(1, num // 4)], (dim + 1, 1))
    return pieces | {
        "bare network, d + 1 evaluations (a quarter of the draws)": (
            bare_network(algorithm),
            (params, copies),
        ),
        "value and Jacobian": (one_step, (params, x)),
        "determinants": (log_det.slogdet, (jacobians,)),
        "target's log density": (density, (x,)),
        "256 round trips": (round_trips, (params, keys[: min(256, num)])),
    }


def _bare(needed: Evaluations, sampler: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    function, points = needed.function(sampler.algorithm)
    return function, (sampler.state.params, *points)


def _optimiser(sampler: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    optimizer, params = sampler.algorithm.optimizer.transformation(), sampler.state.params

    def update(params: Any, opt_state: Any) -> Any:
        updates, opt_state = optimizer.update(params, opt_state, params)
        moved = optax.apply_updates(params, updates)
        return optax.incremental_update(moved, params, 0.01), opt_state

    return update, (params, optimizer.init(params))


def _shortfalls(jacobians: Any, probe: Any) -> Any:
    return jax.vmap(lambda j, v: losses.monotonicity_shortfall(j, v, _MARGIN))(
        jacobians, probe
    ).mean()


def _simulation(sampler: Case, num_steps: int, batch: int, hidden: tuple[int, ...]) -> Any:
    target, loss = sampler.algorithm.target, PathLoss("reverse_kl", batch, hidden, (num_steps,))
    gradient, evaluate = jax.grad(target.log_density), jax.vmap(target.log_density)

    def simulated(params: Any, key: Any) -> Any:
        now = Now(key, sampler.algorithm.control, sampler.state, (), gradient)
        return loss(params, now, key, evaluate)

    return simulated


def _calibration(sampler: Case) -> _Pieces:
    """The recipe's calibration: score of the map, injectivity penalty, landing, optimiser."""
    algorithm = cs.calibration(sampler.algorithm)
    control, dim, params = algorithm.control, sampler.dim, sampler.state.params
    key, num = jax.random.key(3), 128
    x = jax.random.normal(key, (num, dim))
    held = x[: num // 2]
    needed = Evaluations(both=((1, num * (dim + 1)), (1, num // 2 * (dim + 1)), (1, num)))

    def score(params: Any, x: Any) -> Any:
        u = control.bind(params)
        return jax.vmap(lambda y: simulate.flow_score(u, control.process, y, 1))(x)

    def jacobians_of(params: Any, x: Any) -> Any:
        u = control.bind(params)

        def one(y: Any) -> Any:
            jacobians: Any = simulate.flow_jacobians(u, control.process, y, 1)[1]
            return jacobians[0]

        return jax.vmap(one)(x)

    def landing(params: Any, x: Any) -> Any:
        u = control.bind(params)
        return jax.vmap(lambda y: simulate.flow_map(u, control.process, y, 1))(x).sum()

    jacobians = jacobians_of(params, x)
    return {
        "whole": (algorithm.step, (key, algorithm.restart(sampler.state))),
        "bare evaluations": _bare(needed, sampler),
        "score of the map": (score, (params, x)),
        "of it: Jacobians": (jacobians_of, (params, x)),
        "of it: determinants and inverses": (
            jax.grad(lambda j: log_det.slogdet(j).log_abs_det.sum()),
            (jacobians,),
        ),
        "target's gradient": (jax.vmap(jax.grad(algorithm.target.log_density)), (x,)),
        "penalty, forward and backward": (
            jax.grad(lambda params: _shortfalls(jacobians_of(params, held), held)),
            (params,),
        ),
        "of it: smallest eigenvalues": (
            jax.grad(_shortfalls),
            (jacobians[: num // 2], held),
        ),
        "landing, forward and backward": (jax.grad(landing), (params, x)),
        "optimiser and average": _optimiser(sampler),
    }


def _paper(sampler: Case, sizes: Sizes) -> _Pieces:
    """The paper's OSDS: nearly all of it is the simulation."""
    _, num_steps, batch = sizes.paper
    target = sampler.algorithm.target
    own = started(cs.osds.paper(target, max_steps=num_steps, batch_size=batch, hidden=sizes.hidden))
    params, key = own.state.params, jax.random.key(4)
    needed = Evaluations(both=((num_steps, batch), (3, batch)), forward=((4, batch),))
    loss = _simulation(own, num_steps, batch, sizes.hidden)
    unguided = case(target, sizes.hidden, base=own.algorithm.base, max_steps=num_steps)
    noises = jax.vmap(
        lambda key: jax.vmap(lambda k: jax.random.normal(k, (own.dim,)))(
            jax.random.split(key, num_steps)
        )
    )
    x = jax.random.normal(key, (num_steps, batch, own.dim))
    gradient = jax.vmap(jax.vmap(jax.grad(target.log_density)))
    return {
        "whole": (own.algorithm.step, (key, own.state)),
        "bare evaluations": _bare(needed, own),
        "simulation, forward": (lambda *args: loss(*args)[0], (params, key)),
        "simulation, forward and backward": (jax.grad(loss, has_aux=True), (params, key)),
        "the same without target gradient": (
            jax.grad(_simulation(unguided, num_steps, batch, sizes.hidden), has_aux=True),
            (unguided.state.params, key),
        ),
        "noise of all steps": (noises, (jax.random.split(key, batch),)),
        "target gradients, forward": (gradient, (x,)),
        "target gradients, forward and backward": (
            jax.grad(lambda x: jnp.sum(gradient(x) ** 2)),
            (x,),
        ),
        "optimiser and average": _optimiser(own),
    }
