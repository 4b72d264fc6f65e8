"""A plain-language verdict on an ``Evidence``, and a look for modes that its sampler missed.

Nothing computed from a sampler's own draws tells that it misses modes. Fresh optimiser starts can,
where modes have basins, and tempered particles can, where their evidence is larger.
"""

import math
from typing import NamedTuple

import numpy as np

from consistent_samplers.bases import Modes, find_modes
from consistent_samplers.estimate import Evidence
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, PRNGKey

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

MAX_RESOLUTION = 0.05
"""Nats of floating-point resolution of log Z above which it is the limit of what can be said."""

# A mode with a smaller share of Z is not missed, only rare.
_MIN_SHARE = 0.01
# Missed: draws near it are fewer than this part of what its Laplace evidence lets expect.
_MISSED = 0.1
# Nats by which an independent log Z must exceed the sampler's to say so; it is noisy itself.
_EXCESS = 1.0


def pareto_k_threshold(num_samples: int) -> float:
    """Largest Pareto k to trust of n weights: min(1 - 1 / log10 n, 0.7) (Vehtari et al. 2024).

    Example:
      >>> import consistent_samplers as cs
      >>> [round(cs.diagnostics.pareto_k_threshold(n), 2) for n in (100, 1_000, 10_000)]
      [0.5, 0.67, 0.7]
    """
    return min(1.0 - 1.0 / math.log10(max(num_samples, 11)), 0.7)


def weights_are_reliable(evidence: Evidence) -> bool:
    """Whether the importance weights support a correction of the draws.

    They do if Pareto k is at most `pareto_k_threshold`, or at least `EVEN_ESS` of the samples are
    effective.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower")
      >>> cs.diagnostics.weights_are_reliable(cs.evidence(draws))
      True
    """
    threshold = pareto_k_threshold(evidence.num_samples)
    return float(evidence.pareto_k) <= threshold or float(evidence.ess) >= EVEN_ESS


def standard_error_is_reliable(evidence: Evidence) -> bool:
    """Whether log Z can be taken with its standard error.

    It can if Pareto k is at most `FINITE_VARIANCE_K` (and `pareto_k_threshold`), or at least
    `NEARLY_EXACT_ESS` of the samples are effective. Above that k the variance of the weights is
    infinite, and their mean converges slowly and from below.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.arange(100.0), bound="lower")
      >>> cs.diagnostics.standard_error_is_reliable(cs.evidence(draws))
      False
    """
    threshold = min(FINITE_VARIANCE_K, pareto_k_threshold(evidence.num_samples))
    return float(evidence.pareto_k) <= threshold or float(evidence.ess) >= NEARLY_EXACT_ESS


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


class ExplorationCheck(NamedTuple):
    """What an independent look found that the draws do not show.

    Attributes:
      num_modes: modes found with at least 1 % of Z by their Laplace evidence.
      num_missed: those that the draws hardly reach.
      missed_share: Laplace evidence of the missed modes relative to the sampler's Z; may exceed 1.
      log_z_excess: log Z of tempered particles above the sampler's in nats, or NaN if not given.

    Example:
      >>> import consistent_samplers as cs
      >>> check = cs.diagnostics.ExplorationCheck(2, 1, missed_share=1.0, log_z_excess=float("nan"))
      >>> print(check.passed, check)  # doctest: +ELLIPSIS
      False 1 of 2 modes found by fresh optimiser starts are hardly sampled; by their ...
    """

    num_modes: int
    num_missed: int
    missed_share: float
    log_z_excess: float

    @property
    def passed(self) -> bool:
        """Whether nothing was missed as far as this look can tell."""
        return self.num_missed == 0 and not self.log_z_excess > _EXCESS

    def __str__(self) -> str:
        if self.passed:
            if not self.num_modes:
                return "Fresh optimiser starts found no mode that holds mass by itself."
            return f"Fresh optimiser starts found {self.num_modes} mode(s), all of them sampled."
        words = []
        if self.num_missed:
            words.append(
                f"{self.num_missed} of {self.num_modes} modes found by fresh optimiser starts are "
                f"hardly sampled; by their Laplace evidence they hold {self.missed_share:.2g} "
                "times the mass that the sampler found"
            )
        if self.log_z_excess > _EXCESS:
            words.append(
                f"tempered particles put log Z {self.log_z_excess:.1f} nats higher than the sampler"
            )
        found = " and ".join(words)
        return (
            f"{found[0].upper()}{found[1:]}. The figures stand for the part that was found: train "
            "again with another rng_key, init_position at the missed places, or a base that covers "
            "them."
        )


def exploration_check(
    rng_key: PRNGKey,
    target: Target,
    position: Array,
    log_z: float,
    *,
    particle_log_z: float = math.nan,
    modes: Modes | None = None,
    num_starts: int = 512,
) -> ExplorationCheck:
    """Compares draws with modes that fresh optimiser starts find.

    Args:
      rng_key: key of the starts; take another than the one the sampler was trained with.
      target: the target.
      position: ``[n, dim]``, draws that follow the sampler (corrected or not).
      log_z: the sampler's estimate of log Z, in nats.
      particle_log_z: log Z of a tempered SMC, e.g. `bases.Exploration.log_z`, if at hand.
      modes: what `bases.exploration.find_modes` found already; a look from fresh starts if None.
      num_starts: number of starts of that look.

    Raises:
      ValueError: the density is NaN, +inf, or zero at every start.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target = cs.Target(lambda x: -(((x[0] ** 2) - 4.0) ** 2), dim=1)  # wells at ±2
      >>> key = jax.random.key(0)
      >>> right = 2.0 + 0.25 * jax.random.normal(key, (200, 1))
      >>> check = cs.diagnostics.exploration_check(key, target, right, -0.8, num_starts=16)
      >>> check.num_modes, check.num_missed, check.passed
      (2, 1, False)
    """
    if modes is None:
        modes = find_modes(rng_key, target, num_starts=num_starts)
    heavy = modes.log_evidence > log_z + math.log(_MIN_SHARE)
    modes = Modes(*(part[heavy] for part in modes))
    # Of a folded sampler log Z may be off by any amount.
    share = np.exp(np.minimum(modes.log_evidence - log_z, 600.0))
    points = np.asarray(position, np.float64)
    # Six standard deviations beyond the mean of a chi-square of dim degrees: modes are not normal.
    radius = points.shape[1] + 6.0 * math.sqrt(2.0 * points.shape[1])
    observed = []
    for loc, factor in zip(modes.loc, modes.scale_tril, strict=True):
        z = np.linalg.solve(factor, (points - loc).T)
        observed.append(np.mean((z**2).sum(0) < radius))
    missed = np.asarray(observed) < _MISSED * np.minimum(share, 1.0)
    num_missed, missed_share = int(missed.sum()), float(share[missed].sum())
    return ExplorationCheck(len(share), num_missed, missed_share, particle_log_z - log_z)


def is_trustworthy(evidence: Evidence, exploration: ExplorationCheck | None = None) -> bool:
    """Whether every diagnostic passes: then log Z and its standard error can be taken as they are.

    The weights are no heuristic and have a variance (`standard_error_is_reliable`), at least
    `MIN_EFFECTIVE` samples are effective, the map does not fold and is inverted within
    `MAX_ROUND_TRIP_ERROR`, and `exploration_check`, if it was made, found nothing missing. Numbers
    of the size of log Z are resolved to `MAX_RESOLUTION`.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="heuristic")
      >>> cs.diagnostics.is_trustworthy(cs.evidence(draws))
      False
    """
    folded, error = _folds_and_error(evidence)
    return (
        resolution(evidence) <= MAX_RESOLUTION
        and evidence.bound != "heuristic"
        and standard_error_is_reliable(evidence)
        and float(evidence.ess) * evidence.num_samples >= MIN_EFFECTIVE
        and folded == 0.0
        and not error > MAX_ROUND_TRIP_ERROR
        and (exploration is None or exploration.passed)
    )


def verdict(evidence: Evidence, exploration: ExplorationCheck | None = None) -> str:
    """What the numbers are worth and what to try: the findings, then the remedies, in a paragraph.

    Args:
      evidence: concrete (not traced) evidence.
      exploration: what `exploration_check` found, or None where nobody looked.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> draws = cs.Draws(jnp.zeros((100, 1)), jnp.arange(100.0), bound="lower")
      >>> print(cs.diagnostics.verdict(cs.evidence(draws)))  # doctest: +ELLIPSIS
      A few large weights decide log Z (Pareto k ...
    """
    said = _verdict_on_weights(evidence, looked=exploration is not None)
    if undefined := 100.0 * float(evidence.undefined or 0.0):
        said = (
            f"{said} The log density is NaN at {undefined:.2g} % of the samples, which count as "
            "outside of its support: log Z leaves out what mass may lie there."
        )
    if exploration is None:
        return said
    return f"{said} {exploration}" if exploration.passed else f"{exploration} {said}"


def _folds_and_error(evidence: Evidence) -> tuple[float, float]:
    """Share folded and round-trip error of a map, zero where there is no map or no measurement."""
    return float(evidence.folded or 0.0), float(evidence.round_trip_error or 0.0)


def _verdict_on_weights(evidence: Evidence, looked: bool) -> str:
    n, k, ess = evidence.num_samples, float(evidence.pareto_k), float(evidence.ess)
    findings: list[str] = []
    remedies: list[str] = []

    if (step := resolution(evidence)) > MAX_RESOLUTION:
        findings.append(
            f"log Z of {float(evidence.log_z):.3g} nats is computed in steps of {step:.2g} nats, "
            "too coarse to tell weights apart"
        )
        remedies.append(
            "leave constants out of the log density, or compute in double precision "
            '(jax.config.update("jax_enable_x64", True))'
        )
    if evidence.bound == "heuristic":
        findings.append("these weights are heuristic, so neither figure bounds log Z")
        remedies.append('sample with method="map" or "path"')
    folded, error = _folds_and_error(evidence)
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
            f"a few large weights decide log Z (Pareto k {k:.2f}, above "
            f"{pareto_k_threshold(n):.2f} for {n} samples), so it is probably too low and its "
            "standard error too small"
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
