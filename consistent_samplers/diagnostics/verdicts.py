"""A plain-language verdict on an ``Evidence``."""

import math

from consistent_samplers.diagnostics.exploration import ExplorationCheck
from consistent_samplers.estimate import Evidence

MIN_EFFECTIVE = 100
"""Effective samples below which the estimates are called noisy."""

MAX_ROUND_TRIP_ERROR = 0.1
"""Round-trip error, in base standard deviations, above which a map is called not invertible."""

FINITE_VARIANCE_K = 0.5
"""Pareto k above which the weights have no variance, and a standard error is an underestimate."""

EVEN_ESS = 0.99
"""Share of effective samples from which on the weights are so even that a correction by them hardly
changes anything, whatever their Pareto k."""

NEARLY_EXACT_ESS = 0.999
"""The same for the standard error of log Z, since their tail is close to rounding."""


def pareto_k_threshold(num_samples: int) -> float:
    """Largest Pareto k that can be trusted: min(1 - 1 / log10 n, 0.7) (Vehtari et al. 2024).

    Args:
      num_samples: number of weights that k was fitted to.

    Example:
      >>> import consistent_samplers as cs
      >>> [round(cs.diagnostics.pareto_k_threshold(n), 2) for n in (100, 1_000, 10_000)]
      [0.5, 0.67, 0.7]
    """
    return min(1.0 - 1.0 / math.log10(max(num_samples, 11)), 0.7)


def weights_are_reliable(evidence: Evidence) -> bool:
    """Whether the importance weights support a correction of the draws and a standard error.

    They do if Pareto k is at most `pareto_k_threshold`, or at least `EVEN_ESS` of the samples are
    effective.

    Args:
      evidence: concrete (not traced) evidence.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_weight = 0.1 * jax.random.normal(jax.random.key(0), (1_000,))
      >>> evidence = cs.evidence(cs.Draws(jnp.zeros((1_000, 1)), log_weight, bound="lower"))
      >>> cs.diagnostics.weights_are_reliable(evidence)
      True
    """
    threshold = pareto_k_threshold(evidence.num_samples)
    return float(evidence.pareto_k) <= threshold or float(evidence.ess) >= EVEN_ESS


def standard_error_is_reliable(evidence: Evidence) -> bool:
    """Whether log Z can be taken with its standard error.

    It can if Pareto k is at most `FINITE_VARIANCE_K` (and `pareto_k_threshold`), or at least
    `NEARLY_EXACT_ESS` of the samples are effective. Above that k the mean of the weights still
    converges, but slowly and from below, and their variance is infinite.

    Args:
      evidence: concrete (not traced) evidence.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_weight = 5.0 * jax.random.normal(jax.random.key(0), (1_000,))
      >>> evidence = cs.evidence(cs.Draws(jnp.zeros((1_000, 1)), log_weight, bound="lower"))
      >>> cs.diagnostics.standard_error_is_reliable(evidence)
      False
    """
    threshold = min(FINITE_VARIANCE_K, pareto_k_threshold(evidence.num_samples))
    return float(evidence.pareto_k) <= threshold or float(evidence.ess) >= NEARLY_EXACT_ESS


def is_trustworthy(evidence: Evidence, exploration: ExplorationCheck | None = None) -> bool:
    """Whether every diagnostic passes: then log Z and its standard error can be taken as they are.

    The weights are no heuristic and have a variance (`standard_error_is_reliable`), at least
    `MIN_EFFECTIVE` samples are effective, the map does not fold and is inverted within
    `MAX_ROUND_TRIP_ERROR`, and a look for modes from outside, if one was taken, found nothing
    missing.

    Args:
      evidence: concrete (not traced) evidence.
      exploration: what `exploration_check` found, or None.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_weight = 0.1 * jax.random.normal(jax.random.key(0), (1_000,))
      >>> draws = cs.Draws(jnp.zeros((1_000, 1)), log_weight, bound="lower")
      >>> cs.diagnostics.is_trustworthy(cs.evidence(draws))
      True
      >>> cs.diagnostics.is_trustworthy(cs.evidence(draws.replace(bound="heuristic")))
      False
    """
    folded = 0.0 if evidence.folded is None else float(evidence.folded)
    error = 0.0 if evidence.round_trip_error is None else float(evidence.round_trip_error)
    return (
        evidence.bound != "heuristic"
        and standard_error_is_reliable(evidence)
        and float(evidence.ess) * evidence.num_samples >= MIN_EFFECTIVE
        and folded == 0.0
        and not error > MAX_ROUND_TRIP_ERROR
        and (exploration is None or exploration.passed)
    )


def verdict(evidence: Evidence, exploration: ExplorationCheck | None = None) -> str:
    """What the numbers are worth and what to try, in a few plain sentences.

    Args:
      evidence: concrete (not traced) evidence.
      exploration: what `exploration_check` found, or None where nobody looked.

    Returns:
      One paragraph: the findings, then the remedies.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> log_weight = 5.0 * jax.random.normal(jax.random.key(0), (1_000,))
      >>> evidence = cs.evidence(cs.Draws(jnp.zeros((1_000, 1)), log_weight, bound="lower"))
      >>> print(cs.diagnostics.verdict(evidence))  # doctest: +ELLIPSIS
      A few large weights decide log Z (Pareto k ...
    """
    said = _verdict_on_weights(evidence, looked=exploration is not None)
    if exploration is None:
        return said
    return f"{exploration} {said}" if not exploration.passed else f"{said} {exploration}"


def _verdict_on_weights(evidence: Evidence, looked: bool) -> str:
    n = evidence.num_samples
    k, ess = float(evidence.pareto_k), float(evidence.ess)
    k_threshold = pareto_k_threshold(n)
    findings: list[str] = []
    remedies: list[str] = []

    if evidence.bound == "heuristic":
        findings.append("these weights are heuristic, so neither figure bounds log Z")
        remedies.append('sample with method="map" or "path"')
    folded = 0.0 if evidence.folded is None else float(evidence.folded)
    error = 0.0 if evidence.round_trip_error is None else float(evidence.round_trip_error)
    if folded > 0:
        findings.append(
            f"the map folds at {100 * folded:.2g} % of the samples, so the figures may exceed log Z"
        )
    elif error > MAX_ROUND_TRIP_ERROR:
        findings.append(
            f"the map is not inverted (round-trip error {error:.2g} base standard deviations), "
            "so it may fold and the figures may exceed log Z"
        )
    if folded > 0 or error > MAX_ROUND_TRIP_ERROR:
        remedies.append('take more, smaller steps or sample with method="path"')
    if math.isnan(k):
        findings.append("the weights are not numbers, so nothing can be said")
        remedies.append("check the target's log_density")
    elif math.isinf(k):
        findings.append(
            f"{n} samples show too little of the weights' tail to judge the standard errors"
        )
        remedies.append("draw at least a few hundred samples")
    elif not weights_are_reliable(evidence):
        findings.append(
            f"a few large weights decide log Z (Pareto k {k:.2f}, above {k_threshold:.2f} for "
            f"{n} samples), so it is probably too low and its standard error too small"
        )
        remedies.append("train longer, take more steps or fit a richer base")
    if not math.isnan(k) and ess * n < MIN_EFFECTIVE:
        findings.append(f"only about {max(ess * n, 1.0):.0f} of {n} samples are effective")
        # With a heavy tail more samples hardly help; its own remedy is already listed.
        if math.isinf(k) or weights_are_reliable(evidence):
            remedies.append("draw more samples or train longer")

    if not findings:
        good = (
            f"The weights are well behaved ({100 * ess:.0f} % of {n} samples effective): log Z and "
            "its standard error can be trusted for the region the sampler visits."
        )
        if not standard_error_is_reliable(evidence):
            good = (
                f"The weights can be used ({100 * ess:.0f} % of {n} samples effective), but their "
                f"tail is heavy (Pareto k {k:.2f}, above {FINITE_VARIANCE_K}): log Z is rather too "
                "low than too high, perhaps by many of its standard errors, in the region the "
                "sampler visits."
            )
        if looked:
            return good
        return (
            f"{good} Weights cannot reveal modes that no sample reaches, so compare with fresh "
            "optimiser starts or an independent sampler."
        )
    first, second = "; ".join(findings), "; ".join(dict.fromkeys(remedies))
    return f"{first[0].upper()}{first[1:]}. To improve: {second}."
