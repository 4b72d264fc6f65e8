"""What a training of the recipe was asked for, and what it sets out from."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from consistent_samplers.bases import Base
from consistent_samplers.recipe.route import Effort
from consistent_samplers.recipe.trained import TrainedSampler


class Plan(NamedTuple):
    """What was asked for."""

    num_samples: int
    effort: Effort
    max_steps: int
    hidden: tuple[int, ...]
    network: Any
    optimizer: Any
    distillation: int  # iterations of OSDS
    rounds: tuple[int, ...]  # iterations of each round of calibration
    explore: bool
    progress_bar: bool
    folder: Path | None  # of checkpoints


class Start(NamedTuple):
    """What training sets out from."""

    base: Base
    explored: bool  # whether modes were looked for, and are to be looked for again
    modes: Any = None  # that the base was not fitted to
    particle_log_z: float = math.nan
    particles: Any = None
    known: Any = None  # all modes that were found
    trained: TrainedSampler | None = None  # what it goes on from
