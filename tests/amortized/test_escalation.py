"""What is taken over from trainings on one data set alone, and what is claimed of it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from amortized_models import bare, slope, untrained

import consistent_samplers as cs
from consistent_samplers.amortized import Posteriors, answering, escalation, judged_all
from consistent_samplers.amortized.answering import Answers
from consistent_samplers.compilation import precision
from consistent_samplers.diagnostics import Verdict
from consistent_samplers.recipe import Route


def answers(log_weight):
    """Answers with these log weights."""
    log_weight = np.asarray(log_weight, np.float32)
    found, verdicts = judged_all(log_weight)
    num, none = len(log_weight), np.zeros(len(log_weight), bool)
    routes = tuple(Route("amortized", "", {"amortized": 1.0}) for _ in verdicts)
    trusted = np.array([v.level != "not to be used" for v in verdicts])
    samples = {"b": np.zeros((num, log_weight.shape[1]))}
    key = jax.random.key(0)
    return Posteriors(key, samples, log_weight, found, tuple(verdicts), routes, trusted, none, none)


class Own:
    """A sampler of one data set that ran."""

    draws = cs.Draws(jnp.zeros((500, 1)), jnp.zeros(500), bound="lower-if-injective")
    evidence = dataclasses.replace(
        cs.evidence(draws), folded=jnp.array(0.2), round_trip_error=jnp.array(0.3)
    )
    verdict, route = Verdict("usable", "By itself."), Route("full", "", {"full": 0.9})
    calls: ClassVar[list] = []

    def __init__(self, model, **settings):
        pass

    def run(self, rng_key, *args, **kwargs):
        self.calls.append((args, kwargs))

    def get_samples(self, **settings):
        return {"b": jnp.ones(500)}


class Broken(Own):
    def run(self, rng_key, *args, **kwargs):
        raise ValueError("The search failed.")


GOOD, POOR, IMPOSSIBLE = np.zeros(300), np.linspace(0.0, 200.0, 300), np.full(300, -np.inf)


def escalated(monkeypatch, sampler, *log_weights, more=POOR):
    monkeypatch.setattr(escalation, "OneStepSampler", sampler)
    many, of_more = answers(log_weights), answers([np.repeat(more, 9)])
    return escalation.escalated(many, lambda *_: of_more, None, None, lambda i: ((), {}), False)


def test_draws_are_resampled_from_more_of_them_where_these_can_be_used(monkeypatch):
    Own.calls.clear()
    light = np.where(np.arange(300) < 150, -np.inf, 1.0)
    many, samplers = escalated(monkeypatch, Own, GOOD, POOR, more=light)
    assert not samplers and not Own.calls
    assert many.trusted.all() and many.escalated.tolist() == [False, True]
    np.testing.assert_allclose(many.evidence.log_z, [0.0, 1.0 + np.log(0.5)], rtol=1e-5)
    assert np.ptp(many.log_weight[1]) == 0.0
    assert many.routes[1].name == "amortized" and "2,700 draws" in many.routes[1].reason


def test_more_draws_do_not_forget_the_first_ones(monkeypatch):
    calls = []

    def answered(keys, family, given, num_samples, num_iterations=0):
        calls.append(len(given))
        samples = {"b": np.full((len(given), num_samples, 2), 1.0)}
        return Answers(samples, np.zeros((len(given), num_samples)), np.full(len(given), 0.5))

    monkeypatch.setattr(answering, "answered", answered)
    large = np.zeros((1, 300))
    large[0, 7] = 30.0
    before = {"b": np.zeros((1, 300, 2))}, large
    for together, sizes in [(1, [1] * 8), (6, [6] * 2), (1_000, [8])]:
        calls.clear()
        found = answering.with_more(jax.random.key(0), None, (None, None), *before, together)
        assert calls == sizes
        assert found.log_weight.shape == (1, 300 * (1 + sum(sizes)))
        assert found.samples["b"].shape == (*found.log_weight.shape, 2)
        assert found.log_weight[0, 7] == 30.0 and found.away.tolist() == [0.5]
        assert not found.samples["b"][0, :300].any() and found.samples["b"][0, 300:].all()
        assert judged_all(found.log_weight)[1][0].level == "not to be used"


def test_short_trainings_are_of_so_many_data_sets_at_once(monkeypatch):
    monkeypatch.setattr(escalation, "OneStepSampler", Broken)
    many, of_more, parts = answers([POOR] * 3), answers([np.repeat(POOR, 9)]), []

    def again(key, index):
        parts.append(index)
        # Of the one that fills the last part up, the first is taken.
        good = np.full(2_400, 200.0)  # log Z, which must not fall
        return answers([good, np.repeat(POOR, 8) if index[0] == 2 else good])

    shortly = escalation.Shortly(again, 2)
    found, _ = escalation.escalated(
        many, lambda *_: of_more, shortly, lambda i: ((), {}), lambda i: ((), {}), False
    )
    assert parts == [[0, 1], [2, 2]]
    assert found.trusted.all() and [route.name for route in found.routes] == ["short"] * 3
    assert found.log_weight.shape == (3, 300) and (found.log_weight == 200.0).all()
    assert [route.stages["short"] for route in found.routes] == [1.0] * 3


def test_evidence_of_an_escalated_data_set_is_its_samplers(monkeypatch):
    many, samplers = escalated(monkeypatch, Own, GOOD, POOR)
    assert many.escalated.tolist() == [False, True] and list(samplers) == [1]
    found = many.evidence
    assert found.bound == "lower-if-injective" and found.num_samples == 300
    np.testing.assert_allclose(found.folded, [np.nan, 0.2])
    np.testing.assert_allclose(found.round_trip_error, [np.nan, 0.3])
    assert found.log_z.tolist() == [0.0, 0.0]


def test_a_training_that_fails_leaves_the_answers_there_are(monkeypatch):
    many, samplers = escalated(monkeypatch, Broken, GOOD, POOR, IMPOSSIBLE)
    assert not samplers and not many.escalated.any()
    assert many.trusted.tolist() == [True, False, False]
    assert "ended in an error: The search failed." in many.verdicts[1].words
    assert "impossible under the model" in many.verdicts[2].words


def test_impossible_data_have_no_training_of_their_own(monkeypatch):
    many, samplers = escalated(monkeypatch, Own, IMPOSSIBLE)
    assert not samplers and not many.escalated.any()
    assert many.verdicts[0].level == "not to be used"


def test_one_escalated_data_set_says_what_its_sampler_does(monkeypatch):
    def answered(keys, family, given, num_samples, num_iterations=0):
        return Answers({"b": np.zeros((1, 300))}, POOR[None], np.zeros(1))

    monkeypatch.setattr(escalation, "OneStepSampler", Own)
    monkeypatch.setattr("consistent_samplers.amortized.family.answered", answered)
    monkeypatch.setattr(answering, "answered", answered)
    family = bare(slope)
    one = family.condition(jax.random.key(0), [1.0, 2.0, 3.0], y=[1.0, 2.0, 3.0], num_samples=300)
    assert one.evidence is Own.evidence and one.verdict.level == "usable"
    # It is called with arrays of the rows that there are.
    (args, kwargs) = Own.calls[-1]
    assert args[0].shape == kwargs["y"].shape == (3,)
    assert isinstance(kwargs["y"], np.ndarray)


def test_a_family_that_was_trained_in_single_precision_answers_in_double(monkeypatch):
    monkeypatch.setattr(answering, "in_blocks", lambda function, size: jax.vmap(function))
    family = untrained(slope)
    with precision(double=True):
        given = family._read([((np.ones(3),), {"y": np.ones(3)})])
        ((model, data),) = given
        assert data.arrays[0].dtype == data.observed["y"].dtype == np.float64
        draw = answering._drawing(family, model, 100, 0)
        keys = jax.random.split(jax.random.key(0), 1)
        found = jax.eval_shape(draw, keys, answering.stacked([data]))
    assert {x.dtype.name for x in found} == {"float64"}
