"""The control that an algorithm trains, and how it moves points: a pytree without a density."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from consistent_samplers import simulate
from consistent_samplers.bases import Component
from consistent_samplers.bases.base import one_frame
from consistent_samplers.maps.identity import Map, Proposal
from consistent_samplers.networks import Gate, KernelCorrection, Network, clip_norm
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.simulate import ControlFn, PathKernels
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey

Guidance: TypeAlias = Literal["ratio", "interpolated"] | None
"""The target's gradient inside the control: ``"ratio"`` ∇ log(ρ/p0) at every t, which a one-step
map sees too; ``"interpolated"`` the OSDS and SCDS papers' score lerp(∇ log p0, ∇ log ρ, t), which
at the base is blind to the target; or None."""

LearnedKernels: TypeAlias = Literal["backward", "both"] | None
"""Corrections that are learned: ``"backward"`` mean and scale of the backward kernels, bounded;
``"both"`` the scale of the generative ones as well; None keeps the process's own."""

MAX_INVERSION_ERROR = 1e-2
"""A point counts as inverted if the map returns to it within this many standard deviations."""

# Bounds on the guidance: on the norm of the ratio, times √dim; on each coordinate of the papers'.
_MAX_RATIO, _MAX_INTERPOLATED = 2.0, 1e2


@flax.struct.dataclass
class Control(Map):
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
      >>> import jax, consistent_samplers as cs
      >>> base, network = cs.bases.standard_normal(2), cs.networks.StepConditionedMLP(2, (8,))
      >>> control = cs.maps.Control(base, network, cs.processes.OrnsteinUhlenbeck(), 4)
      >>> params = control.init(jax.random.key(0))
      >>> control.draw(params, jax.random.key(1), 4, "map").position.shape
      (2,)
    """

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
        inputs = () if isinstance(self.network, Network) else (x, t, d)
        more = _features(self.network, features)
        params = {"control": self.network.init(key_control, *inputs, **more)}
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
    ) -> ControlFn:
        """The control function of some parameters in the frame of a component of the base.

        A guided control needs the ``gradient`` of the target's log density; ``frozen`` holds the
        guidance constant under differentiation, as the papers' heuristic does.
        """
        own, features = params["control"], self.base.features(component)
        more = _features(self.network, features)

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
            u = self.network.apply(own, x, t, d, **more)
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
        ratio = self.log_ratio_gradient(z, component, gradient)
        if self.guidance == "ratio":
            return clip_norm(ratio, _MAX_RATIO * math.sqrt(self.dim))
        # A memoryless process has no signal at t = 0, where the quotient's limit is zero.
        scaled = t * ratio / jnp.maximum(self.process.signal(t), jnp.finfo(t.dtype).tiny)
        return jnp.clip(scaled, -_MAX_INTERPOLATED, _MAX_INTERPOLATED)

    def log_ratio_gradient(
        self, z: Array, component: Component, gradient: GradientFn | None
    ) -> Array:
        """The gradient ``[dim]`` of log(ρ/p0) in a frame; zero where it is not finite."""
        if gradient is None:
            raise ValueError("A guided control needs the gradient of its target's log density.")
        x, pull_back = jax.vjp(lambda z: self.base.unwhiten(z, component), z)
        (own,) = pull_back(gradient(x))
        correction = jax.grad(lambda z: self.place(z, component)[1])(z)
        ratio = own + correction + z
        return jnp.where(jnp.isfinite(ratio), ratio, 0.0)

    def target_share(self, params: Params, t: Array) -> Array:
        """The exponent ``[]`` of ρ in p0^{1-λ} ρ^λ, which stands for the path's density at t.

        It is a(t)², the share of the target's variance that the noising has left there.
        """
        return self.process.signal(t) ** 2

    def on_training_paths(self) -> "Control":
        """What the stochastic paths of training are simulated and weighed with."""
        if self.path_dtype is None:
            return self
        return dataclasses.replace(self, network=self.network.clone(dtype=self.path_dtype))

    def draw_components(self, rng_key: PRNGKey, num: int) -> Component:
        """Components of ``num`` base draws, stacked."""
        return jax.vmap(self.base.draw_component)(jax.random.split(rng_key, num))

    def uncorrected_kernels(
        self, params: Params, component: Component, gradient: GradientFn | None
    ) -> PathKernels:
        """The process's own transitions with the control."""
        return simulate.noising_kernels(self.bind(params, component, gradient), self.process)

    def kernels(
        self, params: Params, component: Component = (), gradient: GradientFn | None = None
    ) -> PathKernels:
        """The transitions of the stochastic sampler, corrected where they are learned."""
        own = self.uncorrected_kernels(params, component, gradient)
        features = self.base.features(component)

        def forward(x: Array, t: Array, d: Array) -> GaussianKernel:
            kernel = own.forward(x, t, d)
            if self.forward_scale is None:
                return kernel
            learned: Any = self.forward_scale.apply(params["forward_scale"], x, t, d, features)
            return kernel._replace(std=kernel.std * jnp.exp(learned[1]))

        def backward(x_next: Array, t: Array, d: Array) -> GaussianKernel:
            kernel = own.backward(x_next, t, d)
            if self.backward is None:
                return kernel
            learned: Any = self.backward.apply(params["backward"], x_next, t, d, features)
            mean = kernel.mean + kernel.std * learned[0]
            return GaussianKernel(mean, kernel.std * jnp.exp(learned[1]))

        return PathKernels(forward, backward)

    def carry(
        self,
        params: Params,
        z: Array,
        component: Component = (),
        num_steps: int = 1,
        gradient: GradientFn | None = None,
    ) -> tuple[Array, Array, Array]:
        """The deterministic map in a frame; see `Map.carry`."""
        u = self.bind(params, component, gradient)
        path = simulate.flow_path(u, self.process, z, num_steps)
        return path.position[-1], path.log_abs_det.sum(), jnp.any(path.sign <= 0)

    def draw(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        method: Method,
        weights: bool = True,
        gradient: GradientFn | None = None,
    ) -> Proposal:
        """One draw; see `Map.draw`."""
        key_base, key_path = jax.random.split(rng_key)
        z0, component = self.start_point(key_base)
        u, folded = self.bind(params, component, gradient), None
        if method == "path":
            kernels = self.kernels(params, component, gradient)
            path, log_ratios = simulate.simulate_path(key_path, z0, kernels, num_steps)
            z1, gained = path[-1], log_ratios.sum()
        elif method == "heuristic" and weights:
            frozen = self.bind(params, component, gradient, frozen=True)
            z1, gained = simulate.heuristic_log_volume(
                key_path, z0, u, frozen, self.process, num_steps
            )
        else:
            z1, gained, folded = self._carry(u, key_path, z0, num_steps, weights)
        log_ratio = gained - simulate.standard_normal_log_prob(z0) if weights else None
        return self.landed(z1, component, log_ratio, folded)

    def reverse(
        self,
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        num_steps: int,
        method: Method,
        gradient: GradientFn | None = None,
    ) -> Array:
        """Log ratio of a draw that ends at a point; see `Map.reverse`."""
        component = self.base.component_at(jax.random.fold_in(rng_key, 1), position)
        z1 = self.base.whiten(position, component)
        correction = self.base.log_correction(position, component)
        if method == "path":
            kernels = self.kernels(params, component, gradient)
            path = simulate.backward_path(rng_key, z1, kernels, num_steps)
            gained = simulate.path_log_ratio(path, kernels, num_steps).sum()
            z0, reached = path[0], z1
        else:
            u = self.bind(params, component, gradient)
            z0, reached, gained = self._carry_back(u, rng_key, z1, num_steps)
        error = jnp.sqrt(jnp.mean((reached - z1) ** 2))
        log_ratio = correction - simulate.standard_normal_log_prob(z0) + gained
        return jnp.where(error < MAX_INVERSION_ERROR, log_ratio, jnp.nan)

    def log_prob(self, params: Params, position: Array) -> Array:
        """Log density ``[]`` of one step's draws at a point ``[dim]``; -inf where none leads there.

        Exact where the map is injective: over a mixture it is the sum over the frames. Unlike the
        ratio of `reverse` it is a function of the point alone, and differentiable.

        Raises:
          ValueError: the control is guided, or the base a product of mixtures, which has too many
            frames.
        """
        several: Any = self.base
        base, single = self.base, one_frame(self.base)
        if self.guided or not (single or hasattr(base, "num_components")):
            what = "guided control" if self.guided else f"map around a {type(base).__name__}"
            raise ValueError(f"The density of a {what} is not available in closed form.")

        def in_frame(component: Component) -> Array:
            u, z1 = self.bind(params, component), base.whiten(position, component)
            z0 = simulate.preimage(u, self.process, z1)
            flow = simulate.flow_path(u, self.process, z0, 1)
            error = jnp.sqrt(jnp.mean((jax.lax.stop_gradient(flow.position[-1] - z1)) ** 2))
            log_prob = simulate.standard_normal_log_prob(z0) - flow.log_abs_det.sum()
            log_prob = log_prob - base.log_correction(position, component)
            return jnp.where(error < MAX_INVERSION_ERROR, log_prob, -jnp.inf)

        if single:
            return in_frame(())
        # A frame's correction is relative to the whole base: with the frame's share, to its own.
        share = jax.nn.log_softmax(several.log_joint(position))
        by_frame = jax.vmap(in_frame)(jnp.arange(several.num_components))
        return jax.nn.logsumexp(by_frame + share)

    def _carry(
        self, u: ControlFn, rng_key: PRNGKey, z0: Array, num_steps: int, weights: bool
    ) -> tuple[Array, Array, Array | None]:
        """Where the map leads, its log-determinant if asked for, and whether it folds."""
        if not weights:
            return simulate.flow_map(u, self.process, z0, num_steps), jnp.zeros(()), None
        flow = simulate.flow_path(u, self.process, z0, num_steps)
        return flow.position[-1], flow.log_abs_det.sum(), jnp.any(flow.sign <= 0)

    def _carry_back(
        self, u: ControlFn, rng_key: PRNGKey, z1: Array, num_steps: int
    ) -> tuple[Array, Array, Array]:
        """Where the inverse of the map leads, and the map from there, with its log-determinant."""
        z0 = simulate.invert_flow(u, self.process, z1, num_steps)
        flow = simulate.flow_path(u, self.process, z0, num_steps)
        return z0, flow.position[-1], flow.log_abs_det.sum()

    def round_trip(
        self, params: Params, rng_key: PRNGKey, num_steps: int, gradient: GradientFn | None = None
    ) -> Array:
        """What the inverse of the map misses; see `Map.round_trip`."""
        z0, component = self.start_point(jax.random.split(rng_key)[0])
        u = self.bind(params, component, gradient)
        z1 = simulate.flow_map(u, self.process, z0, num_steps)
        back = simulate.invert_flow(u, self.process, z1, num_steps)
        return jnp.sqrt(jnp.mean((back - z0) ** 2))


def _features(network: Any, features: Array | None) -> dict[str, Any]:
    """The component of the base as an argument of a linen module that takes it."""
    if not isinstance(network, nn.Module):
        return {}
    call: Callable[..., Any] = type(network).__call__
    return {"features": features} if "features" in inspect.signature(call).parameters else {}
