"""Models compared: Bayes factors, words, probabilities, prediction beside, what is refused."""

import dataclasses
import importlib.util
import math
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.stats import multivariate_normal, norm

import consistent_samplers as cs
from consistent_samplers.bayes_factors import CANNOT_TELL, bayes_factor, model_probabilities
from consistent_samplers.bracket import Bracket
from consistent_samplers.comparison import compare_brackets
from consistent_samplers.diagnostics import ExplorationCheck, Mixing
from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.integrations.numpyro.model import flatten_model
from consistent_samplers.prediction import predict
from consistent_samplers.recipe import chain_stage
from consistent_samplers.same_data import in_one_order

KEYS = pytest.mark.parametrize(
    "key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=("new", "old")
)
NUM = 400
# Three binomial errors below 95 % of so many data sets.
ENOUGH = 0.95 - 3.0 * math.sqrt(0.05 * 0.95 / NUM)


def bracket_of(log_z, stderr=0.01, **rest):
    found = Bracket(log_z - 0.1, 0.01, log_z + 0.1, 0.01, log_z, stderr, "bridge", 4_000)
    return found._replace(**rest)


def log_z_of(y, x, scale=1.0):
    """Of y = x b + noise, b ~ N(0, scale² I), the noise's standard deviation known to be 1."""
    covariance = np.eye(len(y)) + scale**2 * x @ x.T
    return multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)


@pytest.fixture(scope="module")
def regressions():
    """log Z of nested regressions ``[NUM, 3]``, where the middle one is true, and noisy ones."""
    rng = np.random.default_rng(0)
    truth = []
    for _ in range(NUM):
        x = np.concatenate([np.ones((20, 1)), rng.normal(size=(20, 2))], axis=1)
        y = x[:, :2] @ rng.normal(size=2) + rng.normal(size=20)
        truth.append([log_z_of(y, x[:, :k]) for k in (1, 2, 3)])
    stderr = rng.uniform(0.02, 0.3, size=(NUM, 3))
    return np.array(truth), np.array(truth) + stderr * rng.normal(size=(NUM, 3)), stderr


def test_intervals_of_bayes_factors_cover(regressions):
    truth, log_z, stderr = regressions
    for a, b in ((0, 1), (1, 2), (0, 2)):
        found = [
            bayes_factor(z[a] - z[b], math.hypot(s[a], s[b]))
            for z, s in zip(log_z, stderr, strict=True)
        ]
        true = truth[:, a] - truth[:, b]
        inside = [f.low <= t <= f.high for f, t in zip(found, true, strict=True)]
        assert np.mean(inside) >= ENOUGH
        # What is said of the better one is true of it as often; only one side can be wrong.
        both = list(zip(found, true, strict=True))
        wrong = [f.words != CANNOT_TELL and f.log_factor * t < 0.0 for f, t in both]
        stronger = [f.words == "very strong" and abs(t) < 5.0 for f, t in both]
        assert np.mean(wrong) <= 1.0 - ENOUGH and np.mean(stronger) <= 1.0 - ENOUGH


def test_intervals_of_probabilities_cover(regressions):
    truth, log_z, stderr = regressions
    prior = np.array([0.2, 0.5, 0.3])
    inside = []
    for true, z, s in zip(truth, log_z, stderr, strict=True):
        found = model_probabilities(jax.random.key(0), z, s, prior)
        share = prior * np.exp(true - true.max())
        share /= share.sum()
        inside.append([p.low <= t <= p.high for p, t in zip(found, share, strict=True)])
        assert abs(sum(p.value for p in found) - 1.0) < 1e-9
    assert (np.mean(inside, axis=0) >= ENOUGH).all()


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.5, "not worth more than a bare mention"),
        (2.0, "positive"),
        (4.0, "strong"),
        (5.5, "very strong"),
        (0.1, CANNOT_TELL),
    ],
)
def test_words_are_those_of_kass_and_raftery(difference, words):
    assert bayes_factor(difference, 0.1).words == words
    assert bayes_factor(-difference, 0.1).words == words


def test_words_go_by_the_near_end_of_the_interval():
    assert bayes_factor(5.1, 0.2).words == "strong"
    assert bayes_factor(50.0, 30.0).words == CANNOT_TELL
    assert bayes_factor(float("nan"), 0.1).words == CANNOT_TELL
    assert bayes_factor(9.0, float("inf")).words == CANNOT_TELL


def test_evidence_that_is_not_to_be_used_tells_nothing_and_says_why():
    bad = bracket_of(0.0, level="not to be used", upper=None, note="A few weights decide log Z.")
    found = compare_brackets(
        jax.random.key(0), {"bad": bad, "b": bracket_of(-9.0), "a": bracket_of(-2.0)}
    )
    assert list(found.brackets) == ["a", "b", "bad"]
    factor = found.factor("bad", "b")
    assert factor.words == CANNOT_TELL and "bad is not to be used" in str(factor)
    assert math.isnan(factor.log_factor)
    assert found.factor("a", "b").words == "very strong"
    assert math.isnan(found.probability["bad"].value) and found.probability["a"].value > 0.99
    words = " ".join(str(found).split())
    assert "bad: A few weights decide log Z." in words and "a, b among themselves" in words
    assert f"a over bad: {CANNOT_TELL}" in words and "bad not to be used" in words


def test_no_model_is_the_best_where_none_is_usable():
    bad = bracket_of(0.0, level="not to be used")
    found = compare_brackets(jax.random.key(0), {"a": bad, "b": bad._replace(log_z=-1.0)})
    assert found.best is None
    assert "a over b: cannot tell: the evidence of a and b is not to be used" in str(found)


def test_one_usable_model_has_no_probability():
    bad = bracket_of(0.0, level="not to be used")
    found = compare_brackets(jax.random.key(0), {"bad": bad, "a": bracket_of(-2.0)})
    assert all(math.isnan(p.value) for p in found.probability.values())


def test_a_model_without_a_bound_above_says_so():
    open_above = bracket_of(-5.0, upper=None, upper_stderr=None, method="importance")
    found = compare_brackets(jax.random.key(0), {"a": bracket_of(-2.0), "b": open_above})
    assert "b has no bound above" in found.note and found.factor("a", "b").words == "positive"


@KEYS
def test_priors_move_probabilities(key):
    brackets = {"a": bracket_of(-1.0, 0.0), "b": bracket_of(-1.0, 0.0)}
    equal = compare_brackets(key, brackets)
    assert equal.probability["a"] == (0.5, 0.5, 0.5)
    given = compare_brackets(key, brackets, prior={"a": 0.8, "b": 0.2})
    assert abs(given.probability["a"].value - 0.8) < 1e-9
    assert "Prior probabilities: a 0.8, b 0.2" in str(given)
    none = compare_brackets(key, brackets, prior={"a": 1.0, "b": 0.0})
    assert none.probability["b"].value == 0.0


def test_the_table_keeps_to_its_width():
    names = ["a model with a name that would not end " * 4, "b", "c"]
    numbers = (-123456.789, -123457.0, -23456.0)
    brackets = {
        n: bracket_of(z, 0.5, note="words " * 60) for n, z in zip(names, numbers, strict=True)
    }
    lines = str(compare_brackets(jax.random.key(0), brackets)).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].startswith("c")


# --- trained samplers ---------------------------------------------------------------------------


def log_density(log_z, x):
    return log_z + jax.scipy.stats.norm.logpdf(x, 0.2, 0.9).sum()


def gaussian(log_z):
    base = cs.Sampler.of_base(cs.bases.standard_normal(1))
    # Its constant is data: the second one compiles nothing.
    target = cs.Target(jax.tree_util.Partial(log_density, jnp.asarray(log_z)), 1)
    return cs.TrainedSampler(target, base, base)


@KEYS
@pytest.mark.slow
def test_trained_samplers_are_compared(key):
    found = cs.compare(key, {"b": gaussian(-7.0), "a": gaussian(-4.0)}, num_samples=2_000)
    assert found.best == "a" and not found.prediction
    factor = found.factor("a", "b")
    assert factor.low < 3.0 < factor.high and factor.stderr < 0.05
    assert "yours to know of a, b" in found.note


@pytest.mark.slow
def test_chains_and_weights_that_fail_are_told_apart_from_evidence():
    good = gaussian(0.0)
    chains = cs.corrections.latent_chains(
        jax.random.key(0), good.target, good.one_step, num_warmup=50, num_samples=50
    )
    chains = chains._replace(mixing=Mixing(1.5, 9.0, 9.0, 0.0))
    even = dataclasses.replace(good, chains=chains)
    far = cs.Sampler.of_base(cs.bases.standard_normal(1, scale=0.1))
    lost = dataclasses.replace(even, one_step=far, many_steps=far)
    found = cs.compare(jax.random.key(0), {"lost": lost, "even": even, "good": good})
    assert found.brackets["even"].method == "importance"
    assert found.brackets["even"].level != "not to be used"
    assert "even: The bound above is one by the weights of one step" in found.note
    assert list(found.brackets)[-1] == "lost" and not found.is_usable("lost")
    assert found.factor("good", "lost").words == CANNOT_TELL
    assert "lost: Nor are the weights of one step." in found.note
    assert "lost: A few large weights decide log Z" in found.note


@pytest.mark.parametrize("num_samples", [3, 1.5, "many"])
def test_bad_input_fails_before_chains_run(monkeypatch, num_samples):
    def with_chains(*args, **kwargs):
        raise AssertionError("chains were run")

    monkeypatch.setattr(chain_stage, "with_chains", with_chains)
    models = {"a": gaussian(-7.0), "b": gaussian(-4.0)}
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 4"):
        cs.compare(jax.random.key(0), models, num_samples=num_samples)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 4"):
        models["a"].bracket(jax.random.key(0), num_samples)
    with pytest.raises(TypeError, match="rng_key"):
        models["a"].bracket(3)
    numbered = dict(enumerate(models.values()))
    with pytest.raises(TypeError, match="Names of models must be strings, got 0"):
        cs.compare(jax.random.key(0), numbered)
    with pytest.raises(TypeError, match="Names of models must be strings, got 1"):
        compare_brackets(jax.random.key(0), {1: bracket_of(0.0), 2: bracket_of(1.0)})


# --- NumPyro ------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
X = RNG.normal(size=40)
Y = 0.5 + 1.0 * X + RNG.normal(size=40)


def line(x, y):
    a, b = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


def level(target):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(target)):
        numpyro.sample("target", dist.Normal(a, 1.0), obs=target)


def ran(model, *args):
    sampler = OneStepSampler(model, num_samples=1_000, effort="base", progress_bar=False)
    sampler.run(jax.random.key(0), *args)
    return sampler


def drawn(model, *args):
    """A sampler without training, whose draws are those of a standard normal base."""
    flat = flatten_model(model, args, {})
    base = cs.Sampler.of_base(cs.bases.standard_normal(flat.target.dim))
    sampler = OneStepSampler(model, num_samples=100, effort="base", progress_bar=False)
    sampler._training = flat, cs.TrainedSampler(flat.target, base, base)
    sampler.run(jax.random.key(0), *args)
    return sampler


@pytest.fixture(scope="module")
def line_and_level():
    return {"level": ran(level, Y), "line": ran(line, X, Y)}


@pytest.mark.skipif(importlib.util.find_spec("arviz") is None, reason="prediction needs ArviZ")
def test_regressions_against_their_closed_form(line_and_level):
    found = cs.compare(jax.random.PRNGKey(1), line_and_level, num_samples=4_000)
    ones = np.ones((40, 1))
    true = log_z_of(Y, np.column_stack([ones, X])) - log_z_of(Y, ones)
    factor = found.factor("line", "level")
    assert found.best == "line" and abs(factor.log_factor - true) < 4.0 * factor.stderr + 1e-3
    assert factor.words == "very strong"
    # Left out one by one, in closed form: the predictive density is the ratio of two evidences.
    rest = [np.arange(40) != i for i in range(40)]
    exact = log_z_of(Y, ones) - np.array([log_z_of(Y[r], ones[r]) for r in rest])
    loo = found.prediction["level"]
    assert abs(loo.elpd - exact.sum()) < 0.5 and loo.pareto_k < 0.7
    assert np.abs(loo.pointwise - exact).max() < 0.1
    ahead, stderr = found.prediction["line"].ahead_of(loo)
    assert ahead > 0.0 and 0.0 < stderr < ahead
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100 and "elpd_loo" in text
    assert text.index("line over level: very strong") > text.index("elpd_diff")


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("arviz", "arviz_base", "arviz_stats")),
    reason="two generations of ArviZ are needed to be compared",
)
def test_both_generations_of_arviz_predict_alike(line_and_level, monkeypatch):
    sampler = line_and_level["line"]
    (old,) = predict({"line": sampler}, {"line": ["y"]})[0].values()
    monkeypatch.setitem(sys.modules, "arviz", None)
    (new,) = predict({"line": sampler}, {"line": ["y"]})[0].values()
    np.testing.assert_allclose(new.pointwise, old.pointwise, rtol=1e-3)
    np.testing.assert_allclose(new[:2], old[:2], rtol=1e-3)
    assert abs(new.num_parameters - old.num_parameters) < 0.05 and new.good_k == old.good_k


def test_sites_in_another_order_are_the_same_data():
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])
    orders = in_one_order({"m": {"y": a, "z": b}, "n": {"v": b.reshape(3, 1), "w": a}})
    assert [orders["m"], orders["n"]] == [["y", "z"], ["w", "v"]]
    joined = np.concatenate([a, b]).astype(np.float32)
    assert in_one_order({"m": {"y": a, "z": b}, "n": {"all": joined}})["n"] == ["all"]
    with pytest.raises(ValueError, match="2 of 5 values are different"):
        in_one_order({"m": {"y": a, "z": b}, "n": {"all": joined + (joined > 3.0)}})


HALF = np.arange(40) < 20


def of_mean(y, site):
    """A mean of zero, and its data as a site gives them."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    site(y, dist.Normal(a, 1.0))


def plain(y, fn):
    numpyro.sample("y", fn, obs=y)


def by_handler(y, fn):
    with handlers.mask(mask=jnp.asarray(HALF)):
        numpyro.sample("y", fn, obs=y)


def by_method(y, fn):
    numpyro.sample("y", fn.expand([40]).mask(jnp.asarray(HALF)).to_event(1), obs=y)


def by_argument(y, fn):
    numpyro.sample("y", fn, obs=y, obs_mask=HALF)


def by_two(y, fn):
    with handlers.mask(mask=jnp.asarray(np.arange(40) < 30)), handlers.mask(mask=True):
        numpyro.sample("y", fn.expand([40]).mask(jnp.arange(40) < 20), obs=y)


def of_events(y, fn):
    pairs = fn.expand([20, 2]).to_event(1).mask(jnp.arange(20) < 10)
    numpyro.sample("y", pairs, obs=y.reshape(20, 2))


@pytest.mark.parametrize("site", [by_handler, by_method, by_argument, by_two, of_events])
def test_values_that_a_mask_leaves_out_are_no_data(site, line_and_level):
    whole, filled = (drawn(of_mean, y, site) for y in (Y, np.where(HALF, Y, -7.0)))
    with pytest.raises(ValueError, match="40 and 20 values"):
        cs.compare(jax.random.key(0), {"line": line_and_level["line"], "masked": whole})
    (values,) = whole.observed.values()
    np.testing.assert_allclose(values.ravel(), Y[HALF], rtol=1e-6)
    # The others are of no account, and the model of the rest has the same data.
    observed = {"a": whole.observed, "b": filled.observed, "c": {"y": Y[HALF]}}
    assert in_one_order(observed)["c"] == ["y"]


def test_a_value_that_stands_for_several_counts_as_often():
    assert len(drawn(of_mean, 0.5, lambda y, fn: plain(y, fn.expand([3]))).observed["y"]) == 3


@pytest.mark.parametrize("scale", [0.1, np.linspace(0.5, 1.0, 40)], ids=["one", "each"])
def test_scaled_densities_are_refused(scale, line_and_level):
    def scaled(y, fn):
        with handlers.scale(scale=scale):
            numpyro.sample("y", fn, obs=y)

    models = {"line": line_and_level["line"], "scaled": drawn(of_mean, Y, scaled)}
    with pytest.raises(ValueError, match="'scaled' has a scaled density at y"):
        cs.compare(jax.random.key(0), models)


def test_what_a_factor_holds_is_yours_to_know(monkeypatch):
    def with_factor(y, fn):
        numpyro.sample("y", fn, obs=y)
        numpyro.factor("more", fn.log_prob(0.3))

    monkeypatch.setattr(OneStepSampler, "bracket", lambda *args: bracket_of(0.0))
    models = {"plain": drawn(of_mean, Y, plain), "more": drawn(of_mean, Y, with_factor)}
    assert models["more"].factors == ("more",) and list(models["more"].observed) == ["y"]
    found = cs.compare(jax.random.key(0), models, loo=False)
    assert "yours to know of more: a density, or a numpyro.factor" in found.note


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("arviz", "arviz_base", "arviz_stats")),
    reason="both generations of ArviZ",
)
@pytest.mark.parametrize("old", [True, False])
def test_prediction_is_that_of_the_values_a_mask_leaves(old, monkeypatch):
    def more(y, fn):  # and values that do not depend on the mean
        by_handler(y, fn)
        numpyro.sample("z", dist.Normal(0.0, 1.0), obs=y[:2])

    if not old:
        monkeypatch.setitem(sys.modules, "arviz", None)
    models = {"masked": ran(of_mean, Y, by_handler), "half": ran(of_mean, Y[HALF], plain)}
    models["more"] = ran(of_mean, Y, more)
    found, notes = predict(models, {"masked": ["y"], "half": ["y"], "more": ["z", "y"]})
    assert not notes
    assert models["masked"].to_arviz()["observed_data"]["y"].shape == (40,)
    for name, begin in (("masked", 0), ("more", 2)):
        pointwise = found[name].pointwise
        np.testing.assert_allclose(pointwise[begin:], found["half"].pointwise, atol=0.02)
        np.testing.assert_allclose(pointwise[:begin], norm.logpdf(Y[:begin]), rtol=1e-3)


@pytest.mark.slow
def test_real_runs_cover():
    """Ten data sets, each warm from the one before: exact maps, so that rounding decides."""
    models = [
        OneStepSampler(model, num_samples=1_000, effort="base", progress_bar=False)
        for model in (level, line)
    ]
    covered, rng = 0, np.random.default_rng(5)
    for i in range(10):
        x = rng.normal(size=40)
        y = rng.normal() + rng.normal() * x + rng.normal(size=40)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Other arguments of model")
            models[0].run(jax.random.key(i), y)
            models[1].run(jax.random.key(i), x, y)
        named = dict(zip(("level", "line"), models, strict=True))
        found = cs.compare(jax.random.key(i), named, loo=False).factor("line", "level")
        ones = np.ones((40, 1))
        true = log_z_of(y, np.column_stack([ones, x])) - log_z_of(y, ones)
        covered += found.low <= true <= found.high
    assert covered >= 8  # of 95 % in ten, with a probability of 0.99


@pytest.mark.slow
def test_prediction_is_left_out_without_arviz(line_and_level, monkeypatch):
    for name in ("arviz", "arviz_base", "arviz_stats"):
        monkeypatch.setitem(sys.modules, name, None)
    found = cs.compare(jax.random.key(1), line_and_level, num_samples=500)
    assert not found.prediction and "needs ArviZ" in found.note


def test_other_data_are_refused(line_and_level):
    for y, words in (
        (Y + 1.0, "40 of 40 values are different"),
        (Y[:30], "40 and 30 values"),
        (Y[::-1].copy(), "the same values in another order"),
    ):
        with pytest.raises(ValueError, match=f"observe different data .*{words}"):
            cs.compare(jax.random.key(0), {"a": line_and_level["line"], "b": ran(level, y)})


def test_what_is_not_a_comparison_is_refused(line_and_level):
    key, one = jax.random.key(0), line_and_level["line"]
    with pytest.raises(ValueError, match="two models or more, got 1"):
        cs.compare(key, {"a": one})
    with pytest.raises(TypeError, match="a mapping"):
        cs.compare(key, [one, one])
    with pytest.raises(TypeError, match="Model 'b' must be a TrainedSampler"):
        cs.compare(key, {"a": one, "b": one.trained.target})
    with pytest.raises(ValueError, match=r"'b' was not run: call its run\(rng_key"):
        cs.compare(key, {"a": one, "b": OneStepSampler(line)})
    with pytest.raises(ValueError, match="a probability for each of a, b"):
        cs.compare(key, {"a": one, "b": one}, prior={"a": 1.0})
    with pytest.raises(ValueError, match="sum to one"):
        cs.compare(key, {"a": one, "b": one}, prior={"a": 1.0, "b": 0.5})
    with pytest.raises(ValueError, match="No model is called 'c': a, b"):
        compare_brackets(key, {"a": bracket_of(0.0), "b": bracket_of(0.0)}).factor("a", "c")


def flat_by_support(y):
    a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(a, 1.0).expand([len(y)]).to_event(1), obs=y)


def flat_by_mask(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).mask(False))
    numpyro.sample("y", dist.Normal(a, 1.0).expand([len(y)]).to_event(1), obs=y)


@pytest.mark.parametrize("model", [flat_by_support, flat_by_mask])
def test_improper_priors_are_refused(line_and_level, model):
    with pytest.raises(ValueError, match="'b' has an improper prior at a"):
        cs.compare(jax.random.key(0), {"a": line_and_level["line"], "b": ran(model, Y)})


def test_a_density_without_an_integral_is_refused():
    check = ExplorationCheck(1, 0, 0.0, math.nan, num_open=1)
    without = dataclasses.replace(gaussian(0.0), exploration=check)
    with pytest.raises(ValueError, match="'b' has no evidence as far as can be seen"):
        cs.compare(jax.random.key(0), {"a": gaussian(0.0), "b": without})


@pytest.mark.slow
def test_values_that_are_one_event_have_no_prediction(line_and_level):
    def joint(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("all", dist.Normal(a, 1.0).expand([len(y)]).to_event(1), obs=jnp.asarray(y))

    models = {"joint": ran(joint, Y), "line": line_and_level["line"]}
    found = cs.compare(jax.random.key(1), models, num_samples=500)
    if found.prediction:
        assert set(found.prediction) == {"line"} and "a single value to it" in found.note
    else:
        assert "needs ArviZ" in found.note
    assert "?" in str(found)
