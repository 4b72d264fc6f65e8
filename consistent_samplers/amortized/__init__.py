"""Families of data sets: one training, and exact weights for the answer to each of them."""

from consistent_samplers.amortized.building import NUM_DATA_SETS, NUM_ITERATIONS, amortize
from consistent_samplers.amortized.calibration import CalibrationCheck, calibration_check
from consistent_samplers.amortized.family import NUM_SAMPLES, AmortizedSampler
from consistent_samplers.amortized.keeping import load_family
from consistent_samplers.amortized.posterior import (
    AMORTIZED,
    Posterior,
    Posteriors,
    judged,
    judged_all,
    resampled,
)

__all__ = [
    "AMORTIZED",
    "NUM_DATA_SETS",
    "NUM_ITERATIONS",
    "NUM_SAMPLES",
    "AmortizedSampler",
    "CalibrationCheck",
    "Posterior",
    "Posteriors",
    "amortize",
    "calibration_check",
    "judged",
    "judged_all",
    "load_family",
    "resampled",
]
