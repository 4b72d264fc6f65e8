"""Solvers of a trained control's flow and SDE on any time grid, each with exact weights.

The flow is dx = u da with the signal a(t). In terms of the predicted end point D = a x + (1 - a²) u
and λ = log a/σ, σ² = 1 - a², it is what the solvers of the literature integrate. ``times`` is a
grid ``[K + 1]`` from 0 to 1; a solver takes K network evaluations, a restart more. The last step
leads to σ = 0, where λ is infinite: there all take the process's own step.

Each gives where it leads ``[dim]``, the log ratio ``[]`` that it adds to the weight, and whether a
determinant was not positive.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate.controls import ControlFn
from consistent_samplers.types import Array, PRNGKey

Drift: TypeAlias = Callable[[Array, Array], Array]
"""The control at the smallest step, ``(x [dim], t []) -> [dim]``."""

_MAX_LOG_RATIO = 10.0  # of signal to noise: a Brownian motion starts without any signal


class Solved(NamedTuple):
    """Where a solver leads.

    Attributes:
      position: ``[dim]``.
      log_ratio: ``[]``, log |det| of its map, or log of backward over forward densities.
      folded: ``[]`` bool, whether a determinant is zero or negative.

    Example:
      >>> from consistent_samplers.simulate.solvers import Solved
      >>> Solved._fields
      ('position', 'log_ratio', 'folded')
    """

    position: Array
    log_ratio: Array
    folded: Array


def drift(control: ControlFn, smallest: float) -> Drift:
    """The control as a function of point and time, at the step size that paths are trained at.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.simulate.solvers import drift
      >>> drift(lambda x, t, d: d * x, 0.5)(jnp.ones(2), 0.1).tolist()
      [0.5, 0.5]
    """
    return lambda x, t: control(x, jnp.asarray(t), jnp.asarray(smallest))


def flow(u: Drift, process: OrnsteinUhlenbeck, x: Array, times: Array) -> Array:
    """First order: x + (a' - a) u, exact for a control that stands still (DDIM's place)."""

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        t, t_next = at
        return process.flow_step(x, u(x, t), t, t_next - t), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def dpm_solver(u: Drift, process: OrnsteinUhlenbeck, x: Array, times: Array) -> Array:
    """DPM-Solver++(2M): second order from two predictions of the end, one evaluation a step.

    x' = (σ'/σ) x - a' (e^{-h} - 1) [(1 + 1/2r) D_k - 1/2r D_{k-1}] with h = λ' - λ and
    r = h_{k-1} / h_k (Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, algorithm 2).
    """

    def step(carry: tuple[Array, Array], at: _Step) -> tuple[tuple[Array, Array], None]:
        x, before = carry
        end = _predicted(u, process, x, at.t)
        share = jnp.where(at.h_before > 0.0, 0.5 * at.h / jnp.maximum(at.h_before, 1e-12), 0.0)
        mixed = (1.0 + share) * end - share * before
        return (at.sigma_ratio * x - at.a_next * jnp.expm1(-at.h) * mixed, end), None

    (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), _steps(process, times))
    return flow(u, process, x, times[-2:])


def map_solver(
    solver: Callable[..., Array],
) -> Callable[..., Solved]:
    """A deterministic solver with the exact determinant of all its steps together."""

    def solve(
        rng_key: PRNGKey, u: Drift, process: OrnsteinUhlenbeck, x: Array, times: Array
    ) -> Solved:
        # Steps of a multistep solver depend on those before: one Jacobian, that of the whole.
        end, jacobian = log_det.value_and_jacobian(lambda y: solver(u, process, y, times), x)
        det = log_det.slogdet(jacobian)
        return Solved(end, det.log_abs_det, det.sign <= 0)

    return solve


def path(rng_key: PRNGKey, u: Drift, process: OrnsteinUhlenbeck, x: Array, times: Array) -> Solved:
    """The process's own stochastic steps, weighed against its noising."""
    keys = jax.random.split(rng_key, len(times) - 1)

    def step(x: Array, at: tuple[Array, Array, PRNGKey]) -> tuple[Array, Array]:
        t, t_next, key = at
        return _stepped(key, u(x, t), process, x, t, t_next)

    end, ratios = jax.lax.scan(step, x, (times[:-1], times[1:], keys))
    return Solved(end, ratios.sum(), jnp.zeros((), bool))


def sa_solver(
    rng_key: PRNGKey, u: Drift, process: OrnsteinUhlenbeck, x: Array, times: Array
) -> Solved:
    """SA-Solver: the stochastic Adams method of two steps, its predictor, at τ = 1.

    x' = (σ'/σ) e^{-τ² h} x + a' [(1 - e^{-ch}) D_k + (h - (1 - e^{-ch})/c) (D_k - D_{k-1})/h_{k-1}]
    + σ' √(1 - e^{-2τ² h}) ε with c = 1 + τ² (Xue et al., "SA-Solver", 2023, arXiv:2309.05019,
    equation 14). Each step is Gaussian given those before it, so that its weight against the
    noising is exact. The weights are uneven all the same, the more so the more steps: a step
    answers to the noise of the step before, and is narrower than any reversal of the noising. It is
    a method for draws; for a bound take `path`. The corrector would need another point, and is left
    out.
    """
    keys = jax.random.split(rng_key, len(times) - 1)

    def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], Array]:
        (x, before), (at, key) = carry, inputs
        end = _predicted(u, process, x, at.t)
        slope = jnp.where(at.h_before > 0.0, 1.0 / jnp.maximum(at.h_before, 1e-12), 0.0)
        of_end = -jnp.expm1(-2.0 * at.h)
        mixed = of_end * end + (at.h - 0.5 * of_end) * slope * (end - before)
        mean = at.sigma_ratio * jnp.exp(-at.h) * x + at.a_next * mixed
        std = at.sigma_next * jnp.sqrt(of_end)
        noise = jax.random.normal(key, x.shape, x.dtype)
        x_next = mean + std * noise
        log_forward = jax.scipy.stats.norm.logpdf(x_next, mean, std).sum()
        backward = process.backward_kernel(x_next, at.t, at.t_next - at.t)
        return (x_next, end), backward.log_prob(x) - log_forward

    start = (x, jnp.zeros_like(x))
    (x, _), ratios = jax.lax.scan(step, start, (_steps(process, times), keys[:-1]))
    end, last = _stepped(keys[-1], u(x, times[-2]), process, x, times[-2], times[-1])
    return Solved(end, ratios.sum() + last, jnp.zeros((), bool))


_INTERVAL, _NUM_RESTARTS = (0.6, 0.9), 2


def restart(
    rng_key: PRNGKey,
    u: Drift,
    process: OrnsteinUhlenbeck,
    x: Array,
    times: Array,
    *,
    interval: tuple[float, float] = _INTERVAL,
    num_restarts: int = _NUM_RESTARTS,
) -> Solved:
    """Restart sampling: the flow, with noise added back and the way repeated.

    From t_max of ``interval`` back to t_min by the noising, and on by the flow again, in steps as
    on the grid (Xu et al., "Restart sampling", 2023, arXiv:2306.14878, algorithm 1). A leg of the
    flow adds its determinant, a noising N(x_s; x_t) the density of the generative step back,
    F(x_t | x_s) / N(x_s | x_t): E[w] = Z for any control, but one long step is a poor reversal, and
    the weights are the more uneven the more is added back. The draws are the paper's.
    """
    (low, high), legs = interval, _legs(len(times) - 1, interval)
    up, again, rest = (
        jnp.linspace(*ends, num + 1)
        for ends, num in zip(((0.0, high), (low, high), (high, 1.0)), legs, strict=True)
    )
    solve = map_solver(flow)
    x, ratio, folded = solve(rng_key, u, process, x, up)

    def leg(carry: tuple[Array, Array, Array], key: PRNGKey) -> tuple[Any, None]:
        x, ratio, folded = carry
        noising = process.backward_kernel(x, jnp.asarray(low), jnp.asarray(high - low))
        back = noising.sample(key)
        control, t = u(back, jnp.asarray(low)), jnp.asarray(low)
        reversal = process.forward_kernel(back, control, t, jnp.asarray(high - low))
        ratio += reversal.log_prob(x) - noising.log_prob(back)
        on = solve(key, u, process, back, again)
        return (on.position, ratio + on.log_ratio, folded | on.folded), None

    keys = jax.random.split(rng_key, num_restarts)
    (x, ratio, folded), _ = jax.lax.scan(leg, (x, ratio, folded), keys)
    end = solve(rng_key, u, process, x, rest)
    return Solved(end.position, ratio + end.log_ratio, folded | end.folded)


def restart_evaluations(
    num_steps: int,
    *,
    interval: tuple[float, float] = _INTERVAL,
    num_restarts: int = _NUM_RESTARTS,
) -> int:
    """Network evaluations of a draw of `restart`: the legs, and one of each noising's reversal.

    Example:
      >>> from consistent_samplers.simulate.solvers import restart_evaluations
      >>> restart_evaluations(10)
      18
    """
    up, again, rest = _legs(num_steps, interval)
    return up + num_restarts * (again + 1) + rest


def _legs(num_steps: int, interval: tuple[float, float]) -> tuple[int, int, int]:
    """Steps to t_max, from t_min to it again, and from it to the end."""
    low, high = interval
    up, again, rest = (max(1, round(num_steps * share)) for share in (high, high - low, 1 - high))
    return up, again, rest


class _Step(NamedTuple):
    """What a step of a multistep solver knows of the grid, ``[]`` each."""

    t: Array
    t_next: Array
    h: Array  # λ' - λ
    h_before: Array  # of the step before; 0 of the first
    sigma_ratio: Array  # σ'/σ
    sigma_next: Array
    a_next: Array


def _steps(process: OrnsteinUhlenbeck, times: Array) -> _Step:
    """All steps but the last, ``[K - 1]`` each."""
    t, t_next = times[:-2], times[1:-1]
    a = jax.vmap(process.signal)(times[:-1])
    sigma = jnp.sqrt(1.0 - a**2)
    # Of no signal at all the logarithm has no derivative.
    log_a = jnp.log(jnp.maximum(a, jnp.finfo(a.dtype).tiny))
    log_ratio = jnp.maximum(log_a - jnp.log(sigma), -_MAX_LOG_RATIO)
    h = jnp.diff(log_ratio)
    before = jnp.concatenate([jnp.zeros(1), h])[: len(h)]
    return _Step(t, t_next, h, before, sigma[1:] / sigma[:-1], sigma[1:], a[1:])


def _predicted(u: Drift, process: OrnsteinUhlenbeck, x: Array, t: Array) -> Array:
    """E[x_1 | x_t] as the control has it."""
    a = process.signal(t)
    return a * x + (1.0 - a**2) * u(x, t)


def _stepped(
    rng_key: PRNGKey, control: Array, process: OrnsteinUhlenbeck, x: Array, t: Array, t_next: Array
) -> tuple[Array, Array]:
    """A stochastic step and its log ratio."""
    forward = process.forward_kernel(x, control, t, t_next - t)
    x_next = forward.sample(rng_key)
    backward = process.backward_kernel(x_next, t, t_next - t)
    return x_next, backward.log_prob(x) - forward.log_prob(x_next)
