"""Deterministic maps with the determinants of the discrete steps taken, and their inverses."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate.controls import (
    ControlFn,
    StructuredControl,
    scan,
    scan_steps,
    standard_normal_log_prob,
)
from consistent_samplers.types import Array, LogDensityFn, PRNGKey


class FlowPath(NamedTuple):
    """One point carried through the deterministic map.

    Attributes:
      position: ``[num_steps + 1, dim]``.
      log_abs_det: ``[num_steps]``, log |det| of each discrete step actually taken, in nats.
      sign: ``[num_steps]``, sign of each step's determinant; not 1 where the map folds.
      jacobian: ``[num_steps, dim, dim]``, or a ``Sylvester`` of as many.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path = cs.simulate.flow_path(lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=4)
      >>> path.position.shape, path.sign.tolist(), path.jacobian.shape
      ((5, 2), [1.0, 1.0, 1.0, 1.0], (4, 2, 2))
    """

    position: Array
    log_abs_det: Array
    sign: Array
    jacobian: log_det.Jacobian


def flow_step(
    control: ControlFn, process: OrnsteinUhlenbeck, x: Array, t: Array, d: Array
) -> Array:
    """One step of the probability flow: ``[dim] -> [dim]``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck(cs.schedules.constant(200.0))
      >>> cs.simulate.flow_step(lambda x, t, d: x, process, jnp.ones(2), 0.0, 1.0).tolist()
      [2.0, 2.0]
    """
    if isinstance(control, StructuredControl):
        return flow_step_and_jacobian(control, process, x, t, d)[0]
    return process.flow_step(x, control(x, t, d), t, d)


def flow_step_and_jacobian(
    control: ControlFn, process: OrnsteinUhlenbeck, x: Array, t: Array, d: Array
) -> tuple[Array, log_det.Jacobian]:
    """`flow_step`, and its Jacobian ``[dim, dim]``, by parts where the control has them.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> step = cs.simulate.flow_step_and_jacobian
      >>> process = cs.processes.OrnsteinUhlenbeck(cs.schedules.constant(200.0))
      >>> step(lambda x, t, d: x, process, jnp.ones(2), 0.0, 1.0)[1].tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    if isinstance(control, StructuredControl):
        of_position, of_control = process.flow_weights(t, d)
        u, jacobian = control.split(x, t, d, of_control / of_position)
        scaled = dataclasses.replace(jacobian, diagonal=of_position * jacobian.diagonal)
        return process.flow_step(x, u, t, d), scaled
    return log_det.value_and_jacobian(lambda y: flow_step(control, process, y, t, d), x)


def flow_map(control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int) -> Array:
    """The deterministic map from base to target in ``num_steps`` steps: ``[dim] -> [dim]``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> one = cs.simulate.flow_map(lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=1)
      >>> round(float(one[0]), 2)  # 1 + (a(1) - a(0)) / 2, a(0) being 0.08
      1.46
    """

    def step(x: Array, t: Array, d: Array) -> tuple[Array, None]:
        return flow_step(control, process, x, t, d), None

    return scan_steps(step, x0, num_steps)[0]


def flow_path(
    control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int
) -> FlowPath:
    """`flow_map` with the exact determinant of every discrete step.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path = cs.simulate.flow_path(lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=1)
      >>> round(float(path.log_abs_det.sum()), 2)  # 2 log 1.46: see `flow_map`
      0.76
    """
    position, jacobians = flow_jacobians(control, process, x0, num_steps)
    # Together: a compiled computation holds one batched factorisation, however many steps it takes.
    det = log_det.slogdet(jacobians)
    return FlowPath(position, det.log_abs_det, det.sign, jacobians)


def flow_jacobians(
    control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int
) -> tuple[Array, log_det.Jacobian]:
    """Points ``[num_steps + 1, dim]`` of `flow_map` and the Jacobian of every step.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> _, jacobians = cs.simulate.flow_jacobians(lambda x, t, d: x, process, jnp.ones(2), 4)
      >>> jacobians.shape
      (4, 2, 2)
    """

    def step(x: Array, t: Array, d: Array) -> tuple[Array, tuple[Array, log_det.Jacobian]]:
        x_next, jacobian = flow_step_and_jacobian(control, process, x, t, d)
        return x_next, (x_next, jacobian)

    _, (path, jacobians) = scan_steps(step, x0, num_steps)
    return jnp.concatenate([x0[None], path]), jacobians


def flow_log_weight(path: FlowPath, log_density: LogDensityFn) -> Array:
    """Exact change of variables: log ρ(T(x0)) - log p0(x0) + log |det ∂T/∂x0| ``[]``, in nats.

    T takes x0 along the path; log ρ is the whitened ``log_density``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path = cs.simulate.flow_path(lambda x, t, d: jnp.zeros(2), process, jnp.ones(2), 2)
      >>> float(cs.simulate.flow_log_weight(path, cs.simulate.standard_normal_log_prob))
      0.0
    """
    log_base = standard_normal_log_prob(path.position[0])
    return log_density(path.position[-1]) - log_base + path.log_abs_det.sum()


def flow_score(
    control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int
) -> tuple[FlowPath, Array]:
    """`flow_path`, and the score ∇ log q of the map's own density at where it lands ``[dim]``.

    For x = T(x0), ∇ log q(x) = J⁻ᵀ ∇ [log p0 - log |det J|](x0), the parameters constant.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> _, score = cs.simulate.flow_score(lambda x, t, d: jnp.zeros(2), process, jnp.ones(2), 2)
      >>> score.tolist()  # of N(0, 1)
      [-1.0, -1.0]
    """
    (position, jacobians), pull_back = jax.vjp(
        lambda x: flow_jacobians(control, process, x, num_steps), x0
    )

    def log_abs_dets(jacobians: log_det.Jacobian) -> tuple[Array, log_det.LogDet]:
        det = log_det.slogdet(jacobians)
        return det.log_abs_det.sum(), det

    # For a full matrix this gradient is its inverse, transposed: no further factorisation.
    by_jacobian, det = jax.grad(log_abs_dets, has_aux=True)(jacobians)
    (by_x0,) = pull_back((jnp.zeros_like(position), by_jacobian))
    score = jax.grad(standard_normal_log_prob)(x0) - by_x0

    def forward(score: Array, step: tuple[Any, Any]) -> tuple[Array, None]:
        jacobian, inverse_transposed = step
        if isinstance(jacobian, log_det.Sylvester):
            return log_det.solve(jacobian.mT, score), None
        return inverse_transposed @ score, None

    score, _ = scan(forward, score, (jacobians, by_jacobian))
    return FlowPath(position, det.log_abs_det, det.sign, jacobians), score


def flow_path_gradient(
    control: ControlFn,
    process: OrnsteinUhlenbeck,
    x0: Array,
    log_density: LogDensityFn,
    num_steps: int,
) -> tuple[FlowPath, Array, Array]:
    """The path, its log weight ``[]``, and the reverse KL's path gradient at its end ``[dim]``.

    In expectation the gradient of the reverse KL by T's parameters is that of T itself, pulled by
    ∇ log q - ∇ log ρ with the score ∇ log q of `flow_score`. The direct dependence of log q on the
    parameters has mean zero and only adds noise; without it the noise vanishes as q approaches the
    target (Roeder et al., 2017; Vaitl et al., 2022).

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> process, log_rho = cs.processes.OrnsteinUhlenbeck(), cs.simulate.standard_normal_log_prob
      >>> arguments = (lambda x, t, d: 0.0 * x, process, jnp.ones(2), log_rho, 2)
      >>> path, log_weight, pull = cs.simulate.flow_path_gradient(*arguments)
      >>> float(log_weight), pull.tolist()  # exact already: nothing pulls
      (0.0, [0.0, 0.0])
    """
    path, score = flow_score(control, process, x0, num_steps)
    log_rho, gradient = jax.value_and_grad(log_density)(path.position[-1])
    log_weight = log_rho - standard_normal_log_prob(x0) + path.log_abs_det.sum()
    return path, log_weight, score - gradient


def heuristic_flow_log_weight(
    rng_key: PRNGKey,
    x0: Array,
    control: ControlFn,
    frozen_control: ControlFn,
    process: OrnsteinUhlenbeck,
    log_density: LogDensityFn,
    num_steps: int,
) -> tuple[Array, Array]:
    """Where the map lands ``[dim]`` and the OSDS paper's log weight ``[]``: no bound of any kind.

    For comparison. Adds up d · tr ∂(drift)/∂x where the discrete map's log-determinant belongs,
    from one Rademacher probe a step. ``frozen_control`` holds its target gradient constant.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> control, key = lambda x, t, d: 0.1 * x, jax.random.key(0)
      >>> process, log_density = cs.processes.OrnsteinUhlenbeck(), lambda x: -0.5 * x @ x
      >>> arguments = (key, jnp.ones(2), control, control, process, log_density, 4)
      >>> [value.shape for value in cs.simulate.heuristic_flow_log_weight(*arguments)]
      [(2,), ()]
    """
    x1, log_volume = heuristic_log_volume(rng_key, x0, control, frozen_control, process, num_steps)
    return x1, log_density(x1) - standard_normal_log_prob(x0) + log_volume


def heuristic_log_volume(
    rng_key: PRNGKey,
    x0: Array,
    control: ControlFn,
    frozen_control: ControlFn,
    process: OrnsteinUhlenbeck,
    num_steps: int,
) -> tuple[Array, Array]:
    """`heuristic_flow_log_weight` without the densities: where the map lands, sum of the traces.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> control, key = lambda x, t, d: 0.1 * x, jax.random.key(0)
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> cs.simulate.heuristic_log_volume(key, jnp.ones(2), control, control, process, 4)[0].shape
      (2,)
    """

    def step(
        carry: tuple[Array, Array], t: Array, d: Array, key: PRNGKey
    ) -> tuple[tuple[Array, Array], None]:
        x, log_volume = carry
        probe = jax.random.rademacher(key, x.shape, x.dtype)
        divergence = log_det.hutchinson_trace(lambda y: frozen_control(y, t, d), x, probe)
        log_volume = log_volume + process.flow_divergence(divergence, t, d)
        return (flow_step(control, process, x, t, d), log_volume), None

    start = (x0, jnp.zeros((), x0.dtype))
    return scan_steps(step, start, num_steps, jax.random.split(rng_key, num_steps))[0]


def invert_step(
    control: ControlFn,
    process: OrnsteinUhlenbeck,
    y: Array,
    t: Array,
    d: Array,
    *,
    num_iterations: int = 50,
) -> Array:
    """A point ``[dim]`` that a `flow_step` takes to ``y``, by Newton's method started there.

    It knows nothing of the point that y came from: where the map folds, it tends to find
    another preimage, or none. The distance to the true start is therefore evidence on injectivity.
    It takes ``num_iterations`` at most, fewer where y is met to rounding before.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> step = lambda x, t, d: jnp.sin(x), cs.processes.OrnsteinUhlenbeck()  # control, process
      >>> y = cs.simulate.flow_step(*step, jnp.ones(2), 0.0, 1.0)
      >>> cs.simulate.invert_step(*step, y, 0.0, 1.0).round(3).tolist()
      [1.0, 1.0]
    """
    damping = 2.0 ** -jnp.arange(0.0, 6.0)
    # Rounding leaves about a tenth of it.
    enough = (10.0 * jnp.finfo(y.dtype).eps) ** 2 * jnp.sum(1.0 + y**2)

    def residual(x: Array) -> Array:
        return jnp.sum((flow_step(control, process, x, t, d) - y) ** 2)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        index, _, left = carry
        # A residual that is not finite is never small enough.
        return (index < num_iterations) & ~(left <= enough)

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, x, _ = carry
        value, jacobian = flow_step_and_jacobian(control, process, x, t, d)
        move = log_det.solve(jacobian, y - value)
        move = jnp.where(jnp.isfinite(move), move, 0.0)
        # Backtracking: far from the solution a full Newton step may lead away from it.
        trials = x + damping[:, None] * move
        left = jax.vmap(residual)(trials)
        best = jnp.argmin(left)
        return index + 1, trials[best], left[best]

    _, x, _ = jax.lax.while_loop(unfinished, newton, (jnp.zeros((), int), y, residual(y)))
    return x


def invert_flow(control: ControlFn, process: OrnsteinUhlenbeck, x1: Array, num_steps: int) -> Array:
    """The point that `flow_map` takes to ``x1``, by `invert_step`, last step first: ``[dim]``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> flow = lambda x, t, d: jnp.sin(x), cs.processes.OrnsteinUhlenbeck()  # control, process
      >>> x1 = cs.simulate.flow_map(*flow, jnp.ones(2), num_steps=2)
      >>> cs.simulate.invert_flow(*flow, x1, num_steps=2).round(3).tolist()
      [1.0, 1.0]
    """

    def undo(y: Array, t: Array, d: Array) -> tuple[Array, None]:
        return invert_step(control, process, y, t, d), None

    return scan_steps(undo, x1, num_steps, reverse=True)[0]
