"""Simulators: stochastic paths with their weights, deterministic maps with their determinants.

Every function here is for one sample, ``x [dim]``, in the base's whitened coordinates; batches
go through ``jax.vmap``. Steps run in ``jax.lax.scan``, so compile time does not grow with them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.schedules import time_grid
from consistent_samplers.types import Array, LogDensityFn, PRNGKey

ControlFn: TypeAlias = Callable[[Array, Array, Array], Array]
"""A network with its parameters, ``(x [dim], t [], d []) -> control [dim]``."""


@dataclasses.dataclass(frozen=True)
class StructuredControl:
    """A `ControlFn` of two parts that a step of the flow takes in turn: its determinant is cheap.

    As a function it is the sum of its parts, the control of a short step.

    Attributes:
      split: ``(x [dim], t [], d [], c []) -> (u, ∂(x + c u)/∂x)``, the control that takes the
        second part where the first has led in a step x + c u.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network, t, d = cs.networks.Structured(2, rank=1), jnp.asarray(0.0), jnp.asarray(1.0)
      >>> params = network.init(jax.random.key(0), jnp.ones(2), t, d)
      >>> control = cs.simulate.StructuredControl(
      ...     lambda *args: network.apply(params, *args, method="split")
      ... )
      >>> control(jnp.ones(2), t, d).tolist()  # untrained
      [0.0, 0.0]
    """

    split: Callable[[Array, Array, Array, Array], tuple[Array, log_det.Sylvester]]

    def __call__(self, x: Array, t: Array, d: Array) -> Array:
        """The control."""
        return self.split(x, t, d, jnp.zeros(()))[0]


class PathKernels(NamedTuple):
    """The transitions of a stochastic sampler, with their parameters.

    Attributes:
      forward: ``(x [dim], t [], d []) -> F(· | x)``, the generative kernel from t to t + d.
      backward: ``(x_next [dim], t [], d []) -> B(· | x_next)``, from t + d back to t.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.PathKernels(
      ...     forward=lambda x, t, d: process.forward_kernel(x, 0.5 * x, t, d),
      ...     backward=process.backward_kernel,
      ... )
      >>> kernels.backward(jnp.ones(2), jnp.asarray(0.0), jnp.asarray(1.0)).mean.shape
      (2,)
    """

    forward: Callable[[Array, Array, Array], GaussianKernel]
    backward: Callable[[Array, Array, Array], GaussianKernel]


class StochasticPath(NamedTuple):
    """One simulated path of the generative SDE.

    Attributes:
      position: ``[num_steps + 1, dim]``, from the base to the target.
      log_ratio: ``[num_steps]``, log B(x_k | x_{k+1}) - log F(x_{k+1} | x_k).
      log_weight: ``[]``, log w of the path in nats, with E[w] = Z.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> path = cs.simulate.StochasticPath(jnp.zeros((3, 2)), jnp.zeros(2), jnp.asarray(0.0))
      >>> path.position[-1].shape, path.log_ratio.shape  # the end of two steps; one ratio a step
      ((2,), (2,))
    """

    position: Array
    log_ratio: Array
    log_weight: Array


class FlowPath(NamedTuple):
    """One point carried through the deterministic map.

    Attributes:
      position: ``[num_steps + 1, dim]``.
      log_abs_det: ``[num_steps]``, log |det| of each discrete step actually taken, in nats.
      sign: ``[num_steps]``, sign of each step's determinant; not 1 where the map folds.
      jacobian: ``[num_steps, dim, dim]``, or a ``Sylvester`` of as many.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path = cs.simulate.flow_path(lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=4)
      >>> path.position.shape, path.sign.tolist(), path.jacobian.shape
      ((5, 2), [1.0, 1.0, 1.0, 1.0], (4, 2, 2))
    """

    position: Array
    log_abs_det: Array
    sign: Array
    jacobian: log_det.Jacobian


def standard_normal_log_prob(x: Array) -> Array:
    """Log density of the whitened base: ``[dim] -> []``.

    Args:
      x: ``[dim]``, in the base's whitened coordinates.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> round(float(cs.simulate.standard_normal_log_prob(jnp.zeros(2))), 4)  # -log 2π
      -1.8379
    """
    # A quarter of the time of a sum over the log density of each coordinate.
    return -0.5 * (jnp.sum(x**2) + x.shape[-1] * math.log(2.0 * math.pi))


def noising_kernels(control: ControlFn, process: OrnsteinUhlenbeck) -> PathKernels:
    """The process's own kernels: generative with a control, backward the fixed noising.

    Args:
      control: the control.
      process: noising process.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> x, t, d = jnp.ones(2), jnp.asarray(0.5), jnp.asarray(0.5)
      >>> bool(jnp.allclose(kernels.forward(x, t, d).mean, kernels.backward(x, t, d).mean))
      True
    """
    return PathKernels(
        lambda x, t, d: process.forward_kernel(x, control(x, t, d), t, d),
        process.backward_kernel,
    )


def stochastic_path(
    rng_key: PRNGKey,
    x0: Array,
    kernels: PathKernels,
    log_density: LogDensityFn,
    num_steps: int,
    *,
    density_kernels: PathKernels | None = None,
) -> StochasticPath:
    """Simulates the generative SDE and weighs the path against its noising.

    log w = log ρ(x_K) - log p0(x_0) + Σ_k [log B(x_k | x_{k+1}) - log F(x_{k+1} | x_k)], with
    E[w] = Z for any kernels and any number of steps (Richter & Berner, 2024, in discrete time).

    Args:
      rng_key: key of the noise.
      x0: ``[dim]``, a draw of the base.
      kernels: transitions that move the path.
      log_density: whitened log ρ.
      num_steps: number of steps.
      density_kernels: transitions that weigh the path, if others than those that move it: with
        the forward one's parameters held constant, log w has the path gradient (Vaitl et al.,
        2022).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> log_density = cs.simulate.standard_normal_log_prob  # the target is the base
      >>> path = cs.simulate.stochastic_path(
      ...     jax.random.key(0), jnp.ones(2), kernels, log_density, 4
      ... )
      >>> path.position.shape
      (5, 2)
      >>> bool(jnp.abs(path.log_weight) < 1e-3)  # no control is needed, at any number of steps
      True
    """
    position, log_ratio = simulate_path(
        rng_key, x0, kernels, num_steps, density_kernels=density_kernels
    )
    return StochasticPath(position, log_ratio, path_log_weight(position, log_ratio, log_density))


def simulate_path(
    rng_key: PRNGKey,
    x0: Array,
    kernels: PathKernels,
    num_steps: int,
    *,
    density_kernels: PathKernels | None = None,
) -> tuple[Array, Array]:
    """Simulates the generative SDE: points ``[num_steps + 1, dim]``, log ratios ``[num_steps]``.

    `stochastic_path` without the density; arguments as there.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> position, log_ratio = cs.simulate.simulate_path(
      ...     jax.random.key(0), jnp.ones(2), kernels, 4
      ... )
      >>> position.shape, log_ratio.shape
      ((5, 2), (4,))
    """
    weighing = kernels if density_kernels is None else density_kernels
    d = jnp.asarray(1.0 / num_steps)

    # Recomputed in the backward pass: cheaper, on CPUs too, than to store and load what every step
    # computes. Only the noise is drawn once for both passes.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        t, noise = inputs
        moving = kernels.forward(x, t, d)
        x_next = moving.mean + moving.std * noise
        if density_kernels is None:
            # As a function of the noise it has no gradient by the path to compute.
            log_forward = jnp.sum(jax.scipy.stats.norm.logpdf(noise) - jnp.log(moving.std))
        else:
            log_forward = weighing.forward(x, t, d).log_prob(x_next)
        return x_next, (x_next, weighing.backward(x_next, t, d).log_prob(x) - log_forward)

    keys = jax.random.split(rng_key, num_steps)
    noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape, x0.dtype))(keys)
    _, (path, log_ratio) = _scan(step, x0, (time_grid(num_steps), noise))
    return jnp.concatenate([x0[None], path]), log_ratio


def backward_path(rng_key: PRNGKey, x1: Array, kernels: PathKernels, num_steps: int) -> Array:
    """Carries a point of the target back to the base by the backward kernels.

    Weighed by `path_log_ratio`, paths from exact draws of the target give the evidence upper
    bound E[log w] (Blessing et al., 2024); from any points they serve off-policy training.

    Args:
      rng_key: key of the noise.
      x1: ``[dim]``, where the path ends.
      kernels: transitions; the backward ones move the point.
      num_steps: number of steps.

    Returns:
      ``[num_steps + 1, dim]``, in generative order.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> cs.simulate.backward_path(jax.random.key(0), jnp.ones(2), kernels, num_steps=4).shape
      (5, 2)
    """
    d = jnp.asarray(1.0 / num_steps)

    def step(x_next: Array, inputs: tuple[Array, PRNGKey]) -> tuple[Array, Array]:
        t, key = inputs
        x = kernels.backward(x_next, t, d).sample(key)
        return x, x

    keys = jax.random.split(rng_key, num_steps)
    _, path = _scan(step, x1, (time_grid(num_steps), keys), reverse=True)
    return jnp.concatenate([path, x1[None]])


def path_log_ratio(
    position: Array, kernels: PathKernels, num_steps: int, first: Array | int = 0
) -> Array:
    """Log B(x_k | x_{k+1}) - log F(x_{k+1} | x_k) of given points: ``[num_points - 1]``.

    All steps at once: what has been simulated needs no recursion to be weighed, so that losses
    on given paths have no back-propagation through time.

    Args:
      position: ``[num_points, dim]``, consecutive points of a path.
      kernels: transitions.
      num_steps: number of steps of the whole path.
      first: index of the first of the points on the whole path.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> kernels = cs.simulate.noising_kernels(lambda x, t, d: jnp.zeros_like(x), process)
      >>> position = cs.simulate.backward_path(jax.random.key(0), jnp.ones(2), kernels, num_steps=4)
      >>> cs.simulate.path_log_ratio(position, kernels, num_steps=4).shape
      (4,)
    """
    d = jnp.asarray(1.0 / num_steps)
    t = (first + jnp.arange(position.shape[0] - 1)) / num_steps

    def log_ratio(x: Array, x_next: Array, t: Array) -> Array:
        backward, forward = kernels.backward(x_next, t, d), kernels.forward(x, t, d)
        return backward.log_prob(x) - forward.log_prob(x_next)

    return jax.vmap(log_ratio)(position[:-1], position[1:], t)


def path_log_weight(position: Array, log_ratio: Array, log_density: LogDensityFn) -> Array:
    """Log weight of a path from its points ``[num_steps + 1, dim]`` and log ratios: ``[]``.

    Args:
      position: ``[num_steps + 1, dim]``, from the base to the target.
      log_ratio: ``[num_steps]``, see `path_log_ratio`.
      log_density: whitened log ρ.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_density = cs.simulate.standard_normal_log_prob
      >>> position = jnp.ones((3, 2))
      >>> float(cs.simulate.path_log_weight(position, jnp.zeros(2), log_density))
      0.0
    """
    return log_density(position[-1]) - standard_normal_log_prob(position[0]) + log_ratio.sum()


def flow_step(
    control: ControlFn, process: OrnsteinUhlenbeck, x: Array, t: Array, d: Array
) -> Array:
    """One step of the probability flow: ``[dim] -> [dim]``.

    Args:
      control: the control.
      process: noising process.
      x: ``[dim]``, where the step starts.
      t: ``[]``, when it starts.
      d: ``[]``, its size.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck(cs.schedules.constant(200.0))
      >>> x, t, d = jnp.ones(2), jnp.asarray(0.0), jnp.asarray(1.0)
      >>> cs.simulate.flow_step(lambda x, t, d: x, process, x, t, d).tolist()
      [2.0, 2.0]
    """
    if isinstance(control, StructuredControl):
        return flow_step_and_jacobian(control, process, x, t, d)[0]
    return process.flow_step(x, control(x, t, d), t, d)


def flow_step_and_jacobian(
    control: ControlFn, process: OrnsteinUhlenbeck, x: Array, t: Array, d: Array
) -> tuple[Array, log_det.Jacobian]:
    """One step of the probability flow, and its Jacobian by parts where the control has one.

    Args:
      control: the control.
      process: noising process.
      x: ``[dim]``, where the step starts.
      t: ``[]``, when it starts.
      d: ``[]``, its size.

    Returns:
      Where it lands ``[dim]``, and ∂x_{t+d}/∂x_t ``[dim, dim]``.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck(cs.schedules.constant(200.0))
      >>> x, t, d = jnp.ones(2), jnp.asarray(0.0), jnp.asarray(1.0)
      >>> _, jacobian = cs.simulate.flow_step_and_jacobian(lambda x, t, d: x, process, x, t, d)
      >>> jacobian.tolist()
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

    Args:
      control: the control.
      process: noising process.
      x0: ``[dim]``, a draw of the base.
      num_steps: number of steps.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> one = cs.simulate.flow_map(lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=1)
      >>> round(float(one[0]), 2)  # 1 + (a(1) - a(0)) / 2, a(0) being 0.08
      1.46
    """
    d = jnp.asarray(1.0 / num_steps)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return flow_step(control, process, x, t, d), None

    x1, _ = _scan(step, x0, time_grid(num_steps))
    return x1


def flow_path(
    control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int
) -> FlowPath:
    """The map with the exact determinant of every discrete step.

    Jacobians are gathered over the steps and factorised together, so that a compiled
    computation holds one batched factorisation however many steps it takes.

    Args:
      control: the control.
      process: noising process.
      x0: ``[dim]``, a draw of the base.
      num_steps: number of steps.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path = cs.simulate.flow_path(lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=1)
      >>> round(float(path.log_abs_det.sum()), 2)  # 2 log 1.46: see `flow_map`
      0.76
    """
    position, jacobians = flow_jacobians(control, process, x0, num_steps)
    det = log_det.slogdet(jacobians)
    return FlowPath(position, det.log_abs_det, det.sign, jacobians)


def flow_jacobians(
    control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int
) -> tuple[Array, log_det.Jacobian]:
    """Points ``[num_steps + 1, dim]`` of the map and the Jacobian of every step.

    Args:
      control: the control.
      process: noising process.
      x0: ``[dim]``, a draw of the base.
      num_steps: number of steps.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> position, jacobians = cs.simulate.flow_jacobians(
      ...     lambda x, t, d: 0.5 * x, process, jnp.ones(2), num_steps=4
      ... )
      >>> position.shape, jacobians.shape
      ((5, 2), (4, 2, 2))
    """
    d = jnp.asarray(1.0 / num_steps)

    def step(x: Array, t: Array) -> tuple[Array, tuple[Array, log_det.Jacobian]]:
        x_next, jacobian = flow_step_and_jacobian(control, process, x, t, d)
        return x_next, (x_next, jacobian)

    _, (path, jacobians) = _scan(step, x0, time_grid(num_steps))
    return jnp.concatenate([x0[None], path]), jacobians


def flow_log_weight(path: FlowPath, log_density: LogDensityFn) -> Array:
    """Exact change of variables: log ρ(T(x0)) - log p0(x0) + log |det ∂T/∂x0|.

    Args:
      path: the point's path, from `flow_path`.
      log_density: whitened log ρ.

    Returns:
      ``[]``, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_density = cs.simulate.standard_normal_log_prob
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path = cs.simulate.flow_path(lambda x, t, d: jnp.zeros_like(x), process, jnp.ones(2), 2)
      >>> float(cs.simulate.flow_log_weight(path, log_density))  # the identity, base to base
      0.0
    """
    return (
        log_density(path.position[-1])
        - standard_normal_log_prob(path.position[0])
        + path.log_abs_det.sum()
    )


def flow_score(
    control: ControlFn, process: OrnsteinUhlenbeck, x0: Array, num_steps: int
) -> tuple[FlowPath, Array]:
    """The map, and the score ∇ log q of its own density at where it lands ``[dim]``.

    For x = T(x0), ∇ log q(x) = J⁻ᵀ ∇ [log p0 - log |det J|](x0).

    Args:
      control: the control; its parameters are taken as constant.
      process: noising process.
      x0: ``[dim]``, a draw of the base.
      num_steps: number of steps.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> _, score = cs.simulate.flow_score(lambda x, t, d: jnp.zeros(2), process, jnp.ones(2), 2)
      >>> score.tolist()  # of N(0, 1)
      [-1.0, -1.0]
    """

    def carried(x: Array) -> tuple[Array, log_det.Jacobian]:
        return flow_jacobians(control, process, x, num_steps)

    (position, jacobians), pull_back = jax.vjp(carried, x0)

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

    score, _ = _scan(forward, score, (jacobians, by_jacobian))
    return FlowPath(position, det.log_abs_det, det.sign, jacobians), score


def flow_path_gradient(
    control: ControlFn,
    process: OrnsteinUhlenbeck,
    x0: Array,
    log_density: LogDensityFn,
    num_steps: int,
) -> tuple[FlowPath, Array, Array]:
    """The map, its log weight, and the path gradient of the reverse KL at where it lands.

    With the score ∇ log q of the map's own density (`flow_score`): in expectation the
    gradient of the reverse KL by T's parameters is that of T itself, pulled by ∇ log q - ∇ log ρ:
    the direct dependence of log q on the parameters has mean zero, and only adds noise, which here
    vanishes as q approaches the target (Roeder et al., 2017; Vaitl et al., 2022). Nothing is
    differentiated through the determinant's parameters.

    Args:
      control: the control; its parameters are taken as constant.
      process: noising process.
      x0: ``[dim]``, a draw of the base.
      log_density: whitened log ρ.
      num_steps: number of steps.

    Returns:
      The path, log w ``[]``, and ∇ log q - ∇ log ρ at the path's end ``[dim]``.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_density = cs.simulate.standard_normal_log_prob
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> path, log_weight, pull = cs.simulate.flow_path_gradient(
      ...     lambda x, t, d: jnp.zeros_like(x), process, jnp.ones(2), log_density, 2
      ... )
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
    """The OSDS paper's deterministic-flow weight, for comparison: no bound of any kind.

    Adds up d · tr ∂(drift)/∂x, from one Rademacher probe a step and with the target gradient
    inside the control frozen, where the discrete map's log-determinant belongs.

    Args:
      rng_key: key of the probes.
      x0: ``[dim]``, a draw of the base.
      control: moves the point.
      frozen_control: the same control with its target gradient held constant.
      process: noising process.
      log_density: whitened log ρ.
      num_steps: number of steps.

    Returns:
      x1 ``[dim]`` and the log weight ``[]``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_density = cs.simulate.standard_normal_log_prob
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> def control(x, t, d):
      ...     return 0.1 * x
      >>> x1, log_weight = cs.simulate.heuristic_flow_log_weight(
      ...     jax.random.key(0), jnp.ones(2), control, control, process, log_density, 4
      ... )
      >>> x1.shape, log_weight.shape
      ((2,), ())
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
    """Where the map lands ``[dim]`` and the sum ``[]`` of the OSDS paper's traces.

    `heuristic_flow_log_weight` without the density; arguments as there.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> def control(x, t, d):
      ...     return 0.1 * x
      >>> x1, log_volume = cs.simulate.heuristic_log_volume(
      ...     jax.random.key(0), jnp.ones(2), control, control, process, 4
      ... )
      >>> x1.shape, log_volume.shape
      ((2,), ())
    """
    d = jnp.asarray(1.0 / num_steps)

    def step(
        carry: tuple[Array, Array], inputs: tuple[Array, PRNGKey]
    ) -> tuple[tuple[Array, Array], Any]:
        x, log_volume = carry
        t, key = inputs
        probe = jax.random.rademacher(key, x.shape, x.dtype)
        divergence = log_det.hutchinson_trace(lambda y: frozen_control(y, t, d), x, probe)
        log_volume = log_volume + process.flow_divergence(divergence, t, d)
        return (flow_step(control, process, x, t, d), log_volume), None

    keys = jax.random.split(rng_key, num_steps)
    carry = (x0, jnp.zeros((), x0.dtype))
    (x1, log_volume), _ = _scan(step, carry, (time_grid(num_steps), keys))
    return x1, log_volume


def invert_step(
    control: ControlFn,
    process: OrnsteinUhlenbeck,
    y: Array,
    t: Array,
    d: Array,
    *,
    num_iterations: int = 10,
) -> Array:
    """Inverts one step of the probability flow by Newton's method started at its end.

    It knows nothing of the point that y came from: where the map folds, it tends to find
    another preimage, or none. The distance to the true start is therefore evidence on injectivity.

    Args:
      control: the control.
      process: noising process.
      y: ``[dim]``, where the step ends.
      t: ``[]``, where it starts in time.
      d: ``[]``, its size.
      num_iterations: most Newton iterations; fewer where y is met to rounding before.

    Returns:
      A point ``[dim]`` that the step takes to y, if the iteration converged.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> def control(x, t, d):
      ...     return jnp.sin(x)
      >>> x, t, d = jnp.ones(2), jnp.asarray(0.0), jnp.asarray(1.0)
      >>> y = cs.simulate.flow_step(control, process, x, t, d)
      >>> cs.simulate.invert_step(control, process, y, t, d).round(3).tolist()
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
    """Inverts the discrete map step by step, last first: ``[dim] -> [dim]``; see `invert_step`.

    Args:
      control: the control.
      process: noising process.
      x1: ``[dim]``, where the map ends.
      num_steps: number of steps.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> x1 = cs.simulate.flow_map(lambda x, t, d: jnp.sin(x), process, jnp.ones(2), num_steps=2)
      >>> x0 = cs.simulate.invert_flow(lambda x, t, d: jnp.sin(x), process, x1, num_steps=2)
      >>> x0.round(3).tolist()
      [1.0, 1.0]
    """
    d = jnp.asarray(1.0 / num_steps)

    def undo(y: Array, t: Array) -> tuple[Array, None]:
        return invert_step(control, process, y, t, d), None

    x0, _ = _scan(undo, x1, time_grid(num_steps), reverse=True)
    return x0


def _scan(
    step: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """``jax.lax.scan``; a single step without the loop, which is less to lower and to compile."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(step, start, inputs, reverse=reverse)
    end, out = step(start, jax.tree.map(lambda x: x[0], inputs))
    return end, jax.tree.map(lambda y: y[None], out)
