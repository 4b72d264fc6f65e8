"""What a sampler is worth: a verdict on its weights, distances to a reference, modes it reaches."""

from consistent_samplers.diagnostics.distances import (
    MAX_MEDIAN_POINTS,
    RELATIVE_REGULARISATION,
    SinkhornResult,
    mmd,
    sinkhorn,
    wasserstein2,
)
from consistent_samplers.diagnostics.modes import (
    MISSED_SHARE,
    ModeCoverage,
    mode_coverage,
    nearest_mode,
    sign_modes,
)
from consistent_samplers.diagnostics.verdicts import (
    EVEN_ESS,
    FINITE_VARIANCE_K,
    MAX_ROUND_TRIP_ERROR,
    MIN_EFFECTIVE,
    NEARLY_EXACT_ESS,
    ExplorationCheck,
    exploration_check,
    is_trustworthy,
    pareto_k_threshold,
    standard_error_is_reliable,
    verdict,
    weights_are_reliable,
)

__all__ = [
    "EVEN_ESS",
    "FINITE_VARIANCE_K",
    "MAX_MEDIAN_POINTS",
    "MAX_ROUND_TRIP_ERROR",
    "MIN_EFFECTIVE",
    "MISSED_SHARE",
    "NEARLY_EXACT_ESS",
    "RELATIVE_REGULARISATION",
    "ExplorationCheck",
    "ModeCoverage",
    "SinkhornResult",
    "exploration_check",
    "is_trustworthy",
    "mmd",
    "mode_coverage",
    "nearest_mode",
    "pareto_k_threshold",
    "sign_modes",
    "sinkhorn",
    "standard_error_is_reliable",
    "verdict",
    "wasserstein2",
    "weights_are_reliable",
]
