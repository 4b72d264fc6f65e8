"""Entropic optimal transport between two samples: the field's Sinkhorn distance, by OTT-JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import epsilon_scheduler, pointcloud
from ott.solvers import linear
from scipy.spatial.distance import pdist

from consistent_samplers.types import Array

# Of the median squared distance between at most so many points of the reference.
_REGULARISATION, _MEDIAN_POINTS = 0.01, 500
# Annealed slowly from the largest cost: heavy tails, as Neal's funnel has, do not converge else.
_DECAY = 0.95
_MAX_ITERATIONS, _TOLERANCE = 2_000, 5e-3


def sinkhorn(x: Array, y: Array) -> float:
    """Transport cost <P, C> of the entropic plan, with squared Euclidean cost (Cuturi, 2013).

    NaN where the iterations do not converge. Only figures of one pair of sample sizes compare, and
    none is zero: quote the one between two independent reference samples beside it.

    Args:
      x: ``[n, dim]``, equally weighted.
      y: ``[m, dim]``, the reference, which sets the regularisation.
    """
    some = np.asarray(y, np.float64)[:: -(-len(y) // _MEDIAN_POINTS)]
    epsilon = _REGULARISATION * float(np.median(pdist(some, "sqeuclidean")))
    plain: Any = pointcloud.PointCloud(x, y)
    largest = float(jnp.max(plain.cost_matrix))
    annealed = epsilon_scheduler.Epsilon(epsilon, max(largest / epsilon, 1.0), _DECAY)
    found = _solve(pointcloud.PointCloud(x, y, epsilon=annealed))
    return float(found.primal_cost) if bool(found.converged) else float("nan")


@jax.jit
def _solve(geometry: pointcloud.PointCloud) -> Any:
    return linear.solve(geometry, threshold=_TOLERANCE, max_iterations=_MAX_ITERATIONS)
