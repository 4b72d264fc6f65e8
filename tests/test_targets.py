"""Targets: densities and log Z against independent computations, samplers against densities."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.optimize
import scipy.special
import scipy.stats

from consistent_samplers import targets
from consistent_samplers.targets import Target, check_density, mixtures

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "reference").is_dir(), reason=f"no reference values at {SHARED}"
)
# jax < 0.8 has the context manager under another name.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

COVARIANCE = np.array([[2.0, 0.6, -0.3], [0.6, 0.5, 0.1], [-0.3, 0.1, 1.5]])
FACTORIES = {
    "gaussian": lambda: targets.gaussian(jnp.array([1.0, -2.0, 0.5]), COVARIANCE),
    "gmm9": targets.gmm9,
    "funnel": targets.funnel,
    "double_wells": targets.double_wells,
    "gmm40": targets.gmm40,
    "student_t_mixture": targets.student_t_mixture,
    "many_well": targets.many_well,
    "rosenbrock": lambda: targets.rosenbrock(dim=4),
    "rings": targets.rings,
    "image": targets.image,
}
EXACT = tuple(FACTORIES)


def assert_mean(values, expected, num_errors=4.5):
    """The mean of independent values is the expected one, within standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    z = (values.mean(axis=0) - expected) / error
    assert np.all(np.abs(z) < num_errors), f"z-scores {z}"


def assert_distribution(values, cdf, level=1e-5):
    """Kolmogorov-Smirnov: independent values follow the cdf; wrong alarm at the given rate."""
    p_value = scipy.stats.kstest(np.asarray(values, np.float64), cdf).pvalue
    assert p_value > level, f"p-value {p_value}"


def log_densities(target, points):
    """Log density at points [n, dim], compiled as one computation."""
    return np.asarray(jax.jit(jax.vmap(target.log_density))(jnp.asarray(points)))


def log_density_on_grid(target, points, num_dims):
    """Log density on the product of one axis with itself, as an array of num_dims axes."""
    mesh = np.stack(np.meshgrid(*[points] * num_dims, indexing="ij"), axis=-1)
    with enable_x64(True):
        return log_densities(target, mesh.reshape(-1, num_dims)).reshape(mesh.shape[:-1])


# ---- what every factory keeps to


@pytest.mark.parametrize("name", FACTORIES)
def test_factory_gives_a_differentiable_pure_density(name):
    target = FACTORIES[name]()
    assert target.name == name
    assert isinstance(target.log_z, float)
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.standard_normal((4, target.dim)), jnp.float32)
    density = jax.jit(jax.vmap(jax.value_and_grad(target.log_density)))
    values, grads = density(points)
    assert values.shape == (4,) and grads.shape == points.shape
    assert values.dtype == grads.dtype == jnp.float32
    assert np.isfinite(grads).all()
    # A difference quotient in float64: the gradient is that of the value.
    with enable_x64(True):
        x = np.asarray(points[0], np.float64)
        direction = rng.standard_normal(x.shape)
        trio = np.stack([x, x + 1e-5 * direction, x - 1e-5 * direction])
        values, grads = (np.asarray(a) for a in density(jnp.asarray(trio)))
        assert values.dtype == grads.dtype == np.float64
        np.testing.assert_allclose(grads[0] @ direction, (values[1] - values[2]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_exact_sampler_protocol(name):
    target = FACTORIES[name]()
    sample = jax.jit(target.sample, static_argnums=1)
    draws = sample(jax.random.key(0), 7)
    assert draws.shape == (7, target.dim)
    np.testing.assert_array_equal(draws, sample(jax.random.key(0), 7))
    assert not np.array_equal(draws, sample(jax.random.key(1), 7))


@pytest.mark.parametrize("name", FACTORIES)
def test_strict_rank_promotion(name):
    with jax.numpy_rank_promotion("raise"):
        target = FACTORIES[name]()
        jax.eval_shape(jax.grad(target.log_density), jnp.zeros(target.dim))
        if target.sample is not None:
            jax.eval_shape(lambda key: target.sample(key, 3), jax.random.key(0))


# ---- gaussian


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gaussian_log_z_by_quadrature(dim):
    target = targets.gaussian(np.arange(dim) * 0.5, COVARIANCE[:dim, :dim])
    points = np.linspace(-12, 13, 101)
    log_density = log_density_on_grid(target, points, dim)
    log_z = np.log(np.exp(log_density).sum()) + dim * np.log(points[1] - points[0])
    np.testing.assert_allclose(log_z, target.log_z, atol=1e-9)


@pytest.mark.parametrize("covariance", [2.5, np.array([0.1, 4.0, 9.0]), COVARIANCE])
def test_gaussian_matches_its_definition(covariance):
    mean = np.array([1.0, -2.0, 0.5])
    target = targets.gaussian(mean, covariance)
    full = covariance * np.eye(3) if np.ndim(covariance) < 2 else covariance
    x = np.array([0.3, 0.2, -1.0])
    expected = -0.5 * (x - mean) @ np.linalg.solve(full, x - mean)
    np.testing.assert_allclose(log_densities(target, x[None])[0], expected, rtol=1e-5)
    log_z = 0.5 * np.linalg.slogdet(2 * np.pi * full)[1]
    np.testing.assert_allclose(target.log_z, log_z, rtol=1e-12)

    draws = np.asarray(target.sample(jax.random.key(3), 20_000))
    assert_mean(draws, mean)
    centred = draws - mean
    assert_mean(centred[:, :, None] * centred[:, None, :], full)
    assert_mean(log_densities(target, draws), -1.5)


def test_gaussian_density_calls_no_lapack():
    target = targets.gaussian(np.zeros(3), COVARIANCE)
    text = str(jax.make_jaxpr(jax.value_and_grad(target.log_density))(jnp.zeros(3)))
    assert "dot_general" in text
    assert not any(name in text for name in ("cholesky", "triangular_solve", "lu", "custom_linear"))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (1.0, 1.0, "mean must be a vector"),
        (np.zeros((2, 2)), 1.0, "mean must be a vector"),
        (np.zeros(0), 1.0, "mean must be a vector"),
        (np.zeros(3), np.ones(2), "covariance must have shape"),
        (np.zeros(2), np.ones((2, 2, 2)), "covariance must have shape"),
        (np.array([np.nan, 0.0]), 1.0, "finite"),
        (np.zeros(2), np.inf, "finite"),
        (np.zeros(2), 0.0, "must be positive"),
        (np.zeros(2), np.array([1.0, -1.0]), "must be positive"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
    ],
)
def test_gaussian_refuses_bad_input(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        targets.gaussian(mean, covariance)


# ---- gmm9


def test_gmm9_against_quadrature():
    target = targets.gmm9()
    points = np.linspace(-9, 9, 361)
    log_density = log_density_on_grid(target, points, 2)
    weight = np.exp(log_density) * (points[1] - points[0]) ** 2
    np.testing.assert_allclose(np.log(weight.sum()), target.log_z, atol=1e-9)

    draws = np.asarray(target.sample(jax.random.key(4), 20_000))
    assert_mean(log_densities(target, draws), (weight * log_density).sum())
    assert_mean(draws, 0.0)
    nearest = np.round(np.clip(draws / 5, -1, 1))
    assert_mean((draws - 5 * nearest) ** 2, 0.3)
    cell = (nearest + 1) @ np.array([3, 1])
    assert_mean(cell[:, None] == np.arange(9), 1 / 9)


def test_gmm9_matches_its_definition():
    means = np.array([[a, b] for a in (-5, 0, 5) for b in (-5, 0, 5)])
    x = np.array([1.2, -2.3])
    density = np.exp(-((x - means) ** 2).sum(axis=1) / 0.6).mean() / (2 * np.pi * 0.3)
    np.testing.assert_allclose(
        log_densities(targets.gmm9(), x[None])[0], np.log(density), rtol=1e-5
    )


# ---- funnel


def test_funnel_matches_numpyro():
    target = targets.funnel(dim=4)
    x = np.array([-1.7, 0.3, -0.2, 0.9], np.float32)
    expected = dist.Normal(0, 3).log_prob(x[0])
    expected += dist.Normal(0, np.exp(x[0] / 2)).log_prob(x[1:]).sum()
    np.testing.assert_allclose(log_densities(target, x[None])[0], expected, rtol=1e-5)
    assert target.log_z == 0.0


def test_funnel_sampler_is_exact_and_not_clipped():
    target = targets.funnel()
    draws = np.asarray(target.sample(jax.random.key(5), 20_000))
    assert target.dim == 10
    assert_mean(draws[:, 0], 0.0)
    assert_mean(draws[:, 0] ** 2, 9.0)
    z = draws[:, 1:] * np.exp(-draws[:, :1] / 2)
    assert_mean(z, 0.0)
    assert_mean(z**2, 1.0)
    entropy = 5 * np.log(2 * np.pi * np.e) + np.log(3)  # E[x_0] = 0
    assert_mean(log_densities(target, draws), -entropy)
    assert np.abs(draws).max() > 100


@pytest.mark.parametrize("dim", [1, 0, 2.0, True])
def test_funnel_refuses_bad_dim(dim):
    with pytest.raises(ValueError, match="dim must be a"):
        targets.funnel(dim)


# ---- double wells


@pytest.mark.parametrize("separation", [0.5, 2.0, 4.0, 60.0])
def test_double_wells_log_z_by_quadrature(separation):
    target = targets.double_wells(1, 1, separation)
    points = np.linspace(-12, 12, 20_001)
    log_density = log_density_on_grid(target, points, 1)
    log_z = np.log(np.exp(log_density).sum() * (points[1] - points[0]))
    np.testing.assert_allclose(target.log_z, log_z, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "log_z"), [((5, 5, 4.0), -0.5410555128794554), ((50, 5, 2.0), 42.817242677530665)]
)
def test_double_wells_log_z_in_closed_form(arguments, log_z):
    # (π/2) √δ exp(-δ²/2) [I_{-1/4}(δ²/2) + I_{1/4}(δ²/2)] for one well, computed apart.
    np.testing.assert_allclose(targets.double_wells(*arguments).log_z, log_z, rtol=1e-12)


@pytest.mark.parametrize("separation", [2.0, 60.0])
def test_double_wells_sampler(separation):
    target = targets.double_wells(4, 2, separation)
    points = np.linspace(-12, 12, 20_001)
    log_density = -((points**2 - separation) ** 2)
    weight = np.exp(log_density) / np.exp(log_density).sum()
    cdf = np.cumsum(weight)

    draws = np.asarray(target.sample(jax.random.key(6), 20_000))
    wells, rest = draws[:, :2], draws[:, 2:]
    assert_mean(wells, 0.0)
    assert_mean(wells**2, weight @ points**2)
    for level in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99):
        at = np.searchsorted(cdf, level)
        assert_mean(wells <= (points[at] + points[at + 1]) / 2, cdf[at])
    assert_mean(rest, 0.0)
    assert_mean(rest**2, 1.0)
    assert_mean(wells[:, 0] * wells[:, 1] > 0, 0.5)
    assert_mean(log_densities(target, draws), 2 * weight @ log_density - 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 4.0), "dim must be"),
        ((5, 0, 4.0), "num_wells must be"),
        ((5, 6, 4.0), "at most dim"),
        ((5, 1.0, 4.0), "num_wells must be"),
        ((5, 5, 0.0), "separation must be"),
        ((5, 5, float("nan")), "separation must be"),
    ],
)
def test_double_wells_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        targets.double_wells(*arguments)


# ---- gmm40 and student_t_mixture: the means have a test of their own, against the field's


@pytest.mark.parametrize("shape", [(40, 2), (10, 50)])
def test_field_means_ignore_the_users_flags(shape):
    means = mixtures._field_uniform(shape, 10.0)
    with jax.threefry_partitionable(True), enable_x64(True), jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(mixtures._field_uniform(shape, 10.0), means)
    traced = jax.jit(lambda x: x + mixtures._field_uniform(shape, 10.0))
    np.testing.assert_array_equal(traced(0.0), means)


def test_field_means_without_the_old_generator(monkeypatch):
    monkeypatch.delattr(jax, "threefry_partitionable")
    with pytest.raises(RuntimeError, match="no longer offers"):
        targets.gmm40()


@needs_shared
@pytest.mark.parametrize("dim", [2, 50])
def test_mixtures_have_the_fields_means(dim):
    stored = np.load(SHARED / "reference" / "draws" / "mixture_means.npz")
    rng = np.random.default_rng(1)
    means = stored[f"gmm40_{dim}d_partitionable0"].astype(np.float64)
    points = means[:3] + rng.standard_normal((3, dim))
    logs = scipy.stats.norm.logpdf(points[:, None], means).sum(axis=-1)
    expected = scipy.special.logsumexp(logs, axis=1) - np.log(40)
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(targets.gmm40(dim), points), expected, rtol=1e-12)

    means = stored[f"student_t_mixture10_{dim}d_partitionable0"].astype(np.float64)
    points = means[:3] + 3 * rng.standard_normal((3, dim))
    logs = scipy.stats.t(2).logpdf(points[:, None] - means).sum(axis=-1)
    expected = scipy.special.logsumexp(logs, axis=1) - np.log(10)
    target = targets.student_t_mixture(dim)
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)


def test_gmm40_sampler():
    target = targets.gmm40(50)
    means = 40 * mixtures._field_uniform((40, 50), 1.0).astype(np.float64)
    # The first of the field's means, typed from a run of jax 0.4.28's generator.
    np.testing.assert_allclose(means[0, :3], [8.719435, -6.0695076, -33.8233], rtol=1e-6)
    draws = np.asarray(target.sample(jax.random.key(7), 20_000), np.float64)
    squared = (draws**2).sum(axis=1)[:, None] - 2 * draws @ means.T + (means**2).sum(axis=1)
    nearest = squared.argmin(axis=1)  # without doubt: no two means are closer than 162
    assert_mean(nearest[:, None] == np.arange(40), 1 / 40)
    assert_mean(draws - means[nearest], 0.0)
    assert_mean((draws - means[nearest]) ** 2, 1.0)
    assert_mean(log_densities(target, draws), -25 * np.log(2 * np.pi * np.e) - np.log(40))


def test_student_t_mixture_sampler():
    target = targets.student_t_mixture(3)
    means = mixtures._field_uniform((10, 3), 10.0).astype(np.float64)
    draws = np.asarray(target.sample(jax.random.key(8), 20_000), np.float64)
    assert np.isfinite(draws).all()
    for i in range(3):
        assert_distribution(
            draws[:, i], lambda x, m=means[:, i]: scipy.stats.t(2).cdf(x[:, None] - m).mean(axis=1)
        )
    # All coordinates of a draw come from one component.
    below = scipy.stats.t(2).cdf(-means)
    assert_mean((draws < 0).all(axis=1), below.prod(axis=1).mean())
    # In 50 dimensions the components do not overlap: the entropy is a sum, and a sharp test.
    target = targets.student_t_mixture()
    draws = target.sample(jax.random.key(14), 20_000)
    entropy = np.log(10) + 50 * scipy.stats.t(2).entropy()
    assert_mean(log_densities(target, draws), -entropy)


@pytest.mark.parametrize("factory", [targets.gmm40, targets.student_t_mixture])
@pytest.mark.parametrize("dim", [0, 2.0, True])
def test_mixtures_refuse_bad_dim(factory, dim):
    with pytest.raises(ValueError, match="dim must be a"):
        factory(dim)


# ---- many_well


def test_many_well_matches_its_definition():
    target = targets.many_well(4)
    x = np.array([1.2, -0.3, -1.9, 0.7])
    u, v = x[[0, 2]], x[[1, 3]]
    expected = (0.5 * u + 6 * u**2 - u**4).sum() - 0.5 * (v**2).sum()
    np.testing.assert_allclose(log_densities(target, x[None])[0], expected, rtol=1e-5)
    points = np.linspace(-6, 6, 20_001)
    integral = np.exp(0.5 * points + 6 * points**2 - points**4).sum() * (points[1] - points[0])
    np.testing.assert_allclose(target.log_z, 2 * np.log(integral) + np.log(2 * np.pi), rtol=1e-12)
    np.testing.assert_allclose(targets.many_well().log_z, 164.69567531, atol=1e-8)


def test_many_well_sampler():
    points = np.linspace(-6, 6, 20_001)
    weight = np.exp(0.5 * points + 6 * points**2 - points**4)
    cdf = scipy.integrate.cumulative_trapezoid(weight, points, initial=0)
    draws = np.asarray(targets.many_well(4).sample(jax.random.key(9), 20_000), np.float64)
    for i in (0, 2):
        assert_distribution(draws[:, i], lambda x: np.interp(x, points, cdf / cdf[-1]))
    for i in (1, 3):
        assert_distribution(draws[:, i], scipy.stats.norm.cdf)
    # Independent coordinates: mixed moments are products. E u = 1.1879610 in closed tables.
    mean = weight @ points / weight.sum()
    np.testing.assert_allclose(mean, 1.1879610, atol=1e-7)
    assert_mean(draws[:, 0] * draws[:, 2], mean**2)
    assert_mean(draws[:, 0] * draws[:, 1], 0.0)


# ---- rosenbrock


def test_rosenbrock_log_z_by_quadrature():
    target = targets.rosenbrock()
    u, v = np.linspace(-4, 6, 251), np.linspace(-1, 38, 1951)
    mesh = np.stack(np.meshgrid(u, v, indexing="ij"), axis=-1).reshape(-1, 2)
    with enable_x64(True):
        total = np.exp(log_densities(target, mesh)).sum() * (u[1] - u[0]) * (v[1] - v[0])
    np.testing.assert_allclose(np.log(total), target.log_z, atol=1e-8)
    np.testing.assert_allclose(targets.rosenbrock(6).log_z, 3 * target.log_z, rtol=1e-12)


def test_rosenbrock_matches_scipy_and_its_sampler():
    target = targets.rosenbrock(4)
    x = np.array([0.3, -0.2, 1.4, 1.7])
    expected = -scipy.optimize.rosen(x[:2]) - scipy.optimize.rosen(x[2:])
    np.testing.assert_allclose(log_densities(target, x[None])[0], expected, rtol=1e-5)
    draws = np.asarray(target.sample(jax.random.key(10), 20_000), np.float64)
    u, v = draws[:, 0::2], draws[:, 1::2]
    for i in range(2):
        assert_distribution(u[:, i], scipy.stats.norm(1, np.sqrt(1 / 2)).cdf)
        assert_distribution(v[:, i] - u[:, i] ** 2, scipy.stats.norm(0, np.sqrt(1 / 200)).cdf)
    assert_mean(u[:, 0] * u[:, 1], 1.0)
    assert_mean((u - 1) ** 2, 1 / 2)
    assert_mean((v - u**2) ** 2, 1 / 200)
    assert_mean(log_densities(target, draws), -2.0)


@pytest.mark.parametrize("factory", [targets.many_well, targets.rosenbrock])
@pytest.mark.parametrize(
    ("dim", "message"), [(0, "integer of at least 2"), (3, "even"), (2.0, "integer of at least 2")]
)
def test_paired_targets_refuse_bad_dim(factory, dim, message):
    with pytest.raises(ValueError, match=message):
        factory(dim)


# ---- rings


def scds_ring_density(r):
    return np.exp(-100 * min((r - 1) ** 2, (r - 3) ** 2, (r - 5) ** 2))


def sdss_ring_density(r):
    return np.cos(r) + 1.001 if r <= 4.5 * np.pi else np.exp(4.5 * np.pi - r)


@pytest.mark.parametrize(
    ("definition", "density", "ends"),
    [
        ("scds", scds_ring_density, [0, 1, 2, 3, 4, 5, 6.5]),
        ("sdss", sdss_ring_density, [0, 4.5 * np.pi, 25, 50]),
    ],
)
def test_rings(definition, density, ends):
    target = targets.rings(definition)
    points = np.array([[0.7, -0.6], [1.1, 2.0], [-2.9, 4.0], [9.0, -8.0], [14.0, 2.5]])
    expected = [np.log(max(density(np.hypot(*x)), 1e-300)) for x in points]
    kept = np.array(expected) > -600
    np.testing.assert_allclose(
        log_densities(target, points)[kept], np.array(expected)[kept], rtol=1e-5, atol=1e-5
    )

    def mass(upper):
        pieces = [*(end for end in ends if end < upper), upper]
        return sum(
            scipy.integrate.quad(lambda r: r * density(r), a, b, epsabs=1e-13)[0]
            for a, b in itertools.pairwise(pieces)
        )

    total = mass(ends[-1])
    np.testing.assert_allclose(target.log_z, np.log(2 * np.pi * total), atol=1e-10)
    # The radius against quantiles found here, the angle against the uniform law.
    draws = np.asarray(target.sample(jax.random.key(11), 20_000), np.float64)
    radius = np.hypot(*draws.T)
    levels = np.linspace(ends[0] + 0.05, ends[-1], 40)
    cdf = np.array([mass(level) / total for level in levels])
    seen = (cdf > 1e-3) & (cdf < 1 - 1e-3)
    assert seen.sum() >= 10
    assert_mean(radius[:, None] <= levels[seen], cdf[seen])
    angle = np.arctan2(draws[:, 1], draws[:, 0])
    assert_distribution(angle, scipy.stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert_mean(np.cos(angle) * radius, 0.0)


@needs_shared
@pytest.mark.parametrize("definition", ["scds", "sdss"])
def test_rings_log_z_matches_reference(definition):
    reference = json.loads((SHARED / "reference" / "logz.json").read_text())
    expected = reference[f"rings_{definition}_2d"]["log_z"]
    np.testing.assert_allclose(targets.rings(definition).log_z, expected, rtol=1e-12)


@pytest.mark.parametrize("definition", ["scds", "sdss"])
def test_rings_are_finite_at_the_origin_and_far_out(definition):
    points = jnp.array([[0.0, 0.0], [1e-30, 0.0], [1e4, -1e4]])
    values, grads = jax.vmap(jax.value_and_grad(targets.rings(definition).log_density))(points)
    assert np.isfinite(values).all() and np.isfinite(grads).all()


def test_rings_refuse_unknown_definition():
    with pytest.raises(ValueError, match='"scds" or "sdss"'):
        targets.rings("pis")


# ---- image


PICTURE = np.array(
    [[0.0, 2.0, 8.0, 1.0, 3.0], [4.0, 0.0, 1.0, 0.0, 2.0], [1.0, 0.5, 0.0, 6.0, 0.0]]
)


def picture_target():
    return targets.image(PICTURE, half_width=2.0, floor=0.01, decay=0.5)


def midpoint_weights(target, reach, num_points):
    """Midpoints of an even grid on [-reach, reach]², log density there [n, n], and mass [n, n]."""
    points = (np.arange(num_points) + 0.5) * (2 * reach / num_points) - reach
    log_density = log_density_on_grid(target, points, 2)
    return points, log_density, np.exp(log_density) * (points[1] - points[0]) ** 2


def test_image_matches_its_definition():
    # Spacing 1 on [-2, 2] x [-1, 1], row 0 on top.
    value = scipy.interpolate.RegularGridInterpolator(
        (np.arange(-2.0, 3.0), np.arange(-1.0, 2.0)), (PICTURE[::-1] / 8 + 0.01).T
    )
    points = np.random.default_rng(2).uniform(-1, 1, (200, 2)) * [3.0, 2.0]
    inside = np.clip(points, [-2, -1], [2, 1])
    expected = np.log(value(inside)) - ((points - inside) ** 2).sum(axis=1) / (2 * 0.5**2)
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(picture_target(), points), expected, atol=1e-10)
    # At the brightest pixel itself, in float32.
    np.testing.assert_allclose(
        log_densities(picture_target(), np.array([[0.0, 1.0]])), np.log(1.01), rtol=1e-5
    )


def test_image_log_z_and_sampler():
    target = picture_target()
    # The midpoint rule is exact within cells that end on the lines of the picture.
    _, _, mass = midpoint_weights(target, reach=6.0, num_points=600)
    np.testing.assert_allclose(np.log(mass.sum()), target.log_z, atol=1e-9)
    # Bins of 1/2 from -4 to 4 cover cells, edges and corners; the rest is one bin.
    inner = mass[100:500, 100:500].reshape(16, 25, 16, 25).sum(axis=(1, 3)).ravel()
    probability = np.append(inner, mass.sum() - inner.sum()) / mass.sum()
    draws = np.asarray(target.sample(jax.random.key(12), 50_000), np.float64)
    bins = np.histogram2d(*draws.T, bins=16, range=[[-4, 4], [-4, 4]])[0].ravel()
    counts = np.append(bins, 50_000 - bins.sum())
    rare = probability * 50_000 < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    probability = np.append(probability[~rare], probability[rare].sum())
    assert scipy.stats.chisquare(counts, probability * 50_000).pvalue > 1e-5


def test_default_image():
    target = targets.image()
    points, log_density, mass = midpoint_weights(target, reach=4 * 78 / 63, num_points=78 * 5)
    np.testing.assert_allclose(np.log(mass.sum()), target.log_z, atol=1e-6)
    draws = target.sample(jax.random.key(13), 20_000)
    weight = mass / mass.sum()
    assert_mean(log_densities(target, draws), (weight * log_density).sum())
    assert_mean(draws, [(weight.sum(axis=1 - i) * points).sum() for i in range(2)])
    # Separate shapes: bright discs, darkness between them.
    bright, dark = log_densities(target, np.array([[-2.0, 2.0], [0.0, 0.0]]))
    assert bright > -0.01 and dark < -6


def test_image_takes_any_scale_and_large_pictures():
    small = targets.image(PICTURE.astype(np.uint8))
    assert targets.image(1000 * PICTURE.astype(np.uint8).astype(float)).log_z == pytest.approx(
        small.log_z, abs=1e-12
    )
    # 400,000 cells, the last ones with too little mass to tell from none.
    ramp = np.linspace(1, 2, 500)[:, None] * np.ones((500, 800))
    target = targets.image(ramp, floor=1e-9, decay=1e-6)
    draws = np.asarray(target.sample(jax.random.key(0), 20_000))
    assert_distribution(draws[:, 0], scipy.stats.uniform(-4, 8).cdf)
    height = 4 * 499 / 799
    down = (height - draws[:, 1]) / (2 * height)  # density 2 (1 + down) / 3 on [0, 1]
    assert_distribution(down, lambda z: np.clip(z, 0, 1) * (2 + np.clip(z, 0, 1)) / 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(4), "grey-scale picture"),
        (np.ones((4, 4, 3)), "Average the channels"),
        (np.ones((1, 4)), "at least 2 pixels"),
        (np.zeros((3, 3)), "zero everywhere"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "finite"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "finite"),
        (np.array([[1.0, -1e-3], [0.0, 1.0]]), "must not be negative"),
        (np.array([["a", "b"], ["c", "d"]]), "must hold numbers"),
        (np.ones((2, 2)) * 1j, "real numbers"),
    ],
)
def test_image_refuses_bad_arrays(array, message):
    with pytest.raises(ValueError, match=message):
        targets.image(array)


@pytest.mark.parametrize("name", ["half_width", "floor", "decay"])
def test_image_refuses_bad_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        targets.image(**{name: 0.0})


@needs_shared
@pytest.mark.parametrize(
    ("name", "key"),
    [("double_wells", "mw54")],
)
def test_log_z_matches_reference(name, key):
    reference = json.loads((SHARED / "reference" / "logz.json").read_text())[key]
    np.testing.assert_allclose(FACTORIES[name]().log_z, reference["log_z"], atol=1e-3)


# ---- Target and check_density


@pytest.mark.parametrize(
    ("log_density", "error", "message"),
    [
        (3.0, TypeError, "must be a function"),
        (lambda x: -0.5 * x**2, ValueError, "must return a scalar"),
        (lambda x: jnp.sum(x)[None], ValueError, "must return a scalar"),
        (lambda x: None, ValueError, "one scalar array"),
        (lambda x: (jnp.sum(x), jnp.sum(x)), ValueError, "one scalar array"),
        (lambda x: jnp.sum(x > 0), ValueError, "real number"),
        (lambda x: jnp.sum(x) * 1j, ValueError, "real number"),
        (lambda x: jnp.sum(x) if x[0] > 0 else jnp.sum(-x), TypeError, "could not be traced"),
        (lambda x: jnp.sum(jnp.asarray(np.asarray(x))), TypeError, "could not be traced"),
        (lambda x: x @ jnp.zeros(5), TypeError, "could not be traced"),
    ],
)
def test_target_refuses_bad_density(log_density, error, message):
    with pytest.raises(error, match=message):
        Target(log_density, dim=3)


@pytest.mark.parametrize("dim", [0, -1, 2.0, "2", True, None])
def test_target_refuses_bad_dim(dim):
    with pytest.raises(ValueError, match="dim must be a positive integer"):
        Target(lambda x: -jnp.sum(x**2), dim=dim)


def test_target_refuses_bad_sampler():
    with pytest.raises(TypeError, match="sample must be a function"):
        Target(lambda x: -jnp.sum(x**2), dim=2, sample=jnp.zeros((3, 2)))


def test_target_defaults():
    target = Target(log_density=lambda x: -jnp.sum(x**2), dim=2)
    assert (target.name, target.log_z, target.sample) == ("target", None, None)


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: jnp.sum(jnp.log(-jnp.abs(x))), "NaN at all 4"),
        (lambda x: jnp.where(x[0] < -1, jnp.nan, -jnp.inf), r"-inf at all 4 .*NaN at 1"),
        (lambda x: jnp.where(x[0] > 1, jnp.inf, 0.0), r"\+inf at 1 of 4"),
        (lambda x: jnp.where(x[0] > 9, 0.0, -jnp.inf), "-inf at all 4"),
    ],
)
def test_check_density_refuses(log_density, message):
    points = jnp.array([[-2.0], [-0.5], [0.5], [2.0]])
    with pytest.raises(ValueError, match=message):
        check_density(Target(log_density, dim=1), points)


@pytest.mark.parametrize("outside", [-jnp.inf, jnp.nan])
def test_check_density_accepts_bounded_support(outside):
    target = Target(lambda x: jnp.where(x[0] > 0, -x[0], outside), dim=1)
    check_density(target, jnp.array([[-1.0], [1.0]]))
