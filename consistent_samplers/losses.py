"""Control losses and consistency losses: pure functions, one value a sample, no reduction.

The caller reduces (usually by a mean) and differentiates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import log_det
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate import ControlFn, flow_step, flow_step_and_jacobian
from consistent_samplers.types import Array

TAME_LIMIT = 10.0
"""Nats from the median beyond which a log weight counts as its logarithm in training."""


def reverse_kl(log_weight: Array) -> Array:
    """KL(sampler ‖ target) up to log Z: -log w of each reparametrised sample.

    Its mean is -ELBO (Zhang & Chen, 2022; Vargas et al., 2023; Berner et al., 2024).

    Args:
      log_weight: ``[num_samples]``, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> float(cs.losses.reverse_kl(jnp.array([-1.0, -3.0])).mean())  # minus the ELBO
      2.0
    """
    return -log_weight


def tame(log_weight: Array, limit: float = TAME_LIMIT) -> Array:
    """Log weights with residuals about their median that grow as a logarithm beyond a limit.

    For training only. A sample whose weight is off by thousands of nats, as some are early on,
    would outvote all others; where all weights are equal nothing changes, so the optimum stays.

    Args:
      log_weight: ``[num_samples]``.
      limit: nats up to which a residual stays as it is.

    Returns:
      ``[num_samples]``; the gradient treats the median as constant.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> tamed = cs.losses.tame(jnp.array([-5_000.0, -1.0, 0.0, 1.0, 2.0]))
      >>> round(float(tamed[0])), tamed[1:].tolist()
      (-72, [-1.0, 0.0, 1.0, 2.0])
    """
    centre = jax.lax.stop_gradient(jnp.median(log_weight))
    residual = (log_weight - centre) / limit
    size = jnp.maximum(jnp.abs(residual), 1.0)
    return centre + limit * jnp.clip(residual, -1.0, 1.0) * (1.0 + jnp.log(size))


def pull_weight(log_weight: Array, alpha: float = 0.0) -> Array:
    """How strongly the path gradient of an alpha-divergence pulls at each reparametrised sample.

    For any f-divergence E_q[f(p/q)] the path gradient is that of the sample's place, pulled by
    f''(w) w² (∇ log q - ∇ log p): the score terms are traded for derivatives by the same
    reparametrisation (Tucker et al., 2019; Geffner & Domke, 2021). With f'' = w^(α - 2) the factor
    is w^α: 1 for the reverse KL (α = 0), w for the forward KL (α = 1), which leaves no mode that
    the samples reach, and the chi-square distance at α = 2.

    Args:
      log_weight: ``[num_samples]``.
      alpha: which divergence.

    Returns:
      ``[num_samples]``: times `tame`'s own share for α = 0; normalised to mean one otherwise. No
      gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_weight = jnp.log(jnp.array([1.0, 3.0]))
      >>> cs.losses.pull_weight(log_weight).tolist()  # the reverse KL pulls at all alike
      [1.0, 1.0]
      >>> cs.losses.pull_weight(log_weight, alpha=1.0).round(1).tolist()
      [0.5, 1.5]
    """
    log_weight = jax.lax.stop_gradient(log_weight)
    kept = jax.grad(lambda values: tame(values).sum())(log_weight)
    if alpha == 0.0:
        return kept
    return log_weight.shape[0] * jax.nn.softmax(alpha * log_weight)


def log_variance(log_weight: Array) -> Array:
    """Log-variance divergence: squared deviation of each log w from the batch mean.

    Zero exactly when every weight is Z (Richter & Berner, 2024). For given paths, from any
    distribution of full support: differentiate through `simulate.path_log_ratio` only.

    Args:
      log_weight: ``[num_samples]``, at least two.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> cs.losses.log_variance(jnp.array([-1.0, 1.0])).tolist()
      [2.0, 2.0]
    """
    num_samples = log_weight.shape[0]
    return (log_weight - log_weight.mean()) ** 2 * (num_samples / (num_samples - 1))


def trajectory_balance(log_weight: Array, log_z: Array) -> Array:
    """Squared gap (log Z - log w)² with a learned log Z (Malkin et al., 2022, eq. 14).

    For given paths, like `log_variance`, whose batch mean it replaces by a parameter.

    Args:
      log_weight: ``[num_samples]``.
      log_z: ``[]``, a parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> cs.losses.trajectory_balance(jnp.array([0.0, 2.0]), jnp.asarray(1.0)).tolist()
      [1.0, 1.0]
    """
    return (log_z - log_weight) ** 2


def sub_trajectory_balance(log_flow: Array, log_ratio: Array, decay: float = 1.0) -> Array:
    """Squared imbalance over all pieces of a partial trajectory, ``[]``.

    For points m < n of a path, log f_n(x_n) + Σ_{m <= k < n} [log B_k - log F_k] - log f_m(x_m)
    is zero for the right flow f (the marginal density of the paths, unnormalised). Averaged over
    all m < n with weights decay^(n - m) (Madan et al., 2023; Zhang et al., 2024, Diffusion
    Generative Flow Samplers).

    Args:
      log_flow: ``[num_points]``, log f along a stretch of the path; log ρ at its end if the path
        ends there, log Z + log p0 at its start if it starts there.
      log_ratio: ``[num_points - 1]``, from `simulate.path_log_ratio`.
      decay: weight of a piece one step longer.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_flow, log_ratio = jnp.array([0.0, 1.0, 3.0]), jnp.array([-1.0, -2.0])
      >>> float(cs.losses.sub_trajectory_balance(log_flow, log_ratio))  # all in balance
      0.0
    """
    num_points = log_flow.shape[0]
    balance = log_flow + jnp.concatenate([jnp.zeros(1, log_ratio.dtype), jnp.cumsum(log_ratio)])
    length = jnp.arange(num_points)[None, :] - jnp.arange(num_points)[:, None]
    weight = jnp.where(length > 0, decay ** jnp.maximum(length, 0), 0.0)
    return jnp.sum(weight * (balance[None, :] - balance[:, None]) ** 2) / jnp.sum(weight)


class StepPair(NamedTuple):
    """One step of size d beside two of size d/2, from the same point.

    Attributes:
      student: ``[dim]``, where the big step lands.
      teacher: ``[dim]``, where the half steps land; no gradient.
      jacobians: ``[3, dim, dim]`` of the two half steps (no gradient) and the big step, a
        ``Sylvester`` where the control has one, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
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
    """Takes a big step with the student and two half steps with the teacher.

    Args:
      student: control being trained.
      teacher: control to agree with (the EMA, in OSDS).
      process: noising process.
      x: ``[dim]``, position at time t.
      t: ``[]``.
      d: ``[]``, size of the big step.
      with_jacobians: also return the Jacobians, for `volume_consistency`.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> def control(x, t, d):
      ...     return jnp.ones(2)
      >>> x, t, d = jnp.zeros(2), jnp.asarray(0.0), jnp.asarray(1.0)
      >>> pair = cs.losses.step_pair(control, control, process, x, t, d, with_jacobians=True)
      >>> pair.jacobians.shape, bool(jnp.allclose(pair.student, pair.teacher))
      ((3, 2, 2), True)
    """
    half = 0.5 * d
    stop = jax.lax.stop_gradient
    if not with_jacobians:
        middle = flow_step(teacher, process, x, t, half)
        end = flow_step(teacher, process, middle, t + half, half)
        return StepPair(flow_step(student, process, x, t, d), stop(end), None)
    landed, jac_big = flow_step_and_jacobian(student, process, x, t, d)
    middle, jac_first = flow_step_and_jacobian(teacher, process, x, t, half)
    end, jac_second = flow_step_and_jacobian(teacher, process, middle, t + half, half)
    stacked = jax.tree.map(
        lambda *parts: jnp.stack(parts), stop(jac_first), stop(jac_second), jac_big
    )
    return StepPair(landed, stop(end), stacked)


def state_consistency(pair: StepPair) -> Array:
    """Mean squared distance between student and teacher land: ``[]``.

    Args:
      pair: where the steps land, see `step_pair`.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> pair = cs.losses.StepPair(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]), None)
      >>> float(cs.losses.state_consistency(pair))
      0.5
    """
    return jnp.mean((pair.student - pair.teacher) ** 2)


def volume_consistency(log_volumes: Array) -> Array:
    """0.25 (ℓ_half1 + ℓ_half2 - ℓ_big)² of OSDS, on log-determinants or on the paper's traces.

    Args:
      log_volumes: ``[..., 3]``: of the two half steps and the big step.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> float(cs.losses.volume_consistency(jnp.array([0.5, 0.5, 2.0])))
      0.25
    """
    return 0.25 * (log_volumes[..., 0] + log_volumes[..., 1] - log_volumes[..., 2]) ** 2


def jacobian_penalty(control: ControlFn, x: Array, t: Array, d: Array, probe: Array) -> Array:
    """‖J v‖² for the control's Jacobian J and a probe v: ``[]`` (OSDS; keeps steps smooth).

    Args:
      control: the control.
      x: ``[dim]``.
      t: ``[]``.
      d: ``[]``.
      probe: ``[dim]``, standard normal.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> x, t, d, probe = jnp.zeros(2), jnp.asarray(0.0), jnp.asarray(1.0), jnp.array([1.0, 0.0])
      >>> float(cs.losses.jacobian_penalty(lambda x, t, d: 2.0 * x, x, t, d, probe))
      4.0
    """
    _, dot = jax.jvp(lambda y: control(y, t, d), (x,), (probe,))
    return jnp.sum(dot**2)


def monotonicity_shortfall(
    jacobian: log_det.Jacobian, probe: Array, margin: float, *, num_iterations: int = 30
) -> Array:
    """Squared amount by which the smallest eigenvalue of (J + Jᵀ)/2 falls short of ``margin``.

    A map whose Jacobian has a positive definite symmetric part everywhere on a convex set is
    injective there. The eigenvector comes from power iteration; its Rayleigh quotient is never
    below the smallest eigenvalue, so the shortfall is never overstated.

    Args:
      jacobian: ``[dim, dim]``.
      probe: ``[dim]``, a random start for the iteration.
      margin: smallest eigenvalue asked for.
      num_iterations: matrix-vector products.

    Returns:
      ``[]``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> probe = jax.random.normal(jax.random.key(0), (2,))
      >>> folding, safe = jnp.diag(jnp.array([1.0, -1.0])), jnp.eye(2)
      >>> round(float(cs.losses.monotonicity_shortfall(folding, probe, 0.0)), 3)
      1.0
      >>> float(cs.losses.monotonicity_shortfall(safe, probe, 0.0))
      0.0
    """
    v = least_direction(jacobian, probe, num_iterations=num_iterations)
    return shortfall(v, jacobian @ v, margin)


def least_direction(jacobian: log_det.Jacobian, probe: Array, *, num_iterations: int = 30) -> Array:
    """The direction ``[dim]`` of the smallest eigenvalue of (J + Jᵀ)/2; no gradient.

    Args:
      jacobian: see `monotonicity_shortfall`.
      probe: see there.
      num_iterations: see there.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> matrix = jnp.diag(jnp.array([1.0, 0.2]))
      >>> v = cs.losses.least_direction(matrix, jnp.ones(2))
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
    """Squared amount by which v · J v falls short of ``margin`` |v|²: ``[]``.

    Args:
      v: ``[dim]``, from `least_direction`.
      product: ``[dim]``, J v; by ``jax.jvp`` of the step its gradient costs one tangent, where
        that of J itself costs one for each dimension.
      margin: smallest eigenvalue asked for.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> v = jnp.array([0.0, 1.0])
      >>> float(cs.losses.shortfall(v, -v, 0.0))
      1.0
    """
    return jnp.maximum(margin * jnp.sum(v**2) - v @ product, 0.0) ** 2
