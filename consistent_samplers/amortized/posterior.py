"""Answers: weighted draws of one data set's posterior or of many, with what each is worth."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import corrections, diagnostics
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.diagnostics import Verdict
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.integrations.numpyro.sampler import OneStepSampler
from consistent_samplers.integrations.numpyro.table import table, wrapped
from consistent_samplers.pareto import pareto_smooth
from consistent_samplers.recipe import Route
from consistent_samplers.types import Array, Draws, PRNGKey

AMORTIZED = "amortized"
"""The route of an answer that the family gave without further training."""
_AT_ONCE = 16

REMEDIES = {
    "longer": "let it go on with more draws or a training of its own (escalate=True)",
    "more": "draw more samples (num_samples)",
    "prior": "give every coordinate a proper prior",
    "double": 'compute in double precision (jax.config.update("jax_enable_x64", True))',
}
"""What can be done about findings, by the names of `diagnostics.REMEDIES`."""


@dataclasses.dataclass(frozen=True)
class Posterior:
    """One data set's posterior; as `OneStepSampler` after ``run``.

    Attributes:
      rng_key: key of the resampled draws.
      samples: sites and deterministics by name, ``[draws, ...]``, weighted.
      log_weight: ``[draws]``, exact, in nats; all are log Z where draws were resampled from more.
      evidence: log Z and what the weights are worth.
      verdict: the same in words, with what is unlike the simulated data sets.
      route: ``"amortized"``, or how far a training of its own went.
      escalated: the sampler of that training, or None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from consistent_samplers.amortized import Posterior, judged
      >>> log_weight = jnp.zeros(200)
      >>> found, verdict = judged(log_weight)
      >>> one = Posterior(jax.random.key(0), {"a": jnp.ones(200)}, log_weight, found, verdict)
      >>> one.get_samples()["a"].shape, one.verdict.level
      ((200,), 'trusted')
    """

    rng_key: PRNGKey
    samples: Samples
    log_weight: Array
    evidence: Evidence
    verdict: Verdict
    route: Route | None = None
    escalated: OneStepSampler | None = None

    def get_samples(self, *, resampled: bool = True) -> Samples:
        """Sites by name, ``[draws, ...]``: equally weighted, by Pareto-smoothed weights.

        Args:
          resampled: False gives the draws as they are, which follow the map.
        """
        if self.escalated is not None:
            return self.escalated.get_samples(resampled=None if resampled else False)
        if not resampled:
            return dict(self.samples)
        smoothed, _ = pareto_smooth(jnp.asarray(self.log_weight))
        index = corrections.systematic_indices(self.rng_key, smoothed, len(smoothed))
        return {name: x[index] for name, x in self.samples.items()}

    def get_weighted_samples(self) -> tuple[Samples, Array]:
        """The draws of the map as they are, with their log weights ``[draws]``."""
        return dict(self.samples), self.log_weight

    def print_summary(self, prob: float = 0.9) -> None:
        """Prints a table of all sites, then what it is worth.

        Args:
          prob: mass of the highest-density interval.
        """
        if self.escalated is not None:
            self.escalated.print_summary(prob)
            return
        samples = {name: np.asarray(x) for name, x in self.get_samples().items()}
        effective = float(self.evidence.ess) * self.evidence.num_samples
        rows = table(samples, prob, {"n_eff": dict.fromkeys(samples, effective)}, shorten=True)
        lines = [str(self.evidence), f"route     {self.route}", "", f"verdict   {self.verdict}"]
        print(f"{rows}\n{wrapped(chr(10).join(lines))}")


@dataclasses.dataclass(frozen=True)
class Posteriors:
    """Posteriors of many data sets.

    Attributes:
      rng_key: key of the resampled draws.
      samples: sites and deterministics by name, ``[sets, draws, ...]``, weighted; NaN in rows that
        a data set does not have.
      log_weight: ``[sets, draws]``, exact, in nats; of an escalated data set all are its log Z, as
        its draws are corrected.
      evidence: each entry ``[sets]``, NaN where one does not have it; its bound is the weakest.
      verdicts: one a data set.
      routes: one a data set.
      trusted: ``[sets]`` bool, whether a verdict is ``"trusted"`` or ``"usable"``.
      escalated: ``[sets]`` bool, whether it had more draws, or a training of its own that came to
        an end.
      unlike: ``[sets]`` bool, whether it is unlike the simulated data sets.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.amortized.Posteriors.__name__
      'Posteriors'
    """

    rng_key: PRNGKey
    samples: dict[str, np.ndarray]
    log_weight: np.ndarray
    evidence: Evidence
    verdicts: tuple[Verdict, ...]
    routes: tuple[Route, ...]
    trusted: np.ndarray
    escalated: np.ndarray
    unlike: np.ndarray

    def __len__(self) -> int:
        """Number of data sets."""
        return len(self.log_weight)

    def __str__(self) -> str:
        """How many data sets are worth what."""
        ess = np.asarray(self.evidence.ess)
        low, middle, high = (100.0 * np.quantile(ess, (0.25, 0.5, 0.75))).round().astype(int)
        lines = [
            f"{len(self)} data sets: {int(self.trusted.sum())} can be used, "
            f"{int((~self.trusted).sum())} not",
            f"effective {low}/{middle}/{high} % of {self.log_weight.shape[1]} draws (quartiles)",
            f"escalated {int(self.escalated.sum())}",
            f"unlike the simulated data sets: {int(self.unlike.sum())}",
        ]
        return "\n".join(lines)

    def get_samples(self) -> dict[str, np.ndarray]:
        """Sites by name, ``[sets, draws, ...]``: equally weighted, by Pareto-smoothed weights."""
        index = resampled(self.rng_key, self.log_weight)
        rows = np.arange(len(index))[:, None]
        return {name: x[rows, index] for name, x in self.samples.items()}


def resampled(rng_key: PRNGKey, log_weight: Any, num_samples: int | None = None) -> np.ndarray:
    """Indices ``[sets, num_samples]`` of resampled draws of each set; as many as there are if None.

    Args:
      rng_key: key.
      log_weight: ``[sets, draws]``.
      num_samples: how many of each.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> log_weight = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
      >>> cs.amortized.resampled(jax.random.key(0), log_weight).tolist()
      [[0, 0, 0]]
    """
    keys = jax.random.split(rng_key, len(log_weight))
    log_weight = jnp.asarray(log_weight)
    found: np.ndarray = _indices(num_samples or log_weight.shape[1])(keys, log_weight)
    return found


@functools.lru_cache(maxsize=16)
def _indices(num_samples: int) -> Callable[..., Any]:
    def one(rng_key: PRNGKey, log_weight: Array) -> Array:
        smoothed, _ = pareto_smooth(log_weight)
        return corrections.systematic_indices(rng_key, smoothed, num_samples)

    return in_blocks(one, _AT_ONCE)


def judged_all(log_weight: Array | np.ndarray) -> tuple[Evidence, list[Verdict]]:
    """Evidence of each row of ``[sets, draws]``, its entries ``[sets]``, and the verdicts.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> found, verdicts = cs.amortized.judged_all(jnp.zeros((2, 200)))
      >>> found.log_z.shape, [verdict.level for verdict in verdicts]
      ((2,), ['trusted', 'trusted'])
    """
    found: Evidence = _evidences()(jnp.asarray(log_weight))
    sets = [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(log_weight))]
    return found, [_verdict(each) for each in sets]


@functools.cache
def _evidences() -> Callable[..., Any]:
    def one(log_weight: Array) -> Evidence:
        # A density that is no number counts as zero, and is counted.
        fine = log_weight < jnp.inf
        usable, told = jnp.where(fine, log_weight, -jnp.inf), jnp.where(fine, log_weight, jnp.nan)
        position = jnp.zeros((len(log_weight), 1))
        return evidence(Draws(position, usable, log_density=told, bound="lower"))

    return in_blocks(one, _AT_ONCE)


def judged(log_weight: Array) -> tuple[Evidence, Verdict]:
    """Evidence and verdict of log weights ``[draws]``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.amortized.judged(jnp.arange(200.0))[1].level
      'not to be used'
    """
    found, (verdict,) = judged_all(jnp.asarray(log_weight)[None])
    return jax.tree.map(lambda x: x[0], found), verdict


def _verdict(found: Evidence) -> Verdict:
    if not np.isfinite(found.log_z):
        words = "No draw has a density above zero: the data set is impossible under the model."
        return Verdict("not to be used", words)
    return diagnostics.verdict(found, remedies=REMEDIES)
