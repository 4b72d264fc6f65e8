"""Data sets whose draws are not to be used: more of them, a short training, a sampler of its own.

Of a few thousand draws the tail of the weights is known too little: of many more it is mostly found
to be light, and as many as were asked for are resampled from all.

The map's training goes on from the family's parameters, on the density of one data set alone. It is
one program for all data sets, so that only the first waits for a compiler. It may lose a mode, as
the family's own draws then tell. What is still not to be used has an `OneStepSampler` of its own,
with chains where that falls short.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from consistent_samplers.amortized.posterior import Posteriors, resampled
from consistent_samplers.bases.iterating import folded, pair
from consistent_samplers.diagnostics import Verdict
from consistent_samplers.estimate import Evidence
from consistent_samplers.integrations.numpyro.arguments import Call
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.integrations.numpyro.sampler import OneStepSampler
from consistent_samplers.recipe import Route
from consistent_samplers.types import BOUNDS, Array, PRNGKey

SHORT = "short"
"""The route of an answer of the family's map after a short training on one data set."""

# By how much log Z may fall in a short training: standard errors, and nats.
_NUM_ERRORS, _MAX_SHORT = 3.0, 0.05

Samplers = dict[int, OneStepSampler]
"""Samplers of their own, by the index of the data set."""


class Shortly(NamedTuple):
    """Short trainings of a family's map.

    Attributes:
      again: of a key and the indices of data sets, the answers after one on each: many draws.
      at_once: data sets that are trained on at once.
    """

    again: Callable[[PRNGKey, Sequence[int]], Posteriors]
    at_once: int


def escalated(
    many: Posteriors,
    more: Callable[[PRNGKey, int], Posteriors],
    shortly: Shortly | None,
    model: Callable[..., Any],
    call: Callable[[int], Call],
    progress_bar: bool,
) -> tuple[Posteriors, Samplers]:
    """The same answers, but for the data sets whose draws are not to be used.

    Args:
      many: answers.
      more: of a key and the index of a data set, its answer from many more draws.
      shortly: short trainings; None where they cannot help.
      model: what an `OneStepSampler` takes.
      call: the model's arguments ``(args, kwargs)`` of a data set, by its index.
      progress_bar: show how far each training is.

    Returns:
      The answers, and the samplers of those that have one.
    """
    (key_again, key_own), key_more = pair(many.rng_key), folded(many.rng_key, 2)
    answers, samplers, failed = _Answers(many), Samplers(), set[int]()
    # Data that are impossible under the model stay so.
    index = np.flatnonzero(~many.trusted & np.isfinite(many.evidence.log_z))
    for i in index.tolist():
        _resample(answers, i, more(folded(key_more, i), i))
    rest = index[~answers.trusted[index]]
    if shortly is not None:
        for i, part in _parts(rest.tolist(), shortly.at_once):
            _train_shortly(answers, part, shortly.again(folded(key_again, i), part))
    num_samples = many.log_weight.shape[1]
    for i in [int(i) for i in index if not answers.trusted[i]]:
        args, kwargs = call(i)
        sampler = OneStepSampler(model, num_samples=num_samples, progress_bar=progress_bar)
        try:
            with warnings.catch_warnings():
                # What it warns of is in its verdict.
                warnings.simplefilter("ignore")
                sampler.run(folded(key_own, i), *args, **kwargs)
                drawn = sampler.get_samples()
        except Exception as error:  # whatever it is, the other answers are worth keeping
            answers.add_finding(i, f"A training of its own ended in an error: {error}")
            failed.add(i)
            continue
        route, before = sampler.route, answers.routes[i]
        if route is not None:
            reason = f"the family's draws were not to be used; {route.reason}"
            route = Route(route.name, reason, before.stages | route.stages)
        found = sampler.evidence
        answers.put(i, drawn, found.log_z, found, sampler.verdict, route or before)
        samplers[i] = sampler
    return answers.posteriors(many, index, failed), samplers


def _resample(answers: "_Answers", index: int, found: Posteriors) -> None:
    """Takes over draws resampled from more of them, where these can be used."""
    if not found.trusted[0]:
        return
    num = found.log_weight.shape[1]
    reason = f"{num:,} draws of the map, of which these are resampled"
    _put_resampled(answers, index, found, 0, found.routes[0]._replace(reason=reason))


def _train_shortly(answers: "_Answers", index: Sequence[int], again: Posteriors) -> None:
    """Takes over what can be used after a short training; of what comes twice the first."""
    for at, i in enumerate(dict.fromkeys(index)):
        route = answers.routes[i]
        stages = route.stages | {SHORT: float(again.evidence.ess[at])}
        found = jax.tree.map(lambda x, at=at: x[at], again.evidence)
        if not again.trusted[at] or _lost(answers.evidence, i, found):
            answers.routes[i] = route._replace(stages=stages)
            continue
        reason = "a short training on this data set alone, from the family's map"
        _put_resampled(answers, i, again, at, Route(SHORT, reason, stages))


def _put_resampled(
    answers: "_Answers", index: int, found: Posteriors, at: int, route: Route
) -> None:
    """Takes over as many draws as there are, resampled from more of them."""
    num = answers.log_weight.shape[1]
    chosen = resampled(found.rng_key, found.log_weight[at][None], num)[0]
    samples = {name: x[at][chosen] for name, x in found.samples.items()}
    evidence = jax.tree.map(lambda x: x[at], found.evidence)
    answers.put(index, samples, evidence.log_z, evidence, found.verdicts[at], route)


def _parts(index: list[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """Parts of one size, the last filled up by the last of all: compiled once; with numbers."""
    size = min(size, len(index))
    for begin in range(0, len(index), max(size, 1)):
        part = index[begin : begin + size]
        yield begin, part + part[-1:] * (size - len(part))


def _lost(before: dict[str, Any], index: int, found: Evidence) -> bool:
    """Whether draws before a training found mass that those after it do not."""
    error = math.hypot(before["log_z_stderr"][index], float(found.log_z_stderr))
    short = before["log_z"][index] - float(found.log_z)
    return not short <= _NUM_ERRORS * error + _MAX_SHORT


class _Answers:
    """Answers of many data sets while some are replaced."""

    def __init__(self, many: Posteriors) -> None:
        self.samples = {name: np.array(x) for name, x in many.samples.items()}
        self.log_weight, self.trusted = np.array(many.log_weight), np.array(many.trusted)
        self.verdicts, self.routes = list(many.verdicts), list(many.routes)
        self.evidence = _columns(many.evidence)
        self.bounds, self.counts = [many.evidence.bound], [many.evidence.num_samples]

    def put(
        self,
        index: int,
        samples: Samples,
        log_weight: Array,
        found: Evidence,
        verdict: Verdict,
        route: Route,
    ) -> None:
        """Replaces what a data set has."""
        for name, values in samples.items():
            _put(self.samples[name], index, np.asarray(values))
        columns = _columns(found)
        for name in self.evidence.keys() | columns.keys():
            unknown = np.full(len(self.trusted), np.nan)
            self.evidence.setdefault(name, unknown)[index] = columns.get(name, np.nan)
        self.bounds.append(found.bound)
        self.counts.append(found.num_samples)
        self.log_weight[index] = log_weight
        self.verdicts[index], self.routes[index] = verdict, route
        self.trusted[index] = verdict.level != "not to be used"

    def add_finding(self, index: int, words: str) -> None:
        """Adds to what is said of an answer."""
        self.verdicts[index] = self.verdicts[index].with_finding(words)

    def posteriors(self, many: Posteriors, tried: np.ndarray, failed: set[int]) -> Posteriors:
        """All of them."""
        # What is claimed of all is what the weakest can.
        evidence = dataclasses.replace(
            many.evidence,
            bound=max(self.bounds, key=BOUNDS.index),
            num_samples=min(self.counts),
            **self.evidence,
        )
        escalated = np.isin(np.arange(len(self.trusted)), [i for i in tried if i not in failed])
        return dataclasses.replace(
            many,
            samples=self.samples,
            log_weight=self.log_weight,
            evidence=evidence,
            verdicts=tuple(self.verdicts),
            routes=tuple(self.routes),
            trusted=self.trusted,
            escalated=escalated,
        )


def _columns(found: Evidence) -> dict[str, Any]:
    """What evidence holds that is known."""
    values = {f.name: getattr(found, f.name) for f in dataclasses.fields(Evidence)}
    fixed = ("bound", "num_samples")
    return {n: np.array(x) for n, x in values.items() if n not in fixed and x is not None}


def _put(into: np.ndarray, index: int, values: np.ndarray) -> None:
    """Draws of one data set among those of all, which may have more rows and draws."""
    repeated = values[np.arange(into.shape[1]) % len(values)]
    into[index] = np.nan if into.dtype.kind == "f" else 0
    there: Any = (index, *(slice(n) for n in repeated.shape))
    into[there] = repeated
