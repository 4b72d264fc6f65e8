"""Targets of the benchmarks: how each is built, where samplers start, what is known of it."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import consistent_samplers as cs
from benchmarks import race
from consistent_samplers.bases import GaussianBase
from consistent_samplers.diagnostics import nearest_mode, sign_modes
from consistent_samplers.targets import Target
from consistent_samplers.targets.mixtures import _field_uniform
from consistent_samplers.types import Array

REFERENCE_VARIABLE = "CONSISTENT_SAMPLERS_REFERENCE"
"""Names a folder of reference draws: NAME.npz with ``draws [n, dim]``."""

_BASE_SEED = 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A target of the benchmarks.

    Attributes:
      build: makes the target.
      prior_scale: samplers start from N(prior_loc, prior_scale² I), the scale that the field's
        papers take for such a target; from a fitted Gaussian if None.
      prior_loc: mean of that prior, in every coordinate.
      labels: ``[n, dim] -> [n]`` mode of each draw, or None where the modes are not listed.
      num_modes: number of modes, all of equal weight.
      posterior: whether long NUTS chains serve as reference draws where nothing better is there.
      stored: name of its file of reference draws; its own if None.
    """

    build: Callable[[], Target]
    prior_scale: float | None = None
    prior_loc: float = 0.0
    labels: Callable[[Array], Array] | None = None
    num_modes: int = 0
    posterior: bool = False
    stored: str | None = None


def _gmm9_modes(x: Array) -> Array:
    return nearest_mode(x, jnp.array(list(itertools.product((-5.0, 0.0, 5.0), repeat=2))))


def _gmm40_modes(x: Array) -> Array:
    return nearest_mode(x, jnp.asarray(_field_uniform((40, x.shape[1]), 40.0)))


def _wells(dim: int, separation: float) -> Entry:
    build = partial(cs.targets.double_wells, dim, 5, separation)
    return Entry(build, 2.0, labels=lambda x: sign_modes(x, 5), num_modes=32)


TARGETS: dict[str, Entry] = {
    "gmm9": Entry(cs.targets.gmm9, 4.0, labels=_gmm9_modes, num_modes=9),
    "gmm40": Entry(cs.targets.gmm40, 30.0, labels=_gmm40_modes, num_modes=40),
    "gmm40_50d": Entry(lambda: cs.targets.gmm40(50), 30.0, labels=_gmm40_modes, num_modes=40),
    "rings": Entry(cs.targets.rings, 3.0),
    "image": Entry(cs.targets.image, 2.0),
    "funnel": Entry(cs.targets.funnel),
    "mw54": _wells(5, 4.0),
    "mw52": _wells(50, 2.0),
    "many_well": Entry(cs.targets.many_well, 2.0),
    "student_t_mixture": Entry(cs.targets.student_t_mixture, 8.0),
    "rosenbrock": Entry(cs.targets.rosenbrock, 1.5),
    "seeds": Entry(cs.targets.seeds, posterior=True),
    "ionosphere": Entry(cs.targets.ionosphere, posterior=True),
    "sonar": Entry(cs.targets.sonar, posterior=True),
    "credit": Entry(cs.targets.credit, posterior=True, stored="credit_prior10"),
    "credit_likelihood": Entry(cs.targets.credit_likelihood, posterior=True, stored="credit"),
    "cancer": Entry(cs.targets.cancer, posterior=True, stored="cancer_prior10"),
    # Plain NUTS misses part of the tail of small observation noise here.
    "brownian": Entry(cs.targets.brownian, posterior=True),
    # The prior's own mean, log 126 - 1.91 / 2, and scale: fitting 1,600 dimensions takes minutes.
    "lgcp": Entry(cs.targets.lgcp, math.sqrt(1.91), math.log(126) - 1.91 / 2),
    "dw4": Entry(cs.targets.dw4, 2.0),
    "lj13": Entry(cs.targets.lj13, 2.0),
    "lj55": Entry(cs.targets.lj55, 2.0),
}


def build_base(entry: Entry, target: Target) -> tuple[GaussianBase, str]:
    """Where every sampler of a target starts, and that in words.

    The same base for all methods and seeds: it is fitted with one key.
    """
    if entry.prior_scale is None:
        base = cs.bases.fit_gaussian(jax.random.key(_BASE_SEED), target)
        return base, f"Gaussian fitted by reverse KL (key {_BASE_SEED})"
    base = cs.bases.standard_normal(target.dim, entry.prior_scale)
    base = dataclasses.replace(base, loc=jnp.full(target.dim, entry.prior_loc))
    return base, f"N({entry.prior_loc:.4g}, {entry.prior_scale:.4g}² I)"


def reference_draws(
    name: str, entry: Entry, target: Target, num_samples: int
) -> tuple[Array, Array, str] | None:
    """Two disjoint sets ``[num_samples, dim]`` of reference draws and where they come from.

    From the exact sampler; else from the folder that `REFERENCE_VARIABLE` names; else, for
    posteriors, from a long run of NUTS. None where there is nothing.
    """
    if target.sample is not None:
        draws = target.sample(jax.random.key(2**20), 2 * num_samples)
        return draws[:num_samples], draws[num_samples:], "exact sampler"
    path = Path(os.environ.get(REFERENCE_VARIABLE, "")) / f"{entry.stored or name}.npz"
    if path.is_file():
        stored, source = np.load(path, allow_pickle=False)["draws"], "stored reference draws"
    elif entry.posterior:
        found = race.nuts(race.Subject(target), jax.random.key(2**20), block=500)
        stored, source = found.samples["x"], f"NUTS, {found.row['draws']} draws"
    else:
        return None
    stored = np.random.default_rng(0).permutation(stored)
    num = min(num_samples, len(stored) // 2)
    return jnp.asarray(stored[:num]), jnp.asarray(stored[num : 2 * num]), source
