"""What a data set is, row by row: sizes, what models make of all rows, and numbers as given."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from amortized_models import bare, centred, column, probed, slope, untrained
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import potential_energy

from consistent_samplers.amortized import answering, simulated


def summed(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
    numpyro.deterministic("total", jnp.exp(theta).sum())
    numpyro.deterministic("share", jnp.exp(theta) / jnp.exp(theta).sum())
    numpyro.deterministic("largest", theta.max())


def errors(rng_key, num_rows):
    return (jax.random.uniform(rng_key, (num_rows,), minval=0.5, maxval=2.0),), {}


def test_what_models_make_of_all_rows_is_that_of_the_rows_of_each_data_set():
    padded, pairs = probed(summed, errors)
    at = pairs.globals[:, None], pairs.members[:, None] - 3.0
    samples = answering.sites_of(padded, at, pairs.data)
    sizes = pairs.data.mask.sum(1)
    assert len(set(sizes)) == 5
    for i, n in enumerate(sizes):
        theta, found = samples["theta"][i], {n: x[i] for n, x in samples.items()}
        assert theta.shape == (1, 6) and np.isfinite(theta[:, :n]).all()
        exp = np.exp(theta[:, :n])
        np.testing.assert_allclose(found["total"], exp.sum(1), rtol=1e-4)
        np.testing.assert_allclose(found["share"][:, :n], exp / exp.sum(1)[:, None], rtol=1e-4)
        np.testing.assert_allclose(found["largest"], theta[:, :n].max(1), rtol=1e-4)
        for name in ("theta", "share"):
            assert np.isnan(found[name][:, n:]).all()


@pytest.mark.slow
def test_one_data_set_has_the_rows_that_it_has():
    family = untrained(summed, errors)
    given = np.ones(2), dict(y=np.zeros(2), num_samples=200, escalate=False)
    one = family.condition(jax.random.key(0), given[0], **given[1])
    for samples in (one.get_samples(), one.samples):
        assert samples["theta"].shape == samples["share"].shape == (200, 2)
        assert samples["total"].shape == (200,)
        assert all(np.isfinite(x).all() for x in samples.values())


def prior_of_rows(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 10.0 / jnp.sqrt(x.shape[0])))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(b + 0.0 * x, 10.0), obs=y)


def support_of_rows(x, y=None):
    numpyro.sample("top", dist.Uniform(0.0, x.shape[0]))
    slope(x, y)


def above_the_others(x, y=None):
    with numpyro.plate("rows", x.shape[0]):
        level = numpyro.sample("level", dist.Normal(4.0, 0.1))
        numpyro.sample("y", dist.Normal(level - level.max() + x, 1.0), obs=y)


@pytest.mark.parametrize(
    "model, site",
    [(centred, "y"), (prior_of_rows, "b"), (support_of_rows, "top"), (above_the_others, "y")],
)
def test_models_that_use_rows_together_are_told_by_any_of_their_terms(model, site):
    with pytest.raises(
        ValueError, match=rf"uses its rows together.*of site '\w*{site}.*one number"
    ):
        probed(model, rows=(200, 400) if model is prior_of_rows else (2, 6))
    padded, _ = probed(model, rows=(6, 6))
    assert padded.max_rows == 6


def test_a_family_of_one_size_answers_others_as_they_are():
    family = bare(centred, rows=(8, 8))
    x = np.array([0.0, 1.0, 2.0, 10.0])
    ((model, data),) = family._read([((x,), {"y": x})])
    found = model.log_density((jnp.array([0.5]), jnp.zeros((4, 0))), data)
    exact = st.norm.logpdf(0.5) + st.norm.logpdf(x, 0.5 * (x - x.mean())).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.slow
def test_answers_to_other_sizes_than_the_one_that_was_simulated():
    family = untrained(centred, rows=(8, 8))
    sets = []
    for x in ([0.0, 1.0, 2.0, 10.0], np.arange(8.0), np.arange(11.0)):
        sets.append(((np.array(x),), {"y": np.cos(x)}))
    many = family.condition_many(jax.random.key(1), sets, num_samples=2_000, progress_bar=False)
    for i, ((x,), kwargs) in enumerate(sets):
        c, y = x - x.mean(), kwargs["y"]
        covariance = np.eye(len(x)) + np.outer(c, c)
        exact = -0.5 * y @ np.linalg.solve(covariance, y)
        exact -= 0.5 * np.linalg.slogdet(2.0 * np.pi * covariance)[1]
        np.testing.assert_allclose(many.evidence.log_z[i], exact, atol=0.02)
        mean = many.get_samples()["b"][i].mean()
        np.testing.assert_allclose(mean, c @ y / (1.0 + c @ c), atol=0.05)
    assert many.unlike.tolist() == [True, False, True]


def process(x, y=None):
    covariance = jnp.eye(len(x)) + jnp.exp(-0.5 * (x[:, None] - x) ** 2)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(len(x)), covariance))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(f, 1.0), obs=y)


def given_covariance(covariance, y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    both = scale * covariance + jnp.eye(len(covariance))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(covariance)), both), obs=y)


def increments(times, y=None):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Gamma(rate * jnp.diff(times), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model, covariates, num_observed",
    [
        (process, column, 6),
        (given_covariance, lambda key, n: ((jnp.eye(n),), {}), 6),
        (increments, lambda key, n: ((jnp.arange(1.0 * n),), {}), 5),
    ],
)
def test_models_of_one_size_alone_need_no_rows(model, covariates, num_observed):
    padded, pairs = probed(model, covariates, (6, 6))
    assert pairs.data.observed["y"].shape == (40, num_observed)
    (argument,), _ = covariates(jax.random.key(0), 6)
    assert padded.read((argument,), {"y": np.ones(num_observed)}).mask.all()
    (argument,), _ = covariates(jax.random.key(0), 7)
    with pytest.raises(ValueError, match="has shape"):
        padded.read((argument,), {"y": np.ones(num_observed)})


def walk(x, y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(level, row):
        level = numpyro.sample("level", dist.LogNormal(level, scale))
        numpyro.sample("y", dist.Normal(level + row[0], 1.0), obs=row[1])
        return 0.1 * level, None

    scan(step, 0.0, (x, y), length=x.shape[0])


def test_models_that_scan_over_rows():
    padded, _ = probed(walk, rows=(3, 6))
    x, y = np.ones(3), np.full(3, 1.5)
    at = jnp.array([0.3]), jnp.linspace(-1.0, 1.0, 6)[:, None]
    cut = padded.with_rows(3).unravel(at[0], at[1][:3])
    seeded = numpyro.handlers.seed(walk, 0)
    exact = -potential_energy(seeded, (jnp.array(x),), {"y": jnp.array(y)}, cut)
    found = padded.log_density(at, padded.pad((x,), {"y": y}))
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def doses(dose, group, y=None):
    b = numpyro.sample("b", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with numpyro.plate("rows", group.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(dose * b[group])), obs=y)


def dosed(rng_key, num_rows):
    return (jax.random.uniform(rng_key), jnp.arange(num_rows) % 3), {}


@pytest.mark.parametrize(
    "group, y, words",
    [
        ([0.9, 0.9, 1.9], [1, 1, 1], "Argument 1.*holds 0.9, and was simulated as int32"),
        ([0, 1, 2], [1.9, 1, 1], "Site 'y'.*holds 1.9"),
        ([0, 1, 2], [2**33, 1, 1], "Site 'y'.*holds 8589934592"),
        ([0, 1, 2], [1, 1, 1j], "Site 'y'.*is complex"),
        ([0, 1, 2], [1, None, 1], "Site 'y'.*holds None"),
        ([0, 1, 2], ["a", "b", "c"], "Site 'y'.*holds str 'a'"),
        ([0, 1, 2], np.ma.array([1, 2, 3], mask=[0, 0, 1]), "masked"),
        ([], [], "has no rows"),
    ],
)
def test_numbers_that_would_change_are_refused(group, y, words):
    padded, _ = probed(doses, dosed)
    with pytest.raises(ValueError, match=words):
        padded.read((0.5, np.array(group)), {"y": y})


@pytest.mark.parametrize("more", [[1e39, 0.0, 0.0], 1.7e9 + np.array([0.0, 10.0, 20.0])])
def test_numbers_beyond_single_precision_are_refused(more):
    padded, _ = probed(slope)
    with pytest.raises(ValueError, match=r"float32 cannot tell apart.*jax_enable_x64"):
        padded.read((np.array(more),), {"y": np.zeros(3)})


def test_numbers_may_come_as_any_kind_that_holds_them():
    padded, _ = probed(doses, dosed)
    group, y = np.array([0, 1, 2]), np.array([1, 2, 3])
    same = padded.read((0.5, group), {"y": y})
    for dose, other, values in [
        (np.float32(0.5), group.astype(float), [1.0, 2.0, 3.0]),
        (jnp.array(0.5), jnp.array(group), y.astype(np.uint8)),
    ]:
        jax.tree.map(np.testing.assert_array_equal, padded.read((dose, other), {"y": values}), same)


def counted(num_rows, scale, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, scale))
    with numpyro.plate("rows", num_rows):
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


def test_plain_numbers_may_come_from_numpy():
    padded, _ = probed(counted, lambda key, n: ((n, 0.1), {}))
    for given in [(3, 0.1), (np.int64(3), np.float32(0.1)), (jnp.array(3), jnp.array(0.1))]:
        assert len(padded.read(given, {"y": np.ones(3)}).mask) == 3
    for given, words in [((4, 0.1), "the number of rows, 3"), ((3, 0.2), "must be 0.1")]:
        with pytest.raises(ValueError, match=words):
            padded.read(given, {"y": np.ones(3)})


def test_the_check_of_rows_takes_rounding_for_what_it_is():
    def large(x, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(1e3 * b + jnp.cumsum(x), 1.0), obs=y)

    padded, pairs = probed(large, rows=(30, 200))
    simulated.check_padding(padded, pairs)
