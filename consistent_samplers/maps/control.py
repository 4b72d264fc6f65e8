"""The control that an algorithm trains, and how it moves points: a pytree without a density.

Its functions are for one point. They return where a draw lands and a log ratio r, so that
log ρ(x) + r is the log weight: the density at x is the caller's to evaluate. A guided control
takes the density's gradient as an argument.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from consistent_samplers import simulate
from consistent_samplers.bases import Base, Component
from consistent_samplers.networks import Gate, KernelCorrection, Network, clip_norm
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey

Guidance: TypeAlias = Literal["ratio", "interpolated"] | None
"""The target's gradient inside the control: ``"ratio"`` ∇ log(ρ/p0) at every t, which a one-step
map sees too; ``"interpolated"`` the OSDS and SCDS papers' score lerp(∇ log p0, ∇ log ρ, t), which
at the base is blind to the target; or None."""

LearnedKernels: TypeAlias = Literal["backward", "both"] | None
"""Corrections that are learned: mean and scale of the backward kernels, or the scale of the
generative ones as well."""

MAX_INVERSION_ERROR = 1e-2
"""A point counts as inverted if the map returns to it within this many standard deviations."""

# Bounds on the guidance: on the norm of the ratio, times √dim; on each coordinate of the papers'.
_MAX_RATIO, _MAX_INTERPOLATED = 2.0, 1e2


class Proposal(NamedTuple):
    """One draw without the density: log ρ(position) + log_ratio is its log weight.

    Attributes:
      position: ``[dim]``.
      log_ratio: ``[]`` in nats; zero where none was asked for.
      folded: ``[]`` bool, whether a step's determinant is not positive; None of a stochastic path.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.maps import Proposal
      >>> drawn = Proposal(position=jnp.zeros(2), log_ratio=jnp.asarray(1.84))
      >>> round(float(-0.5 * drawn.position @ drawn.position + drawn.log_ratio), 2)  # log weight
      1.84
    """

    position: Array
    log_ratio: Array
    folded: Array | None = None


@flax.struct.dataclass
class Control:
    """What is trained and how it moves points: shared by sampling and by later stages.

    Parameters are a dictionary: ``"control"`` the network's, ``"gate"`` of the guidance,
    ``"backward"`` and ``"forward_scale"`` of learned kernels, and what else a loss brings along.

    Attributes:
      base: where samples start.
      network: u(x, t, d): a linen module or a `networks.Network`. One that takes ``features`` is
        shown the component of the base, one that has a ``split`` gives its Jacobian by parts.
      process: noising process.
      max_flow_steps: most steps of its deterministic map.
      guidance: the target's gradient inside the control.
      gate: what the guidance is multiplied by, or None without guidance.
      backward: correction to mean and scale of the noising kernel, or None for the process's own.
      forward_scale: correction to the scale of the generative kernel, or None.
      shown_step: step size that the networks are shown whatever the step, or None for its own.
      path_dtype: in which the network's hidden layers are computed on the stochastic paths of
        training; None for that of x.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> control = cs.maps.Control(
      ...     cs.bases.standard_normal(2),
      ...     cs.networks.StepConditionedMLP(dim=2, hidden=(8,)),
      ...     cs.processes.OrnsteinUhlenbeck(),
      ...     max_flow_steps=4,
      ... )
      >>> params = control.init(jax.random.key(0))
      >>> control.draw(params, jax.random.key(1), 4, "map").position.shape
      (2,)
    """

    base: Base
    network: Any = flax.struct.field(pytree_node=False)
    process: OrnsteinUhlenbeck = flax.struct.field(pytree_node=False)
    max_flow_steps: int = flax.struct.field(pytree_node=False)
    guidance: Guidance = flax.struct.field(pytree_node=False, default=None)
    gate: Gate | None = flax.struct.field(pytree_node=False, default=None)
    backward: KernelCorrection | None = flax.struct.field(pytree_node=False, default=None)
    forward_scale: KernelCorrection | None = flax.struct.field(pytree_node=False, default=None)
    shown_step: float | None = flax.struct.field(pytree_node=False, default=None)
    path_dtype: DTypeLike | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.base.dim

    @property
    def guided(self) -> bool:
        """Whether it evaluates the target's gradient."""
        return self.guidance is not None

    @property
    def structured(self) -> bool:
        """Whether its steps have a Jacobian by parts."""
        return hasattr(self.network, "split")

    @property
    def injective(self) -> bool:
        """Whether its map is injective by construction, which makes its weights a bound."""
        # A structured step x + c u has positive factors for c up to 1, as a(t + d) - a(t) is.
        return self.structured and self.process.integrator == "exponential"

    def init(self, rng_key: PRNGKey) -> dict[str, Params]:
        """Fresh parameters."""
        key_control, key_backward, key_forward = jax.random.split(rng_key, 3)
        features = self.base.features(self.base.draw_component(rng_key))
        x, t, d = jnp.zeros(self.dim), jnp.zeros(()), jnp.ones(())
        params = {"control": _init(self.network, key_control, x, t, d, features)}
        if self.gate is not None:
            params["gate"] = self.gate.init(key_control, t, d)
        if self.backward is not None:
            params["backward"] = self.backward.init(key_backward, x, t, d, features)
        if self.forward_scale is not None:
            params["forward_scale"] = self.forward_scale.init(key_forward, x, t, d, features)
        return params

    def bind(
        self,
        params: Params,
        component: Component = (),
        gradient: GradientFn | None = None,
        *,
        frozen: bool = False,
    ) -> simulate.ControlFn:
        """The control function of some parameters in the frame of a component.

        Args:
          params: parameters.
          component: of the base.
          gradient: of the target's log density; needed by a guided control.
          frozen: hold the guidance constant under differentiation, as the papers' heuristic does.
        """
        own, features = params["control"], self.base.features(component)

        def shown(d: Array) -> Array:
            return jnp.asarray(d if self.shown_step is None else self.shown_step)

        if self.structured:
            return simulate.StructuredControl(
                lambda x, t, d, c: self.network.apply(
                    own, x, jnp.asarray(t), shown(d), jnp.asarray(c), features, method="split"
                )
            )

        def control(x: Array, t: Array, d: Array) -> Array:
            t, d = jnp.asarray(t), shown(d)
            u = _apply(self.network, own, x, t, d, features)
            if self.gate is None:
                return u
            guidance = self._guide(x, t, component, gradient)
            if frozen:
                guidance = jax.lax.stop_gradient(guidance)
            factor: Any = self.gate.apply(params["gate"], t, d)
            return u + factor * guidance

        return control

    def _guide(
        self, z: Array, t: Array, component: Component, gradient: GradientFn | None
    ) -> Array:
        """The gradient of log(ρ/p0) in a frame, as far as the control may use it: ``[dim]``."""
        if gradient is None:
            raise ValueError("A guided control needs the gradient of its target's log density.")

        def place(z: Array) -> Array:
            return self.base.unwhiten(z, component)

        x, pull_back = jax.vjp(place, z)
        (own,) = pull_back(gradient(x))
        correction = jax.grad(lambda z: self.base.log_correction(place(z), component))(z)
        ratio = own + correction + z
        ratio = jnp.where(jnp.isfinite(ratio), ratio, 0.0)
        if self.guidance == "ratio":
            return clip_norm(ratio, _MAX_RATIO * math.sqrt(self.dim))
        scaled = t * ratio / self.process.signal(t)
        return jnp.clip(scaled, -_MAX_INTERPOLATED, _MAX_INTERPOLATED)

    def on_training_paths(self) -> "Control":
        """What the stochastic paths of training are simulated and weighed with."""
        if self.path_dtype is None:
            return self
        return dataclasses.replace(self, network=self.network.clone(dtype=self.path_dtype))

    def draw_components(self, rng_key: PRNGKey, num: int) -> Component:
        """Components of ``num`` base draws, stacked."""
        return jax.vmap(self.base.draw_component)(jax.random.split(rng_key, num))

    def kernels(
        self, params: Params, component: Component = (), gradient: GradientFn | None = None
    ) -> simulate.PathKernels:
        """The transitions of the stochastic sampler, corrected where they are learned."""
        own = simulate.noising_kernels(self.bind(params, component, gradient), self.process)
        features = self.base.features(component)

        def forward(x: Array, t: Array, d: Array) -> GaussianKernel:
            kernel = own.forward(x, t, d)
            if self.forward_scale is None:
                return kernel
            learned: Any = self.forward_scale.apply(params["forward_scale"], x, t, d, features)
            log_scale = learned[1]
            return kernel._replace(std=kernel.std * jnp.exp(log_scale))

        def backward(x_next: Array, t: Array, d: Array) -> GaussianKernel:
            kernel = own.backward(x_next, t, d)
            if self.backward is None:
                return kernel
            learned: Any = self.backward.apply(params["backward"], x_next, t, d, features)
            shift, log_scale = learned
            return GaussianKernel(kernel.mean + kernel.std * shift, kernel.std * jnp.exp(log_scale))

        return simulate.PathKernels(forward, backward)

    def _start(self, key_base: PRNGKey) -> tuple[Array, Component]:
        """A base draw and its frame."""
        component = self.base.draw_component(jax.random.fold_in(key_base, 1))
        return jax.random.normal(key_base, (self.dim,)), component

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw.

        Args:
          params: parameters.
          rng_key: key.
          num_steps: number of steps.
          method: which transitions.
          weights: whether to compute the log ratio.
          gradient: of the target's log density, for a guided control.
        """
        key_base, key_path = jax.random.split(rng_key)
        z0, component = self._start(key_base)
        u, folded = self.bind(params, component, gradient), None
        log_ratio = -simulate.standard_normal_log_prob(z0)
        if method == "path":
            kernels = self.kernels(params, component, gradient)
            path, log_ratios = simulate.simulate_path(key_path, z0, kernels, num_steps)
            z1, log_ratio = path[-1], log_ratio + log_ratios.sum()
        elif not weights:
            z1 = simulate.flow_map(u, self.process, z0, num_steps)
        elif method == "heuristic":
            frozen = self.bind(params, component, gradient, frozen=True)
            z1, log_volume = simulate.heuristic_log_volume(
                key_path, z0, u, frozen, self.process, num_steps
            )
            log_ratio += log_volume
        else:
            flow = simulate.flow_path(u, self.process, z0, num_steps)
            z1, folded = flow.position[-1], jnp.any(flow.sign <= 0)
            log_ratio += flow.log_abs_det.sum()
        x = self.base.unwhiten(z1, component)
        if not weights:
            return Proposal(x, jnp.zeros((), x.dtype))
        return Proposal(x, log_ratio + self.base.log_correction(x, component), folded)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio ``[]`` of a draw that ends at ``position [dim]``; NaN where it is not reached.

        The path back to the base is made up by the backward kernels, or by inverting the map.
        """
        component = self.base.component_at(jax.random.fold_in(rng_key, 1), position)
        z1 = self.base.whiten(position, component)
        correction = self.base.log_correction(position, component)
        if method == "path":
            kernels = self.kernels(params, component, gradient)
            path = simulate.backward_path(rng_key, z1, kernels, num_steps)
            log_ratio = simulate.path_log_ratio(path, kernels, num_steps).sum()
            return correction - simulate.standard_normal_log_prob(path[0]) + log_ratio
        u = self.bind(params, component, gradient)
        z0 = simulate.invert_flow(u, self.process, z1, num_steps)
        flow = simulate.flow_path(u, self.process, z0, num_steps)
        error = jnp.sqrt(jnp.mean((flow.position[-1] - z1) ** 2))
        log_ratio = correction - simulate.standard_normal_log_prob(z0) + flow.log_abs_det.sum()
        return jnp.where(error < MAX_INVERSION_ERROR, log_ratio, jnp.nan)

    def round_trip(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Distance ``[]`` from the base draw of a key to what the inverse makes of its image.

        In standard deviations of the base.
        """
        z0, component = self._start(jax.random.split(rng_key)[0])
        u = self.bind(params, component, gradient)
        z1 = simulate.flow_map(u, self.process, z0, num_steps)
        back = simulate.invert_flow(u, self.process, z1, num_steps)
        return jnp.sqrt(jnp.mean((back - z0) ** 2))


def _takes_features(network: Any) -> bool:
    call: Callable[..., Any] = type(network).__call__ if isinstance(network, nn.Module) else int
    return isinstance(network, nn.Module) and "features" in inspect.signature(call).parameters


def _init(network: Any, rng_key: PRNGKey, x: Array, t: Array, d: Array, features: Any) -> Params:
    if isinstance(network, Network):
        return network.init(rng_key)
    if _takes_features(network):
        return network.init(rng_key, x, t, d, features=features)
    return network.init(rng_key, x, t, d)


def _apply(network: Any, params: Params, x: Array, t: Array, d: Array, features: Any) -> Array:
    if _takes_features(network):
        return network.apply(params, x, t, d, features=features)
    return network.apply(params, x, t, d)
