"""Draws of many data sets: in batches of one shape, then their sites, by the rows that each has."""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.amortized import drawing, fitting
from consistent_samplers.amortized.blocks import in_blocks
from consistent_samplers.amortized.conditional import Fitted, Standard
from consistent_samplers.amortized.frames import frames_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel, of_size
from consistent_samplers.amortized.reading import canonical
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.types import Array, ArrayTree, PRNGKey

if TYPE_CHECKING:
    from consistent_samplers.amortized.family import AmortizedSampler

_AT_ONCE, _TRAINED_AT_ONCE = 16, 4
TIMES = 8
"""As many draws again where they fall short."""

_MAX_FLOATS = 2**22


class Answers(NamedTuple):
    """Draws of data sets, on the host.

    Attributes:
      samples: sites and deterministics by name, ``[sets, draws, ...]``; NaN in rows that a data set
        does not have.
      log_weight: ``[sets, draws]``.
      away: ``[sets]``, see `distance`.
    """

    samples: dict[str, np.ndarray]
    log_weight: np.ndarray
    away: np.ndarray


def answered(
    keys: PRNGKey,
    family: "AmortizedSampler",
    given: list[tuple[PaddedModel, DataSet]],
    num_samples: int,
    num_iterations: int = 0,
) -> Answers:
    """Answers to data sets, each with the model of its shapes; see `_drawing` for the rest."""
    groups: dict[PaddedModel, list[int]] = {}
    for i, (model, _) in enumerate(given):
        groups.setdefault(model, []).append(i)
    parts, dtype = [], jnp.result_type(float)
    log_weight, away = np.zeros((len(given), num_samples), dtype), np.zeros(len(given), dtype)
    for model, places in groups.items():
        index = np.array(places)
        data = stacked([given[i][1] for i in places])
        draw = _drawing(family, model, num_samples, num_iterations)
        *at, log_weight[index], away[index] = draw(keys[index], data)
        parts += [(index[some], samples) for some, samples in _parts(model, at, data)]
    return Answers(_joined(family.model, parts, len(given)), log_weight, away)


def with_more(
    rng_key: PRNGKey,
    family: "AmortizedSampler",
    given: tuple[PaddedModel, DataSet],
    before: Samples,
    log_weight: np.ndarray,
    num_at_once: int,
) -> Answers:
    """The answer to one data set from nine times as many draws or more: its own among them.

    What its own show, a large weight above all, is not forgotten.

    Args:
      rng_key: key.
      family: the family.
      given: the data set, with the model of its shapes.
      before: the samples that there are, ``[1, draws, ...]`` each.
      log_weight: ``[1, draws]``, theirs.
      num_at_once: data sets that were answered together: programs are compiled for so many.
    """
    at_once, found = min(num_at_once, TIMES), []
    for key in jax.random.split(rng_key, -(-TIMES // at_once)):
        keys = jax.random.split(key, at_once)
        found.append(answered(keys, family, [given] * at_once, log_weight.shape[1]))

    def together(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([x.reshape(-1, *x.shape[2:]) for x in parts])[None]

    samples = jax.tree.map(together, dict(before), *(each.samples for each in found))
    log_weight = together(log_weight, *(each.log_weight for each in found))
    return Answers(samples, log_weight, found[0].away[:1])


def stacked(data: list[DataSet]) -> DataSet:
    """Data sets of one shape, with a leading axis."""
    many: DataSet = jax.tree.map(lambda *xs: np.stack(xs), *data)
    return many


def sites_of(model: PaddedModel, at: Any, data: DataSet) -> dict[str, np.ndarray]:
    """Sites and deterministics of positions ``[sets, draws, ...]`` of data sets, as `Answers`."""
    return _joined(model, list(_parts(model, at, data)), len(data.mask))


def distance(features: Array, standard: Standard) -> Array:
    """How far features ``[..., f]`` lie from those of simulated data sets, ``[...]``."""
    away = (features - standard.data_set[0]) / standard.data_set[1]
    return jnp.mean(jnp.log1p(away**2), -1)


@functools.lru_cache(maxsize=16)
def _drawing(
    family: "AmortizedSampler", model: PaddedModel, num_samples: int, num_iterations: int
) -> Callable[..., Any]:
    """A function of keys and data sets: globals, members, log weights, `distance`.

    Args:
      family: the family.
      model: its model, of the shapes of the data sets.
      num_samples: draws of each.
      num_iterations: of a training on each data set alone, before it is drawn.
    """

    def one(key: PRNGKey, data: DataSet) -> tuple[Array, ...]:
        kept: Any = _in_this_precision((family.params, family.standard, family.starts))
        params, standard, starts = kept
        fitted = Fitted(family.map, params, standard)
        frames = frames_of(model, starts, data, family.map.num_modes)
        if num_iterations:
            key, key_train = jax.random.split(key)
            fitted = fitting.of_one(key_train, model, fitted, frames, data, num_iterations)
        drawn = drawing.drawn(key, model, fitted, frames, data, num_samples)
        return *drawn, distance(frames.features[0], standard)

    return in_blocks(one, sets_at_once(model, num_samples, num_iterations))


def _in_this_precision(kept: ArrayTree) -> ArrayTree:
    """Arrays that may have been made in another precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, canonical(x.dtype)), kept)


def sets_at_once(model: PaddedModel, num_samples: int, num_iterations: int = 0) -> int:
    """Data sets that are answered at once, with so many draws of each after such a training."""
    coordinates = model.num_globals + model.max_rows * max(model.num_each, 1)
    most = _TRAINED_AT_ONCE if num_iterations else _AT_ONCE
    return max(1, min(most, _MAX_FLOATS // (num_samples * coordinates)))


def _parts(
    model: PaddedModel, at: Any, data: DataSet
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Indices of data sets with their samples.

    Latent sites are the same with rows filled up. Deterministics are what a model makes of all its
    rows: for these it is called with the rows that a data set has.
    """
    sizes = data.mask.sum(1)
    if {name for name, _ in model.outputs} == {site.name for site in model.sites}:
        sizes = np.full(len(sizes), model.max_rows)
    for size in np.unique(sizes).tolist():
        index = np.flatnonzero(sizes == size)
        some = jax.tree.map(lambda x, i=index: x[i], (*at, data))
        yield index, _constraining(of_size(model, size), sets_at_once(model, at[0].shape[1]))(*some)


@functools.lru_cache(maxsize=64)
def _constraining(model: PaddedModel, at_once: int) -> Callable[..., Any]:
    """A function of globals, members and data sets that have so many rows or more: samples."""

    def one(at_globals: Array, members: Array, data: DataSet) -> Samples:
        data, members = model.cut(data), members[:, : model.max_rows]
        return jax.vmap(lambda *at: model.constrain(at, data))(at_globals, members)

    return in_blocks(one, at_once)


def _joined(
    model: PaddedModel, parts: list[tuple[np.ndarray, dict[str, np.ndarray]]], num: int
) -> dict[str, np.ndarray]:
    """Samples of all data sets, with as many rows as the model or the largest of them has."""
    found = {}
    for name, axis in model.outputs:
        of_name = [(index, samples[name]) for index, samples in parts]
        shape = list(of_name[0][1].shape[1:])
        if axis is not None:
            shape[axis + 1] = max(model.max_rows, *(x.shape[axis + 2] for _, x in of_name))
        fill: Any = 0 if axis is None else np.nan
        found[name] = np.full((num, *shape), fill, of_name[0][1].dtype)
        for index, x in of_name:
            there: Any = (index, *(slice(n) for n in x.shape[1:]))
            found[name][there] = x
    return found
