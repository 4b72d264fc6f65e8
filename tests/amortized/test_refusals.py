"""What cannot become a family is refused in words, before minutes are spent."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from amortized_models import TINY, designs, regression, slope, untrained

import consistent_samplers as cs
from consistent_samplers.amortized import building


def build(model, covariates=designs, num_rows=(4, 9), observed=None, **settings):
    given = TINY | dict(num_rows=num_rows, observed=observed or {"y": "y"}) | settings
    return cs.amortize(jax.random.key(0), model, covariates, **given)


def test_unknown_sites_and_settings():
    with pytest.raises(ValueError, match=r"no site 'z'.*the model's sites are 'b', 'y'"):
        build(regression, observed={"z": "y"})
    with pytest.raises(TypeError, match="unexpected keyword"):
        build(regression, observed={"y": "outcome"})
    with pytest.raises(ValueError, match="observed must map"):
        cs.amortize(jax.random.key(0), regression, designs, num_rows=5, observed={})
    with pytest.raises(ValueError, match=r"num_rows must be \(least, most\)"):
        build(regression, num_rows=(9, 4))
    for settings, words in [
        (dict(num_iterations=(1, 1, 1)), "num_iterations must be two numbers"),
        (dict(num_iterations=5), "num_iterations must be two numbers"),
        (dict(hidden=(64, 64)), "hidden, the width of the networks, must be an integer"),
        (dict(hidden=1), "at least 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            build(regression, **settings)
    with pytest.raises(TypeError, match="rng_key must be one key"):
        cs.amortize(0, regression, designs, num_rows=5, observed={"y": "y"})


def test_covariates_that_give_the_wrong_thing():
    with pytest.raises(TypeError, match=r"must return the model's arguments as \(args, kwargs\)"):
        build(regression, lambda key, n: jnp.zeros((n, 2)))
    with pytest.raises(ValueError, match="covariates gives y="):
        build(regression, lambda key, n: ((jnp.zeros((n, 2)),), {"y": jnp.zeros(n)}))
    with pytest.raises(ValueError, match="covariates gives NaN"):
        build(regression, lambda key, n: ((jnp.full((n, 2), jnp.nan),), {}))


def test_models_that_have_no_such_density():
    def discrete(X, y=None):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal(1.0 * k, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'k'.*is discrete"):
        build(discrete)

    def always_latent(X, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal(b, 1.0))

    with pytest.raises(ValueError, match=r"'y'.*stays latent"):
        build(always_latent)

    def improper(X, y=None):
        numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        regression(X, y)

    with pytest.raises(ValueError, match=r"cannot be drawn.*proper prior"):
        build(improper)


@pytest.mark.parametrize("look", [lambda X: int(X.max()), lambda X: np.asarray(X), bool])
def test_models_that_look_at_values(look):
    def looking(X, y=None):
        look(X[0, 0])
        regression(X, y)

    with pytest.raises(TypeError, match="'looking', or covariates, looks at the values"):
        build(looking)


Pair = collections.namedtuple("Pair", "x z")


def test_a_family_that_cannot_be_saved_is_warned_of_before_it_is_trained(monkeypatch):
    monkeypatch.setattr(building, "_trained", lambda *given: None)

    def model(pair, y=None):
        slope(pair.x, y)

    def pairs(rng_key, num_rows):
        return (Pair(jnp.ones(num_rows), jnp.ones(num_rows)),), {}

    with pytest.warns(RuntimeWarning, match="cannot be saved.*Pair"):
        build(model, pairs)


def test_arguments_of_saved_families_have_keys_of_any_kind(tmp_path):
    def model(columns, y=None):
        slope(columns[0], y)
        numpyro.deterministic("twice", 2.0 * columns[0])

    untrained(model, lambda key, n: (({0: jnp.ones(n)},), {})).save(tmp_path)
    again = cs.load_family(tmp_path, model)
    assert again.model.read(({0: np.ones(4)},), {"y": np.ones(4)}).mask.all()

    def renamed(columns, y=None):
        slope(columns[0], y)
        numpyro.deterministic("double", 2.0 * columns[0])

    with pytest.raises(ValueError, match=r"another one .it has no site 'twice'"):
        cs.load_family(tmp_path, renamed)


@pytest.mark.slow
def test_models_that_use_rows_together():
    def centred(X, y=None):
        b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal((X - X.mean(0)) @ b, 1.0), obs=y)

    with pytest.raises(ValueError, match="uses its rows together"):
        build(centred)
    assert build(centred, num_rows=6, num_iterations=(0, 0)).model.max_rows == 6

    def process(X, y=None):
        cov = jnp.eye(len(X)) + jnp.exp(-0.5 * (X[:, None, 0] - X[None, :, 0]) ** 2)
        f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(len(X)), cov))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal(f, 1.0), obs=y)

    with pytest.raises(ValueError, match="one draw of all rows together"):
        build(process)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In at least:RuntimeWarning")
def test_priors_that_simulate_nonsense():
    def wide(X, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 60.0))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal(jnp.exp(b) * X[:, 0], 1.0), obs=y)

    with pytest.warns(RuntimeWarning, match=r"simulates NaN or infinite numbers.*TruncatedNormal"):
        build(wide, num_iterations=(0, 0))

    def nonsense(X, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal(jnp.log(-jnp.exp(b)), 1.0), obs=y)

    with pytest.raises(ValueError, match="simulates NaN or infinite numbers"):
        build(nonsense)


def test_data_sets_of_other_kinds(linear):
    X, y = np.ones((5, 2)), np.ones(5)
    cases = [
        (((X,), {}), "lacks y="),
        (((X,), {"y": y, "more": 3}), "The arguments of this data set"),
        (((X[:, :1],), {"y": y}), r"has shape \(5, 1\)"),
        (((X,), {"y": y[:4]}), r"has shape \(4,\)"),
        (((X,), {"y": np.full(5, np.nan)}), "NaN or infinite"),
        (((X[:0],), {"y": y[:0]}), "has no rows"),
    ]
    for given, words in cases:
        with pytest.raises((ValueError, TypeError), match=words):
            linear.condition_many(jax.random.key(0), [given], progress_bar=False)
    with pytest.raises(TypeError, match=r"Data set 0 must be the model's arguments"):
        linear.condition_many(jax.random.key(0), [X], progress_bar=False)
    with pytest.raises(TypeError, match=r"data_sets must be a list of pairs.*got int"):
        linear.condition_many(jax.random.key(0), 3, progress_bar=False)
    with pytest.raises(ValueError, match="data_sets is empty"):
        linear.condition_many(jax.random.key(0), [], progress_bar=False)
