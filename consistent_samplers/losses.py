"""Control losses and consistency losses: pure functions, one value a sample, no reduction.

The caller reduces (usually by a mean) and differentiates. Log weights are ``[num_samples]``, in
nats.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.checks import check_integer
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate import ControlFn, flow_step, flow_step_and_jacobian
from consistent_samplers.types import Array

TAME_LIMIT = 10.0
"""Nats from the median beyond which a log weight counts as its logarithm in training."""


def reverse_kl(log_weight: Array) -> Array:
    """KL(sampler ‖ target) up to log Z: -log w of each reparametrised sample.

    Its mean is -ELBO (Zhang & Chen, 2022; Vargas et al., 2023; Berner et al., 2024).

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> float(cs.losses.reverse_kl(jnp.array([-1.0, -3.0])).mean())  # minus the ELBO
      2.0
    """
    return -log_weight


def tame(log_weight: Array, limit: float = TAME_LIMIT) -> Array:
    """Log weights with residuals about their median that grow as a logarithm beyond ``limit`` nats.

    For training only: a sample whose weight is off by thousands of nats, as some are early on,
    would outvote all others. Where all weights are equal nothing changes, so the optimum stays. The
    gradient treats the median as constant.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.losses.tame(jnp.array([-5_000.0, -1.0, 0.0, 1.0, 2.0])).round().tolist()
      [-72.0, -1.0, 0.0, 1.0, 2.0]
    """
    centre = jax.lax.stop_gradient(jnp.median(log_weight))
    residual = (log_weight - centre) / limit
    size = jnp.maximum(jnp.abs(residual), 1.0)
    return centre + limit * jnp.clip(residual, -1.0, 1.0) * (1.0 + jnp.log(size))


def pull_weight(log_weight: Array, alpha: float = 0.0) -> Array:
    """How strongly the path gradient of an alpha-divergence pulls at each reparametrised sample.

    For any f-divergence E_q[f(p/q)] the path gradient is that of the sample's place, pulled by
    f''(w) w² (∇ log q - ∇ log p) (Tucker et al., 2019; Geffner & Domke, 2021). With
    f'' = w^(α - 2) the factor is w^α: the reverse KL has α = 0, the forward KL 1, the chi-square
    distance 2. It has no gradient. At α = 0 it is the derivative of `tame`, else it has mean one.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> log_weight = jnp.log(jnp.array([1.0, 3.0]))
      >>> cs.losses.pull_weight(log_weight, alpha=1.0).round(1).tolist()
      [0.5, 1.5]
    """
    log_weight = jax.lax.stop_gradient(log_weight)
    if alpha == 0.0:
        return jax.grad(lambda values: tame(values).sum())(log_weight)
    return log_weight.shape[0] * jax.nn.softmax(alpha * log_weight)


def log_variance(log_weight: Array) -> Array:
    """Log-variance divergence: squared deviation of each log w, of two or more, from their mean.

    Zero exactly when every weight is Z (Richter & Berner, 2024). For given paths, from any
    distribution of full support: differentiate through `simulate.path_log_ratio` only.

    Raises:
      ValueError: fewer than two log weights.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.losses.log_variance(jnp.array([-1.0, 1.0])).tolist()
      [2.0, 2.0]
    """
    num_samples = log_weight.shape[0]
    check_integer("the number of log weights that have a variance", num_samples, 2)
    return (log_weight - log_weight.mean()) ** 2 * (num_samples / (num_samples - 1))


def trajectory_balance(log_weight: Array, log_z: Array) -> Array:
    """Squared gap (log Z - log w)² with a learned log Z ``[]`` (Malkin et al., 2022, eq. 14).

    For given paths, like `log_variance`, whose batch mean it replaces by a parameter.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.losses.trajectory_balance(jnp.array([0.0, 2.0]), log_z=1.0).tolist()
      [1.0, 1.0]
    """
    return (log_z - log_weight) ** 2


def sub_trajectory_balance(log_flow: Array, log_ratio: Array, decay: float = 1.0) -> Array:
    """Squared imbalance over all pieces of a partial trajectory, ``[]``.

    For points m < n of a path, log f_n(x_n) + Σ_{m <= k < n} [log B_k - log F_k] - log f_m(x_m)
    is zero for the right flow f (the marginal density of the paths, unnormalised). Averaged over
    all m < n with weights decay^(n - m) (Madan et al., 2023; Zhang et al., 2024, Diffusion
    Generative Flow Samplers). Pieces that begin or end where a flow is not finite have no say.

    Args:
      log_flow: ``[num_points]``, log f along a stretch of the path; log ρ at its end if the path
        ends there, log Z + log p0 at its start if it starts there.
      log_ratio: ``[num_points - 1]``, from `simulate.path_log_ratio`.
      decay: weight of a piece one step longer.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> log_flow, log_ratio = jnp.array([0.0, 1.0, 3.0]), jnp.array([-1.0, -2.0])
      >>> float(cs.losses.sub_trajectory_balance(log_flow, log_ratio))  # all in balance
      0.0
    """
    num_points = log_flow.shape[0]
    balance = log_flow + jnp.concatenate([jnp.zeros(1, log_ratio.dtype), jnp.cumsum(log_ratio)])
    length = jnp.arange(num_points)[None, :] - jnp.arange(num_points)[:, None]
    gap = balance[None, :] - balance[:, None]
    piece = (length > 0) & jnp.isfinite(gap)
    # Relative to the largest: decay^128 itself may overflow.
    log_weight = jnp.where(piece, length * jnp.log(decay), -jnp.inf)
    weight = jnp.where(piece, jnp.exp(log_weight - log_weight.max()), 0.0)
    return jnp.sum(weight * jnp.where(piece, gap, 0.0) ** 2) / jnp.maximum(weight.sum(), 1.0)


class StepPair(NamedTuple):
    """One step of size d beside two of size d/2, from the same point.

    Attributes:
      student: ``[dim]``, where the big step lands.
      teacher: ``[dim]``, where the half steps land; no gradient.
      jacobians: ``[3, dim, dim]`` of the two half steps (no gradient) and the big step, a
        ``Sylvester`` where the control has one, or None.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> pair = cs.losses.StepPair(student=jnp.ones(2), teacher=jnp.zeros(2), jacobians=None)
      >>> float(cs.losses.state_consistency(pair))
      1.0
    """

    student: Array
    teacher: Array
    jacobians: log_det.Jacobian | None


def step_pair(
    student: ControlFn,
    teacher: ControlFn,
    process: OrnsteinUhlenbeck,
    x: Array,
    t: Array,
    d: Array,
    *,
    with_jacobians: bool,
) -> StepPair:
    """A step of size ``d []`` with the student's control, and two half steps with the teacher's.

    All from ``x [dim]`` at time ``t []``; the teacher of OSDS is the EMA of the student. The
    Jacobians are for `volume_consistency`.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> u, process = lambda x, t, d: jnp.ones(2), cs.processes.OrnsteinUhlenbeck()
      >>> pair = cs.losses.step_pair(u, u, process, jnp.zeros(2), 0.0, 1.0, with_jacobians=True)
      >>> pair.jacobians.shape, bool(jnp.allclose(pair.student, pair.teacher))
      ((3, 2, 2), True)
    """

    def take(
        control: ControlFn, x: Array, t: Array, d: Array
    ) -> tuple[Array, log_det.Jacobian | None]:
        if with_jacobians:
            return flow_step_and_jacobian(control, process, x, t, d)
        return flow_step(control, process, x, t, d), None

    half = 0.5 * d
    landed, of_big = take(student, x, t, d)
    middle, of_first = take(teacher, x, t, half)
    end, of_second = take(teacher, middle, t + half, half)
    end, of_first, of_second = jax.lax.stop_gradient((end, of_first, of_second))
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), of_first, of_second, of_big)
    return StepPair(landed, end, stacked)


def state_consistency(pair: StepPair) -> Array:
    """Mean squared distance between where the student and the teacher of a pair land: ``[]``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> pair = cs.losses.StepPair(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]), None)
      >>> float(cs.losses.state_consistency(pair))
      0.5
    """
    return jnp.mean((pair.student - pair.teacher) ** 2)


def volume_consistency(log_volumes: Array) -> Array:
    """0.25 (ℓ_half1 + ℓ_half2 - ℓ_big)² of OSDS, ``[..., 3] -> [...]``.

    The log volumes ℓ are log-determinants, or the paper's traces.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> float(cs.losses.volume_consistency(jnp.array([0.5, 0.5, 2.0])))
      0.25
    """
    return 0.25 * (log_volumes[..., 0] + log_volumes[..., 1] - log_volumes[..., 2]) ** 2


def jacobian_penalty(control: ControlFn, x: Array, t: Array, d: Array, probe: Array) -> Array:
    """‖J v‖² for the control's Jacobian J and a standard normal ``probe [dim]`` v: ``[]``.

    A part of the OSDS loss that keeps steps smooth.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> x, probe = jnp.zeros(2), jnp.array([1.0, 0.0])
      >>> float(cs.losses.jacobian_penalty(lambda x, t, d: 2.0 * x, x, 0.0, 1.0, probe))
      4.0
    """
    _, dot = jax.jvp(lambda y: control(y, t, d), (x,), (probe,))
    return jnp.sum(dot**2)


def monotonicity_shortfall(
    jacobian: log_det.Jacobian, probe: Array, margin: float, *, num_iterations: int = 30
) -> Array:
    """`shortfall` along `least_direction`: ``[]``, zero for a Jacobian that is positive enough.

    A map whose Jacobian has a positive definite symmetric part everywhere on a convex set is
    injective there. The eigenvector comes from power iteration of ``num_iterations`` products, from
    the random ``probe [dim]``. Its Rayleigh quotient is never below the smallest eigenvalue, so
    that the shortfall is never overstated.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> folding, safe = jnp.diag(jnp.array([1.0, -1.0])), jnp.eye(2)
      >>> [float(cs.losses.monotonicity_shortfall(j, jnp.ones(2), 0.0)) for j in (folding, safe)]
      [1.0, 0.0]
    """
    v = least_direction(jacobian, probe, num_iterations=num_iterations)
    return shortfall(v, jacobian @ v, margin)


def least_direction(jacobian: log_det.Jacobian, probe: Array, *, num_iterations: int = 30) -> Array:
    """The direction ``[dim]`` of the smallest eigenvalue of (J + Jᵀ)/2; no gradient.

    Arguments as in `monotonicity_shortfall`.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> v = cs.losses.least_direction(jnp.diag(jnp.array([1.0, 0.2])), jnp.ones(2))
      >>> abs(v).round(2).tolist()
      [0.0, 1.0]
    """
    # Steps are near the identity: iterate on what is left, shifted to be positive.
    symmetric, shift = log_det.symmetric_part(jax.lax.stop_gradient(jacobian))
    tiny = jnp.finfo(probe.dtype).tiny

    def multiply(_: int, v: Array) -> Array:
        v = (1.0 + shift) * v - symmetric(v)
        return v / (jnp.linalg.norm(v) + tiny)

    v = jax.lax.fori_loop(0, num_iterations, multiply, probe / jnp.linalg.norm(probe))
    return jax.lax.stop_gradient(v)


def shortfall(v: Array, product: Array, margin: float) -> Array:
    """Squared amount ``[]`` by which v · J v falls short of ``margin`` |v|², v a `least_direction`.

    The ``product [dim]`` is J v. By ``jax.jvp`` of the step its gradient costs one tangent, where
    that of J itself costs one for each dimension.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> float(cs.losses.shortfall(jnp.ones(1), -jnp.ones(1), margin=0.0))
      1.0
    """
    return jnp.maximum(margin * jnp.sum(v**2) - v @ product, 0.0) ** 2
