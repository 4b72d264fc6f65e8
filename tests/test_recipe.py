"""The whole recipe, on tiny budgets."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.recipe import training as recipe

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
    for stage in trained.stages.values():
        assert stage.bound == "lower-if-injective"
        assert np.isfinite(float(stage.elbo))
    assert set(trained.histories) == {"distilled", "calibrated"}
    assert trained.histories["distilled"].loss.shape == (50,)
    assert trained.histories["calibrated"].loss.shape == (200,)
    assert trained.target.name == "banana"
    assert trained.base is trained.algorithm.base
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


def test_many_steps_use_the_distilled_state(trained):
    draws = trained.sample(jax.random.key(4), 50, num_steps=2, bound=None)
    expected = trained.algorithm.sample(jax.random.key(4), trained.state, 50, 2, bound=None)
    np.testing.assert_array_equal(draws.position, expected.position)
    # So does the stochastic path, whose steps were not calibrated.
    draws = trained.sample(jax.random.key(4), 50, bound="lower")
    expected = trained.algorithm.sample(jax.random.key(4), trained.state, 50, 1, bound="lower")
    np.testing.assert_array_equal(draws.position, expected.position)
    assert trained.evidence(jax.random.key(4), 50, bound="lower").bound == "lower"
    # The single step does not.
    draws = trained.sample(jax.random.key(4), NUM)
    expected = trained.algorithm.sample(jax.random.key(4), trained.one_step_state, NUM, 1)
    np.testing.assert_array_equal(draws.position, expected.position)


def test_wrong_number_of_steps(trained):
    with pytest.raises(ValueError, match=r"\[1, 2, 4\]"):
        trained.sample(KEY, 10, num_steps=3)


def test_divergence_keeps_the_last_good_state(monkeypatch):
    # A learning rate without bounds: the first update throws the parameters away.
    monkeypatch.setattr(recipe, "_warmup_cosine", lambda peak, num_iterations: 1e30)
    with pytest.warns(Warning) as caught:
        trained = cs.train_sampler(
            KEY,
            banana(),
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=3,
            num_calibration_iterations=3,
            progress_bar=False,
        )
    messages = [str(w.message) for w in caught]
    assert sum("goes on from that state" in message for message in messages) == 2
    assert trained.state.iteration == 0
    assert trained.histories["distilled"].loss.shape == (0,)
    evidence = trained.evidence(KEY, NUM)
    assert np.isfinite(float(evidence.elbo))
    # All that is left is the base.
    draws = trained.sample(KEY, NUM)
    expected = draws.log_density - trained.base.log_prob(draws.position)
    np.testing.assert_allclose(draws.log_weight, expected, atol=1e-4)


def test_draws_that_cannot_be_weighed_do_not_lose_the_training(monkeypatch):
    def unusable(draws):
        raise ValueError("NaN in the log weights.")

    monkeypatch.setattr(recipe, "evidence", unusable)
    with pytest.raises(cs.TrainingDivergedError, match="NaN in the log weights") as caught:
        cs.train_sampler(
            jax.random.key(0),
            banana(),
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=2,
            num_calibration_iterations=3,
            progress_bar=False,
        )
    assert caught.value.result.state.iteration == 3
