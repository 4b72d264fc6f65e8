"""The whole recipe, on tiny budgets."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import consistent_samplers as cs
from consistent_samplers.diagnostics import ExplorationCheck
from consistent_samplers.recipe import calibrating, looking, route, stages, training, warm_start

KEY = jax.random.key(0)
# As many as the recipe compiles its sampler for.
NUM = 4_000


def banana() -> cs.Target:
    """x_0 ~ N(0, 1), x_1 | x_0 ~ N(x_0² / 2, 1/4): normalised, and no Gaussian."""
    normal = jax.scipy.stats.norm.logpdf
    return cs.Target(
        lambda x: normal(x[0]) + normal(x[1], 0.5 * x[0] ** 2, 0.5), 2, "banana", log_z=0.0
    )


@pytest.fixture(scope="module")
def trained():
    return cs.train_sampler(
        KEY,
        banana(),
        max_steps=4,
        hidden=(32,),
        explore=False,
        num_iterations=50,
        num_calibration_iterations=200,
        progress_bar=False,
    )


def test_ctrl_c_during_the_last_look_keeps_what_was_trained(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(looking, "exploration_check", interrupted)
    budget = {"effort": "short", "num_calibration_iterations": 20, "hidden": (8,)}
    with pytest.warns(RuntimeWarning, match="look for missed modes was interrupted"):
        trained = cs.train_sampler(KEY, banana(), max_steps=1, progress_bar=False, **budget)
    assert trained.exploration is None
    assert np.isfinite(float(trained.evidence(KEY, NUM).log_z))


@pytest.mark.slow
def test_gaussian_target():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 5))
    target = cs.targets.gaussian(rng.normal(size=5), factor @ factor.T + 0.1 * np.eye(5))
    with warnings.catch_warnings():
        # The fitted base is exact already: calibration may only do as well as it.
        warnings.filterwarnings("ignore", "Calibration did not improve")
        trained = cs.train_sampler(
            KEY,
            target,
            max_steps=2,
            hidden=(8,),
            explore=False,
            num_iterations=10,
            num_calibration_iterations=30,
            progress_bar=False,
        )
    evidence = trained.evidence(jax.random.key(1), NUM)
    assert abs(float(evidence.log_z) - target.log_z) < 0.01
    assert abs(float(evidence.elbo) - target.log_z) < 0.01
    draws = trained.sample(jax.random.key(1), NUM)
    np.testing.assert_allclose(
        draws.log_density, jax.vmap(target.log_density)(draws.position), rtol=1e-4, atol=1e-3
    )


def test_every_stage_is_reported(trained):
    assert list(trained.stages) == ["base", "distilled", "calibrated"]
    # The base is no map that could fold.
    bounds = ["lower", "lower-if-injective", "lower-if-injective"]
    assert [stage.bound for stage in trained.stages.values()] == bounds
    for stage in trained.stages.values():
        assert np.isfinite(float(stage.elbo))
    assert set(trained.histories) == {"distilled", "calibrated"}
    assert trained.histories["distilled"].loss.shape == (50,)
    assert trained.histories["calibrated"].loss.shape == (200,)
    assert trained.target.name == "banana"
    assert trained.base is trained.one_step.base is trained.many_steps.base
    assert trained.training_seconds > 0


def test_base_stage_is_the_base_itself(trained):
    x = trained.base.sample(jax.random.key(2), NUM)
    weights = jax.vmap(trained.target.log_density)(x) - trained.base.log_prob(x)
    stderr = float(weights.std()) / NUM**0.5
    assert abs(float(trained.stages["base"].elbo - weights.mean())) < 6 * stderr


def test_calibration_improves_on_the_base(trained):
    base, calibrated = trained.stages["base"], trained.stages["calibrated"]
    assert float(calibrated.elbo) > float(base.elbo) + 0.1
    assert float(calibrated.elbo) < 4 * float(calibrated.elbo_stderr)


def test_evidence_says_what_it_is_worth(trained):
    evidence = trained.evidence(jax.random.key(3), NUM)
    assert evidence.bound == "lower-if-injective"
    assert evidence.folded == 0
    assert float(evidence.round_trip_error) < 1e-3
    assert evidence.num_samples == NUM
    # Fresh draws of the calibrated state, so within noise of its stage.
    calibrated = trained.stages["calibrated"]
    noise = float(jnp.hypot(evidence.elbo_stderr, calibrated.elbo_stderr))
    assert abs(float(evidence.elbo - calibrated.elbo)) < 5 * noise
    assert abs(float(evidence.log_z)) < 0.1


@pytest.mark.slow
def test_many_steps_use_the_distilled_sampler(trained):
    target, many, one = trained.target, trained.many_steps, trained.one_step
    draws = trained.sample(jax.random.key(4), 50, num_steps=2, weights=False)
    expected = many.sample(jax.random.key(4), target, 50, 2, weights=False)
    np.testing.assert_array_equal(draws.position, expected.position)
    assert draws.log_weight is None
    # So does the stochastic path, whose steps were not calibrated.
    draws = trained.sample(jax.random.key(4), 50, method="path")
    expected = many.sample(jax.random.key(4), target, 50, 1, method="path")
    np.testing.assert_array_equal(draws.position, expected.position)
    assert trained.evidence(jax.random.key(4), 50, method="path").bound == "lower"
    # The single step does not.
    draws = trained.sample(jax.random.key(4), NUM)
    expected = one.sample(jax.random.key(4), target, NUM, 1)
    np.testing.assert_array_equal(draws.position, expected.position)
    untouched = many.sample(jax.random.key(4), target, NUM, 1)
    assert np.abs(np.asarray(draws.position - untouched.position)).max() > 1e-2


def test_the_earlier_spelling_of_methods_still_works_and_warns(trained):
    for bound, settings in (("lower", {"method": "path"}), (None, {"weights": False})):
        with pytest.warns(DeprecationWarning, match="as an argument is deprecated"):
            draws = trained.sample(KEY, 50, bound=bound)
        expected = trained.sample(KEY, 50, **settings)
        jax.tree.map(np.testing.assert_array_equal, draws, expected)
    with pytest.warns(DeprecationWarning, match='say method="path"'):
        assert trained.evidence(KEY, 50, bound="lower").bound == "lower"


def test_wrong_number_of_steps(trained):
    with pytest.raises(ValueError, match=r"\[1, 2, 4\]"):
        trained.sample(KEY, 10, num_steps=3)


@pytest.mark.slow
def test_divergence_keeps_the_last_good_state():
    with pytest.warns(Warning) as caught:
        trained = cs.train_sampler(
            KEY,
            banana(),
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=3,
            num_calibration_iterations=3,
            # A learning rate without bounds: the first update throws the parameters away.
            optimizer=optax.adam(1e30),
            progress_bar=False,
        )
    messages = [str(w.message) for w in caught]
    assert sum("goes on from that state" in message for message in messages) == 2
    assert trained.histories["distilled"].loss.shape == (0,)
    assert trained.histories["calibrated"].loss.shape == (0,)
    evidence = trained.evidence(KEY, NUM)
    assert np.isfinite(float(evidence.elbo))
    # All that is left is the base.
    draws = trained.sample(KEY, NUM)
    expected = draws.log_density - trained.base.log_prob(draws.position)
    np.testing.assert_allclose(draws.log_weight, expected, atol=1e-4)


def test_draws_that_cannot_be_weighed_do_not_lose_the_training():
    # Infinite at one draw in two thousand: seen among the thousands that are weighed at the end,
    # not among the few that train.
    spiked = cs.Target(lambda x: jnp.where(x[0] > 3.3, jnp.inf, -0.5 * x @ x), 2, "spiked")
    message = r"'spiked' was trained, .* [1-9] of 4096 log weights are NaN or \+inf"
    with pytest.raises(cs.TrainingDivergedError, match=message) as caught:
        cs.train_sampler(
            KEY,
            spiked,
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=2,
            num_calibration_iterations=3,
            progress_bar=False,
        )
    assert caught.value.result.state.iteration == 3


def test_ctrl_c_before_draws_that_cannot_be_weighed_does_not_lose_the_training(monkeypatch):
    """Calibration is interrupted, and nothing was distilled; the error has what was reached."""

    def cut_short(*args, **kwargs):
        return calibrating.in_rounds(*args, **kwargs)[0], True

    monkeypatch.setattr(stages, "in_rounds", cut_short)
    spiked = cs.Target(lambda x: jnp.where(x[0] > 3.3, jnp.inf, -0.5 * x @ x), 2, "spiked")
    settings = {"base": cs.bases.standard_normal(2), "hidden": (8,), "progress_bar": False}
    with pytest.raises(cs.TrainingDivergedError, match="'spiked' was trained") as caught:
        cs.train_sampler(KEY, spiked, num_calibration_iterations=3, **settings)
    assert caught.value.result.state.iteration == 3


def test_draws_of_one_stage_that_cannot_be_weighed_leave_the_other(monkeypatch):
    """Draws of the base and of the distilled sampler are refused, those of the calibrated not."""
    sample, calls = cs.Sampler.sample, []

    def refused_twice(self, rng_key, of, *args, **kwargs):
        # What is compiled beside the training draws for another density.
        calls.extend([1] * (of.name == "banana"))
        if of.name == "banana" and len(calls) <= 2:
            raise ValueError("refused")
        return sample(self, rng_key, of, *args, **kwargs)

    monkeypatch.setattr(cs.Sampler, "sample", refused_twice)
    settings = {"max_steps": 2, "num_iterations": 2, "num_calibration_iterations": 3}
    settings |= {"hidden": (8,), "base": cs.bases.standard_normal(2), "progress_bar": False}
    monkeypatch.setattr(stages.judging, "worth_of", lambda *_: None)
    trained = cs.train_sampler(KEY, banana(), **settings)
    assert list(trained.stages) == ["calibrated"]


@pytest.mark.slow
def test_a_structured_network_on_request():
    trained = cs.train_sampler(
        KEY,
        banana(),
        max_steps=2,
        hidden=(8,),
        network="structured",
        explore=False,
        num_iterations=0,
        num_calibration_iterations=100,
        progress_bar=False,
    )
    assert isinstance(trained.one_step.control.network, cs.networks.Structured)
    assert trained.stages["calibrated"].bound == "lower"  # injective by construction
    assert float(trained.stages["calibrated"].elbo) > float(trained.stages["base"].elbo)
    assert float(trained.stages["calibrated"].folded) == 0.0


# ---- rounds of calibration


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.slow
def test_calibration_ends_with_the_round_that_is_enough(monkeypatch, tmp_path, far):
    monkeypatch.setattr(route, "SHORT_ITERATIONS", 20)
    monkeypatch.setattr(route, "FURTHER_ITERATIONS", 10)
    # Normal but for its location, which the untrained network does not know.
    target = cs.targets.gaussian(jnp.full(2, 3.0 if far else 0.1), jnp.eye(2))

    def train():
        return cs.train_sampler(
            KEY,
            target,
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=2,
            effort="full",
            progress_bar=False,
            checkpoint_dir=tmp_path,
        )

    trained = train()
    ess = float(trained.stages["calibrated"].ess)
    assert (ess < 0.9) == far
    history = trained.histories["calibrated"]
    assert history.loss.shape == history.elbo.shape == (30 if far else 20,)
    assert trained.route.name == ("full" if far else "short")

    # Read from the checkpoints of every round, and not trained again.
    def run_nothing(self, rng_key, state):
        raise AssertionError("trained again")

    monkeypatch.setattr(cs.Algorithm, "advance", run_nothing)
    again = train()
    jax.tree.map(np.testing.assert_array_equal, again.one_step.params, trained.one_step.params)
    np.testing.assert_array_equal(again.histories["calibrated"].loss, history.loss)


@pytest.mark.slow
def test_without_distillation():
    one_step = cs.train_sampler(
        KEY,
        banana(),
        max_steps=4,
        hidden=(32,),
        explore=False,
        num_iterations=0,
        num_calibration_iterations=200,
        progress_bar=False,
    )
    assert list(one_step.stages) == ["base", "calibrated"]
    assert list(one_step.histories) == ["calibrated"]
    calibrated, base = one_step.stages["calibrated"], one_step.stages["base"]
    assert calibrated.elbo > 0.5 * base.elbo  # a log Z of 0: half the gap is gone
    # More steps are the base.
    draws = one_step.sample(jax.random.key(1), NUM, num_steps=4)
    np.testing.assert_allclose(
        draws.log_weight,
        draws.log_density - one_step.base.log_prob(draws.position),
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, {"calibrated": 5}),
        ({"max_steps": 2}, {"distilled": 300, "calibrated": 5}),
    ],
)
@pytest.mark.slow
def test_distillation_is_for_more_steps_than_one(settings, stages):
    base = cs.bases.standard_normal(2)
    settings = {"hidden": (8,), "num_calibration_iterations": 5, "base": base} | settings
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Calibration did not improve")
        sampler = cs.train_sampler(KEY, banana(), progress_bar=False, **settings)
    ran = {name: len(history.loss) for name, history in sampler.histories.items()}
    assert ran == stages
    assert list(sampler.stages) == ["base", *stages]
    if "max_steps" not in settings:
        with pytest.raises(ValueError, match="train with more max_steps"):
            sampler.sample(KEY, 10, num_steps=2)


# ---- going on from a trained sampler


def test_a_warm_start_needs_a_sampler_of_the_recipe_and_the_dimension(trained):
    with pytest.raises(ValueError, match=r"start has 2 dimensions, but target 'gaussian' has 3"):
        cs.train_sampler(KEY, cs.targets.gaussian(jnp.zeros(3), jnp.eye(3)), start=trained)
    with pytest.raises(TypeError, match=r"cs\.train_sampler or cs\.load, got Sampler"):
        cs.train_sampler(KEY, banana(), start=trained.one_step)


def test_a_warm_start_goes_on_late_in_the_schedule(trained):
    algorithm = cs.calibration(
        cs.osds(banana(), base=trained.base, max_steps=4, hidden=(32,), guidance=None),
        learning_rate=calibrating.AnnealedRounds(1e-2, (100, 200)),
    )
    state, rounds = warm_start.calibration_start(algorithm, None, trained, (100, 200))
    schedules = [
        part
        for part in jax.tree.leaves(
            state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
        )
        if isinstance(part, optax.ScaleByScheduleState)
    ]
    assert [int(part.count) for part in schedules] == [200]
    assert int(state.iteration) == 200 and rounds == (100,)
    jax.tree.map(np.testing.assert_array_equal, state.params, trained.one_step.params)


def test_a_warm_start_from_a_base_alone_trains_in_full(trained):
    alone = cs.Sampler.of_base(trained.base)
    known = dataclasses.replace(trained, one_step=alone, many_steps=alone)
    algorithm = cs.calibration(
        cs.osds(banana(), base=trained.base, max_steps=1, hidden=(8,), guidance=None)
    )
    fresh = algorithm.init(KEY)
    state, rounds = warm_start.calibration_start(algorithm, fresh, known, (100, 200))
    assert rounds == (100, 200) and int(state.iteration) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)


@pytest.mark.parametrize(
    ("share", "passed", "anew"), [(0.9, True, False), (0.1, True, True), (0.9, False, True)]
)
@pytest.mark.slow
def test_a_warm_start_that_falls_short_is_given_up(monkeypatch, trained, share, passed, anew):
    """A worse share of effective draws, or modes that are missed: training from scratch."""
    calls = []

    def train(rng_key, target, start, *rest):
        calls.append(start)
        if start.trained is None:
            return trained, False
        stages = {k: e.replace(ess=share * e.ess) for k, e in trained.stages.items()}
        check = ExplorationCheck(2, 0 if passed else 1, 0.5, 0.0)
        moved = dataclasses.replace(trained, stages=stages, exploration=check, warm_started=True)
        return moved, False

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "fit_base", lambda *args, **kwargs: pytest.fail("explored"))
    settings = {"base": trained.base, "start": trained}
    if anew:
        with pytest.warns(UserWarning, match="training begins anew"):
            result = cs.train_sampler(KEY, banana(), **settings)
    else:
        result = cs.train_sampler(KEY, banana(), **settings)
    assert result.warm_started is not anew
    assert [start.trained is None for start in calls] == [False, True][: 1 + anew]


def shifted(shift, x):
    """A standard normal in two dimensions, moved and bent."""
    return -0.5 * jnp.sum((x - shift) ** 2) - 0.1 * jnp.sum(jnp.cos(x - shift))


@pytest.mark.slow
def test_targets_of_one_function_share_what_is_compiled():
    """Data as arguments of a Partial: another target traces nothing of the density again."""
    calls = 0

    def density(shift, x):
        nonlocal calls
        calls += 1
        return shifted(shift, x)

    def target(shift):
        return cs.Target(Partial(density, jnp.asarray(shift)), 2, "shifted")

    settings = {
        "max_steps": 2,
        "hidden": (8,),
        "explore": False,
        "num_iterations": 3,
        "num_calibration_iterations": 6,
        "progress_bar": False,
    }
    first = cs.train_sampler(KEY, target([0.0, 1.0]), **settings)
    before = calls
    second = cs.train_sampler(KEY, target([4.0, -2.0]), start=first, **settings)
    anew = cs.train_sampler(KEY, target([-1.0, 3.0]), **settings)
    assert calls == before > 0
    assert second.warm_started
    assert not anew.warm_started
    # They are samplers of their own targets all the same.
    for sampler, shift in ((first, [0.0, 1.0]), (second, [4.0, -2.0]), (anew, [-1.0, 3.0])):
        draws = sampler.sample(KEY, NUM)
        np.testing.assert_allclose(draws.position.mean(0), shift, atol=0.1)
        expected = jax.vmap(lambda x, s=shift: shifted(jnp.asarray(s), x))(draws.position)
        np.testing.assert_allclose(draws.log_density, expected, atol=1e-4)
    assert calls == before


# ---- keys


@pytest.mark.slow
def test_both_styles_of_keys_give_the_same_sampler_and_draws():
    """``jax.random.key`` and ``jax.random.PRNGKey``, in training and in all that draws."""
    settings = {"base": cs.bases.standard_normal(2), "max_steps": 2, "hidden": (8,)}
    settings |= {"num_iterations": 2, "num_calibration_iterations": 2, "progress_bar": False}
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Calibration did not improve")
        for make in (jax.random.key, jax.random.PRNGKey):
            sampler = cs.train_sampler(make(0), banana(), **settings)
            results.append(
                (
                    sampler.one_step.params,
                    sampler.sample(make(1), 50),
                    sampler.sample(make(1), 50, 2, method="path"),
                    sampler.sample(make(1), 50, weights=False).position,
                    sampler.evidence(make(2), 100),
                    sampler.one_step.log_weight(make(3), banana(), jnp.ones((2, 2))),
                )
            )
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_both_styles_of_keys_fit_a_base_and_take_it_alone(make):
    target = cs.targets.gaussian(jnp.ones(2), jnp.eye(2))
    sampler = cs.train_sampler(make(0), target, progress_bar=False)
    assert sampler.route.name == "base"
    assert abs(float(sampler.evidence(make(1), 100).log_z) - target.log_z) < 0.1
