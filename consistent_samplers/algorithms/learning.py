"""One iteration of training: an objective, its gradient, and an update.

With the density *outside*, the loss is run up to its call of the density to learn the points
(`ask`), the density is evaluated at them by programs of its own, and the loss is run again with the
answer (`learn`), whose derivative by the points is the gradient found there. So nothing of ours is
compiled with anybody's density. With the density *inside* the loss runs once: as part of a larger
computation that is traced, and for guided controls, whose every step asks for it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from consistent_samplers.algorithms.protocol import Adam, Loss, Now, Objective, SamplerState
from consistent_samplers.kernels import kernel
from consistent_samplers.maps import Control
from consistent_samplers.targets import evaluation
from consistent_samplers.types import Array, Params, PRNGKey


@kernel(effort="least")
def init_params(control: Control, rng_key: PRNGKey) -> Params:
    """Fresh parameters of a control."""
    return control.init(jax.random.split(rng_key)[0])


@kernel(static=("objective", "optimizer"), effort="least")
def init_state(
    control: Control, params: Params, *, objective: Objective, optimizer: Any
) -> SamplerState:
    """The state of parameters that training starts from."""
    iteration, memory = jnp.zeros((), jnp.int32), objective.init_memory(control, params)
    opt_state = _transformation(optimizer).init(params)
    return SamplerState(params, params, opt_state, iteration, memory, jnp.ones(()))


class _AskedError(Exception):
    """Carries the points out of an objective that asks for their densities."""


@kernel(static=("objective", "fold"), effort="least")
def ask(now: Now, *, objective: Objective, fold: bool) -> Array | None:
    """The points ``[n, dim]`` whose densities an iteration asks for; None for none.

    Its key is ``now.rng_key``, with the number of the iteration folded in for ``fold``.
    """

    def stop(points: Array) -> Array:
        raise _AskedError(points)

    try:
        objective(now.state.params, _folded(now) if fold else now, stop)
    except _AskedError as asked:
        points: Array = asked.args[0]
        return points
    return None


@kernel(static=("objective", "optimizer", "fold"), effort="least")
def learn(
    density: Partial | None,
    answer: tuple[Array, Array] | None,
    now: Now,
    *,
    objective: Objective,
    optimizer: Any,
    fold: bool,
) -> tuple[SamplerState, Any]:
    """One iteration, given the density itself or its values and gradients; the key as in `ask`."""
    state, now = now.state, _folded(now) if fold else now
    if density is not None:
        now = now._replace(gradient=jax.grad(within_support(density)))

    def evaluate(points: Array) -> Array:
        found = answer
        if density is not None:
            found = evaluation.values_and_grads(density, jax.lax.stop_gradient(points))
        assert found is not None
        return _answered(points, *found)

    def parts(params: Params) -> tuple[tuple[Array, ...], Loss]:
        loss = objective(params, now, evaluate)
        return loss.parts, loss

    values, pull_back, loss = jax.vjp(parts, state.params, has_aux=True)
    if objective.part_clip is None:
        (grads,) = pull_back(tuple(jnp.ones_like(value) for value in values))
        norm = optax.tree.norm(grads)
    else:
        limit = optax.clip_by_global_norm(getattr(objective, objective.part_clip))
        chosen = range(len(values))
        one_hot = [tuple(jnp.full_like(v, i == k) for i, v in enumerate(values)) for k in chosen]
        each = [pull_back(cotangents)[0] for cotangents in one_hot]
        norm = jnp.stack([optax.tree.norm(g) for g in each]).sum()
        clipped = [limit.update(g, optax.EmptyState())[0] for g in each]
        grads = jax.tree.map(lambda *g: sum(g[1:], g[0]), *clipped)
    new_state = _updated(_transformation(optimizer), state, grads, objective.ema_decay)
    return new_state._replace(memory=loss.memory), loss.info._replace(gradient_norm=norm)


def _folded(now: Now) -> Now:
    return now._replace(rng_key=jax.random.fold_in(now.rng_key, now.state.iteration))


@jax.custom_jvp
def _answered(points: Array, values: Array, grads: Array) -> Array:
    """Log densities ``[n]`` that were found, as a function of the points ``[n, dim]``.

    NaN counts as -inf; where the density is zero or overflows its gradient is zero.
    """
    return jnp.where(jnp.isnan(values), -jnp.inf, values)


@_answered.defjvp
def _answered_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    points, values, grads = primals
    usable = jnp.isfinite(values)[:, None] & jnp.isfinite(grads)
    slopes = jnp.sum(jnp.where(usable, grads, 0.0) * tangents[0], axis=-1)
    return _answered(points, values, grads), slopes


def within_support(density: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The log density, with derivatives of any order that are zero where it says nothing.

    That is where it or its gradient is not finite. What is masked after it was computed would still
    make every gradient NaN. XLA takes both of the evaluations here, and their gradients, for one.

    Args:
      density: log density of one point, ``[dim] -> []``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from consistent_samplers.algorithms.learning import within_support
      >>> float(jax.grad(within_support(lambda x: x**1.5))(-1.0))
      0.0
    """

    def log_density(x: Array) -> Array:
        still = jax.lax.stop_gradient(x)
        value, grad = jax.value_and_grad(lambda x: density(x))(still)
        usable = jnp.isfinite(value) & jnp.isfinite(grad).all()
        return density(jnp.where(usable, x, still))

    return log_density


def _updated(
    optimizer: optax.GradientTransformation, state: SamplerState, grads: Params, ema_decay: float
) -> SamplerState:
    """One optimiser update and the moving average; none where a gradient is not finite.

    A single path that overflows then costs one iteration, not the training.
    (`optax.apply_if_finite` would keep the average moving, and lets updates through in the end.)
    """
    finite = jnp.isfinite(optax.tree.norm(grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: state.step_scale * update, updates)
    params = optax.apply_updates(state.params, updates)
    # A young average follows closely, so that it is never stuck at its starting point.
    decay = jnp.minimum(ema_decay, (1.0 + state.iteration) / (10.0 + state.iteration))
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
    new_state = state._replace(params=params, ema_params=ema_params, opt_state=opt_state)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
    return kept._replace(iteration=state.iteration + 1)


def _transformation(optimizer: Any) -> optax.GradientTransformation:
    return optimizer.transformation() if isinstance(optimizer, Adam) else optimizer
