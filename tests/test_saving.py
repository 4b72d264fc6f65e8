"""A trained sampler kept on disk: the same draws afterwards, and clear words for what is wrong."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import consistent_samplers as cs
from consistent_samplers import checkpoint, training
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.maps import Identity

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
    for num_steps, method in ((1, "map"), (2, "path")):
        ours, theirs = (s.sample(KEY, 50, num_steps, method=method) for s in (a, b))
        np.testing.assert_array_equal(ours.position, theirs.position)
        np.testing.assert_array_equal(ours.log_weight, theirs.log_weight)


def test_what_is_loaded_is_what_was_saved(trained, folder):
    loaded = cs.load(folder, bent())
    same_draws(trained, loaded)
    assert loaded.stages.keys() == trained.stages.keys()
    assert float(loaded.stages["calibrated"].elbo) == float(trained.stages["calibrated"].elbo)
    assert str(loaded.stages["base"]) == str(trained.stages["base"])
    assert loaded.training_seconds == trained.training_seconds
    assert loaded.route == trained.route
    assert loaded.warm_started == trained.warm_started
    for ours, theirs in (
        (trained.one_step, loaded.one_step),
        (trained.many_steps, loaded.many_steps),
    ):
        assert type(theirs) is type(ours) and jax.tree.structure(theirs) == jax.tree.structure(ours)
    assert loaded.exploration.num_modes == 1 and math.isnan(loaded.exploration.log_z_excess)
    for name, history in trained.histories.items():
        assert type(loaded.histories[name]) is type(history)
        np.testing.assert_array_equal(loaded.histories[name].loss, history.loss)
    # Saved again it is the same, in place of the old one.
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    loaded.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.slow
def test_training_goes_on_from_a_loaded_sampler(trained, folder):
    loaded = cs.load(folder, bent())
    settings = {k: v for k, v in TINY.items() if k not in ("max_steps", "hidden")}
    runs = [
        cs.train_sampler(KEY, bent(0.1), base=s.base, start=s, **settings)
        for s in (trained, loaded)
    ]
    assert all(run.warm_started for run in runs)
    same_draws(*runs)


@pytest.mark.parametrize(
    "base",
    [
        pytest.param("mixture", marks=pytest.mark.slow),
        pytest.param("heavy-tailed mixture", marks=pytest.mark.slow),
        pytest.param("product", marks=pytest.mark.slow),
        pytest.param("symmetric", marks=pytest.mark.slow),
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
    if base == "symmetric":
        chosen = cs.bases.symmetric(chosen, -jnp.eye(2)[None])
    algorithm = cs.osds(bent(), base=chosen, max_steps=2, hidden=(8,), guidance=None)
    made = cs.TrainedSampler.of(algorithm, algorithm.init(KEY))
    made.save(tmp_path)
    same_draws(made, cs.load(tmp_path, bent()))


def test_a_clone_that_is_not_installed_saves_and_loads(tmp_path, monkeypatch):
    known = metadata.distribution

    def distribution(name):
        if name == "consistent_samplers":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("consistent_samplers")
    sampler = cs.train_sampler(KEY, bent(), effort="base", explore=False)
    sampler.save(tmp_path)
    assert_same = np.testing.assert_array_equal
    jax.tree.map(assert_same, sampler.sample(KEY, 50), cs.load(tmp_path, bent()).sample(KEY, 50))
    header = json.loads((tmp_path / "header.json").read_text())
    assert header["package"] == cs.__version__


def test_a_base_alone_is_kept(tmp_path):
    sampler = cs.train_sampler(KEY, bent(), effort="base", explore=False)
    assert isinstance(sampler.one_step.control, Identity)
    sampler.save(tmp_path)
    loaded = cs.load(tmp_path, bent())
    assert isinstance(loaded.one_step.control, Identity)
    jax.tree.map(np.testing.assert_array_equal, sampler.sample(KEY, 50), loaded.sample(KEY, 50))
    assert loaded.route == sampler.route and loaded.route.name == "base"
    assert list(loaded.stages) == ["base"] and loaded.histories == {}


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
    (tmp_path / "file").write_text("")
    with pytest.raises(cs.CheckpointError, match="Cannot write"):
        trained.save(tmp_path / "file" / "below")
    with pytest.raises(cs.CheckpointError, match="no checkpoint in"):
        cs.load(tmp_path / "nowhere", bent())
    with pytest.raises(cs.CheckpointError, match="holds a 'trained sampler', not a 'training'"):
        algorithm = cs.osds(bent(), base=trained.base, hidden=(8,), guidance=None)
        cs.fit(KEY, algorithm, 1, checkpoint_dir=folder, progress_bar=False)
    # Right in form, wrong in content.
    header, arrays = checkpoint.read(folder, "trained sampler")
    del arrays["0"]
    checkpoint.write(tmp_path / "partial", "trained sampler", header, arrays)
    with pytest.raises(cs.CheckpointError, match="incomplete"):
        cs.load(tmp_path / "partial", bent())


def test_the_header_is_plain_json(folder):
    header = json.loads((folder / "header.json").read_text(), parse_constant=pytest.fail)
    assert header["version"] == checkpoint.VERSION and header["target"] == "bent"
    assert not [p for p in folder.iterdir() if p.suffix in (".pkl", ".pickle")]


# --- What somebody else wrote -------------------------------------------------------------------

THEIRS = """
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

import consistent_samplers as cs


def log_density(x):
    return -0.5 * jnp.sum((x - 0.3) ** 2) - 0.3 * jnp.sum(jnp.cos(x))


target = cs.Target(log_density, 2, "theirs")


class Frame:
    # The functions of a base, in terms of loc and scale.
    @property
    def dim(self):
        return len(self.loc)

    def sample(self, rng_key, num_samples):
        return self.loc + self.scale * jax.random.normal(rng_key, (num_samples, self.dim))

    def log_prob(self, x):
        return jax.scipy.stats.norm.logpdf(x, self.loc, self.scale).sum(-1)

    def draw_component(self, rng_key):
        return ()

    def component_at(self, rng_key, x):
        return ()

    def features(self, component):
        return None

    def unwhiten(self, z, component=()):
        return self.loc + self.scale * z

    def whiten(self, x, component=()):
        return (x - self.loc) / self.scale

    def log_correction(self, x, component=()):
        return jnp.log(self.scale).sum()

    def whitened_log_density(self, log_density, component=()):
        return lambda z: log_density(self.unwhiten(z)) + self.log_correction(z)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal(Frame):
    loc: jax.Array
    scale: jax.Array


@dataclasses.dataclass
class Plain(Frame):
    loc: jax.Array
    scale: jax.Array


class Hidden(Frame):
    def __init__(self, loc, log_scale):
        self.loc, self.scale, self._log_scale = loc, jnp.exp(log_scale), log_scale

    def to_arrays(self):
        return {"loc": self.loc, "log_scale": self._log_scale}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(**arrays)


class Tanh(nn.Module):
    dim: int
    width: int = 8

    @nn.compact
    def __call__(self, x, t, d):
        hidden = jnp.tanh(nn.Dense(self.width)(jnp.concatenate([x, jnp.stack([t, d])])))
        return 0.3 * nn.Dense(self.dim)(hidden)


def base(kind):
    loc, scale = jnp.array([0.2, -0.1]), jnp.array([1.1, 0.9])
    return {"pytree": Diagonal, "dataclass": Plain, "arrays": Hidden}[kind](loc, scale)


def made(kind):
    settings = {"network": Tanh(2), "hidden": (8,), "guidance": None, "max_steps": 2}
    algorithm = cs.osds(target, base=base(kind), **settings)
    return cs.TrainedSampler.of(algorithm, algorithm.init(jax.random.key(0)))
"""
REGISTERED = """
cs.register_base(Diagonal)
cs.register_base(Plain)
cs.register_base(Hidden, "hidden frame")
cs.register_network(Tanh)
"""
LOADING = """
import sys

sys.path.insert(0, {module!r})
import jax
import numpy as np
import consistent_samplers as cs
from theirs import target

loaded = cs.load({folder!r}, target)
one = loaded.sample(jax.random.key(0), 50)
two = loaded.sample(jax.random.key(0), 50, 2, method="path")
np.savez({result!r}, one.position, one.log_weight, two.position, two.log_weight)
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Imports a module with a base and a network of somebody else's, under a name of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def imported(name, registered):
        (tmp_path / f"{name}.py").write_text(THEIRS + REGISTERED * registered)
        return importlib.import_module(name)

    yield imported
    for name in [n for n, m in sys.modules.items() if getattr(m, "__file__", None)]:
        if str(sys.modules[name].__file__).startswith(str(tmp_path)):
            del sys.modules[name]


_KINDS = [
    "pytree",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dataclass", "arrays")),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", _KINDS)
def test_ones_own_base_and_network_are_read_by_another_process(theirs, tmp_path, kind):
    made = theirs("theirs", registered=True).made(kind)
    folder, result = tmp_path / "kept", tmp_path / "draws.npz"
    made.save(folder)
    values = {"module": str(tmp_path), "folder": str(folder), "result": str(result)}
    command = [sys.executable, "-c", LOADING.format(**values)]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[1])
    one, two = made.sample(KEY, 50), made.sample(KEY, 50, 2, method="path")
    with np.load(result) as read:
        for found, ours in zip(
            read.values(),
            (one.position, one.log_weight, two.position, two.log_weight),
            strict=True,
        ):
            np.testing.assert_array_equal(found, ours)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pytree", "dataclass"])
def test_a_recipe_on_ones_own_base_and_network_is_kept(theirs, tmp_path, kind):
    module = theirs("theirs", registered=True)
    settings = {"base": module.base(kind), "network": module.Tanh(2)} | TINY
    sampler = cs.train_sampler(KEY, module.target, **settings)
    sampler.save(tmp_path / "kept")
    loaded = cs.load(tmp_path / "kept", module.target)
    assert type(loaded.base) is type(sampler.base) is type(module.base(kind))
    assert loaded.one_step.control.network == module.Tanh(2)
    same_draws(sampler, loaded)


@pytest.mark.parametrize(("kind", "remedy"), [("pytree", "Diagonal"), ("arrays", "Hidden")])
def test_what_is_not_registered_is_named_and_nothing_is_lost(
    theirs, trained, tmp_path, kind, remedy
):
    module = theirs(f"unregistered_{kind}", registered=False)
    made = module.made(kind)
    folder = tmp_path / "kept"
    trained.save(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(TypeError, match=rf"{remedy};.*cs\.register_base"):
        made.save(folder)
    # What was kept there still is, and the sampler still draws.
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    expected = made.sample(KEY, 50)
    cs.register_base(type(made.base), f"late {kind}")
    with pytest.raises(TypeError, match=r"Tanh;.*cs\.register_network"):
        made.save(folder)
    cs.register_network(module.Tanh, f"late network {kind}")
    made.save(folder)
    again = cs.load(folder, module.target)
    jax.tree.map(np.testing.assert_array_equal, again.sample(KEY, 50), expected)
    # A process that does not know the class says what to do.
    header = (folder / "header.json").read_text()
    (folder / "header.json").write_text(header.replace(f"late {kind}", "never heard of"))
    with pytest.raises(cs.CheckpointError, match=r"'never heard of'.*register .* before loading"):
        cs.load(folder, module.target)


# --- The recipe, stopped and started ------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_during_the_recipe_gives_what_was_reached(monkeypatch):
    class Interrupting(training.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "tqdm", Interrupting)
    with pytest.warns(RuntimeWarning, match=r"'osds' was interrupted after 50 of 150"):
        settings = TINY | {"num_iterations": 150}
        stopped = cs.train_sampler(KEY, bent(), explore=False, **settings)
    assert list(stopped.histories) == ["distilled"]
    assert len(stopped.histories["distilled"].loss) == 50
    assert stopped.route.reason == "interrupted"
    assert np.isfinite(float(stopped.evidence(KEY, 4_000).elbo))


@pytest.mark.slow
def test_a_recipe_that_was_cut_short_goes_on(trained, tmp_path, monkeypatch):
    def dead(*args, **kwargs):
        raise MemoryError

    arguments = {"explore": False, "checkpoint_dir": tmp_path, **TINY}
    with monkeypatch.context() as patched:
        patched.setattr(cs.recipe.building, "calibration", dead)
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
        OneStepSampler(means, num_steps=4, max_steps=4).load(tmp_path, y)
