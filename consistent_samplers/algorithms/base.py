"""What every algorithm is: pure functions over a state of arrays, and a shared way to sample."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import simulate
from consistent_samplers.bases import GaussianBase
from consistent_samplers.networks import Network
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.targets.base import Target
from consistent_samplers.types import (
    BOUNDS,
    Array,
    ArrayTree,
    Bound,
    Draws,
    FlowDiagnostics,
    Params,
    PRNGKey,
)

# Floats of Jacobians held at once while drawing with exact weights: 64 MiB.
_MAX_JACOBIAN_FLOATS = 2**24
_MAX_CHUNK = 16_384
_NUM_ROUND_TRIPS = 256

_P = ParamSpec("_P")


class SamplerState(NamedTuple):
    """Training state: arrays only.

    Attributes:
      params: parameters being trained.
      ema_params: their exponential moving average; what `Algorithm.sample` uses.
      opt_state: state of the optimiser.
      iteration: ``[]`` int, training iterations done.
    """

    params: Params
    ema_params: Params
    opt_state: ArrayTree
    iteration: Array


class SampleFn(Protocol):
    """``(rng_key, state, num_samples, num_steps=1, *, bound=...) -> Draws``."""

    def __call__(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        num_samples: int,
        num_steps: int = 1,
        *,
        bound: Bound | None = "lower-if-injective",
    ) -> Draws:
        """Draws ``num_samples`` points in ``num_steps`` steps each."""
        ...


@dataclasses.dataclass(frozen=True)
class Control:
    """What is trained and how it moves points: shared by sampling and by later stages.

    Attributes:
      network: the control's network.
      frozen_network: the same with the target gradient held constant under differentiation;
        only the papers' heuristic weight uses it.
      process: noising process.
      log_density: log ρ in the base's whitened coordinates.
    """

    network: Network
    frozen_network: Network
    process: OrnsteinUhlenbeck
    log_density: Callable[[Array], Array]

    def bind(self, params: Params) -> simulate.ControlFn:
        """The control function of some parameters."""
        return functools.partial(self.network.apply, params)


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
      sample: ``(rng_key, state, num_samples, num_steps=1, *, bound="lower-if-injective") ->
        Draws``. ``bound`` chooses the weights: ``"lower-if-injective"`` the deterministic map
        with its exact determinant, ``"lower"`` the stochastic path, ``"heuristic"`` the OSDS
        paper's trace, None the deterministic map without weights.
    """

    name: str
    target: Target
    base: GaussianBase
    max_steps: int
    control: Control
    init: Callable[[PRNGKey], SamplerState]
    restart: Callable[[SamplerState], SamplerState]
    step: Callable[[PRNGKey, SamplerState], tuple[SamplerState, Any]]
    sample: SampleFn


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


def check_base(target: Target, base: GaussianBase) -> None:
    """Raises unless base and target live in the same space.

    Raises:
      ValueError: their dimensions differ.
    """
    if base.dim != target.dim:
        raise ValueError(
            f"The base has dimension {base.dim} but target {target.name!r} has {target.dim}. "
            f"Build the base for this target, e.g. cs.bases.fit_gaussian(rng_key, target)."
        )


def init_and_restart(
    network: Network, optimizer: optax.GradientTransformation
) -> tuple[Callable[[PRNGKey], SamplerState], Callable[[SamplerState], SamplerState]]:
    """`Algorithm.init` and `Algorithm.restart` of a network and its optimiser."""

    def from_params(params: Params) -> SamplerState:
        return SamplerState(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))

    return (lambda key: from_params(network.init(key))), (lambda s: from_params(s.ema_params))


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
    params = optax.apply_updates(state.params, updates)
    # A young average follows closely, so that it is never stuck at its starting point.
    decay = jnp.minimum(ema_decay, (1.0 + state.iteration) / (10.0 + state.iteration))
    ema_params = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema_params, params)
    new_state = SamplerState(params, ema_params, opt_state, state.iteration)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
    return kept._replace(iteration=state.iteration + 1)


def build_sample(base: GaussianBase, control: Control, max_steps: int) -> SampleFn:
    """The `Algorithm.sample` of a control: chunked, so that memory does not grow with draws."""

    def one_draw(params: Params, key: PRNGKey, num_steps: int, bound: Bound | None) -> Draws:
        key_base, key_path = jax.random.split(key)
        process, log_density = control.process, control.log_density
        u = control.bind(params)
        z0 = jax.random.normal(key_base, (base.dim,))
        if bound is None:
            return Draws(base.unwhiten(simulate.flow_map(u, process, z0, num_steps)))
        flow = None
        if bound == "lower":
            path = simulate.stochastic_path(key_path, z0, u, process, log_density, num_steps)
            z1, log_weight = path.position[-1], path.log_weight
        elif bound == "heuristic":
            frozen = functools.partial(control.frozen_network.apply, params)
            z1, log_weight = simulate.heuristic_flow_log_weight(
                key_path, z0, u, frozen, process, log_density, num_steps
            )
        else:
            flow_path = simulate.flow_path(u, process, z0, num_steps)
            z1 = flow_path.position[-1]
            log_weight = simulate.flow_log_weight(flow_path, log_density)
            flow = FlowDiagnostics(jnp.any(flow_path.sign <= 0), jnp.full((), jnp.nan))
        # A point of zero density has weight zero, whatever the arithmetic around it made of it.
        log_rho = log_density(z1)
        log_weight = jnp.where(jnp.isneginf(log_rho), -jnp.inf, log_weight)
        return Draws(base.unwhiten(z1), log_weight, log_rho - base.log_abs_det, flow, bound)

    @functools.partial(jax.jit, static_argnames=("num_samples", "num_steps", "bound"))
    def draw(
        rng_key: PRNGKey, params: Params, num_samples: int, num_steps: int, bound: Bound | None
    ) -> Draws:
        chunk = _MAX_CHUNK
        if bound == "lower-if-injective":
            chunk = min(chunk, max(1, _MAX_JACOBIAN_FLOATS // (num_steps * base.dim**2)))
        keys = jax.random.split(rng_key, num_samples)
        return jax.lax.map(
            lambda key: one_draw(params, key, num_steps, bound), keys, batch_size=chunk
        )

    # Compiled apart from the draws: one compilation serves every number of samples.
    @functools.partial(jax.jit, static_argnames="num_steps")
    def round_trip_errors(params: Params, keys: Array, num_steps: int) -> Array:
        """Distance from x0 to the map's Newton inverse at T(x0), in standard deviations."""

        def error(key: PRNGKey) -> Array:
            u = control.bind(params)
            z0 = jax.random.normal(jax.random.split(key)[0], (base.dim,))
            z1 = simulate.flow_map(u, control.process, z0, num_steps)
            back = simulate.invert_flow(u, control.process, z1, num_steps)
            return jnp.sqrt(jnp.mean((back - z0) ** 2))

        chunk = max(1, _MAX_JACOBIAN_FLOATS // base.dim**2)
        return jax.lax.map(error, keys, batch_size=chunk)

    def sample(
        rng_key: PRNGKey,
        state: SamplerState,
        num_samples: int,
        num_steps: int = 1,
        *,
        bound: Bound | None = "lower-if-injective",
    ) -> Draws:
        check_num_steps(num_steps, max_steps)
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}.")
        if bound is not None and bound not in BOUNDS:
            raise ValueError(f"bound must be None or one of {BOUNDS}, got {bound!r}.")
        draws = draw(rng_key, state.ema_params, num_samples, num_steps, bound)
        if draws.flow is None:
            return draws
        num = min(num_samples, _NUM_ROUND_TRIPS)
        keys = jax.random.split(rng_key, num_samples)[:num]
        errors = round_trip_errors(state.ema_params, keys, num_steps)
        measured = draws.flow.round_trip_error.at[:num].set(errors)
        return draws.replace(flow=draws.flow._replace(round_trip_error=measured))

    return sample
