"""Training algorithms, a file for each or for a kind, all of one protocol (`base.Algorithm`)."""

from consistent_samplers.algorithms.adjoint import adjoint_sampling
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor, build
from consistent_samplers.algorithms.calibration import calibration
from consistent_samplers.algorithms.cdds import cdds
from consistent_samplers.algorithms.cmcd import cmcd
from consistent_samplers.algorithms.contrastive import contrastive
from consistent_samplers.algorithms.dds import dds
from consistent_samplers.algorithms.dgfs import dgfs
from consistent_samplers.algorithms.dis import dis
from consistent_samplers.algorithms.gflownet import gflownet
from consistent_samplers.algorithms.hierarchical import hierarchical
from consistent_samplers.algorithms.laplace import laplace
from consistent_samplers.algorithms.on_paths import OnPaths
from consistent_samplers.algorithms.osds import osds
from consistent_samplers.algorithms.pis import pis
from consistent_samplers.algorithms.progressive import progressive_distillation
from consistent_samplers.algorithms.protocol import Adam, Loss, Now, Objective, SamplerState
from consistent_samplers.algorithms.scds import scds
from consistent_samplers.algorithms.snf import snf
from consistent_samplers.algorithms.stochastic import Stochastic

__all__ = [
    "Adam",
    "Algorithm",
    "Constructor",
    "Loss",
    "Now",
    "Objective",
    "OnPaths",
    "SamplerState",
    "Stochastic",
    "adjoint_sampling",
    "build",
    "calibration",
    "cdds",
    "cmcd",
    "contrastive",
    "dds",
    "dgfs",
    "dis",
    "gflownet",
    "hierarchical",
    "laplace",
    "osds",
    "pis",
    "progressive_distillation",
    "scds",
    "snf",
]
