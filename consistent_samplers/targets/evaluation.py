"""The only way to a density: three batched functions of points.

Values, values and gradients, Hessian products. Each is compiled once for a density and a few fixed
batch sizes; a batch of any size is cut into these and its rest filled up. So a model is compiled
five times at most on a CPU, however many parts of a training ask for it, and nothing else is
compiled with it. Inside a computation that JAX traces they are parts of that computation.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.tree_util import Partial
from jax.typing import ArrayLike

from consistent_samplers.compilation import (
    as_partial,
    compiler_options,
    in_turn,
    is_double,
    precision,
)
from consistent_samplers.types import Array, LogDensityFn

_Kind: TypeAlias = Literal["values", "values_and_grads", "hessian_products"]


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Batch sizes that are compiled, ascending."""

    values: tuple[int, ...]
    values_and_grads: tuple[int, ...]
    hessian_products: tuple[int, ...]


# On CPUs batches that fit the caches, and single points for optimisers on the host. Other devices
# idle over small batches.
_SIZES = {"cpu": _Sizes((1_024,), (1, 128, 512), (128,))}
_SIZES_ELSEWHERE = _Sizes((4_096, 65_536), (128, 4_096), (4_096,))
_FEW = 128
# Operations of LAPACK's calls for n × n matrices, in n³ (Golub & Van Loan, 2013).
_LAPACK = {
    **{"cholesky": 1 / 3, "lu": 2 / 3, "triangular_solve": 1.0, "qr": 4 / 3, "geqrf": 4 / 3},
    **{"householder_product": 4 / 3, "eigh": 9.0, "svd": 20.0, "eig": 25.0, "schur": 25.0},
}
# Programs of a density: three kinds at their sizes share one entry each. The last eight densities
# are kept.
_MAX_PROGRAMS = 24


def values(log_density: LogDensityFn, points: ArrayLike) -> Array:
    """Log densities at points, in nats: ``[n]``.

    Args:
      log_density: of one point, ``[dim] -> []``; a ``jax.tree_util.Partial`` brings its data along
        as inputs of what is compiled.
      points: ``[n, dim]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers.targets import evaluation
      >>> evaluation.values(lambda x: -0.5 * jnp.sum(x**2), jnp.ones((3, 2))).tolist()
      [-1.0, -1.0, -1.0]
    """
    if _is_traced(log_density, points):
        return _values(_call, as_partial(log_density), jnp.asarray(points))
    # A few points take the gradients' program, which a training compiles in any case.
    if len(points) <= _FEW < _sizes("values")[0]:  # type: ignore[arg-type]
        return values_and_grads(log_density, points)[0]
    try:
        return _in_batches("values", log_density, points)
    except jax.errors.TracerArrayConversionError:  # constants of what is being traced
        return _values(_call, as_partial(log_density), jnp.asarray(points))


def values_and_grads(log_density: LogDensityFn, points: ArrayLike) -> tuple[Array, Array]:
    """Log densities ``[n]`` and gradients ``[n, dim]`` at points ``[n, dim]``; see `values`."""
    if _is_traced(log_density, points):
        return _values_and_grads(_call, as_partial(log_density), jnp.asarray(points))
    try:
        return _in_batches("values_and_grads", log_density, points)
    except jax.errors.TracerArrayConversionError:  # constants of what is being traced
        return _values_and_grads(_call, as_partial(log_density), jnp.asarray(points))


def hessian_products(log_density: LogDensityFn, points: ArrayLike, vectors: ArrayLike) -> Array:
    """Products ∇²log ρ(x) v of Hessians with vectors, one for each point: ``[n, dim]``."""
    if _is_traced(log_density, (points, vectors)):
        points, vectors = jnp.asarray(points), jnp.asarray(vectors)
        return _hessian_products(_call, as_partial(log_density), points, vectors)
    return _in_batches("hessian_products", log_density, points, vectors)


def hessians(log_density: LogDensityFn, points: ArrayLike) -> np.ndarray:
    """Hessians at points as host arrays in float64: ``[n, dim, dim]``, made of products."""
    points = np.asarray(points)
    num, dim = points.shape
    vectors = np.tile(np.eye(dim, dtype=points.dtype), (num, 1))
    products = hessian_products(log_density, np.repeat(points, dim, axis=0), vectors)
    return np.asarray(products, np.float64).reshape(num, dim, dim)


def compile_ahead(log_density: LogDensityFn, dim: int) -> None:
    """Begins to compile what the fit of a base asks of a density, and comes back at once.

    On two threads, each program before it is needed. The density is traced here: on other threads
    none of a user's code runs.
    """
    density, dtype = as_partial(log_density), jnp.result_type(float)
    if _is_traced(density, ()):
        return
    structure = jax.tree.structure(density)
    few, *more = _sizes("values_and_grads")
    wanted: list[tuple[_Kind, int]] = [("values_and_grads", few)]
    wanted += [("hessian_products", _sizes("hessian_products")[0]), ("values", _sizes("values")[0])]
    wanted += [("values_and_grads", size) for size in more]
    _ahead.clear()
    threads = ThreadPoolExecutor(2, thread_name_prefix="compiles a density")
    for kind, size in wanted:
        points = jax.ShapeDtypeStruct((size, dim), dtype)
        inputs = (points, points) if kind == "hessian_products" else (points,)
        try:
            traced = _program(kind, structure).trace(density, *inputs)
        except Exception:  # told where it is needed
            break
        _ahead[kind, structure, size, dim, dtype] = threads.submit(_compiled, traced, is_double())
    threads.shutdown(wait=False)


def cost(log_density: LogDensityFn, dim: int) -> float:
    """Floating-point operations of one value and gradient: the compiler's count, and LAPACK's.

    Loops count once. The same on every machine, unlike a time.
    """
    size = _FEW
    density = as_partial(log_density)
    points = jax.ShapeDtypeStruct((size, dim), jnp.zeros(0).dtype)
    traced = _program("values_and_grads", jax.tree.structure(density)).trace(density, points)
    analysis = traced.lower().cost_analysis() or {}
    of_matrices = sum(map(_of_lapack, _equations(traced.jaxpr)))
    return (float(analysis.get("flops", 0.0)) + of_matrices) / size


def _of_lapack(equation: Any) -> float:
    """Operations of a batch of factorisations or solves, of which the compiler knows nothing."""
    name = equation.primitive.name
    if name not in _LAPACK:
        return 0.0
    matrices, size = equation.invars[0].aval, equation.outvars[0].aval.size
    # Of as many right-hand sides as there are, or of square matrices.
    return float(_LAPACK[name] * matrices.shape[-1] * max(size, matrices.size))


def numbers(log_density: LogDensityFn, dim: int) -> Iterator[Any]:
    """Arrays and numbers that a density is made with: its data, and the constants in its code."""
    density = as_partial(log_density)
    yield from (leaf for leaf in jax.tree.leaves(density) if _is_number(leaf))
    point = jax.ShapeDtypeStruct((dim,), jnp.zeros(0).dtype)
    traced: Any = _one_point(jax.tree.structure(density))  # once, as for its values
    jaxpr = traced.trace(density, point).jaxpr
    yield from filter(_is_number, getattr(jaxpr, "consts", ()))
    for equation in _equations(jaxpr):
        literals = (x.val for x in equation.invars if isinstance(x, core.Literal))
        yield from filter(_is_number, literals)
        for inner in _inside(equation):
            yield from filter(_is_number, getattr(inner, "consts", ()))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All steps of a computation, those of its parts after the ones that they are in."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inside(equation):
            yield from _equations(inner)


def _inside(equation: Any) -> Iterator[Any]:
    leaves = jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr)
    return filter(_is_jaxpr, leaves)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _is_number(value: Any) -> bool:
    # Unsigned ones are those of random bits.
    dtype = getattr(value, "dtype", np.dtype(type(value)))
    return isinstance(dtype, np.dtype) and dtype.kind in "if"


_OnePoint: TypeAlias = Callable[[Partial, Array], Array]


def _call(density: Partial, x: Array) -> Array:
    value: Array = density(x)
    return value


def _values(one: _OnePoint, density: Partial, points: Array) -> Array:
    return jax.vmap(lambda x: one(density, x))(points)


def _value_and_grad(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """In reverse mode, or in forward mode where there is no other (a loop of open length)."""
    try:
        return jax.value_and_grad(function)(x)
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        return function(x), jax.jacfwd(function)(x)


def _values_and_grads(one: _OnePoint, density: Partial, points: Array) -> tuple[Array, Array]:
    return jax.vmap(lambda x: _value_and_grad(lambda y: one(density, y), x))(points)


def _hessian_products(one: _OnePoint, density: Partial, points: Array, vectors: Array) -> Array:
    def grad(x: Array) -> Array:
        return _value_and_grad(lambda y: one(density, y), x)[1]

    def product(x: Array, v: Array) -> Array:
        try:
            return jax.jvp(grad, (x,), (v,))[1]
        except TypeError as error:
            # Derivatives of its own in reverse mode only, as those of an ODE's solution.
            if "forward-mode" not in str(error):
                raise
            return jax.vjp(grad, x)[1](v)[0]

    return jax.vmap(product)(points, vectors)


_FUNCTIONS: dict[_Kind, Callable[..., Any]] = {
    "values": _values,
    "values_and_grads": _values_and_grads,
    "hessian_products": _hessian_products,
}


@functools.lru_cache(maxsize=_MAX_PROGRAMS)
def _program(kind: _Kind, structure: Any) -> Any:
    """The compiled function of a kind, for densities of one structure, without their data."""
    options = compiler_options("less") or None
    function = functools.partial(_FUNCTIONS[kind], _one_point(structure))
    return jax.jit(function, compiler_options=options)


def _compiled(traced: Any, double: bool) -> None:
    """Compiles what was traced, for JAX to find when the function is called."""
    # What fails is told where it is needed.
    with contextlib.suppress(Exception), precision(double=double):
        traced.lower().compile()


# What is being compiled for the last density that was fitted, until it is asked for.
_ahead: dict[Any, Future[None]] = {}


@functools.lru_cache(maxsize=_MAX_PROGRAMS // 3)
def _one_point(structure: Any) -> _OnePoint:
    """A density at one point, traced once for all of its programs."""
    # A function of its own: what JAX keeps for it goes with it.
    return jax.jit(functools.partial(_call))


def _sizes(kind: _Kind) -> tuple[int, ...]:
    sizes: tuple[int, ...] = getattr(_SIZES.get(jax.default_backend(), _SIZES_ELSEWHERE), kind)
    return sizes


def _is_traced(log_density: LogDensityFn, points: Any) -> bool:
    leaves = jax.tree.leaves((points, as_partial(log_density)))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def products_at_once() -> int:
    """Points at which products with the Hessian of a density are computed side by side.

    Example:
      >>> from consistent_samplers.targets import evaluation
      >>> evaluation.products_at_once() > 0
      True
    """
    return _sizes("hessian_products")[-1]


def _in_batches(kind: _Kind, log_density: LogDensityFn, *inputs: ArrayLike) -> Any:
    """A program's outputs for inputs ``[n, dim]`` of any length."""
    density = as_partial(log_density)
    structure = jax.tree.structure(density)
    program = in_turn(functools.partial(_program(kind, structure), density))
    num = len(inputs[0])  # type: ignore[arg-type]
    sizes = _sizes(kind)
    size = next((s for s in sizes if s >= num), sizes[-1])
    # On CPUs with NumPy: JAX compiles slices and joins of every length, and all once more for
    # arrays bound to their device. Elsewhere that would move all of them to the host and back.
    xp: Any = np if jax.default_backend() == "cpu" else jnp
    arrays = [xp.asarray(x) for x in inputs]
    if _ahead:
        key = (kind, structure, size, arrays[0].shape[-1], arrays[0].dtype)
        if (compiling := _ahead.pop(key, None)) is not None:
            compiling.result()
    if num == size:
        return program(*arrays)
    parts = [
        program(*(_filled(x[begin : begin + size], size, xp) for x in arrays))
        for begin in range(0, num, size)
    ]
    return jax.tree.map(lambda *p: xp.concatenate([*map(xp.asarray, p)])[:num], *parts)


def _filled(batch: Any, size: int, xp: Any) -> Any:
    """A batch filled up to a size with its last row."""
    if len(batch) < size:
        batch = xp.concatenate([batch, xp.repeat(batch[-1:], size - len(batch), axis=0)])
    return batch
