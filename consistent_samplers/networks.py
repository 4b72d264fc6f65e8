"""Step-conditioned networks u(x, t, d): linen modules behind ``init`` and ``apply``."""

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from consistent_samplers.checks import check_widths
from consistent_samplers.log_det import Sylvester, solve_triangular
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.types import Array, Params, PRNGKey

MAX_GAIN = 20.0
"""Bound on the elementwise gain from above; from below it is -1."""
MAX_SCALED = 10.0
"""Bound on what it multiplies, in standard deviations of the base."""


class Network(NamedTuple):
    """A control as a pair of pure functions.

    Attributes:
      init: ``(rng_key) -> params``.
      apply: ``(params, x [dim], t [], d []) -> control [dim]``; see
        ``OrnsteinUhlenbeck.score`` for what the control stands for.
      split: ``(params, x, t, d, c []) -> (u, ∂(x + c u)/∂x)``, the control of a step x + c u, and
        the step's Jacobian by its parts; None for a network without structure.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> constant = cs.networks.Network(
      ...     init=lambda rng_key: {"shift": jnp.zeros(2)},
      ...     apply=lambda params, x, t, d: params["shift"],
      ... )
      >>> constant.apply(constant.init(jax.random.key(0)), jnp.ones(2), 0.0, 1.0).tolist()
      [0.0, 0.0]
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array, Array, Array], Array]
    split: Callable[[Params, Array, Array, Array, Array], tuple[Array, Sylvester]] | None = None


class KernelNetwork(NamedTuple):
    """Corrections to a Gaussian kernel as a pair of pure functions.

    Attributes:
      init: ``(rng_key) -> params``.
      apply: ``(params, x [dim], t [], d []) -> (shift [dim], log_scale [dim])``, in units of the
        kernel's standard deviation; both bounded.

    Example:
      >>> import consistent_samplers as cs
      >>> network = cs.networks.kernel_correction(2, hidden=(8,))
      >>> isinstance(network, cs.networks.KernelNetwork), network._fields
      (True, ('init', 'apply'))
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array, Array, Array], tuple[Array, Array]]


class ScalarNetwork(NamedTuple):
    """A function of place and time as a pair of pure functions.

    Attributes:
      init: ``(rng_key) -> params``.
      apply: ``(params, x [dim], t []) -> []``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network = cs.networks.ScalarNetwork(
      ...     init=lambda rng_key: jnp.zeros(()), apply=lambda params, x, t: params * t
      ... )
      >>> float(network.apply(network.init(jax.random.key(0)), jnp.zeros(2), jnp.asarray(0.5)))
      0.0
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array, Array], Array]


class Trunk(nn.Module):
    """Hidden layers over x, modulated by time and step size.

    Attributes:
      hidden: widths of the hidden layers.
      num_frequencies: sine and cosine features of t and of log2 d.
      dtype: in which the layers over x are computed; that of x and the parameters if None.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> trunk = cs.networks.Trunk(hidden=(8,))
      >>> x, t, d = jnp.zeros(2), jnp.zeros(()), jnp.ones(())
      >>> params = trunk.init(jax.random.key(0), x, t, d)
      >>> hidden, embedding = trunk.apply(params, x, t, d)
      >>> hidden.shape, embedding.shape
      ((8,), (32,))
    """

    hidden: tuple[int, ...]
    num_frequencies: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array, d: Array) -> tuple[Array, Array]:
        """The last hidden layer, and the embedding of t and d."""
        # Step sizes matter on a log scale: halving is one unit at every size.
        where = jnp.stack([t, jnp.log2(d) / 8.0])
        angles = where[:, None] * (math.pi * 2.0 ** jnp.arange(self.num_frequencies // 2))
        features = jnp.concatenate([where, jnp.sin(angles).ravel(), jnp.cos(angles).ravel()])
        embedding = nn.silu(nn.Dense(32)(features))

        hidden = x
        for width in self.hidden:
            modulation = nn.Dense(2 * width, kernel_init=nn.initializers.normal(0.02))(embedding)
            scale, shift = jnp.split(modulation.astype(self.dtype or modulation.dtype), 2)
            hidden = nn.silu(nn.Dense(width, dtype=self.dtype)(hidden) * (1.0 + scale) + shift)
        return hidden.astype(x.dtype), embedding


def _beside(x: Array, features: Array | None) -> Array:
    return x if features is None else jnp.concatenate([x, features])


class StepConditionedMLP(nn.Module):
    """A perceptron modulated by time and step size, plus a gated target gradient.

    The output layer starts at zero: an untrained network without guidance is a zero control.

    Attributes:
      dim: dimension of x.
      hidden: widths of the hidden layers.
      initial_gate: weight of the guidance in the untrained network.
      elementwise_gain: also scale each coordinate of x by an output of its own.
      dtype: in which the hidden layers are computed; that of x if None.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> module = cs.networks.StepConditionedMLP(dim=2, hidden=(8,))
      >>> x, t, d = jnp.ones(2), jnp.zeros(()), jnp.ones(())
      >>> params = module.init(jax.random.key(0), x, t, d, None, None)
      >>> module.apply(params, x, t, d, None, None).tolist()
      [0.0, 0.0]
    """

    dim: int
    hidden: tuple[int, ...] = (64, 64)
    initial_gate: float = 0.0
    elementwise_gain: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Array, t: Array, d: Array, guidance: Array | None, features: Array | None
    ) -> Array:
        """The control at ``x [dim]``: ``[dim]``."""
        hidden, embedding = Trunk(self.hidden, dtype=self.dtype)(_beside(x, features), t, d)
        # Shift and elementwise gain: funnels and hierarchies rescale some coordinates by others.
        # A gain above -1 keeps each coordinate's own scaling positive in a step of any size.
        num_outputs = 2 * self.dim if self.elementwise_gain else self.dim
        out = nn.Dense(num_outputs, kernel_init=nn.initializers.zeros)(hidden)
        if self.elementwise_gain:
            shift, gain = jnp.split(out, 2)
            scaling = nn.softplus(gain + math.log(math.e - 1.0))
            # Bounded, in itself and in what it multiplies: otherwise outliers run off to infinity.
            # Where base draws lie both bounds hardly show.
            gain = MAX_GAIN * jnp.tanh((scaling - 1.0) / MAX_GAIN)
            out = shift + gain * MAX_SCALED * jnp.tanh(x / MAX_SCALED)
        if guidance is not None:
            gate = nn.Dense(
                self.dim,
                kernel_init=nn.initializers.zeros,
                bias_init=nn.initializers.constant(self.initial_gate),
            )(embedding)
            out = out + gate * guidance
        return out


class _Head(nn.Module):
    """The trunk and one dense layer that starts at zero."""

    hidden: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array, t: Array, d: Array) -> Array:
        hidden, _ = Trunk(self.hidden)(x, t, d)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)(hidden)


def kernel_correction(
    dim: int,
    *,
    hidden: tuple[int, ...] = (64, 64),
    max_shift: float = 6.0,
    max_log_scale: float = 6.0,
    features: Array | None = None,
) -> KernelNetwork:
    """Bounded corrections to mean and scale of a Gaussian kernel; none while untrained.

    They shrink with √d: in the limit of short steps the uncorrected kernels are right, and a
    network that was trained at few steps must not spoil a path of many.

    Args:
      dim: dimension of x.
      hidden: widths of the hidden layers.
      max_shift: largest shift of the mean at d = 1, in standard deviations of the uncorrected
        kernel.
      max_log_scale: largest change of the log standard deviation at d = 1.
      features: ``[num_features]``, further input.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network = cs.networks.kernel_correction(2, hidden=(8,))
      >>> params = network.init(jax.random.key(0))
      >>> shift, log_scale = network.apply(params, jnp.ones(2), jnp.asarray(0.5), jnp.asarray(0.25))
      >>> shift.tolist(), log_scale.tolist()
      ([0.0, 0.0], [0.0, 0.0])
    """
    check_widths(hidden)
    module = _Head(tuple(hidden), 2 * dim)

    def init(rng_key: PRNGKey) -> Params:
        x = _beside(jnp.zeros(dim), features)
        return module.init(rng_key, x, jnp.zeros(()), jnp.ones(()))

    def apply(params: Params, x: Array, t: Array, d: Array) -> tuple[Array, Array]:
        out = module.apply(params, _beside(x, features), jnp.asarray(t), jnp.asarray(d))
        out = cast(Array, out)
        shift, log_scale = jnp.split(out, 2)
        shift = max_shift * jnp.tanh(shift / max_shift)
        log_scale = max_log_scale * jnp.tanh(log_scale / max_log_scale)
        return jnp.sqrt(d) * shift, jnp.sqrt(d) * log_scale

    return KernelNetwork(init, apply)


def scalar_mlp(dim: int, *, hidden: tuple[int, ...] = (64, 64)) -> ScalarNetwork:
    """A scalar function of x and t that starts at zero (log-flows of sub-trajectory balance).

    Args:
      dim: dimension of x.
      hidden: widths of the hidden layers.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network = cs.networks.scalar_mlp(2, hidden=(8,))
      >>> float(network.apply(network.init(jax.random.key(0)), jnp.ones(2), jnp.asarray(0.5)))
      0.0
    """
    check_widths(hidden)
    module = _Head(tuple(hidden), 1)

    def init(rng_key: PRNGKey) -> Params:
        return module.init(rng_key, jnp.zeros(dim), jnp.zeros(()), jnp.ones(()))

    def apply(params: Params, x: Array, t: Array) -> Array:
        return cast(Array, module.apply(params, x, jnp.asarray(t), jnp.ones(())))[0]

    return ScalarNetwork(init, apply)


def clip_norm(x: Array, max_norm: Array | float) -> Array:
    """Scales a vector down smoothly to norm at most ``max_norm``, direction kept.

    Smooth, unlike a clip of each coordinate, so that a map built on it stays differentiable.

    Args:
      x: ``[dim]``.
      max_norm: ``[]``, in the units of x.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> long = cs.networks.clip_norm(jnp.array([300.0, 400.0]), 5.0)
      >>> long.round(2).tolist()
      [3.0, 4.0]
    """
    return x / jnp.sqrt(1.0 + jnp.sum(x**2) / max_norm**2)


def step_conditioned_mlp(
    dim: int,
    *,
    hidden: tuple[int, ...] = (64, 64),
    guidance_fn: Callable[[Array, Array], Array] | None = None,
    initial_gate: float = 0.0,
    elementwise_gain: bool = True,
    features: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Network:
    """The default control network.

    Args:
      dim: dimension of x.
      hidden: widths of the hidden layers.
      guidance_fn: ``(x [dim], t []) -> [dim]``, a target gradient to be gated by the network,
        or None for a network of x, t and d alone.
      initial_gate: weight of the guidance in the untrained network.
      elementwise_gain: also scale each coordinate of x by an output of its own.
      features: ``[num_features]``, further input: the component of the base, for one.
      dtype: in which the hidden layers are computed, ``jnp.bfloat16`` for one; that of x if None.
        Parameters and output keep their own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network = cs.networks.step_conditioned_mlp(2, hidden=(8,), guidance_fn=lambda x, t: -x)
      >>> params = network.init(jax.random.key(0))
      >>> network.apply(params, jnp.ones(2), 0.0, 1.0).tolist()  # untrained, its gate shut
      [0.0, 0.0]
    """
    check_widths(hidden)
    module = StepConditionedMLP(dim, tuple(hidden), initial_gate, elementwise_gain, dtype)

    def guide(x: Array, t: Array) -> Array | None:
        return None if guidance_fn is None else guidance_fn(x, t)

    def init(rng_key: PRNGKey) -> Params:
        x, t, d = jnp.zeros(dim), jnp.zeros(()), jnp.ones(())
        return module.init(rng_key, x, t, d, None if guidance_fn is None else x, features)

    def apply(params: Params, x: Array, t: Array, d: Array) -> Array:
        t, d = jnp.asarray(t), jnp.asarray(d)
        control = module.apply(params, x, t, d, guide(x, t), features)
        return cast(Array, control)

    return Network(init, apply)


def _orthonormal(w: Array) -> Array:
    """Orthonormal columns ``[dim, rank]`` near those of ``w``, rank <= dim: reflections' product.

    The j-th Householder reflection takes the j-th unit vector to w's j-th column, normalised. All
    are multiplied at once (compact WY form: Schreiber & Van Loan, 1989), without LAPACK.
    """
    dim, rank = w.shape
    eye = jnp.eye(dim, rank, dtype=w.dtype)

    def normalised(columns: Array) -> Array:
        square = jnp.sum(columns**2, axis=0)
        return columns * jax.lax.rsqrt(jnp.where(square > 0.0, square, 1.0))

    y = normalised(normalised(w) - eye)
    # (½ I + the strictly upper part of Yᵀ Y)⁻¹ Yᵀ, of the first rows.
    triangle = 2.0 * jnp.triu(y.T @ y, 1)
    inner = jax.vmap(lambda rhs: solve_triangular(triangle, rhs), 1, 1)(2.0 * y[:rank].T)
    return eye - y @ inner


class _Structured(nn.Module):
    """An elementwise map e(x) plus V φ(U y + b) at y = x + c e(x), and its step's Jacobian."""

    dim: int
    rank: int

    @nn.compact
    def __call__(
        self, x: Array, t: Array, d: Array, c: Array, features: Array | None
    ) -> tuple[Array, Sylvester]:
        # At the first, biggest step all of these but the constant vanish: the one-step map has
        # parameters of its own, as few as can be. In many dimensions each costs gradient noise.
        step = jnp.log2(d) / 8.0
        basis = jnp.stack([jnp.ones(()), t, step, t**2, t * step, step**2])

        def by_time(name: str, first: Callable[..., Array], *shape: int) -> Array:
            """A parameter that is a polynomial in t and log2 d."""
            constant = self.param(name, first, shape)
            others = self.param(f"{name}_time", nn.initializers.zeros, (5, *shape))
            return constant + jnp.tensordot(basis[1:], others, 1)

        zeros = nn.initializers.zeros
        shift = by_time("shift", zeros, self.dim)
        # Slopes at the outside and at the centre of a bend: both above -1, so that the elementwise
        # part never folds a step, and bounded, so that none runs off.
        outside, inside = (
            MAX_GAIN * jnp.tanh((nn.softplus(raw + math.log(math.e - 1.0)) - 1.0) / MAX_GAIN)
            for raw in (by_time("outside", zeros, self.dim), by_time("inside", zeros, self.dim))
        )
        width = jnp.exp(by_time("width", zeros, self.dim))
        centre = by_time("centre", nn.initializers.constant(0.3), self.dim)
        bend = jnp.tanh(x * (0.5 / width) + centre)
        elementwise = shift + outside * x + 2.0 * width * (inside - outside) * bend
        slope = outside + (inside - outside) * (1.0 - bend**2)

        left, right, triangle = self._units()
        rank = left.shape[-1]
        inner = right @ (x + c * elementwise) + by_time("offset", nn.initializers.normal(0.5), rank)
        if features is not None:
            inner += nn.Dense(rank, use_bias=False)(features)
        # Below 2, as what it multiplies in the triangle's diagonal is above -1/2.
        strength = 2.0 * nn.sigmoid(by_time("strength", zeros, rank))
        hidden = jnp.tanh(inner)
        out = elementwise + left @ (strength * hidden)
        gain = c * strength * (1.0 - hidden**2)
        return out, Sylvester(1.0 + c * slope, gain, left, right, triangle)

    def _units(self) -> tuple[Array, Array, Array]:
        """V ``[dim, rank]``, U ``[rank, dim]`` and U V, upper triangular."""
        rank = min(self.rank, self.dim)
        zeros = nn.initializers.zeros
        # Scaled so that a unit's size, and what an optimiser's step does to it, do not grow with
        # the dimension.
        q = _orthonormal(self.param("u", nn.initializers.normal(1.0), (self.dim, rank)))
        v = self.param("v", zeros, (self.dim, rank)) / math.sqrt(self.dim)
        scale = jnp.exp(self.param("scale", zeros, (rank,)))
        mixing = jnp.triu(self.param("mixing", zeros, (rank, rank)), 1) + jnp.diag(scale)
        # What V writes where U reads is made triangular, with a diagonal of U V above -1/2.
        free = q.T @ v
        kept = jnp.triu(free, 1) + jnp.diag(0.5 * nn.elu(2.0 * jnp.diagonal(free)) / scale)
        return v + q @ (kept - free), mixing @ q.T, jnp.triu(mixing @ kept)


def structured(dim: int, *, rank: int = 64, features: Array | None = None) -> Network:
    """A control for many dimensions: an elementwise map, then hidden units V φ(U y + b).

    In a step x + c u the units act where the elementwise map e has led, y = x + c e(x): the step is
    a composition. U V is upper triangular, so that each of the two determinants is a product (van
    den Berg et al., 2018, section 3, where V and U span one subspace; here V may also write outside
    of U's), all of whose factors are positive for c up to 1: the step is injective by construction.
    Zero while untrained.

    Args:
      dim: dimension of x.
      rank: number of hidden units, of which ``dim`` at most are used.
      features: ``[num_features]``, further input: the component of the base, for one.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> network = cs.networks.structured(100, rank=4)
      >>> params = network.init(jax.random.key(0))
      >>> control, jacobian = network.split(params, jnp.ones(100), 0.0, 1.0, 0.9)
      >>> control.shape, jacobian.diagonal.shape, jacobian.gain.shape
      ((100,), (100,), (4,))
      >>> cs.log_det.slogdet(jacobian).sign.item()
      1.0
    """
    module = _Structured(dim, rank)

    def init(rng_key: PRNGKey) -> Params:
        zero, one = jnp.zeros(()), jnp.ones(())
        return module.init(rng_key, jnp.zeros(dim), zero, one, zero, features)

    def split(params: Params, x: Array, t: Array, d: Array, c: Array) -> tuple[Array, Sylvester]:
        out = module.apply(params, x, jnp.asarray(t), jnp.asarray(d), jnp.asarray(c), features)
        return cast(tuple[Array, Sylvester], out)

    def apply(params: Params, x: Array, t: Array, d: Array) -> Array:
        return split(params, x, t, d, jnp.zeros(()))[0]

    return Network(init, apply, split)


def ratio_guidance(
    whitened_log_density: Callable[[Array], Array], *, max_norm_per_dim: float = 2.0
) -> Callable[[Array, Array], Array]:
    """Guidance ∇ log(ρ/p0)(x) at every t, softly clipped: the control of an instant near t = 1.

    Unlike the interpolated gradient of the papers it is not blind to the target at the base,
    so that a one-step map sees ∇ log ρ.

    Args:
      whitened_log_density: log ρ in the base's whitened coordinates.
      max_norm_per_dim: the norm is held below this times √dim.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> guidance = cs.networks.ratio_guidance(lambda x: -0.5 * jnp.sum((x - 1.0) ** 2))
      >>> at_the_base = guidance(jnp.zeros(2), jnp.asarray(0.0))  # ∇ log(ρ/p0) is (1, 1)
      >>> [round(float(value), 2) for value in at_the_base]  # clipped softly
      [0.89, 0.89]
    """

    def guidance(x: Array, t: Array) -> Array:
        gradient = jax.grad(whitened_log_density)(x) + x
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        return clip_norm(gradient, max_norm_per_dim * math.sqrt(x.shape[-1]))

    return guidance


def interpolated_guidance(
    whitened_log_density: Callable[[Array], Array],
    process: OrnsteinUhlenbeck,
    *,
    clip: float = 1e2,
) -> Callable[[Array, Array], Array]:
    """Guidance of the OSDS and SCDS papers: the score lerp(∇ log p0, ∇ log ρ, t).

    Expressed as a control, that is t ∇ log(ρ/p0) / a(t), and clipped by coordinate.

    Args:
      whitened_log_density: log ρ in the base's whitened coordinates.
      process: the noising process, for a(t).
      clip: bound on each coordinate.

    Example:
      >>> import jax.numpy as jnp
      >>> import consistent_samplers as cs
      >>> process = cs.processes.OrnsteinUhlenbeck()
      >>> guidance = cs.networks.interpolated_guidance(
      ...     lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), process
      ... )
      >>> guidance(jnp.zeros(2), jnp.asarray(0.0)).tolist()  # at the base blind to the target
      [0.0, 0.0]
      >>> guidance(jnp.zeros(2), jnp.asarray(1.0)).tolist()
      [1.0, 1.0]
    """

    def guidance(x: Array, t: Array) -> Array:
        gradient = jax.grad(whitened_log_density)(x) + x
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        return jnp.clip(t * gradient / process.signal(t), -clip, clip)

    return guidance
