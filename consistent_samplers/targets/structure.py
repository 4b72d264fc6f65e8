"""Which coordinates of a target depend on which, told by the zeros of its Hessian.

Where ∂²log ρ / ∂x_i ∂x_j is zero everywhere, x_i and x_j are independent given all others. Once a
few coordinates (the globals) are taken out, the rest of a hierarchical model falls apart into
members that are independent given them. So does a state space: given every second state the others
are independent; of those that were given, every second one again, and so on.
"""

import dataclasses
import itertools
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sparse

from consistent_samplers.targets import evaluation
from consistent_samplers.types import LogDensityFn

MAX_DENSE = 500
"""Dimension up to which every entry of the Hessian is looked at."""

MAX_BLOCK = 6
"""Coordinates of a member that depend on each other, at most."""

MAX_GLOBALS = 128
"""More coordinates than these that cannot be taken apart make a target dense."""

_MAX_GROUPS = 32
_MAX_OWN = 16  # parents of a member that others do not share
_FEW_MEMBERS = 3  # fewer make no group
_NEGLIGIBLE = 1e-6  # relative to the geometric mean of the two diagonal entries
_NUM_POINTS = 2
_MAX_NAMED = 8  # coordinates in words
_NUM_COLOURINGS, _NUM_COLOURS = 8, 128


class Group(NamedTuple):
    """Members of the same kind: independent of each other, given the coordinates before them.

    Attributes:
      members: ``[J, p]``, the coordinates of each, which may depend on each other.
      shared: ``[s]``, globals that most of them depend on.
      own: ``[J, r]``, what else each depends on, globals or members of earlier groups; -1 where
        there are fewer.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.targets.structure import Group
      >>> members = np.array([[1, 3], [2, 4]])  # two of two coordinates
      >>> Group(members, shared=np.array([0]), own=np.zeros((2, 0), int)).members.shape
      (2, 2)
    """

    members: np.ndarray
    shared: np.ndarray
    own: np.ndarray


@dataclasses.dataclass(frozen=True)
class Structure:
    """Globals, and groups of members that depend on them.

    Attributes:
      globals: ``[g]``, coordinates that may all depend on each other.
      groups: parents before their members.
      dim: number of coordinates.
      depth: levels of members below the globals.
      sites: names and sizes of the parts of a point, where they are known.
      blocks: ``[J, p]`` for each size p, coordinates of members that are independent of each other
        given the globals alone; empty without globals, or where more than `MAX_BLOCK` hang
        together.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> def log_density(x):  # a mean, and ten members around it
      ...     return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2))
      >>> print(cs.Target(log_density, dim=11).structure)
      1 globals: x[0]
      10 members of 1: x[1], given x[0]
    """

    globals: np.ndarray
    groups: tuple[Group, ...]
    dim: int
    depth: int = 0
    sites: tuple[tuple[str, int], ...] = ()
    blocks: tuple[np.ndarray, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Whether all coordinates are globals: nothing falls apart."""
        return not self.groups

    @property
    def has_members(self) -> bool:
        """Whether there are globals, and groups of members given them."""
        return bool(self.groups) and len(self.globals) > 0

    def __str__(self) -> str:
        """A line for the globals, and one for each group."""
        lines = [f"{len(self.globals)} globals: {self._named(self.globals)}"]
        for group in self.groups:
            given = [self._named(group.shared)] if len(group.shared) else []
            given += [f"{group.own.shape[1]} of their own"] if group.own.shape[1] else []
            known = f", given {' and '.join(given)}" if given else ""
            num, size = group.members.shape
            lines.append(f"{num} members of {size}: {self._named(group.members[0])}{known}")
        return "\n".join(lines)

    def _named(self, index: np.ndarray) -> str:
        return named(index, self.dim, self.sites)


def named(index: np.ndarray, dim: int, sites: tuple[tuple[str, int], ...] = ()) -> str:
    """Names of the first few of some coordinates, by their sites where there are any.

    Args:
      index: ``[n]``, the coordinates.
      dim: how many there are.
      sites: names and sizes of the parts of a point.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.targets.structure import named
      >>> named(np.array([0, 2]), 4, (("scale", 1), ("effect", 3)))
      'scale, effect[1]'
    """
    sites = sites or (("x", dim),)
    begins = np.cumsum([0, *(size for _, size in sites)])
    names = []
    for i in index[:_MAX_NAMED]:
        k = int(np.searchsorted(begins, i, side="right")) - 1
        name, size = sites[k]
        names.append(name if size == 1 else f"{name}[{i - begins[k]}]")
    return ", ".join(names) + (", ..." if len(index) > _MAX_NAMED else "")


def find_structure(
    log_density: LogDensityFn,
    dim: int,
    *,
    sites: tuple[tuple[str, int], ...] = (),
) -> Structure:
    """The structure of a density: what its Hessians at two random points show.

    Up to `MAX_DENSE` dimensions all of their entries are looked at, and above random sums of their
    columns, of which a sparse row shows where its entries are (group testing).

    Args:
      log_density: of one point, ``[dim] -> []``.
      dim: number of coordinates.
      sites: names and sizes of the parts of a point.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.targets.structure import find_structure
      >>> walk = lambda x: -0.5 * x[0] ** 2 - 0.5 * jnp.sum((x[1:] - x[:-1]) ** 2)
      >>> [len(group.members) for group in find_structure(walk, 50).groups]
      [3, 6, 13, 25]
    """
    where = _random_points(dim).astype(jnp.result_type(float))
    values, grads = evaluation.values_and_grads(log_density, where)
    finite = np.isfinite(np.asarray(values)) & np.isfinite(np.asarray(grads)).all(1)
    if not finite.any():
        return _dense(dim, sites)
    where = where[finite][:_NUM_POINTS]
    look = _all_entries if dim <= MAX_DENSE else _probed
    return _taken_apart(look(log_density, where), sites)


def _random_points(dim: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.concatenate([scale * random.normal(size=(4, dim)) for scale in (0.7, 0.1, 2.0)])


def _dense(dim: int, sites: tuple[tuple[str, int], ...]) -> Structure:
    return Structure(np.arange(dim), (), dim, sites=sites)


def _all_entries(log_density: LogDensityFn, points: np.ndarray) -> sparse.csr_array:
    """Where Hessians are not zero: ``[dim, dim]``."""
    dim = points.shape[1]
    found = np.zeros((dim, dim), bool)
    for hessian in evaluation.hessians(log_density, points):
        size = np.sqrt(np.abs(np.diagonal(hessian)))
        # What is not finite is not known to be zero.
        found |= ~(np.abs(hessian) <= _NEGLIGIBLE * np.outer(size, size))
    return sparse.csr_array(found | found.T)


def _probed(log_density: LogDensityFn, points: np.ndarray) -> sparse.csr_array:
    """The same, of sums over random sets of columns."""
    dim, random = points.shape[1], np.random.default_rng(0)
    colour = random.integers(0, _NUM_COLOURS, (_NUM_COLOURINGS, dim))
    hit = np.zeros((_NUM_COLOURINGS, dim, _NUM_COLOURS), bool)
    for point in points:
        for k, colours in enumerate(colour):
            # Random signs and sizes: entries that cancel in one sum do not in the next.
            size = random.uniform(0.5, 1.5, dim) * random.choice([-1.0, 1.0], dim)
            vectors = np.zeros((_NUM_COLOURS, dim))
            vectors[colours, np.arange(dim)] = size
            many = np.tile(point, (_NUM_COLOURS, 1))
            products = evaluation.hessian_products(log_density, many, vectors.astype(points.dtype))
            by_row = np.asarray(products, np.float64).T
            largest = np.abs(by_row).max(1, keepdims=True)
            hit[k] |= ~(np.abs(by_row) <= _NEGLIGIBLE * largest)
    full = np.flatnonzero(hit.sum(2).max(0) > _NUM_COLOURS // 4)
    rows, columns = [], []
    for i in np.setdiff1d(np.arange(dim), full):
        partners = np.flatnonzero(hit[np.arange(_NUM_COLOURINGS)[:, None], i, colour].all(0))
        rows.append(np.full(len(partners), i))
        columns.append(partners)
    # Rows that sums do not resolve, one by one; those of globals are few.
    units = np.zeros((len(full), dim), points.dtype)
    units[np.arange(len(full)), full] = 1.0
    for point in points if len(full) else ():
        many = np.tile(point, (len(full), 1))
        rows_of = np.asarray(evaluation.hessian_products(log_density, many, units))
        size = np.abs(rows_of)
        which, partners = np.nonzero(~(size <= _NEGLIGIBLE * size.max(1, keepdims=True)))
        rows.append(full[which])
        columns.append(partners)
    row, column = np.concatenate(rows), np.concatenate(columns)
    found = sparse.csr_array((np.ones(len(row), bool), (row, column)), shape=(dim, dim))
    return sparse.csr_array(found + found.T)


def _taken_apart(pattern: sparse.csr_array, sites: tuple[tuple[str, int], ...] = ()) -> Structure:
    """Members out first, each time those of the fewest neighbours, until only globals are left.

    Whoever goes leaves its neighbours joined to each other, as integrating it out does (symbolic
    elimination); they are its parents.
    """
    dim = pattern.shape[0]
    near = [set(pattern.indices[a:b]) for a, b in itertools.pairwise(pattern.indptr)]
    for i, neighbours in enumerate(near):
        neighbours.discard(i)
    left = np.ones(dim, bool)
    of_site = np.repeat(np.arange(len(sites)), [size for _, size in sites]) if sites else None
    found: list[tuple[list[int], list[list[int]]]] = []
    while len(found) < _MAX_GROUPS and (members := _independent(near, left, of_site)):
        parents = [sorted(near[i]) for i in members]
        found.append((members, parents))
        left[members] = False
        for i in members:
            for j in near[i]:
                near[j].discard(i)
        for clique in set(map(tuple, parents)):
            for j in clique:
                near[j].update(clique)
                near[j].discard(j)
    top = np.flatnonzero(left)
    if not found or len(top) > MAX_GLOBALS:
        return _dense(dim, sites)
    groups = tuple(_group(*block, left) for block in _joined(found[::-1]))
    depth = np.zeros(dim, int)
    for group in groups:
        above = np.where(group.own >= 0, depth[group.own], 0).max(1, initial=0)
        depth[group.members] = 1 + above[:, None]
    return Structure(top, groups, dim, int(depth.max()), sites, _blocks(pattern, left))


def _blocks(pattern: sparse.csr_array, is_global: np.ndarray) -> tuple[np.ndarray, ...]:
    """What hangs together once the globals are taken out, by size."""
    rest = np.flatnonzero(~is_global)
    num, label = sparse.csgraph.connected_components(pattern[rest][:, rest], directed=False)
    sizes = np.bincount(label, minlength=num)
    if len(rest) == len(is_global) or sizes.max() > MAX_BLOCK:
        return ()
    members = np.split(rest[np.argsort(label, kind="stable")], np.cumsum(sizes)[:-1])
    return tuple(
        np.array([member for member in members if len(member) == size]) for size in np.unique(sizes)
    )


_Block: TypeAlias = tuple[list[list[int]], list[list[int]]]
"""Coordinates of each member, and its parents."""


def _joined(found: list[tuple[list[int], list[list[int]]]]) -> list[_Block]:
    """Groups, parents first; each joined to an earlier one to whose members its own belong."""
    blocks: list[_Block] = []
    for members, parents in found:
        for k, (taken, known) in enumerate(blocks):
            row_of = {i: row for row, block in enumerate(taken) for i in block}
            rows = [{row_of[i] for i in p if i in row_of} for p in parents]
            of_one = all(len(row) == 1 for row in rows)
            if not of_one or len(taken[0]) == MAX_BLOCK or len(members) != len(taken):
                continue
            order = [row.pop() for row in rows]
            # What else they depend on has to come before that group.
            later = {i for block, _ in blocks[k:] for member in block for i in member}
            others = [[i for i in p if i not in row_of] for p in parents]
            if len(set(order)) < len(order) or any(i in later for p in others for i in p):
                continue
            for row, member, more in zip(order, members, others, strict=True):
                taken[row].append(member)
                known[row] = sorted({*known[row], *more})
            break
        else:
            blocks.append(([[i] for i in members], [list(p) for p in parents]))
    return blocks


def _independent(
    near: list[set[int]], left: np.ndarray, of_site: np.ndarray | None
) -> list[int] | None:
    """Coordinates without each other for neighbours, of one site where sites are known."""
    rest = np.flatnonzero(left)
    degree = np.array([len(near[i]) for i in rest])
    if of_site is None:
        few = degree <= 1.5 * min(degree, default=0) + 1
        pools = [(rest[few], degree[few])]
    else:
        site = of_site[rest]
        pools = [(rest[site == k], degree[site == k]) for k in np.unique(site)]
    chosen, fewest = None, np.inf
    for pool, degrees in pools:
        if len(pool) < _FEW_MEMBERS or np.mean(degrees) >= fewest:
            continue
        taken: list[int] = []
        barred: set[int] = set()
        for i in pool[np.argsort(degrees, kind="stable")]:
            if i not in barred:
                taken.append(int(i))
                barred |= near[i]
        if len(taken) >= _FEW_MEMBERS:
            chosen, fewest = sorted(taken), np.mean(degrees)
    return chosen


def _group(members: list[list[int]], parents: list[list[int]], is_global: np.ndarray) -> Group:
    """Members, the globals that most of them depend on, and what else each does."""
    counts = np.bincount(np.concatenate(parents).astype(int), minlength=len(is_global))
    shared = np.flatnonzero((counts > len(members) / 2) & is_global)
    others = [np.setdiff1d(p, shared)[:_MAX_OWN] for p in parents]
    own = np.full((len(members), max(map(len, others))), -1)
    for row, index in zip(own, others, strict=True):
        row[: len(index)] = index
    return Group(np.array(members), shared, own)
