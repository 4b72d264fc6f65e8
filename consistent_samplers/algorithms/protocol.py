"""What an algorithm is made of: an objective, an optimiser, and a state of arrays.

An objective is written once, as the loss of a batch that asks for the density with one call,

    log_rho = evaluate(points)          # [n, dim] -> [n], differentiable in the points

`learning` runs it, with the density outside of what is compiled or inside.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import optax

from consistent_samplers.bases import Component
from consistent_samplers.maps import Control
from consistent_samplers.simulate import ControlFn
from consistent_samplers.types import Array, ArrayTree, GradientFn, Method, Params, PRNGKey

Evaluate: TypeAlias = Callable[[Array], Array]


class SamplerState(NamedTuple):
    """Training state: arrays only.

    Attributes:
      params: parameters being trained.
      ema_params: their exponential moving average; what `Algorithm.sample` uses.
      opt_state: state of the optimiser.
      iteration: ``[]`` int, training iterations done.
      memory: what else goes from one iteration to the next (a replay buffer, the teacher of a
        round), or an empty tuple.
      step_scale: ``[]``, factor of the updates: below one once training has met NaN.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> algorithm = cs.dis(cs.targets.funnel(2), base=cs.bases.standard_normal(2))
      >>> sorted(algorithm.init(jax.random.key(0)).params)
      ['control']
    """

    params: Params
    ema_params: Params
    opt_state: ArrayTree
    iteration: Array
    memory: ArrayTree = ()
    step_scale: Array | float = 1.0


@dataclasses.dataclass(frozen=True)
class Adam:
    """The optimiser unless another is given: Adam on gradients clipped by their global norm.

    Attributes:
      learning_rate: a number, or an optax schedule of the iteration.
      clip: largest global norm; None for no limit.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.algorithms.Adam(1e-3).transformation().init({"w": 0.0})[0]
      EmptyState()
    """

    learning_rate: float | optax.Schedule
    clip: float | None = 1.0

    def transformation(self) -> optax.GradientTransformation:
        """As optax has it."""
        adam, clip = optax.adam(self.learning_rate), self.clip
        return adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)


class Now(NamedTuple):
    """What an objective knows of an iteration beside the parameters that it differentiates.

    Attributes:
      rng_key: key of the iteration.
      control: the control.
      state: the training state; its parameters are constants here.
      extra: constants of the algorithm: the teacher of a distillation.
      gradient: of the target's log density, for guided controls; None for others.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.algorithms.Now(rng_key=None, control=None, state=None).extra
      ()
    """

    rng_key: PRNGKey
    control: Control
    state: SamplerState
    extra: ArrayTree = ()
    gradient: GradientFn | None = None

    def bind(self, params: Params, component: Component = ()) -> ControlFn:
        """The control function of some parameters in the frame of a component."""
        return self.control.bind(params, component, self.gradient)


class Loss(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
      parts: what is minimised, the sum of ``[]``.
      info: a NamedTuple of ``[]``, what the iteration reports: at least ``loss``, ``elbo``, a lower
        bound of log Z (`batches.batch_elbo`), and ``gradient_norm``, which the caller fills in.
      memory: `SamplerState.memory` after the iteration.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.algorithms.Loss(parts=(), info=None).memory
      ()
    """

    parts: tuple[Array, ...]
    info: Any
    memory: ArrayTree = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What an algorithm minimises, and its settings: a frozen dataclass, one a paper.

    Attributes:
      max_steps: number N of finest steps, a power of two; draws may take any power of two up to it.
      batch_size: draws of one iteration.
      learning_rate: Adam's; a number or an optax schedule.
      gradient_clip: on the global norm.
      ema_decay: of the parameters that sample.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.algorithms.Objective(learning_rate=1e-2).optimizer()
      Adam(learning_rate=0.01, clip=1.0)
    """

    max_steps: int = 1
    batch_size: int = 128
    learning_rate: float | optax.Schedule = 1e-3
    gradient_clip: float = 1.0
    ema_decay: float = 0.99

    name: ClassVar[str] = "objective"
    methods: ClassVar[tuple[Method, ...]] = ("map",)
    # Name of the setting that clips the gradient of each part by itself, if any.
    part_clip: ClassVar[str | None] = None

    @property
    def default_steps(self) -> int:
        """Number of steps of a draw unless told."""
        return 1

    def optimizer(self) -> Adam:
        """The optimiser unless another is given."""
        return Adam(self.learning_rate, None if self.part_clip else self.gradient_clip)

    def init(self, rng_key: PRNGKey, control: Control, evaluate: Evaluate) -> dict[str, Params]:
        """Parameters of the loss's own, beside the control's."""
        return {}

    def init_memory(self, control: Control, params: Params) -> ArrayTree:
        """`SamplerState.memory` of fresh parameters."""
        return ()

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The loss of one iteration.

        It may call ``evaluate`` once, outside of ``jax.vmap``, ``jax.grad`` and ``jax.lax.scan``.
        """
        what = type(self).__name__
        raise NotImplementedError(f"{what} has no loss: write its equation as __call__.")
