"""Triangular layers: each coordinate an increasing function of its own z, given those before it."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers.types import Array, PRNGKey

_WIDTH = 8  # hidden units of each coordinate
_MAX_LOG_SCALE = 3.0


def init_globals(keys: PRNGKey, loc: Array, log_scale: Array) -> dict[str, Any]:
    """Parameters of two layers, a key for each, at which coordinates are Gaussian: ``[g]`` each."""
    num = loc.shape[0]
    layers = [
        {
            "shape": jnp.zeros((num, 2)),
            "hidden": 0.5 * jax.random.normal(key, (num, num, _WIDTH)),
            "bias": jnp.zeros((num, _WIDTH)),
            "out": jnp.zeros((num, _WIDTH, 2)),
        }
        for key in keys
    ]
    lower = jnp.zeros((num, num))
    return {"layers": layers, "loc": loc, "log_scale": log_scale, "lower": lower}


def globals_forward(params: Any, z: Array) -> tuple[Array, Array, Array]:
    """Points ``[g]`` of the globals, log |det|, and what members see of them: of order one."""
    log_det = jnp.zeros((), z.dtype)
    for layer in params["layers"]:
        u, gained = shape(z, *(0.3 * layer["shape"].T))
        shift, log_scale = _layer_at(layer, u)
        # Each layer sees the coordinates in the other's order turned round.
        z = (u * jnp.exp(log_scale) + shift)[::-1]
        log_det = log_det + gained.sum() + log_scale.sum()
    triangle = jnp.tril(params["lower"], -1)
    moved = jnp.exp(params["log_scale"]) * z + triangle @ z
    log_det = log_det + params["log_scale"].sum()
    return params["loc"] + moved, log_det, moved / _row_norm(params, triangle)


def globals_inverse(params: Any, y: Array) -> tuple[Array, Array, Array]:
    """The z ``[g]`` that leads to a point, log |det| of the map there, and what members see."""
    triangle = jnp.tril(params["lower"], -1)
    moved = y - params["loc"]
    matrix = triangle + jnp.diag(jnp.exp(params["log_scale"]))
    z = jax.scipy.linalg.solve_triangular(matrix, moved, lower=True)
    log_det = params["log_scale"].sum()
    for layer in params["layers"][::-1]:
        u, log_scale = _layer_back(layer, z[::-1])
        skew, tail = 0.3 * layer["shape"].T
        z = unshape(u, skew, tail)
        log_det = log_det + shape(z, skew, tail)[1].sum() + log_scale.sum()
    return z, log_det, moved / _row_norm(params, triangle)


def shape(z: Array, skew: Array, log_tail: Array) -> tuple[Array, Array]:
    """Sinh-arcsinh of z, and the logarithm of its derivative (Jones & Pewsey, 2009)."""
    inner = jnp.exp(log_tail) * (jnp.arcsinh(z) + skew)
    # log cosh, which overflows later than cosh.
    log_cosh = jnp.logaddexp(inner, -inner) - math.log(2.0)
    return jnp.sinh(inner), log_tail + log_cosh - 0.5 * jnp.log1p(z**2)


def unshape(x: Array, skew: Array, log_tail: Array) -> Array:
    """The z that `shape` takes to x."""
    return jnp.sinh(jnp.arcsinh(x) * jnp.exp(-log_tail) - skew)


def bounded(log_scale: Array) -> Array:
    """A log scale of at most three, either way."""
    return _MAX_LOG_SCALE * jnp.tanh(log_scale / _MAX_LOG_SCALE)


def _layer_at(layer: Any, u: Array) -> tuple[Array, Array]:
    """Shift and log scale ``[g]`` of each coordinate, of the ones before it."""
    # Of each one's units, from each other: [g, g, h], in one product of matrices.
    below = jnp.tril(jnp.ones((len(u), len(u)), u.dtype), -1)[:, :, None] * layer["hidden"]
    into = u @ jnp.swapaxes(below, 0, 1).reshape(len(u), len(u) * _WIDTH)
    seen = jnp.tanh(into.reshape(layer["bias"].shape) + layer["bias"])
    shift, log_scale = jnp.einsum("ih,iho->oi", seen, layer["out"])
    return shift, bounded(log_scale)


def _layer_back(layer: Any, v: Array) -> tuple[Array, Array]:
    """The coordinates ``[g]`` that shift and scale took to v, one after the other; log scales."""
    index = jnp.arange(len(v))

    def next_one(u: Array, own: tuple[Array, Array, Any]) -> tuple[Array, Array]:
        i, v, part = own
        before = jnp.where(index < i, u, 0.0)
        shift, log_scale = jnp.tanh(before @ part["hidden"] + part["bias"]) @ part["out"]
        log_scale = bounded(log_scale)
        return jnp.where(index == i, (v - shift) * jnp.exp(-log_scale), u), log_scale

    parts = {name: layer[name] for name in ("hidden", "bias", "out")}
    return jax.lax.scan(next_one, jnp.zeros_like(v), (index, v, parts))


def _row_norm(params: Any, triangle: Array) -> Array:
    return jnp.sqrt(jnp.exp(2.0 * params["log_scale"]) + (triangle**2).sum(1))
