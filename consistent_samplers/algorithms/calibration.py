"""Calibration: the K-step map trained on its exact likelihood, as a stage after distillation.

Consistency training brings a large step near the flow of the small ones; its ELBO is then what
the accumulated error leaves. Calibration minimises the reverse KL of the discrete map itself,

    E_{x0 ~ p0} [ log p0(x0) - log |det ∂T/∂x0| - log ρ(T(x0)) ],

with the determinant of the step actually taken. A penalty keeps the symmetric part of every
step's Jacobian positive definite on a ball wider than the base: a map with that property is
injective, which is what its change of variables needs to be a bound.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import losses, simulate
from consistent_samplers.algorithms.base import (
    Algorithm,
    SamplerState,
    apply_gradients,
    init_and_restart,
)
from consistent_samplers.bases import Component
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.types import Array, Params, PRNGKey


class CalibrationInfo(NamedTuple):
    """What one calibration iteration reports, all ``[]``.

    Attributes:
      loss: what was minimised.
      elbo: exact ELBO of this batch through the map.
      monotonicity_penalty: mean squared shortfall of the smallest eigenvalue.
      folded: share of the batch with a determinant that is not positive.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    monotonicity_penalty: Array
    folded: Array
    gradient_norm: Array


def calibration(
    algorithm: Algorithm,
    *,
    num_steps: int = 1,
    batch_size: int = 128,
    learning_rate: float | optax.Schedule = 3e-3,
    monotonicity_weight: float = 1_000.0,
    monotonicity_margin: float = 0.05,
    wide_scale: float = 1.3,
    ema_decay: float = 0.99,
    gradient_clip: float = 1.0,
) -> Algorithm:
    """Turns a trained algorithm into one that calibrates its ``num_steps``-step map.

    The result follows the same protocol; start it from the trained state with
    ``calibrated.restart(state)``.

    Args:
      algorithm: any algorithm with a deterministic map.
      num_steps: K, the number of steps of the map to calibrate.
      batch_size: base draws of one iteration.
      learning_rate: Adam's.
      monotonicity_weight: weight of the injectivity penalty. Each fold adds up to log 2 nats to
        what the reverse KL sees, so that a light penalty is bought off.
      monotonicity_margin: smallest eigenvalue asked of the Jacobian's symmetric part.
      wide_scale: the penalty is also taken at base draws stretched by this factor, since folds
        start in the tails, where a batch has few draws.
      ema_decay: of the parameters that sample.
      gradient_clip: on the global norm.

    Raises:
      ValueError: ``num_steps`` is not one the algorithm was trained for.
    """
    check_num_steps(num_steps, algorithm.control.max_flow_steps)
    control, dim = algorithm.control, algorithm.base.dim
    optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optax.adam(learning_rate))

    init, restart = init_and_restart(control.init, optimizer)

    def evaluate(
        params: Params, x0: Array, probe: Array, component: Component
    ) -> tuple[Array, Array, Array]:
        """Log weight, shortfall and whether a step folds, of one base draw."""
        here = control.at(component)
        path = simulate.flow_path(here.bind(params), here.process, x0, num_steps)
        shortfall = jax.vmap(
            lambda jacobian: losses.monotonicity_shortfall(jacobian, probe, monotonicity_margin)
        )(path.jacobian)
        log_weight = simulate.flow_log_weight(path, here.log_density)
        return log_weight, shortfall.sum(), jnp.any(path.sign <= 0)

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, CalibrationInfo]:
        key_base, key_probe = jax.random.split(rng_key)
        x0 = jax.random.normal(key_base, (batch_size, dim))
        probe = jax.random.normal(key_probe, (batch_size, dim))
        component = control.draw_components(jax.random.fold_in(key_base, 1), batch_size)
        wide = wide_scale * x0[: batch_size // 4]

        def with_wide(values: Array) -> Array:
            return jnp.concatenate([values, values[: len(wide)]])

        def objective(params: Params) -> tuple[Array, tuple[Array, Array, Array]]:
            # One call for both sets of points, and so one batched factorisation.
            log_weight, shortfall, folded = jax.vmap(lambda *args: evaluate(params, *args))(
                jnp.concatenate([x0, wide]), with_wide(probe), jax.tree.map(with_wide, component)
            )
            elbo = log_weight[:batch_size].mean()
            penalty = shortfall.mean()
            loss = losses.reverse_kl(losses.tame(log_weight[:batch_size])).mean()
            return loss + monotonicity_weight * penalty, (elbo, penalty, folded[:batch_size])

        (loss, (elbo, penalty, folded)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        info = CalibrationInfo(loss, elbo, penalty, folded.mean(), optax.tree.norm(grads))
        return apply_gradients(optimizer, state, grads, ema_decay), info

    return dataclasses.replace(
        algorithm, name=f"{algorithm.name}.calibration", init=init, step=step, restart=restart
    )
