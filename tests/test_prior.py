"""Yesterday's posterior as today's prior: its density, its sites, streams of data."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to, constraints, transforms
from numpyro.infer import MCMC, NUTS, Predictive, init_to_median
from numpyro.infer.util import compute_log_probs
from scipy.stats import multivariate_normal, norm

import consistent_samplers as cs
from consistent_samplers.bases.diagonal import DiagonalBase
from consistent_samplers.diagnostics import Mixing
from consistent_samplers.integrations.numpyro import OneStepSampler, Prior
from consistent_samplers.integrations.numpyro.model import flatten_model

KEY = jax.random.key(0)
BASE = {"effort": "base", "explore": False, "progress_bar": False, "num_samples": 2_000}
LOC, COVARIANCE = np.array([1.0, -2.0, 0.5]), np.diag([1.0, 4.0, 0.25]) + 0.3


def of_gaussian(sites=()):
    """A trained sampler that is exact."""
    factor = jnp.asarray(np.linalg.cholesky(COVARIANCE))
    base = cs.Sampler.of_base(cs.bases.GaussianBase(jnp.asarray(LOC), factor))
    target = cs.targets.gaussian(jnp.asarray(LOC), jnp.asarray(COVARIANCE))
    return cs.TrainedSampler(dataclasses.replace(target, sites=sites), base, base)


@pytest.fixture(scope="module")
def gaussian():
    return cs.as_prior(of_gaussian())


def moved_map(base, size=0.06, hidden=(8,), **settings):
    """A one-step sampler with parameters that do something, and a target for its weights."""
    target = cs.Target(lambda x: -0.5 * jnp.sum(x**2), dim=2)
    algorithm = cs.osds(target, base=base, max_steps=1, hidden=hidden, guidance=None, **settings)
    sampler = algorithm.sampler(algorithm.init(KEY))
    leaves, structure = jax.tree.flatten(sampler.params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    leaves = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return sampler.replace(params=jax.tree.unflatten(structure, leaves)), target


MIXTURE = (jnp.log(jnp.array([0.3, 0.7])), jnp.array([[-1.0, 0.0], [1.5, 0.5]]))
MAPS = {
    "one frame": (lambda: cs.bases.standard_normal(2), {}),
    "two frames": (lambda: cs.bases.mixture(*MIXTURE, jnp.stack([0.7 * jnp.eye(2)] * 2)), {}),
    "structured": (lambda: cs.bases.standard_normal(2), {"network": "structured"}),
}

# --- density -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "structured",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("one frame", "two frames")),
    ],
)
def test_a_map_has_an_exact_differentiable_density(name):
    make, settings = MAPS[name]
    sampler, target = moved_map(make(), **settings)
    draws = sampler.sample(jax.random.key(1), target, 256)
    assert not np.any(draws.flow.folded)

    def log_prob(x):
        return sampler.control.log_prob(sampler.params, x)

    if name != "two frames":  # where a draw's own weight knows its frame
        found = jax.jit(jax.vmap(log_prob))(draws.position)
        np.testing.assert_allclose(found, draws.log_density - draws.log_weight, atol=2e-5)
    axis = np.linspace(-8.0, 8.0, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = np.exp(jax.jit(jax.vmap(log_prob))(jnp.asarray(grid, float))).sum()
    assert abs(total * (axis[1] - axis[0]) ** 2 - 1.0) < 2e-3
    x, step, eye = draws.position[0], 1e-2, np.eye(2)
    gradient = jax.jit(jax.grad(log_prob))
    orders = [(jax.jit(log_prob), gradient)]
    if name == "one frame":  # as structure and modes are found by
        orders.append((gradient, jax.jit(jax.hessian(log_prob))))
    for function, derivative in orders:
        differences = [(function(x + step * e) - function(x - step * e)) / (2 * step) for e in eye]
        np.testing.assert_allclose(derivative(x), np.stack(differences), atol=0.02)


def test_what_the_map_does_not_reach_has_no_density():
    sampler, _ = moved_map(cs.bases.standard_normal(2), size=0.15, hidden=(16,))  # it folds
    points = jnp.asarray(np.random.default_rng(0).uniform(-9.0, 9.0, (200, 2)), float)
    found = jax.jit(jax.vmap(lambda x: sampler.control.log_prob(sampler.params, x)))(points)
    assert np.isneginf(found).any() and not np.isnan(found).any()


def test_log_prob_is_that_of_the_posterior(gaussian):
    exact = multivariate_normal(LOC, COVARIANCE)
    points = np.asarray(exact.rvs(12, random_state=0), np.float32).reshape(3, 4, 3)
    expected = exact.logpdf(points)
    found = gaussian.log_prob(jnp.asarray(points))
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(gaussian.log_prob)(points), found, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(gaussian.log_prob)(points), found, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(gaussian.log_prob)(jnp.asarray(points[0, 0]))
    np.testing.assert_allclose(gradient, -np.linalg.solve(COVARIANCE, points[0, 0] - LOC), 1e-3)
    assert gaussian.density == "map" and gaussian.ess > 0.999 and "100 %" in gaussian.note


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["new", "old"])
def test_draws_have_shapes_and_moments(gaussian, key):
    assert gaussian.sample(key).shape == (3,)
    assert gaussian.sample(key, (0,)).shape == (0, 3)
    drawn = jax.jit(lambda k: gaussian.sample(k, (2, 4_000)))(key)
    assert drawn.shape == (2, 4_000, 3)
    np.testing.assert_allclose(drawn.mean((0, 1)), LOC, atol=0.12)
    np.testing.assert_allclose(np.cov(drawn.reshape(-1, 3).T), COVARIANCE, rtol=0.1, atol=0.08)
    assert bool(jnp.all(gaussian.support(drawn)))
    own = cs.as_prior(of_gaussian(), rng_key=key)
    np.testing.assert_allclose(own.log_prob(drawn[0, 0]), gaussian.log_prob(drawn[0, 0]), 1e-5)


def test_its_unconstrained_space_is_standardised(gaussian):
    to = biject_to(gaussian.support)
    drawn = gaussian.sample(KEY, (4_000,))
    z = to.inv(drawn)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=0.08)
    np.testing.assert_allclose(z.std(0), 1.0, atol=0.08)
    jacobian = jax.jacobian(to)(z[0])
    expected = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(to.log_abs_det_jacobian(z[0], drawn[0]), expected, rtol=1e-5)


def test_it_is_a_pytree_of_arrays(gaussian):
    x = jnp.asarray(LOC, float)
    through = jax.jit(lambda prior, x: prior.log_prob(x))(gaussian, x)
    np.testing.assert_allclose(through, gaussian.log_prob(x), rtol=1e-5)
    other = cs.as_prior(of_gaussian(), rng_key=jax.random.key(9))
    assert jax.tree.structure(other) == jax.tree.structure(gaussian)
    assert gaussian.support == gaussian.support and gaussian.support != other.support
    leaves, structure = jax.tree.flatten(gaussian)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Prior) and again.support == gaussian.support


# --- sites -------------------------------------------------------------------------------------


def free():
    """Sites that are Gaussian where they are unconstrained, so that a base is exact."""
    numpyro.sample("angle", dist.Normal(3.0, 0.1).expand([2, 2]).to_event(2))
    with numpyro.plate("groups", 2):
        numpyro.sample("scale", dist.LogNormal(0.3, 0.5))
    normal = dist.Normal(jnp.array([0.5, -0.5]), 0.4).to_event(1)
    stick = transforms.StickBreakingTransform()
    numpyro.sample("share", dist.TransformedDistribution(normal, stick))


@pytest.fixture(scope="module")
def free_sampler():
    sampler = OneStepSampler(free, **BASE)
    sampler.run(KEY)
    return sampler


@pytest.fixture(scope="module")
def free_prior(free_sampler):
    return cs.as_prior(free_sampler)


@pytest.mark.slow
def test_constraint_transforms_are_in_the_density(free_prior):
    drawn = free_prior.sample(KEY, (5,))
    sites = free_prior.unpack(drawn)
    assert {k: v.shape for k, v in sites.items()} == {
        "angle": (5, 2, 2),
        "scale": (5, 2),
        "share": (5, 3),
    }
    for i in range(5):
        each = {name: value[i] for name, value in sites.items()}
        log_probs, _ = compute_log_probs(free, (), {}, each)
        # Half a hundredth: what the fit of the base leaves.
        np.testing.assert_allclose(free_prior.log_prob(drawn[i]), sum(log_probs.values()), atol=0.1)
    assert free_prior.event_shape == (9,)
    outside = drawn[0].at[4].set(-1.0)
    assert free_prior.log_prob(outside) == -jnp.inf
    assert not free_prior.support(outside) and bool(free_prior.support(drawn).all())
    assert np.isfinite(jax.grad(free_prior.log_prob)(outside)).all()
    to = biject_to(free_prior.support)
    assert to.inverse_shape((7, 9)) == (7, 8) and to.forward_shape((8,)) == (9,)
    np.testing.assert_allclose(to(to.inv(drawn)), drawn, atol=1e-5)


def test_sites_are_sampled_under_their_own_names(free_prior):
    def model(prior):
        prior.sites()

    trace = handlers.trace(handlers.seed(model, 0)).get_trace(free_prior)
    values = {name: site["value"] for name, site in trace.items()}
    assert list(values) == ["angle", "scale", "share"]
    flat = jnp.concatenate([value.reshape(-1) for value in values.values()])
    log_probs, _ = compute_log_probs(model, (free_prior,), {}, values)
    np.testing.assert_allclose(sum(log_probs.values()), free_prior.log_prob(flat), rtol=1e-5)
    drawn = Predictive(model, num_samples=2_000)(KEY, free_prior)
    np.testing.assert_allclose(drawn["angle"].mean(0), 3.0, atol=0.02)
    assert trace["share"]["fn"].support(values["share"])


@pytest.mark.parametrize("given", ["angle", "scale", "share"])
def test_sites_are_given_all_or_none(free_prior, given):
    """Given one of them the others have another distribution than in a joint draw."""

    def model(prior):
        prior.sites()

    values = free_prior.unpack(free_prior.sample(KEY))
    conditioned = handlers.condition(model, {given: values[given]})
    with pytest.raises(ValueError, match=rf"in part \({given}\): give all of them, or none"):
        Predictive(conditioned, num_samples=3)(KEY, free_prior)
    whole = handlers.condition(model, values)
    found = handlers.trace(handlers.seed(whole, 0)).get_trace(free_prior)["share"]["value"]
    np.testing.assert_array_equal(found, values["share"])
    # Places to start from are no draws.
    start = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_median())
    assert handlers.trace(start).get_trace(free_prior)["share"]["value"].shape == (3,)


def prior_of(model):
    """A prior with a standard normal density over a model's unconstrained sites."""
    flat = flatten_model(model, (), {})
    base = cs.Sampler.of_base(cs.bases.standard_normal(flat.target.dim))
    sampler = OneStepSampler(model)
    sampler._training = flat, cs.TrainedSampler(flat.target, base, base)
    with warnings.catch_warnings(action="ignore"):  # of what the prior is worth
        return cs.as_prior(sampler, density="map")


def one_site(fn):
    def model():
        numpyro.sample("site", fn)

    return model


OUTSIDE = {
    "positive": (dist.Gamma(3.0, 2.0), -1.0),
    "interval": (dist.Uniform(0.0, 1.0), 2.0),
    "its edge": (dist.Uniform(0.0, 1.0), 0.0),
    "ordered": (dist.ImproperUniform(constraints.ordered_vector, (), (3,)), [3.0, 2.0, 1.0]),
    "simplex, negative": (dist.Dirichlet(jnp.array([3.0, 4.0, 5.0])), [-0.1, 0.6, 0.5]),
    "simplex, sum": (dist.Dirichlet(jnp.array([3.0, 4.0, 5.0])), [0.2, 0.2, 0.2]),
    "cholesky": (dist.LKJCholesky(2, 2.0), [[1.0, 0.0], [0.6, -0.8]]),
    "correlation": (dist.LKJ(2, 2.0), [[1.0, 2.0], [2.0, 1.0]]),
    "plate of simplices": (
        dist.Dirichlet(jnp.ones((2, 2))).to_event(1),
        [[0.5, 0.5], [1.5, -0.5]],
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_of_the_support_there_is_no_density(name):
    fn, value = OUTSIDE[name]
    prior = prior_of(one_site(fn))
    outside = jnp.asarray(value, float).reshape(-1)
    assert jax.jit(prior.log_prob)(outside) == -jnp.inf
    assert np.isfinite(jax.grad(prior.log_prob)(outside)).all()
    drawn = prior.sample(KEY, (500,))
    assert jnp.isfinite(prior.log_prob(drawn)).all()


def bounded_by_arrays():
    numpyro.sample("a", dist.Uniform(jnp.array([0.0, 1.0, 2.0]), 4.0))
    numpyro.sample("b", dist.TruncatedNormal(0.0, 1.0, low=jnp.zeros(2)))
    numpyro.sample("c", dist.Uniform(0.0, jnp.arange(3.0).max()))


def test_bounds_that_are_arrays_are_fixed_supports():
    prior = prior_of(bounded_by_arrays)
    assert prior.event_shape == (6,) and prior.support == prior_of(bounded_by_arrays).support
    below = prior.sample(KEY).at[1].set(0.5)
    assert prior.log_prob(below) == -jnp.inf
    assert prior.support.parts[0] != prior.support.parts[1]


def test_nuts_finds_a_narrow_prior_far_away(free_prior):
    """The start is within the prior's bulk; the posterior of one more angle is in closed form."""

    def model(prior, y):
        theta = numpyro.sample("theta", prior)
        angle = prior.unpack(theta)["angle"][0, 0]
        numpyro.sample("y", dist.Normal(angle, 0.1), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=400, progress_bar=False)
    mcmc.run(KEY, free_prior, 3.2)
    angle = free_prior.unpack(mcmc.get_samples()["theta"])["angle"][:, 0, 0]
    assert abs(angle.mean() - 3.1) < 0.03 and abs(angle.std() - 0.1 / np.sqrt(2)) < 0.02


# --- some sites --------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", ["b", ["c", "a"]])
def test_a_marginal_of_a_gaussian_is_exact(sites):
    prior = cs.as_prior(of_gaussian((("a", 1), ("b", 1), ("c", 1))), sites)
    index = [1] if sites == "b" else [0, 2]  # in the order that they have in a point
    exact = multivariate_normal(LOC[index], COVARIANCE[np.ix_(index, index)])
    points = jnp.asarray(exact.rvs(5, random_state=0).reshape(5, -1), float)
    np.testing.assert_allclose(prior.log_prob(points), exact.logpdf(points), rtol=1e-4, atol=1e-4)
    assert prior.density == "map" and list(prior.unpack(points)) == sorted(sites)


@pytest.mark.slow
def test_the_globals_of_a_hierarchical_map_have_a_marginal():
    target = cs.Target(lambda x: -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2)), dim=11)
    control = cs.maps.hierarchical_map(
        DiagonalBase(jnp.full(11, 0.3), jnp.full(11, 1.2)), target.structure
    )
    keys = iter(jax.random.split(KEY, 100))
    params = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), control.init(KEY)
    )
    index = np.asarray(control.globals)
    kept, own = cs.maps.marginal(control, params, index)
    z = jax.random.normal(jax.random.key(4), (11,))
    there = control.place(control.forward(params, z)[0])[0][index]
    np.testing.assert_allclose(
        kept.place(kept.forward(own, z[: len(index)])[0])[0], there, rtol=1e-5
    )
    axis = jnp.linspace(-30.0, 30.0, 6_001)
    density = jnp.exp(jax.vmap(lambda x: kept.log_prob(own, x))(axis[:, None]))
    assert abs(float(density.sum() * 0.01) - 1.0) < 1e-3
    assert cs.maps.marginal(control, params, np.array([1, 2])) is None


def test_a_marginal_without_a_density_is_fitted_to_weighted_draws():
    """The map is off; the fit follows the weights."""
    sampler, _ = moved_map(cs.bases.standard_normal(2, scale=1.4))
    target = cs.Target(lambda x: -0.5 * jnp.sum((x - 0.5) ** 2), dim=2, sites=(("a", 1), ("b", 1)))
    trained = cs.TrainedSampler(target, sampler, sampler)
    prior = cs.as_prior(trained, "a")
    assert prior.density == "draws" and prior.ess is None and "not measured" in prior.note
    x = jnp.linspace(-1.5, 2.5, 9)[:, None]
    np.testing.assert_allclose(prior.log_prob(x), norm(0.5, 1.0).logpdf(x[:, 0]), atol=0.1)
    whole = cs.as_prior(trained)
    assert whole.density == "draws" and whole.ess > 0.98  # better than the map
    assert cs.as_prior(trained, density="map").ess < 0.95
    with pytest.raises(ValueError, match='leave out density="map"'):
        cs.as_prior(trained, "a", density="map")


# --- chains ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chained():
    """A sampler whose one step is far too narrow, and chains that are not."""
    exact = of_gaussian((("a", 1), ("b", 1), ("c", 1)))
    chains = cs.corrections.latent_chains(
        KEY, exact.target, exact.one_step, num_warmup=200, num_samples=1_000
    )
    narrow = cs.Sampler.of_base(cs.bases.standard_normal(3, scale=0.3))
    return cs.TrainedSampler(exact.target, narrow, narrow, chains=chains)


def test_a_sampler_with_chains_gives_their_density(chained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior = cs.as_prior(chained)
    assert prior.density == "draws" and "fitted to draws of chains" in prior.note
    assert prior.ess > 0.9
    points = np.asarray(multivariate_normal(LOC, COVARIANCE).rvs(50, random_state=0), np.float32)
    exact = multivariate_normal(LOC, COVARIANCE).logpdf(points)
    assert np.abs(prior.log_prob(points) - exact).mean() < 0.1
    part = cs.as_prior(chained, ["c", "a"])
    exact = multivariate_normal(LOC[[0, 2]], COVARIANCE[np.ix_([0, 2], [0, 2])]).logpdf
    assert np.abs(part.log_prob(points[:, [0, 2]]) - exact(points[:, [0, 2]])).mean() < 0.1
    # The map as it is, where that is asked for.
    with pytest.warns(UserWarning, match="draws that are not to be used"):
        assert cs.as_prior(chained, density="map").ess < 0.1


def test_chains_that_are_worth_less_than_one_step_are_left_alone(chained):
    """The chains are elsewhere, and say that they did not mix."""
    elsewhere = chained.chains._replace(
        position=chained.chains.position + 9.0, mixing=Mixing(1.4, 9.0, 9.0, 0.0)
    )
    exact = dataclasses.replace(of_gaussian(), chains=elsewhere)
    prior = cs.as_prior(exact, density="draws")
    assert "weighted draws" in prior.note and prior.ess > 0.95


# --- refusals ----------------------------------------------------------------------------------


def test_what_cannot_be_a_prior_says_so(free_sampler):
    with pytest.raises(TypeError, match="takes a TrainedSampler or a OneStepSampler"):
        cs.as_prior(cs.targets.gaussian(jnp.zeros(1), jnp.ones(1)))
    with pytest.raises(RuntimeError, match=r"call run\(rng_key"):
        cs.as_prior(OneStepSampler(free))
    with pytest.raises(
        ValueError, match=r"no latent site 'nothing'\. There are angle, scale, share"
    ):
        cs.as_prior(free_sampler, ["angle", "nothing"])
    with pytest.raises(ValueError, match="names no site"):
        cs.as_prior(free_sampler, [])
    with pytest.raises(ValueError, match="density"):
        cs.as_prior(free_sampler, density="kernel")
    with pytest.raises(TypeError, match="rng_key"):
        cs.as_prior(free_sampler, rng_key=3)


@pytest.mark.slow
def test_a_support_that_depends_on_other_sites_is_refused():
    def model():
        low = numpyro.sample("low", dist.Normal(0.0, 1.0))
        numpyro.sample("between", dist.Uniform(low, low + 1.0))

    sampler = OneStepSampler(model, **BASE)
    sampler.run(KEY)
    with pytest.raises(ValueError, match="support of site 'between' depends on other sites"):
        cs.as_prior(sampler)
    assert cs.as_prior(sampler, "low").event_shape == (1,)
    assert cs.as_prior(sampler.trained).event_shape == (2,)  # unconstrained


def test_draws_that_are_not_to_be_used_warn():
    base = cs.Sampler.of_base(cs.bases.standard_normal(3, scale=0.3))
    trained = cs.TrainedSampler(of_gaussian().target, base, base)
    with pytest.warns(UserWarning, match="rests on draws that are not to be used: "):
        prior = cs.as_prior(trained, density="map")
    assert "train with" in prior.note and 'density="draws"' in prior.note


# --- streams -----------------------------------------------------------------------------------


def of_mean(y, prior=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0)) if prior is None else prior.sites()["mu"]
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def stream(model, batches, seed, **settings):
    """The last sampler, and log Z of all batches with its variance."""
    prior, total, variance = (), 0.0, 0.0
    for i, batch in enumerate(batches):
        sampler = OneStepSampler(model, progress_bar=False, **settings)
        sampler.run(jax.random.key(seed + i), *batch, *prior)
        total += float(sampler.evidence.log_z)
        variance += float(sampler.evidence.log_z_stderr) ** 2
        prior = (cs.as_prior(sampler),)
    return sampler, total, np.sqrt(variance)


@pytest.mark.slow
def test_batches_one_after_another_are_all_data_at_once():
    y = np.random.default_rng(2).normal(1.5, 1.0, 24).astype(np.float32)
    sampler, log_z, _ = stream(
        of_mean, [(part,) for part in np.split(y, 3)], 0, effort="base", num_samples=4_000
    )
    precision = 0.25 + len(y)
    mean, std = y.sum() / precision, precision**-0.5
    drawn = sampler.get_samples()["mu"]
    assert abs(drawn.mean() - mean) < 0.1 * std and abs(drawn.std() / std - 1.0) < 0.05
    marginal = multivariate_normal(np.zeros(len(y)), np.eye(len(y)) + 4.0)
    assert abs(log_z - marginal.logpdf(y)) < 0.01


@pytest.mark.slow
def test_what_chains_found_is_the_prior_of_the_next_batch():
    y = np.random.default_rng(3).normal(1.5, 1.0, 16).astype(np.float32)
    first = OneStepSampler(of_mean, **BASE | {"effort": "chains"})
    first.run(KEY, y[:8])
    assert first.route.name == "chains"
    second = OneStepSampler(of_mean, **BASE)
    second.run(KEY, y[8:], cs.as_prior(first))
    precision = 0.25 + len(y)
    mean, std = y.sum() / precision, precision**-0.5
    drawn = second.get_samples()["mu"]
    assert abs(drawn.mean() - mean) < 0.1 * std and abs(drawn.std() / std - 1.0) < 0.06
    log_z, stderr = (
        np.array([float(getattr(s.evidence, name)) for s in (first, second)])
        for name in ("log_z", "log_z_stderr")
    )
    marginal = multivariate_normal(np.zeros(len(y)), np.eye(len(y)) + 4.0)
    assert abs(log_z.sum() - marginal.logpdf(y)) < 4.0 * np.linalg.norm(stderr) + 0.01


def logistic(x, y, prior=None):
    if prior is None:
        bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    else:
        sites = prior.sites()
        bias, slope = sites["bias"], sites["slope"]
    numpyro.sample("y", dist.Bernoulli(logits=bias + x @ slope), obs=y)


@pytest.mark.slow
def test_four_batches_of_a_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    chance = 1.0 / (1.0 + np.exp(1.0 - x @ [1.5, -0.5]))
    y = (rng.uniform(size=300) < chance).astype(np.float32)
    batches = list(zip(np.split(x, 4), np.split(y, 4), strict=True))
    sampler, log_z, stderr = stream(logistic, batches, 0)
    whole = OneStepSampler(logistic, progress_bar=False)
    whole.run(jax.random.key(99), x, y)
    for name, value in whole.get_samples().items():
        error = sampler.get_samples()[name].mean(0) - value.mean(0)
        assert np.all(np.abs(error) < 0.1 * value.std(0)), (name, error / value.std(0))
    evidence = whole.evidence
    assert abs(log_z - evidence.log_z) < 1.96 * np.hypot(stderr, evidence.log_z_stderr) + 0.01
