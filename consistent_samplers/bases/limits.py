"""What a look at a density may cost."""

from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target

MAX_DENSE_DIM = 200
"""Dimension above which what costs O(dim²) parameters or many Hessians is done another way."""


def affordable(target: Target) -> float:
    """Evaluations of value and gradient that one stage of a fit may take: 40 Gflop in all."""
    # By the compiler's count, which is the same on every machine.
    return 40e9 / max(evaluation.cost(target.log_density, target.dim), 1.0)
