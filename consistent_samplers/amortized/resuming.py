"""How far a family's training has come, on disk."""

import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import checkpoint
from consistent_samplers.checkpoint import CheckpointError
from consistent_samplers.types import Array, PRNGKey

_KIND = "training of an amortized family"
_SECONDS = 10.0  # at least, between two checkpoints


class Folder:
    """A folder that keeps one stage of training, which the same call goes on with.

    Args:
      path: the folder.
      rng_key: of the stage; with what follows it tells one training from another.
      num_iterations: of the stage, along which its learning rate falls.
      pairs: what is trained on, ``[n, g]``.
    """

    def __init__(self, path: Path, rng_key: PRNGKey, num_iterations: int, pairs: Array) -> None:
        if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
            rng_key = jax.random.key_data(rng_key)
        self._path = path
        self._written = time.monotonic()
        self._identity: dict[str, Any] = {
            "rng_key": np.asarray(rng_key).tolist(),
            "num_iterations": num_iterations,
            "data sets": checkpoint.digest(pairs),
        }

    def read(self, start: Any) -> tuple[Any, list[float]]:
        """What was reached, a tree like ``start``, and the losses so far; ``start`` if nothing.

        Raises:
          CheckpointError: the folder is damaged, or holds another training.
        """
        self._identity["start"] = checkpoint.digest(start)
        if not checkpoint.exists(self._path):
            self.write(start, [], warn=False)
            return start, []
        header, arrays = checkpoint.read(self._path, _KIND)
        if other := [name for name, value in self._identity.items() if header.get(name) != value]:
            raise CheckpointError(
                f"{self._path} holds a training of another {' and '.join(other)}. Take another "
                "folder, or delete that one."
            )
        return checkpoint.from_arrays(start, arrays, "state"), header["losses"]

    def write_if_due(self, reached: Any, losses: list[float]) -> None:
        """`write`, unless that was done a moment ago."""
        if time.monotonic() - self._written >= _SECONDS:
            self.write(reached, losses)

    def write(self, reached: Any, losses: list[float], *, warn: bool = True) -> None:
        """Keeps what was reached. A full disk ends no training: a warning says so."""
        self._written = time.monotonic()
        header = self._identity | {"losses": losses}
        try:
            checkpoint.write(self._path, _KIND, header, checkpoint.to_arrays(reached))
        except CheckpointError as error:
            if not warn:
                raise
            warnings.warn(f"{error} Training goes on.", RuntimeWarning, stacklevel=3)
