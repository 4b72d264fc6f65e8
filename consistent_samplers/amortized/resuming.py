"""How far a family's training has come, on disk."""

import time
import warnings
from pathlib import Path
from typing import Any

from consistent_samplers import checkpoint
from consistent_samplers.checkpoint import CheckpointError
from consistent_samplers.types import ArrayTree, PRNGKey

_KIND = "training of an amortized family"
_SECONDS = 10.0  # at least, between two checkpoints


class Folder:
    """A folder that keeps one stage of training, which the same call goes on with.

    Args:
      path: the folder.
      rng_key: of the stage; with what follows it tells one training from another.
      num_iterations: of the stage, along which its learning rate falls.
      start: arrays that it sets out from, those of the data sets among them.
    """

    def __init__(self, path: Path, rng_key: PRNGKey, num_iterations: int, start: ArrayTree) -> None:
        self._path = path
        self._written = time.monotonic()
        self._identity: dict[str, Any] = {
            "rng_key": checkpoint.numbers_of(rng_key),
            "num_iterations": num_iterations,
            "start": checkpoint.digest(start),
        }

    def read(self, like: ArrayTree) -> tuple[Any, list[float]]:
        """What was reached and the losses so far; ``like``, the first state, where that is nothing.

        Raises:
          CheckpointError: the folder is damaged, or holds another training.
        """
        if not checkpoint.exists(self._path):
            self._write(like, [])
            return like, []
        header, arrays = checkpoint.read(self._path, _KIND)
        if other := [name for name, value in self._identity.items() if header.get(name) != value]:
            raise CheckpointError(
                f"{self._path} holds a training of another {' and '.join(other)}. Take another "
                "folder, or delete that one."
            )
        return checkpoint.from_arrays(like, arrays, "state"), header["losses"]

    def write_if_due(self, reached: ArrayTree, losses: list[float]) -> None:
        """`write`, unless that was done a moment ago."""
        if time.monotonic() - self._written >= _SECONDS:
            self.write(reached, losses)

    def write(self, reached: ArrayTree, losses: list[float]) -> None:
        """Keeps what was reached. A full disk ends no training: a warning says so."""
        self._written = time.monotonic()
        try:
            self._write(reached, losses)
        except CheckpointError as error:
            warnings.warn(f"{error} Training goes on.", RuntimeWarning, stacklevel=3)

    def _write(self, reached: ArrayTree, losses: list[float]) -> None:
        header = self._identity | {"losses": losses}
        checkpoint.write(self._path, _KIND, header, checkpoint.to_arrays(reached))
