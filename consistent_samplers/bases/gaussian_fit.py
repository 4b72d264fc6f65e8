"""How a Gaussian base is fitted: Laplace starts, then the best of reparametrised reverse KL."""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from consistent_samplers.bases import iterating, laplace
from consistent_samplers.bases.gaussian import GaussianBase
from consistent_samplers.bases.iterating import MAX_DENSE_DIM, Evaluated, affordable
from consistent_samplers.kernels import kernel
from consistent_samplers.progress import counted
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_NUM_JUDGE_DRAWS = 1_024
_NUM_CHOICE_DRAWS = 128  # of them, for each of many candidates
_GOOD_ENOUGH = 0.97  # share of effective draws at which a Laplace approximation is as good as a fit
_RIDGES = (0.0, 0.1, 10.0)
_MIN_ITERATIONS = 200
_WORTH_A_ROUND = 0.1  # nats that the second half of Adam's iterations gains where it goes on
_MAX_ROUNDS = 4
_NUM_ASCENT_STEPS, _NUM_ASCENT_DRAWS = 16, 8  # of the natural gradient; draws of each step
# Parameters, the optimiser's state, and the standard normal draws that the points are made of.
_Adam: TypeAlias = tuple[Any, Any, Array]

_noise = kernel(static=("shape",), effort="least")(iterating.antithetic)


def fit_gaussian(
    rng_key: PRNGKey,
    target: Target,
    *,
    init_position: Array | None = None,
    num_starts: int = 8,
    num_iterations: int = 500,
    batch_size: int = 128,
    learning_rate: float = 0.05,
) -> GaussianBase:
    """A Gaussian with full covariance, fitted by reparametrised reverse KL.

    The Laplace approximation at the best mode that L-BFGS finds is returned if 97 % of its draws
    are effective. Otherwise the start is the best of many along the L-BFGS paths, as in Pathfinder
    (Zhang et al., 2022). Adam maximises the ELBO in the coordinates of that start by the path
    gradient (Roeder et al., 2017), and goes on from its end, three times at most, while the second
    half of its iterations gains more than 0.1 nats. The better of start and result is returned.
    Above 200 dimensions natural-gradient steps on averaged Hessians take Adam's place (Opper &
    Archambeau, 2009; Khan & Rue, 2023): its gradients would be mostly noise. A density whose
    iterations would take more than 40 Gflop gets fewer, 200 at least, and fewer starts.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points to start from besides the random ones.
      num_starts: number of starts in all; those not given are the origin and random points.
      num_iterations: Adam iterations of each round.
      batch_size: draws of each iteration (antithetic pairs).
      learning_rate: Adam's, in units of the start's standard deviations.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start; or ``init_position`` has
        another dimension.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -((x[0] - 2.0) ** 2) / 18.0, dim=1)
      >>> base = cs.bases.fit_gaussian(jax.random.key(0), target, num_starts=2, num_iterations=50)
      >>> base.loc.round(1).tolist(), base.scale_tril.round(1).tolist()
      ([2.0], [[3.0]])
    """
    dim, large = target.dim, target.dim > MAX_DENSE_DIM
    key_start, key_choose, key_adam, key_judge, _ = iterating.split(rng_key)
    starts, values = _start_points(key_start, target, init_position, num_starts)
    evaluation.compile_ahead(target.log_density, dim)
    dtype = starts.dtype
    ends, ways = laplace.paths(target, starts)
    if large:
        ends = ends[:1]
    noise = iterating.normals(key_choose, _NUM_JUDGE_DRAWS, dim).astype(np.float64)
    at_ends = laplace.laplace(target, ends, dtype, ridges=(0.0,))
    elbo, ess = _scores(target, at_ends, noise, dtype)
    best = np.argmax(elbo)
    if np.isfinite(elbo[best]) and ess[best] > _GOOD_ENOUGH:
        return _as_base(at_ends, best, dtype)

    most = affordable(target) / batch_size
    points = ends if large or most < num_iterations else np.concatenate([ends, ways])
    candidates = laplace.laplace(target, points, dtype, ridges=_RIDGES)
    elbo, _ = _scores(target, candidates, noise[:_NUM_CHOICE_DRAWS], dtype)
    if not np.isfinite(elbo.max()):
        # No candidate lies where the density is positive: shrink around the best start.
        candidates = laplace.Gaussians(starts[[np.argmax(values)]], 0.01 * np.eye(dim)[None])
    start = _as_base(candidates, np.argmax(elbo), dtype)
    if large:
        fitted = _natural_ascent(key_adam, target, start)
    else:
        num_iterations = min(num_iterations, max(int(most), _MIN_ITERATIONS))
        rates = iterating.cosine(learning_rate, num_iterations)
        fitted = _maximise_elbo(key_adam, target, start, rates, batch_size, noise)
    noise = iterating.normals(key_judge, _NUM_JUDGE_DRAWS, dim).astype(np.float64)
    start_elbo, fitted_elbo = (_elbo(target, base, noise) for base in (start, fitted))
    return fitted if np.isfinite(fitted_elbo) and fitted_elbo >= start_elbo else start


def _start_points(
    rng_key: PRNGKey, target: Target, init_position: Array | None, num_starts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The user's points, then the origin and random ones: ``[n, dim]``; their log densities."""
    given = np.zeros((0, target.dim)) if init_position is None else np.asarray(init_position)
    given = np.atleast_2d(given)
    if given.ndim != 2 or given.shape[1] != target.dim:
        raise ValueError(
            f"init_position must have shape [{target.dim}] or [n, {target.dim}], got {given.shape}."
        )
    # The origin and one random point stay, however many points are given.
    num_random = max(num_starts - len(given) - 1, 1)
    random = iterating.normals(rng_key, num_random, target.dim)
    scales = np.geomspace(0.1, 3.0, num_random)[::-1, None]
    points = np.concatenate([given, np.zeros((1, target.dim)), scales * random])
    points = points.astype(random.dtype)
    return points, laplace.check_starts(target, points, laplace.usable_everywhere)


def _as_base(gaussians: laplace.Gaussians, index: np.intp, dtype: Any) -> GaussianBase:
    return GaussianBase(*(jnp.asarray(part[index], dtype) for part in gaussians))


def _scores(
    target: Target, gaussians: laplace.Gaussians, noise: np.ndarray, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """ELBO, or -inf, and share of effective draws of each Gaussian ``[n]``, on common draws."""
    dim = target.dim
    points = gaussians.loc[:, None] + noise @ gaussians.scale_tril.swapaxes(1, 2)
    at_points = evaluation.values(target.log_density, points.reshape(-1, dim).astype(dtype))
    values = np.asarray(at_points, np.float64).reshape(points.shape[:2])
    diagonals = np.abs(np.diagonal(gaussians.scale_tril, axis1=1, axis2=2)).astype(np.float64)
    log_det = np.log(diagonals).sum(1)
    # The entropy in closed form.
    elbo = values.mean(1) + log_det + 0.5 * dim * (1.0 + math.log(2.0 * math.pi))
    log_weight = np.where(np.isfinite(values), values, -np.inf) + 0.5 * (noise**2).sum(1)
    highest = log_weight.max(1, keepdims=True)
    weight = np.exp(log_weight - np.where(np.isfinite(highest), highest, 0.0))
    ess = weight.sum(1) ** 2 / np.maximum((weight**2).sum(1), 1e-300) / len(noise)
    return np.where(np.isfinite(elbo), elbo, -np.inf), ess


def _elbo(target: Target, base: GaussianBase, noise: np.ndarray) -> float:
    gaussians = laplace.Gaussians(np.asarray(base.loc)[None], np.asarray(base.scale_tril)[None])
    return float(_scores(target, gaussians, noise, gaussians.loc.dtype)[0][0])


def _maximise_elbo(
    rng_key: PRNGKey,
    target: Target,
    start: GaussianBase,
    rates: np.ndarray,
    batch_size: int,
    noise: np.ndarray,
) -> GaussianBase:
    """Adam over x = m + L (μ + T ε) from μ = 0, T = I, and again from its end while that pays."""
    for index in len(rates) * np.arange(_MAX_ROUNDS):
        params: Any = (np.zeros_like(start.loc), np.zeros_like(start.scale_tril))
        points, eps = _draw(rng_key, np.int32(index), start, params, num=batch_size)
        adam, half = (params, iterating.fresh(iterating.OPTIMIZER, params), eps), params
        for i, rate in enumerate(counted("a Gaussian", rates, len(rates)), 1):
            at_points = iterating.evaluated(target, points)
            adam, points = _update(rng_key, np.int32(index + i), rate, start, adam, at_points)
            if i == len(rates) // 2:
                half = adam[0]
        half, start = _moved(start, half), _moved(start, adam[0])
        if not _elbo(target, start, noise) > _elbo(target, half, noise) + _WORTH_A_ROUND:
            break
    return start


def _moved(start: GaussianBase, params: Any) -> GaussianBase:
    shift, raw = map(np.asarray, params)
    loc, scale_tril = map(np.asarray, (start.loc, start.scale_tril))
    triangle = np.tril(raw, -1) + np.diag(np.exp(np.diagonal(raw)))
    return GaussianBase(jnp.asarray(loc + scale_tril @ shift), jnp.asarray(scale_tril @ triangle))


@kernel(static=("num",), effort="least")
def _draw(
    rng_key: PRNGKey, index: Array, start: GaussianBase, params: Any, *, num: int
) -> tuple[Array, Array]:
    """The first points ``[num, dim]``, and the standard normal draws that they are made of."""
    eps = iterating.antithetic(rng_key, index, shape=(num, start.dim))
    return _points(start, params, eps), eps


def _points(start: GaussianBase, params: Any, eps: Array) -> Array:
    shift, raw = params
    z = shift + eps @ _triangle(raw).T
    return start.loc + z @ start.scale_tril.T


@kernel(effort="least")
def _update(
    rng_key: PRNGKey, index: Array, rate: Array, start: GaussianBase, adam: _Adam, at: Evaluated
) -> tuple[_Adam, Array]:
    """One step of Adam, from the density at points; the next points."""
    ((shift, raw), state, eps), (_, value, grad) = adam, at
    triangle = _triangle(raw)
    # Path gradient: ∇ log ρ less the score of the Gaussian itself, which is -T⁻ᵀ ε.
    score = -jax.scipy.linalg.solve_triangular(triangle, eps.T, trans=1, lower=True).T
    pull = grad @ start.scale_tril - score
    # A draw outside the support has no say.
    inside = jnp.isfinite(value) & jnp.isfinite(grad).all(axis=1)
    pull = jnp.where(inside[:, None], pull, 0.0)
    outer = pull.T @ eps / len(eps)
    on_diagonal = jnp.diag(jnp.diagonal(outer) * jnp.diagonal(triangle))
    fall = (-pull.mean(0), -jnp.tril(outer, -1) - on_diagonal)
    updates, state = iterating.OPTIMIZER.update(fall, state)
    params = (shift - rate * updates[0], raw - rate * updates[1])
    eps = iterating.antithetic(rng_key, index, shape=eps.shape)
    return (params, state, eps), _points(start, params, eps)


def _triangle(raw: Array) -> Array:
    return jnp.tril(raw, -1) + jnp.diag(jnp.exp(jnp.diagonal(raw)))


def _natural_ascent(rng_key: PRNGKey, target: Target, start: GaussianBase) -> GaussianBase:
    """Steps towards the optimum's own equations: Σ⁻¹ = -E ∇² log ρ and E ∇ log ρ = 0.

    Expectations are under the current Gaussian, over antithetic draws; averaging over the rounds
    takes their noise away. Factorisations on the host in float64.
    """
    dtype = start.loc.dtype
    mean, factor = (np.asarray(part, np.float64) for part in (start.loc, start.scale_tril))
    inverse = scipy.linalg.solve_triangular(factor, np.eye(target.dim), lower=True)
    precision = inverse.T @ inverse
    for i in range(_NUM_ASCENT_STEPS):
        eps = _noise(rng_key, np.int32(i), shape=(_NUM_ASCENT_DRAWS, target.dim))
        points = (mean + np.asarray(eps, np.float64) @ factor.T).astype(dtype)
        _, grads = evaluation.values_and_grads(target.log_density, points)
        gradient = np.asarray(grads, np.float64).mean(0)
        # One after the other: together they take much memory.
        hessian = sum(evaluation.hessians(target.log_density, x[None])[0] for x in points)
        hessian /= len(points)
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


def _positive_inverse(matrix: np.ndarray) -> np.ndarray | None:
    """The inverse of a positive definite matrix; None of any other."""
    try:
        root = scipy.linalg.cholesky(matrix, lower=True)
    except scipy.linalg.LinAlgError:
        return None
    return scipy.linalg.cho_solve((root, True), np.eye(len(matrix)))
