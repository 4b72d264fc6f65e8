"""Bases fitted to what an exploration found, and the choice among them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

from consistent_samplers.bases.base import Base
from consistent_samplers.bases.exploration import (
    MAX_MODES,
    NUM_PARTICLES,
    Exploration,
    Modes,
    explore,
)
from consistent_samplers.bases.gaussian import GaussianBase
from consistent_samplers.bases.gaussian_fit import MAX_DENSE_DIM, fit_gaussian
from consistent_samplers.bases.mixture import (
    MixtureBase,
    ProductMixtureBase,
    mixture,
    stretch,
)
from consistent_samplers.compilation import as_partial, jit_with
from consistent_samplers.targets.base import Target, check_density, log_densities
from consistent_samplers.types import Array, LogDensityFn, PRNGKey

_NUM_JUDGE_DRAWS = 4_096
# Share of effective draws above which a start is not trained.
_GOOD_ENOUGH = 0.98
# Share of a Gaussian's effective draws above which particles are not looked at.
_EVEN = 0.9
# An optimum with a smaller share of the largest one's evidence does not count as a mode.
_MINOR = 0.01
# Nor does one on the way to which the density falls by less than this, in nats.
_DIP = 1.0
_NUM_BETWEEN = 17
# Nats by which the particles' log Z must exceed the Gaussian's ELBO to look further.
_UNSEEN_NATS = 2.0
# Nats by which components of one mode must beat a Gaussian before calibration.
_FLOW_NATS = 1.0
# Tails that a mixture is tried with before it is trained: about 10, 4 and 2 degrees of freedom.
_TAILS = (0.1, 0.25, 0.5)
# Components whose share is below this carry nothing that importance weights would miss.
_MIN_SHARE = 1e-4


_NUM_ITERATIONS = 400
_BATCH_SIZE = 256
_LEARNING_RATE = 0.02


class Fit(NamedTuple):
    """How well a base fits a target.

    Attributes:
      elbo: of the base alone, in nats.
      elbo_stderr: its standard error.
      ess: share of effective draws of its importance weights.

    Example:
      >>> import consistent_samplers as cs
      >>> fit = cs.bases.Fit(elbo=-1.2, elbo_stderr=0.1, ess=0.8)
      >>> fit.elbo
      -1.2
    """

    elbo: float
    elbo_stderr: float
    ess: float


class FittedBase(NamedTuple):
    """The best of several kinds of base.

    Attributes:
      base: the base.
      kind: ``"gaussian"``, ``"mixture"`` or ``"product"``.
      fits: how well each kind that was tried fits.
      exploration: what they were fitted to.

    Example:
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> base = cs.bases.standard_normal(2)
      >>> modes = cs.bases.Modes(np.zeros((0, 2)), np.zeros((0, 2, 2)), np.zeros(0))
      >>> nothing = cs.bases.Exploration(modes, np.zeros((0, 2)), float("nan"))
      >>> fitted = cs.bases.FittedBase(
      ...     base, "gaussian", {"gaussian": cs.bases.Fit(-1.2, 0.1, 0.8)}, nothing
      ... )
      >>> fitted.fits[fitted.kind].elbo
      -1.2
    """

    base: Base
    kind: str
    fits: dict[str, Fit]
    exploration: Exploration


def fit_base(rng_key: PRNGKey, target: Target, *, init_position: Array | None = None) -> FittedBase:
    """Explores a target and fits a Gaussian, a mixture and a product of mixtures to it.

    Where no dip of the density lies between the optima, and the particles see little more than the
    Gaussian does, the Gaussian it is: one step of a flow shapes a single mode better than more
    components do. Otherwise the best ELBO of all wins. An ELBO judges what was found: it does not
    know of a mode that no exploration met.

    Tempered particles are left out where more than nine tenths of the Gaussian's own draws are
    effective and optimisers find no other mode.

    Args:
      rng_key: key.
      target: the target.
      init_position: ``[dim]`` or ``[n, dim]`` points where the target is known to have mass.

    Raises:
      ValueError: the density is NaN, +inf, or zero everywhere it was tried.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(1), jnp.ones(1))
      >>> fitted = cs.bases.fit_base(jax.random.key(0), target)  # doctest: +SKIP
      >>> fitted.kind, sorted(fitted.fits)  # doctest: +SKIP
      ('gaussian', ['gaussian'])
    """
    key_explore, key_gaussian, key_mixture, key_product, key_judge = jax.random.split(rng_key, 5)
    bases: dict[str, Base] = {
        "gaussian": fit_gaussian(key_gaussian, target, init_position=init_position)
    }
    fits = {"gaussian": judge(key_judge, target, bases["gaussian"])}
    # Particles set out from around the optima: where there is one, of which a Gaussian shows all
    # but a few percent, they see no more than its draws do.
    even = fits["gaussian"].ess > _EVEN
    num = 0 if even else NUM_PARTICLES
    found = explore(key_explore, target, init_position=init_position, num_particles=num)
    num_modes = _num_separate(target, found.modes)
    if even and num_modes > 1:
        found = explore(key_explore, target, init_position=init_position)
        num_modes = _num_separate(target, found.modes)
    simple = num_modes <= 1 and not found.log_z > fits["gaussian"].elbo + _UNSEEN_NATS
    if not simple and target.dim <= MAX_DENSE_DIM:
        bases["mixture"] = fit_mixture(key_mixture, target, exploration=found)
        if np.isfinite(found.particles).all():
            bases["product"] = fit_product(key_product, target, exploration=found)
        for kind in bases.keys() - fits.keys():
            fits[kind] = judge(key_judge, target, bases[kind])
    best = max(fits.values(), key=lambda fit: fit.elbo)
    # The simpler kind where they differ by noise only, or by what a flow makes up for more easily
    # than on several components; not where several modes were seen, of which it may lack one.
    margin = 2.0 * best.elbo_stderr + (_FLOW_NATS if num_modes <= 1 else 0.0)
    for kind in bases:
        if fits[kind].elbo >= best.elbo - margin:
            return FittedBase(bases[kind], kind, fits, found)
    return FittedBase(bases["gaussian"], "gaussian", fits, found)


def _num_separate(target: Target, modes: Modes) -> int:
    """Optima of some evidence between which and the best one the density dips.

    Optimisers end in many places along a ridge or a flat neck, all of them in one mode.
    """
    evidence = modes.log_evidence
    loc = modes.loc[evidence > evidence.max(initial=-np.inf) + math.log(_MINOR)]
    if len(loc) <= 1:
        return len(loc)
    part = np.linspace(0.0, 1.0, _NUM_BETWEEN)[:, None]
    between = (1.0 - part) * loc[0] + part * loc[1:, None]
    # As many as there may ever be, for what is compiled.
    points = np.resize(between, (MAX_MODES * _NUM_BETWEEN, target.dim))
    values = np.asarray(log_densities(target, jnp.asarray(points, float)), np.float64)
    values = values[: between.shape[0] * _NUM_BETWEEN].reshape(between.shape[:2])
    lowest = np.where(np.isnan(values), -np.inf, values).min(axis=1)
    return 1 + int(np.sum(np.minimum(values[:, 0], values[:, -1]) - lowest > _DIP))


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
    gradients (Roeder et al., 2017), and the better ELBO wins.

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
    key_explore, key_optima, key_particles, key_judge = jax.random.split(rng_key, 4)
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
    trained = _trained(starts[best][0], target, start, num_iterations, batch_size, learning_rate)
    return trained if judge(key_judge, target, trained).elbo > fit.elbo else start


def refit_base(rng_key: PRNGKey, target: Target, base: Base) -> Base:
    """A base of the same kind for a target much like the one that a base was fitted to.

    A Gaussian and a mixture move from where they are, without a new exploration: a mode that
    appeared elsewhere is not seen. A product of mixtures is fitted anew, and a base of another
    class stays as it is.

    Args:
      rng_key: key.
      target: the target.
      base: what to start from.

    Raises:
      ValueError: the density is NaN, +inf, or zero everywhere it was tried.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.array([0.5]), jnp.ones(1))
      >>> base = cs.bases.refit_base(jax.random.key(0), target, cs.bases.standard_normal(1))
      >>> base.loc.round(1).tolist()
      [0.5]
    """
    if isinstance(base, GaussianBase):
        return fit_gaussian(rng_key, target, init_position=base.loc)
    if isinstance(base, MixtureBase):
        key_train, key_judge = jax.random.split(rng_key)
        check_density(target, base.loc)
        trained = _trained(key_train, target, base)
        better = judge(key_judge, target, trained).elbo > judge(key_judge, target, base).elbo
        return trained if better else base
    if isinstance(base, ProductMixtureBase):
        return fit_product(rng_key, target, max_components=base.loc.shape[1])
    return base


def fit_product(
    rng_key: PRNGKey,
    target: Target,
    *,
    exploration: Exploration | None = None,
    max_components: int = 3,
) -> ProductMixtureBase:
    """A product of one-dimensional mixtures, fitted to the marginals of tempered particles.

    For modes that multiply: two in each of thirty coordinates are 2^30 of them, which no list of
    components holds.

    Args:
      rng_key: key.
      target: the target.
      exploration: what `explore` found; a new look if None.
      max_components: largest number of components of a coordinate, found by BIC.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import consistent_samplers as cs
      >>> target = cs.targets.double_wells(dim=2, num_wells=2)
      >>> particles = np.asarray(target.sample(jax.random.key(0), 400))
      >>> modes = cs.bases.Modes(np.zeros((0, 2)), np.zeros((0, 2, 2)), np.zeros(0))
      >>> found = cs.bases.Exploration(modes, particles, log_z=target.log_z)
      >>> base = cs.bases.fit_product(
      ...     jax.random.key(1), target, exploration=found, max_components=2
      ... )
      >>> base.loc.shape, base.loc.round(0).tolist()
      ((2, 2), [[2.0, -2.0], [-2.0, 2.0]])
    """
    from sklearn.mixture import GaussianMixture

    if exploration is None:
        exploration = explore(rng_key, target)
    particles = np.asarray(exploration.particles, np.float64)
    log_weights = np.full((target.dim, max_components), -np.inf)
    loc = np.repeat(particles.mean(0)[:, None], max_components, 1)
    scale = np.repeat(np.maximum(particles.std(0), 1e-6)[:, None], max_components, 1)
    for i, values in enumerate(particles.T):
        centre, spread = values.mean(), max(values.std(), 1e-6)
        scaled = ((values - centre) / spread)[:, None]
        fits = [
            GaussianMixture(k, random_state=0, reg_covar=1e-6).fit(scaled)
            for k in range(1, max_components + 1)
        ]
        fitted = min(fits, key=lambda f: f.bic(scaled))
        k = fitted.n_components
        log_weights[i, :k] = np.log(fitted.weights_)
        loc[i, :k] = centre + spread * fitted.means_[:, 0]
        scale[i, :k] = spread * np.sqrt(fitted.covariances_[:, 0, 0])
    used = max(int(np.isfinite(log_weights).sum(1).max()), 1)
    return ProductMixtureBase(*(jnp.asarray(a[:, :used], float) for a in (log_weights, loc, scale)))


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


def _weigh(log_density: LogDensityFn, rng_key: PRNGKey, base: Base) -> Array:
    """Log importance weights of a base."""

    def log_weight(x: Array) -> Array:
        return log_density(x) - base.log_prob(x)

    return jax.lax.map(log_weight, base.sample(rng_key, _NUM_JUDGE_DRAWS), batch_size=512)


def judge(rng_key: PRNGKey, target: Target, base: Base) -> Fit:
    """How well a base fits, on draws of its own; an ELBO of -inf where it cannot be told.

    Args:
      rng_key: key of the draws.
      target: the target.
      base: the base.

    Returns:
      ELBO with its standard error, in nats, and the share of effective draws.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.zeros(1), jnp.ones(1))
      >>> fit = cs.bases.judge(jax.random.key(0), target, cs.bases.standard_normal(1))
      >>> abs(fit.elbo - target.log_z) < 1e-3, round(fit.ess, 3)  # the base is the target
      (True, 1.0)
    """
    # Kept for the target's other bases, whatever its density is.
    weigh = jit_with(_weigh, as_partial(target.log_density), effort="least")
    log_weight = np.asarray(weigh(rng_key, base), np.float64)
    if not np.isfinite(log_weight).all():
        # Mass outside the support: no finite ELBO.
        return Fit(-math.inf, math.inf, 0.0)
    weight = np.exp(log_weight - log_weight.max())
    return Fit(
        float(log_weight.mean()),
        float(log_weight.std() / math.sqrt(_NUM_JUDGE_DRAWS)),
        float(weight.sum() ** 2 / (weight**2).sum() / _NUM_JUDGE_DRAWS),
    )


def _trained(
    rng_key: PRNGKey,
    target: Target,
    start: MixtureBase,
    num_iterations: int = _NUM_ITERATIONS,
    batch_size: int = _BATCH_SIZE,
    learning_rate: float = _LEARNING_RATE,
) -> MixtureBase:
    """A mixture trained from a start; the start itself where that meets NaN or inf."""
    train = jit_with(
        _train,
        target.log_density,
        effort="least",
        static_argnames=("num_iterations", "batch_size", "learning_rate"),
    )
    params = train(
        rng_key,
        start,
        num_iterations=num_iterations,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    if not all(bool(jnp.isfinite(p).all()) for p in params):
        return start
    moved = _moved(start, params)
    return mixture(moved.log_weights, moved.loc, moved.scale_tril, moved.tail)


def _train(
    log_density: LogDensityFn,
    rng_key: PRNGKey,
    start: MixtureBase,
    num_iterations: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[Array, ...]:
    """Adam on the ELBO over x = m_k + L_k (μ_k + T_k w(ε)), starting at μ = 0, T = I.

    Tails are trained where they are heavier than a Gaussian's.

    Returns:
      What `_moved` takes.
    """
    num, dim = start.num_components, start.dim
    per_component = max(2, batch_size // num)

    def negative_elbo(params: tuple[Array, ...], eps: Array) -> Array:
        base = _moved(start, params)
        # Path gradient: the density is scored with its parameters frozen.
        frozen = _moved(start, jax.lax.stop_gradient(params))
        stretched = eps if base.tail is None else stretch(eps, base.tail[:, None, None])
        x = base.loc[:, None] + jnp.einsum("kij,knj->kni", base.scale_tril, stretched)
        log_ratio = jax.vmap(jax.vmap(log_density))(x) - frozen.log_prob(x)
        return -jnp.sum(jnp.exp(base.log_weights) * log_ratio.mean(1))

    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adam(optax.cosine_decay_schedule(learning_rate, num_iterations)),
    )

    def step(carry: tuple, key: PRNGKey) -> tuple[tuple, None]:
        params, opt_state = carry
        half = jax.random.normal(key, (num, per_component // 2, dim))
        grads = jax.grad(negative_elbo)(params, jnp.concatenate([half, -half], axis=1))
        # A draw outside the support has no gradient to give.
        finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in grads]))
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = (
        start.log_weights,
        jnp.zeros((num, dim)),
        jnp.zeros((num, dim, dim)),
        jnp.zeros(num),
    )
    carry = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(step, carry, jax.random.split(rng_key, num_iterations))
    return params


def _moved(start: MixtureBase, params: tuple[Array, ...]) -> MixtureBase:
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
