"""Looks from outside: mass around modes by draws, open directions, particles no draw reaches."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.algorithms import Now
from consistent_samplers.bases.masses import masses_around, weighed
from consistent_samplers.bases.modes import Modes, merged
from consistent_samplers.diagnostics import (
    ExplorationCheck,
    Verdict,
    exploration_check,
    open_directions,
    share_beyond,
    share_unseen,
)
from consistent_samplers.integrations.numpyro.run import Run
from consistent_samplers.recipe.looking import look_for_missed_mass
from consistent_samplers.recipe.plan import Start

KEY = jax.random.key(0)


def spike_and_slab(x):
    """N(0, 1) and N(3, 0.05²) in two dimensions, half each; log Z is 0."""
    normal = jax.scipy.stats.norm.logpdf
    slab, spike = normal(x).sum(), normal(x, 3.0, 0.05).sum()
    return jnp.logaddexp(slab, spike) - math.log(2.0)


def at(*places, scale=1.0, log_evidence=0.0):
    loc = np.array(places, float)
    num, dim = loc.shape
    return Modes(loc, np.tile(scale * np.eye(dim), (num, 1, 1)), np.full(num, log_evidence))


def test_mass_around_a_mode_is_measured_where_curvature_is_wrong():
    target = cs.Target(lambda x: jnp.sum(-jnp.abs(x)), dim=2)  # Laplace: no curvature at all
    modes = at([0.0, 0.0], [0.2, 0.1], log_evidence=-5.0)
    found = masses_around(KEY, target, modes)
    # Within radius sqrt(14) of the origin lies 93 % of a mass of 4.
    np.testing.assert_allclose(found.log_mass[0], math.log(4 * 0.93), atol=0.15)
    assert (found.relative_error < 0.1).all()
    np.testing.assert_allclose(weighed(KEY, target, modes).log_evidence, found.log_mass, atol=0.3)


def test_evidence_that_is_right_keeps_its_digits():
    modes = at([0.0, 0.0], [9.0, 0.0], log_evidence=math.log(math.pi))
    both = cs.Target(lambda x: jnp.logaddexp(-0.5 * x @ x, -0.5 * ((x[0] - 9) ** 2 + x[1] ** 2)), 2)
    exact = modes._replace(log_evidence=np.full(2, math.log(2 * math.pi)))
    np.testing.assert_array_equal(weighed(KEY, both, exact).log_evidence, exact.log_evidence)


def test_modes_of_two_looks_are_listed_once():
    both = merged(at([0.0], [5.0]), at([0.1], [9.0]))
    assert sorted(both.loc.ravel().tolist()) == [0.0, 5.0, 9.0]


def test_a_spike_inside_of_the_draws_counts_by_its_mass():
    """Draws of the slab surround the spike, and have none of its mass."""
    target = cs.Target(spike_and_slab, 2)
    draws = jax.random.normal(KEY, (4_000, 2)) * 1.5  # an ellipsoid around both
    modes = Modes(
        np.array([[0.0, 0.0], [3.0, 3.0]]), np.stack([np.eye(2), 0.05 * np.eye(2)]), np.zeros(2)
    )
    missed = exploration_check(KEY, target, draws, math.log(0.5), modes=modes)
    assert missed.num_missed == 1 and not missed.passed
    np.testing.assert_allclose(missed.missed, [[3.0, 3.0]])
    # Nor have draws in it that weigh hardly anything.
    inside = draws.at[::2].set(3.0 + 0.05 * draws[::2])
    weightless = jnp.where(jnp.arange(4_000) % 2 == 0, -9.0, 0.0)  # Z = 0.5 all the same
    there = exploration_check(
        KEY, target, inside, math.log(0.5), log_weight=weightless, modes=modes
    )
    assert there.num_missed == 1
    assert exploration_check(KEY, target, inside, 0.0, modes=modes).passed
    # Draws of both have it.
    both = cs.bases.mixture(jnp.zeros(2), modes.loc, modes.scale_tril)
    exact = both.sample(KEY, 4_000)
    seen = exploration_check(KEY, target, exact, 0.0, modes=modes)
    assert seen.passed and seen.num_modes == 2


@pytest.mark.parametrize(
    ("log_density", "dim", "is_open"),
    [
        (lambda x: -0.5 * x @ x, 3, False),
        (lambda x: jnp.sum(-jnp.log1p(x**2)), 3, False),  # Cauchy
        (lambda x: -0.5 * x[0] ** 2 + 0.0 * x[1], 2, True),
        (lambda x: -jnp.log1p(jnp.abs(x[0])), 1, True),
        (lambda x: 5.0 * jnp.sum(jnp.cos(x)), 2, True),
        (lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, -jnp.inf), 2, False),
    ],
)
def test_open_directions(log_density, dim, is_open):
    x = jax.random.normal(KEY, (500, dim))
    target = cs.Target(log_density, dim)
    assert bool(len(open_directions(target, x, jax.vmap(log_density)(x)))) == is_open


def test_a_look_names_the_coordinates_that_have_no_prior():
    target = cs.Target(lambda x: -0.5 * x[0] ** 2, 3, sites=(("a", 1), ("b", 2)))
    sampler, start = cs.Sampler.of_base(base := cs.bases.standard_normal(3)), Start(base, True)
    draws = sampler.sample(KEY, target, 500)
    found = look_for_missed_mass(
        KEY, target, start, False, sampler, draws, cs.evidence(draws), at([0.0, 0.0, 0.0])
    )
    assert "b[0], b[1]" in found.open_along and " a" not in f" {found.open_along}"
    assert "(of b[0], b[1] above all)" in str(found)


def test_particles_where_no_draw_comes():
    w = 0.3 * jax.random.normal(KEY, (4_000,))
    draws = cs.Draws(w[:, None], w, bound="lower")
    of_the_target = np.asarray(w)[np.random.default_rng(0).choice(4_000, 1_000)] + 0.09
    assert share_beyond(draws, of_the_target) < 0.02
    of_the_target[:200] = 9.0
    assert share_beyond(draws, of_the_target) == pytest.approx(0.2, abs=0.02)
    check = ExplorationCheck(1, 0, 0.0, 0.0, uncovered=0.2)
    assert not check.passed and "20 % of tempered particles" in str(check)
    # Their log Z alone is no proof where they are all within reach.
    assert ExplorationCheck(1, 0, 0.0, 1.5, uncovered=0.01).passed
    assert not ExplorationCheck(1, 0, 0.0, 1.5).passed


def test_points_that_stand_for_draws_which_are_not_there_are_no_evidence():
    """Particles too near to the mode of ten dimensions; a mode that no draw came near."""
    rng, log_scale = np.random.default_rng(0), 10 * np.log(1.5)

    def log_weight(x):  # a standard normal by draws of 1.5 times its scale
        return log_scale - (0.5 - 0.5 / 1.5**2) * (x**2).sum(1)

    drawn = 1.5 * rng.normal(size=(10_000, 10))
    draws = cs.Draws(jnp.asarray(drawn), jnp.asarray(log_weight(drawn)), bound="lower")
    exact = log_weight(rng.normal(size=(2_000, 10)))
    too_near = log_weight(0.4 * rng.normal(size=(2_000, 10)))
    assert np.mean(too_near > np.quantile(exact, 0.99)) > 0.9
    assert share_beyond(draws, exact) < 0.01 and share_unseen(draws, exact) < 0.01
    # Few enough of them that by chance no draw may have come there.
    assert share_beyond(draws, too_near) < 0.06 and share_unseen(draws, too_near) < 0.06
    # Where a draw is a millionth as likely, no draw speaks against them.
    far = np.where(np.arange(2_000) < 400, exact + 14.0, exact)
    assert share_beyond(draws, far) == pytest.approx(0.19, abs=0.01)
    assert share_unseen(draws, far) == pytest.approx(0.2, abs=0.01)


def test_a_base_with_an_edge_is_judged_by_what_is_inside():
    box = cs.Target(lambda x: jnp.where(jnp.abs(x[0]) < 1, 0.0, -jnp.inf), 1)
    fit = cs.bases.judge(KEY, box, cs.bases.standard_normal(1, scale=0.6))
    assert fit.inside == pytest.approx(0.904, abs=0.02)
    assert 0.4 < fit.elbo < math.log(2.0)


@pytest.mark.slow
def test_the_tail_round_pulls_widened_draws_and_reports_the_others():
    target = cs.Target(lambda x: -0.5 * x @ x, 4)
    algorithm = cs.osds(target, base=cs.bases.standard_normal(4), max_steps=1, hidden=(8,))
    algorithm = cs.calibration(algorithm, batch_size=256)
    state, asked, elbos = algorithm.init(KEY), [], []
    for share in (0.0, 0.5):
        objective = dataclasses.replace(algorithm.objective, tail_share=share)

        def evaluate(x):
            asked.append(np.linalg.norm(x, axis=1))
            # Far out the density is another one, which nothing that is reported may show.
            return jax.vmap(target.log_density)(x) - 50.0 * (jnp.linalg.norm(x, axis=1) > 6.0)

        control = dataclasses.replace(algorithm.control, guidance=None, gate=None)
        loss = objective(state.params, Now(KEY, control, state), evaluate)
        elbos.append(float(loss.info.elbo))
    own, widened = asked
    far = widened > 1.5 * own  # 1 + 2 / sqrt(4) times as far
    assert far.mean() == 0.5
    np.testing.assert_allclose(widened[~far], own[~far], rtol=1e-5)
    assert abs(elbos[0] - elbos[1]) < 0.1


def test_intervals_of_usable_numbers_are_wider():
    worth = SimpleNamespace(ess=0.9, num_samples=10_000, unseen=jnp.asarray(0.01))
    run = SimpleNamespace(verdict=Verdict("usable", ""), evidence=worth, chains=None)
    assert 0.92 < Run._widened(run, 0.9) < 0.95
    run.verdict = Verdict("trusted", "")
    assert Run._widened(run, 0.9) == 0.9
    run.verdict = Verdict("usable", "")
    mixed = cs.diagnostics.Mixing(1.02, 500.0, 1e4, 0.0)
    run.chains = SimpleNamespace(mixing=mixed._replace(tail=100.0), exploration=None)
    assert Run._widened(run, 0.9) == pytest.approx(0.95)
    # In a neck that chains hardly come to lies what the interval has to have more.
    neck = cs.diagnostics.ExplorationCheck(1, 0, 0.0, 0.0, hidden=0.02)
    run.chains = SimpleNamespace(mixing=mixed, exploration=neck)
    assert 0.92 < Run._widened(run, 0.9) < 0.925


@pytest.mark.slow
def test_what_a_verdict_recommends_works():
    """On the default sampler: every remedy's arguments are those of the calls it names."""
    target = cs.targets.gaussian(jnp.zeros(1), jnp.ones(1))
    tiny = {"hidden": (8,), "num_calibration_iterations": 5, "progress_bar": False}
    trained = cs.train_sampler(KEY, target, base=cs.bases.standard_normal(1, 1.3), **tiny)
    remedies = trained._remedies()
    longer, chains = remedies["longer"].split(", or go on with ")
    assert longer == "train with num_calibration_iterations=20"
    assert chains == "cs.with_chains(rng_key, trained)"  # tests/test_chains.py calls it
    named = [words.removeprefix("train with ") for words in (longer, remedies["injective"])]
    settings = dict(words.split(",")[0].split("=") for words in named)
    settings = {k: int(v) if v.isdigit() else v.strip('"') for k, v in settings.items()}
    assert settings == {"num_calibration_iterations": 20, "network": "structured"}
    again = cs.train_sampler(KEY, target, base=trained.base, **(tiny | settings))
    assert abs(float(again.evidence(KEY, 500).log_z) - target.log_z) < 0.1
    assert trained.sample(KEY, 100, method="map").bound == "lower-if-injective"
    assert remedies["map"] == 'sample with method="map"'
