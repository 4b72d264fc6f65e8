"""How mixtures of Gaussians are fitted: starts by Laplace or EM, trained by reverse KL."""

import math
import warnings
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike

from consistent_samplers.bases import iterating
from consistent_samplers.bases.exploration import Exploration, explore
from consistent_samplers.bases.iterating import Evaluated, affordable
from consistent_samplers.bases.judging import judge
from consistent_samplers.bases.mixture import MixtureBase, mixture, stretch
from consistent_samplers.kernels import kernel
from consistent_samplers.progress import counted
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

_GOOD_ENOUGH = 0.98  # share of effective draws above which a start is not trained
# Tails that a mixture is tried with before it is trained: about 10, 4 and 2 degrees of freedom.
_TAILS = (0.1, 0.25, 0.5)
_MIN_SHARE = 1e-4  # of a component, below which importance weights would not miss it
_NUM_ITERATIONS = 400
_BATCH_SIZE = 256
_LEARNING_RATE = 0.02
_MIN_ITERATIONS = 100
# Parameters, and the optimiser's state.
_Adam: TypeAlias = tuple[Any, Any]


def fit_mixture(
    rng_key: PRNGKey,
    target: Target,
    *,
    exploration: Exploration | None = None,
    max_components: int = 64,
    num_iterations: int = _NUM_ITERATIONS,
    batch_size: int = _BATCH_SIZE,
    learning_rate: float = _LEARNING_RATE,
) -> MixtureBase:
    """A mixture of Gaussians fitted to a target of several modes, its size included.

    Two starts: Laplace approximations at the distinct optima, weighted by their evidence (mass by
    draws, from `explore`), and a mixture fitted to tempered particles by EM, its number of
    components by BIC. Weights, means and covariances of each are then trained by the
    reparametrised, stratified reverse KL with path gradients (Roeder et al., 2017), and the better
    ELBO wins. A density whose iterations would take more than 40 Gflop gets fewer, 100 at least.

    Args:
      rng_key: key.
      target: the target.
      exploration: what `explore` found; a new look if None.
      max_components: largest number of components.
      num_iterations: Adam iterations.
      batch_size: draws of each iteration, spread evenly over the components.
      learning_rate: Adam's, in units of each component's standard deviations.

    Raises:
      ValueError: the density is NaN, +inf, or zero everywhere it was tried.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> key, target = jax.random.key(0), cs.Target(lambda x: -((x[0] ** 2 - 4.0) ** 2), dim=1)
      >>> found = cs.bases.explore(key, target, num_starts=16, num_particles=0)  # wells at ±2
      >>> cs.bases.fit_mixture(key, target, exploration=found, num_iterations=20).num_components
      2
    """
    key_explore, key_optima, key_particles, key_judge, _ = iterating.split(rng_key)
    if exploration is None:
        exploration = explore(key_explore, target)
    starts = []
    loc, scale_tril, log_evidence = exploration.modes
    if len(loc):
        kept = log_evidence - log_evidence.max() > math.log(_MIN_SHARE)
        kept &= np.arange(len(kept)) < max_components
        starts.append((key_optima, (log_evidence[kept], loc[kept], scale_tril[kept])))
    if len(exploration.particles) and np.isfinite(exploration.particles).all():
        starts.append((key_particles, _by_em(exploration.particles, max_components)))
    if not starts:
        raise ValueError(
            f"No part of target {target.name!r} was found. Give init_position to cs.bases.explore: "
            "points where the density is positive."
        )
    bases = [mixture(*start) for _, start in starts]
    # The better start is trained; both are judged on the same draws, and the result as well.
    fits = [judge(key_judge, target, base) for base in bases]
    best = int(np.argmax([fit.elbo for fit in fits]))
    start, fit = bases[best], fits[best]
    if fit.ess > _GOOD_ENOUGH:
        return start
    for tail in _TAILS:
        # With the curvature at its centre that the Gaussian component has.
        factors = bases[best].scale_tril * math.sqrt(1.0 + 3.0 * tail)
        tails = jnp.full(start.num_components, tail)
        heavier = mixture(start.log_weights, start.loc, factors, tails)
        heavier_fit = judge(key_judge, target, heavier)
        if heavier_fit.elbo > fit.elbo:
            start, fit = heavier, heavier_fit
    key_train, _ = starts[best]
    trained = train_mixture(key_train, target, start, num_iterations, batch_size, learning_rate)
    return trained if judge(key_judge, target, trained).elbo > fit.elbo else start


def train_mixture(
    rng_key: PRNGKey,
    target: Target,
    start: MixtureBase,
    num_iterations: int = _NUM_ITERATIONS,
    batch_size: int = _BATCH_SIZE,
    learning_rate: float = _LEARNING_RATE,
) -> MixtureBase:
    """A mixture trained from a start; the start itself where that meets NaN or inf.

    Adam on the ELBO over x = m_k + L_k (μ_k + T_k w(ε)), starting at μ = 0, T = I. Tails are
    trained where they are heavier than a Gaussian's.
    """
    num_iterations = min(num_iterations, max(int(affordable(target) / batch_size), _MIN_ITERATIONS))
    per_component = 2 * max(1, batch_size // start.num_components // 2)
    # What `_moved` takes.
    zeros = (start.loc, start.scale_tril, start.log_weights)
    params: Any = (start.log_weights, *map(np.zeros_like, zeros))
    state = iterating.fresh(iterating.OPTIMIZER, params)
    rates = iterating.cosine(learning_rate, num_iterations)
    for i, rate in enumerate(counted("a mixture", rates, num_iterations)):
        points = _draw(rng_key, np.int32(i), start, params, per_component=per_component)
        at_points = iterating.evaluated(target, points)
        params, state = _update(rng_key, np.int32(i), rate, start, (params, state), at_points)
    if not all(np.isfinite(np.asarray(part)).all() for part in params):
        return start
    moved = _move(start, params)
    return mixture(moved.log_weights, moved.loc, moved.scale_tril, moved.tail)


@kernel(static=("per_component",), effort="least")
def _draw(
    rng_key: PRNGKey, index: Array, start: MixtureBase, params: Any, *, per_component: int
) -> Array:
    """Points ``[per_component · num_components, dim]``, as many from each component."""
    eps = iterating.antithetic(rng_key, index, shape=(per_component, *start.loc.shape))
    return _points(_moved(start, params), eps).reshape(-1, start.dim)


@kernel(effort="least")
def _update(
    rng_key: PRNGKey, index: Array, rate: Array, start: MixtureBase, adam: _Adam, at: Evaluated
) -> _Adam:
    """One step of Adam, from the density at the points of `_draw`."""
    (params, state), (points, value, grad) = adam, at
    shape = (-1, *start.loc.shape)
    eps = iterating.antithetic(rng_key, index, shape=points.reshape(shape).shape)
    # Path gradient: the density of the mixture is scored with its parameters frozen.
    log_prob, score = jax.vmap(jax.value_and_grad(_moved(start, params).log_prob))(points)
    log_ratio, pull = value - log_prob, grad - score
    # A draw outside the support pulls nowhere and counts as the worst one inside.
    inside = jnp.isfinite(log_ratio) & jnp.isfinite(pull).all(axis=1)
    worst = jnp.min(log_ratio, where=inside, initial=jnp.inf)
    log_ratio = jnp.where(inside, log_ratio, worst).reshape(shape[:2])
    pull = jnp.where(inside[:, None], pull, 0.0).reshape(shape)

    def negative_elbo(params: Any) -> Array:
        base = _moved(start, params)
        along = (_points(base, eps) * pull).sum(-1)
        # Its value is shifted, not its gradient.
        each = log_ratio + along - jax.lax.stop_gradient(along)
        return -jnp.sum(jnp.exp(base.log_weights) * each.mean(0))

    updates, state = iterating.OPTIMIZER.update(jax.grad(negative_elbo)(params), state)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), state


def _points(base: MixtureBase, eps: Array) -> Array:
    """Points ``[n, num_components, dim]`` from standard normal draws of the same shape."""
    stretched = eps if base.tail is None else stretch(eps, base.tail[:, None])
    return base.loc + jnp.einsum("kij,nkj->nki", base.scale_tril, stretched)


def _moved(start: MixtureBase, params: Any) -> MixtureBase:
    """A mixture moved in the coordinates of its own components."""
    logits, shift, raw, log_tail = params
    eye = jnp.eye(start.dim)
    factor = jnp.tril(raw, -1) + jnp.exp(jnp.diagonal(raw, axis1=1, axis2=2))[..., None] * eye
    inverse = jax.scipy.linalg.solve_triangular(
        factor, jnp.broadcast_to(eye, factor.shape), lower=True
    )
    return MixtureBase(
        jax.nn.log_softmax(logits),
        start.loc + jnp.einsum("kij,kj->ki", start.scale_tril, shift),
        jnp.einsum("kij,kjl->kil", start.scale_tril, factor),
        jnp.einsum("kij,kjl->kil", inverse, start.whitener),
        # Heavier than a Cauchy no mean of log weights need exist.
        None if start.tail is None else jnp.minimum(start.tail * jnp.exp(log_tail), 1.0),
    )


_move = kernel(effort="least")(_moved)


def fit_to_draws(draws: ArrayLike, *, max_components: int = 8) -> MixtureBase:
    """A mixture of Gaussians fitted to draws ``[n, dim]`` by EM, its size by BIC.

    Mean and covariance of the mixture are those of the draws.

    Args:
      draws: of equal weight.
      max_components: largest number of components.

    Raises:
      ValueError: fewer than two draws, or some that are not finite.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> draws = 3.0 + jax.random.normal(jax.random.key(0), (1_000, 2))
      >>> cs.bases.fit_to_draws(draws).loc.round().tolist()
      [[3.0, 3.0]]
    """
    points = np.asarray(draws, np.float64)
    if points.ndim != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(f"draws must be at least two finite points [n, dim], got {points.shape}.")
    parts: Any = _by_em(points, max_components)
    return mixture(*parts)


@iterating.one_thread
def _by_em(particles: np.ndarray, max_components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, means and Cholesky factors of a mixture fitted to particles, size by BIC."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    num, dim = particles.shape
    centre, spread = particles.mean(0), np.maximum(particles.std(0), 1e-6)
    scaled = (particles - centre) / spread
    best, best_bic, worse, k = None, math.inf, 0, 1
    while k <= max_components and k * (dim + 2) < num and worse < 2:
        with warnings.catch_warnings():
            # What EM has not found after a hundred rounds hardly matters, and BIC judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = GaussianMixture(k, random_state=0, reg_covar=1e-5).fit(scaled)
        bic = fitted.bic(scaled)
        if bic < best_bic:
            best, best_bic, worse = fitted, bic, 0
        else:
            worse += 1
        k = k + 1 if k < 4 else math.ceil(1.5 * k)
    if best is None:
        # More dimensions than particles can tell: one component, its correlations left out.
        return np.zeros(1), centre[None], np.diag(spread)[None]
    factors = np.stack([scipy.linalg.cholesky(c, lower=True) for c in best.covariances_])
    return np.log(best.weights_), centre + spread * best.means_, spread[:, None] * factors
