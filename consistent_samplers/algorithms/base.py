"""What every algorithm is: pure functions over a state of arrays."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from consistent_samplers.algorithms.control import Control
from consistent_samplers.bases import Base
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, ArrayTree, Bound, Draws, Params, PRNGKey

_P = ParamSpec("_P")


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
      >>> state = cs.dis(cs.targets.funnel(2), max_steps=2, hidden=(8,)).init(jax.random.key(0))
      >>> int(state.iteration), sorted(state.params)
      (0, ['control'])
    """

    params: Params
    ema_params: Params
    opt_state: ArrayTree
    iteration: Array
    memory: ArrayTree = ()
    step_scale: Array | float = 1.0


class SampleFn(Protocol):
    """``(rng_key, state, num_samples, num_steps=..., *, bound=..., mesh=...) -> Draws``."""

    def __call__(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        num_samples: int,
        num_steps: int = ...,
        *,
        bound: Bound | None = ...,
        mesh: Mesh | None = ...,
    ) -> Draws:
        """Draws ``num_samples`` points in ``num_steps`` steps each."""
        ...


class ReverseFn(Protocol):
    """``(rng_key, state, position, num_steps=..., *, bound=...) -> log_weight``."""

    def __call__(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        position: Array,
        num_steps: int = ...,
        *,
        bound: Bound = ...,
    ) -> Array:
        """Log weights ``[n]`` of given points ``[n, dim]`` under the sampler run in reverse."""
        ...


DrawFn: TypeAlias = Callable[[Params, PRNGKey, int, Bound | None], Draws]
"""``(params, rng_key, num_steps, bound)``: one draw."""

ReverseOneFn: TypeAlias = Callable[[Params, PRNGKey, Array, int, Bound], Array]
"""``(params, rng_key, position, num_steps, bound)``: one point's log weight."""

RoundTripFn: TypeAlias = Callable[[Params, PRNGKey, int], Array]
"""``(params, rng_key, num_steps)``: distance from the base draw of that key to what the inverse
map makes of its image, in base standard deviations."""


class PerDraw(NamedTuple):
    """What an algorithm does for one draw: pure, to be mapped, sharded or compiled as one likes.

    Attributes:
      draw: one draw.
      reverse: the log weight of one point.
      round_trip: what the deterministic map's numerical inverse misses.
    """

    draw: DrawFn
    reverse: ReverseOneFn
    round_trip: RoundTripFn


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A trainable sampler, as pure functions.

    Attributes:
      name: label for progress bars and tables.
      target: what is sampled.
      base: where samples start.
      max_steps: the number N of finest steps.
      control: the control and its dynamics.
      init: ``(rng_key) -> SamplerState``.
      restart: ``(state) -> SamplerState``, a fresh optimiser on a trained state's parameters;
        the state may come from another algorithm with the same network.
      step: ``(rng_key, state) -> (state, info)``, one training iteration; pure and jittable.
        ``info`` is a NamedTuple of scalars with at least ``loss`` and ``elbo``.
      sample: ``(rng_key, state, num_samples, num_steps, *, bound, mesh) -> Draws``. ``bound``
        chooses the weights: ``"lower-if-injective"`` the deterministic map with its exact
        determinant, ``"lower"`` the stochastic path, ``"heuristic"`` the OSDS paper's trace,
        None draws without weights. Few-step samplers take one step and the map by default,
        iterative ones all their steps and the path. ``mesh`` spreads the draws over devices.
      reverse_log_weight: ``(rng_key, state, position, num_steps, *, bound) -> log_weight``:
        what a draw that ended at each point ``[n, dim]`` would weigh, with the path back to the
        base made up by the backward kernels, or by inverting the map (NaN where that fails).
        The mean over exact draws of the target is an evidence upper bound.
      bounds: kinds of weight that it can give, its default first.
      per_draw: what `sample` and `reverse_log_weight` do for one point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(1), jnp.ones(1))
      >>> algorithm = cs.dis(target, max_steps=2, hidden=(8,), batch_size=8)
      >>> state = algorithm.init(jax.random.key(0))
      >>> _, info = jax.eval_shape(algorithm.step, jax.random.key(1), state)
      >>> info._fields
      ('loss', 'elbo', 'num_steps', 'gradient_norm')
      >>> algorithm.bounds
      ('lower', 'lower-if-injective', 'heuristic')
      >>> draws = algorithm.sample(jax.random.key(2), state, 16, num_steps=1, bound=None)
      >>> draws.position.shape
      (16, 1)
    """

    name: str
    target: Target
    base: Base
    max_steps: int
    control: Control
    init: Callable[[PRNGKey], SamplerState]
    restart: Callable[[SamplerState], SamplerState]
    step: Callable[[PRNGKey, SamplerState], tuple[SamplerState, Any]]
    sample: SampleFn
    reverse_log_weight: ReverseFn
    bounds: tuple[Bound, ...]
    per_draw: PerDraw


class WithPaperPreset(Generic[_P]):
    """An algorithm's constructor, with the settings of its paper as ``.paper(...)``."""

    def __init__(
        self, constructor: Callable[_P, Algorithm], paper: Callable[..., Algorithm]
    ) -> None:
        self._constructor = constructor
        self.paper = paper
        functools.update_wrapper(self, constructor)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> Algorithm:
        """Builds the algorithm with the defaults of this package."""
        return self._constructor(*args, **kwargs)


def check_base(target: Target, base: Base) -> None:
    """Raises unless base and target live in the same space.

    Raises:
      ValueError: their dimensions differ.
    """
    if base.dim != target.dim:
        raise ValueError(
            f"The base has dimension {base.dim} but target {target.name!r} has {target.dim}. "
            f"Build the base for this target, e.g. cs.bases.fit_gaussian(rng_key, target)."
        )


def check_one_frame(teacher: Algorithm) -> None:
    """Raises unless the teacher's base is a Gaussian.

    Raises:
      ValueError: it has several components.
    """
    if teacher.control.in_frame is not None:
        raise ValueError(
            f"The teacher {teacher.name!r} starts from a base of several components, which "
            "distillation of a teacher does not follow. Train the teacher on a Gaussian base, or "
            "use cs.osds or cs.scds, which distil themselves on any base."
        )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises unless an option has one of its values.

    Raises:
      ValueError: it has not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}.")


def init_and_restart(
    init_params: Callable[[PRNGKey], Params],
    optimizer: optax.GradientTransformation,
    init_memory: Callable[[Params], ArrayTree] = lambda params: (),
) -> tuple[Callable[[PRNGKey], SamplerState], Callable[[SamplerState], SamplerState]]:
    """`Algorithm.init` and `Algorithm.restart` of parameters and their optimiser."""

    def from_params(params: Params) -> SamplerState:
        iteration, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
        memory = init_memory(params)
        return SamplerState(params, params, opt_state, iteration, memory, jnp.ones(()))

    return (lambda key: from_params(init_params(key))), (lambda s: from_params(s.ema_params))


def apply_gradients(
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
    ema_params = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema_params, params)
    new_state = state._replace(params=params, ema_params=ema_params, opt_state=opt_state)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
    return kept._replace(iteration=state.iteration + 1)
