"""Models side by side: Bayes factors with intervals, or that none can be told, and prediction."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consistent_samplers.bases.iterating import folded
from consistent_samplers.bayes_factors import (
    CANNOT_TELL,
    BayesFactor,
    Probability,
    bayes_factor,
    decimals,
    model_probabilities,
)
from consistent_samplers.bracket import Bracket
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.diagnostics import LEVELS
from consistent_samplers.prediction import Prediction, predict
from consistent_samplers.recipe import TrainedSampler
from consistent_samplers.same_data import in_one_order
from consistent_samplers.types import PRNGKey

_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several models of the same data, the best first; ``str`` gives a table and sentences.

    Those whose evidence is not to be used come last: their log Z is not known.

    Attributes:
      brackets: log Z of each, the best first.
      probability: posterior probability of each; of those whose evidence is not to be used NaN, and
        of the others among themselves.
      prior: prior probability of each.
      prediction: leave-one-out predictive density of those for which it can be told.
      note: what else to know, a line each.

    Example:
      >>> import jax
      >>> from consistent_samplers.bracket import Bracket
      >>> from consistent_samplers.comparison import compare_brackets
      >>> a = Bracket(-1.1, 0.01, -0.9, 0.01, -1.0, 0.01, "bridge", 4_000)
      >>> b = Bracket(-3.1, 0.01, -2.9, 0.01, -3.0, 0.01, "bridge", 4_000)
      >>> found = compare_brackets(jax.random.key(0), {"b": b, "a": a})
      >>> found.best, found.factor("a", "b").words
      ('a', 'positive')
    """

    brackets: dict[str, Bracket]
    probability: dict[str, Probability]
    prior: dict[str, float]
    prediction: dict[str, Prediction] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def best(self) -> str | None:
        """Name of the model with the largest log Z that is to be used; None where none is."""
        first = next(iter(self.brackets))
        return first if self.is_usable(first) else None

    def is_usable(self, name: str) -> bool:
        """Whether the evidence of a model is to be used."""
        return _is_usable(self.brackets[name])

    def factor(self, first: str, second: str) -> BayesFactor:
        """The Bayes factor of two models, the first over the second.

        Args:
          first: name of a model.
          second: name of another.

        Raises:
          ValueError: no model has such a name.
        """
        for name in (first, second):
            if name not in self.brackets:
                raise ValueError(f"No model is called {name!r}: {', '.join(self.brackets)}.")
        bad = [name for name in (first, second) if not self.is_usable(name)]
        if bad:
            why = f"the evidence of {' and '.join(bad)} is not to be used"
            return BayesFactor(math.nan, math.nan, math.nan, CANNOT_TELL, why)
        a, b = self.brackets[first], self.brackets[second]
        return bayes_factor(a.log_z - b.log_z, math.hypot(a.stderr, b.stderr))

    def __str__(self) -> str:
        names, told = list(self.brackets), bool(self.prediction)
        columns: list[Sequence[str]] = [
            ("log_z ± se", *(_estimate(b.log_z, b.stderr) for b in self.brackets.values())),
            ("log_z_diff, 95 %", "0", *(self._difference(name) for name in names[1:])),
            ("probability, 95 %", *(str(self.probability[name]) for name in names)),
        ]
        if told:
            columns += zip(*[("elpd_loo", "elpd_diff"), *map(self._predicted, names)], strict=True)
        widths = [max(map(len, column)) for column in columns]
        # A name gives way where the numbers are long, but for a few characters.
        room = max(8, _WIDTH - sum(widths) - 2 * len(widths))
        shown = ["", *(_cut(name, room) for name in names)]
        first = max(map(len, shown))
        lines = [
            "  ".join([f"{name:<{first}}", *map(str.rjust, cells, widths)])
            for name, *cells in zip(shown, *columns, strict=True)
        ]
        said = [f"{names[0]} over {n}: {self.factor(names[0], n)}." for n in names[1:]]
        levels = [(name, self.brackets[name].level) for name in names]
        said.append("Evidence: " + ", ".join(f"{n} {level or 'not judged'}" for n, level in levels))
        said[-1] += ". Words of Kass and Raftery (1995), by the near end of the interval."
        if len(set(self.prior.values())) > 1:
            given = ", ".join(f"{name} {self.prior[name]:.3g}" for name in names)
            said.append(f"Prior probabilities: {given}.")
        said += self.note.splitlines()
        wrapped = (textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in said)
        return "\n".join([*lines, "", *wrapped])

    def _difference(self, name: str) -> str:
        found = self.factor(name, next(iter(self.brackets)))
        if math.isnan(found.log_factor):
            return "?"
        places = decimals(found.stderr)
        return f"{found.low:.{places}f} to {found.high:.{places}f}"

    def _predicted(self, name: str) -> tuple[str, str]:
        first = next(iter(self.brackets))
        own, other = self.prediction.get(name), self.prediction.get(first)
        if own is None:
            return "?", "?"
        if name == first:
            return f"{own.elpd:.1f}", "0"
        ahead = None if other is None else own.ahead_of(other)
        return f"{own.elpd:.1f}", "?" if ahead is None else f"{ahead[0]:.1f} ± {ahead[1]:.1f}"


def compare(
    rng_key: PRNGKey,
    models: Mapping[str, Any],
    *,
    prior: Mapping[str, float] | None = None,
    num_samples: int = 10_000,
    loo: bool = True,
) -> Comparison:
    """Which of several models the data speak for: Bayes factors with intervals, or "cannot tell".

    log Z of each is that of `recipe.TrainedSampler.bracket`, with a key of its own. Of models whose
    evidence is not to be used nothing is told. Of NumPyro models, if ArviZ is installed, the
    expected log predictive density by leave-one-out (`prediction.predict`) of the draws of the last
    run stands beside the evidence: the two answer different questions.

    Args:
      rng_key: key.
      models: by name, `TrainedSampler` objects, or
        `integrations.numpyro.OneStepSampler` objects after their `run`.
      prior: prior probabilities by name, which sum to one; equal if None.
      num_samples: draws of each sampler, four at least.
      loo: whether to look at prediction.

    Raises:
      TypeError: ``models`` is no mapping, or holds something else, or a name is no string.
      ValueError: fewer than two models, one that was not run, different observed data, a scaled
        density, an improper prior or a density without a finite integral, or a prior that is none.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> def trained(log_z):  # of a normal density, by its own base
      ...     target = cs.Target(lambda x: log_z + jax.scipy.stats.norm.logpdf(x).sum(), 1)
      ...     base = cs.Sampler.of_base(cs.bases.standard_normal(1))
      ...     return cs.TrainedSampler(target, base, base)
      >>> found = cs.compare(jax.random.key(0), {"a": trained(-7.0), "b": trained(-9.0)})
      >>> print(found.factor("a", "b"))
      positive (log Bayes factor 2.0000, 95 %: 2.0000 to 2.0000)
    """
    check_key(rng_key)
    check_integer("num_samples", num_samples, 4)
    if not isinstance(models, Mapping):
        raise TypeError(
            'models must be a mapping, {"a": sampler, "b": sampler}, got '
            f"{type(models).__name__}."
        )
    if len(models) < 2:
        raise ValueError(f"compare takes two models or more, got {len(models)}.")
    weights = _checked_prior(list(models), prior)
    observed = {name: _observed(name, entry) for name, entry in models.items()}
    known = {name: values for name, values in observed.items() if values}
    untold = {n for n, entry in models.items() if n not in known or entry.factors}
    sites = in_one_order(known) if known else {}
    brackets = {}
    for i, (name, entry) in enumerate(models.items()):
        brackets[name] = entry.bracket(folded(rng_key, i), num_samples)
        if not math.isfinite(brackets[name].log_z):
            raise ValueError(f"Model {name!r} has a log Z of {brackets[name].log_z}: no evidence.")
    found = compare_brackets(folded(rng_key, len(models)), brackets, prior=weights)
    notes = [found.note] if found.note else []
    if untold:
        notes.append(
            "Whether the data are the same is yours to know of "
            f"{', '.join(name for name in found.brackets if name in untold)}: a density, or a "
            "numpyro.factor, does not tell its data."
        )
    prediction: dict[str, Prediction] = {}
    if loo:
        prediction, left_out = predict({name: models[name] for name in found.brackets}, sites)
        notes += left_out
    return dataclasses.replace(found, prediction=prediction, note="\n".join(notes))


def compare_brackets(
    rng_key: PRNGKey, brackets: Mapping[str, Bracket], *, prior: Mapping[str, float] | None = None
) -> Comparison:
    """What brackets of log Z, found independently of each other, say of their models.

    Args:
      rng_key: key of the probabilities' intervals.
      brackets: by name.
      prior: prior probabilities by name, which sum to one; equal if None.

    Raises:
      TypeError: a name is no string.
      ValueError: fewer than two brackets, or a prior that is none.

    Example:
      >>> import jax
      >>> from consistent_samplers.bracket import Bracket
      >>> from consistent_samplers.comparison import compare_brackets
      >>> a = Bracket(-1.1, 0.01, -0.9, 0.01, -1.0, 0.01, "bridge", 4_000)
      >>> found = compare_brackets(jax.random.key(0), {"a": a, "b": a._replace(log_z=-1.01)})
      >>> found.factor("a", "b").words
      'cannot tell'
    """
    check_key(rng_key)
    if len(brackets) < 2:
        raise ValueError(f"compare takes two models or more, got {len(brackets)}.")
    weights = _checked_prior(list(brackets), prior)
    usable = [name for name, b in brackets.items() if _is_usable(b)]
    usable.sort(key=lambda name: -brackets[name].log_z)
    others = [name for name in brackets if name not in usable]
    probability = dict.fromkeys(brackets, Probability(math.nan, math.nan, math.nan))
    total = sum(weights[name] for name in usable)
    if len(usable) > 1 and total > 0.0:
        log_z, stderr = ([getattr(brackets[n], p) for n in usable] for p in ("log_z", "stderr"))
        shares = model_probabilities(rng_key, log_z, stderr, [weights[n] / total for n in usable])
        probability |= dict(zip(usable, shares, strict=True))
    notes = []
    if others and len(usable) > 1:
        notes.append(f"Probabilities are those of {', '.join(usable)} among themselves.")
    for name in [*usable, *others]:
        bracket = brackets[name]
        if bracket.upper is None and name in usable:
            notes.append(
                f"{name} has no bound above: of its log Z the lower side is the surer one."
            )
        notes += [f"{name}: {line}" for line in bracket.note.splitlines()]
    order = {name: brackets[name] for name in [*usable, *others]}
    return Comparison(order, probability, weights, note="\n".join(notes))


def _is_usable(bracket: Bracket) -> bool:
    finite = math.isfinite(bracket.log_z) and math.isfinite(bracket.stderr)
    return finite and bracket.level != LEVELS[-1]


def _checked_prior(names: Sequence[str], prior: Mapping[str, float] | None) -> dict[str, float]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Names of models must be strings, got {name!r}: take {str(name)!r}.")
    if prior is None:
        return dict.fromkeys(names, 1.0 / len(names))
    if set(prior) != set(names):
        raise ValueError(
            f"prior must have a probability for each of {', '.join(map(str, names))}, got "
            f"{', '.join(map(str, prior))}."
        )
    values = [float(prior[name]) for name in names]
    if not all(value >= 0.0 for value in values) or abs(sum(values) - 1.0) > 1e-6:
        raise ValueError(f"prior must be probabilities that sum to one, got {dict(prior)}.")
    return dict(zip(names, values, strict=True))


def _observed(name: str, entry: Any) -> dict[str, np.ndarray] | None:
    """Observed values of a NumPyro model; None of a density. Checks that there is evidence."""
    if isinstance(entry, TrainedSampler):
        trained, observed = entry, None
    elif hasattr(type(entry), "observed") and hasattr(type(entry), "improper"):
        try:
            observed, improper = entry.observed, entry.improper
        except RuntimeError as error:
            raise ValueError(
                f"Model {name!r} was not run: call its run(rng_key, ...) before compare."
            ) from error
        if improper:
            raise ValueError(
                f"Model {name!r} has an improper prior at {', '.join(improper)}, so that its "
                "evidence is defined up to any factor: give it a proper prior."
            )
        if scaled := entry.scaled:
            raise ValueError(
                f"Model {name!r} has a scaled density at {', '.join(scaled)}, so that its log Z is "
                "no evidence of the data: leave out numpyro.handlers.scale."
            )
        trained = entry.trained
    else:
        raise TypeError(
            f"Model {name!r} must be a TrainedSampler, or a OneStepSampler of NumPyro, got "
            f"{type(entry).__name__}."
        )
    if trained.exploration is not None and trained.exploration.num_open:
        raise ValueError(
            f"Model {name!r} has no evidence as far as can be seen: {trained.exploration}. Give "
            "every coordinate a proper prior."
        )
    return observed


def _estimate(value: float, stderr: float) -> str:
    places = decimals(stderr)
    return f"{value:.{places}f} ± {stderr:.{places}f}"


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
