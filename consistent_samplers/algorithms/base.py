"""What every algorithm is: an objective, a control, an optimiser, and pure functions over a state.

An objective is written once, as the loss of a batch that asks for the density with one call,

    log_rho = evaluate(points)          # [n, dim] -> [n], differentiable in the points

and is run in one of two ways. With the density *outside*, the loss is run up to that call to learn
the points, the density is evaluated at them by programs of its own, and the loss is run again with
the answer: a value whose derivative by the points is the gradient found there. So nothing of ours
is compiled with anybody's density. With the density *inside* the loss runs once; that is how it is
traced as part of a larger computation, and how guided controls run, whose every step asks for it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from consistent_samplers.bases import Base
from consistent_samplers.compilation import as_partial, is_traced
from consistent_samplers.kernels import kernel
from consistent_samplers.maps import Control
from consistent_samplers.sampler import Sampler, method_of_bound
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import (
    Array,
    ArrayTree,
    Bound,
    Draws,
    GradientFn,
    Method,
    Params,
    PRNGKey,
)

Evaluate: TypeAlias = Callable[[Array], Array]
"""Log densities of a batch, ``[n, dim] -> [n]``, differentiable in the points."""

_UNSET: Any = object()


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


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A trainable sampler.

    Attributes:
      name: label for progress bars and tables.
      target: what is sampled.
      control: the control, its dynamics and its base.
      objective: what is minimised, with its settings.
      optimizer: `Adam`, or an optax transformation.
      extra: constants of the objective.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.dis(target, base=base, max_steps=2, hidden=(8,), batch_size=8)
      >>> state = algorithm.init(jax.random.key(0))
      >>> _, info = jax.eval_shape(algorithm.step, jax.random.key(1), state)
      >>> info._fields
      ('loss', 'elbo', 'num_steps', 'gradient_norm')
      >>> algorithm.methods
      ('path', 'map', 'heuristic')
      >>> draws = algorithm.sample(jax.random.key(2), state, 16, num_steps=1, weights=False)
      >>> draws.position.shape
      (16, 1)
    """

    name: str
    target: Target
    control: Control
    objective: Objective
    optimizer: Any
    extra: ArrayTree = ()

    @property
    def base(self) -> Base:
        """Where samples start."""
        return getattr(self.control.base, "own", self.control.base)

    @property
    def max_steps(self) -> int:
        """The number N of finest steps."""
        return self.objective.max_steps

    @property
    def methods(self) -> tuple[Method, ...]:
        """Which transitions its draws can take, the default first."""
        return self.objective.methods

    @property
    def asks_outside(self) -> bool:
        """Whether its iterations run with the density outside."""
        return not self.control.guided

    def init(self, rng_key: PRNGKey) -> SamplerState:
        """Fresh parameters and a fresh optimiser."""
        params = _init_params(self.control, rng_key)
        params = params | self.objective.init(rng_key, self.control, self._values)
        return self._from_params(params)

    def restart(self, state: SamplerState) -> SamplerState:
        """A fresh optimiser on a trained state's moving average.

        The state may come from another algorithm with the same network.
        """
        return self._from_params(state.ema_params)

    def step(self, rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, Any]:
        """One training iteration; pure and jittable.

        Returns:
          The next state, and a NamedTuple of scalars with at least ``loss`` and ``elbo``.
        """
        return self._step(rng_key, state, fold=False)

    def advance(self, rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, Any]:
        """`step` with the key ``fold_in(rng_key, state.iteration)``: what `fit` repeats."""
        return self._step(rng_key, state, fold=True)

    def sampler(self, state: SamplerState) -> Sampler:
        """The sampler of a state: a pytree without the density and the optimiser."""
        return Sampler(
            self.control,
            state.ema_params,
            self.max_steps,
            self.methods,
            self.objective.default_steps,
        )

    def sample(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        num_samples: int,
        num_steps: int | None = None,
        *,
        method: Method | None = None,
        weights: bool = True,
        mesh: Mesh | None = None,
        bound: Bound | None = _UNSET,
    ) -> Draws:
        """Draws ``num_samples`` points; see `Sampler.sample`.

        Few-step samplers take one step of the map by default, iterative ones all their steps and
        the path. ``bound`` is the earlier spelling of ``method`` and warns.
        """
        if bound is not _UNSET:
            method, weights = method_of_bound(bound, method)
        return self.sampler(state).sample(
            rng_key, self.target, num_samples, num_steps, method=method, weights=weights, mesh=mesh
        )

    def reverse_log_weight(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        position: Array,
        num_steps: int | None = None,
        *,
        method: Method | None = None,
        bound: Bound | None = _UNSET,
    ) -> Array:
        """Log weights ``[n]`` of given points ``[n, dim]``; see `Sampler.log_weight`."""
        if bound is not _UNSET:
            method, _ = method_of_bound(bound, method)
        return self.sampler(state).log_weight(
            rng_key, self.target, position, num_steps, method=method
        )

    def _values(self, points: Array) -> Array:
        return evaluation.values(self.target.log_density, points)

    def _from_params(self, params: Params) -> SamplerState:
        return _init_state(self.control, params, objective=self.objective, optimizer=self.optimizer)

    def _step(self, rng_key: PRNGKey, state: SamplerState, fold: bool) -> tuple[SamplerState, Any]:
        density = as_partial(self.target.log_density)
        learned = functools.partial(
            learn, objective=self.objective, optimizer=self.optimizer, fold=fold
        )
        if self.control.guided or is_traced((rng_key, state, density)):
            return learned(density, None, self.control, self.extra, rng_key, state)
        points = _ask(self.control, self.extra, rng_key, state, objective=self.objective, fold=fold)
        answer = None if points is None else evaluation.values_and_grads(density, points)
        return learned(None, answer, self.control, self.extra, rng_key, state)


@kernel(effort="least")
def _init_params(control: Control, rng_key: PRNGKey) -> Params:
    return control.init(jax.random.split(rng_key)[0])


@kernel(static=("objective", "optimizer"), effort="least")
def _init_state(
    control: Control, params: Params, *, objective: Objective, optimizer: Any
) -> SamplerState:
    iteration, memory = jnp.zeros((), jnp.int32), objective.init_memory(control, params)
    opt_state = _transformation(optimizer).init(params)
    return SamplerState(params, params, opt_state, iteration, memory, jnp.ones(()))


class _AskedError(Exception):
    """Carries the points out of an objective that asks for their densities."""


@kernel(static=("objective", "fold"), effort="least")
def _ask(
    control: Control,
    extra: ArrayTree,
    rng_key: PRNGKey,
    state: SamplerState,
    *,
    objective: Objective,
    fold: bool,
) -> Array | None:
    """The points ``[n, dim]`` whose densities an iteration asks for; None for none."""

    def ask(points: Array) -> Array:
        raise _AskedError(points)

    try:
        objective(state.params, _now(control, extra, rng_key, state, fold, None), ask)
    except _AskedError as asked:
        points: Array = asked.args[0]
        return points
    return None


@kernel(static=("objective", "optimizer", "fold"), effort="least")
def learn(
    density: Partial | None,
    answer: tuple[Array, Array] | None,
    control: Control,
    extra: ArrayTree,
    rng_key: PRNGKey,
    state: SamplerState,
    *,
    objective: Objective,
    optimizer: Any,
    fold: bool,
) -> tuple[SamplerState, Any]:
    """One iteration, given the density itself or its values and gradients."""
    gradient = None if density is None else jax.grad(lambda x: density(x))
    now = _now(control, extra, rng_key, state, fold, gradient)

    def evaluate(points: Array) -> Array:
        if density is not None:
            return jax.vmap(lambda x: density(x))(points)
        assert answer is not None
        return _answered(points, *answer)

    def parts(params: Params) -> tuple[tuple[Array, ...], Loss]:
        loss = objective(params, now, evaluate)
        return loss.parts, loss

    values, pull_back, loss = jax.vjp(parts, state.params, has_aux=True)
    ones = [jnp.ones_like(value) for value in values]
    if objective.part_clip is None:
        (grads,) = pull_back(tuple(ones))
        norm = optax.tree.norm(grads)
    else:
        limit = optax.clip_by_global_norm(getattr(objective, objective.part_clip))
        each = [
            pull_back(tuple(one if i == k else jnp.zeros_like(one) for i, one in enumerate(ones)))[
                0
            ]
            for k in range(len(ones))
        ]
        norm = jnp.stack([optax.tree.norm(g) for g in each]).sum()
        clipped = [limit.update(g, optax.EmptyState())[0] for g in each]
        grads = jax.tree.map(lambda *g: sum(g[1:], g[0]), *clipped)
    new_state = _updated(_transformation(optimizer), state, grads, objective.ema_decay)
    return new_state._replace(memory=loss.memory), loss.info._replace(gradient_norm=norm)


def _now(
    control: Control,
    extra: ArrayTree,
    rng_key: PRNGKey,
    state: SamplerState,
    fold: bool,
    gradient: GradientFn | None,
) -> Now:
    if fold:
        rng_key = jax.random.fold_in(rng_key, state.iteration)
    return Now(rng_key, control, state, extra, gradient)


@jax.custom_jvp
def _answered(points: Array, values: Array, grads: Array) -> Array:
    """Log densities ``[n]`` that were found, as a function of the points ``[n, dim]``."""
    return values


@_answered.defjvp
def _answered_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    _, values, grads = primals
    # Where the density is zero or overflows its gradient says nothing.
    grads = jnp.where(jnp.isfinite(grads), grads, 0.0)
    return values, jnp.sum(grads * tangents[0], axis=-1)


def _updated(
    optimizer: optax.GradientTransformation,
    state: SamplerState,
    grads: Params,
    ema_decay: float,
) -> SamplerState:
    """One optimiser update and the moving average; none where a gradient is not finite.

    A single path that overflows then costs one iteration, not the training.
    """
    finite = jnp.isfinite(optax.tree.norm(grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: state.step_scale * update, updates)
    params = optax.apply_updates(state.params, updates)
    # A young average follows closely, so that it is never stuck at its starting point.
    decay = jnp.minimum(ema_decay, (1.0 + state.iteration) / (10.0 + state.iteration))
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
    new_state = state._replace(params=params, ema_params=ema_params, opt_state=opt_state)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
    return kept._replace(iteration=state.iteration + 1)


def _transformation(optimizer: Any) -> optax.GradientTransformation:
    return optimizer.transformation() if isinstance(optimizer, Adam) else optimizer
