"""How far training goes: no further than the draws asked for need, and what it says of that."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import consistent_samplers as cs
from consistent_samplers.diagnostics import ExplorationCheck
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.maps import Control, Identity
from consistent_samplers.recipe import Route, base_stage, chain_stage, judging, looking, route
from consistent_samplers.targets import evaluation

KEY = jax.random.key(0)
QUICK = {"hidden": (8,), "explore": False, "progress_bar": False}
CHEAP = route.costs(2, (64, 64), False, density=100.0)
DEAR = route.costs(2, (64, 64), False, density=1e9)
SEEN = ExplorationCheck(num_modes=2, num_missed=0, missed_share=0.0, log_z_excess=0.0)
MISSED = SEEN._replace(num_missed=1, missed_share=0.5)
pytestmark = pytest.mark.filterwarnings("ignore:Calibration did not improve:UserWarning")


def banana() -> cs.Target:
    """x_0 ~ N(0, 1), x_1 | x_0 ~ N(x_0² / 2, 1/4): normalised, and no Gaussian."""
    normal = jax.scipy.stats.norm.logpdf
    return cs.Target(
        lambda x: normal(x[0]) + normal(x[1], 0.5 * x[0] ** 2, 0.5), 2, "banana", log_z=0.0
    )


def bent() -> cs.Target:
    """Close to a normal."""
    return cs.Target(
        lambda x: -0.5 * jnp.sum(x**2) - 0.3 * jnp.sum(jnp.cos(x)), 3, "bent", log_z=None
    )


def student(degrees: float = 8.0, dim: int = 5) -> cs.Target:
    """A product of Student's t: normalised, with tails heavier than a Gaussian's."""
    return cs.Target(
        lambda x: jnp.sum(jax.scipy.stats.t.logpdf(x, degrees)), dim, "student", log_z=0.0
    )


def worth(k: float, ess: float, num_samples: int = 4_096) -> cs.Evidence:
    values = (0.0, 0.01, -0.1, 0.01, ess, k)
    return cs.Evidence(*map(jnp.asarray, values), bound="lower", num_samples=num_samples)


# ---- the decisions


@pytest.mark.parametrize(
    ("k", "ess", "exploration", "num_samples", "cost", "enough"),
    [
        (0.2, 0.8, None, 10_000, CHEAP, True),
        (0.2, 0.8, SEEN, 10_000, CHEAP, True),
        (0.45, 0.8, None, 10_000, CHEAP, True),
        # Weights that may have no variance, or whose tail nobody could judge.
        (0.48, 0.8, None, 10_000, CHEAP, False),
        (0.7, 0.995, None, 10_000, CHEAP, False),
        (np.inf, 0.8, None, 10_000, CHEAP, False),
        (np.nan, 0.8, None, 10_000, CHEAP, False),
        # Too uneven, or too few effective, to tell.
        (0.2, 0.21, None, 10_000, CHEAP, True),
        (0.2, 0.19, None, 10_000, CHEAP, False),
        (0.2, 0.02, None, 10_000, CHEAP, False),
        # Modes that the base does not reach, or mass that it does not account for.
        (0.2, 0.8, MISSED, 10_000, CHEAP, False),
        (0.2, 0.8, SEEN._replace(log_z_excess=3.0), 10_000, CHEAP, False),
        # A density so dear, or so many draws, that drawing costs more than training.
        (0.2, 0.03, None, 10_000, DEAR, False),
        (0.2, 0.8, None, 10_000, DEAR, True),
        (0.2, 0.8, None, 1_000_000, DEAR, False),
        (0.2, 0.8, None, 10**12, CHEAP, False),
    ],
)
def test_when_a_base_is_enough(k, ess, exploration, num_samples, cost, enough):
    why = route.base_is_enough(worth(k, ess), exploration, num_samples, cost)
    assert (why is not None) == enough
    if enough:
        assert "weights can be trusted" in why


@pytest.mark.parametrize(("unseen", "enough"), [(0.009, True), (0.011, False), (0.05, False)])
def test_weights_that_may_hide_a_percent_are_not_enough(unseen, enough):
    evidence = worth(0.3, 0.5).replace(unseen=jnp.asarray(unseen))
    assert (route.base_is_enough(evidence, None, 10_000, CHEAP) is not None) == enough
    assert (route.calibration_is_enough(evidence, 10_000, CHEAP) is not None) == enough


@pytest.mark.parametrize(
    ("k", "ess", "num_samples", "cost", "enough"),
    [
        (0.2, 0.6, 10_000, CHEAP, True),
        (0.6, 0.6, 10_000, CHEAP, True),
        # Weights that cannot be used, unless they hardly differ.
        (0.8, 0.6, 10_000, CHEAP, False),
        (0.8, 0.995, 10_000, CHEAP, True),
        (np.nan, 0.6, 10_000, CHEAP, False),
        (0.2, 0.02, 10_000, CHEAP, False),
        # Of uneven weights with a heavy tail the largest are yet to be seen.
        (0.6, 0.12, 10_000, CHEAP, False),
        (0.4, 0.12, 10_000, CHEAP, True),
        # What would have to be drawn beyond the draws asked for costs more than training on.
        (0.2, 0.6, 10**9, CHEAP, False),
        (0.2, 0.999999, 10**9, CHEAP, True),
        (0.2, 0.1, 100_000, DEAR, True),
        (0.2, 0.1, 1_000_000, DEAR, False),
    ],
)
def test_when_a_short_calibration_is_enough(k, ess, num_samples, cost, enough):
    why = route.calibration_is_enough(worth(k, ess), num_samples, cost)
    assert (why is not None) == enough


def test_costs_grow_with_what_they_are_of():
    small, large = (route.costs(dim, (64, 64), False, 100.0) for dim in (2, 50))
    assert all(a < b for a, b in zip(small[:2], large[:2], strict=True))
    # A Jacobian by its parts saves most of a draw.
    assert route.costs(50, (64, 64), True, 100.0).map_draw < 0.2 * large.map_draw
    assert large.calibration(1_250) > large.calibration(250) > large.calibration(1)


# ---- the routes


def test_a_target_that_a_base_fits_trains_nothing():
    trained = cs.train_sampler(KEY, bent(), **QUICK)
    assert trained.route.name == "base" and "cheaper than training" in trained.route.reason
    assert isinstance(trained.one_step.control, Identity)
    assert list(trained.stages) == ["base"] and trained.histories == {}
    assert trained.route.stages == {"base": float(trained.stages["base"].ess)}
    draws = trained.sample(KEY, 500)
    assert draws.bound == "lower"
    expected = draws.log_density - trained.one_step.base.log_prob(draws.position)
    np.testing.assert_allclose(draws.log_weight, expected, atol=1e-4)
    again = trained.evidence(jax.random.key(1), 4_000)
    assert abs(float(again.ess - trained.stages["base"].ess)) < 0.05
    with pytest.raises(ValueError, match="train with more max_steps"):
        trained.sample(KEY, 10, num_steps=2)


@pytest.mark.slow
def test_the_base_is_looked_at_from_outside_before_it_is_taken():
    trained = cs.train_sampler(KEY, bent(), progress_bar=False)
    assert trained.route.name == "base" and trained.exploration.passed


@pytest.mark.slow
def test_a_target_that_no_base_fits_is_calibrated():
    trained = cs.train_sampler(KEY, banana(), num_samples=1_000, **QUICK | {"hidden": (32,)})
    # Chains as well where draws of other keys show more of the tail.
    assert trained.route.name in ("short", "chains")
    assert list(trained.stages) == list(trained.route.stages) == ["base", "calibrated"]
    # And a round on widened draws, where the weights' tail was heavy.
    ran = len(trained.histories["calibrated"].loss) - route.SHORT_ITERATIONS
    assert ran in (0, route.TAIL_ITERATIONS)
    assert isinstance(trained.one_step.control, Control)
    assert route.base_is_enough(trained.stages["base"], None, 1_000, CHEAP) is None
    shares = trained.route.stages
    assert shares["calibrated"] > shares["base"]


@pytest.mark.slow
def test_a_funnel_is_trained_in_full_for_many_draws():
    trained = cs.train_sampler(KEY, cs.targets.funnel(10), num_samples=10**9, **QUICK)
    assert trained.route.name == "full"
    both = route.SHORT_ITERATIONS + route.FURTHER_ITERATIONS
    assert len(trained.histories["calibrated"].loss) - both in (0, route.TAIL_ITERATIONS)


def test_heavier_tails_take_a_wider_base():
    trained = cs.train_sampler(KEY, student(), **QUICK)
    assert trained.route.name == "base"
    assert float(trained.stages["base"].pareto_k) < 0.5
    fitted = cs.bases.fit_gaussian(cs.recipe.training.split(KEY)[0], student())
    ratio = trained.base.scale_tril[0, 0] / fitted.scale_tril[0, 0]
    assert 1.04 < float(ratio) < 1.21
    np.testing.assert_array_equal(trained.base.loc, fitted.loc)
    # Fresh draws agree with the truth.
    evidence = trained.evidence(jax.random.key(3), 20_000)
    assert abs(float(evidence.log_z)) < 4 * float(evidence.log_z_stderr)


def test_a_base_that_is_too_narrow_is_widened_although_few_of_its_draws_are_effective():
    target = student(4.0, 6)  # of variance 2
    narrow = cs.bases.standard_normal(6)
    alone = cs.Sampler.of_base(narrow).sample(KEY, target, 4_096)
    assert 0.1 < float(cs.evidence(alone).ess) < route.LEAST_BASE_ESS
    sampler, _, found, why = base_stage.widest_needed(
        KEY, target, narrow, 4_096, lambda _, draws, worth: "even" if worth.ess > 0.3 else None
    )
    assert why == "even" and float(found.ess) > 0.3
    assert float(sampler.base.scale_tril[0, 0]) > 1.04


@pytest.mark.slow
def test_a_base_is_taken_where_draws_of_two_keys_say_so(monkeypatch):
    """As the second look says no, the base that would do is calibrated."""
    judged = []

    def no_at_the_second(evidence, *rest):
        judged.append(float(evidence.elbo))
        return "enough" if len(judged) % 2 else None

    monkeypatch.setattr(route, "base_is_enough", no_at_the_second)
    trained = cs.train_sampler(KEY, bent(), **QUICK)
    assert trained.route.name != "base"
    assert len(judged) >= 2 and judged[0] != judged[1]


@pytest.mark.parametrize(
    ("k", "ess", "borne_out"), [(0.55, 0.9, True), (0.65, 0.9, False), (0.3, 0.09, False)]
)
def test_when_many_draws_bear_out_what_few_said(k, ess, borne_out):
    assert route.many_bear_out(worth(k, ess)) == borne_out


def test_a_base_is_not_taken_where_many_draws_show_more(monkeypatch):
    """Of 65,536 draws, as many as such a cheap density allows; of a dear one there are none."""
    judged = []

    def never(evidence):
        judged.append(evidence.num_samples)
        return False

    monkeypatch.setattr(route, "many_bear_out", never)
    trained = cs.train_sampler(KEY, bent(), **QUICK)
    assert trained.route.name != "base" and set(judged) == {65_536}
    monkeypatch.setattr(judging, "_MANY_OPERATIONS", 0.0)
    judged.clear()
    cs.train_sampler(KEY, bent(), **QUICK)
    assert not judged


def mixture_base():
    locs = jnp.array([[0.0, 1.0], [2.0, -1.0]])
    covariances = jnp.array([[[1.0, 0.3], [0.3, 0.5]], [[2.0, 0.0], [0.0, 1.0]]])
    return cs.bases.mixture(jnp.log(jnp.array([0.3, 0.7])), locs, covariances)


def product_base():
    log_weights = jnp.log(jnp.full((2, 2), 0.5))
    return cs.bases.ProductMixtureBase(log_weights, jnp.eye(2), jnp.full((2, 2), 0.7))


@pytest.mark.parametrize(
    "base",
    [
        lambda: cs.bases.GaussianBase(jnp.ones(2), jnp.diag(jnp.array([0.5, 2.0]))),
        mixture_base,
        product_base,
    ],
    ids=["gaussian", "mixture", "product"],
)
def test_a_wider_base_is_the_same_one_with_larger_deviations(base):
    base = base()
    assert base_stage.widened(base, 1.0) is base
    wider = base_stage.widened(base, 1.2)
    component = base.draw_component(KEY)
    z = jnp.array([0.3, -2.0])
    centre = base.unwhiten(jnp.zeros(2), component)
    np.testing.assert_allclose(
        wider.unwhiten(z, component) - centre, 1.2 * (base.unwhiten(z, component) - centre), 1e-5
    )
    x = wider.unwhiten(z, component)
    np.testing.assert_allclose(wider.whiten(x, component), z, atol=1e-5)
    # Still a density: its weights for its own frames agree with its draws.
    drawn = wider.sample(KEY, 20_000)
    ratio = jnp.exp(base.log_prob(drawn) - wider.log_prob(drawn))
    assert abs(float(ratio.mean()) - 1.0) < 5 * float(ratio.std()) / 20_000**0.5


def test_a_base_of_somebody_elses_class_is_taken_as_it_is():
    assert base_stage.widened(object(), 1.2) is None


# ---- what was asked for


@pytest.mark.slow
def test_effort_overrides_what_the_weights_are_worth():
    poor = cs.bases.standard_normal(2)
    alone = cs.train_sampler(KEY, banana(), base=poor, effort="base", **QUICK)
    assert alone.route[:2] == ("base", "asked for") and alone.histories == {}
    short = cs.train_sampler(KEY, bent(), effort="short", **QUICK)
    assert short.route.name == "short" and isinstance(short.one_step.control, Control)
    assert len(short.histories["calibrated"].loss) == route.SHORT_ITERATIONS
    # Given iterations are run, however good the base is.
    counted = cs.train_sampler(KEY, bent(), num_calibration_iterations=7, **QUICK)
    assert counted.route.name == "full" and len(counted.histories["calibrated"].loss) == 7


@pytest.mark.slow
def test_full_effort_trains_where_the_base_would_do():
    trained = cs.train_sampler(KEY, bent(), effort="full", **QUICK)
    assert len(trained.histories["calibrated"].loss) >= route.SHORT_ITERATIONS
    assert isinstance(trained.one_step.control, Control)


def test_a_warm_start_takes_a_route_of_its_own():
    first = cs.train_sampler(KEY, bent(), **QUICK)
    moved = cs.Target(lambda x: bent().log_density(x - 0.5), 3, "moved")
    second = cs.train_sampler(KEY, moved, start=first, **QUICK)
    assert second.warm_started and second.route.name == "base"
    np.testing.assert_allclose(second.base.loc - first.base.loc, 0.5, atol=0.1)


def test_a_base_whose_weights_cannot_be_used_is_an_error_where_it_was_asked_for():
    # Infinite at a few of its draws, and at none of those that are tried beforehand.
    target = cs.Target(lambda x: jnp.where(x[0] > 3.2, jnp.inf, -0.5 * x @ x), 1, "spiked")
    settings = {"base": cs.bases.standard_normal(1), "effort": "base"} | QUICK
    with pytest.raises(ValueError, match="log weights are NaN"):
        cs.train_sampler(KEY, target, **settings)


# ---- what is said of it


def test_a_route_in_one_line():
    stages = {"base": 0.123, "calibrated": 0.98}
    taken = Route("short", "its weights can be used", stages)
    assert str(taken) == ("short: its weights can be used (effective: base 12 %, calibrated 98 %)")


@pytest.mark.slow
def test_a_route_survives_being_kept(tmp_path):
    trained = cs.train_sampler(KEY, bent(), num_calibration_iterations=3, **QUICK)
    trained.save(tmp_path)
    loaded = cs.load(tmp_path, bent())
    assert type(loaded.route) is Route and loaded.route == trained.route
    assert str(loaded.route).startswith("full: all of its iterations were run (effective: base ")


def test_a_sampler_made_by_hand_has_none():
    algorithm = cs.osds(banana(), base=cs.bases.standard_normal(2), hidden=(8,), guidance=None)
    assert cs.TrainedSampler.of(algorithm, algorithm.init(KEY)).route is None


def test_a_numpyro_sampler_says_which_route_it_took(capsys, tmp_path):
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)

    y = np.array([0.3, -0.8, 1.1, 0.2], np.float32)
    sampler = OneStepSampler(model, num_samples=1_000, **QUICK)
    with pytest.raises(RuntimeError, match="before route"):
        sampler.route  # noqa: B018
    sampler.run(KEY, y)
    assert sampler.route is sampler.trained.route
    assert sampler.diagnostics()["route"] == sampler.route.name == "base"
    sampler.print_summary()
    words = " ".join(capsys.readouterr().out.split())  # lines are broken
    assert f"route {sampler.route}" in words
    sampler.save(tmp_path)
    fresh = OneStepSampler(model, num_samples=1_000)
    fresh.load(tmp_path, y)
    assert fresh.route == sampler.route


# ---- what is saved where a density is dear


@pytest.mark.parametrize("dear", [False, True])
def test_a_base_that_is_enough_is_looked_at_once(monkeypatch, dear):
    looks, fresh = [], []
    look, draw = looking.look_for_missed_mass, chain_stage.fresh_draws
    monkeypatch.setattr(
        looking, "look_for_missed_mass", lambda *args, **kw: looks.append(0) or look(*args, **kw)
    )
    monkeypatch.setattr(chain_stage, "fresh_draws", lambda *args: fresh.append(0) or draw(*args))
    if dear:
        monkeypatch.setattr(evaluation, "cost", lambda *args: 1e9)
    target = cs.targets.gaussian(jnp.array([1.0, -2.0]), jnp.diag(jnp.array([1.0, 0.5])))
    trained = cs.train_sampler(KEY, target, progress_bar=False)
    assert trained.route.name == "base" and trained.exploration.passed
    # Where it takes a moment, two further sets of draws are judged too.
    assert len(looks) == 1 and len(fresh) == (0 if dear else 1)
