"""What samplers that simulate a controlled diffusion share: settings, objective, constructor.

DIS, DDS and PIS differ in process, guidance and settings; OSDS and SCDS add consistency.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from consistent_samplers import networks, schedules
from consistent_samplers.algorithms import building, objectives, replay
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor
from consistent_samplers.algorithms.objectives import ON_POLICY, ControlLoss, PathBatch, PathLoss
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective
from consistent_samplers.bases import Base, standard_normal
from consistent_samplers.bases.base import one_frame
from consistent_samplers.checks import check_choice, check_widths
from consistent_samplers.maps import Control, Guidance, LearnedKernels
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, ArrayTree, Method, Params, PRNGKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPaths(Objective):
    """Settings of every objective that simulates paths, beside those of `Objective`.

    Attributes:
      anneal_iterations: over which the training target passes from the base to ρ, so that modes
        are shared out before they part; 0 for none.
      hidden: widths of the networks' hidden layers.
      guidance: target gradient inside the control, see `maps.Guidance`.
      elementwise_gain: let the network also scale each coordinate of x.
      path_dtype: of the network's hidden layers along the stochastic paths of training alone:
        ``jnp.bfloat16`` is faster where a device is made for it.
      schedule: noising rate; the algorithm's own if None.
      integrator: discretisation of the SDE and the flow.
      learned_kernels: see `maps.LearnedKernels`. Train them at the numbers of steps to be sampled.

    Example:
      >>> import consistent_samplers as cs
      >>> settings = cs.algorithms.OnPaths(max_steps=4, hidden=(8,))
      >>> control = settings.control(cs.bases.standard_normal(2), network="general")
      >>> control.max_flow_steps, control.guided
      (4, False)
    """

    anneal_iterations: int = 100
    hidden: tuple[int, ...] = (64, 64)
    guidance: Guidance = None
    elementwise_gain: bool = True
    path_dtype: DTypeLike | None = None
    schedule: NoisingRate | None = None
    integrator: Integrator = "exponential"
    learned_kernels: LearnedKernels = None

    own_schedule: ClassVar[NoisingRate] = schedules.linear()
    step_conditioned: ClassVar[bool] = True

    def process(self) -> OrnsteinUhlenbeck:
        """The noising process."""
        return OrnsteinUhlenbeck(self.schedule or self.own_schedule, self.integrator)

    def path_loss(self) -> PathLoss | None:
        """The control loss, if any."""
        return None

    def init(self, rng_key: PRNGKey, control: Control, evaluate: Evaluate) -> dict[str, Params]:
        """Parameters of the control loss."""
        loss = self.path_loss()
        return {} if loss is None else loss.init(rng_key, control, evaluate)

    def control(self, base: Base, network: Any) -> Control:
        """What is trained."""
        check_choice("guidance", self.guidance, (None, "ratio", "interpolated"))
        check_choice("learned_kernels", self.learned_kernels, (None, "backward", "both"))
        check_widths(self.hidden)
        dim, hidden = base.dim, tuple(self.hidden)
        general = functools.partial(networks.StepConditionedMLP, dim, hidden, self.elementwise_gain)
        chosen = building.choose_network(network, dim, general, hidden)
        if hasattr(chosen, "split") and self.guidance is not None:
            raise ValueError("network='structured' goes with guidance=None only.")
        if self.path_dtype is not None and not isinstance(chosen, networks.StepConditionedMLP):
            raise ValueError("path_dtype goes with network='general' only.")
        correction = networks.KernelCorrection(dim, hidden)
        # The papers' gate starts at one: an untrained control is the interpolated score.
        gate = networks.Gate(dim, 1.0 if self.guidance == "interpolated" else 0.0)
        sees_step = self.step_conditioned or self.learned_kernels is not None
        control = Control(
            base,
            chosen,
            self.process(),
            self.max_steps,
            self.guidance,
            gate=None if self.guidance is None else gate,
            backward=None if self.learned_kernels is None else correction,
            forward_scale=correction if self.learned_kernels == "both" else None,
            shown_step=None if sees_step else 1.0 / self.max_steps,
            path_dtype=self.path_dtype,
        )
        if not isinstance(network, str):
            building.check_control(control)
        return control


_ARGUMENTS = """
Args:
  target: what to sample.
  base: where samples start; fitted to the target if None.
  network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
  optimizer: an optax transformation; Adam at ``learning_rate`` if None.
  **settings: see `{}`; the defaults are ours, those of the paper in ``.paper``.

Raises:
  TypeError: no such setting.
  ValueError: base and target differ in dimension, or a setting is out of range.

Example:"""


def on_paths(objective: type[OnPaths], paper: Callable[..., dict[str, Any]]) -> Constructor:
    """The constructor of an objective on paths, whose summary and example it has."""

    def make(
        target: Target,
        *,
        base: Base | None = None,
        network: Any = "general",
        optimizer: optax.GradientTransformation | None = None,
        **settings: Any,
    ) -> Algorithm:
        chosen = objective(**settings)
        schedules.check_max_steps(chosen.max_steps)
        control = chosen.control(building.choose_base(target, base), network)
        return building.build(target, chosen, control=control, optimizer=optimizer)

    summary, _, example = inspect.cleandoc(objective.__doc__ or "").partition("\nExample:")
    summary = summary.partition("\nAttributes:")[0]
    make.__doc__ = summary + _ARGUMENTS.format(objective.__name__) + example
    make.__module__, make.__name__ = objective.__module__, objective.name
    return Constructor(make, objective, paper)


def paper_settings(target: Target, **own: Any) -> dict[str, Any]:
    """What the settings of all papers on paths share, and one paper's own."""
    base = standard_normal(target.dim)
    shared = {"max_steps": 128, "anneal_iterations": 0, "elementwise_gain": False}
    return {"base": base, **shared, **own}


def all_steps(**own: Any) -> Callable[[Target, dict[str, Any]], dict[str, Any]]:
    """The preset of a paper whose training paths take all steps."""

    def settings(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
        train_steps = (overrides.get("max_steps", 128),)
        return paper_settings(target, learning_rate=5e-3, train_steps=train_steps, **own)

    return settings


class PathInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array
    elbo: Array  # mean log weight of this batch's paths
    num_steps: Array  # of the paths
    gradient_norm: Array  # before clipping


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
                schedules.check_num_steps(num_steps, self.max_steps)
            object.__setattr__(self, "train_steps", tuple(self.train_steps))
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
        temper = objectives.annealing(now.state.iteration, self.anneal_iterations)
        value, batch = path_loss(
            params, now, key_path, evaluate, which=which, temper=temper, replayed=replayed
        )
        if self.num_replayed:
            memory = self.remember(memory, batch)
        elbo = batch.log_weight.mean()
        return Loss((value,), PathInfo(value, elbo, batch.num_steps, value), memory)
