"""A trained sampler kept on disk: the same draws afterwards, and clear words for what is wrong."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import consistent_samplers as cs
from consistent_samplers import checkpoint, training
from consistent_samplers.integrations.numpyro import OneStepSampler

KEY = jax.random.key(0)
TINY = {
    "max_steps": 2,
    "hidden": (8,),
    "num_iterations": 10,
    "num_calibration_iterations": 20,
    "progress_bar": False,
}
pytestmark = pytest.mark.filterwarnings("ignore:Calibration did not improve:UserWarning")


def bent(shift: float = 0.0, dim: int = 2) -> cs.Target:
    def log_density(x):
        return -0.5 * jnp.sum((x - shift) ** 2) - 0.3 * jnp.sum(jnp.cos(x))

    return cs.Target(log_density, dim, "bent")


@pytest.fixture(scope="module")
def trained():
    sampler = cs.train_sampler(KEY, bent(), explore=False, **TINY)
    found = cs.diagnostics.ExplorationCheck(1, 0, 0.0, math.nan)
    return dataclasses.replace(sampler, exploration=found)


@pytest.fixture
def folder(trained, tmp_path):
    trained.save(tmp_path / "kept")
    return tmp_path / "kept"


def same_draws(a: cs.TrainedSampler, b: cs.TrainedSampler):
    for num_steps, bound in ((1, "lower-if-injective"), (2, "lower")):
        ours, theirs = (s.sample(KEY, 50, num_steps, bound=bound) for s in (a, b))
        np.testing.assert_array_equal(ours.position, theirs.position)
        np.testing.assert_array_equal(ours.log_weight, theirs.log_weight)


def test_what_is_loaded_is_what_was_saved(trained, folder):
    loaded = cs.load(folder, bent())
    same_draws(trained, loaded)
    assert loaded.stages.keys() == trained.stages.keys()
    assert float(loaded.stages["calibrated"].elbo) == float(trained.stages["calibrated"].elbo)
    assert str(loaded.stages["base"]) == str(trained.stages["base"])
    assert loaded.training_seconds == trained.training_seconds
    assert loaded.settings == trained.settings
    assert loaded.exploration.num_modes == 1 and math.isnan(loaded.exploration.log_z_excess)
    for name, history in trained.histories.items():
        assert type(loaded.histories[name]) is type(history)
        np.testing.assert_array_equal(loaded.histories[name].loss, history.loss)
    # Saved again it is the same, in place of the old one.
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    loaded.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_training_goes_on_from_a_loaded_state(folder):
    loaded = cs.load(folder, bent())
    step = cs.calibration(loaded.algorithm)
    start = step.restart(loaded.one_step_state)
    assert cs.fit(KEY, step, 3, state=start, progress_bar=False).state.iteration == 3


@pytest.mark.parametrize(
    "base",
    [
        pytest.param("mixture", marks=pytest.mark.slow),
        pytest.param("heavy-tailed mixture", marks=pytest.mark.slow),
        pytest.param("product", marks=pytest.mark.slow),
    ],
)
def test_every_base_is_kept(base, tmp_path):
    tail = jnp.full(2, 0.1) if base == "heavy-tailed mixture" else None
    scales = jnp.stack([jnp.eye(2), 2.0 * jnp.eye(2)])
    if base == "product":
        log_weights = jnp.log(jnp.full((2, 2), 0.5))
        chosen = cs.bases.ProductMixtureBase(log_weights, jnp.eye(2), jnp.ones((2, 2)))
    else:
        chosen = cs.bases.MixtureBase(
            jnp.log(jnp.array([0.3, 0.7])), jnp.eye(2), scales, jnp.linalg.inv(scales), tail
        )
    settings = cs.recipe.Settings(2, (8,), "general")
    algorithm = settings.build(bent(), chosen)
    state = algorithm.init(KEY)
    made = cs.TrainedSampler(algorithm, state, state, {}, {}, 1.5, None, settings)
    made.save(tmp_path)
    same_draws(made, cs.load(tmp_path, bent()))


def test_another_target_is_taken_with_a_warning(trained, folder):
    with pytest.warns(UserWarning, match=r"not the one .* differ by up to"):
        other = cs.load(folder, bent(0.5))
    draws = other.sample(KEY, 20)
    expected = trained.sample(KEY, 20)
    np.testing.assert_array_equal(draws.position, expected.position)
    shift = jax.vmap(bent(0.5).log_density)(draws.position) - expected.log_density
    np.testing.assert_allclose(draws.log_weight - expected.log_weight, shift, atol=1e-4)
    with pytest.raises(cs.CheckpointError, match="has 2 dimensions"):
        cs.load(folder, bent(dim=3))


def test_what_cannot_be_saved_or_read_says_so(trained, folder, tmp_path):
    with pytest.raises(ValueError, match=r"Only what cs\.train_sampler made"):
        dataclasses.replace(trained, settings=None).save(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(cs.CheckpointError, match="Cannot write"):
        trained.save(tmp_path / "file" / "below")
    with pytest.raises(cs.CheckpointError, match="no checkpoint in"):
        cs.load(tmp_path / "nowhere", bent())
    with pytest.raises(cs.CheckpointError, match="holds a 'trained sampler', not a 'training'"):
        cs.fit(KEY, trained.algorithm, 1, checkpoint_dir=folder, progress_bar=False)
    # Right in form, wrong in content.
    header, arrays = checkpoint.read(folder, "trained sampler")
    del arrays["base"]
    checkpoint.write(tmp_path / "partial", "trained sampler", header, arrays)
    with pytest.raises(cs.CheckpointError, match="incomplete"):
        cs.load(tmp_path / "partial", bent())


def test_the_header_is_plain_json(folder):
    header = json.loads((folder / "header.json").read_text(), parse_constant=pytest.fail)
    assert header["version"] == checkpoint.VERSION and header["target"] == "bent"
    assert not [p for p in folder.iterdir() if p.suffix in (".pkl", ".pickle")]


# --- The recipe, stopped and started ------------------------------------------------------------


def test_ctrl_c_during_the_recipe_gives_what_was_reached(monkeypatch):
    class Interrupting(training.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "tqdm", Interrupting)
    with pytest.warns(RuntimeWarning, match=r"'osds' was interrupted after 100 of 150"):
        settings = TINY | {"num_iterations": 150}
        stopped = cs.train_sampler(KEY, bent(), explore=False, **settings)
    assert stopped.state.iteration == 100 and list(stopped.histories) == ["distilled"]
    assert np.isfinite(float(stopped.evidence(KEY, 4_000).elbo))


@pytest.mark.slow
def test_a_recipe_that_was_cut_short_goes_on(trained, tmp_path, monkeypatch):
    def dead(*args, **kwargs):
        raise MemoryError

    arguments = {"explore": False, "checkpoint_dir": tmp_path, **TINY}
    with monkeypatch.context() as patched:
        patched.setattr(cs.recipe.training, "calibration", dead)
        with pytest.raises(MemoryError):
            cs.train_sampler(KEY, bent(), **arguments)
    again = cs.train_sampler(KEY, bent(), **arguments)
    same_draws(trained, again)
    np.testing.assert_array_equal(
        again.histories["distilled"].loss, trained.histories["distilled"].loss
    )


# --- NumPyro ------------------------------------------------------------------------------------


def means(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]), obs=y)


@pytest.mark.slow
def test_a_numpyro_sampler_is_kept_with_its_model(tmp_path):
    y = np.array([1.0, 2.0, 0.5], np.float32)
    sampler = OneStepSampler(means, num_samples=200, explore=False, **TINY)
    with pytest.raises(RuntimeError, match="Nothing is trained yet"):
        sampler.save(tmp_path)
    sampler.run(KEY, y)
    sampler.save(tmp_path)
    fresh = OneStepSampler(means, num_samples=200)
    fresh.load(tmp_path, y)
    fresh.run(KEY, y)  # draws, and does not train
    np.testing.assert_array_equal(
        fresh.get_weighted_samples()[0]["mu"], sampler.get_weighted_samples()[0]["mu"]
    )
    with pytest.warns(UserWarning, match="not the one"):
        fresh.load(tmp_path, y + 1)
    with pytest.raises(ValueError, match=r"num_steps=4 .*\[1, 2\]"):
        OneStepSampler(means, num_steps=4).load(tmp_path, y)
