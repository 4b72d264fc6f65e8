"""Models as they are found in scripts: handlers, arguments, sizes, keys, and folders in use."""

import dataclasses
import functools
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from numpyro.infer.reparam import LocScaleReparam
from scipy.special import gammaln

import consistent_samplers as cs
from consistent_samplers import checkpoint, corrections
from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler
from consistent_samplers.integrations.numpyro.model import flatten_model
from consistent_samplers.integrations.numpyro.starting import starting_points
from consistent_samplers.targets import evaluation, rounding

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(0)
QUICK = {"num_samples": 4_000, "explore": False, "progress_bar": False}
Y = np.array([0.3, -0.2, 1.0, 2.0])
SEEN = np.array([True, True, True, True, False])
HOLED = np.array([*Y, np.nan])

# --- The density of every script: mu ~ N(0, 1), y ~ N(mu, 1), in another way --------------------


def of(likelihood, prior=None):
    """A model of its likelihood as a function of mu and the arguments."""

    def model(*args, **kwargs):
        likelihood(numpyro.sample("mu", prior or dist.Normal(0.0, 1.0)), *args, **kwargs)

    return model


def observe(mu, y, **kwargs):
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, **kwargs)


def unobserved(num):
    observe_none = of(lambda mu: numpyro.sample("y", dist.Normal(mu, 1.0).expand([num])))
    return handlers.condition(observe_none, {"y": Y})


def masked(mu, y, mask):
    with handlers.mask(mask=mask):
        observe(mu, y)


def scaled(mu, y):
    with handlers.scale(scale=0.5), numpyro.plate("twice", 2):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=np.stack([y, y], axis=1))


def scanned(mu, y):
    scan(lambda _, y: (None, numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)), None, y)


def blocked(mu, y):
    with handlers.block():
        numpyro.sample("elsewhere", dist.Normal(0.0, 1.0), rng_key=KEY)
    observe(mu, y)


def by_factor(mu, y):
    numpyro.deterministic("twice", 2.0 * mu)
    numpyro.factor("likelihood", dist.Normal(mu, 1.0).log_prob(y).sum())


def in_one_group_of(prior):
    def model():
        with numpyro.plate("one", 1):
            mu = numpyro.sample("mu", prior)
        numpyro.sample("y", dist.Normal(mu[np.zeros(4, int)], 1.0), obs=Y)

    return model


def in_a_sample_shape():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0), sample_shape=(1,))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=Y)


def of_tree(mu, data, kind, *, options=None, cast=None):
    assert (data["none"], kind, options) == (None, "normal", {"depth": 1})
    observe(mu, cast(data["in"]["y"]))


def of_names(mu, y, names):
    known, index = np.unique(names, return_inverse=True)
    observe(mu + len(known) - 2 + 0 * index, y)


def of_table(mu, table):
    observe(mu, table["y"].to_numpy())


def table():
    return pytest.importorskip("pandas").DataFrame({"y": Y, "name": list("abcd")})


@dataclasses.dataclass  # which Python cannot hash
class Scaled:
    scale: float

    def __call__(self, y, more=0.0):
        observe(numpyro.sample("mu", dist.Normal(more, self.scale)), y)


TREE = {"none": None, "in": {"y": list(Y)}}
SCRIPTS = {
    "condition": lambda: (unobserved(4),),
    "mask": lambda: (of(masked), HOLED, SEEN),
    "obs_mask": lambda: (of(lambda mu, y: observe(mu, y, obs_mask=SEEN)), HOLED),
    "obs_mask of the data": lambda: (
        of(lambda mu, y, seen: observe(mu, y, obs_mask=seen)),
        HOLED,
        SEEN,
    ),
    "scale": lambda: (of(scaled), Y),
    "block": lambda: (of(blocked), Y),
    "scan": lambda: (of(scanned), Y),
    "factor": lambda: (of(by_factor), Y),
    "reparam": lambda: (
        handlers.reparam(of(observe, dist.Normal(jnp.zeros(()), 1.0)), {"mu": LocScaleReparam(0)}),
        Y,
    ),
    "a plate of one": lambda: (in_one_group_of(dist.Normal(0.0, 1.0)),),
    "a sample_shape": lambda: (in_a_sample_shape,),
    "a key": lambda: (of(lambda mu, y, key: observe(mu + 0.0 * jax.random.normal(key), y)), Y, KEY),
    "a dataclass": lambda: (Scaled(1.0), Y),
    "a tree": lambda: (
        functools.partial(of(of_tree), options={"depth": 1}, cast=np.array),
        TREE,
        "normal",
    ),
    "names": lambda: (of(of_names), Y, np.array(["a", "b", "a", "b"])),
    "a table": lambda: (of(of_table), table()),
    "half precision": lambda: (of(observe), Y.astype(np.float16)),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_density_is_that_of_the_model(script):
    model, *args = SCRIPTS[script]()
    flat = flatten_model(model, tuple(args), {})
    points = np.array([[-0.7], [0.0], [1.3]], np.float32)
    extra = flat.target.dim - 1  # what a missing value adds to mu: a coordinate given mu
    assert extra == ("obs_mask" in script)
    points = np.hstack([points, np.zeros((3, extra), np.float32)])
    values = jax.vmap(flat.target.log_density)(points)
    mu = points[:, :1].astype(float)
    expected = st.norm.logpdf(mu[:, 0]) + st.norm.logpdf(Y, mu).sum(1)
    expected += extra * st.norm.logpdf(0.0, mu[:, 0])
    np.testing.assert_allclose(values, expected, atol=2e-3 if "half" in script else 1e-5)


REFUSED = {
    "a list": ((of(observe), list(Y)), TypeError, "'y' of model 'model' holds a list"),
    "chance of NumPy's": (
        (of(lambda mu, y: observe(mu, y[np.random.permutation(len(y))[:2]])), np.arange(50.0)),
        ValueError,
        "'model' computes something else each time.*an argument, or make them a site",
    ),
    "a Delta in a plate": (
        (in_one_group_of(dist.Delta(0.0)),),
        ValueError,
        "'mu' of model 'model' has a Delta",
    ),
    "empty sites only": (
        (lambda: numpyro.sample("none", dist.Normal(jnp.zeros(0), 1.0).to_event(1)),),
        ValueError,
        "has no latent site.*or empty",
    ),
    "whole numbers beyond int32": (
        (of(observe), np.array([3_000_000_000, 1])),
        TypeError,
        r"'y' .*2\*\*31.*as floats",
    ),
    "an obs_mask on an interval": (
        (
            of(lambda mu, y: numpyro.sample("y", dist.Beta(2.0, 2.0), obs=y, obs_mask=SEEN)),
            np.full(5, 0.5),
        ),
        ValueError,
        "'y' of model 'model' has an obs_mask and a distribution on UnitInterval",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_sampled_is_told_before_training(kind):
    (model, *args), error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        flatten_model(model, tuple(args), {})


def test_series_are_refused_as_numpyro_refuses_them():
    series = pytest.importorskip("pandas").Series(Y)
    with pytest.raises(TypeError, match=r"holds a Series.*jax\.numpy\.asarray"):
        flatten_model(of(observe), (series,), {})


SCALED = {
    "scale": (lambda: handlers.scale(scale=2.0), 2.0),
    "mask": (lambda: handlers.mask(mask=False), 0.0),
}


@pytest.mark.parametrize("handler", SCALED)
def test_handlers_scale_a_site_and_not_its_jacobian(handler):
    make, power = SCALED[handler]

    def model():
        with make():
            numpyro.sample("x", dist.HalfNormal(1.0))

    points = jnp.array([[-0.7], [0.13]])
    values = jax.vmap(flatten_model(model, (), {}).target.log_density)(points)
    expected = power * st.halfnorm.logpdf(np.exp(points[:, 0])) + points[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_parameters_are_initialised_by_the_data_that_there_are():
    def model(y):
        around = numpyro.param("around", y.mean())
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(around, 1.0)), 1.0), obs=y)

    flat = flatten_model(model, (jnp.zeros(3),), {})
    moved = flat.with_arguments((jnp.full(3, 2.0),), {})
    values = [m.target.log_density(jnp.array([at])) for m, at in ((flat, 0.0), (moved, 2.0))]
    assert values[0] == pytest.approx(float(values[1]))


def test_a_support_that_the_data_bound_is_found():
    """theta is at least 50, where no point within two of the origin is."""

    def model(y):
        theta = numpyro.sample("theta", dist.Exponential(0.01))
        numpyro.sample("y", dist.Uniform(0.0, theta), obs=y)

    starts = starting_points(KEY, flatten_model(model, (jnp.array([3.0, 50.0]),), {}))
    assert (jnp.exp(starts) >= 50.0).all()
    with pytest.raises(ValueError, match=r"1 of 2 values of the observed site 'y'.*Check the data"):
        starting_points(KEY, flatten_model(model, (jnp.array([3.0, -1.0]),), {}))


@pytest.mark.filterwarnings("ignore:Other arguments")
def test_models_that_cannot_be_hashed_have_draws_and_go_on():
    base = cs.bases.DiagonalBase(jnp.full(1, 0.5), jnp.full(1, 0.7))
    sampler = OneStepSampler(Scaled(1.0), effort="base", base=base, **QUICK)
    for shift in (0.0, 0.1):
        sampler.run(KEY, jnp.ones(1) + shift)
        assert abs(sampler.get_samples()["mu"].mean() - (0.5 + shift / 2)) < 0.05


def test_empty_sites_and_masked_factors_go_to_arviz(capsys):
    pytest.importorskip("arviz")

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("none", dist.Normal(jnp.zeros(0), 1.0).to_event(1))
        with handlers.mask(mask=jnp.array(True)):
            numpyro.factor("half", -0.5 * mu**2)
        numpyro.deterministic("positive", mu > 0.0)
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    base = cs.bases.DiagonalBase(jnp.full(1, 0.3), jnp.full(1, 0.6))
    sampler = OneStepSampler(model, effort="base", base=base, **QUICK)
    sampler.run(KEY, jnp.ones(1))
    sampler.print_summary(exclude_deterministic=False)
    assert "positive" in capsys.readouterr().out
    data = sampler.to_arviz()
    assert list(data["observed_data"]) == ["y"] and data["posterior"]["none"].shape[-1] == 0


# --- Posteriors ---------------------------------------------------------------------------------


def posterior(model, *args, **settings):
    """The sampler, the posterior mean and standard deviation of mu, and log Z."""
    sampler = OneStepSampler(model, **(QUICK | settings))
    sampler.run(KEY, *args)
    mu = np.asarray(sampler.get_samples()["mu"], float)
    return sampler, mu.mean(), mu.std(), sampler.evidence


def by_quadrature(log_density, low, high):
    grid = np.linspace(low, high, 20_001)
    logs = log_density(grid)
    weights = np.exp(logs - logs.max())
    log_z = logs.max() + math.log(weights.sum() * (grid[1] - grid[0]))
    weights /= weights.sum()
    mean = weights @ grid
    return mean, math.sqrt(weights @ (grid - mean) ** 2), log_z


def check(found, expected, noise=0.01):
    _, mean, std, evidence = found
    assert abs(mean - expected[0]) < 0.08 * expected[1]
    assert abs(std / expected[1] - 1.0) < 0.08
    assert abs(float(evidence.log_z) - expected[2]) < 4.0 * float(evidence.log_z_stderr) + noise
    assert cs.diagnostics.is_trustworthy(evidence)


def test_missing_values_are_sampled_and_nothing_else():
    found = posterior(of(lambda mu, y: observe(mu, y, obs_mask=~np.isnan(y))), HOLED)
    exact = st.multivariate_normal(np.zeros(4), np.eye(4) + 1.0).logpdf(Y)
    check(found, (Y.sum() / 5, 5**-0.5, exact))
    samples = found[0].get_samples()
    np.testing.assert_allclose(samples["y"][:, :4], np.tile(Y, (4_000, 1)), rtol=1e-6)
    missing = np.asarray(samples["y"][:, 4], float)
    assert abs(missing.mean() - Y.sum() / 5) < 0.1 and abs(missing.std() - 1.2**0.5) < 0.08
    # As many missing in other places are another data set, not the same coordinates.
    other = np.array([0.3, np.nan, 1.0, 2.0, -0.2])
    flat = found[0].flat_model.with_arguments((other,), {})
    (site,) = flat.constrain(jnp.array([[0.0, 7.0]]))["y"]
    np.testing.assert_allclose(site, np.nan_to_num(other, nan=7.0), rtol=1e-6)
    with pytest.raises(ValueError, match="latent sites"):
        found[0].flat_model.with_arguments((np.array([np.nan, *HOLED[1:]]),), {})


def test_improper_priors_have_their_posterior_and_go_to_arviz():
    pytest.importorskip("arviz")
    flat = dist.ImproperUniform(dist.constraints.real, (), ())
    found = posterior(of(observe, flat), Y)
    check(found, by_quadrature(lambda x: st.norm.logpdf(Y[:, None], x).sum(0), -6.0, 8.0))
    data = found[0].to_arviz(rng_key=jax.random.PRNGKey(1))
    expected = st.norm.logpdf(Y, np.asarray(data["posterior"]["mu"])[0, :, None])
    np.testing.assert_allclose(data["log_likelihood"]["y"][0], expected, atol=1e-4)


def test_parameters_in_arviz_are_those_of_the_training():
    pytest.importorskip("arviz")

    def model(y):
        weights = numpyro.param("weights", lambda key: jax.random.normal(key, (4,)))
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.deterministic("mean", mu + weights)
        numpyro.sample("y", dist.Normal(mu + weights, 1.0), obs=y)

    data = posterior(model, Y)[0].to_arviz()
    expected = st.norm.logpdf(Y, np.asarray(data["posterior"]["mean"])[0])
    np.testing.assert_allclose(data["log_likelihood"]["y"][0], expected, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_any_unit_will_do(scale):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, scale))
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)

    exact = st.multivariate_normal(np.zeros(4), np.eye(4) + 1.0).logpdf(Y) - 4 * math.log(scale)
    check(posterior(model, Y * scale), (scale * Y.sum() / 5, scale * 5**-0.5, exact))


def test_covariates_need_no_centring():
    rng = np.random.default_rng(0)
    x = 1e5 + 10.0 * rng.normal(size=30)
    y = 0.5 * (x - 1e5) + rng.normal(size=30)

    def model(x, y):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 1e3))
        slope = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(intercept + slope * x, 1.0), obs=y)

    features = np.column_stack([np.ones(30), x])
    prior = np.diag([1e6, 1.0])
    precision = np.linalg.inv(prior) + features.T @ features
    mean = np.linalg.solve(precision, features.T @ y)
    log_z = -0.5 * (y @ y - mean @ precision @ mean) - 15 * math.log(2 * math.pi)
    log_z -= 0.5 * np.linalg.slogdet(prior @ precision)[1]
    check(posterior(model, x, y), (mean[1], np.linalg.inv(precision)[1, 1] ** 0.5, log_z))


def test_times_in_seconds_keep_their_digits():
    """Single precision has steps of 128 seconds there; NumPy's arithmetic in a model has not."""
    times = 1.7e9 + np.arange(20.0)
    x = times - times.mean()
    y = 0.5 * x + np.random.default_rng(0).normal(size=20)

    def model(times, y):
        slope = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(slope * (times - times.mean()), 1.0), obs=y)

    precision = 1.0 + x @ x
    log_z = -10 * math.log(2 * math.pi) - 0.5 * math.log(precision)
    log_z -= 0.5 * (y @ y - (x @ y) ** 2 / precision)
    check(posterior(model, times, y), (x @ y / precision, precision**-0.5, log_z))


@pytest.mark.slow
def test_many_rows():
    y = (1.5 + np.random.default_rng(0).normal(size=200_000)).astype(np.float32)
    precision, total = 1.0 + len(y), y.sum(dtype=float)
    squares = (y.astype(float) ** 2).sum() - total**2 / precision
    log_z = -0.5 * (len(y) * math.log(2 * math.pi) + math.log(precision) + squares)
    check(posterior(of(observe), y), (total / precision, precision**-0.5, log_z))


# --- Terms too large for single precision -------------------------------------------------------


def poisson(k):
    def model(k):
        mu = numpyro.sample("mu", dist.Normal(math.log(k[0]), 1.0))
        numpyro.sample("k", dist.Poisson(jnp.exp(mu)), obs=k)

    def log_density(x):
        of_counts = k[:, None] * x - np.exp(x) - gammaln(k[:, None] + 1.0)
        return st.norm.logpdf(x, math.log(k[0])) + of_counts.sum(0)

    return model, log_density, math.log(k.mean()), k.sum() ** -0.5


def binomial(k):
    total = 3.0 * k[0]

    def model(k):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("k", dist.Binomial(total_count=total, logits=mu), obs=k)

    def log_density(x):
        ways = gammaln(total + 1.0) - gammaln(k[0] + 1.0) - gammaln(total - k[0] + 1.0)
        return st.norm.logpdf(x) + k[0] * x - total * np.logaddexp(0.0, x) + ways

    return model, log_density, -math.log(2.0), (total * 2.0 / 9.0) ** -0.5


@pytest.mark.parametrize(("make", "count"), [(poisson, 1e5), (poisson, 1e7), (binomial, 1e7)])
def test_counts_of_millions_have_their_posterior_and_log_z(make, count):
    k = np.array([count, count + 300.0][: 1 + (make is poisson)])
    model, log_density, mode, std = make(k)
    exact = by_quadrature(log_density, mode - 8 * std, mode + 8 * std)
    check(posterior(model, k), exact)


def test_values_are_mended_where_it_is_needed_and_nowhere_else():
    def fine(x):
        return -0.5 * jnp.sum(x**2)

    points = np.linspace(-1.0, 1.0, 70, dtype=np.float32)[:, None]
    values = evaluation.values(fine, points)
    assert rounding.mended(fine, points, values) is values
    k = np.array([1e5, 1e7])
    model, log_density, mode, std = poisson(k)
    flat = flatten_model(model, (k,), {})
    points = (mode + std * points).astype(np.float32)
    values = evaluation.values(flat.target.log_density, points)
    exact = log_density(points[:, 0].astype(float))
    assert np.abs(values - exact).max() > 2.0
    mended = rounding.mended(flat.target.log_density, points, values)
    np.testing.assert_allclose(mended, exact, rtol=1e-6, atol=1e-3)
    with pytest.warns(RuntimeWarning, match="Single precision is off by"):
        assert math.isnan(rounding.constant(flat.target.log_density, points, values))


def with_constants(big):
    return lambda x: -0.5 * jnp.sum(x**2) + jnp.sum(big * x[0])


def test_a_density_that_fixes_its_types_is_said_to_be_unmeasured():
    def density(x):
        total, _ = jax.lax.scan(lambda c, x: (c + x, None), jnp.zeros((), jnp.float32), x)
        return -0.5 * total**2 - 1e9 + 1e9

    points = np.ones((4, 2), np.float32)
    big = np.array([1e9, -1e9])
    for fixed in (density, with_constants(big)):
        values = evaluation.values(fixed, points)
        with pytest.warns(RuntimeWarning, match="To have it measured"):
            assert rounding.mended(fixed, points, values) is values
    of_jax = with_constants(jnp.asarray(big))
    np.testing.assert_array_equal(rounding.mended(of_jax, points, values), np.full(4, -1.0))


@pytest.mark.slow
def test_chains_on_the_noise_of_single_precision_say_so():
    k = np.array([1e7])
    sampler = OneStepSampler(poisson(k)[0], **QUICK)
    sampler.run(KEY, k)
    mcmc = MCMC(OneStepMH(sampler), num_warmup=0, num_samples=5, progress_bar=False)
    with pytest.warns(RuntimeWarning, match="jax_enable_x64"):
        mcmc.run(KEY, k)


DOUBLE = """
import sys

sys.path.insert(0, "tests")
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from test_scripts import poisson, by_quadrature, check, posterior

k = np.array([10_000_000, 10_000_300])
model, log_density, mode, std = poisson(k)
found = posterior(model, k)
check(found, by_quadrature(log_density, mode - 8 * std, mode + 8 * std))
assert found[0].get_samples()["mu"].dtype == np.float64
"""


@pytest.mark.slow
def test_double_precision_needs_none_of_it():
    subprocess.run([sys.executable, "-c", DOUBLE], check=True, cwd=ROOT)


# --- Keys of both styles ------------------------------------------------------------------------


def everything(make, folder):
    """Draws of all that takes a key."""
    sampler = OneStepSampler(of(observe), hidden=(8,), num_calibration_iterations=5, **QUICK)
    sampler.run(make(0), Y)
    sampler.save(folder)
    loaded = OneStepSampler(of(observe), **QUICK)
    loaded.load(folder, Y)
    loaded.run(make(1), Y)
    mcmc = MCMC(OneStepMH(loaded), num_warmup=0, num_samples=5, progress_bar=False)
    mcmc.run(make(2), Y)
    trained = loaded.trained
    draws = trained.sample(make(3), 50)
    even = corrections.resample(make(4), draws)
    return {
        "loaded": loaded.get_samples(),
        "draw": loaded.draw(make(5), 10, weights=True),
        "chain": mcmc.get_samples(),
        "evidence": trained.evidence(make(6), 500).log_z,
        "resampled": even.position,
        "chained": corrections.independence_metropolis(make(7), draws)[0],
        "moved": corrections.move(make(8), even, trained.target.log_density, num_moves=1)[
            0
        ].position,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Calibration did not improve:UserWarning")
def test_keys_of_both_styles_give_the_same_everywhere(tmp_path):
    results = [everything(make, tmp_path / "kept") for make in (jax.random.key, jax.random.PRNGKey)]
    jax.tree.map(np.testing.assert_array_equal, *results)


PAGES = [(ROOT / page).read_text() for page in ("README.md", "docs/start.md")]
# Iterations and draws, of which the tests need fewer.
FEWER = {"1_500": "50", "algorithm, 300": "algorithm, 20", "step, 1_000": "step, 50"}
FEWER |= {"1_000_000": "50_000"}
BLOCKS = re.findall(r"^```python\n(.*?)^```", "\n".join(PAGES), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Other arguments of model:UserWarning")
@pytest.mark.parametrize("make", ["key", "PRNGKey"])
def test_the_readme_and_the_first_page_run(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for i, block in enumerate(BLOCKS):
        block = block.replace("random.key(", f"random.{make}(")
        for number, fewer in FEWER.items():
            block = block.replace(number, fewer)
        exec(compile(block, f"block {i + 1}", "exec"), names)


# --- Folders in use, and Ctrl-C -----------------------------------------------------------------

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("process of another", end="", file=file, flush=True)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process writes to, and that process."""
    pytest.importorskip("fcntl")
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run" / ".lock")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    yield tmp_path / "run", child
    child.kill()
    child.communicate()


def train(folder, **settings):
    target = cs.Target(lambda x: -0.5 * jnp.sum(x**2), 1)
    base = cs.bases.standard_normal(1, scale=1.2)
    settings = {"hidden": (8,), "num_calibration_iterations": 5, "progress_bar": False} | settings
    return cs.train_sampler(KEY, target, base=base, checkpoint_dir=folder, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Calibration did not improve:UserWarning")
def test_a_folder_in_use_is_refused_and_that_of_the_dead_is_not(held):
    folder, child = held
    with pytest.raises(cs.CheckpointError, match=r"process of another.*a folder of its own"):
        train(folder)
    waiting = checkpoint.reserved(folder, wait_seconds=0.1)
    with pytest.raises(cs.CheckpointError, match="process of another"), waiting:
        pass
    child.kill()
    child.wait()
    assert (folder / ".lock").exists()
    trained = train(folder)
    assert not list(folder.rglob(".lock"))
    # In one process as well, and what waits gets its turn.
    with checkpoint.reserved(folder), pytest.raises(cs.CheckpointError, match="Another run"):
        train(folder)
    trained.save(folder / "kept")
    assert not list(folder.rglob(".lock"))


SAVER = """
import sys
import numpy as np
from consistent_samplers import checkpoint
for i in range(100):
    with checkpoint.reserved(sys.argv[1], wait_seconds=60.0):
        arrays = {"0": np.full(1_000, int(sys.argv[2]) * 1_000 + i)}
        checkpoint.write(sys.argv[1], "toy", {"by": int(sys.argv[2]) * 1_000 + i}, arrays)
"""


def test_two_that_save_to_one_folder_destroy_nothing(tmp_path):
    children = [
        subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path / "kept"), str(i)], cwd=ROOT)
        for i in range(2)
    ]
    num_read = 0
    while any(child.poll() is None for child in children):
        if checkpoint.exists(tmp_path / "kept"):
            header, arrays = checkpoint.read(tmp_path / "kept", "toy")
            assert (arrays["0"] == header["by"]).all()
            num_read += 1
    assert [child.returncode for child in children] == [0, 0] and num_read > 10
    assert len(list((tmp_path / "kept").iterdir())) == 2


INTERRUPTED = """
import sys

sys.path.insert(0, "tests")
from test_scripts import train
print("ready", flush=True)
train(sys.argv[1], num_calibration_iterations=3_000).save(sys.argv[1] + "/kept")
"""


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_a_folder_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    for delay in np.random.default_rng(0).uniform(0.5, 12.0, 5):
        command = [sys.executable, "-c", INTERRUPTED, str(folder)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=120)
        assert not list(folder.rglob(".lock")) and not list(folder.rglob("*.partial"))
    settings = {"num_calibration_iterations": 3_000}
    straight, resumed = train(None, **settings), train(folder, **settings)
    jax.tree.map(np.testing.assert_array_equal, straight.one_step.params, resumed.one_step.params)
