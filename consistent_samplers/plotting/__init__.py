"""Figures of draws, paths, training and evidence, with matplotlib, which is optional.

Every function takes the axes to draw on, or makes a figure of its own, and returns the axes. None
shows a figure or changes a setting of matplotlib; all raise ImportError if it is not installed.
"""

from consistent_samplers.plotting.curves import plot_quality, plot_training
from consistent_samplers.plotting.draws import plot_marginals, plot_pairs
from consistent_samplers.plotting.models import plot_comparison
from consistent_samplers.plotting.paths import plot_trajectories, trajectories
from consistent_samplers.plotting.weights import plot_evidence, plot_weights

__all__ = [
    "plot_comparison",
    "plot_evidence",
    "plot_marginals",
    "plot_pairs",
    "plot_quality",
    "plot_training",
    "plot_trajectories",
    "plot_weights",
    "trajectories",
]
