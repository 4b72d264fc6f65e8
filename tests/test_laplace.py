"""Members placed by Newton's steps on the density: exact weights, and what they are worth."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats
from numpy.testing import assert_allclose
from scipy.integrate import quad, trapezoid
from scipy.stats import norm, poisson

import consistent_samplers as cs
from consistent_samplers.diagnostics.members import mass_elsewhere, members_left_out
from consistent_samplers.recipe import chain_stage, map_choice
from consistent_samplers.recipe.plan import Plan, Start

KEY = jax.random.key(0)
COUNTS = np.array([0, 3, 1, 7, 2, 0, 4, 1, 12, 2, 1, 3], np.float32)
SEEN = np.random.default_rng(0).normal(0.0, 2.0, 12).astype(np.float32)


def normal_means(x):
    """The log scale of some means, and the means, each seen once."""
    prior = stats.norm.logpdf(x[0]) + stats.norm.logpdf(x[1:], 0.0, jnp.exp(x[0])).sum()
    return prior + stats.norm.logpdf(SEEN, x[1:]).sum()


def poisson_rates(x):
    """The log scale of log rates, and these, each with a count."""
    prior = stats.norm.logpdf(x[0]) + stats.norm.logpdf(x[1:], 0.0, jnp.exp(x[0])).sum()
    return prior + (COUNTS * x[1:] - jnp.exp(x[1:])).sum()


def log_z_of_normal_means():
    def integrand(s):
        return norm.pdf(s) * np.prod(norm.pdf(SEEN, 0.0, math.sqrt(1.0 + math.exp(2.0 * s))))

    return math.log(quad(integrand, -8.0, 8.0, epsabs=0.0)[0])


def log_z_of_poisson_rates():
    scales, rates = np.linspace(-7.0, 4.0, 400), np.linspace(-60.0, 6.0, 20_001)
    terms = []
    for s in scales:
        width = math.exp(s)
        near = rates if width > 0.05 else width * np.linspace(-8.0, 8.0, 2_001)
        prior = norm.pdf(near, 0.0, width)
        likelihood = poisson.pmf(COUNTS[:, None], np.exp(near))
        each = trapezoid(prior * likelihood, near, axis=1)
        terms.append(norm.pdf(s) * np.exp(np.log(each).sum()))
    constant = sum(math.lgamma(c + 1.0) for c in COUNTS)
    return math.log(trapezoid(terms, scales)) + constant


def blocks(x):
    """Two globals, eight members of two correlated coordinates, and seven of one, with counts."""
    both, single = x[2:18].reshape(8, 2), x[18:]
    away = (both - x[0] - 0.3 * x[1]) @ jnp.array([[1.0, 0.4], [0.0, 0.8]])
    prior = -0.5 * jnp.sum(x[:2] ** 2) - 0.5 * jnp.sum(away**2)
    prior = prior - 0.5 * jnp.sum((single - x[1] + 0.2 * x[0]) ** 2)
    counts = both[:, 0] - jnp.exp(both[:, 0] + 0.3 * both[:, 1])
    return prior + jnp.sum(counts) - jnp.sum(jnp.exp(single))


def made_for(log_density, dim, scale=1.0):
    target = cs.Target(log_density, dim)
    base = cs.bases.DiagonalBase(jnp.zeros(dim), jnp.full(dim, scale))
    return target, cs.maps.laplace_map(target, base)


def shaken(params, scale=0.3):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return jax.tree.unflatten(tree, [x + scale * jax.random.normal(k, x.shape) for x, k in pairs])


def test_weights_given_the_globals_are_constant_where_members_are_gaussian():
    target, made = made_for(normal_means, 13)
    sampler = cs.Sampler(made, made.init(KEY), 1, ("map",), 1)
    latent = jax.random.normal(KEY, (64, 13)).at[:, 0].set(0.7)
    weights = np.asarray(sampler.weigh(target, latent).log_weight)
    assert np.ptp(weights) < 1e-4


def test_modes_and_roots_are_those_of_the_conditionals():
    _, made = made_for(normal_means, 13)
    at, gradient = jnp.array([0.4]), jax.grad(normal_means)
    modes = made.modes_at(gradient, at)
    precision = 1.0 + math.exp(-0.8)
    assert_allclose(modes[0][:, 0], SEEN / precision, rtol=1e-5)
    assert_allclose(made.roots_at(gradient, at, modes)[0][0][0], math.sqrt(precision), rtol=1e-5)


def test_steps_set_out_from_where_the_modes_move_to():
    _, made = made_for(poisson_rates, 13)
    gradient, at = jax.grad(poisson_rates), jnp.array([0.05])
    close = dataclasses.replace(made, num_newton=0).modes_at(gradient, at)[0]
    there = dataclasses.replace(made, num_newton=8).modes_at(gradient, at)[0]
    assert np.abs(close - there).max() < 0.01 < np.abs(made.modes[0] - there).max()


@pytest.mark.parametrize("num_newton", [1, 4])
def test_determinant_and_inverse_are_those_of_the_map(num_newton):
    _, made = made_for(blocks, 25)
    made = dataclasses.replace(made, num_newton=num_newton)
    assert sorted(index.shape for index in made.members) == [(7, 1), (8, 2)]
    params, gradient = shaken(made.init(KEY)), jax.grad(blocks)
    z = jax.random.normal(jax.random.key(1), (25,))
    y, log_det = made.forward(params, z, gradient)
    jacobian = jax.jacfwd(lambda z: made.forward(params, z, gradient)[0])(z)
    assert_allclose(log_det, np.linalg.slogdet(np.asarray(jacobian, np.float64))[1], atol=2e-4)
    back, again = made.inverse(params, y, gradient)
    assert_allclose(back, z, atol=1e-4)
    assert_allclose(again, log_det, atol=1e-4)


def test_the_determinant_of_curvatures_moves_with_the_modes():
    _, made = made_for(poisson_rates, 13)
    made = dataclasses.replace(made, num_newton=10)
    gradient = jax.grad(poisson_rates)

    def exact(s):
        at = jnp.array([s])
        return made.half_log_det(gradient, at, made.modes_at(gradient, at))[0]

    at = jnp.array([0.3])
    modes = made.modes_at(gradient, at)
    slope = jax.grad(lambda at: made.half_log_det(gradient, at, modes)[0])(at)[0]
    with jax.enable_x64(True):
        step = 1e-3
        by_difference = (exact(0.3 + step) - exact(0.3 - step)) / (2.0 * step)
    assert_allclose(slope, by_difference, rtol=2e-2)


def test_members_without_a_maximum_get_finite_weights():
    def log_density(x):  # in the middle of two modes of each member
        return -0.5 * x[0] ** 2 - 0.5 * jnp.sum((x[1:] ** 2 - 4.0) ** 2 + 0.1 * x[0] * x[1:])

    target, made = made_for(log_density, 9, 0.5)
    sampler = cs.Sampler(made, made.init(KEY), 1, ("map",), 1)
    assert np.isfinite(np.asarray(sampler.sample(KEY, target, 200).log_weight)).all()


@pytest.mark.parametrize(
    ("log_density", "log_z", "least"),
    [(normal_means, log_z_of_normal_means, 0.9), (poisson_rates, log_z_of_poisson_rates, 0.7)],
)
def test_log_z_is_that_of_quadrature(log_density, log_z, least):
    target = cs.Target(log_density, 13)
    base = cs.bases.fit_diagonal(KEY, target)
    algorithm = cs.algorithms.laplace(target, base=base, batch_size=32)
    state = cs.fit(KEY, algorithm, 300, progress_bar=False).state
    found = cs.evidence(algorithm.sample(jax.random.key(1), state, 10_000))
    assert float(found.ess) > least
    assert abs(float(found.log_z) - log_z()) < 4.0 * float(found.log_z_stderr) + 1e-3
    assert float(found.elbo) < log_z() + 3.0 * float(found.elbo_stderr)


@pytest.mark.parametrize(("share", "left_out"), [(0.0, 8), (1.0, 0)])
def test_another_mode_of_the_members_is_seen(share, left_out):
    """Newton's steps come to one of two modes, which others do not show."""

    def log_density(x):
        own, other = -2.0 * (x[1:] - 2.0) ** 2, -2.0 * (x[1:] + 2.0 * (1.0 - 2.0 * share)) ** 2
        return -0.5 * x[0] ** 2 + jnp.sum(jnp.logaddexp(own, other) + 0.05 * x[0] * x[1:])

    target = cs.Target(log_density, 9)
    base = cs.bases.DiagonalBase(jnp.zeros(9).at[1:].set(2.0), jnp.full(9, 0.5).at[0].set(1.0))
    algorithm = cs.algorithms.laplace(target, base=base)
    sampler = algorithm.sampler(algorithm.init(KEY))
    draws = sampler.sample(KEY, target, 64)
    assert members_left_out(target, sampler, draws.position).num_members == left_out


def test_the_mirror_image_of_all_is_seen():
    def log_density(x):  # a factor of +-2, and nine members of its sign
        near = -0.5 * jnp.sum((x[0] * x[1:] - 4.0) ** 2 + x[1:] ** 2)
        return near - 0.5 * (x[0] / 2.0) ** 2

    target = cs.Target(log_density, 10)
    base = cs.bases.fit_diagonal(KEY, target, init_position=jnp.full(10, 1.5))
    algorithm = cs.algorithms.laplace(target, base=base)
    sampler = algorithm.sampler(algorithm.init(KEY))
    draws = sampler.sample(jax.random.key(1), target, 64).position
    assert abs(mass_elsewhere(KEY, target, sampler, draws)) < 1.0


def test_weights_of_given_points_are_those_of_the_draws():
    target, made = made_for(blocks, 25)
    sampler = cs.Sampler(made, shaken(made.init(KEY), 0.1), 1, ("map",), 1)
    draws = sampler.sample(KEY, target, 50)
    again = sampler.log_weight(KEY, target, draws.position)
    assert_allclose(again, draws.log_weight, atol=2e-3)


def test_draws_are_one_another_density_s_too():
    target, made = made_for(normal_means, 13)
    sampler = cs.Sampler(made, made.init(KEY), 1, ("map",), 1)
    other = cs.Target(lambda x: normal_means(x) + 0.3 * x[1] + 1.0, 13)
    with pytest.raises(ValueError, match="guide=target"):
        cs.corrections.reweight(KEY, sampler, other)
    found = cs.corrections.reweight(KEY, sampler, other, 20_000, guide=target)
    trained = cs.TrainedSampler(target, sampler, sampler)
    assert_allclose(trained.reweight(other, KEY, 20_000).evidence.log_z, found.evidence.log_z)
    position, weight = (np.asarray(found.draws.position[:, 1]), found.draws.log_weight)
    own = np.asarray(sampler.sample(KEY, target, 20_000).log_weight, np.float64)
    expected = np.log(np.mean(np.exp(own - own.max() + 0.3 * position + 1.0))) + own.max()
    assert_allclose(found.evidence.log_z, expected, atol=1e-3)
    assert np.isfinite(np.asarray(weight)).all()


def test_a_density_is_known_of_the_globals_alone():
    target, made = made_for(normal_means, 13)
    params = shaken(made.init(KEY), 0.2)
    assert not cs.maps.has_density(made)
    assert cs.maps.marginal(made, params, np.arange(13)) is None
    with pytest.raises(ValueError, match="takes the target's"):
        made.log_prob(params, jnp.zeros(13))
    alone, own = cs.maps.marginal(made, params, np.array([0]))
    at = jnp.linspace(-8.0, 8.0, 4_001)[:, None]
    density = np.exp(jax.vmap(alone.log_prob, (None, 0))(own, at))
    assert_allclose(trapezoid(density, at[:, 0]), 1.0, atol=1e-3)
    sampler = cs.Sampler(made, params, 1, ("map",), 1)
    drawn = np.asarray(sampler.sample(KEY, target, 20_000, weights=False).position[:, 0])
    mean = trapezoid(density * np.asarray(at[:, 0]), at[:, 0])
    assert abs(drawn.mean() - mean) < 5.0 * drawn.std() / math.sqrt(len(drawn))


def test_other_bases_are_refused():
    target = cs.Target(normal_means, 13)
    with pytest.raises(TypeError, match="mean-field base"):
        cs.algorithms.laplace(target, base=cs.bases.standard_normal(13))


def test_members_of_members_and_no_globals_are_refused():
    def walk(x):
        steps = -0.5 * jnp.sum(jnp.diff(x[1:]) ** 2) * jnp.exp(-2.0 * x[0]) - 39 * x[0]
        return steps - 0.5 * jnp.sum(x**2)

    base = cs.bases.fit_diagonal
    for target in (cs.Target(walk, 41), cs.Target(lambda x: -0.5 * x @ x, 9)):
        with pytest.raises(ValueError, match="has no members that depend on globals alone"):
            cs.algorithms.laplace(target, base=base(KEY, target))


@pytest.fixture(scope="module")
def placed():
    """What the recipe makes of a map that falls short, as it is told here."""
    target = cs.Target(poisson_rates, 13)
    base = cs.bases.fit_diagonal(KEY, target)
    algorithm = cs.algorithms.hierarchical(target, base=base)
    state = algorithm.init(KEY)
    state = state._replace(ema_params=shaken(state.ema_params, 0.2))
    trained = cs.TrainedSampler.of(algorithm, state)
    plan = Plan(1_000, "auto", 1, (64, 64), "hierarchical", None, 0, (5, 5), True, False, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_choice, "LAPLACE_ITERATIONS", 200)
        draws = map_choice.shown_short(KEY, trained)
        found = map_choice.or_laplace(KEY, trained, draws, Start(base, True), plan)
    return trained, *found


def test_the_recipe_takes_it_where_the_map_before_falls_short(placed):
    before, found, interrupted, draws = placed
    assert chain_stage.falls_short(before, chain_stage.fresh_draws(KEY, before))
    assert not interrupted and draws == []
    assert found.route.reason == "members are placed by Newton's steps on the density"
    assert found.many_steps is found.unguided is before.one_step
    assert found.verdict(found.evidence(KEY)).level != "not to be used"
    assert float(found.stages["laplace"].ess) > 0.6


def test_it_is_kept_and_read_again(placed, tmp_path):
    found = placed[1]
    found.save(tmp_path / "kept")
    again = cs.load(tmp_path / "kept", found.target)
    assert_allclose(again.sample(KEY, 64).log_weight, found.sample(KEY, 64).log_weight)


@pytest.mark.slow
def test_its_bracket_holds_the_truth(placed):
    found, log_z = placed[1].bracket(KEY), log_z_of_poisson_rates()
    assert found.lower - 3.0 * found.lower_stderr < log_z < found.upper + 3.0 * found.upper_stderr
    assert abs(found.log_z - log_z) < 4.0 * found.stderr + 1e-3


def test_nothing_is_changed_where_the_map_before_will_do(placed):
    _, found, _, _ = placed
    plan = Plan(1_000, "auto", 1, (64, 64), "hierarchical", None, 0, (5, 5), True, False, None)
    start = Start(found.many_steps.control.started(), True)
    # It is no map of networks alone.
    assert map_choice.shown_short(KEY, found) is None
    for draws in (None, []):
        assert map_choice.or_laplace(KEY, found, draws, start, plan) == (found, False, draws)
    assert map_choice.or_laplace(KEY, placed[0], [], start, plan) == (placed[0], False, [])
