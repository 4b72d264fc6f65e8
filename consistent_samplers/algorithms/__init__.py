"""Training algorithms, one file each, all of one protocol (`base.Algorithm`)."""

from consistent_samplers.algorithms.base import Algorithm, SamplerState
from consistent_samplers.algorithms.calibration import calibration
from consistent_samplers.algorithms.cdds import cdds
from consistent_samplers.algorithms.dds import dds
from consistent_samplers.algorithms.dis import dis
from consistent_samplers.algorithms.osds import osds
from consistent_samplers.algorithms.pis import pis
from consistent_samplers.algorithms.progressive import progressive_distillation
from consistent_samplers.algorithms.scds import scds

__all__ = [
    "Algorithm",
    "SamplerState",
    "calibration",
    "cdds",
    "dds",
    "dis",
    "osds",
    "pis",
    "progressive_distillation",
    "scds",
]
