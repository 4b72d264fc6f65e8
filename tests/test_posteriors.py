"""Posteriors: densities and log Z against independent computations; data sets, their errors."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pooch
import pytest
from numpyro.infer.util import potential_energy
from scipy import stats
from scipy.spatial.distance import cdist

from consistent_samplers import targets
from consistent_samplers.targets import datasets, posteriors
from consistent_samplers.targets.datasets import DATA_FOLDER_VARIABLE

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "reference").is_dir(), reason=f"no reference values at {SHARED}"
)
# jax < 0.8 has the context manager under another name.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

# Target, dimension, its name among the reference values. The data of the first three come with
# the package or with scikit-learn.
POSTERIORS = [
    ("seeds", 26, "seeds"),
    ("brownian", 32, "brownian"),
    ("cancer", 31, "cancer_prior10"),
    *(
        pytest.param(*values, marks=needs_shared)
        for values in [
            ("credit", 25, "credit_prior10"),
            ("credit_likelihood", 25, "credit"),
            ("ionosphere", 35, "ionosphere"),
            ("sonar", 61, "sonar"),
            ("lgcp", 1600, "lgcp"),
        ]
    ),
]


@pytest.fixture
def no_folder(monkeypatch):
    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)


@pytest.fixture
def shared_folder(monkeypatch):
    """The shared data where there are any, else the packages that carry data."""
    if (SHARED / "data").is_dir():
        monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(SHARED / "data"))
    else:
        monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """An empty folder to put files into, named as the user would."""
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def log_densities(target, points):
    """Log density at points [n, dim], compiled as one computation."""
    return np.asarray(jax.jit(jax.vmap(target.log_density))(jnp.asarray(points)))


# ---- what every posterior keeps to


@pytest.mark.parametrize(("name", "dim", "key"), POSTERIORS)
def test_factory_gives_a_differentiable_pure_density(shared_folder, name, dim, key):
    with jax.numpy_rank_promotion("raise"):
        target = getattr(targets, name)()
        jax.eval_shape(jax.grad(target.log_density), jnp.zeros(target.dim))
    assert (target.name, target.dim, target.sample) == (name, dim, None)
    assert isinstance(target.log_z, float)

    # Near and far out; in one precision values and gradients are finite numbers of it.
    rng = np.random.default_rng(0)
    near = rng.standard_normal((4, dim))
    points = np.concatenate([near, np.full((1, dim), -30.0), np.full((1, dim), 30.0), 10 * near])
    density = jax.jit(jax.vmap(jax.value_and_grad(target.log_density)))
    values, grads = density(jnp.asarray(points, jnp.float32))
    assert values.dtype == grads.dtype == jnp.float32
    assert np.isfinite(values).all() and np.isfinite(grads).all()
    # A difference quotient in float64: the gradient is that of the value.
    with enable_x64(True):
        x, direction = near[0], rng.standard_normal(dim)
        trio = np.stack([x, x + 1e-5 * direction, x - 1e-5 * direction])
        values, grads = (np.asarray(a) for a in density(jnp.asarray(trio)))
        assert values.dtype == grads.dtype == np.float64
        np.testing.assert_allclose(grads[0] @ direction, (values[1] - values[2]) / 2e-5, rtol=1e-6)


@needs_shared
@pytest.mark.parametrize(("name", "dim", "key"), POSTERIORS)
def test_matches_reference(shared_folder, name, dim, key):
    target = getattr(targets, name)()
    log_z = json.loads((SHARED / "reference" / "logz.json").read_text())[key]["log_z"]
    np.testing.assert_allclose(target.log_z, log_z, atol=1e-3)
    reference = np.load(SHARED / "reference" / "log_density_points.npz")
    points, expected = reference[f"{key}_x"], reference[f"{key}_log_density"]
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)
    single = log_densities(target, points.astype(np.float32))
    np.testing.assert_allclose(single, expected, rtol=2e-6, atol=5e-5)


# ---- against the same models written in NumPyro


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


def brownian_model():
    # As inference_gym prints them, apart from the package.
    first = """0.21592641 0.118771404 -0.07945447 0.037677474 -0.27885845 -0.1484156 -0.3250906
        -0.22957903 -0.44110894 -0.09830782"""
    last = """-0.8786016 -0.83736074 -0.7384849 -0.8939254 -0.7774566 -0.70238715 -0.87771565
        -0.51853573 -0.6948214 -0.6202789"""
    softplus = dist.transforms.SoftplusTransform()
    prior = dist.LogNormal(0, 2).expand([2]).to_event(1)
    scales = numpyro.sample("scales", dist.TransformedDistribution(prior, softplus.inv))
    innovation_scale, observation_scale = jax.nn.softplus(scales)
    loc = 0.0
    times = {}
    for values, start in ((first, 0), (last, 20)):
        for offset, value in enumerate(values.split()):
            times[start + offset] = np.float64(np.float32(value))
    for time in range(30):
        loc = numpyro.sample(f"loc_{time}", dist.Normal(loc, innovation_scale))
        if time in times:
            numpyro.sample(f"y_{time}", dist.Normal(loc, observation_scale), obs=times[time])


def brownian_unconstrained(x):
    return {"scales": x[:2], **{f"loc_{time}": x[2 + time] for time in range(30)}}


def potential_energies(model, unflatten, points):
    # The potential energy includes the Jacobian of the constraining maps.
    potential = jax.jit(jax.vmap(lambda x: potential_energy(model, (), {}, unflatten(x))))
    return np.asarray(potential(jnp.asarray(points)))


@pytest.mark.parametrize(
    ("name", "model", "unflatten"),
    [
        ("seeds", seeds_model, seeds_unconstrained),
        ("cancer", cancer_model, lambda x: {"w": x}),
        ("brownian", brownian_model, brownian_unconstrained),
    ],
)
def test_matches_numpyro(no_folder, name, model, unflatten):
    target = getattr(targets, name)()
    with enable_x64(True):
        points = 0.7 * np.random.default_rng(0).standard_normal((5, target.dim))
        expected = -potential_energies(model, unflatten, points)
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)


@pytest.mark.parametrize("prior_std", [1.0, 10.0, None])
@pytest.mark.parametrize("centre", [True, False])
def test_logistic_regression_matches_numpyro(centre, prior_std):
    rng = np.random.default_rng(1)
    features = np.concatenate([rng.gamma(2.0, size=(20, 3)), np.zeros((20, 1))], axis=1)
    labels = rng.integers(2, size=20)

    def model():
        scaled = (features[:, :3] - centre * features[:, :3].mean(0)) / features[:, :3].std(0)
        prior = dist.ImproperUniform(dist.constraints.real, (), (5,))
        if prior_std is not None:
            prior = dist.Normal(0, prior_std).expand([5]).to_event(1)
        weights = numpyro.sample("w", prior)
        logits = weights[0] + scaled @ weights[1:4]
        with numpyro.plate("rows", 20):
            numpyro.sample("label", dist.Bernoulli(logits=logits), obs=labels)

    target = posteriors._logistic_regression("random", None, features, labels, prior_std, centre)
    with enable_x64(True):
        points = rng.standard_normal((5, 5))
        expected = -potential_energies(model, lambda x: {"w": x}, points)
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)


# ---- Brownian motion


def test_brownian_log_z_by_quadrature():
    # Given the scales, the observations are Gaussian: sum over a grid of the log scales. Towards
    # no noise at all the prior alone decays.
    y = datasets.brownian_observations()
    times = np.flatnonzero(~np.isnan(y)) + 1
    path = np.minimum(times[:, None], times).astype(float)
    step = 0.1
    mesh = np.meshgrid(np.arange(-6.0, 2.0, step), np.arange(-13.0, 2.0, step))
    log_sigma, log_s = (axis.ravel() for axis in mesh)
    covariance = np.exp(2 * log_sigma)[:, None, None] * path
    covariance += np.exp(2 * log_s)[:, None, None] * np.eye(20)
    observed = y[times - 1]
    solved = np.linalg.solve(covariance, np.tile(observed[:, None], (len(covariance), 1, 1)))
    log_evidence = -0.5 * (observed @ solved[..., 0].T + np.linalg.slogdet(covariance)[1])
    log_evidence -= 10 * np.log(2 * np.pi)
    log_prior = stats.norm.logpdf(log_sigma, scale=2) + stats.norm.logpdf(log_s, scale=2)
    weight = np.exp(log_evidence + log_prior) * step**2
    np.testing.assert_allclose(np.log(weight.sum()), targets.brownian().log_z, atol=1e-6)


def test_log_softplus_in_both_precisions():
    x = np.array([-300.0, -90.0, -18.1, -17.9, -5.0, 0.0, 3.0, 50.0])
    expected = np.log(np.logaddexp(0.0, x))
    single = posteriors._log_softplus(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=1e-6)
    grads = jax.vmap(jax.grad(posteriors._log_softplus))(jnp.asarray(x, jnp.float32))
    assert np.isfinite(grads).all()
    with enable_x64(True):
        double = posteriors._log_softplus(jnp.asarray(x))
        np.testing.assert_allclose(double, expected, rtol=1e-14)


# ---- Cox process


def test_cox_process_matches_scipy():
    rng = np.random.default_rng(2)
    counts = rng.poisson(1.5, size=(4, 4)).astype(float)
    mean, variance, length_scale = 0.8, 1.91, 1 / 33
    target = posteriors._cox_process(counts, mean, variance, length_scale)
    assert (target.dim, target.log_z) == (16, None)

    centres = np.array([[row, column] for row in range(4) for column in range(4)]) / 4
    covariance = variance * np.exp(-cdist(centres, centres) / length_scale)
    points = rng.normal(mean, 1.0, size=(6, 16))
    expected = stats.multivariate_normal(np.full(16, mean), covariance).logpdf(points)
    y = counts.ravel()
    expected += stats.poisson.logpmf(y, np.exp(points) / 16).sum(axis=1)
    # The field leaves the constants of the Poisson likelihood out.
    expected -= stats.poisson.logpmf(y, 1 / 16).sum() + 1.0
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)


def test_bin_counts():
    points = np.array([[0.1, 0.6], [0.1, 0.9], [1.0, 0.0], [0.5, 1.0]])
    np.testing.assert_array_equal(posteriors._bin_counts(points, 2), [[0, 2], [1, 1]])


def test_cox_process_density_calls_no_lapack():
    target = posteriors._cox_process(np.ones((3, 3)), 0.0, 1.0, 0.3)
    text = str(jax.make_jaxpr(jax.value_and_grad(target.log_density))(jnp.zeros(9)))
    assert "dot_general" in text
    assert not any(name in text for name in ("cholesky", "triangular_solve", "lu", "custom_linear"))


@needs_shared
def test_lgcp_of_another_size(shared_folder):
    target = targets.lgcp(num_bins=5)
    assert (target.dim, target.log_z) == (25, None)


@pytest.mark.parametrize("num_bins", [0, -3, 40.0, True])
def test_lgcp_refuses_bad_num_bins(num_bins):
    with pytest.raises(ValueError, match="num_bins must be a positive integer"):
        targets.lgcp(num_bins)


# ---- data sets


@needs_shared
def test_breast_cancer_is_the_same_from_both_sources(monkeypatch):
    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)
    public = datasets.breast_cancer()
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(SHARED / "data"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # the folder must be enough
    local = datasets.breast_cancer()
    for a, b in zip(public, local, strict=True):
        np.testing.assert_array_equal(a, b)
    assert public[1].sum() == 357


def test_breast_cancer_in_the_original_format(monkeypatch, tmp_path):
    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)
    features, labels = datasets.breast_cancer()
    rows = [
        ",".join(["842302", "MB"[label], *map(repr, map(float, row))])
        for row, label in zip(features, labels, strict=True)
    ]
    (tmp_path / "breast_cancer.data").write_text("\n".join(rows) + "\n")
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    parsed = datasets.breast_cancer()
    np.testing.assert_array_equal(parsed[0], features)
    np.testing.assert_array_equal(parsed[1], labels)

    changed = rows[0].rsplit(",", 1)[0] + ",0.5"
    (tmp_path / "breast_cancer.data").write_text("\n".join([changed, *rows[1:]]))
    with pytest.raises(ValueError, match="differ from the original"):
        datasets.breast_cancer()
    (tmp_path / "breast_cancer.data").write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match="shape"):
        datasets.breast_cancer()


@needs_shared
def test_ionosphere_in_the_original_format(shared_folder, own_folder, monkeypatch):
    # UCI's text has five decimals, and 0 or 1 in the first column.
    with np.load(SHARED / "data" / "ionosphere_sonar_arrays.npz") as arrays:
        features, labels = arrays["ionosphere_X"], arrays["ionosphere_y"].astype(int)
    features[:, 0] = (features[:, 0] + 1) / 2
    rows = [
        ",".join([*(f"{value:.5f}" for value in row), "bg"[label]])
        for row, label in zip(features, labels, strict=True)
    ]
    assert rows[0].startswith("1.00000,0.00000,0.99539,-0.05889,0.85243,0.02306,0.83398,-0.37708,")
    (own_folder / "ionosphere.data").write_text("\n".join(rows) + "\n")
    from_text = datasets.ionosphere()
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(SHARED / "data"))
    for a, b in zip(from_text, datasets.ionosphere(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert from_text[1].sum() == 225
    assert (from_text[0][:, 1] == 0).all()


# Least and greatest value of every column of UCI's sonar data, in units of 0.0001.
# fmt: off
SONAR_LOW = (
    15, 6, 15, 58, 67, 102, 33, 55, 75, 113, 289, 236, 184, 273, 31, 162, 349, 375, 494, 656, 512,
    219, 563, 239, 240, 921, 481, 284, 144, 613, 482, 404, 477, 212, 223, 80, 351, 383, 371, 117,
    360, 56, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 5, 10, 6, 4, 3, 3, 1, 6,
)
SONAR_HIGH = (
    1371, 2339, 3059, 4264, 4010, 3823, 3729, 4590, 6828, 7106, 7342, 7060, 7131, 9970, 10000,
    9988, 10000, 10000, 10000, 10000, 10000, 10000, 10000, 10000, 10000, 10000, 10000, 10000,
    10000, 10000, 9657, 9306, 10000, 9647, 10000, 10000, 9497, 10000, 9857, 9297, 8995, 8246, 7733,
    7762, 7034, 7292, 5522, 3339, 1981, 825, 1004, 709, 390, 352, 447, 394, 355, 440, 364, 439,
)
# fmt: on


@needs_shared
def test_sonar_in_the_original_format(own_folder, monkeypatch):
    # UCI's text has four decimals; the ranges give them back from the scaled arrays.
    with np.load(SHARED / "data" / "ionosphere_sonar_arrays.npz") as arrays:
        scaled, labels = arrays["sonar_X"], arrays["sonar_y"].astype(int)
    low, high = np.array(SONAR_LOW), np.array(SONAR_HIGH)
    units = low + (high - low) * (scaled + 1) / 2
    np.testing.assert_allclose(units, np.round(units), atol=0.02)
    rows = [
        ",".join([*(f"{value / 1e4:.4f}" for value in np.round(row)), "MR"[label]])
        for row, label in zip(units, labels, strict=True)
    ]
    assert rows[0].startswith("0.0200,0.0371,0.0428,0.0207,0.0954,0.0986,0.1539,0.1601,0.3109")
    assert rows[36].startswith("0.0094,0.0166,0.0398,0.0359,0.0681,0.0706,0.1020,0.0893,0.0381")
    (own_folder / "sonar.all-data").write_text("\n".join(rows) + "\n")
    from_text = datasets.sonar()
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(SHARED / "data"))
    for a, b in zip(from_text, datasets.sonar(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert from_text[1].sum() == 97

    # One unit in the last place of one value is not the data set.
    changed = rows[5].replace("0.0286", "0.0287", 1)
    (own_folder / "sonar.all-data").write_text("\n".join([*rows[:5], changed, *rows[6:]]))
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(own_folder))
    with pytest.raises(ValueError, match="differ from the original"):
        datasets.sonar()


LOADERS = {
    "breast_cancer": "breast_cancer.data",
    "german_credit": "german.data-numeric",
    "ionosphere": "ionosphere.data",
    "sonar": "sonar.all-data",
    "finnish_pines": "pines.csv",
}


@pytest.mark.parametrize(("loader", "file"), LOADERS.items())
def test_loader_errors(own_folder, loader, file):
    load = getattr(datasets, loader)
    with pytest.raises(FileNotFoundError, match=f"(?s){file}.*unset the variable"):
        load()
    (own_folder / file).write_text("<html><body>Moved, go away</body></html>\n" * 2)
    with pytest.raises(ValueError, match=r"cannot be read: expected .*delete it"):
        load()
    # Well-formed rows of the wrong width; the header is for the pines.
    rows = {"breast_cancer": "1 M 2.0 3.0", "ionosphere": "1,2,3,g", "sonar": "1,2,3,R"}
    row = rows.get(loader, "1 2 3 1")
    (own_folder / file).write_text(f"{row}\n{row}\n{row}\n")
    with pytest.raises(ValueError, match="have shape"):
        load()


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "finnish_pines"])
def test_empty_file(own_folder, loader):
    (own_folder / LOADERS[loader]).write_text("\n")
    with pytest.raises(ValueError, match="it is empty"):
        getattr(datasets, loader)()


@pytest.mark.parametrize("loader", ["ionosphere", "sonar"])
def test_stored_arrays_errors(own_folder, loader):
    load, path = getattr(datasets, loader), own_folder / "ionosphere_sonar_arrays.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        load()
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match=f"expected arrays {loader}_X and {loader}_y"):
        load()
    # Pickled objects are refused, not loaded.
    np.savez(path, **{f"{loader}_X": np.array([{}], object), f"{loader}_y": np.zeros(1)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load()
    shape = {"ionosphere": (351, 34), "sonar": (208, 60)}[loader]
    np.savez(path, **{f"{loader}_X": np.zeros(shape), f"{loader}_y": np.zeros(shape[0])})
    with pytest.raises(ValueError, match="differ from the original"):
        load()


@needs_shared
@pytest.mark.parametrize(
    ("loader", "host"),
    [("german_credit", "archive.ics.uci.edu"), ("finnish_pines", "raw.githubusercontent.com")],
)
def test_download(no_folder, monkeypatch, tmp_path, loader, host):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append(url)
        return shutil.copy(SHARED / "data" / fname, tmp_path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    data = getattr(datasets, loader)()
    assert len(asked) == 1 and asked[0].startswith(f"https://{host}/")
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(SHARED / "data"))
    np.testing.assert_array_equal(data[0], getattr(datasets, loader)()[0])
    assert len(asked) == 1


@pytest.mark.parametrize("loader", ["german_credit", "ionosphere", "sonar", "finnish_pines"])
def test_failed_download_names_the_remedy(no_folder, monkeypatch, tmp_path, loader):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    def error_page(*args, fname, **kwargs):
        (tmp_path / fname).write_text("<html><body>404</body></html>\n" * 2)
        return str(tmp_path / fname)

    load = getattr(datasets, loader)
    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(ConnectionError, match=f"(?s)service not known.*{DATA_FOLDER_VARIABLE}"):
        load()
    monkeypatch.setattr(pooch, "retrieve", error_page)
    with pytest.raises(ValueError, match="delete it, and it is fetched again"):
        load()
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "consistent_samplers\[bench\]"'):
        load()
