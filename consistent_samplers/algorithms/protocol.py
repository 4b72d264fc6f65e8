"""What an algorithm is made of: an objective, an optimiser, and a state of arrays.

An objective is written once, as the loss of a batch that asks for the density with one call,

    log_rho = evaluate(points)          # [n, dim] -> [n], differentiable in the points

`learning` runs it, with the density outside of what is compiled or inside.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import optax

from consistent_samplers.maps import Control
from consistent_samplers.types import Array, ArrayTree, GradientFn, Method, Params, PRNGKey

Evaluate: TypeAlias = Callable[[Array], Array]
"""Log densities of a batch, ``[n, dim] -> [n]``, differentiable in the points."""


class SamplerState(NamedTuple):
    """Training state: arrays only.

    Attributes:
      params: parameters being trained.
      ema_params: their exponential moving average; what `Algorithm.sample` uses.
      opt_state: state of the optimiser.
      iteration: ``[]`` int, training iterations done.
      memory: what else an algorithm carries from one iteration to the next (a replay buffer, the
        teacher of a round), or an empty tuple.
      step_scale: ``[]``, what updates are multiplied by: below one where training that met NaN
        goes on with more care.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> state = cs.dis(target, base=base, max_steps=2, hidden=(8,)).init(jax.random.key(0))
      >>> int(state.iteration), sorted(state.params)
      (0, ['control'])
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
      >>> from consistent_samplers.algorithms import Adam
      >>> Adam(1e-3).transformation().init({"w": 0.0})[0]
      EmptyState()
    """

    learning_rate: float | optax.Schedule
    clip: float | None = 1.0

    def transformation(self) -> optax.GradientTransformation:
        """As optax has it."""
        adam = optax.adam(self.learning_rate)
        if self.clip is None:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.clip), adam)


class Now(NamedTuple):
    """What an objective knows of an iteration beside the parameters that it differentiates.

    Attributes:
      rng_key: key of the iteration.
      control: the control.
      state: the training state; its parameters are constants here.
      extra: constants of the algorithm: the teacher of a distillation.
      gradient: of the target's log density, for guided controls; None for others.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.algorithms import Now
      >>> algorithm = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), hidden=(8,))
      >>> key = jax.random.key(0)
      >>> now = Now(key, algorithm.control, algorithm.init(key))
      >>> int(now.state.iteration)
      0
    """

    rng_key: PRNGKey
    control: Control
    state: SamplerState
    extra: ArrayTree = ()
    gradient: GradientFn | None = None


class Loss(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
      parts: what is minimised, the sum of ``[]``.
      info: a NamedTuple of ``[]``, what the iteration reports: at least ``loss``, ``elbo`` and
        ``gradient_norm``, which the caller fills in.
      memory: `SamplerState.memory` after the iteration.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.algorithms import Loss
      >>> Loss(parts=(jnp.asarray(1.0),), info=None).memory
      ()
    """

    parts: tuple[Array, ...]
    info: Any
    memory: ArrayTree = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What an algorithm minimises, and its settings: a frozen dataclass, one a paper.

    Attributes:
      max_steps: number N of finest steps, a power of two. Sampling may take any power of two up to
        it.
      batch_size: draws of one iteration.
      learning_rate: Adam's; a number or an optax schedule.
      gradient_clip: on the global norm.
      ema_decay: of the parameters that sample.

    Example:
      >>> import consistent_samplers as cs
      >>> algorithm = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), max_steps=4)
      >>> isinstance(algorithm.objective, cs.algorithms.Objective), algorithm.objective.max_steps
      (True, 4)
    """

    max_steps: int = 1
    batch_size: int = 128
    learning_rate: float | optax.Schedule = 1e-3
    gradient_clip: float = 1.0
    ema_decay: float = 0.99

    name: ClassVar[str] = "objective"
    methods: ClassVar[tuple[Method, ...]] = ("map",)
    part_clip: ClassVar[str | None] = None
    """Name of the setting that clips the gradient of each part by itself, if any."""

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

        ``evaluate`` may be called once at most, outside of anything that JAX transforms
        (``jax.vmap``, ``jax.grad``, ``jax.lax.scan``): the loss itself is differentiated outside.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no loss: write its equation as __call__."
        )
