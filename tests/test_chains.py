"""Chains in the latent space of a map, and log Z between them and the map."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import consistent_samplers as cs
from consistent_samplers.bridge import Bridge, bridge
from consistent_samplers.corrections import gaussian_bridge
from consistent_samplers.diagnostics import ExplorationCheck, Mixing, chains_verdict, mixing
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.integrations.numpyro.model import flatten_model
from consistent_samplers.recipe import chain_stage

KEY = jax.random.key(0)


def log_weight(x, loc, scale, log_z):
    """Of N(loc, scale²), times Z, over N(0, 1)."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) + 0.5 * x**2 + log_z


def funnel(x):
    """Neal's, in four dimensions: log Z = 0."""
    width = jax.scipy.stats.norm.logpdf(x[0], 0.0, 1.5)
    return width + jax.scipy.stats.norm.logpdf(x[1:], 0.0, jnp.exp(0.5 * x[0])).sum()


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.0, 0.7), (3.0, 0.5), (0.0, 2.0)])
def test_the_interval_of_a_bridge_covers(loc, scale):
    """Narrow, far away, and wider than the sampler, where the weights have no variance."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(200):
        own, theirs = rng.normal(size=1_000), loc + scale * rng.normal(size=(2, 500))
        found = bridge(log_weight(own, loc, scale, 5.0), log_weight(theirs, loc, scale, 5.0))
        errors.append((found.log_z - 5.0) / max(found.log_z_stderr, 1e-9))
    assert np.mean(np.abs(errors) < 1.96) > 0.9
    assert abs(np.mean(errors)) < 0.3


def test_a_bridge_counts_chains_by_their_effective_draws():
    rng, ratios = np.random.default_rng(1), []
    for _ in range(100):
        theirs = np.zeros((4, 500))
        for i in range(1, 500):
            theirs[:, i] = 0.9 * theirs[:, i - 1] + np.sqrt(1 - 0.9**2) * rng.normal(size=4)
        theirs = 1.0 + 2.0 * theirs  # wider: what it weighs is decided by the chains
        found = bridge(
            log_weight(rng.normal(size=100_000), 1.0, 2.0, 0.0), log_weight(theirs, 1.0, 2.0, 0.0)
        )
        ratios.append(found.log_z / found.log_z_stderr)
    assert 0.7 < np.std(ratios) < 1.4


def test_a_bridge_takes_draws_outside_of_the_support():
    rng = np.random.default_rng(2)
    own, theirs = rng.normal(size=20_000), np.abs(rng.normal(size=(1, 20_000)))
    found = bridge(np.where(own > 0.0, 0.0, -np.inf), np.zeros_like(theirs))
    assert abs(found.log_z - np.log(0.5)) < 4.0 * found.log_z_stderr < 0.1


def test_a_bridge_to_draws_far_away_knows_that_it_knows_nothing():
    """Weights of a narrow Gaussian at draws of a shell around it: thousands of nats apart."""
    rng = np.random.default_rng(0)
    own, theirs = -10.0 * rng.exponential(size=4_000), rng.uniform(50.0, 3e3, (4, 1_000))
    found = bridge(own, theirs)
    assert np.isfinite(found.log_z) and 0.5 < found.log_z_stderr < np.inf
    # So that one to a Gaussian of the chains takes its place.
    assert gaussian_bridge.smaller_error(found, Bridge(0.0, 0.1)) == (Bridge(0.0, 0.1), True)


@pytest.mark.parametrize(
    ("own", "theirs", "match"),
    [
        (np.zeros(3), np.zeros((1, 9)), "at least four"),
        (np.zeros((2, 9)), np.zeros((1, 9)), r"\[n\]"),
        (np.full(9, -np.inf), np.zeros((1, 9)), "finite weights"),
        (np.zeros(9), np.full((1, 9), -np.inf), "finite weights"),
    ],
)
def test_a_bridge_says_what_it_cannot_use(own, theirs, match):
    with pytest.raises(ValueError, match=match):
        bridge(own, theirs)


def test_mixing_of_chains():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(4, 1_000, 3))
    found = mixing(good)
    assert found.r_hat < 1.01 and found.bulk > 3_000 and found.tail > 2_500
    apart = good + np.array([0.0, 0.0, 0.0, 0.7])[:, None, None]
    assert mixing(apart).r_hat > 1.05
    wider = good * np.array([1.0, 1.0, 1.0, 3.0])[:, None, None]
    assert mixing(wider).r_hat > 1.05  # the same mean: seen by the distances from the median
    still = good.copy()
    still[2, :, 1] = 0.3
    assert mixing(still).r_hat == np.inf


def test_mixing_counts_effective_draws():
    rng, x = np.random.default_rng(0), np.zeros((4, 4_000, 1))
    for i in range(1, 4_000):
        x[:, i] = 0.9 * x[:, i - 1] + np.sqrt(1 - 0.81) * rng.normal(size=(4, 1))
    assert mixing(x).bulk == pytest.approx(16_000 * 0.1 / 1.9, rel=0.25)


def _evidence(elbo=0.0):
    return cs.evidence(cs.Draws(jnp.zeros((100, 1)), jnp.full(100, elbo), bound="lower"))


@pytest.mark.parametrize(
    ("found", "log_z", "exploration", "level", "words"),
    [
        (Mixing(1.005, 900.0, 800.0, 0.0), 0.01, None, "trusted", "can be used"),
        (Mixing(1.03, 900.0, 800.0, 0.0), 0.01, None, "usable", "r-hat of 1.030"),
        (Mixing(1.2, 900.0, 800.0, 0.0), 0.01, None, "not to be used", "r-hat of 1.200"),
        (Mixing(1.005, 900.0, 150.0, 0.0), 0.01, None, "usable", "150 are effective"),
        (Mixing(1.005, 900.0, 50.0, 0.0), 0.01, None, "not to be used", "50 are effective"),
        (Mixing(1.005, 900.0, 800.0, 0.004), 0.01, None, "usable", "0.4 % of the transitions"),
        (Mixing(1.005, 900.0, 800.0, 0.2), 0.01, None, "not to be used", "20 % of the"),
        (Mixing(1.005, 900.0, 800.0, 0.0), -1.0, None, "not to be used", "below the bound"),
        (
            Mixing(1.005, 900.0, 800.0, 0.0),
            0.01,
            ExplorationCheck(2, 1, 0.5, float("nan")),
            "not to be used",
            "lack mass",
        ),
    ],
)
def test_the_verdict_on_chains(found, log_z, exploration, level, words):
    verdict = chains_verdict(found, Bridge(log_z, 0.01), _evidence(), exploration)
    assert verdict.level == level
    assert words in str(verdict)


def test_rounding_is_no_reason_against_chains():
    """A map that is exact knows log Z to the last digit."""
    mixed = Mixing(1.002, 900.0, 700.0, 0.0)
    for off, level in ((1e-5, "trusted"), (0.01, "not to be used")):
        assert chains_verdict(mixed, Bridge(-off, 1e-8), _evidence(0.0)).level == level


def test_mass_where_no_chain_came_is_bad():
    mixed, log_z = Mixing(1.001, 900.0, 800.0, 0.0), Bridge(0.0, 0.01)
    assert chains_verdict(mixed, log_z, _evidence(), None, 0.01).level == "trusted"
    verdict = chains_verdict(mixed, log_z, _evidence(), None, 0.3)
    assert verdict.level == "not to be used" and "30 % of Z or more" in str(verdict)


def test_a_log_z_that_is_not_known_is_bad():
    verdict = chains_verdict(Mixing(1.001, 900.0, 800.0, 0.0), Bridge(0.0, 0.7), _evidence(-3.0))
    assert verdict.level == "not to be used" and "known to ± 0.7 only" in str(verdict)


@pytest.mark.slow
def test_chains_do_not_forget_a_spike_that_one_step_saw():
    """A third of the mass in a spike: chains leave it while they adapt, and never return."""

    def log_density(x):
        parts = [jax.scipy.stats.norm.logpdf(x[0], 0.5, scale) for scale in (1.0, 5e-4)]
        return jnp.logaddexp(parts[0] + jnp.log(2 / 3), parts[1] + jnp.log(1 / 3))

    target = cs.Target(log_density, 1, log_z=0.0)
    base = cs.bases.standard_normal(1)
    trained = cs.train_sampler(KEY, target, base=base, effort="base", progress_bar=False)
    found = cs.with_chains(KEY, trained, progress_bar=False)
    assert found.chains.unvisited > 0.1 or abs(found.chains.log_z.log_z) < 0.05
    assert found.chains_verdict().level == "not to be used"


def test_coarse_densities_are_no_ground_for_chains():
    mixed = Mixing(1.001, 900.0, 800.0, 0.0)
    assert chains_verdict(mixed, Bridge(1e7, 0.01), _evidence(1e7)).level == "not to be used"


@pytest.mark.slow
def test_latent_points_are_weighed_as_draws_are():
    target = cs.targets.funnel(3)
    algorithm = cs.osds(
        target, base=cs.bases.standard_normal(3, 1.5), max_steps=1, hidden=(8,), guidance=None
    )
    params = algorithm.init(KEY).params
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), params)
    sampler = dataclasses.replace(algorithm.sampler(algorithm.init(KEY)), params=moved)
    z = jax.random.normal(KEY, (20_000, 3))
    there = sampler.weigh(target, z)
    back = sampler.log_weight(KEY, target, there.position[:50], 1)
    np.testing.assert_allclose(back, there.log_weight[:50], atol=2e-3)
    drawn = sampler.sample(jax.random.key(1), target, 20_000, 1)
    np.testing.assert_allclose(there.position.mean(0), drawn.position.mean(0), atol=0.05)
    assert sampler.map_cost() > 0.0


@pytest.fixture(scope="module")
def of_funnel():
    """A Gaussian of a funnel, whose weights are of no use, with chains in its space."""
    target = cs.Target(funnel, 4, name="small funnel", log_z=0.0)
    base = cs.bases.GaussianBase(jnp.zeros(4), jnp.diag(jnp.array([1.0, 1.0, 1.0, 1.0])))
    trained = cs.train_sampler(KEY, target, base=base, effort="base", progress_bar=False)
    return cs.with_chains(jax.random.key(1), trained, progress_bar=False)


def test_chains_where_one_step_falls_short(of_funnel):
    assert of_funnel.route.name == "chains"
    assert of_funnel.chains.position.shape in [(4, num, 4) for num in (1_000, 2_000, 4_000)]
    assert of_funnel.verdict(of_funnel.evidence(KEY)).level == "not to be used"
    log_z = of_funnel.chains.log_z
    assert abs(log_z.log_z) < max(4.0 * log_z.log_z_stderr, 0.1)
    neck = np.asarray(of_funnel.chains.position[..., 0])
    assert abs(neck.mean()) < 0.45 and abs(neck.std() / 1.5 - 1.0) < 0.25


def test_chains_are_kept_on_disk(of_funnel, tmp_path):
    of_funnel.save(tmp_path / "kept")
    again = cs.load(tmp_path / "kept", of_funnel.target)
    np.testing.assert_array_equal(again.chains.position, of_funnel.chains.position)
    assert again.chains.mixing == of_funnel.chains.mixing
    assert again.chains_verdict() == of_funnel.chains_verdict()
    other = cs.Target(lambda x: funnel(x) + x[0], 4)
    with pytest.warns(UserWarning, match="not the one"):
        assert cs.load(tmp_path / "kept", other).chains is None


@pytest.mark.slow
def test_between_components_chains_take_the_gaussian_of_the_draws():
    """A bent density with a mixture of two for a base."""

    def log_density(x):
        bent = jax.scipy.stats.norm.logpdf(x[1], 0.3 * x[0] ** 2, 0.5)
        return jax.scipy.stats.norm.logpdf(x[0]) + bent

    target = cs.Target(log_density, 2)
    loc = jnp.array([[-1.0, 0.3], [1.0, 0.3]])
    base = cs.bases.mixture(jnp.zeros(2), loc, jnp.stack([0.8 * jnp.eye(2)] * 2))
    chains = cs.corrections.latent_chains(KEY, target, cs.Sampler.of_base(base))
    assert chains.mixing.r_hat < 1.02
    assert abs(chains.log_z.log_z) < max(4.0 * chains.log_z.log_z_stderr, 0.02)
    x = chains.position.reshape(-1, 2)
    assert abs(float(x[:, 0].std()) - 1.0) < 0.1 and abs(float(x[:, 1].mean()) - 0.3) < 0.08


@pytest.mark.parametrize("scale", [0.1, pytest.param(10.0, marks=pytest.mark.slow)])
def test_chains_that_the_map_hardly_overlaps_tell_log_z(scale):
    """A sampler much too narrow, or wide: log Z comes from a Gaussian of the chains' own."""

    def log_density(x):
        return jax.scipy.stats.norm.logpdf(x).sum() + 2.0

    target = cs.Target(log_density, 8)
    sampler = cs.Sampler.of_base(cs.bases.standard_normal(8, scale))
    chains = cs.corrections.latent_chains(KEY, target, sampler)
    alone = bridge(sampler.sample(KEY, target, 4_096, 1).log_weight, chains.log_weight)
    assert alone.log_z_stderr > 0.05
    assert abs(chains.log_z.log_z - 2.0) < 4.0 * chains.log_z.log_z_stderr < 0.1


def test_chains_are_left_out_where_they_cannot_help(monkeypatch, of_funnel):
    monkeypatch.setattr(chain_stage, "latent_chains", lambda *_, **__: pytest.fail("chains ran"))
    without = dataclasses.replace(of_funnel, chains=None)
    missed = ExplorationCheck(2, 1, 0.5, float("nan"))
    lacking = dataclasses.replace(without, exploration=missed)
    assert chain_stage.where_needed(KEY, lacking, progress_bar=False) is lacking
    assert chain_stage.where_needed(KEY, without, False, progress_bar=False) is without
    exact = cs.targets.gaussian(jnp.zeros(2), jnp.ones(2))
    good = cs.train_sampler(
        KEY, exact, base=cs.bases.standard_normal(2), effort="base", progress_bar=False
    )
    assert chain_stage.where_needed(KEY, good, progress_bar=False) is good
    monkeypatch.setattr(chain_stage, "_AFFORDABLE", 0.0)
    assert chain_stage.where_needed(KEY, without, progress_bar=False) is without


def test_ctrl_c_during_chains_keeps_what_was_trained(monkeypatch, of_funnel):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(chain_stage, "latent_chains", interrupt)
    without = dataclasses.replace(of_funnel, chains=None)
    with pytest.warns(RuntimeWarning, match="Chains were interrupted"):
        assert chain_stage.where_needed(KEY, without, True, progress_bar=False) is without


@pytest.mark.slow
def test_a_sampler_made_by_hand_takes_chains():
    target = cs.targets.gaussian(jnp.ones(2), jnp.ones(2))
    algorithm = cs.osds(target, base=cs.bases.standard_normal(2), guidance=None, hidden=(8,))
    trained = cs.TrainedSampler.of(algorithm, algorithm.init(KEY))
    found = cs.with_chains(KEY, trained, num_samples=1_000, progress_bar=False)
    assert found.route.stages == {} and found.chains.position.shape == (4, 250, 2)
    assert found.chains_verdict().level != "not to be used"
    assert abs(found.chains.log_z.log_z - target.log_z) < 0.2


def test_no_verdict_on_chains_without_chains(of_funnel):
    with pytest.raises(ValueError, match="with_chains"):
        dataclasses.replace(of_funnel, chains=None).chains_verdict()


def school_model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    with numpyro.plate("schools", 3):
        effect = numpyro.sample("effect", dist.Normal(mean, 2.0))
        numpyro.sample("y", dist.Normal(effect, 1.0), obs=y)
    numpyro.deterministic("total", effect.sum())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # ArviZ of its own future
@pytest.mark.slow
def test_a_numpyro_model_by_chains(capsys):
    """Conjugate: mean | y ~ N(25 Σy / (75 + 5), 1 / (1/25 + 3/5))."""
    y = jnp.array([1.0, 3.0, 5.0])
    sampler = OneStepSampler(school_model, num_samples=2_000, progress_bar=False, effort="chains")
    sampler.run(KEY, y)
    assert sampler.route.name == "chains"
    found = sampler.diagnostics()
    assert found["route"] == "chains" and found["r_hat"] < 1.05
    samples = sampler.get_samples()
    assert not found["reweighted"]  # chains were asked for
    assert samples["effect"].shape == (2_000, 3) and samples["total"].shape == (2_000,)
    precision = 1 / 25 + 3 / 5
    exact = (9.0 / 5.0) / precision
    assert abs(float(samples["mean"].mean()) - exact) < 0.15
    assert abs(float(samples["mean"].std()) * precision**0.5 - 1.0) < 0.1
    covariance = 25.0 + 5.0 * jnp.eye(3)
    log_z = dist.MultivariateNormal(jnp.zeros(3), covariance).log_prob(y)
    assert abs(float(sampler.evidence.log_z - log_z)) < 0.05
    capsys.readouterr()
    sampler.print_summary()
    said = capsys.readouterr().out
    assert "r_hat" in said and "of 4 chains: r-hat" in said
    data = sampler.to_arviz()
    assert data.posterior["effect"].shape == (4, 500, 3)
    assert data.sample_stats["diverging"].shape == (4, 500)
    assert data.posterior_predictive["y"].shape == (4, 500, 3)
    weighted, log_weight = sampler.get_weighted_samples()  # one step's, as before
    assert weighted["mean"].shape == (2_000,) and float(jnp.std(log_weight)) > 0.0


@pytest.mark.slow
def test_a_run_whose_draws_fall_short_goes_on_to_chains(tmp_path):
    """A sampler from a folder is too narrow for its model: nothing is trained anew."""
    y = jnp.array([1.0, 3.0, 5.0])
    target = flatten_model(school_model, (y,), {}).target
    narrow = cs.bases.GaussianBase(jnp.array([1.4, 3.0, 4.6, 2.8]), 0.5 * jnp.eye(4))
    cs.train_sampler(KEY, target, base=narrow, effort="base", progress_bar=False).save(tmp_path)
    sampler = OneStepSampler(school_model, num_samples=2_000, progress_bar=False)
    sampler.load(tmp_path, y)
    sampler.run(KEY, y)
    assert sampler.route.name == "chains" and "not to be used" in sampler.route.reason
    found = sampler.diagnostics()
    assert found["level"] in ("trusted", "usable") and not found["reweighted"]
    assert abs(float(sampler.get_samples()["mean"].mean()) - 1.8 / 0.64) < 0.2
    # And whoever set a budget is not made to wait.
    given = OneStepSampler(
        school_model, num_samples=2_000, num_calibration_iterations=5, progress_bar=False
    )
    given.load(tmp_path, y)
    given.run(KEY, y)
    assert given.route.name == "base" and given.diagnostics()["r_hat"] is None


@pytest.mark.slow
def test_chains_go_on_until_they_have_mixed():
    """Of a standard normal 20 draws say little, and 320 enough; a single call says how many."""
    base = cs.bases.standard_normal(2)
    target, told = cs.targets.gaussian(jnp.zeros(2), jnp.ones(2)), []
    run = functools.partial(
        cs.corrections.latent_chains, KEY, target, cs.Sampler.of_base(base), num_warmup=100
    )
    short = run(num_samples=20)
    longer = run(num_samples=20, max_samples=2_000, progress=told.append)
    limited = run(num_samples=20, max_samples=79)
    assert short.position.shape[1] == 20 and limited.position.shape[1] == 40
    num = longer.position.shape[1]
    assert num in (160, 320, 640, 1_280) and sum(told) == 100 + num
    assert longer.mixing.r_hat <= cs.diagnostics.MIXED_R_HAT
    assert min(longer.mixing.bulk, longer.mixing.tail) >= cs.diagnostics.ENOUGH_DRAWS
    # What was drawn first is kept.
    np.testing.assert_array_equal(longer.position[:, :20], short.position)


@pytest.mark.slow
def test_chains_end_where_gradients_are_many():
    """After the draws that were asked for, 250 at most, and with all that there are by then."""
    base = cs.bases.standard_normal(2)
    target, told = cs.targets.gaussian(jnp.zeros(2), jnp.ones(2)), []
    run = functools.partial(
        cs.corrections.latent_chains, KEY, target, cs.Sampler.of_base(base), num_warmup=50
    )
    whole = run(num_samples=400)
    found = run(num_samples=400, max_samples=4_000, max_gradients=1, progress=told.append)
    assert found.position.shape[1] == 250 and sum(told) == 50 + 250
    np.testing.assert_array_equal(found.position, whole.position[:, :250])
    few = run(num_samples=20, max_samples=4_000, max_gradients=1)
    assert few.position.shape[1] == 20


@pytest.mark.slow
def test_steps_get_shorter_where_transitions_diverge():
    """A step that fits a wide slope is too long for the wall at its end."""

    def wall(x):
        return -20.0 * jax.nn.softplus(-x[0]) - 0.5 * (x[0] / 100.0) ** 2 - 0.5 * x[1] ** 2

    told = []
    sampler, target = cs.Sampler.of_base(cs.bases.standard_normal(2, 50.0)), cs.Target(wall, 2)
    run = functools.partial(
        cs.corrections.latent_chains, KEY, target, sampler, num_warmup=200, num_samples=300
    )
    assert run().mixing.divergent > 5.0 * cs.diagnostics.MAX_DIVERGENT
    calmer = run(max_samples=300, progress=told.append)
    assert calmer.mixing.divergent < cs.diagnostics.MAX_DIVERGENT
    assert calmer.position.shape == (4, 300, 2) and sum(told) == 200 + 300 + 50 + 300


def test_what_some_draws_show_is_remembered_where_others_hide_it():
    """A needle that one set of draws met: draws without it must not be trusted afterwards."""
    base = cs.bases.standard_normal(1)
    target = cs.targets.gaussian(jnp.zeros(1), jnp.ones(1))
    sampler = cs.Sampler.of_base(base)
    seen = cs.diagnostics.ExplorationCheck(1, 0, 0.0, 0.0)
    trained = cs.TrainedSampler(target, sampler, sampler, exploration=seen)
    first, second = (sampler.sample(jax.random.key(i), target, 1_000) for i in (0, 1))
    kept = chain_stage._remembering(trained, [first, second])
    assert kept.exploration == seen and kept.verdict(kept.evidence(KEY)).level == "trusted"
    # A fifth of Z at a single draw.
    needle = first.log_weight.at[0].add(math.log(0.25 * 1_000))
    kept = chain_stage._remembering(
        trained, [dataclasses.replace(first, log_weight=needle), second]
    )
    assert 0.15 < kept.exploration.hidden < 0.3
    assert kept.verdict(kept.evidence(KEY)).level == "not to be used"


def test_a_look_at_the_map_is_not_one_at_the_chains(of_funnel):
    """What lies farther out than the map's draws may be where chains came."""
    found = cs.diagnostics.ExplorationCheck(1, 0, 0.0, 0.0, farther=0.5)
    trained = dataclasses.replace(of_funnel, exploration=found, chains=None, route=None)
    chained = cs.with_chains(jax.random.key(2), trained, progress_bar=False)
    assert chained.exploration is found and not found.passed
    assert chained.chains.exploration.farther < 0.02
    evidence = chained.evidence(KEY)
    assert chained.verdict(evidence).level == "not to be used"


def apart(x):
    """Two modes, the right one with 0.7 of the mass."""
    normal = jax.scipy.stats.norm.logpdf
    left, right = (normal(x, place, 1.0).sum() for place in (-8.0, 8.0))
    return 2.0 + jnp.logaddexp(jnp.log(0.3) + left, jnp.log(0.7) + right)


@pytest.mark.parametrize(
    "key",
    [KEY, pytest.param(jax.random.PRNGKey(0), marks=pytest.mark.slow)],
    ids=["new", "old"],
)
def test_chains_pass_between_the_components_of_a_base(key):
    loc = jnp.array([[-8.0, -8.0], [8.0, 8.0]])
    base = cs.bases.mixture(jnp.zeros(2), loc, jnp.stack([1.2 * jnp.eye(2)] * 2))
    sampler = cs.Sampler.of_base(base)
    trained = cs.TrainedSampler(cs.Target(apart, 2), sampler, sampler)
    chains = cs.corrections.latent_chains(
        key, trained.target, sampler, num_warmup=100, num_samples=500
    )
    assert chains.mixing.r_hat < 1.02 and chains.sampler is sampler and not chains.map_replaced
    right = np.asarray(chains.position[..., 0] > 0.0)
    # A jump is accepted two times of three: neighbours are alike, and four errors of that.
    assert abs(right.mean() - 0.7) < 0.06
    near = np.abs(np.asarray(chains.position)) - 8.0
    assert abs(near.mean()) < 0.1 and abs(near.std() - 1.0) < 0.1
    np.testing.assert_allclose(
        chains.log_weight[0], sampler.log_weight(key, trained.target, chains.position[0]), atol=1e-3
    )
    assert abs(chains.log_z.log_z - 2.0) < 4.0 * chains.log_z.log_z_stderr < 0.1
    found = dataclasses.replace(trained, chains=chains).bracket(key)
    assert found.method == "bridge" and found.note == "" and found.lower < 2.0 < found.upper


@pytest.mark.slow
def test_a_fitted_base_stands_in_for_a_map_before_moments_of_few_draws():
    """In 150 dimensions 4,096 draws tell a covariance to more than a nat."""
    scales = jnp.exp(jnp.linspace(-1.0, 1.0, 150))
    target = cs.targets.gaussian(jnp.zeros(150), scales**2)
    sampler = cs.Sampler.of_base(cs.bases.GaussianBase(jnp.zeros(150), jnp.diag(scales)))
    chains = cs.corrections.latent_chains(
        KEY, target, sampler, num_warmup=50, num_samples=50, gaussian=True
    )
    assert float(chains.log_weight.std()) < 0.01
    assert abs(chains.log_z.log_z - target.log_z) < 0.01
