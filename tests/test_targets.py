"""Targets: densities and log Z against independent computations, samplers against densities."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import potential_energy

from consistent_samplers import targets
from consistent_samplers.targets import Target, check_density, datasets

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
    "seeds": targets.seeds,
    "cancer": targets.cancer,
}
EXACT = ("gaussian", "gmm9", "funnel", "double_wells")


def assert_mean(values, expected, num_errors=4.5):
    """The mean of independent values is the expected one, within standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    z = (values.mean(axis=0) - expected) / error
    assert np.all(np.abs(z) < num_errors), f"z-scores {z}"


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
    with pytest.raises(ValueError, match="dim must be an integer"):
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


# ---- posteriors, against the same models written in NumPyro


def seeds_model():
    # Typed apart from the package: a slip in its table would show.
    rows = """10 39 0 0;23 62 0 0;23 81 0 0;26 51 0 0;17 39 0 0;5 6 0 1;53 74 0 1;55 72 0 1;
        32 51 0 1;46 79 0 1;10 13 0 1;8 16 1 0;10 30 1 0;8 28 1 0;23 45 1 0;0 4 1 0;3 12 1 1;
        22 41 1 1;15 30 1 1;32 51 1 1;3 7 1 1"""
    table = np.array([[int(field) for field in row.split()] for row in rows.split(";")])
    germinated, total, x1, x2 = table.T
    a = {name: numpyro.sample(name, dist.Normal(0, 10)) for name in ("a_0", "a_1", "a_12", "a_2")}
    tau = numpyro.sample("tau", dist.Gamma(0.01, 0.01))
    with numpyro.plate("plates", 21):
        b = numpyro.sample("b", dist.Normal(0, 1 / jnp.sqrt(tau)))
        logits = a["a_0"] + a["a_1"] * x1 + a["a_2"] * x2 + a["a_12"] * x1 * x2 + b
        numpyro.sample("r", dist.Binomial(total, logits=logits), obs=germinated)


def seeds_unconstrained(x):
    names = ("a_0", "a_1", "a_12", "a_2")
    return {**{name: x[i] for i, name in enumerate(names)}, "b": x[4:25], "tau": x[25]}


def cancer_model():
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    weights = numpyro.sample("w", dist.Normal(0, 10).expand([31]).to_event(1))
    logits = weights[0] + (features / features.std(axis=0)) @ weights[1:]
    with numpyro.plate("patients", 569):
        numpyro.sample("label", dist.Bernoulli(logits=logits), obs=1 - labels)


@pytest.mark.parametrize(
    ("name", "model", "unflatten"),
    [
        ("seeds", seeds_model, seeds_unconstrained),
        ("cancer", cancer_model, lambda x: {"w": x}),
    ],
)
def test_posterior_matches_numpyro(name, model, unflatten):
    target = FACTORIES[name]()
    with enable_x64(True):
        points = 0.7 * np.random.default_rng(0).standard_normal((5, target.dim))
        # The potential energy includes the Jacobian of the constraining maps.
        potential = jax.jit(lambda x: potential_energy(model, (), {}, unflatten(x)))
        expected = [-potential(x) for x in points]
        np.testing.assert_allclose(log_densities(target, points), np.array(expected), rtol=1e-12)


@needs_shared
@pytest.mark.parametrize(("name", "key"), [("seeds", "seeds"), ("cancer", "cancer_prior10")])
def test_posterior_matches_reference_points(name, key):
    target = FACTORIES[name]()
    reference = np.load(SHARED / "reference" / "log_density_points.npz")
    points, expected = reference[f"{key}_x"], reference[f"{key}_log_density"]
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)
    single = log_densities(target, points.astype(np.float32))
    np.testing.assert_allclose(single, expected, rtol=2e-6)


@needs_shared
@pytest.mark.parametrize(
    ("name", "key"),
    [("seeds", "seeds"), ("cancer", "cancer_prior10"), ("double_wells", "mw54")],
)
def test_log_z_matches_reference(name, key):
    reference = json.loads((SHARED / "reference" / "logz.json").read_text())[key]
    np.testing.assert_allclose(FACTORIES[name]().log_z, reference["log_z"], atol=1e-3)


def test_seeds_is_finite_far_out():
    target = targets.seeds()
    points = jnp.array([[-30.0], [30.0]]) * jnp.ones((2, 26))
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(target.log_density)))(points)
    assert np.isfinite(values).all() and np.isfinite(grads).all()


# ---- data sets


@needs_shared
def test_breast_cancer_is_the_same_from_both_sources(monkeypatch):
    monkeypatch.delenv(datasets.DATA_FOLDER_VARIABLE, raising=False)
    public = datasets.breast_cancer()
    monkeypatch.setenv(datasets.DATA_FOLDER_VARIABLE, str(SHARED / "data"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # the folder must be enough
    local = datasets.breast_cancer()
    for a, b in zip(public, local, strict=True):
        np.testing.assert_array_equal(a, b)
    assert public[1].sum() == 357


def test_breast_cancer_in_the_original_format(monkeypatch, tmp_path):
    monkeypatch.delenv(datasets.DATA_FOLDER_VARIABLE, raising=False)
    features, labels = datasets.breast_cancer()
    rows = [
        ",".join(["842302", "MB"[label], *map(repr, map(float, row))])
        for row, label in zip(features, labels, strict=True)
    ]
    (tmp_path / "breast_cancer.data").write_text("\n".join(rows) + "\n")
    monkeypatch.setenv(datasets.DATA_FOLDER_VARIABLE, str(tmp_path))
    parsed = datasets.breast_cancer()
    np.testing.assert_array_equal(parsed[0], features)
    np.testing.assert_array_equal(parsed[1], labels)

    changed = rows[0].rsplit(",", 1)[0] + ",0.5"
    (tmp_path / "breast_cancer.data").write_text("\n".join([changed, *rows[1:]]))
    with pytest.raises(ValueError, match="differ from the original"):
        datasets.breast_cancer()
    (tmp_path / "breast_cancer.data").write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match="shapes"):
        datasets.breast_cancer()
    (tmp_path / "breast_cancer.data").write_text("id,diagnosis,radius\n")
    with pytest.raises(ValueError, match="is not breast cancer data"):
        datasets.breast_cancer()
    (tmp_path / "breast_cancer.data").unlink()
    with pytest.raises(FileNotFoundError, match="unset the variable"):
        datasets.breast_cancer()


def test_missing_scikit_learn_names_the_remedy(monkeypatch):
    monkeypatch.delenv(datasets.DATA_FOLDER_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "consistent_samplers\[bench\]"'):
        targets.cancer()


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
        (lambda x: jnp.sum(jnp.log(x)), "NaN at 2 of 4"),
        (lambda x: jnp.where(x[0] > 1, jnp.inf, 0.0), r"\+inf at 1 of 4"),
        (lambda x: jnp.where(x[0] > 9, 0.0, -jnp.inf), "-inf at all 4"),
    ],
)
def test_check_density_refuses(log_density, message):
    points = jnp.array([[-2.0], [-0.5], [0.5], [2.0]])
    with pytest.raises(ValueError, match=message):
        check_density(Target(log_density, dim=1), points)


def test_check_density_accepts_bounded_support():
    target = Target(lambda x: jnp.where(x[0] > 0, -x[0], -jnp.inf), dim=1)
    check_density(target, jnp.array([[-1.0], [1.0]]))
