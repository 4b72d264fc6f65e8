"""Bayes factors with intervals, in words, and posterior probabilities of models, from log Z."""

import math
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from consistent_samplers.types import PRNGKey

CANNOT_TELL = "cannot tell"
"""What is said of two models where the interval of their log Bayes factor holds zero."""

BAYES_FACTOR_WORDS = {
    1.0: "not worth more than a bare mention",
    3.0: "positive",
    5.0: "strong",
    math.inf: "very strong",
}
"""What Kass and Raftery (1995, section 3.2) call a Bayes factor whose natural logarithm is at most
so large (they give twice it)."""

_QUANTILE = 1.959964  # of a 95 % interval
_NUM_DRAWS = 10_000


class BayesFactor(NamedTuple):
    """What two log Z say of two models.

    Attributes:
      log_factor: log Z of the first less that of the second, in nats; NaN where one is not known.
      low: lower end of its 95 % interval.
      high: upper end.
      words: how strong the evidence is for the better one (`BAYES_FACTOR_WORDS`), by the end of the
        interval that is nearer to zero; or `CANNOT_TELL`.
      why: why it cannot be told; empty otherwise.

    Example:
      >>> from consistent_samplers.bayes_factors import BayesFactor
      >>> print(BayesFactor(4.0, 3.5, 4.5, "strong"))
      strong (log Bayes factor 4.00, 95 %: 3.50 to 4.50)
    """

    log_factor: float
    low: float
    high: float
    words: str
    why: str = ""

    @property
    def stderr(self) -> float:
        """Standard error of the logarithm."""
        return (self.high - self.low) / (2.0 * _QUANTILE)

    def __str__(self) -> str:
        if math.isnan(self.log_factor):
            return f"{self.words}: {self.why}"
        places = decimals(self.stderr)
        numbers = [f"{number:.{places}f}" for number in self[:3]]
        told = f"log Bayes factor {numbers[0]}, 95 %: {numbers[1]} to {numbers[2]}"
        return f"{self.words} ({told}{': ' + self.why if self.why else ''})"


def bayes_factor(log_factor: float, stderr: float) -> BayesFactor:
    """A log Bayes factor with a normal error, in words that hold over its whole 95 % interval.

    Args:
      log_factor: difference of two log Z in nats.
      stderr: its standard error.

    Example:
      >>> from consistent_samplers.bayes_factors import bayes_factor
      >>> bayes_factor(5.2, 0.05).words, bayes_factor(5.2, 0.2).words, bayes_factor(5.2, 3.0).words
      ('very strong', 'strong', 'cannot tell')
    """
    low, high = log_factor - _QUANTILE * stderr, log_factor + _QUANTILE * stderr
    if not math.isfinite(high - low):
        return BayesFactor(log_factor, low, high, CANNOT_TELL, "it is not finite")
    nearest = max(low, -high)
    if nearest <= 0.0:
        return BayesFactor(log_factor, low, high, CANNOT_TELL, "the interval holds zero")
    words = next(words for limit, words in BAYES_FACTOR_WORDS.items() if nearest <= limit)
    return BayesFactor(log_factor, low, high, words)


class Probability(NamedTuple):
    """The posterior probability of a model among those compared.

    Attributes:
      value: at the estimates of log Z; NaN where it cannot be told.
      low: lower end of its 95 % interval.
      high: upper end.

    Example:
      >>> from consistent_samplers.bayes_factors import Probability
      >>> print(Probability(0.9004, 0.85, 0.93))
      0.900 (0.850 to 0.930)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "?"
        value, low, high = (
            "<0.001" if number < 0.0005 else ">0.999" if number > 0.9995 else f"{number:.3f}"
            for number in self
        )
        return f"{value} ({low} to {high})"


def model_probabilities(
    rng_key: PRNGKey, log_z: ArrayLike, stderr: ArrayLike, prior: ArrayLike
) -> list[Probability]:
    """Posterior probabilities of models, p_i Z_i / Σ p_j Z_j, with 95 % intervals.

    The intervals are quantiles over 10,000 draws of all log Z from their normal errors.

    Args:
      rng_key: key.
      log_z: ``[n]``, in nats.
      stderr: ``[n]``, their standard errors, independent of each other.
      prior: ``[n]``, prior probabilities.

    Example:
      >>> import jax
      >>> from consistent_samplers.bayes_factors import model_probabilities
      >>> a, b = model_probabilities(jax.random.key(0), [-1.0, -2.0], [0.1, 0.1], [0.5, 0.5])
      >>> round(a.value, 3), 0.65 < a.low < 0.70 < 0.75 < a.high < 0.79
      (0.731, True)
    """
    centre, error = np.asarray(log_z, np.float64), np.asarray(stderr, np.float64)
    noise = np.asarray(jax.random.normal(rng_key, (_NUM_DRAWS, len(centre))), np.float64)
    drawn = np.vstack([centre, centre + error * noise])
    with np.errstate(divide="ignore"):
        drawn += np.log(np.asarray(prior, np.float64))
    shares = np.exp(drawn - drawn.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    ends = np.quantile(shares[1:], [0.025, 0.975], axis=0)
    return [Probability(*map(float, row)) for row in zip(shares[0], *ends, strict=True)]


def decimals(stderr: float) -> int:
    """Decimals that show two digits of an error: two to four.

    Example:
      >>> from consistent_samplers.bayes_factors import decimals
      >>> decimals(3.1), decimals(0.031), decimals(0.0)
      (2, 3, 4)
    """
    if not 0.0 < stderr < math.inf:
        return 4
    return min(4, max(2, 1 - math.floor(math.log10(stderr))))
