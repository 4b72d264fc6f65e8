"""Noising rates β(t) with their closed-form integrals, and the time grids of the samplers.

Time runs in the generative direction everywhere: t = 0 is the base, t = 1 the target. β is
large near the base, where the marginals are smooth, and small near the target.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp

from consistent_samplers.checks import is_integer
from consistent_samplers.types import Array


class NoisingRate(Protocol):
    """A noising rate β(t) on [0, 1] and its integral.

    Example:
      >>> import consistent_samplers as cs
      >>> float(cs.schedules.constant(2.0).integral(0.0, 0.5))
      1.0
    """

    def rate(self, t: Array | float) -> Array:
        """β(t) > 0: ``[] -> []``."""

    def integral(self, t0: Array | float, t1: Array | float) -> Array:
        """∫β from t0 to t1, in closed form."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noising rate of one's own, as two functions.

    Attributes:
      rate: β(t), ``[] -> []``, positive on [0, 1].
      integral: ``(t0, t1) -> ∫_{t0}^{t1} β``, in closed form.

    Example:
      >>> import consistent_samplers as cs
      >>> schedule = cs.schedules.Schedule(lambda t: 2.0 + 0.0 * t, lambda t0, t1: 2.0 * (t1 - t0))
      >>> process = cs.processes.OrnsteinUhlenbeck(schedule)
    """

    rate: Callable[[Array | float], Array]
    integral: Callable[[Array | float, Array | float], Array]


@dataclasses.dataclass(frozen=True)
class _Falling:
    """A rate between two bounds. Compared by its numbers, like the other schedules here."""

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max:
            name = type(self).__name__.strip("_").lower()
            raise ValueError(
                f"A {name} schedule needs 0 < beta_min <= beta_max, got {self.beta_min} and "
                f"{self.beta_max}."
            )


class _Linear(_Falling):
    """See `linear`."""

    def rate(self, t: Array | float) -> Array:
        return jnp.asarray(self.beta_max - (self.beta_max - self.beta_min) * t)

    def integral(self, t0: Array | float, t1: Array | float) -> Array:
        # The trapezium is exact for a linear rate, and free of cancellation for short steps.
        return 0.5 * (self.rate(t0) + self.rate(t1)) * (t1 - t0)


class _Cosine(_Falling):
    """See `cosine`."""

    def rate(self, t: Array | float) -> Array:
        wave = jnp.cos(0.5 * jnp.pi * t) ** 2
        return jnp.asarray(self.beta_min + (self.beta_max - self.beta_min) * wave)

    def integral(self, t0: Array | float, t1: Array | float) -> Array:
        # sin a - sin b as a product: exact for short steps, where the difference cancels.
        wave = jnp.cos(0.5 * jnp.pi * (t0 + t1)) * jnp.sin(0.5 * jnp.pi * (t1 - t0)) / jnp.pi
        rise = (self.beta_max - self.beta_min) * (0.5 * (t1 - t0) + wave)
        return self.beta_min * (t1 - t0) + rise


@dataclasses.dataclass(frozen=True)
class _Brownian:
    """See `brownian`."""

    def rate(self, t: Array | float) -> Array:
        return 1.0 / jnp.asarray(t)

    def integral(self, t0: Array | float, t1: Array | float) -> Array:
        return _infinite_from_zero(t0, lambda t0: jnp.log(t1 / t0))


@dataclasses.dataclass(frozen=True)
class _Geometric:
    """See `geometric`."""

    fall: float

    def __post_init__(self) -> None:
        if not self.fall > 1.0:
            raise ValueError(f"A geometric schedule needs fall > 1, got {self.fall}.")

    def rate(self, t: Array | float) -> Array:
        log_fall = 2.0 * math.log(self.fall)
        return jnp.asarray(log_fall / jnp.expm1(log_fall * t))

    def integral(self, t0: Array | float, t1: Array | float) -> Array:
        # The log of a ratio of variances, as one of their difference: exact for short steps.
        log_fall = 2.0 * math.log(self.fall)
        return _infinite_from_zero(
            t0, lambda t0: jnp.log1p(-jnp.expm1(log_fall * (t0 - t1)) / jnp.expm1(log_fall * t0))
        )


def _infinite_from_zero(t0: Array | float, integral: Callable[[Array], Array]) -> Array:
    """An integral from t0, infinite from t0 = 0 whatever its end: with a derivative of zero."""
    t0 = jnp.asarray(t0)
    # That of what is not finite would be NaN, even where it is masked.
    positive = t0 > 0.0
    return jnp.where(positive, integral(jnp.where(positive, t0, 1.0)), jnp.inf)


def linear(beta_min: float = 0.1, beta_max: float = 10.0) -> NoisingRate:
    """A rate per unit of time that falls linearly, from ``beta_max`` at the base to ``beta_min``.

    The variance-preserving schedule of Song et al. (2021), eq. 32, in generative time.

    Raises:
      ValueError: unless 0 < beta_min <= beta_max.

    Example:
      >>> import consistent_samplers as cs
      >>> round(float(cs.schedules.linear(0.1, 10.0).integral(0.0, 1.0)), 3)
      5.05
    """
    return _Linear(beta_min, beta_max)


def cosine(beta_min: float = 0.01, beta_max: float = 10.0) -> NoisingRate:
    """A rate that falls as cos²(πt/2), as in the OSDS paper's code; arguments as in `linear`.

    Example:
      >>> import consistent_samplers as cs
      >>> round(float(cs.schedules.cosine(0.01, 10.0).integral(0.0, 1.0)), 3)
      5.005
    """
    return _Cosine(beta_min, beta_max)


def constant(beta: float = 5.0) -> NoisingRate:
    """A rate ``beta``, per unit of time, that is the same everywhere.

    Raises:
      ValueError: unless beta > 0.

    Example:
      >>> import consistent_samplers as cs
      >>> float(cs.schedules.constant(5.0).integral(0.0, 0.5))
      2.5
    """
    return _Linear(beta, beta)


def brownian() -> NoisingRate:
    """β(t) = 1 / t: the noising of a Brownian motion pinned at the origin, in scaled coordinates.

    For a Brownian motion X from X_0 = 0, X_t / √t is an Ornstein-Uhlenbeck process towards N(0, I)
    with the signal a(t) = √t. ∫β = log(t1 / t0) is infinite from t0 = 0, where the process forgets
    its start: for exact kernels (``"exponential"``) only.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> float(jnp.exp(-0.5 * cs.schedules.brownian().integral(0.25, 1.0)))  # a(t) = √t
      0.5
    """
    return _Brownian()


def geometric(fall: float = 100.0) -> NoisingRate:
    """The noising of a motion whose noise falls geometrically, to ``1 / fall`` of that at first.

    For dX = σ(t) dW from X_0 = 0 with σ(t) = σ_max fall^{-t} (Havens et al., 2025), X_t / std(X_t)
    is an Ornstein-Uhlenbeck process towards N(0, I) with the signal
    a(t)² = (1 - fall^{-2t}) / (1 - fall^{-2}).
    ∫β is infinite from t0 = 0, as of `brownian`, which is the limit of no fall: for exact kernels.

    Raises:
      ValueError: unless fall > 1.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> signal = lambda t: jnp.exp(-0.5 * cs.schedules.geometric(2.0).integral(t, 1.0))
      >>> round(float(signal(0.5) ** 2), 3)  # (1 - 1/2) / (1 - 1/4)
      0.667
    """
    return _Geometric(fall)


def check_num_steps(num_steps: int, max_steps: int, name: str = "num_steps") -> None:
    """Raises unless a sampler trained on ``max_steps`` fine steps can take ``num_steps``.

    A step of size 1 / num_steps must be one the network was trained for: d = 2^k / max_steps. The
    error calls the number by its ``name``.

    Raises:
      ValueError: ``num_steps`` is not a power of two that divides ``max_steps``, which is 0 where
        there are no steps of this kind.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.schedules.check_num_steps(3, max_steps=16)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      ValueError: num_steps=3 does not divide the 16 fine steps of this sampler into ...
    """
    allowed = [2**k for k in range(int(max_steps).bit_length())]
    if not allowed:
        raise ValueError(
            "This sampler has no deterministic map, whatever the number of steps: its draws are "
            "ends of stochastic paths, by method='path'."
        )
    if not is_integer(num_steps):
        raise ValueError(f"{name} must be an integer, one of {allowed}, got {num_steps!r}.")
    if num_steps not in allowed:
        raise ValueError(
            f"{name}={num_steps} does not divide the {max_steps} fine steps of this sampler "
            f"into steps it was trained for. Choose one of {allowed}, or train with more max_steps."
        )


def check_max_steps(max_steps: int) -> None:
    """Raises a ValueError unless the number ``max_steps`` of finest steps is a power of two.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.schedules.check_max_steps(12)
      Traceback (most recent call last):
        ...
      ValueError: max_steps must be a power of two (step sizes halve down to it), got 12.
    """
    if not is_integer(max_steps) or max_steps < 1 or max_steps & (max_steps - 1):
        raise ValueError(
            f"max_steps must be a power of two (step sizes halve down to it), got {max_steps!r}."
        )


def time_grid(num_steps: int) -> Array:
    """Start times of ``num_steps`` equal steps on [0, 1]: ``[num_steps]``.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.schedules.time_grid(4).tolist()
      [0.0, 0.25, 0.5, 0.75]
    """
    return jnp.arange(num_steps) / num_steps


def annealing(iteration: Array | int, num_iterations: int) -> Array:
    """Exponent of the tempered target: rises from 0 to 1 as (i / num_iterations)², ``[]``.

    While it is small the modes are joined, and mass settles among them evenly instead of in the
    mode that is met first. Slow at first, since a peaked density bites at small exponents.

    Args:
      iteration: ``[]``, from 0.
      num_iterations: of the annealing; none at all for 0.

    Example:
      >>> import consistent_samplers as cs
      >>> [float(cs.schedules.annealing(i, 4)) for i in range(5)]
      [0.0625, 0.25, 0.5625, 1.0, 1.0]
    """
    return jnp.minimum(1.0, (iteration + 1.0) / max(num_iterations, 1)) ** 2
