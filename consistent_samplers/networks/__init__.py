"""Networks: controls u(x, t, d) and what else is learned, as linen modules of one point."""

from consistent_samplers.networks.perceptron import (
    MAX_GAIN,
    MAX_SCALED,
    Gate,
    KernelCorrection,
    Network,
    ScalarMLP,
    StepConditionedMLP,
    Trunk,
    clip_norm,
)
from consistent_samplers.networks.potential import Potential
from consistent_samplers.networks.structured import Structured

__all__ = [
    "MAX_GAIN",
    "MAX_SCALED",
    "Gate",
    "KernelCorrection",
    "Network",
    "Potential",
    "ScalarMLP",
    "StepConditionedMLP",
    "Structured",
    "Trunk",
    "clip_norm",
]
