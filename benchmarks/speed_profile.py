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
from consistent_samplers.algorithms import objectives
from consistent_samplers.algorithms.base import apply_gradients
from consistent_samplers.bases import fit_gaussian
from consistent_samplers.recipe import Settings

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
        f"draw without weights (of {num:,})": _draw(sampler, num, None),
        f"weighted draw (of {num:,})": _draw(sampler, num, "lower-if-injective"),
        "OSDS iteration": _distillation(sampler, sizes),
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


def _draw(sampler: Case, num: int, bound: Any) -> _Pieces:
    """A call's draws; its round trips, of which a call makes 256, beside."""
    algorithm, params = sampler.algorithm, sampler.state.ema_params
    control, base, dim = algorithm.control, algorithm.base, sampler.dim
    keys = jax.random.split(jax.random.key(0), num)
    component: Any = base.draw_component(keys[0])
    x = jax.random.normal(jax.random.key(1), (num, dim))
    t, d = jnp.zeros(()), jnp.ones(())

    def one_step(params: Any, x: Any) -> Any:
        u = control.bind(params)
        return jax.vmap(lambda y: simulate.flow_step_and_jacobian(u, control.process, y, t, d))(x)

    def normals(keys: Any) -> Any:
        def one(key: Any) -> Any:
            return jax.random.normal(jax.random.split(key)[0], (dim,))

        return jax.vmap(one)(keys)

    pieces: _Pieces = {
        "whole": (
            lambda params, keys: jax.vmap(
                lambda key: algorithm.per_draw.draw(params, key, 1, bound)
            )(keys),
            (params, keys),
        ),
        "bare network": (bare_network(control), (params, x)),
        "keys of all draws": (lambda key: jax.random.split(key, num), (jax.random.key(0),)),
        "normals, a key a draw": (normals, (keys,)),
        "normals, one key for all": (
            lambda key: jax.random.normal(key, (num, dim)),
            (jax.random.key(0),),
        ),
        "base: unwhiten": (jax.vmap(lambda z: base.unwhiten(z, component)), (x,)),
    }
    if bound is None:
        return pieces
    jacobians = one_step(params, x)[1]
    few = keys[: min(256, num)]
    copies = jnp.tile(x[: max(1, num // 4)], (dim + 1, 1))
    more: _Pieces = {
        "bare network, d + 1 evaluations (a quarter of the draws)": (
            bare_network(control),
            (params, copies),
        ),
        "value and Jacobian": (one_step, (params, x)),
        "determinants": (log_det.slogdet, (jacobians,)),
        "target's log density": (jax.vmap(control.log_density), (x,)),
        "256 round trips": (
            lambda params, keys: jax.vmap(
                lambda key: algorithm.per_draw.round_trip(params, key, 1)
            )(keys),
            (params, few),
        ),
    }
    return pieces | more


def _bare(needed: Evaluations, sampler: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    function, points = needed.function(sampler.algorithm.control, sampler.dim)
    return function, (sampler.state.params, *points)


def _optimiser(sampler: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = sampler.state._replace(opt_state=optimizer.init(sampler.state.params))
    return (
        lambda state, grads: apply_gradients(optimizer, state, grads, 0.99),
        (state, state.params),
    )


def _shortfalls(jacobians: Any, probe: Any) -> Any:
    return jax.vmap(lambda j, v: losses.monotonicity_shortfall(j, v, _MARGIN))(
        jacobians, probe
    ).mean()


def _simulation(sampler: Case, num_steps: int, batch: int, hidden: tuple[int, ...]) -> Any:
    objective = objectives.build_objective(
        sampler.algorithm.control, sampler.dim, loss="reverse_kl", batch_size=batch, hidden=hidden
    )

    def loss(params: Any, key: Any) -> Any:
        return objective.path_loss(params, key, num_steps)

    return loss


def _distillation(sampler: Case, sizes: Sizes) -> _Pieces:
    """The recipe's OSDS stage: simulation, consistency with exact volumes, optimiser."""
    algorithm, params, dim = sampler.algorithm, sampler.state.params, sampler.dim
    control, num, num_steps = algorithm.control, 64, algorithm.max_steps
    key = jax.random.key(2)
    x = jax.random.normal(key, (num, dim))
    d = 2.0 ** -jax.random.randint(key, (num,), 0, num_steps.bit_length() - 1)
    t = jnp.zeros(num)
    needed = Evaluations(
        both=((num_steps, 128), (1, num * (dim + 1))), forward=((1, 2 * num * (dim + 1)),)
    )
    loss = _simulation(sampler, num_steps, 128, sizes.hidden)

    def pairs(params: Any, x: Any, exact: bool = True) -> Any:
        u, teacher = control.bind(params), control.bind(sampler.state.ema_params)
        return jax.vmap(
            lambda x, t, d: losses.step_pair(
                u, teacher, control.process, x, t, d, with_jacobians=exact
            )
        )(x, t, d)

    def summed(params: Any, x: Any) -> Any:
        pair = pairs(params, x)
        return losses.state_consistency(pair) + jnp.sum(pair.jacobians[:, -1] ** 2)

    jacobians = pairs(params, x).jacobians
    return {
        "whole": (algorithm.step, (key, sampler.state)),
        "bare evaluations": _bare(needed, sampler),
        "simulation, forward": (lambda *args: loss(*args)[0], (params, key)),
        "simulation, forward and backward": (jax.grad(loss, has_aux=True), (params, key)),
        "pairs with Jacobians, forward": (pairs, (params, x)),
        "pairs with Jacobians, forward and backward": (jax.grad(summed), (params, x)),
        "determinants, forward": (log_det.slogdet, (jacobians,)),
        "determinants, forward and backward": (
            jax.grad(lambda j: log_det.slogdet(j).log_abs_det.sum()),
            (jacobians,),
        ),
        "smallest eigenvalues, forward and backward": (
            jax.grad(_shortfalls),
            (jacobians[:, -1], x),
        ),
        "optimiser and average": _optimiser(sampler),
    }


def _calibration(sampler: Case) -> _Pieces:
    """The recipe's calibration stage: path gradient, injectivity penalty, landing, optimiser."""
    algorithm = cs.calibration(sampler.algorithm)
    control, dim, params = algorithm.control, sampler.dim, sampler.state.params
    key, num = jax.random.key(3), 128
    x = jax.random.normal(key, (num, dim))
    held = x[: num // 2]
    needed = Evaluations(both=((1, num * (dim + 1)), (1, num // 2 * (dim + 1)), (1, num)))

    def path_gradient(params: Any, x: Any) -> Any:
        u = control.bind(params)
        return jax.vmap(
            lambda y: simulate.flow_path_gradient(u, control.process, y, control.log_density, 1)
        )(x)

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
        "path gradient": (path_gradient, (params, x)),
        "of it: Jacobians": (jacobians_of, (params, x)),
        "of it: determinants and inverses": (
            jax.grad(lambda j: log_det.slogdet(j).log_abs_det.sum()),
            (jacobians,),
        ),
        "of it: target's gradient": (jax.vmap(jax.grad(control.log_density)), (x,)),
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
    control, params, key = own.algorithm.control, own.state.params, jax.random.key(4)
    needed = Evaluations(both=((num_steps, batch), (3, batch)), forward=((4, batch),))
    loss = _simulation(own, num_steps, batch, sizes.hidden)
    without = Settings(num_steps, sizes.hidden, "general").build(target, own.algorithm.base)
    unguided = started(without)
    noises = jax.vmap(
        lambda key: jax.vmap(lambda k: jax.random.normal(k, (own.dim,)))(
            jax.random.split(key, num_steps)
        )
    )
    x = jax.random.normal(key, (num_steps, batch, own.dim))
    gradient = jax.vmap(jax.vmap(jax.grad(control.log_density)))
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
