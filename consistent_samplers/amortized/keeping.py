"""Families on disk, and the model known again by its values."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from consistent_samplers import checkpoint, registry
from consistent_samplers.amortized.family import AmortizedSampler
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.checkpoint import CheckpointError
from consistent_samplers.compilation import jit
from consistent_samplers.integrations.numpyro.arguments import name_of

_KIND = "amortized family"
_OURS = ("model", "covariates")
# By how much log densities may differ between machines and versions, relative and in nats.
_TOLERANCE = 1e-3


def save(family: AmortizedSampler, path: str | os.PathLike[str]) -> None:
    """Keeps a family in a folder, all but its model, which is code; see `load_family`.

    Args:
      family: to keep.
      path: the folder; made if it does not exist.

    Raises:
      CheckpointError: the folder cannot be written to.
      EncodeError: the model's arguments hold a class that is not registered; `amortize` warned.

    Example:
      >>> from consistent_samplers.amortized import AmortizedSampler
      >>> AmortizedSampler.save.__name__  # calls it
      'save'
    """
    kept = {
        f.name: getattr(family, f.name) for f in dataclasses.fields(family) if f.name not in _OURS
    }
    both = {"model": _fields(family.model), "family": kept}
    described, arrays = registry.encode(_plain(both))
    numbered = {str(i): np.asarray(array) for i, array in enumerate(arrays)}
    with checkpoint.reserved(path):
        checkpoint.write(path, _KIND, {"target": family.model.name, "family": described}, numbered)


def check_can_be_kept(model: PaddedModel) -> None:
    """Warns of a model whose arguments hold what cannot be stored.

    Warns:
      RuntimeWarning: they do.
    """
    try:
        registry.encode(_plain(_fields(model)))
    except registry.EncodeError as error:
        warnings.warn(
            f"This family cannot be saved, for the arguments of model {model.name!r}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


def _fields(model: PaddedModel) -> dict[str, Any]:
    """A model but for its code."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    del fields["model"], fields["structure"]
    # The tree of the arguments, with places in lieu of leaves.
    places = list(range(model.structure.num_leaves))
    return fields | {"places": jax.tree.unflatten(model.structure, places)}


def load_family(path: str | os.PathLike[str], model: Callable[..., Any]) -> AmortizedSampler:
    """The family that `AmortizedSampler.save` kept.

    Args:
      path: the folder.
      model: what it was trained on.

    Raises:
      CheckpointError: the folder holds no family, or a damaged one.
      ValueError: the model is another one: its log density differs at some data sets that were
        kept with their values.

    Example:
      >>> import jax, jax.numpy as jnp, tempfile, consistent_samplers as cs
      >>> import numpyro, numpyro.distributions as dist
      >>> def model(x, y=None):
      ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
      ...     with numpyro.plate("rows", x.shape[0]):
      ...         numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
      >>> def covariates(rng_key, num_rows):
      ...     return (jax.random.normal(rng_key, (num_rows,)),), {}
      >>> tiny = dict(num_data_sets=200, num_iterations=(5, 5), progress_bar=False)  # for a test
      >>> family = cs.amortize(
      ...     jax.random.key(0), model, covariates, num_rows=(3, 6), observed={"y": "y"}, **tiny
      ... )
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     family.save(folder)
      ...     again = cs.load_family(folder, model)
      >>> again.num_rows
      (3, 6)
    """
    header, numbered = checkpoint.read(path, _KIND)
    arrays = [numbered[str(i)] for i in range(len(numbered))]
    try:
        kept = registry.decode(header["family"], arrays)
        fields, own = kept["model"], kept["family"]
        structure = jax.tree.structure(_as_given(fields.pop("places")))
        padded = PaddedModel(model=model, structure=structure, **fields)
        positions, values = own["probes"]
    except (registry.EncodeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a damaged family, or one of another version of consistent_samplers "
            f"({error}): train it again with cs.amortize."
        ) from error
    _check_known(padded, header["target"], positions, np.asarray(values))
    return AmortizedSampler(model=padded, **own)


def _check_known(model: PaddedModel, trained_on: str, positions: Any, values: np.ndarray) -> None:
    """Raises unless a model gives the log densities that were kept."""
    data, at_globals, at_members = positions
    about = f"The family was trained on model {trained_on!r}, and {name_of(model.model)!r} is"
    cure = "Give the model that it was trained on, or train a family of this one with cs.amortize."
    try:
        now = jit(jax.vmap(model.log_density))((at_globals, at_members), DataSet(*data))
        jax.eval_shape(jax.vmap(model.constrain), (at_globals, at_members), DataSet(*data))
    except KeyError as error:
        raise ValueError(f"{about} another one (it has no site {error}). {cure}") from error
    except Exception as error:
        raise ValueError(f"{about} another one ({error}). {cure}") from error
    away = np.abs(np.asarray(now) - values) / np.maximum(1.0, np.abs(values))
    if not (away <= _TOLERANCE).all():
        raise ValueError(
            f"{about} another one: its log density is {np.asarray(now)[0]:.5g} where that was "
            f"{values[0]:.5g}. {cure}"
        )


class _Items(NamedTuple):
    """A dictionary whose keys are not all strings."""

    pairs: tuple[tuple[Any, Any], ...]


def _plain(tree: Any) -> Any:
    """Dictionaries as they can be stored."""
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return type(tree)(_plain(value) for value in tree)
    if not isinstance(tree, dict):
        return tree
    plain = {key: _plain(value) for key, value in tree.items()}
    return plain if all(type(key) is str for key in tree) else _Items(tuple(plain.items()))


def _as_given(tree: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(tree, _Items):
        return {key: _as_given(value) for key, value in tree.pairs}
    if isinstance(tree, dict):
        return {key: _as_given(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return type(tree)(_as_given(value) for value in tree)
    return tree
