"""What a network adds to the frames: a triangular map in their units, given the data set.

Globals u, the last one first (see `ordering`), and members v, each coordinate an increasing
function of its own z, whose coefficients depend on the coordinates drawn before it and on the
features of the data set (of members: also on the globals and on each member's own features, by one
network for all). So the map is injective, its density in closed form, and members may come in any
number and order.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.scipy.stats import norm
from jax.scipy.stats import t as student_t

from consistent_samplers.amortized.frames import Frame
from consistent_samplers.amortized.laplace import Members
from consistent_samplers.amortized.linear import inverse_of
from consistent_samplers.maps.triangular import bounded, shape, unshape
from consistent_samplers.types import Array, Params, PRNGKey

_CLIP = 6.0  # standardised features, and coordinates as inputs
_NUM_COEFFICIENTS = 4  # shift, log scale, skewness, log tail
# Posteriors of few rows have the tails of their priors, exponential ones of the logarithms of
# scales. Some draws of each global are twice as wide, and of answers they follow a Student t,
# against which no such tail makes a large weight: a tenth, or as many as cost all globals together
# less than a third of them.
_WIDTH, _FREEDOM, _MAX_WIDE, _WIDE_OF_ALL = 2.0, 3, 0.1, 0.3
_CONTEXT = 32
# Share of draws that are spread evenly over modes, whatever Laplace's method takes them to hold.
_EVEN = 0.05


class Standard(NamedTuple):
    """Means and standard deviations ``[2, f]`` of features over simulated data sets."""

    data_set: Array
    member: Array


class _Network(nn.Module):
    """Two hidden layers; zero at the start where ``out`` is a map's coefficients."""

    hidden: int
    out: int
    zero: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.gelu(nn.Dense(self.hidden)(x))
        x = nn.gelu(nn.Dense(self.hidden)(x))
        start = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        return nn.Dense(self.out, kernel_init=start)(x)


class ConditionalMap(NamedTuple):
    """The map's sizes; its parameters stay outside.

    Attributes:
      num_globals: g.
      num_each: p.
      hidden: width of the networks.
      num_modes: frames of each data set that it is a mixture in.
      heavy: whether wide draws follow a Student t, as is safe for answers; else a normal, as in
        training, where a few draws far out would pull the map from where the mass is.
    """

    num_globals: int
    num_each: int
    hidden: int = 64
    num_modes: int = 1
    heavy: bool = True

    def init(self, rng_key: PRNGKey, num_features: int, num_member_features: int) -> Params:
        """Parameters at which draws are those of the frames."""
        keys = jax.random.split(rng_key, 2 + self.num_globals + self.num_each)
        context = self._context.init(keys[0], jnp.zeros(num_features))
        into = jnp.zeros(self.num_globals + _CONTEXT)
        own = jnp.zeros(self.num_each + self.num_globals + num_member_features + _CONTEXT)
        begin, end = 1, 1 + self.num_globals
        of_globals = jax.vmap(lambda k: self._coordinate.init(k, into))(keys[begin:end])
        params: dict[str, Any] = {"context": context, "globals": of_globals}
        if self.num_each:
            params["members"] = jax.vmap(lambda k: self._coordinate.init(k, own))(keys[end:-1])
        if self.num_modes > 1:
            params["share"] = jnp.zeros(_CONTEXT)
        return params

    def context(self, params: Any, standard: Standard, frame: Frame) -> Array:
        """What the map knows of a data set, ``[c]``."""
        seen = standardised(frame.features, standard.data_set)
        known: Any = self._context.apply(params["context"], seen)
        return nn.gelu(known)

    def log_shares(self, params: Any, contexts: Array, frames: Frame) -> Array:
        """Logarithms ``[k]`` of the shares of draws in each frame; -inf in copies of others."""
        if self.num_modes == 1:
            return jnp.zeros(1)
        there = frames.log_mass > -jnp.inf
        shares = jax.nn.softmax(frames.log_mass + contexts @ params["share"])
        shares = (1.0 - _EVEN) * shares + _EVEN * there / there.sum()
        return jnp.where(there, jnp.log(jnp.where(there, shares, 1.0)), -jnp.inf)

    def latent(self, rng_key: PRNGKey, max_rows: int) -> tuple[Array, Array]:
        """Draws z of globals ``[g]``, some of them wider, and of members ``[N, p]``."""
        key_normal, key_wide, key_square = jax.random.split(rng_key, 3)
        z = jax.random.normal(key_normal, (self.num_globals + max_rows * self.num_each,))
        of_globals, of_members = z[: self.num_globals], z[self.num_globals :]
        wide = jax.random.bernoulli(key_wide, self._share_wide, (self.num_globals,))
        of_members = of_members.reshape(max_rows, self.num_each)
        width: Array | float = _WIDTH
        if self.heavy:
            normal = jax.random.normal(key_square, (self.num_globals, _FREEDOM))
            width = _WIDTH / jnp.sqrt(jnp.mean(normal**2, -1))
        return of_globals * jnp.where(wide, width, 1.0), of_members

    def draw_globals(self, params: Any, context: Array, z: Array) -> tuple[Array, Array]:
        """The u ``[g]`` that z ``[g]`` is taken to, and log density ``[]`` there."""
        index = jnp.arange(self.num_globals)

        def next_one(u: Array, inputs: tuple[Any, Array, Array]) -> tuple[Array, Array]:
            own, i, z = inputs
            before = jnp.where(index > i, u, 0.0)
            coefficients = self._of_coordinate(own, _joined(before, context))
            own_u, log_prob = _forward(coefficients, z, self._log_base)
            return jnp.where(index == i, own_u, u), log_prob

        if not self.num_globals:
            return z, jnp.zeros(())
        inputs = params["globals"], index, z
        u, log_prob = jax.lax.scan(next_one, jnp.zeros_like(z), inputs, reverse=True)
        return u, log_prob.sum()

    def log_prob_globals(self, params: Any, context: Array, u: Array) -> Array:
        """Log density ``[]`` at u ``[g]``."""
        if not self.num_globals:
            return jnp.zeros(())
        before = jnp.triu(jnp.ones((self.num_globals,) * 2), 1) * u
        into = jax.vmap(lambda x: _joined(x, context))(before)
        coefficients = jax.vmap(self._of_coordinate)(params["globals"], into)
        return _log_prob(coefficients, u, self._log_base).sum()

    def draw_members(
        self, params: Any, context: Array, u: Array, features: Array, z: Array
    ) -> tuple[Array, Array]:
        """The v ``[N, p]`` that z ``[N, p]`` is taken to, and log density ``[N]`` there."""
        v, total = jnp.zeros_like(z), jnp.zeros(len(z))
        for i in range(self.num_each):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params["members"])
            coefficients = self._of_coordinate(own, self._seen(context, u, features, v, i))
            own_v, log_prob = _forward(coefficients, z[:, i])
            v, total = v.at[:, i].set(own_v), total + log_prob
        return v, total

    def log_prob_members(
        self, params: Any, context: Array, u: Array, features: Array, v: Array
    ) -> Array:
        """Log density ``[N]`` of each member at v ``[N, p]``."""
        total = jnp.zeros(len(v))
        for i in range(self.num_each):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params["members"])
            coefficients = self._of_coordinate(own, self._seen(context, u, features, v, i))
            total += _log_prob(coefficients, v[:, i])
        return total

    def _of_coordinate(self, own: Any, seen: Array) -> Array:
        """Coefficients ``[..., 4]`` of one coordinate."""
        found: Any = self._coordinate.apply(own, seen)
        return found

    def _seen(self, context: Array, u: Array, features: Array, v: Array, i: int) -> Array:
        """Input of the networks of a member's coordinate i, ``[N, ...]``."""
        shared = _joined(u, context)
        before = jnp.where(jnp.arange(self.num_each) < i, v, 0.0)
        shared = jnp.broadcast_to(shared, (len(v), len(shared)))
        return jnp.concatenate([jnp.clip(before, -_CLIP, _CLIP), features, shared], -1)

    @property
    def _share_wide(self) -> float:
        """Of draws of a global that are wider."""
        return min(_MAX_WIDE, _WIDE_OF_ALL / max(self.num_globals, 1))

    def _log_base(self, z: Array) -> Array:
        """Log density of what globals are drawn from, of each by itself."""
        if self.heavy:
            wide = student_t.logpdf(z, _FREEDOM, scale=_WIDTH)
        else:
            wide = norm.logpdf(z, scale=_WIDTH)
        share = self._share_wide
        return jnp.logaddexp(norm.logpdf(z) + math.log1p(-share), wide + math.log(share))

    @property
    def _context(self) -> _Network:
        return _Network(self.hidden, _CONTEXT, zero=False)

    @property
    def _coordinate(self) -> _Network:
        return _Network(self.hidden // 2, _NUM_COEFFICIENTS)


class Fitted(NamedTuple):
    """A conditional map with its parameters.

    Attributes:
      map: the map.
      params: its parameters.
      standard: how features are spread over simulated data sets.
    """

    map: ConditionalMap
    params: Any
    standard: Standard

    def contexts(self, frames: Frame) -> Array:
        """What the map knows of a data set in each of its frames, ``[k, c]``."""
        return jax.vmap(lambda frame: self.map.context(self.params, self.standard, frame))(frames)


def standardised(features: Array, standard: Array) -> Array:
    """Features in standard deviations over simulated data sets, none of them far out."""
    return jnp.clip((features - standard[0]) / standard[1], -_CLIP, _CLIP)


def member_features(members: Members, skewness: Array, standard: Standard) -> Array:
    """What the map knows of each member, ``[N, f]``."""
    return standardised(raw_member_features(members, skewness), standard.member)


def raw_member_features(members: Members, skewness: Array) -> Array:
    """Modes and log scales given the globals, and the skewness at their mode: ``[N, f]``."""
    scales = jnp.log(jnp.diagonal(members.root, axis1=-2, axis2=-1))
    return jnp.concatenate([members.mode, scales, skewness], -1)


def to_globals(frame: Frame, u: Array) -> Array:
    """Globals of units of the frame."""
    return frame.mode + frame.to_unit.T @ u


def from_globals(frame: Frame, at: Array) -> Array:
    """Globals in units of the frame."""
    return frame.root.T @ (at - frame.mode)


def to_members(members: Members, v: Array) -> Array:
    """Members of units of their frames."""
    return members.mode + jnp.einsum("jba,jb->ja", inverse_of(members.root), v)


def from_members(members: Members, at: Array) -> Array:
    """Members in units of their frames."""
    return jnp.einsum("jba,jb->ja", members.root, at - members.mode)


def _joined(u: Array, context: Array) -> Array:
    return jnp.concatenate([jnp.clip(u, -_CLIP, _CLIP), context], -1)


def _forward(
    coefficients: Array, z: Array, log_base: Callable[[Array], Array] = norm.logpdf
) -> tuple[Array, Array]:
    """What each coordinate's z, drawn from a base, is taken to, and its log density there."""
    shift, log_scale, skew, tail = jnp.moveaxis(coefficients, -1, 0)
    log_scale = bounded(log_scale)
    shaped, log_slope = shape(z, 0.3 * skew, 0.3 * tail)
    return shift + jnp.exp(log_scale) * shaped, log_base(z) - log_slope - log_scale


def _log_prob(
    coefficients: Array, u: Array, log_base: Callable[[Array], Array] = norm.logpdf
) -> Array:
    """Log density of each coordinate, whose z is drawn from a base."""
    shift, log_scale, skew, tail = jnp.moveaxis(coefficients, -1, 0)
    log_scale = bounded(log_scale)
    z = unshape((u - shift) * jnp.exp(-log_scale), 0.3 * skew, 0.3 * tail)
    _, log_slope = shape(z, 0.3 * skew, 0.3 * tail)
    return log_base(z) - log_slope - log_scale
