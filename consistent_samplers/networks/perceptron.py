"""Step-conditioned networks u(x, t, d): linen modules of one point."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from consistent_samplers.types import Array, Params, PRNGKey

MAX_GAIN = 20.0
"""Bound on the elementwise gain from above; from below it is -1."""
MAX_SCALED = 10.0
"""Bound on what it multiplies, in standard deviations of the base."""


class Network(NamedTuple):
    """A network of one's own as a pair of pure functions, where it is no linen module.

    Attributes:
      init: ``(rng_key) -> params``.
      apply: ``(params, x [dim], t [], d []) -> control [dim]``; see
        ``OrnsteinUhlenbeck.score`` for what the control stands for.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> fixed = cs.networks.Network(lambda rng_key: jnp.zeros(2), lambda params, x, t, d: params)
      >>> fixed.apply(fixed.init(None), jnp.ones(2), 0.0, 1.0).tolist()
      [0.0, 0.0]
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array, Array, Array], Array]


class Trunk(nn.Module):
    """Hidden layers over x, modulated by time and step size.

    Attributes:
      hidden: widths of the hidden layers.
      num_frequencies: sine and cosine features of t and of log2 d.
      dtype: in which the layers over x are computed; that of x and the parameters if None.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> trunk, x_t_d = cs.networks.Trunk(hidden=(8,)), (jnp.zeros(2), jnp.zeros(()), jnp.ones(()))
      >>> trunk.apply(trunk.init(jax.random.key(0), *x_t_d), *x_t_d).shape
      (8,)
    """

    hidden: tuple[int, ...]
    num_frequencies: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array, d: Array) -> Array:
        """The last hidden layer."""
        embedding = _embedded(t, d, self.num_frequencies)
        hidden = x
        for width in self.hidden:
            modulation = nn.Dense(2 * width, kernel_init=nn.initializers.normal(0.02))(embedding)
            scale, shift = jnp.split(modulation.astype(self.dtype or modulation.dtype), 2)
            hidden = nn.silu(nn.Dense(width, dtype=self.dtype)(hidden) * (1.0 + scale) + shift)
        return hidden.astype(x.dtype)


def beside(x: Array, features: Array | None) -> Array:
    """A point with the features of its component behind it."""
    return x if features is None else jnp.concatenate([x, features])


def bounded_gain(raw: Array) -> Array:
    """A gain between -1 and `MAX_GAIN`, 0 at 0."""
    return MAX_GAIN * jnp.tanh((nn.softplus(raw + math.log(math.e - 1.0)) - 1.0) / MAX_GAIN)


def _embedded(t: Array, d: Array, num_frequencies: int) -> Array:
    """A layer over features of time and step size, for use in a compact method."""
    # Step sizes matter on a log scale: halving is one unit at every size.
    where = jnp.stack([t, jnp.log2(d) / 8.0])
    angles = where[:, None] * (math.pi * 2.0 ** jnp.arange(num_frequencies // 2))
    features = jnp.concatenate([where, jnp.sin(angles).ravel(), jnp.cos(angles).ravel()])
    return nn.silu(nn.Dense(32)(features))


class StepConditionedMLP(nn.Module):
    """The default control network, a perceptron modulated by time and step size; zero at first.

    Attributes:
      dim: dimension of x.
      hidden: widths of the hidden layers.
      elementwise_gain: also scale each coordinate of x by an output of its own.
      dtype: in which the hidden layers are computed, ``jnp.bfloat16`` for one; that of x if None.
        Parameters and output keep their own.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> network = cs.networks.StepConditionedMLP(dim=2, hidden=(8,))
      >>> x, t, d = jnp.ones(2), jnp.zeros(()), jnp.ones(())
      >>> network.apply(network.init(jax.random.key(0), x, t, d), x, t, d).tolist()
      [0.0, 0.0]
    """

    dim: int
    hidden: tuple[int, ...] = (64, 64)
    elementwise_gain: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array, d: Array, features: Array | None = None) -> Array:
        """The control at ``x [dim]``: ``[dim]``; ``features`` tell a base's components apart."""
        hidden = Trunk(self.hidden, dtype=self.dtype)(beside(x, features), t, d)
        # Shift and elementwise gain: funnels and hierarchies rescale some coordinates by others.
        # A gain above -1 keeps each coordinate's own scaling positive in a step of any size.
        num_outputs = 2 * self.dim if self.elementwise_gain else self.dim
        out = nn.Dense(num_outputs, kernel_init=nn.initializers.zeros)(hidden)
        if not self.elementwise_gain:
            return out
        shift, gain = jnp.split(out, 2)
        # Bounded, in itself and in what it multiplies: otherwise outliers run off to infinity.
        # Where base draws lie both bounds hardly show.
        return shift + bounded_gain(gain) * MAX_SCALED * jnp.tanh(x / MAX_SCALED)


class Gate(nn.Module):
    """What a control makes of the target's gradient: a factor for each coordinate, by t and d.

    Attributes:
      dim: dimension of x.
      initial: the factor while untrained.
      num_frequencies: sine and cosine features of t and of log2 d.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> gate, t, d = cs.networks.Gate(dim=2, initial=1.0), jnp.zeros(()), jnp.ones(())
      >>> gate.apply(gate.init(jax.random.key(0), t, d), t, d).tolist()
      [1.0, 1.0]
    """

    dim: int
    initial: float = 0.0
    num_frequencies: int = 8

    @nn.compact
    def __call__(self, t: Array, d: Array) -> Array:
        """The factors ``[dim]``."""
        embedding = _embedded(t, d, self.num_frequencies)
        first = nn.initializers.constant(self.initial)
        return nn.Dense(self.dim, kernel_init=nn.initializers.zeros, bias_init=first)(embedding)


class KernelCorrection(nn.Module):
    """Bounded corrections to mean and scale of a Gaussian kernel; none while untrained.

    They shrink with √d: in the limit of short steps the uncorrected kernels are right, and a
    network that was trained at few steps must not spoil a path of many.

    Attributes:
      dim: dimension of x.
      hidden: widths of the hidden layers.
      max_shift: largest shift of the mean at d = 1, in the kernel's own standard deviations.
      max_log_scale: largest change of the log standard deviation at d = 1.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> network = cs.networks.KernelCorrection(dim=2, hidden=(8,))
      >>> x, t, d = jnp.ones(2), jnp.asarray(0.5), jnp.asarray(0.25)
      >>> shift, log_scale = network.apply(network.init(jax.random.key(0), x, t, d), x, t, d)
    """

    dim: int
    hidden: tuple[int, ...] = (64, 64)
    max_shift: float = 6.0
    max_log_scale: float = 6.0

    @nn.compact
    def __call__(
        self, x: Array, t: Array, d: Array, features: Array | None = None
    ) -> tuple[Array, Array]:
        """Shift and change of the log scale, ``[dim]`` each, in units of the kernel's std."""
        hidden = Trunk(self.hidden)(beside(x, features), t, d)
        out = nn.Dense(2 * self.dim, kernel_init=nn.initializers.zeros)(hidden)
        shift, log_scale = jnp.split(out, 2)
        shift = self.max_shift * jnp.tanh(shift / self.max_shift)
        log_scale = self.max_log_scale * jnp.tanh(log_scale / self.max_log_scale)
        return jnp.sqrt(d) * shift, jnp.sqrt(d) * log_scale


class ScalarMLP(nn.Module):
    """A scalar function of x and t that starts at zero (log-flows of sub-trajectory balance).

    Attributes:
      hidden: widths of the hidden layers.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> network, x, t = cs.networks.ScalarMLP(hidden=(8,)), jnp.ones(2), jnp.asarray(0.5)
      >>> float(network.apply(network.init(jax.random.key(0), x, t), x, t))
      0.0
    """

    hidden: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """Its value: ``[]``."""
        hidden = Trunk(self.hidden)(x, t, jnp.ones(()))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(hidden)[0]


def clip_norm(x: Array, max_norm: Array | float) -> Array:
    """A vector scaled down to norm at most ``max_norm``, its direction kept.

    Smooth, unlike a clip of each coordinate, so that a map built on it stays differentiable.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.networks.clip_norm(jnp.array([300.0, 400.0]), max_norm=5.0).round(2).tolist()
      [3.0, 4.0]
    """
    return x / jnp.sqrt(1.0 + jnp.sum(x**2) / max_norm**2)
