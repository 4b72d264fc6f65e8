"""Pairs of latent variables and data sets, drawn from the model itself."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.padded import (
    Covariates,
    DataSet,
    PaddedModel,
    first_rows,
    of_size,
)
from consistent_samplers.amortized.probing import called
from consistent_samplers.amortized.reading import canonical, split_constants
from consistent_samplers.compilation import jit
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.types import Array, PRNGKey

MAX_SIZES = 12
"""Different numbers of rows that are simulated, spread evenly from the least to the most."""

MAX_UNUSABLE = 0.5
"""Share of simulated data sets with NaN or inf above which the prior is refused."""

_SIMULATED_AT_ONCE = 1_024
_CHECKED = 3
# By how much terms of the padded density may differ from those of the data set itself, by rounding:
# in nats and relative.
_TOLERANCE = 1e-4
# Positions of members that are not there, none of which may matter. Draws have the first.
_FILLS = (0.0, 10.0, -10.0)


class Pairs(NamedTuple):
    """Simulated data sets, ``n`` of each entry, with what they were simulated from.

    Attributes:
      data: on the host.
      globals: ``[n, g]``.
      members: ``[n, N, p]``.
    """

    data: DataSet
    globals: Any
    members: Any

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.globals)


def simulate(
    rng_key: PRNGKey,
    model: PaddedModel,
    covariates: Covariates,
    num_rows: tuple[int, int],
    num_data_sets: int,
) -> Pairs:
    """Pairs whose numbers are all finite: others are left out, with a warning.

    Warns:
      RuntimeWarning: the prior simulates NaN or infinite numbers.

    Raises:
      ValueError: it does so most of the time, or covariates gives such numbers.
    """
    key_covariates, key_model = jax.random.split(rng_key)
    data = _covariates(key_covariates, model, covariates, num_rows, num_data_sets)
    keys = jax.random.split(key_model, num_data_sets)
    (at_globals, at_members), data = in_blocks(model.simulate, _SIMULATED_AT_ONCE)(keys, data)
    members = np.where(data.mask[:, :, None], at_members, 0.0)
    good = np.isfinite(at_globals).all(1) & np.isfinite(members).all((1, 2))
    bad_sites = []
    for name, values in data.observed.items():
        fine = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not fine.all():
            bad_sites.append(name)
        good &= fine
    share = 1.0 - good.mean()
    if share:
        at = f"the observed {', '.join(bad_sites)}" if bad_sites else "latent sites"
        words = (
            f"The prior of model {model.name!r} simulates NaN or infinite numbers at {at} in "
            f"{100 * share:.2g} % of data sets"
        )
        cure = (
            "Give it a prior that simulates sensible data, such as "
            "numpyro.distributions.TruncatedNormal in place of a wide one"
        )
        if share > MAX_UNUSABLE:
            raise ValueError(f"{words}. {cure}.")
        warnings.warn(f"{words}, which are left out. {cure}.", RuntimeWarning, stacklevel=4)
    # In any order, and not by their sizes.
    order = np.asarray(jax.random.permutation(rng_key, len(good)))
    order = order[good[order]]
    kept: Pairs = jax.tree.map(lambda x: x[order], Pairs(data, at_globals, members))
    return kept


def _covariates(
    rng_key: PRNGKey,
    model: PaddedModel,
    covariates: Covariates,
    num_rows: tuple[int, int],
    num_data_sets: int,
) -> DataSet:
    """Arguments of many data sets, of each size as many, padded."""
    least, most = num_rows
    sizes = np.unique(
        np.linspace(least, most, min(MAX_SIZES, most - least + 1)).round().astype(int)
    )
    if not model.has_rows:
        sizes = np.array([most])
    keywords = [keyword for _, keyword in model.observed]
    counts = np.diff(np.linspace(0, num_data_sets, len(sizes) + 1).round().astype(int))
    parts = []
    for i, (size, count) in enumerate(zip(sizes.tolist(), counts.tolist(), strict=True)):
        if not count:
            continue

        def arrays(key: PRNGKey, size: int = size) -> list[Array]:
            args, kwargs, _ = called(covariates, key, size, model.model, keywords)
            return [jnp.asarray(a) for a in split_constants(jax.tree.leaves((args, kwargs)))[0]]

        keys = jax.random.split(jax.random.fold_in(rng_key, i), count)
        given = jax.device_get(jax.vmap(arrays)(keys))
        if not all(np.isfinite(a).all() for a in given if a.dtype.kind == "f"):
            raise ValueError("covariates gives NaN or infinite numbers.")
        filled = []
        for a, (shape, dtype, axis) in zip(given, model.arrays, strict=True):
            width = [(0, 0)] * a.ndim
            if axis is not None:
                width[axis + 1] = (0, shape[axis] - size)
            filled.append(np.pad(a, width, mode="edge").astype(canonical(dtype)))
        mask = np.broadcast_to(np.arange(model.max_rows) < size, (count, model.max_rows))
        parts.append(DataSet(filled, {}, mask))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def check_padding(model: PaddedModel, pairs: Pairs) -> None:
    """Raises unless padded data sets have the density of the data sets themselves, term by term.

    Raises:
      ValueError: the model uses its rows otherwise than each by itself, or gives NaN.
    """
    order = np.argsort(pairs.data.mask.sum(1), kind="stable")
    padded = jit(functools.partial(_by_site, model))
    chosen = order[np.linspace(0, len(order) - 1, _CHECKED).astype(int)]
    for index in chosen.tolist():
        data, at_globals, members = jax.tree.map(lambda x, i=index: x[i], tuple(pairs))
        size = int(data.mask.sum())
        if size == model.max_rows and index != chosen[-1]:
            continue
        exactly = of_size(model, size)
        exact = jit(functools.partial(_by_site, exactly))(
            (at_globals, members[:size]), exactly.cut(data)
        )
        if not np.isfinite(total := sum(float(jnp.sum(x)) for x in exact[0].values())):
            raise ValueError(
                f"The log density of model {model.name!r} is {total} at a draw of its own prior "
                f"with {size} rows: check it, the model and what it simulates do not agree."
            )
        for fill in _FILLS if size < model.max_rows else ():
            filled = np.where(data.mask[:, None], members, fill)
            found = padded((at_globals, filled), data)
            _check_same(model, size, "log density", dict(model.axes), found[0], exact[0])
            _check_same(model, size, "value", dict(model.outputs), found[1], exact[1])


def _by_site(model: PaddedModel, at: tuple[Array, Array], data: DataSet) -> tuple[Samples, Samples]:
    """Terms of the log density, and latent sites."""
    sites = model.constrain(at, data)
    return model.terms(at, data), {site.name: sites[site.name] for site in model.sites}


def _check_same(
    model: PaddedModel,
    size: int,
    what: str,
    axes: dict[str, int | None],
    padded: Samples,
    exact: Samples,
) -> None:
    for name, value in exact.items():
        found, wanted = np.asarray(first_rows(padded[name], axes[name], size)), np.asarray(value)
        away = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
        if not (away <= _TOLERANCE).all():
            worst = np.unravel_index(np.argmax(np.where(np.isnan(away), np.inf, away)), away.shape)
            raise ValueError(
                f"Model {model.name!r} uses its rows together (a mean over rows, say): with rows "
                f"filled up a {what} of site {name!r} is {found[worst]:.4f} instead of "
                f"{wanted[worst]:.4f} for {size} rows. Compute such things in covariates, or give "
                "num_rows as one number: other numbers of rows are then answered as they are."
            )
