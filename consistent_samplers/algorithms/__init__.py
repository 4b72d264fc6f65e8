"""Training algorithms, one file each, all of one protocol (`base.Algorithm`)."""

from consistent_samplers.algorithms.base import Algorithm, SamplerState
from consistent_samplers.algorithms.calibration import calibration
from consistent_samplers.algorithms.osds import osds

__all__ = ["Algorithm", "SamplerState", "calibration", "osds"]
