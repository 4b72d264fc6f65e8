"""Everything that users get wrong: a clear error each time, and nothing trained is lost.

Other files test messages where they arise; this is the list of the kinds.
"""

import dataclasses
import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import consistent_samplers as cs
from consistent_samplers import corrections
from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler
from consistent_samplers.integrations.numpyro import sampler as hook

KEY = jax.random.key(0)
Y = np.array([0.3, -0.2, 1.0], np.float32)


def normal(x):
    return -0.5 * jnp.sum(x**2)


TARGET = cs.Target(normal, 2, "normal")


def model(y, scale=1.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, scale), obs=y)


def counts(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def discrete():
    numpyro.sample("k", dist.Bernoulli(0.5))


def nothing_latent(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def subsampled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=2) as i:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def without_training(rng_key, target, **_):
    """In place of `train_sampler`."""
    base = cs.bases.standard_normal(target.dim)
    algorithm = cs.osds(target, base=base, max_steps=2, hidden=(8,), guidance=None)
    made = cs.TrainedSampler.of(algorithm, algorithm.init(rng_key))
    return dataclasses.replace(made, stages={"base": made.evidence(rng_key, 50)})


@pytest.fixture(scope="module")
def trained():
    return without_training(KEY, TARGET)


@pytest.fixture(scope="module")
def sampler():
    made = OneStepSampler(model, num_samples=50, max_steps=2, progress_bar=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hook, "train_sampler", without_training)
        made.run(KEY, Y)
    return made


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(tmp_path / "sampler")
    return tmp_path / "sampler"


def draws_of(log_weight, **more):
    log_weight = jnp.asarray(log_weight)
    return cs.Draws(jnp.zeros((len(log_weight), 2)), log_weight, bound="lower", **more)


def train(target=TARGET, **settings):
    return cs.train_sampler(KEY, target, progress_bar=False, **settings)


def one_step(**settings):
    return OneStepSampler(model, **settings)


DENSITIES = {
    "a density that is no function": (
        lambda: cs.Target(3, 2),
        TypeError,
        "log_density must be a function of one point.*got int",
    ),
    "a density of a vector": (
        lambda: cs.Target(lambda x: x, 2),
        ValueError,
        r"must return a scalar for one point of shape \[2\], got shape \(2,\)",
    ),
    "a density that returns a pair": (
        lambda: cs.Target(lambda x: (x, x), 2),
        ValueError,
        "must return one scalar array for one point, got a tuple",
    ),
    "a density of whole numbers": (
        lambda: cs.Target(lambda x: jnp.sum(x > 0), 2),
        ValueError,
        "must return a real number, got int32",
    ),
    "a density with a branch": (
        lambda: cs.Target(lambda x: 0.0 if x[0] > 0 else 1.0, 2),
        TypeError,
        "without Python branches on values.*boolean conversion of traced array",
    ),
    "a density of more coordinates": (
        lambda: cs.Target(lambda x: x @ jnp.ones(3), 2),
        TypeError,
        r"could not be traced on one point of shape \[2\].*\(2,\) and \(3,\)",
    ),
    "no dimension": (
        lambda: cs.Target(normal, 0),
        ValueError,
        "dim must be a positive integer, got 0",
    ),
    "half a dimension": (
        lambda: cs.Target(normal, 1.5),
        ValueError,
        r"dim must be a positive integer, got 1\.5",
    ),
    "NaN everywhere": (
        lambda: train(cs.Target(lambda x: jnp.nan * x[0], 2)),
        ValueError,
        "is NaN at all 8 points tried",
    ),
    "zero everywhere": (
        lambda: train(cs.Target(lambda x: -jnp.inf + 0 * x[0], 2)),
        ValueError,
        "is -inf at all 8 points tried: none of them has any density",
    ),
    "infinite everywhere": (
        lambda: train(cs.Target(lambda x: jnp.inf + 0 * x[0], 2)),
        ValueError,
        r"is \+inf at 8 of 8 points tried",
    ),
}
A_SEED = r"rng_key must be one key, such as jax\.random\.key\(0\), got int"
TRAINING = {
    "a base of another dimension": (
        lambda: train(base=cs.bases.standard_normal(3)),
        ValueError,
        "base has dimension 3 but target 'normal' has 2",
    ),
    "a starting point of another dimension": (
        lambda: train(init_position=jnp.zeros(3)),
        ValueError,
        r"init_position must have shape \[2\] or \[n, 2\], got \(1, 3\)",
    ),
    "a number of steps that does not halve": (
        lambda: train(base=cs.bases.standard_normal(2), max_steps=12),
        ValueError,
        "max_steps must be a power of two.*got 12",
    ),
    "no iterations": (
        lambda: train(base=cs.bases.standard_normal(2), num_calibration_iterations=0),
        ValueError,
        "num_calibration_iterations must be a positive integer, got 0",
    ),
    "no such network": (
        lambda: train(network="deep"),
        ValueError,
        r"network must be one of \('general', 'hierarchical', 'structured'\), got 'deep'",
    ),
    "a network without init and apply": (
        lambda: train(base=cs.bases.standard_normal(2), network=3),
        TypeError,
        "network must be 'general', .* with init and apply .* got int",
    ),
    "an optimiser that is none": (
        lambda: train(base=cs.bases.standard_normal(2), optimizer="adam"),
        TypeError,
        "optimizer must be an optax transformation.*got str",
    ),
    "no such effort": (
        lambda: train(effort="little"),
        ValueError,
        "effort must be one of .*'short'.*, got 'little'",
    ),
    "no effective draws": (
        lambda: train(num_samples=0),
        ValueError,
        "num_samples must be a positive integer, got 0",
    ),
    "half an iteration": (
        lambda: train(num_calibration_iterations=2.5),
        ValueError,
        r"num_calibration_iterations must be a positive integer, got 2\.5",
    ),
    "no hidden layer": (
        lambda: train(hidden=()),
        ValueError,
        r"hidden must be the widths of one or more hidden layers.*got \(\)",
    ),
    "an empty hidden layer": (
        lambda: train(hidden=(64, 0)),
        ValueError,
        "hidden must hold widths; each must be a positive integer, got 0",
    ),
    "a hidden layer that is no tuple": (
        lambda: train(hidden=64),
        ValueError,
        "hidden must be the widths of one or more hidden layers.*got 64",
    ),
    "a seed for a key": (
        lambda: cs.train_sampler(0, TARGET),
        TypeError,
        A_SEED,
    ),
    "several keys": (
        lambda: cs.train_sampler(jax.random.split(KEY, 3), TARGET),
        TypeError,
        r"rng_key must be one key.*got PRNGKeyArray of shape \(3,\)",
    ),
    "a function for a target": (
        lambda: cs.train_sampler(KEY, normal),
        TypeError,
        r"target must be a cs\.Target, got function",
    ),
    "no such loss": (
        lambda: cs.osds(TARGET, base=cs.bases.standard_normal(2), control_loss="kl"),
        ValueError,
        "control_loss must be one of .*'log_variance'.*, got 'kl'",
    ),
    "a seed for a key of fit": (
        lambda: cs.fit(0, cs.osds(TARGET, base=cs.bases.standard_normal(2)), 1),
        TypeError,
        A_SEED,
    ),
}
EVIDENCE = {
    "draws without weights": (
        lambda: cs.evidence(cs.Draws(jnp.zeros((5, 2)))),
        ValueError,
        "have no importance weights",
    ),
    "a weight that is NaN": (
        lambda: cs.evidence(draws_of([0.0, np.nan])),
        ValueError,
        r"1 of 2 .* NaN or \+inf",
    ),
    "weights that are all zero": (
        lambda: cs.evidence(draws_of([-np.inf, -np.inf])),
        ValueError,
        "Every weight is zero",
    ),
    "a single draw": (
        lambda: cs.evidence(draws_of([0.0])),
        ValueError,
        "needs at least 2 draws, got 1",
    ),
    "weights of another length": (
        lambda: cs.evidence(cs.Draws(jnp.zeros((5, 2)), jnp.zeros(4), bound="lower")),
        ValueError,
        r"log_weight must have one entry a draw, 5: got shape \(4,\)",
    ),
    "resampling without weights": (
        lambda: corrections.resample(KEY, cs.Draws(jnp.zeros((5, 2)))),
        ValueError,
        "have no importance weights",
    ),
}
MODELS = {
    "a discrete site": (
        lambda: OneStepSampler(discrete).run(KEY),
        ValueError,
        "'k' of model 'discrete' is discrete",
    ),
    "nothing latent": (
        lambda: OneStepSampler(nothing_latent).run(KEY, Y),
        ValueError,
        "Model 'nothing_latent' has no latent site",
    ),
    "a subsampled plate": (
        lambda: OneStepSampler(subsampled).run(KEY, Y),
        ValueError,
        r"Plate 'data' of model 'subsampled' is subsampled \(2 of 3\)",
    ),
    "NaN among the data": (
        lambda: OneStepSampler(model).run(KEY, np.full(3, np.nan)),
        ValueError,
        "'y' holds 3 NaN of 3 values",
    ),
    "data outside the support": (
        lambda: OneStepSampler(counts).run(KEY, np.array([1, -2, 3])),
        ValueError,
        "1 of 3 values of the observed site 'y' lie outside the support of Poisson",
    ),
    "data that are words": (
        lambda: OneStepSampler(model).run(KEY, np.array(["a", "b"])),
        TypeError,
        "site 'y' of model 'model' holds str_, not numbers",
    ),
    "a missing argument": (
        lambda: OneStepSampler(model).run(KEY),
        TypeError,
        r"model\(\) missing 1 required positional argument: 'y'",
    ),
    "an argument too many": (
        lambda: OneStepSampler(model).run(KEY, Y, 1.0, 2.0),
        TypeError,
        "takes from 1 to 2 positional arguments but 3 were given",
    ),
    "a model that is none": (
        lambda: OneStepSampler("model"),
        TypeError,
        "model must be a function with NumPyro primitives.*got str",
    ),
    "a setting that does not exist": (
        lambda: one_step(iterations=3),
        TypeError,
        "unexpected setting 'iterations'",
    ),
    "too few samples": (
        lambda: one_step(num_samples=1),
        ValueError,
        "num_samples must be an integer of at least 2, got 1",
    ),
    "a number of steps never trained": (
        lambda: one_step(num_steps=32),
        ValueError,
        r"num_steps=32 does not divide .* Choose one of \[1\]",
    ),
    "a sampler that is none": (
        lambda: OneStepMH(model),
        TypeError,
        "sampler must be a OneStepSampler of the model, got function",
    ),
    "results before a run": (
        lambda: one_step().get_samples(),
        RuntimeError,
        r"call run\(rng_key, \.\.\.\) before get_samples",
    ),
}


@pytest.mark.parametrize("kind", DENSITIES | TRAINING | EVIDENCE | MODELS)
def test_bad_input_is_told(kind):
    call, error, message = (DENSITIES | TRAINING | EVIDENCE | MODELS)[kind]
    with pytest.raises(error, match=message):
        call()


COUNT = "num_samples must be a positive integer, got "
SAMPLING = {
    "no samples": (lambda t: t.sample(KEY, 0), ValueError, COUNT + "0"),
    "half a sample": (lambda t: t.sample(KEY, 2.5), ValueError, COUNT + r"2\.5"),
    "true samples": (lambda t: t.sample(KEY, True), ValueError, COUNT + "True"),
    "a step count that is no power of two": (
        lambda t: t.sample(KEY, 9, 3),
        ValueError,
        r"num_steps=3 .* Choose one of \[1, 2\]",
    ),
    "an unknown method": (
        lambda t: t.sample(KEY, 9, method="upper"),
        ValueError,
        r"method must be one of \('map', 'path', 'heuristic'\), got 'upper'",
    ),
    "a seed for a key": (lambda t: t.sample(0, 9), TypeError, A_SEED),
    "points of another dimension": (
        lambda t: t.one_step.log_weight(KEY, t.target, jnp.zeros((4, 3))),
        ValueError,
        r"position must have shape \[n, 2\], got \(4, 3\)",
    ),
}


@pytest.mark.parametrize("kind", SAMPLING)
def test_bad_requests_to_a_trained_sampler(trained, kind):
    call, error, message = SAMPLING[kind]
    with pytest.raises(error, match=message):
        call(trained)


RUNS = {
    "a seed for a key": (lambda s: s.run(0, Y), TypeError, A_SEED),
    "other latent sites": (
        lambda s: s.run(KEY, None),
        ValueError,
        r"latent sites \{'mu': \(\), 'y': \(\)\}.*trained on \{'mu': \(\)\}",
    ),
    "NaN among new data": (
        lambda s: s.run(KEY, np.array([0.0, np.nan, 1.0])),
        ValueError,
        "'y' holds 1 NaN of 3",
    ),
    "words for new data": (
        lambda s: s.run(KEY, np.array(["a"])),
        TypeError,
        "site 'y' of model 'model' holds str_, not numbers",
    ),
    "nowhere to save": (
        lambda s: s.save("/dev/null/sampler"),
        cs.CheckpointError,
        "Cannot write to /dev/null/sampler",
    ),
    "nothing to load": (
        lambda s: s.load("/no/such/sampler", Y),
        cs.CheckpointError,
        "no checkpoint in /no/such/sampler",
    ),
    "no draws": (lambda s: s.draw(KEY, 0), ValueError, COUNT + "0"),
}


@pytest.mark.filterwarnings("ignore:Other arguments of model:UserWarning")
@pytest.mark.parametrize("kind", RUNS)
def test_bad_runs_lose_nothing(sampler, kind):
    call, error, message = RUNS[kind]
    was, samples = sampler.trained, sampler.get_samples(resampled=False)
    with pytest.raises(error, match=message):
        call(sampler)
    assert sampler.trained is was
    jax.tree.map(np.testing.assert_array_equal, samples, sampler.get_samples(resampled=False))


def damage_arrays(folder):
    (file,) = folder.glob("arrays-*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def truncate_header(folder):
    header = folder / "header.json"
    header.write_text(header.read_text()[:20])


def lose_arrays(folder):
    (file,) = folder.glob("arrays-*")
    file.unlink()


def lose_entries(folder):
    (folder / "header.json").write_text('{"kind": "cake"}')


def foreign(folder):
    header = folder / "header.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": "cake"}))


def newer(folder):
    header = folder / "header.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"version": 99}))


FILES = {
    "a damaged file": (damage_arrays, r"{}/arrays-\w+\.msgpack is damaged or cut short"),
    "a truncated file": (truncate_header, "{}/header.json is damaged.*JSONDecodeError"),
    "a missing file": (lose_arrays, "The arrays of {} are missing"),
    "a header without entries": (lose_entries, "{}/header.json is damaged.*'format'"),
    "a foreign file": (foreign, "{} holds no checkpoint of consistent_samplers, but of 'cake'"),
    "a file of a later version": (newer, "{} was written by .* in version 99 of the format"),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_files(saved, kind):
    damage, message = FILES[kind]
    cs.load(saved, TARGET)
    damage(saved)
    with pytest.raises(cs.CheckpointError, match=message.format(re.escape(str(saved)))):
        cs.load(saved, TARGET)


def test_a_file_of_another_dimension(saved):
    with pytest.raises(cs.CheckpointError, match=r"has 2 dimensions .*'normal'.* has 3"):
        cs.load(saved, cs.Target(normal, 3))


EXTRAS = {
    "arviz": (
        lambda s: s.to_arviz(),
        ("arviz", "arviz_base"),
        "to_arviz needs ArviZ: pip install arviz",
    ),
    "matplotlib": (
        lambda s: cs.plotting.plot_weights(np.zeros(9)),
        ("matplotlib", "matplotlib.pyplot"),
        r'matplotlib.*pip install "consistent_samplers\[plot\]"',
    ),
    "pooch": (
        functools.partial(lambda s: cs.targets.sonar()),
        ("pooch",),
        r'pooch.*pip install "consistent_samplers\[bench\]"',
    ),
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_missing_extras_are_named(sampler, monkeypatch, tmp_path, kind):
    call, modules, message = EXTRAS[kind]
    monkeypatch.delenv("CONSISTENT_SAMPLERS_DATA", raising=False)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=message):
        call(sampler)
