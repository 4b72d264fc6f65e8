"""How a Gaussian base is fitted: Laplace starts, then the best of reparametrised reverse KL.

Factorisations run on the host in float64: exact enough for any covariance that float32 can hold,
and away from XLA's LAPACK calls.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
import scipy.optimize

from consistent_samplers.bases.gaussian import GaussianBase
from consistent_samplers.compilation import jit, jit_with
from consistent_samplers.targets.base import Target, check_density, log_densities
from consistent_samplers.types import Array, LogDensityFn, PRNGKey

MAX_DENSE_DIM = 200
"""Dimension above which what costs O(dim²) parameters or many Hessians is done another way."""

_NUM_JUDGE_DRAWS = 128
OUTSIDE = 1e30
"""What `host_objective` returns where the density is zero or not a number."""


class _Candidates(NamedTuple):
    """Gaussians to choose a start from: ``loc [n, dim]``, ``scale_tril [n, dim, dim]``."""

    loc: np.ndarray
    scale_tril: np.ndarray


def fit_gaussian(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = 8,
    num_iterations: int = 1_000,
    batch_size: int = 128,
    learning_rate: float = 0.02,
) -> GaussianBase:
    """Fits location and full covariance by reparametrised reverse KL.

    The start is the best of many Laplace approximations, taken as Pathfinder does (Zhang et
    al., 2022) along the L-BFGS paths from several points, so that neither an unbounded density
    (a funnel, a hierarchical model) nor a bad starting point spoils it. Adam then maximises the
    ELBO in the coordinates of that start, with the path gradient of Roeder et al. (2017), whose
    noise vanishes where the fit is exact. The better of start and result, judged on the same
    fresh draws, is returned. Above `MAX_DENSE_DIM` dimensions, where the gradients of so many
    parameters are mostly noise, natural-gradient steps on averaged Hessians take Adam's place
    (Opper & Archambeau, 2009; Khan & Rue, 2023).

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[num_points, dim]`` points to start from besides the random
        ones.
      num_starts: number of starts in all; those not given are the origin and random points.
      num_iterations: Adam iterations.
      batch_size: draws of each iteration (antithetic pairs).
      learning_rate: Adam's, in units of the start's standard deviations.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start; or ``init_position`` has
        another dimension.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.array([2.0]), jnp.array([9.0]))
      >>> base = cs.bases.fit_gaussian(jax.random.key(0), target, num_starts=2, num_iterations=50)
      >>> base.loc.round(1).tolist(), base.scale_tril.round(1).tolist()
      ([2.0], [[3.0]])
    """
    dim = target.dim
    key_start, key_choose, key_adam, key_judge = jax.random.split(rng_key, 4)
    starts = _start_points(key_start, target, init_position, num_starts)
    large = dim > MAX_DENSE_DIM
    candidates = _laplace_candidates(target, starts, ends_only=large)

    elbo = jit_with(_elbo, target.log_density, effort="least")
    # One by one: how many there are is not known beforehand, and would compile anew each time.
    score = np.asarray([elbo(key_choose, *c) for c in zip(*candidates, strict=True)])
    best = int(np.argmax(np.where(np.isfinite(score), score, -np.inf)))
    if not np.isfinite(score[best]):
        # No candidate lies where the density is positive: shrink around the best start.
        values = np.asarray(log_densities(target, starts))
        best_start = np.asarray(starts)[np.argmax(np.where(np.isnan(values), -np.inf, values))]
        loc, scale_tril = jnp.asarray(best_start), 0.01 * jnp.eye(dim)
    else:
        loc, scale_tril = (
            jnp.asarray(candidates.loc[best]),
            jnp.asarray(candidates.scale_tril[best]),
        )

    if large:
        fitted = _natural_ascent(key_adam, target, loc, scale_tril)
    else:
        maximise_elbo = jit_with(
            _maximise_elbo,
            target.log_density,
            effort="less",
            static_argnames=("num_iterations", "batch_size", "learning_rate"),
        )
        fitted = maximise_elbo(
            key_adam,
            loc,
            scale_tril,
            num_iterations=num_iterations,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
    start_elbo = float(elbo(key_judge, loc, scale_tril))
    fitted_elbo = float(elbo(key_judge, fitted.loc, fitted.scale_tril))
    better = fitted_elbo >= start_elbo or not np.isfinite(start_elbo)
    return fitted if better and np.isfinite(fitted_elbo) else GaussianBase(loc, scale_tril)


def _start_points(
    rng_key: PRNGKey, target: Target, init_position: Array | None, num_starts: int
) -> Array:
    """The user's points, then the origin and random ones at several scales: ``[n, dim]``."""
    num_given = 0 if init_position is None else len(jnp.atleast_2d(jnp.asarray(init_position)))
    # The origin and one random point stay, however many points are given.
    num_random = max(num_starts - num_given - 1, 1)
    points = _random_points(rng_key, num_random, target.dim)
    if init_position is not None:
        given = jnp.atleast_2d(jnp.asarray(init_position, points.dtype))
        if given.ndim != 2 or given.shape[1] != target.dim:
            raise ValueError(
                f"init_position must have shape [{target.dim}] or [n, {target.dim}], "
                f"got {jnp.shape(init_position)}."
            )
        points = jnp.concatenate([given, points])
    check_density(target, points)
    return points


@jit(effort="least", static_argnames=("num", "dim"))
def _random_points(rng_key: PRNGKey, num: int, dim: int) -> Array:
    scales = jnp.geomspace(0.1, 3.0, num)[::-1, None]
    random = scales * jax.random.normal(rng_key, (num, dim))
    return jnp.concatenate([jnp.zeros((1, dim)), random])


def host_objective(
    target: Target, dtype: np.dtype
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The negative log density and its gradient, in float64, for SciPy's optimisers.

    Args:
      target: the target.
      dtype: in which the density is evaluated.
    """
    value_and_grad = jit_with(_value_and_grad, target.log_density, effort="least")

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(jnp.asarray(x, dtype))
        value, grad = -float(value), -np.asarray(grad, np.float64)
        # Outside the support the line search must turn back, not stop.
        if not np.isfinite(value) or not np.all(np.isfinite(grad)):
            return OUTSIDE, np.zeros_like(grad)
        return value, grad

    return objective


def _value_and_grad(log_density: LogDensityFn, x: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(log_density)(x)


def hessian_of(log_density: LogDensityFn, x: Array) -> Array:
    """The Hessian of a log density at one point, to be compiled with it: ``[dim, dim]``."""
    return jax.hessian(log_density)(x)


def _laplace_candidates(target: Target, starts: Array, *, ends_only: bool = False) -> _Candidates:
    """Laplace approximations along the L-BFGS path from each start, or at the best end only.

    Factorisations run on the host in float64: exact enough for any covariance that float32
    can hold, and away from XLA's LAPACK calls.
    """
    hessian = jit_with(hessian_of, target.log_density, effort="least")
    dtype = starts.dtype

    objective = host_objective(target, dtype)
    # A few points a path: the end is the mode where there is one, the early ones are what is
    # left where there is none.
    points: list[np.ndarray] = []
    for start in np.asarray(starts, np.float64):
        path = [start]
        scipy.optimize.minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=lambda x, path=path: path.append(x.copy()),
            options={"maxiter": 200, "maxcor": 20},
        )
        keep = np.unique(np.geomspace(1, len(path), num=5).astype(int)) - 1
        points += [path[-1]] if ends_only else [path[i] for i in keep]
    if ends_only:
        points = [min(points, key=lambda x: objective(x)[0])]
    locs = np.stack(points)
    precisions = [-np.asarray(hessian(jnp.asarray(x, dtype)), np.float64) for x in locs]

    loc_list, tril_list = [], []
    for loc, precision in zip(locs, precisions, strict=True):
        if not np.all(np.isfinite(precision)):
            continue
        eigenvalues, vectors = np.linalg.eigh(0.5 * (precision + precision.T))
        curvature = np.abs(eigenvalues)
        # Flat and saddle directions get a prior-like ridge; several, since none fits all. The
        # floor keeps a singular Hessian from giving an infinite covariance.
        for ridge in (0.0, 0.1, 10.0):
            total = np.maximum(curvature + ridge, 1e-6 * max(float(curvature.max()), 1e-6))
            covariance = (vectors / total) @ vectors.T
            tril_list.append(scipy.linalg.cholesky(covariance, lower=True))
            loc_list.append(loc)
    if not loc_list:
        loc_list, tril_list = [locs[0]], [np.eye(target.dim)]
    return _Candidates(np.stack(loc_list).astype(dtype), np.stack(tril_list).astype(dtype))


def _natural_ascent(
    rng_key: PRNGKey,
    target: Target,
    loc: Array,
    scale_tril: Array,
    *,
    num_rounds: int = 16,
    num_draws: int = 8,
) -> GaussianBase:
    """Steps towards the optimum's own equations: Σ⁻¹ = -E ∇² log ρ and E ∇ log ρ = 0.

    Expectations are under the current Gaussian, over antithetic draws; averaging over the rounds
    takes their noise away. Factorisations on the host in float64.
    """
    dim, dtype = target.dim, scale_tril.dtype
    expectations = jit_with(
        _expectations, target.log_density, effort="least", static_argnames="num_draws"
    )
    mean = np.asarray(loc, np.float64)
    factor = np.asarray(scale_tril, np.float64)
    inverse = scipy.linalg.solve_triangular(factor, np.eye(dim), lower=True)
    precision = inverse.T @ inverse
    for i in range(num_rounds):
        gradient, hessian = (
            np.asarray(a, np.float64)
            for a in expectations(
                jax.random.fold_in(rng_key, i),
                jnp.asarray(mean, dtype),
                jnp.asarray(factor, dtype),
                num_draws=num_draws,
            )
        )
        if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            break
        share = 2.0 / (2.0 + i)
        proposed = (1.0 - share) * precision - 0.5 * share * (hessian + hessian.T)
        covariance = _positive_inverse(proposed)
        if covariance is None:
            # A draw where the density is not log-concave weighed too much: others will come.
            continue
        precision, factor = proposed, scipy.linalg.cholesky(covariance, lower=True)
        mean = mean + share * covariance @ gradient
    return GaussianBase(jnp.asarray(mean, dtype), jnp.asarray(factor, dtype))


def _expectations(
    log_density: LogDensityFn, rng_key: PRNGKey, loc: Array, scale_tril: Array, num_draws: int
) -> tuple[Array, Array]:
    """Means of the gradient ``[dim]`` and the Hessian ``[dim, dim]`` over antithetic draws."""
    dim = loc.shape[0]
    half = jax.random.normal(rng_key, (num_draws // 2, dim))
    points = loc + jnp.concatenate([half, -half]) @ scale_tril.T
    gradient = jax.vmap(jax.grad(log_density))(points).mean(0)
    hessian = jax.hessian(log_density)
    total, _ = jax.lax.scan(
        lambda total, x: (total + hessian(x), None), jnp.zeros((dim, dim)), points
    )
    return gradient, total / num_draws


def _positive_inverse(matrix: np.ndarray) -> np.ndarray | None:
    """The inverse of a positive definite matrix; None of any other."""
    try:
        root = scipy.linalg.cholesky(matrix, lower=True)
    except scipy.linalg.LinAlgError:
        return None
    return scipy.linalg.cho_solve((root, True), np.eye(len(matrix)))


def _elbo(log_density: LogDensityFn, rng_key: PRNGKey, loc: Array, scale_tril: Array) -> Array:
    """ELBO of N(loc, L Lᵀ), its entropy in closed form: ``[]``."""
    dim = loc.shape[-1]
    eps = jax.random.normal(rng_key, (_NUM_JUDGE_DRAWS, dim))
    entropy = 0.5 * dim * (1.0 + math.log(2.0 * math.pi)) + jnp.sum(
        jnp.log(jnp.abs(jnp.diagonal(scale_tril)))
    )
    return jnp.mean(jax.vmap(log_density)(loc + eps @ scale_tril.T)) + entropy


def _maximise_elbo(
    log_density: LogDensityFn,
    rng_key: PRNGKey,
    loc: Array,
    scale_tril: Array,
    num_iterations: int,
    batch_size: int,
    learning_rate: float,
) -> GaussianBase:
    """Adam on the ELBO over x = loc + L (μ + T ε), starting at μ = 0, T = I."""
    dim = loc.shape[0]
    below = jnp.tril(jnp.ones((dim, dim)), -1)

    def triangle(raw: Array) -> Array:
        return below * raw + jnp.diag(jnp.exp(jnp.diagonal(raw)))

    def negative_elbo(params: tuple[Array, Array], eps: Array) -> Array:
        shift, raw = params
        z = shift + eps @ triangle(raw).T
        # Path gradient: the density of q is scored with its parameters frozen.
        frozen_raw = jax.lax.stop_gradient(raw)
        white = (
            jax.lax.stop_gradient(eps)
            + jax.scipy.linalg.solve_triangular(
                triangle(frozen_raw), (z - jax.lax.stop_gradient(z)).T, lower=True
            ).T
        )
        log_q = -0.5 * jnp.sum(white**2, axis=-1) - jnp.sum(jnp.diagonal(frozen_raw))
        log_p = jax.vmap(log_density)(loc + z @ scale_tril.T)
        return jnp.mean(log_q - log_p)

    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adam(optax.cosine_decay_schedule(learning_rate, num_iterations)),
    )

    def step(carry: tuple[Any, Any], key: PRNGKey) -> tuple[tuple[Any, Any], None]:
        params, opt_state = carry
        half = jax.random.normal(key, (batch_size // 2, dim))
        grads = jax.grad(negative_elbo)(params, jnp.concatenate([half, -half]))
        # A draw outside the support has no gradient to give.
        finite = jnp.all(jnp.isfinite(grads[0])) & jnp.all(jnp.isfinite(grads[1]))
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = (jnp.zeros(dim), jnp.zeros((dim, dim)))
    carry = (params, optimizer.init(params))
    ((shift, raw), _), _ = jax.lax.scan(step, carry, jax.random.split(rng_key, num_iterations))
    return GaussianBase(loc + scale_tril @ shift, scale_tril @ triangle(raw))
