"""The control that an algorithm trains, and the transitions that it makes of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from consistent_samplers import networks, simulate
from consistent_samplers.bases import Base, Component
from consistent_samplers.networks import KernelNetwork, Network
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, LogDensityFn, Params, PRNGKey

Guidance: TypeAlias = Literal["ratio", "interpolated"] | None
NetworkKind: TypeAlias = Literal["general", "structured"]
LearnedKernels: TypeAlias = Literal["backward", "both"] | None


@dataclasses.dataclass(frozen=True)
class Control:
    """What is trained and how it moves points: shared by sampling and by later stages.

    Parameters are a dictionary: ``"control"`` the network's, ``"backward"`` and
    ``"forward_scale"`` those of learned kernels, and whatever else a loss brings along.

    Attributes:
      network: the control's network.
      frozen_network: the same with the target gradient held constant under differentiation;
        only the papers' heuristic weight uses it.
      process: noising process.
      log_density: log ρ in the base's whitened coordinates.
      max_flow_steps: most steps of its deterministic map.
      guided: whether the network evaluates the target's gradient.
      backward: correction to mean and scale of the noising kernel, or None for the process's own.
      forward_scale: correction to the scale of the generative kernel, or None.
      shown_step: step size that the networks are shown whatever the step, or None for its own.
      base: where samples start.
      in_frame: makes the control of another component of the base; None where it has one.
      path_network: the network in less precision, for the stochastic paths of training; None
        where they take `network`.
    """

    network: Network
    frozen_network: Network
    process: OrnsteinUhlenbeck
    log_density: LogDensityFn
    max_flow_steps: int
    guided: bool = False
    backward: KernelNetwork | None = None
    forward_scale: KernelNetwork | None = None
    shown_step: float | None = None
    base: Base | None = None
    in_frame: Callable[[Component], "Control"] | None = None
    path_network: Network | None = None

    def at(self, component: Component) -> "Control":
        """The control in the frame of a component of the base, with the same parameters."""
        return self if self.in_frame is None else self.in_frame(component)

    def on_training_paths(self) -> "Control":
        """What the stochastic paths of training are simulated and weighed with."""
        if self.path_network is None:
            return self
        return dataclasses.replace(self, network=self.path_network)

    def draw_components(self, rng_key: PRNGKey, num: int) -> Component:
        """Components of ``num`` base draws, stacked."""
        if self.in_frame is None:
            return ()
        assert self.base is not None
        return jax.vmap(self.base.draw_component)(jax.random.split(rng_key, num))

    def init(self, rng_key: PRNGKey) -> dict[str, Params]:
        """Fresh parameters."""
        key_control, key_backward, key_forward = jax.random.split(rng_key, 3)
        params = {"control": self.network.init(key_control)}
        if self.backward is not None:
            params["backward"] = self.backward.init(key_backward)
        if self.forward_scale is not None:
            params["forward_scale"] = self.forward_scale.init(key_forward)
        return params

    def bind(self, params: Params) -> simulate.ControlFn:
        """The control function of some parameters."""
        return self._bind(self.network, params)

    def bind_frozen(self, params: Params) -> simulate.ControlFn:
        """The same with the target gradient held constant under differentiation."""
        return self._bind(self.frozen_network, params)

    def _bind(self, network: Network, params: Params) -> simulate.ControlFn:
        def shown(d: Array) -> Array:
            return d if self.shown_step is None else jnp.asarray(self.shown_step)

        own = params["control"]
        split = network.split
        if split is None:
            return lambda x, t, d: network.apply(own, x, t, shown(d))
        return simulate.StructuredControl(lambda x, t, d, c: split(own, x, t, shown(d), c))

    def kernels(self, params: Params) -> simulate.PathKernels:
        """The transitions of the stochastic sampler, corrected where they are learned."""
        own = simulate.noising_kernels(self.bind(params), self.process)

        def forward(x: Array, t: Array, d: Array) -> GaussianKernel:
            kernel = own.forward(x, t, d)
            if self.forward_scale is None:
                return kernel
            _, log_scale = self.forward_scale.apply(params["forward_scale"], x, t, d)
            return kernel._replace(std=kernel.std * jnp.exp(log_scale))

        def backward(x_next: Array, t: Array, d: Array) -> GaussianKernel:
            kernel = own.backward(x_next, t, d)
            if self.backward is None:
                return kernel
            shift, log_scale = self.backward.apply(params["backward"], x_next, t, d)
            return GaussianKernel(kernel.mean + kernel.std * shift, kernel.std * jnp.exp(log_scale))

        return simulate.PathKernels(forward, backward)


def build_control(
    target: Target,
    base: Base,
    process: OrnsteinUhlenbeck,
    *,
    max_steps: int,
    hidden: tuple[int, ...],
    guidance: Guidance,
    elementwise_gain: bool,
    learned_kernels: LearnedKernels = None,
    step_conditioned: bool = True,
    network: NetworkKind = "general",
    path_dtype: DTypeLike | None = None,
) -> Control:
    """A control with the default networks.

    Args:
      target: what to sample.
      base: where samples start.
      process: noising process.
      max_steps: number of finest steps.
      hidden: widths of the hidden layers of every network.
      guidance: target gradient inside the control: ``"ratio"`` ∇ log(ρ/p0), ``"interpolated"``
        the papers', or None.
      elementwise_gain: let the network also scale each coordinate of x.
      learned_kernels: ``"backward"`` learns mean and scale of the backward kernels, ``"both"``
        the scale of the generative ones as well.
      step_conditioned: show the network the size d of the step; otherwise it takes every step as
        the finest.
      network: ``"general"`` a perceptron, or ``"structured"`` for many dimensions
        (`networks.structured`, as many units as the widest hidden layer).
      path_dtype: in which a general network's hidden layers are computed along the stochastic
        paths of training: ``jnp.bfloat16`` is faster where a device is made for it. Weights of such
        paths are those of the transitions actually taken. Deterministic maps, whose determinants
        must be exact, and all draws keep the full precision.

    Raises:
      ValueError: an option has no such choice, or a structured network is asked to hold the
        target's gradient, which has no such structure, or given a ``path_dtype``.
    """
    if network not in ("general", "structured"):
        raise ValueError(f"network must be 'general' or 'structured', got {network!r}.")
    if network == "structured" and guidance is not None:
        raise ValueError("network='structured' goes with guidance=None only.")
    if network == "structured" and path_dtype is not None:
        raise ValueError("path_dtype goes with network='general' only.")
    if learned_kernels not in (None, "backward", "both"):
        raise ValueError(
            f"learned_kernels must be None, 'backward' or 'both', got {learned_kernels!r}."
        )
    if guidance not in (None, "ratio", "interpolated"):
        raise ValueError(f"guidance must be 'ratio', 'interpolated' or None, got {guidance!r}.")
    dim = target.dim

    def in_frame(component: Component) -> Control:
        log_density = base.whitened_log_density(target.log_density, component)
        features = base.features(component)
        guidance_fn = None
        if guidance == "ratio":
            guidance_fn = networks.ratio_guidance(log_density)
        elif guidance == "interpolated":
            guidance_fn = networks.interpolated_guidance(log_density, process)

        def build_network(freeze: bool, dtype: DTypeLike | None = None) -> Network:
            if network == "structured":
                return networks.structured(dim, rank=max(hidden), features=features)
            if guidance_fn is None or not freeze:
                guide = guidance_fn
            else:

                def guide(x: Array, t: Array) -> Array:
                    return jax.lax.stop_gradient(guidance_fn(x, t))

            return networks.step_conditioned_mlp(
                dim,
                hidden=hidden,
                guidance_fn=guide,
                # The papers' gate starts at one: an untrained control is the interpolated score.
                initial_gate=1.0 if guidance == "interpolated" else 0.0,
                elementwise_gain=elementwise_gain,
                features=features,
                dtype=dtype,
            )

        learn = functools.partial(networks.kernel_correction, dim, hidden=hidden, features=features)
        return Control(
            build_network(False),
            build_network(True),
            process,
            log_density,
            max_steps,
            guidance is not None,
            None if learned_kernels is None else learn(),
            learn() if learned_kernels == "both" else None,
            None if step_conditioned else 1.0 / max_steps,
            base,
            path_network=None if path_dtype is None else build_network(False, path_dtype),
        )

    first = base.draw_component(jax.random.key(0))
    one_frame = isinstance(first, tuple)
    return dataclasses.replace(in_frame(first), in_frame=None if one_frame else in_frame)
