"""Log Z from both sides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import consistent_samplers as cs
from consistent_samplers.bracket import AT_ONCE, bracket, weighted_bounds
from consistent_samplers.bridge import Bridge, bridge
from consistent_samplers.corrections import chains as latent
from consistent_samplers.corrections import gaussian_bridge
from consistent_samplers.diagnostics import Mixing
from consistent_samplers.integrations.numpyro import OneStepSampler

LOC, SCALE, LOG_Z = 0.7, 0.8, 3.0
# KL between N(LOC, SCALE²) and N(0, 1), in closed form.
LOWER = LOG_Z - (np.log(SCALE) + (1.0 + LOC**2) / (2.0 * SCALE**2) - 0.5)
UPPER = LOG_Z - np.log(SCALE) + (SCALE**2 + LOC**2) / 2.0 - 0.5


def log_weight(x):
    return LOG_Z - 0.5 * ((x - LOC) / SCALE) ** 2 - np.log(SCALE) + 0.5 * x**2


def bounds_of(at_once):
    """Both bounds: of single draws in closed form, else by a million groups."""
    if at_once == 1:
        return LOWER, UPPER
    rng, num = np.random.default_rng(9), 1_000_000
    rest = np.full(num, -np.inf)
    for _ in range(at_once - 1):
        rest = np.logaddexp(rest, log_weight(rng.normal(size=num)))
    last = log_weight(rng.normal(size=num)), log_weight(LOC + SCALE * rng.normal(size=num))
    return tuple(np.mean(np.logaddexp(rest, one)) - np.log(at_once) for one in last)


@pytest.mark.parametrize("correlation, at_once", [(0.0, 1), (0.8, 1), (0.8, AT_ONCE)])
@pytest.mark.slow
def test_the_intervals_cover(correlation, at_once):
    lower, upper = bounds_of(at_once)
    rng, num, covered = np.random.default_rng(0), 300, np.zeros(3)
    for _ in range(num):
        chain = rng.normal(size=(4, 500))
        for i in range(1, 500):
            step = np.sqrt(1.0 - correlation**2) * chain[:, i]
            chain[:, i] = correlation * chain[:, i - 1] + step
        own, theirs = log_weight(rng.normal(size=2_000)), log_weight(LOC + SCALE * chain)
        found = bracket(own, theirs, at_once)
        error = np.array([found.lower - lower, found.log_z - LOG_Z, found.upper - upper])
        covered += np.abs(error) < 1.96 * np.array(
            [found.lower_stderr, found.stderr, found.upper_stderr]
        )
    assert (covered / num > 0.95 - 3.0 * np.sqrt(0.05 * 0.95 / num)).all(), covered / num


@pytest.mark.parametrize("ess, width, closer", [(0.5, 0.1, 0.99), (0.05, 0.2, 2.0)])
def test_bounds_are_close_where_weights_are_uneven(ess, width, closer):
    """Log-normal weights, their bounds by draws of the target and by the weights alone."""
    rng, scale = np.random.default_rng(0), np.sqrt(-np.log(ess))
    own, theirs = (rng.normal(scale * x, scale, (4, 2_500)) for x in (-0.5 * scale, 0.5 * scale))
    found = bracket(own.ravel(), theirs)
    assert found.lower < 0.0 < found.upper < found.lower + width
    sixteen = bracket(own.ravel(), theirs, at_once=AT_ONCE)
    assert sixteen.upper - sixteen.lower > closer * (found.upper - found.lower)
    single = bracket(own.ravel(), theirs, at_once=1)
    assert single.upper - single.lower > 4.0 * (found.upper - found.lower)
    lower, lower_stderr, upper, stderr = weighted_bounds(own.ravel())
    assert (lower, lower_stderr) == pytest.approx((found.lower, found.lower_stderr), abs=0.05)
    assert abs(upper - found.upper) < 4.0 * np.hypot(stderr, found.upper_stderr)
    assert 0.0 < stderr < 0.1


def test_draws_outside_of_the_support_are_counted_and_few_draws_make_small_groups():
    own = np.where(np.arange(8_000) % 2 == 0, -np.inf, np.log(2.0))
    found = bracket(own, np.full((2, 100), np.log(2.0)))
    assert np.isinf(bracket(own, np.full((2, 100), np.log(2.0)), 1).lower)
    assert -0.2 < found.lower < found.upper < 0.2
    few = bracket(np.zeros(8), np.zeros((1, 8)))
    assert (few.lower, few.upper, few.upper_stderr) == (0.0, 0.0, 0.0)
    lower, stderr, upper, _ = weighted_bounds(np.r_[np.full(40, -np.inf), np.zeros(40)])
    assert lower == -np.inf and stderr == np.inf and upper == 0.0


@pytest.mark.parametrize("shift, level", [(3.0, 0.1), (6.0, 8.0), (20.0, 200.0), (200.0, 2e4)])
def test_a_bridge_of_little_overlap_solves_its_equation_and_tells_its_error(shift, level):
    """N(0, 1) against N(shift, 1): the estimate is off by nats, and was by hundreds of them."""
    rng, num, errors, stderrs = np.random.default_rng(0), 20, [], []
    for _ in range(num):
        own, theirs = rng.normal(size=4_000), shift + rng.normal(size=(4, 1_000))
        found = bridge(shift * own - 0.5 * shift**2, shift * theirs - 0.5 * shift**2)
        errors.append(found.log_z)
        stderrs.append(found.log_z_stderr)
    assert (np.abs(errors) < 1.0 + 2.0 * shift).all()
    assert (np.array(stderrs) <= level).all()
    assert (np.abs(errors) < 3.0 * np.array(stderrs)).all()


def skewed(normal):
    """Jones and Pewsey's (2009) sinh-arcsinh of normal draws."""
    return np.sinh((np.arcsinh(normal) + 0.8) / 0.7)


def skewed_log_prob(x):
    at = 0.7 * jnp.arcsinh(x) - 0.8
    slope = jnp.log(0.7 * jnp.cosh(at)) - 0.5 * jnp.log1p(x**2)
    return jax.scipy.stats.norm.logpdf(jnp.sinh(at)) + slope


SHAPES = {
    # Draws, their log density, dimension, mean and scale of the map, and whether it overlaps them.
    "normal": (lambda rng, n: rng.normal(size=n), jax.scipy.stats.norm.logpdf, 5, 1.8, 0.8),
    "t": (
        lambda rng, n: rng.standard_t(5, size=n),
        lambda x: jax.scipy.stats.t.logpdf(x, 5.0),
        5,
        1.5,
        1.0,
    ),
    # Here the two errors are nearly the same, so that noise decides.
    "skewed": (lambda rng, n: skewed(rng.normal(size=n)), skewed_log_prob, 10, 1.0, 2.0),
}


@pytest.mark.parametrize(
    "shape",
    ["normal", *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("skewed", "t"))],
)
def test_the_bridge_that_is_chosen_covers(shape):
    """Of the map's bridge and the Gaussian's the one of the smaller error is reported."""
    draw, log_prob, dim, loc, scale = SHAPES[shape]
    rng, num, covered, chosen = np.random.default_rng(0), 100, 0, 0
    base = dataclasses.replace(
        cs.bases.standard_normal(dim, scale=scale), loc=jnp.full(dim, loc, jnp.float32)
    )
    target = cs.Target(lambda x: log_prob(x).sum(), dim)
    space = cs.Sampler.of_base(base)
    for i in range(num):
        z = jnp.asarray(rng.normal(size=(4_096, dim)), jnp.float32)
        chains = (draw(rng, (4, 400, dim)) - loc) / scale
        flat = jnp.asarray(chains.reshape(-1, dim), jnp.float32)
        own, theirs = (np.asarray(space.weigh(target, x).log_weight) for x in (z, flat))
        theirs = theirs.reshape(4, 400)
        of_map = bridge(own, theirs)
        key = jax.random.key(i)
        position = np.asarray(flat).reshape(4, 400, dim)
        other = gaussian_bridge.bridge_to_gaussian(key, space, target, position, theirs, 1_600.0)
        found, replaced = gaussian_bridge.smaller_error(of_map, other)
        covered += abs(found.log_z) < 1.96 * found.log_z_stderr
        chosen += replaced
    assert covered / num > 0.95 - 3.0 * np.sqrt(0.05 * 0.95 / num)
    assert chosen == num if shape != "skewed" else 0 < chosen < num


def trained():
    target = cs.targets.gaussian(jnp.full(2, 0.3), jnp.ones(2))
    base = cs.Sampler.of_base(cs.bases.standard_normal(2))
    return cs.TrainedSampler(target, base, base)


@pytest.mark.slow
def test_a_trained_sampler_brackets_log_z():
    sampler = trained()
    found = sampler.bracket(jax.random.key(0))
    assert abs(found.log_z - sampler.target.log_z) < 4.0 * found.stderr + 1e-3
    assert found.upper is not None and found.lower < sampler.target.log_z < found.upper
    assert found.upper - found.lower < 0.05  # of single draws 0.18: both divergences are 0.09
    assert found.num_target_draws == 4_000


def test_weights_stand_in_for_chains_that_did_not_mix():
    sampler = trained()
    chains = cs.corrections.latent_chains(
        jax.random.key(0), sampler.target, sampler.one_step, num_warmup=50, num_samples=50
    )
    chains = chains._replace(mixing=Mixing(1.5, 9.0, 9.0, 0.0))
    found = dataclasses.replace(sampler, chains=chains).bracket(jax.random.key(0))
    assert found.method == "importance" and found.level == "trusted"
    assert found.lower < sampler.target.log_z < found.upper < found.lower + 0.05
    assert found.upper_stderr >= found.stderr and "r-hat of 1.500" in found.note
    assert "The bound above is one by the weights of one step" in found.note
    # Weights that are not to be used either give none.
    far = cs.Sampler.of_base(cs.bases.standard_normal(2, scale=0.1))
    lost = dataclasses.replace(sampler, chains=chains, one_step=far, many_steps=far)
    found = lost.bracket(jax.random.key(0))
    assert found.upper is None and found.level == "not to be used"
    assert "no bound above" in str(found)


@pytest.mark.parametrize("name", ["cmcd", "snf"])
def test_paths_without_a_map_are_bracketed_by_their_weights(name):
    """Of all their steps: none of them is calibrated."""
    target = cs.targets.gaussian(jnp.full(2, 0.3), jnp.ones(2))
    algorithm = getattr(cs.algorithms, name)(
        target, base=cs.bases.standard_normal(2), max_steps=2, hidden=(8,)
    )
    sampler = cs.TrainedSampler.of(algorithm, algorithm.init(jax.random.key(0)))
    found = sampler.bracket(jax.random.key(1), 2_000)
    assert found.lower - 0.05 < target.log_z < found.upper + 0.05
    assert found.method == "importance" and found.level == "trusted"
    assert "the weights of 2 steps: there are no chains" in found.note


def some_chains(sampler, **changed):
    chains = latent.latent_chains(
        jax.random.key(0), sampler.target, sampler.one_step, num_warmup=50, num_samples=200
    )
    return chains._replace(mixing=Mixing(1.0, 500.0, 500.0, 0.0), **changed)


def test_a_bracket_says_what_stood_in_for_the_map():
    sampler = trained()
    plain = some_chains(sampler)
    found = dataclasses.replace(sampler, chains=plain).bracket(jax.random.key(0))
    assert found.note == "" and found.level == "trusted"
    # The fresh draws' own, which are more than those of the chains' bridge.
    assert found.log_z != plain.log_z.log_z
    other = plain._replace(log_z=Bridge(1.84, 0.001), bridge_replaced=True, map_replaced=True)
    far = cs.Sampler.of_base(cs.bases.standard_normal(2, scale=0.1))
    sampler = dataclasses.replace(sampler, chains=other, one_step=far)
    found = sampler.bracket(jax.random.key(0))
    assert found.log_z == 1.84 and found.upper is not None
    assert "bridged to a Gaussian fitted to the first half of the chains" in found.note
    assert "Both bounds are of the sampler's base or a Gaussian" in str(found)


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_the_maps_own_weights_give_closer_bounds_than_what_the_chains_moved_in(share):
    """Which may leave a part of the mass out: the bridge says how much, and the error holds it."""

    def log_density(x):  # a standard normal, and perhaps a second one
        near, far = -0.5 * x @ x, -0.5 * jnp.sum((x - jnp.array([8.0, 0.0])) ** 2)
        return jnp.logaddexp(jnp.log(share) + near, jnp.log(1.0 - share + 1e-9) + far)

    modes = cs.Target(log_density, 2, log_z=float(np.log(2.0 * np.pi)))
    fine = cs.Sampler.of_base(cs.bases.standard_normal(2))
    wide = cs.Sampler.of_base(cs.bases.standard_normal(2, scale=6.0))
    chains = some_chains(cs.TrainedSampler(modes, wide, wide), map_replaced=True)
    both = {}
    for name, own in (("closer", fine), ("wide", wide)):
        sampler = cs.TrainedSampler(modes, own, own, chains=chains)
        both[name] = sampler.bracket(jax.random.key(0))
    found, other = both.values()
    assert "by the weights of the map's own draws" in found.note and found.level == other.level
    assert found.upper - found.lower < 0.01 < other.upper - other.lower
    assert found.log_z == pytest.approx(other.log_z, abs=0.01)
    assert found.upper + 3.0 * found.upper_stderr > modes.log_z
    assert (found.upper_stderr > 0.1) == (share < 1.0)
    # By the bridge that stands, not the one that another took the place of.
    other = chains._replace(log_z=Bridge(found.log_z + 0.5, 1e-3), bridge_replaced=True)
    again = dataclasses.replace(cs.TrainedSampler(modes, fine, fine), chains=other)
    again = again.bracket(jax.random.key(0))
    assert "by the weights of the map's own draws" in again.note
    assert again.upper_stderr > found.upper_stderr + 0.4


@pytest.mark.parametrize("scale", [0.6, 1.05])
def test_a_gaussian_of_the_chains_closes_the_bounds_where_the_maps_tails_are_thin(scale):
    """A map of three fifths of the target's width has weights without a variance."""
    target = cs.targets.gaussian(jnp.full(4, 0.3), jnp.ones(4))
    thin = cs.Sampler.of_base(cs.bases.standard_normal(4, scale=scale))
    sampler = cs.TrainedSampler(target, thin, thin)
    chains = some_chains(sampler)
    found = dataclasses.replace(sampler, chains=chains).bracket(jax.random.key(0))
    alone = dataclasses.replace(sampler, chains=chains._replace(latent=None))
    alone = alone.bracket(jax.random.key(0))
    if scale > 1.0:
        assert found == alone
        return
    assert alone.upper - alone.lower > 0.2 > 0.05 > found.upper - found.lower
    for of in (alone, found):
        assert of.lower - 3.0 * of.lower_stderr < target.log_z < of.upper + 3.0 * of.upper_stderr
    assert "a Gaussian fitted to the first half of the chains" in found.note
    # Where the map's own weights are closer still, the bridge is what it was, and said.
    wide = dataclasses.replace(sampler, chains=chains._replace(map_replaced=True))
    exact = cs.Sampler.of_base(cs.bases.GaussianBase(jnp.full(4, 0.3), jnp.eye(4)))
    both = dataclasses.replace(wide, one_step=exact, many_steps=exact).bracket(jax.random.key(0))
    assert both.log_z == found.log_z and "by the weights of the map's own draws" in both.note
    assert "half are from a Gaussian fitted to their first half" in both.note
    # The bridge is to the same draws, unless the chains' own took the place of the map's before.
    assert not chains.bridge_replaced and found.num_target_draws == 400
    assert abs(found.log_z - target.log_z) < 4.0 * found.stderr < 4.0 * alone.stderr
    stands = found.log_z + 1e-3
    other = chains._replace(log_z=Bridge(stands, 1e-3), bridge_replaced=True)
    other = dataclasses.replace(sampler, chains=other).bracket(jax.random.key(0))
    assert other.log_z == stands and other.upper == pytest.approx(found.upper, abs=1e-6)


@pytest.mark.parametrize("gaussian", [False, True])
def test_chains_tell_whether_they_moved_in_the_map(gaussian):
    sampler = trained()
    chains = latent.latent_chains(
        jax.random.key(0),
        sampler.target,
        sampler.one_step,
        num_warmup=50,
        num_samples=50,
        gaussian=gaussian,
    )
    assert chains.map_replaced is gaussian and not chains.bridge_replaced


def test_a_heuristic_lower_bound_is_called_one(monkeypatch):
    sampler = trained()
    sampler = dataclasses.replace(sampler, chains=some_chains(sampler))
    draw = cs.Sampler.sample

    def sample(*args, **kwargs):
        return dataclasses.replace(draw(*args, **kwargs), bound="heuristic")

    monkeypatch.setattr(cs.Sampler, "sample", sample)
    found = sampler.bracket(jax.random.key(0))
    assert found.upper is not None and "lower one is a heuristic" in found.note


def test_chains_are_held_against_draws_of_the_callers_key(monkeypatch):
    sampler, keys = trained(), []
    sampler = dataclasses.replace(sampler, chains=some_chains(sampler))
    draw = cs.TrainedSampler.evidence

    def evidence(self, rng_key, *args, **kwargs):
        keys.append(rng_key)
        return draw(self, rng_key, *args, **kwargs)

    monkeypatch.setattr(cs.TrainedSampler, "evidence", evidence)
    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        assert sampler.chains_verdict(key).level == "trusted"
        assert keys[-1] is key
    sampler.bracket(jax.random.key(2))
    sampler.bracket(jax.random.key(3))
    assert (jax.random.key_data(keys[-1]) != jax.random.key_data(keys[-2])).any()


@pytest.mark.slow
def test_a_numpyro_model_is_bracketed():
    """A normal mean with a normal prior: log Z in closed form."""
    y = np.array([0.3, -0.2, 0.9, 1.1])

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    sampler = OneStepSampler(model, num_samples=1_000, effort="base", progress_bar=False)
    with pytest.raises(RuntimeError, match=r"call run\(rng_key"):
        sampler.bracket(jax.random.key(0))
    sampler.run(jax.random.PRNGKey(0), y)
    found = sampler.bracket(jax.random.PRNGKey(1))
    covariance = np.eye(4) + 4.0
    true = multivariate_normal.logpdf(y, np.zeros(4), covariance)
    assert found.lower - 1e-3 < true < found.upper + 1e-3
    assert abs(found.log_z - true) < 4.0 * found.stderr + 1e-3
