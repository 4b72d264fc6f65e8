"""Bases: densities and frames in closed form, fits on targets of known log Z and on hard ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import consistent_samplers as cs
from consistent_samplers import bases, targets
from consistent_samplers.bases import GaussianBase, exploration, gaussian_fit, modes
from consistent_samplers.bases.gaussian_fit import _positive_inverse
from consistent_samplers.targets import Target, evaluation

KEY = jax.random.key(0)
NUM = 4_000


def random_covariance(dim: int, condition: float, seed: int) -> np.ndarray:
    """Eigenvalues from 1/√condition to √condition along random directions."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    eigenvalues = np.geomspace(condition**-0.5, condition**0.5, dim)
    covariance = (rotation * eigenvalues) @ rotation.T
    return 0.5 * (covariance + covariance.T)


def log_weights(base: GaussianBase, target: Target) -> np.ndarray:
    x = base.sample(jax.random.key(9), NUM)
    return np.asarray(jax.vmap(target.log_density)(x) - base.log_prob(x), np.float64)


def random_base(dim: int) -> GaussianBase:
    covariance = random_covariance(dim, 20.0, dim)
    return GaussianBase(jnp.arange(1.0, dim + 1), jnp.asarray(np.linalg.cholesky(covariance)))


# ---- the distribution and its frame


@pytest.mark.parametrize("dim", [1, 4])
def test_log_prob(dim):
    base = random_base(dim)
    x = base.sample(KEY, 20)
    assert x.shape == (20, dim)
    covariance = np.asarray(base.scale_tril, np.float64) @ np.asarray(base.scale_tril).T
    expected = scipy.stats.multivariate_normal(base.loc, covariance).logpdf(x)
    np.testing.assert_allclose(base.log_prob(x), expected, rtol=1e-4, atol=1e-4)
    in_jax = jax.scipy.stats.multivariate_normal.logpdf(x, base.loc, jnp.asarray(covariance))
    np.testing.assert_allclose(base.log_prob(x), in_jax, rtol=1e-4, atol=1e-4)
    assert base.log_prob(x[0]).shape == ()


def test_sample_moments():
    base = random_base(3)
    x = np.asarray(base.sample(KEY, 50_000))
    covariance = np.asarray(base.scale_tril @ base.scale_tril.T)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - base.loc), 4 * scale / 50_000**0.5)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.02 * covariance.max())


def test_whiten_round_trip():
    base = random_base(5)
    x = base.sample(KEY, 50)
    z = jax.vmap(base.whiten)(x)
    np.testing.assert_allclose(jax.vmap(base.unwhiten)(z), x, atol=1e-4)
    # In the frame the base is standard normal, up to the frame's volume.
    standard = jax.scipy.stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(standard - base.log_abs_det, base.log_prob(x), atol=1e-4)


def test_whitened_log_density_keeps_log_z():
    base = random_base(2)
    whitened = base.whitened_log_density(lambda x: base.log_prob(x) + 0.7)
    grid = jnp.linspace(-8.0, 8.0, 200)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    mass = np.exp(np.asarray(jax.vmap(whitened)(points), np.float64)).sum() * (16 / 199) ** 2
    np.testing.assert_allclose(np.log(mass), 0.7, atol=1e-3)


def test_standard_normal():
    base = bases.standard_normal(3, scale=2.0)
    assert base.dim == 3
    x = jnp.array([1.0, -2.0, 0.5])
    expected = scipy.stats.norm(0.0, 2.0).logpdf(x).sum()
    np.testing.assert_allclose(base.log_prob(x), expected, rtol=1e-5)
    np.testing.assert_allclose(base.log_abs_det, 3 * np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize("dim", [0, -1, 2.0, "2"])
def test_standard_normal_wants_a_dimension(dim):
    with pytest.raises(ValueError, match="dim"):
        bases.standard_normal(dim)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_standard_normal_wants_a_scale(scale):
    with pytest.raises(ValueError, match="scale"):
        bases.standard_normal(2, scale)


# ---- fits


# Fewer starts than by default where L-BFGS is slow: many are for other targets than these.
@pytest.mark.parametrize(
    ("dim", "num_starts"),
    [(2, 8), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((10, 4), (50, 1)))],
)
def test_fit_gaussian_is_exact_on_gaussians(dim, num_starts):
    mean = np.random.default_rng(dim).normal(size=dim)
    covariance = random_covariance(dim, 1e4, dim)
    target = targets.gaussian(mean, covariance)
    base = bases.fit_gaussian(KEY, target, num_starts=num_starts)
    weights = log_weights(base, target)
    # Exact fit: every weight is Z, so that no error bar is needed.
    assert abs(weights.mean() - target.log_z) < 0.01
    assert weights.std() < 0.15
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(base.loc - mean), 0.15 * scale)


@pytest.mark.parametrize(
    ("mean", "init_position"), [(0.0, 1e3), (100.0, None)], ids=["far-start", "far-target"]
)
def test_fit_gaussian_finds_a_target_far_from_its_starts(mean, init_position):
    target = targets.gaussian(np.full(5, mean), random_covariance(5, 100.0, 1))
    if init_position is not None:
        init_position = jnp.full(5, init_position)
    base = bases.fit_gaussian(KEY, target, init_position=init_position)
    assert abs(log_weights(base, target).mean() - target.log_z) < 0.01


def test_init_position_finds_a_mode_that_random_starts_do_not():
    # Away from the mode the density is flat but for a slight pull to the origin.
    def log_density(x):
        gap = jnp.sum((x - 60.0) ** 2)
        return jnp.logaddexp(-0.5 * gap, -60.0 - 0.5 * jnp.sum(x**2))

    target = Target(log_density, 2)
    base = bases.fit_gaussian(KEY, target, init_position=jnp.full((1, 2), 59.0))
    np.testing.assert_allclose(base.loc, 60.0, atol=0.1)
    assert abs(log_weights(base, target).mean() - np.log(2 * np.pi)) < 0.01


def test_fit_gaussian_survives_the_funnel():
    # One start deep in the neck, where the density is unbounded along the way, one far out.
    starts = jnp.zeros((2, 10)).at[0, 0].set(-40.0).at[1].set(1e3)
    base = bases.fit_gaussian(KEY, targets.funnel(10), init_position=starts)
    weights = log_weights(base, targets.funnel(10))
    # The best Gaussian reaches -1.86; log Z = 0. A standard normal has -6.1.
    assert -2.5 < weights.mean() < 0.0


def test_fit_gaussian_survives_a_hierarchical_model():
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)

    def log_density(x):
        """Eight schools, centred: unbounded as log τ falls with every θ at μ."""
        mu, log_tau, theta = x[0], x[1], x[2:]
        tau, normal = jnp.exp(log_tau), jax.scipy.stats.norm.logpdf
        prior = normal(mu, 0.0, 5.0) + log_tau - jnp.log1p((tau / 5.0) ** 2)
        return prior + normal(theta, mu, tau).sum() + normal(effect, theta, error).sum()

    target = Target(log_density, 10)
    assert log_density(jnp.zeros(10).at[1].set(-20.0)) > log_density(jnp.zeros(10)) + 50
    base = bases.fit_gaussian(KEY, target, init_position=jnp.zeros(10).at[1].set(-15.0))
    weights = log_weights(base, target)
    # The best Gaussian known reaches -30.55 (that is -32.61 with the prior's constant).
    assert np.isfinite(weights).all()
    assert weights.mean() > -31.0


def test_fit_gaussian_stays_in_the_support():
    target = Target(lambda x: jnp.where(x[0] > 0, -0.5 * jnp.sum((x - 1.0) ** 2), -jnp.inf), 3)
    base = bases.fit_gaussian(KEY, target)
    x = base.sample(KEY, NUM)
    assert float((x[:, 0] > 0).mean()) > 0.98
    # And is no needle: the free coordinates have a standard deviation of one.
    assert float(x[:, 1].std()) > 0.2


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: jnp.log(x[0] - 100.0) - x @ x, "NaN"),
        (lambda x: jnp.where(x[0] > -100.0, jnp.inf, 0.0), "inf"),
        (lambda x: jnp.where(x[0] > 100.0, 0.0, -jnp.inf), "-inf at all"),
    ],
    ids=["nan", "inf", "zero"],
)
def test_fit_gaussian_refuses_what_is_no_density(log_density, message):
    with pytest.raises(ValueError, match=message):
        bases.fit_gaussian(KEY, Target(log_density, 2))


@pytest.mark.parametrize("shape", [(3,), (4, 3), (1, 4, 2)])
def test_fit_gaussian_refuses_starts_of_another_shape(shape):
    with pytest.raises(ValueError, match="init_position"):
        bases.fit_gaussian(KEY, targets.funnel(2), init_position=jnp.zeros(shape))


def test_fit_gaussian_is_deterministic():
    settings = {"num_starts": 2, "num_iterations": 20, "batch_size": 8}
    first, second = (bases.fit_gaussian(KEY, targets.funnel(2), **settings) for _ in range(2))
    np.testing.assert_array_equal(first.loc, second.loc)
    np.testing.assert_array_equal(first.scale_tril, second.scale_tril)


def test_gaussian_in_many_dimensions_solves_the_optimum_s_own_equations():
    # Independent Poisson counts with N(0, 1) log rates: precision 1 + λ and y - λ - m = 0 with
    # λ = E exp(x) under the Gaussian itself.
    dim, counts = 210, jnp.array([0.0, 1.0, 5.0])
    y = jnp.tile(counts, dim // 3)
    target = Target(lambda x: jnp.sum(y * x - jnp.exp(x) - 0.5 * x**2), dim, "counts")
    base = bases.fit_gaussian(jax.random.key(0), target)
    variance = np.asarray(jnp.sum(base.scale_tril**2, axis=1)).reshape(-1, 3).mean(0)
    mean = np.asarray(base.loc).reshape(-1, 3).mean(0)
    rate = np.exp(mean + 0.5 * variance)
    np.testing.assert_allclose(1.0 / variance, 1.0 + rate, rtol=0.03)
    np.testing.assert_allclose(np.asarray(counts) - rate - mean, 0.0, atol=0.05)


def test_no_positive_inverse_of_an_indefinite_matrix():
    assert _positive_inverse(np.diag([1.0, -1.0])) is None
    np.testing.assert_allclose(_positive_inverse(np.diag([2.0, 4.0])), np.diag([0.5, 0.25]))


def test_laplace_is_enough_where_the_posterior_is_nearly_gaussian(monkeypatch):
    monkeypatch.delattr(gaussian_fit, "_maximise_elbo")
    features = np.random.default_rng(0).normal(size=(2_000, 3)).astype(np.float32)

    def log_density(w):
        return -jax.nn.softplus(-(features @ w)).sum() - 0.5 * w @ w

    base = bases.fit_gaussian(KEY, Target(log_density, 3))
    weights = log_weights(base, Target(log_density, 3))
    assert weights.std() < 0.2


# ---- expensive densities


@pytest.mark.parametrize(
    ("cost", "climb", "smc"),
    [(1e3, (512, 400), (2_000, 5)), (1e6, (128, 225), (512, 1)), (2e7, (32, 0), (0, 0))],
)
def test_an_expensive_density_is_looked_at_less(monkeypatch, cost, climb, smc):
    monkeypatch.setattr(evaluation, "cost", lambda log_density, dim: cost)
    target = targets.funnel(2)
    assert modes.climb_size(target, 512) == climb
    assert exploration.smc_size(target, 2_000, 5, 5) == smc


def test_a_few_starts_find_the_modes_of_a_very_expensive_density(monkeypatch):
    monkeypatch.setattr(evaluation, "cost", lambda log_density, dim: 2e7)
    wells = Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), 1)
    found = bases.explore(KEY, wells)
    np.testing.assert_allclose(sorted(found.modes.loc.ravel()), [-2.0, 2.0], atol=1e-2)
    assert len(found.particles) == 0 and np.isnan(found.log_z)


def test_particles_that_do_not_arrive_say_nothing(monkeypatch):
    """Log Z of a temperature on the way is that of another density."""
    target = targets.gaussian(jnp.full(20, 3.0), jnp.full(20, 0.05))
    arrived = bases.explore(KEY, target)
    assert len(arrived.particles) and abs(arrived.log_z - target.log_z) < 1.0
    monkeypatch.setattr(exploration, "_MAX_ROUNDS", 3)
    on_the_way = bases.explore(KEY, target)
    assert len(on_the_way.particles) == 0 and np.isnan(on_the_way.log_z)
    np.testing.assert_allclose(on_the_way.modes.loc, arrived.modes.loc, atol=1e-2)


def test_coordinates_of_very_unlike_scales_are_fitted():
    """As of a regression on raw covariates: L-BFGS alone stops short, and curvatures span 1e18."""
    scale, mean = jnp.array([1.0, 1e-6, 1e3]), jnp.array([0.5, 3e-6, 2e3])
    covariance = 0.4 * np.eye(3) + 0.6
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)

    def log_density(x):
        z = (x - mean) / scale
        return -0.5 * z @ precision @ z

    target = cs.Target(log_density, 3)
    base = cs.bases.fit_gaussian(jax.random.key(0), target)
    found = cs.evidence(cs.Sampler.of_base(base).sample(jax.random.key(1), target, 4_000))
    log_z = 0.5 * np.linalg.slogdet(2.0 * np.pi * covariance)[1] + np.log(scale).sum()
    assert found.ess > 0.99 and abs(float(found.log_z) - float(log_z)) < 0.005


def test_a_regression_on_many_rows_is_its_laplace_approximation():
    """Counts on covariates as they come, which exp makes overflow on the way there."""
    rng = np.random.default_rng(0)
    columns = np.ones(20_000), rng.uniform(20, 90, 20_000), rng.lognormal(10.5, 0.6, 20_000)
    x = np.column_stack(columns).astype(np.float32)
    y = rng.poisson(np.exp(x @ np.array([-1.5, 0.02, 4e-6]))).astype(np.float32)

    def log_density(theta):
        eta = x @ theta
        prior = -0.5 * jnp.sum((theta / jnp.array([10.0, 1.0, 1e-4])) ** 2)
        return jnp.sum(y * eta - jnp.exp(eta)) + prior

    target = cs.Target(log_density, 3)
    base = cs.bases.fit_gaussian(jax.random.key(0), target)
    found = cs.evidence(cs.Sampler.of_base(base).sample(jax.random.key(1), target, 4_000))
    assert found.ess > 0.99
