"""What a hierarchical map leaves out: members with another mode, and mirror images of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import consistent_samplers as cs
from consistent_samplers.diagnostics.members import mass_elsewhere, members_left_out

KEY = jax.random.key(0)
NUM = 24


def untrained(target, start):
    """The map around a mean-field fit, as training begins with it, and draws of it."""
    base = cs.bases.fit_diagonal(KEY, target, init_position=jnp.asarray(start))
    algorithm = cs.algorithms.hierarchical(target, base=base)
    sampler = algorithm.sampler(algorithm.init(KEY))
    return sampler, sampler.sample(jax.random.key(1), target, 64).position


def two_modes(share, apart):
    """A mean, and members of two modes around it, the second with a share of the mass."""

    def log_density(x):
        first = jnp.log1p(-share) + norm.logpdf(x[1:], 0.1 * x[0] - apart, 0.5)
        second = jnp.log(share) + norm.logpdf(x[1:], 0.1 * x[0] + apart, 0.5)
        return norm.logpdf(x[0]) + jnp.logaddexp(first, second).sum()

    return cs.Target(log_density, NUM + 1)


@pytest.mark.parametrize(
    ("share", "apart", "found"),
    [pytest.param(0.5, 3.0, NUM, marks=pytest.mark.slow), (0.1, 8.0, NUM), (0.0, 3.0, 0)],
)
def test_members_with_a_second_mode(share, apart, found):
    target = two_modes(share, apart)
    sampler, draws = untrained(target, np.r_[0.0, np.full(NUM, -apart)])
    left_out = members_left_out(target, sampler, draws)
    assert left_out.num_members == found
    assert share / 5.0 <= left_out.share <= 5.0 * share  # the dip is narrower than a step


def test_one_member_among_many():
    def log_density(x):
        one = jnp.logaddexp(norm.logpdf(x[3], 4.0, 0.3), norm.logpdf(x[3], -4.0, 0.3))
        return norm.logpdf(x[0]) + norm.logpdf(x[1:], 0.1 * x[0], 3.0).sum() + one

    target = cs.Target(log_density, NUM + 1)
    sampler, draws = untrained(target, np.eye(NUM + 1)[3] * 4.0)
    assert members_left_out(target, sampler, draws).num_members == 1


@pytest.mark.slow
def test_members_of_two_coordinates_that_change_signs_together():
    def log_density(x):
        a, b = x[1 : NUM + 1], x[NUM + 1 :]
        prior = norm.logpdf(x[0]) + norm.logpdf(a, 0.0, jnp.exp(0.1 * x[0])).sum()
        return prior + norm.logpdf(b, 0.0, 2.0).sum() + norm.logpdf(a * b, 3.0, 0.1).sum()

    target = cs.Target(log_density, 2 * NUM + 1)
    assert target.structure.groups[0].members.shape == (NUM, 2)
    sampler, draws = untrained(target, np.r_[0.0, np.full(2 * NUM, 1.7)])
    assert members_left_out(target, sampler, draws).num_members == NUM


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: -jnp.exp(x) + 2.0 * x,  # skew
        lambda x: -3.0 * jnp.log1p(x**2 / 5.0),  # heavy tails, t of five degrees
        lambda x: -(x**4),  # light ones
        lambda x: -2.0 * jnp.sqrt(x**2 + 0.01),  # nearly a cusp
    ],
)
def test_shapes_of_one_mode_are_no_second_one(shape):
    target = cs.Target(lambda x: norm.logpdf(x[0]) + shape(x[1:] - 0.1 * x[0]).sum(), NUM + 1)
    sampler, draws = untrained(target, np.r_[0.0, np.full(NUM, 0.8)])
    assert members_left_out(target, sampler, draws).num_members == 0


def test_other_maps_have_no_members():
    target = cs.targets.gaussian(jnp.zeros(2), jnp.ones(2))
    sampler = cs.Sampler.of_base(cs.bases.standard_normal(2))
    with pytest.raises(TypeError, match="HierarchicalMap"):
        members_left_out(target, sampler, jnp.zeros((4, 2)))


def factors(signs_known):
    """Loadings of four items, a noise, and the scores of members, which share their signs."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=NUM)
    y = jnp.asarray(
        scores[:, None] * np.array([1.2, 0.8, 1.0, 0.6]) + 0.3 * rng.normal(size=(NUM, 4))
    )

    def log_density(x):
        loading, noise, score = x[:4], x[4], x[5:]
        prior = norm.logpdf(loading, 1.0 if signs_known else 0.0, 0.3 if signs_known else 1.0)
        likelihood = norm.logpdf(y, score[:, None] * loading, jnp.exp(noise)).sum()
        return prior.sum() + norm.logpdf(noise) + norm.logpdf(score).sum() + likelihood

    return cs.Target(log_density, 5 + NUM), np.r_[np.ones(4), -1.0, scores]


@pytest.mark.slow
def test_the_mirror_image_of_a_factor_model_is_found():
    target, start = factors(signs_known=False)
    sampler, draws = untrained(target, start)
    assert abs(mass_elsewhere(KEY, target, sampler, draws)) < 2.0
    assert members_left_out(target, sampler, draws).num_members == 0  # one member alone cannot turn


@pytest.mark.slow
def test_the_mirror_image_of_draws_is_found_where_a_base_stayed_between_the_two():
    """A mean-field fit that begins at the origin of a symmetric density never leaves it."""
    y = 1.0 + np.random.default_rng(0).normal(size=44)

    def log_density(x):
        return norm.logpdf(x).sum() + norm.logpdf(y, x[0] * x[1:], 0.3).sum()

    target = cs.Target(log_density, 45)
    sampler, _ = untrained(target, np.zeros(45))
    assert not np.asarray(sampler.control.start[0]).any()
    side = cs.bases.fit_diagonal(KEY, target, init_position=jnp.r_[1.0, y])
    assert abs(mass_elsewhere(KEY, target, sampler, side.sample(KEY, 64))) < 2.0


@pytest.mark.slow
def test_there_is_no_mirror_image_where_the_prior_knows_the_signs():
    target, start = factors(signs_known=True)
    assert mass_elsewhere(KEY, target, *untrained(target, start)) == -np.inf


def test_a_mirror_image_outside_of_the_support_is_none():
    def unbounded(x):
        return norm.logpdf(x[0], 2.0, 0.1) + norm.logpdf(x[1:], x[0], 0.1).sum()

    sampler, draws = untrained(cs.Target(unbounded, NUM + 1), np.full(NUM + 1, 2.0))
    bounded = cs.Target(lambda x: jnp.where((x > 0.0).all(), unbounded(x), -jnp.inf), NUM + 1)
    assert mass_elsewhere(KEY, bounded, sampler, draws) == -np.inf
