"""The control that an algorithm trains, and the transitions that it makes of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import networks, simulate
from consistent_samplers.networks import KernelNetwork, Network
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.types import Array, LogDensityFn, Params, PRNGKey

Guidance: TypeAlias = Literal["ratio", "interpolated"] | None
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
    """

    network: Network
    frozen_network: Network
    process: OrnsteinUhlenbeck
    log_density: LogDensityFn
    max_flow_steps: int
    guided: bool = False
    backward: KernelNetwork | None = None
    forward_scale: KernelNetwork | None = None

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
        return functools.partial(self.network.apply, params["control"])

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
    dim: int,
    log_density: Callable[[Array], Array],
    process: OrnsteinUhlenbeck,
    *,
    max_steps: int,
    hidden: tuple[int, ...],
    guidance: Guidance,
    elementwise_gain: bool,
    learned_kernels: LearnedKernels = None,
    step_conditioned: bool = True,
) -> Control:
    """A control with the default networks.

    Args:
      dim: dimension of x.
      log_density: log ρ in whitened coordinates.
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

    Raises:
      ValueError: an option has no such choice.
    """
    if learned_kernels not in (None, "backward", "both"):
        raise ValueError(
            f"learned_kernels must be None, 'backward' or 'both', got {learned_kernels!r}."
        )
    gate = 0.0
    guidance_fn = None
    if guidance == "ratio":
        guidance_fn = networks.ratio_guidance(log_density)
    elif guidance == "interpolated":
        # The papers' gate starts at one: an untrained control is the interpolated score.
        gate, guidance_fn = 1.0, networks.interpolated_guidance(log_density, process)
    elif guidance is not None:
        raise ValueError(f"guidance must be 'ratio', 'interpolated' or None, got {guidance!r}.")

    def network(freeze: bool) -> Network:
        if guidance_fn is None or not freeze:
            guide = guidance_fn
        else:

            def guide(x: Array, t: Array) -> Array:
                return jax.lax.stop_gradient(guidance_fn(x, t))

        conditioned = networks.step_conditioned_mlp(
            dim,
            hidden=hidden,
            guidance_fn=guide,
            initial_gate=gate,
            elementwise_gain=elementwise_gain,
        )
        return conditioned if step_conditioned else networks.at_step(conditioned, 1.0 / max_steps)

    learn = networks.kernel_correction
    return Control(
        network(False),
        network(True),
        process,
        log_density,
        max_steps,
        guidance is not None,
        None if learned_kernels is None else learn(dim, hidden=hidden),
        learn(dim, hidden=hidden) if learned_kernels == "both" else None,
    )
