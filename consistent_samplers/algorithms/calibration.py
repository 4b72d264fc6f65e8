"""Calibration: the K-step map trained on its exact likelihood, as a stage after distillation.

Consistency training brings a large step near the flow of the small ones; its ELBO is then what
the accumulated error leaves. Calibration minimises the reverse KL of the discrete map itself,

    E_{x0 ~ p0} [ log p0(x0) - log |det ∂T/∂x0| - log ρ(T(x0)) ],

with the determinant of the step actually taken. Its gradient is the path gradient, whose noise
vanishes as the map's density approaches the target; where a batch folds or weighs too unevenly for
that, the gradient in full. A penalty keeps the symmetric part of every step's Jacobian positive
definite on a ball wider than the base: a map with that property is injective, which is what its
change of variables needs to be a bound.
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
from consistent_samplers.sharding import shard_batch
from consistent_samplers.types import Array, Params, PRNGKey


class CalibrationInfo(NamedTuple):
    """What one calibration iteration reports, all ``[]``.

    Attributes:
      loss: reverse KL of this batch, tamed, and the penalty (whatever ``alpha`` is).
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
    alpha: float = 0.0,
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
      alpha: divergence that is minimised: 0 the reverse KL, which ends in the tightest ELBO but may
        leave modes; 1 the importance-weighted forward KL, which covers what the draws reach; values
        between them in between (`losses.pull_weight`).
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
      ValueError: ``num_steps`` is not one the algorithm was trained for, or ``alpha`` is negative.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(1), jnp.ones(1))
      >>> algorithm = cs.osds(target, max_steps=2, hidden=(8,), guidance=None)
      >>> state = algorithm.init(jax.random.key(0))  # train it: cs.fit
      >>> step = cs.calibration(algorithm, batch_size=16)
      >>> _, info = jax.eval_shape(step.step, jax.random.key(1), step.restart(state))
      >>> info._fields
      ('loss', 'elbo', 'monotonicity_penalty', 'folded', 'gradient_norm')
    """
    check_num_steps(num_steps, algorithm.control.max_flow_steps)
    if alpha < 0.0:
        raise ValueError(f"alpha must not be negative, got {alpha}.")
    control, dim = algorithm.control, algorithm.base.dim
    optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optax.adam(learning_rate))

    init, restart = init_and_restart(control.init, optimizer)

    def path_gradient(
        params: Params, x0: Array, component: Component
    ) -> tuple[Array, Array, Array]:
        """Log weight, where to pull T(x0), and whether a step folds, of one base draw."""
        here = control.at(component)
        path, log_weight, gradient = simulate.flow_path_gradient(
            here.bind(params), here.process, x0, here.log_density, num_steps
        )
        return log_weight, gradient, jnp.any(path.sign <= 0)

    def exact_log_weight(params: Params, x0: Array, component: Component) -> Array:
        here = control.at(component)
        path = simulate.flow_path(here.bind(params), here.process, x0, num_steps)
        return simulate.flow_log_weight(path, here.log_density)

    def landing(params: Params, x0: Array, component: Component) -> Array:
        here = control.at(component)
        return simulate.flow_map(here.bind(params), here.process, x0, num_steps)

    def shortfall(params: Params, x0: Array, probe: Array, component: Component) -> Array:
        here = control.at(component)
        _, jacobians = simulate.flow_jacobians(here.bind(params), here.process, x0, num_steps)
        return jax.vmap(
            lambda jacobian: losses.monotonicity_shortfall(jacobian, probe, monotonicity_margin)
        )(jacobians).sum()

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, CalibrationInfo]:
        key_base, key_probe = jax.random.split(rng_key)
        half = jax.random.normal(key_base, ((batch_size + 1) // 2, dim))
        x0 = shard_batch(jnp.concatenate([half, -half])[:batch_size])
        component = control.draw_components(jax.random.fold_in(key_base, 1), batch_size)
        log_weight, gradient, folded = jax.vmap(path_gradient, (None, 0, 0))(
            state.params, x0, component
        )
        pull = losses.pull_weight(log_weight, alpha)[:, None] * gradient
        # None where the density is zero.
        pull = jnp.where(jnp.isfinite(pull), pull, 0.0)

        num_held = -(-batch_size // 4)
        held = shard_batch(jnp.concatenate([x0[:num_held], wide_scale * x0[:num_held]]))
        probe = jax.random.normal(key_probe, held.shape)
        held_component = jax.tree.map(
            lambda c: jnp.concatenate([c[:num_held], c[:num_held]]), component
        )

        def penalty_of(params: Params) -> Array:
            return jax.vmap(shortfall, (None, 0, 0, 0))(params, held, probe, held_component).mean()

        def along_path(params: Params) -> Array:
            landed = jax.vmap(landing, (None, 0, 0))(params, x0, component)
            return jnp.sum(pull * landed, axis=-1).mean()

        def in_full(params: Params) -> Array:
            log_weight = jax.vmap(exact_log_weight, (None, 0, 0))(params, x0, component)
            return losses.reverse_kl(losses.tame(log_weight)).mean()

        # What the path gradient leaves out has mean zero for injective maps only: where a map
        # folds, the determinant's own gradient is what holds it back. And far from the target its
        # pull is the noisier one.
        far = jnp.abs(log_weight - jnp.median(log_weight)).max() > losses.TAME_LIMIT
        grads = jax.lax.cond(
            folded.any() | far, jax.grad(in_full), jax.grad(along_path), state.params
        )
        penalty, of_penalty = jax.value_and_grad(penalty_of)(state.params)
        grads = jax.tree.map(lambda g, p: g + monotonicity_weight * p, grads, of_penalty)
        elbo = log_weight.mean()
        loss = losses.reverse_kl(losses.tame(log_weight)).mean() + monotonicity_weight * penalty
        info = CalibrationInfo(loss, elbo, penalty, folded.mean(), optax.tree.norm(grads))
        return apply_gradients(optimizer, state, grads, ema_decay), info

    return dataclasses.replace(
        algorithm, name=f"{algorithm.name}.calibration", init=init, step=step, restart=restart
    )
