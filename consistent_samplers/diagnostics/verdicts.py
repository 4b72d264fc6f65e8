"""What an ``Evidence`` is worth, in one of three levels and in words."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from consistent_samplers.diagnostics.exploring import ExplorationCheck, informed
from consistent_samplers.estimate import Evidence

MIN_EFFECTIVE = 100
"""Effective samples below which the estimates are called noisy."""

MAX_ROUND_TRIP_ERROR = 0.1
"""Round-trip error, in base standard deviations, above which a map is called not invertible."""

FINITE_VARIANCE_K = 0.5
"""Pareto k above which the weights have no variance, and a standard error is an underestimate."""

EVEN_ESS = 0.99
"""Share of effective samples from which on weights are reliable, whatever their Pareto k."""

NEARLY_EXACT_ESS = 0.999
"""The same for the standard error of log Z: the tail of such weights is close to rounding."""

SMALL_UNSEEN = 0.002
"""Part of Z that the weights' tail may hide (`Evidence.unseen`) up to which they are reliable
whatever their Pareto k."""

MODEST_UNSEEN = 0.01
"""The same where at least `MODEST_ESS` of the samples are effective: a k so large comes from large
weights that were seen."""

MODEST_ESS = 0.25
"""Share of effective samples from which on `MODEST_UNSEEN` will do."""

MAX_UNSEEN = 0.02
"""The same beyond which no interval is widened enough for it."""

FINE_RESOLUTION = 0.05
"""Nats of floating-point resolution of log Z above which its interval is wider for it."""

MAX_RESOLUTION = 0.25
"""The same above which weights cannot be told apart."""

LEAST_ESS = 0.125
"""Share of effective samples below which the largest weights may be yet to be seen; with a heavy
tail (`FINITE_VARIANCE_K`) log Z then comes out low by several of its standard errors."""

MAX_OUTSIDE = 0.01
"""Share of samples outside the support above which it is worth a line."""

Level: TypeAlias = Literal["trusted", "usable", "not to be used"]
"""How far numbers can be relied on: as they are, with wider intervals, or not."""

LEVELS: tuple[Level, ...] = get_args(Level)
"""All values of `Level`, the best first."""

REMEDIES = {
    "longer": 'train with effort="full"',
    "more": "draw more samples (num_samples)",
    "other": "train again with another rng_key",
    "prior": "give every coordinate a proper prior",
    "double": 'compute in double precision (jax.config.update("jax_enable_x64", True))',
    "map": 'sample with method="map"',
    "injective": 'train with network="structured", whose map cannot fold',
}
"""What can be done about findings; a sampler that knows better gives its own (see `verdict`)."""


# What the remedies begin with, behind the findings.
_TO_IMPROVE = "\nTo improve"


class Verdict(NamedTuple):
    """What numbers are worth.

    Attributes:
      level: ``"trusted"``; ``"usable"``, with intervals that are wider for it; or ``"not to be
        used"``.
      words: the findings, a line each, and what to do about them.

    Example:
      >>> import consistent_samplers as cs
      >>> print(cs.diagnostics.Verdict("trusted", "All is well."))
      trusted: All is well.
    """

    level: Level
    words: str

    def __str__(self) -> str:
        return f"{self.level}: {self.words}"

    @property
    def findings(self) -> str:
        """The words without what to do about them."""
        return self.words.partition(_TO_IMPROVE)[0]

    def with_finding(self, line: str, *, first: bool = False) -> "Verdict":
        """The verdict with one more line, as the first or the last of its findings."""
        found, *remedies = self.words.partition(_TO_IMPROVE)
        lines = [line, found] if first else [found, line]
        return self._replace(words="".join(["\n".join(lines), *remedies]))


def pareto_k_threshold(num_samples: int) -> float:
    """Largest Pareto k to trust of n weights: min(1 - 1 / log10 n, 0.7) (Vehtari et al. 2024).

    Example:
      >>> import consistent_samplers as cs
      >>> [round(cs.diagnostics.pareto_k_threshold(n), 2) for n in (100, 1_000, 10_000)]
      [0.5, 0.67, 0.7]
    """
    return min(1.0 - 1.0 / math.log10(max(num_samples, 11)), 0.7)


def tail_is_light(evidence: Evidence) -> bool:
    """Whether a few large weights do not decide log Z.

    Pareto k is at most `pareto_k_threshold`, the tail hides next to nothing (`SMALL_UNSEEN`), or at
    least `EVEN_ESS` of the samples are effective.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower")
      >>> cs.diagnostics.tail_is_light(cs.evidence(draws))
      True
    """
    k, unseen = float(evidence.pareto_k), _unseen(evidence)
    if not unseen <= MAX_UNSEEN or not math.isfinite(k):
        return False
    light = k <= pareto_k_threshold(evidence.num_samples)
    small = evidence.unseen is not None and unseen <= SMALL_UNSEEN
    return light or small or float(evidence.ess) >= EVEN_ESS


def weights_are_reliable(evidence: Evidence) -> bool:
    """Whether the importance weights support a correction of the draws.

    They do if their tail hides at most `MAX_UNSEEN` of Z, and is light (`tail_is_light`) or hides
    at most `MODEST_UNSEEN` where at least `MODEST_ESS` of the samples are effective.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower")
      >>> cs.diagnostics.weights_are_reliable(cs.evidence(draws))
      True
    """
    if tail_is_light(evidence):
        return True
    if evidence.unseen is None or not math.isfinite(float(evidence.pareto_k)):
        return False
    return _unseen(evidence) <= MODEST_UNSEEN and float(evidence.ess) >= MODEST_ESS


def standard_error_is_reliable(evidence: Evidence) -> bool:
    """Whether log Z can be taken with its standard error, as it is.

    It can if the weights have a variance, that is, Pareto k is at most `FINITE_VARIANCE_K` (and
    `pareto_k_threshold`); if what their tail hides is well below the sampling error; or if at least
    `NEARLY_EXACT_ESS` of the samples are effective.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.arange(100.0), bound="lower")
      >>> cs.diagnostics.standard_error_is_reliable(cs.evidence(draws))
      False
    """
    if not weights_are_reliable(evidence):
        return False
    k, stderr = float(evidence.pareto_k), float(evidence.log_z_stderr)
    light = k <= min(FINITE_VARIANCE_K, pareto_k_threshold(evidence.num_samples))
    # Of the squared standard error a fifth, half the sampling error.
    small = evidence.unseen is not None and (2.0 * _unseen(evidence)) ** 2 <= 0.2 * stderr**2
    return light or small or float(evidence.ess) >= NEARLY_EXACT_ESS


def _unseen(evidence: Evidence) -> float:
    return 0.0 if evidence.unseen is None else float(evidence.unseen)


def resolution(evidence: Evidence) -> float:
    """Distance in nats between floating-point numbers of the size of log Z.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.full(100, 1e7), bound="lower")
      >>> round(cs.diagnostics.resolution(cs.evidence(draws)), 1)  # in single precision
      1.2
    """
    log_z = np.asarray(evidence.log_z)
    return float(np.finfo(log_z.dtype).eps * abs(log_z))


def is_trustworthy(evidence: Evidence, exploration: ExplorationCheck | None = None) -> bool:
    """Whether the numbers can be relied on: `verdict` is ``"trusted"`` or ``"usable"``.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="heuristic")
      >>> cs.diagnostics.is_trustworthy(cs.evidence(draws))
      False
    """
    return verdict(evidence, exploration).level != "not to be used"


def verdict(
    evidence: Evidence,
    exploration: ExplorationCheck | None = None,
    *,
    remedies: Mapping[str, str] = REMEDIES,
) -> Verdict:
    """What the numbers are worth and what to try: a level, the findings, and the remedies.

    ``"trusted"``: the weights have a variance (`standard_error_is_reliable`), at least
    `MIN_EFFECTIVE` samples and `LEAST_ESS` of them all are effective, the map does not fold and is
    inverted within `MAX_ROUND_TRIP_ERROR`, numbers of the size of log Z are resolved to
    `FINE_RESOLUTION`, the weights are no heuristic, and an exploration, if there was one, found
    nothing missing.
    ``"usable"``: the same, with a tail that is heavy but can be corrected for
    (`weights_are_reliable`), one that is light with fewer effective samples, or numbers resolved to
    `MAX_RESOLUTION`; the standard error of log Z takes in what the tail and the steps hide.

    Args:
      evidence: concrete (not traced) evidence.
      exploration: what `exploration_check` found, or None where nobody looked.
      remedies: what to do about findings, by the names of `REMEDIES`; those left out are not
        recommended.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.arange(100.0), bound="lower")
      >>> print(cs.diagnostics.verdict(cs.evidence(draws)))  # doctest: +ELLIPSIS
      not to be used: A few large weights decide log Z (Pareto k ...
    """
    evidence = informed(evidence, exploration)
    bad, cautions, wanted = _findings(evidence)
    if exploration is not None and not exploration.passed:
        bad.insert(0, str(exploration))
        wanted.insert(0, "prior" if exploration.num_open else "other")
    level: Level = "not to be used" if bad else "usable" if cautions else "trusted"
    lines = [*bad, *cautions]
    if not bad:
        share = f"{100 * float(evidence.ess):.0f} % of {evidence.num_samples} samples effective"
        sure = "can be used" if cautions else "can be trusted"
        lines.insert(0, f"log Z and its standard error {sure} ({share}).")
        lines.append(
            "Weights do not show modes that no sample reaches: compare with fresh optimiser starts."
            if exploration is None
            else str(exploration)
        )
    if (outside := float(evidence.outside or 0.0)) > MAX_OUTSIDE:
        lines.append(f"{100 * outside:.0f} % of the samples lie outside of the support.")
    known = [remedies[name] for name in dict.fromkeys(wanted) if name in remedies]
    to_improve = f"{_TO_IMPROVE}: {'; or '.join(known)}." if known else ""
    return Verdict(level, "\n".join(lines) + to_improve)


def _findings(evidence: Evidence) -> tuple[list[str], list[str], list[str]]:
    """What makes the numbers useless, what makes them less sure, and names of remedies."""
    n, k, ess = evidence.num_samples, float(evidence.pareto_k), float(evidence.ess)
    folded = float(evidence.folded or 0.0)
    error = float(evidence.round_trip_error or 0.0)
    bad: list[str] = []
    cautions: list[str] = []
    wanted: list[str] = []
    if (step := resolution(evidence)) > FINE_RESOLUTION:
        too_coarse = step > MAX_RESOLUTION
        so = "too coarse to tell weights apart" if too_coarse else "which its interval takes in"
        (bad if too_coarse else cautions).append(
            f"log Z of {float(evidence.log_z):.3g} nats is computed in steps of {step:.2g} nats, "
            f"{so}; leave constants out of the log density."
        )
        wanted.append("double")
    if evidence.bound == "heuristic":
        bad.append("These weights are heuristic, so neither figure bounds log Z.")
        wanted.append("map")
    if folded > 0:
        bad.append(
            f"The map folds at {100 * folded:.2g} % of the samples: figures may exceed log Z."
        )
    elif error > MAX_ROUND_TRIP_ERROR:
        bad.append(
            f"The map is not inverted (round-trip error {error:.2g} base standard deviations): it "
            "may fold, and figures may exceed log Z."
        )
    if folded > 0 or error > MAX_ROUND_TRIP_ERROR:
        wanted += ["longer", "injective"]
    if math.isnan(k):
        bad.append("The weights are not numbers: check the target's log_density.")
    elif math.isinf(k):
        bad.append(f"{n} samples show too little of the weights' tail to judge it.")
        wanted.append("more")
    elif not weights_are_reliable(evidence):
        limit, hidden = pareto_k_threshold(n), 100.0 * _unseen(evidence)
        above = f", above {limit:.2f} for {n} samples" if k > limit else ""
        bad.append(
            f"A few large weights decide log Z (Pareto k {k:.2f}{above}; their tail may hide "
            f"{hidden:.2g} % of Z): it is probably too low."
        )
        wanted.append("longer")
    elif not standard_error_is_reliable(evidence):
        cautions.append(
            f"The weights' tail is heavy (Pareto k {k:.2f}, above {FINITE_VARIANCE_K}): intervals "
            f"are wider for the {100.0 * _unseen(evidence):.2g} % of Z that it may hide."
        )
        wanted.append("longer")
    if not math.isnan(k) and ess * n < MIN_EFFECTIVE:
        bad.append(f"Only about {max(ess * n, 1.0):.0f} of {n} samples are effective.")
        # With a heavy tail more samples hardly help.
        wanted.append("more" if math.isinf(k) or weights_are_reliable(evidence) else "longer")
    elif ess < LEAST_ESS:
        (cautions if k <= FINITE_VARIANCE_K else bad).append(
            f"Only {100 * ess:.2g} % of the samples are effective: of such weights the largest are "
            "often yet to be seen."
        )
        wanted.append("longer")
    if undefined := 100.0 * float(evidence.undefined or 0.0):
        cautions.append(
            f"The log density is NaN at {undefined:.2g} % of the samples, which count as outside "
            "of its support: log Z leaves out what mass may lie there."
        )
    return bad, cautions, wanted
