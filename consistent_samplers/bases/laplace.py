"""Optimisers on the host, and the Laplace approximations along their paths.

Factorisations run on the host in float64: exact enough for any covariance that float32 can hold,
and away from XLA's LAPACK calls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize

from consistent_samplers.bases.iterating import MAX_DENSE_DIM, affordable, one_thread
from consistent_samplers.targets import evaluation
from consistent_samplers.targets.base import Target, check_density

_OUTSIDE = 1e30
# Points of a path that are made candidates.
_NUM_ON_PATH = 5
# Ends are one if their log densities differ by less than this, in nats, and their places by less
# than this part of their size.
_SAME_VALUE, _SAME_PLACE = 0.1, 1e-2
# Newton steps after L-BFGS: at most so many, while one promises so many nats; parts of a step that
# are tried; evaluations that one second derivative costs.
_MAX_NEWTON, _WORTH_A_STEP = 20, 0.01
_PARTS = np.array([1.0, 0.5, 0.2, 0.05])
_PRODUCT = 3.0
# Curvatures below this part of the largest are taken for it, each coordinate in its own units; and
# squares of these units, in parts of the largest.
_FLOOR, _FLATTEST = 1e-6, 1e-14


class Gaussians(NamedTuple):
    """Gaussians to choose from: ``loc [n, dim]``, ``scale_tril [n, dim, dim]``, on the host."""

    loc: np.ndarray
    scale_tril: np.ndarray


def maximise(
    target: Target, start: np.ndarray, *, callback: Any = None, **options: Any
) -> tuple[np.ndarray, float]:
    """Where L-BFGS ends, ``[dim]`` in float64, and the log density there, -inf outside the support.

    ``callback`` is called with the point after each iteration; options are those of
    ``scipy.optimize.minimize(method="L-BFGS-B")``.
    """

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = evaluation.values_and_grads(target.log_density, x[None].astype(start.dtype))
        fall, slope = -float(np.asarray(value)[0]), -np.asarray(grad, np.float64)[0]
        # Outside the support the line search must turn back, not stop.
        if not np.isfinite(fall) or not np.isfinite(slope).all():
            return _OUTSIDE, np.zeros_like(slope)
        return fall, slope

    found = scipy.optimize.minimize(
        objective,
        start.astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        callback=callback,
        options=options,
    )
    return found.x, -found.fun if found.fun < _OUTSIDE else -np.inf


@one_thread
def paths(target: Target, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ends of L-BFGS and Newton steps, the highest first, and points on the ways there.

    Both are ``[n, dim]``.

    The end is the mode where there is one; the early points are what is left where there is none.
    """
    found, ways = [], []
    for start in starts:
        way = [start.astype(np.float64)]
        _, value = maximise(
            target, start, callback=lambda x, way=way: way.append(x.copy()), maxiter=200, maxcor=20
        )
        keep = np.unique(np.geomspace(1, len(way), num=_NUM_ON_PATH).astype(int)) - 1
        ways += [way[i] for i in keep[:-1]]
        found.append((way[-1], value))
    found = _polished(target, found, starts.dtype)
    ends: list[tuple[np.ndarray, float]] = []
    for x, value in sorted(found, key=lambda end: -end[1]):
        if not any(
            np.isclose(value, other_value, rtol=0.0, atol=_SAME_VALUE)
            and np.linalg.norm(x - other) < _SAME_PLACE * (1.0 + np.linalg.norm(other))
            for other, other_value in ends
        ):
            ends.append((x, value))
    return np.stack([x for x, _ in ends]), np.asarray(ways).reshape(-1, target.dim)


def _polished(
    target: Target, ends: list[tuple[np.ndarray, float]], dtype: Any
) -> list[tuple[np.ndarray, float]]:
    """Ends of L-BFGS after Newton steps, where coordinates of very unlike scales stopped it short.

    Newton's own steps know no scales; where the density is not concave they go along absolute
    curvatures (Dauphin et al., 2014). Parts of a step are tried, and the best is taken.
    """
    dim, inside = target.dim, [end for end in ends if np.isfinite(end[1])]
    steps = affordable(target) / (_PRODUCT * max(dim * len(inside), 1))
    if dim > MAX_DENSE_DIM or not inside or steps < 1.0:
        return ends
    x = np.stack([x for x, _ in inside]).astype(dtype)
    values = np.asarray(evaluation.values(target.log_density, x))
    for _ in range(min(_MAX_NEWTON, int(steps))):
        gradients = np.asarray(evaluation.values_and_grads(target.log_density, x)[1], np.float64)
        hessians = evaluation.hessians(target.log_density, x)
        usable = np.isfinite(hessians).all((1, 2)) & np.isfinite(gradients).all(1)
        ways = np.zeros(x.shape)
        for i in np.flatnonzero(usable):
            factor = _covariance_root(hessians[i])
            ways[i] = factor @ (factor.T @ gradients[i])
        if not (0.5 * np.sum(ways * gradients, axis=1) > _WORTH_A_STEP).any():
            break
        tried = (x + _PARTS[:, None, None] * ways).astype(dtype)
        there = np.asarray(evaluation.values(target.log_density, tried.reshape(-1, dim)))
        there = np.where(np.isfinite(there), there, -np.inf).reshape(len(_PARTS), -1)
        best, each = there.argmax(0), np.arange(len(x))
        better = there[best, each] > values
        if not better.any():
            break
        x = np.where(better[:, None], tried[best, each], x)
        values = np.where(better, there[best, each], values)
    polished = zip(x.astype(np.float64), values.tolist(), strict=True)
    return [*polished, *(end for end in ends if not np.isfinite(end[1]))]


def _covariance_root(hessian: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Lower triangular root of the inverse of absolute curvatures with a ridge added to them.

    Each coordinate in units of its own curvature: what is singular does not hang on scales.
    """
    curvature = -0.5 * (hessian + hessian.T)
    square = np.abs(np.diag(curvature)) + ridge
    largest = float(square.max()) or 1.0
    unit = 1.0 / np.sqrt(np.maximum(square, _FLATTEST * largest))
    eigenvalues, vectors = np.linalg.eigh(unit[:, None] * curvature * unit)
    total = np.abs(eigenvalues)
    if ridge:
        precision = (vectors * total) @ vectors.T + np.diag(ridge * unit**2)
        total, vectors = np.linalg.eigh(precision)
    # The floor keeps a singular Hessian from giving an infinite covariance.
    total = np.maximum(total, _FLOOR * max(float(total.max()), _FLOOR))
    root: np.ndarray = scipy.linalg.cholesky((vectors / total) @ vectors.T, lower=True)
    return unit[:, None] * root


@one_thread
def laplace(
    target: Target, points: np.ndarray, dtype: Any, *, ridges: tuple[float, ...]
) -> Gaussians:
    """Laplace approximations at points, one for each ridge added to the curvatures.

    Ridges are for flat and saddle directions; several, since none fits all.
    """
    locs, factors = [], []
    hessians = evaluation.hessians(target.log_density, points.astype(dtype))
    for loc, hessian in zip(points, hessians, strict=True):
        if not np.isfinite(hessian).all():
            continue
        for ridge in ridges:
            factors.append(_covariance_root(hessian, ridge))
            locs.append(loc)
    if not locs:
        return Gaussians(points[:1], np.eye(target.dim)[None])
    return Gaussians(np.stack(locs), np.stack(factors))


def usable_everywhere(values: np.ndarray) -> bool:
    """Whether log densities are numbers or -inf, and not all of them -inf."""
    return bool(-np.inf < values.max() < np.inf)


def check_starts(
    target: Target, points: np.ndarray, allowed: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """Log densities ``[n]`` at starts; a ValueError unless one can start from such values."""
    values = np.asarray(evaluation.values(target.log_density, points))
    if not allowed(values):
        check_density(target, points)
    return np.where(np.isnan(values), -np.inf, values)
