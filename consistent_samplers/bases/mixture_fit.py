"""How a mixture of Gaussians is fitted: Laplace or EM starts, then reparametrised reverse KL."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

from consistent_samplers.bases.exploration import Exploration, explore
from consistent_samplers.bases.iterating import antithetic, cosine, fresh, one_thread, split
from consistent_samplers.bases.judging import judge
from consistent_samplers.bases.limits import affordable
from consistent_samplers.bases.mixture import MixtureBase, mixture, stretch
from consistent_samplers.kernels import kernel
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

# Share of effective draws above which a start is not trained.
_GOOD_ENOUGH = 0.98
# Tails that a mixture is tried with before it is trained: about 10, 4 and 2 degrees of freedom.
_TAILS = (0.1, 0.25, 0.5)
# Components whose share is below this carry nothing that importance weights would miss.
_MIN_SHARE = 1e-4
_NUM_ITERATIONS = 400
_BATCH_SIZE = 256
_LEARNING_RATE = 0.02
_MIN_ITERATIONS = 100
_OPTIMIZER = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())


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
    """A mixture of Gaussians for a target of several modes; their number is found.

    Two starts: Laplace approximations at the distinct optima, weighted by their evidence, and a
    mixture fitted to tempered particles by EM, its number of components by BIC. Weights, means
    and covariances of each are then trained by the reparametrised, stratified reverse KL with path
    gradients (Roeder et al., 2017), and the better ELBO wins. A density whose iterations would take
    more than 40 Gflop gets fewer, 100 at least.

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
      >>> import jax
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> modes = cs.bases.Modes(np.array([[-2.0], [2.0]]), np.full((2, 1, 1), 0.25), np.zeros(2))
      >>> found = cs.bases.Exploration(modes, np.zeros((0, 1)), float("nan"))
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> base = cs.bases.fit_mixture(
      ...     jax.random.key(0), target, exploration=found, num_iterations=20
      ... )
      >>> base.num_components
      2
    """
    key_explore, key_optima, key_particles, key_judge, _ = split(rng_key)
    if exploration is None:
        exploration = explore(key_explore, target)
    starts = []
    modes = exploration.modes
    if len(modes.loc):
        kept = modes.log_evidence - modes.log_evidence.max() > math.log(_MIN_SHARE)
        kept &= np.arange(len(kept)) < max_components
        starts.append(
            (key_optima, (modes.log_evidence[kept], modes.loc[kept], modes.scale_tril[kept]))
        )
    if len(exploration.particles) and np.isfinite(exploration.particles).all():
        starts.append((key_particles, _by_em(exploration.particles, max_components)))
    bases = [mixture(*start) for _, start in starts]
    # The better start is trained; both are judged on the same draws, and the result as well.
    fits = [judge(key_judge, target, base) for base in bases]
    best = max(range(len(bases)), key=lambda i: fits[i].elbo, default=None)
    if best is None:
        raise ValueError(
            f"No part of target {target.name!r} was found. Give init_position to cs.bases.explore: "
            "points where the density is positive."
        )
    start, fit = bases[best], fits[best]
    if fit.ess > _GOOD_ENOUGH:
        return start
    for tail in _TAILS:
        # With the curvature at its centre that the Gaussian component has.
        heavier = mixture(
            start.log_weights,
            start.loc,
            bases[best].scale_tril * math.sqrt(1.0 + 3.0 * tail),
            jnp.full(start.num_components, tail),
        )
        heavier_fit = judge(key_judge, target, heavier)
        if heavier_fit.elbo > fit.elbo:
            start, fit = heavier, heavier_fit
    trained = train_mixture(
        starts[best][0], target, start, num_iterations, batch_size, learning_rate
    )
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

    Args:
      rng_key: key.
      target: the target.
      start: a mixture.
      num_iterations: Adam iterations; fewer for expensive densities.
      batch_size: draws of each iteration, spread evenly over the components.
      learning_rate: Adam's.
    """
    num_iterations = min(num_iterations, max(int(affordable(target) / batch_size), _MIN_ITERATIONS))
    per_component = 2 * max(1, batch_size // start.num_components // 2)
    # What `_moved` takes.
    zeros = (start.loc, start.scale_tril, start.log_weights)
    params: Any = (start.log_weights, *map(np.zeros_like, zeros))
    state = fresh(_OPTIMIZER, params)
    for i, rate in enumerate(cosine(learning_rate, num_iterations)):
        index = np.int32(i)
        points = _draw(rng_key, index, start, params, per_component=per_component)
        value, grad = evaluation.values_and_grads(target.log_density, points)
        params, state = _update(rng_key, index, rate, start, params, state, points, value, grad)
    if not all(np.isfinite(np.asarray(part)).all() for part in params):
        return start
    moved = _move(start, params)
    return mixture(moved.log_weights, moved.loc, moved.scale_tril, moved.tail)


@kernel(static=("per_component",), effort="least")
def _draw(
    rng_key: PRNGKey, index: Array, start: MixtureBase, params: Any, *, per_component: int
) -> Array:
    """Points ``[per_component · num_components, dim]``, as many from each component."""
    eps = antithetic(rng_key, index, (per_component, *start.loc.shape))
    return _points(_moved(start, params), eps).reshape(-1, start.dim)


@kernel(effort="least")
def _update(
    rng_key: PRNGKey,
    index: Array,
    rate: Array,
    start: MixtureBase,
    params: Any,
    state: Any,
    points: Array,
    value: Array,
    grad: Array,
) -> tuple[Any, Any]:
    """One step of Adam, from the density at the points of `_draw`."""
    shape = (-1, *start.loc.shape)
    eps = antithetic(rng_key, index, points.reshape(shape).shape)
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

    updates, state = _OPTIMIZER.update(jax.grad(negative_elbo)(params), state)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), state


def _points(base: MixtureBase, eps: Array) -> Array:
    """Points ``[n, num_components, dim]`` from standard normal draws of the same shape."""
    stretched = eps if base.tail is None else stretch(eps, base.tail[:, None])
    return base.loc + jnp.einsum("kij,nkj->nki", base.scale_tril, stretched)


@kernel(effort="least")
def _move(start: MixtureBase, params: Any) -> MixtureBase:
    return _moved(start, params)


def _moved(start: MixtureBase, params: Any) -> MixtureBase:
    """A mixture moved in the coordinates of its own components."""
    logits, shift, raw, log_tail = params
    dim = start.dim
    below, eye = jnp.tril(jnp.ones((dim, dim)), -1), jnp.eye(dim)
    factor = below * raw + jnp.exp(jnp.diagonal(raw, axis1=1, axis2=2))[..., None] * eye
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


@one_thread
def _by_em(particles: np.ndarray, max_components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, means and Cholesky factors of a mixture fitted to particles, size by BIC."""
    from sklearn.mixture import GaussianMixture

    num, dim = particles.shape
    centre, spread = particles.mean(0), np.maximum(particles.std(0), 1e-6)
    scaled = (particles - centre) / spread
    best, best_bic, worse = None, math.inf, 0
    k = 1
    while k <= max_components and k * (dim + 2) < num and worse < 2:
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
    factors = [scipy.linalg.cholesky(c, lower=True) for c in best.covariances_]
    return (
        np.log(best.weights_),
        centre + spread * best.means_,
        spread[:, None] * np.stack(factors),
    )
