"""Samplers that simulate a controlled diffusion: a control loss on paths, and their replay.

DIS, DDS, PIS and CMCD differ in process, guidance and settings.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from consistent_samplers import schedules
from consistent_samplers.algorithms import replay
from consistent_samplers.algorithms.batches import PathBatch, batch_elbo
from consistent_samplers.algorithms.objectives import ON_POLICY, ControlLoss, PathLoss
from consistent_samplers.algorithms.on_paths import OnPaths, PathInfo
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now
from consistent_samplers.bases import Base
from consistent_samplers.bases.base import one_frame
from consistent_samplers.maps import Control
from consistent_samplers.schedules import annealing
from consistent_samplers.types import Array, ArrayTree, Method, Params, PRNGKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stochastic(OnPaths):
    """An iterative sampler: a control loss on whole paths, or on stretches of them.

    It samples in ``max_steps`` steps of the stochastic path unless told otherwise.

    Attributes:
      train_steps: numbers of steps of the training paths, powers of two, of which each iteration
        draws one: an eighth, a quarter and all of ``max_steps`` by default.
      loss: see `objectives.PathLoss`; ``"reverse_kl"`` and ``"path_gradient"`` back-propagate
        through the paths, the others do not.
      replay_share: share of further paths, relative to the batch, that end at points of a replay
        buffer; for losses without back-propagation.
      replay_capacity: end points that the buffer holds.

    Example:
      >>> from consistent_samplers.algorithms import Stochastic
      >>> Stochastic(max_steps=64, replay_share=0.5).num_replayed
      128
    """

    max_steps: int = 128
    batch_size: int = 256
    learning_rate: Any = 5e-3
    anneal_iterations: int = 500
    train_steps: Sequence[int] | None = None
    loss: ControlLoss = "log_variance"
    replay_share: float = 0.0
    replay_capacity: int = 8_192

    methods: ClassVar[tuple[Method, ...]] = ("path", "map", "heuristic")
    # The control of the continuous process has no step size, and a network that is shown one may
    # go anywhere at a size it was not trained at. Learned kernels depend on the size.
    step_conditioned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        schedules.check_max_steps(self.max_steps)
        if self.train_steps is not None:
            if not self.train_steps:
                raise ValueError("train_steps must name at least one number of steps.")
            for num_steps in self.train_steps:
                schedules.check_num_steps(num_steps, self.max_steps, "each of train_steps")
            object.__setattr__(self, "train_steps", tuple(map(int, self.train_steps)))
        if self.replay_share < 0 or (self.num_replayed and self.loss in ON_POLICY):
            raise ValueError(
                f"replay_share={self.replay_share} with loss={self.loss!r}: a share must not "
                f"be negative, and the losses {ON_POLICY} need paths of their own. Take "
                "loss='log_variance' or 'trajectory_balance' to train on replayed paths."
            )
        if self.num_replayed and self.replay_capacity < self.batch_size:
            raise ValueError(
                f"replay_capacity must be at least the batch size {self.batch_size}, got "
                f"{self.replay_capacity}."
            )
        self.path_loss()

    @property
    def num_replayed(self) -> int:
        """Replayed paths of an iteration."""
        return round(self.replay_share * self.batch_size)

    @property
    def default_steps(self) -> int:
        """All of them."""
        return self.max_steps

    @property
    def _train_steps(self) -> tuple[int, ...]:
        # The control hardly changes with d, and coarse paths cost less.
        default = [max(1, self.max_steps // share) for share in (8, 4, 1)]
        return tuple(default if self.train_steps is None else self.train_steps)

    def path_loss(self) -> PathLoss:
        """The control loss."""
        # Repeated numbers are drawn more often; each is compiled once.
        counts = tuple(sorted(set(self._train_steps)))
        return PathLoss(self.loss, self.batch_size, tuple(self.hidden), counts)

    def control(self, base: Base, network: Any) -> Control:
        """What is trained."""
        if self.num_replayed and not one_frame(base):
            raise ValueError(
                "replay_share needs a base of one component: the buffer holds points in its "
                "frame. Take a Gaussian base, or replay_share=0."
            )
        return super().control(base, network)

    def init_memory(self, control: Control, params: Params) -> ArrayTree:
        """The replay buffer, if any."""
        return replay.init(self.replay_capacity, control.dim) if self.num_replayed else ()

    def replayed(self, rng_key: PRNGKey, memory: Any) -> Array:
        """End points ``[num_replayed, dim]`` of further paths."""
        # While the buffer is empty its points are zeros: paths like any other.
        drawn = replay.draw(rng_key, memory, self.num_replayed)
        return jnp.where(memory.num_added > 0, drawn, 0.0)

    def remember(self, memory: Any, batch: PathBatch) -> ArrayTree:
        """The buffer with the ends of fresh paths."""
        return replay.add(memory, batch.position[:, batch.num_steps], batch.log_weight)

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The control loss of paths with a number of steps drawn among those of training."""
        key_count, key_replay, key_path = jax.random.split(now.rng_key, 3)
        path_loss, memory = self.path_loss(), now.state.memory
        choices = [path_loss.step_counts.index(n) for n in self._train_steps]
        replayed = self.replayed(key_replay, memory) if self.num_replayed else None
        which = jax.random.choice(key_count, jnp.asarray(choices))
        temper = annealing(now.state.iteration, self.anneal_iterations)
        value, batch = path_loss(
            params, now, key_path, evaluate, which=which, temper=temper, replayed=replayed
        )
        if self.num_replayed:
            memory = self.remember(memory, batch)
        elbo = batch_elbo(batch.log_weight)
        return Loss((value,), PathInfo(value, elbo, batch.num_steps, value), memory)
