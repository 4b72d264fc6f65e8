"""Trained samplers read from the folders that keep them."""

import dataclasses
import os
import warnings

import numpy as np

from consistent_samplers import checkpoint, registry
from consistent_samplers.recipe.trained import KIND, NUM_COMPARED, TrainedSampler
from consistent_samplers.targets import Target, evaluation

# Two log densities agree that differ by no more than this, relative to one plus their size.
_COMPARED_TOLERANCE = 1e-3


def load(path: str | os.PathLike[str], target: Target) -> TrainedSampler:
    """The trained sampler that `TrainedSampler.save` kept, on the devices of this process.

    Args:
      path: the folder.
      target: what the sampler was trained on. Another density of the same dimension is taken too,
        with a warning: weights are always those of the target given here.

    Raises:
      CheckpointError: the folder holds no trained sampler, a damaged one, one of a newer version of
        this package, one of another dimension, or a base or network whose class is not registered
        in this process.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.osds(target, base=base, max_steps=2, hidden=(8,), guidance=None)
      >>> trained = cs.TrainedSampler.of(algorithm, algorithm.init(jax.random.key(0)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     trained.save(folder)
      ...     again = cs.load(folder, target)
      >>> again.one_step.control.network == trained.one_step.control.network
      True
    """
    header, arrays = checkpoint.read(path, KIND)
    try:
        if header["dim"] != target.dim:
            raise checkpoint.CheckpointError(
                f"The sampler in {path} has {header['dim']} dimensions (target "
                f"{header['target']!r}), but the target {target.name!r} has {target.dim}: give the "
                "target that it was trained on."
            )
        in_order = [arrays[str(i)] for i in range(len(arrays))]
        kept = registry.decode(header["sampler"], in_order)
        position, was = kept.pop("compared")
        trained = TrainedSampler(target, **kept)
    except registry.EncodeError as error:
        raise checkpoint.CheckpointError(
            f"The sampler in {path} cannot be read: {error}"
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"The sampler in {path} is incomplete ({error!r}): another version of the package "
            "wrote it, or it was damaged. Train again."
        ) from error
    was = np.asarray(was, np.float64)
    now = np.asarray(evaluation.values(target.log_density, position), np.float64)
    with np.errstate(invalid="ignore"):  # two that are -inf agree
        difference = np.where(now == was, 0.0, np.abs(now - was))
    same = difference <= _COMPARED_TOLERANCE * (1.0 + np.abs(was))
    if not np.all(same | (np.isnan(now) & np.isnan(was))):
        warnings.warn(
            f"The density of target {target.name!r} is not the one that the sampler in {path} was "
            f"trained on: they differ by up to {np.nanmax(difference):.3g} nats at "
            f"{NUM_COMPARED} points. Its draws are weighted for the new one; train again where "
            "the weights turn out uneven.",
            stacklevel=2,
        )
        # What was looked for and measured belongs to the other density.
        return dataclasses.replace(trained, stages={}, exploration=None, route=None, chains=None)
    return trained
