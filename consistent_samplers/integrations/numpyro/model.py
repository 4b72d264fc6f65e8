"""NumPyro models as densities on R^dim: flattening, checks, starting points, fingerprints."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.infer.util import (
    constrain_fn,
    helpful_support_errors,
    log_density,
    potential_energy,
)

from consistent_samplers.compilation import jit
from consistent_samplers.integrations.numpyro.arguments import (
    Arguments,
    Call,
    Opaque,
    check_arguments,
    identify,
    identify_leaf,
    name_of,
    split_arrays,
)
from consistent_samplers.integrations.numpyro.checking import check_trace
from consistent_samplers.integrations.numpyro.tracing import (
    is_scaled,
    log_abs_det,
    missing_values,
    trace_of,
)
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, ArrayTree, PRNGKey

Samples: TypeAlias = dict[str, Array]
"""Constrained and deterministic sites by name, each ``[num_samples, ...]``."""

# Outputs of one chunk of constrained draws held at once: floats (16 MiB), and draws.
_MAX_CHUNK_FLOATS = 2**22
_MAX_CHUNK = 16_384


@dataclasses.dataclass(frozen=True)
class FlatModel:
    """A model with its arguments, as a density over the flattened unconstrained latent sites."""

    target: Target
    functions: "_Functions"
    data: ArrayTree  # arrays of the model's arguments, and its fixed parameters
    arguments: Call
    identity: Any  # what these arguments are told apart by, see `identify`

    def constrain_sites(self, sites: Samples) -> Samples:
        """Unconstrained sites of one draw to sites and deterministics."""
        return self.functions.constrain_sites(self.data, sites)

    def constrain(self, position: Array) -> Samples:
        """Positions ``[n, dim]`` to sites and deterministics; compiled, in chunks."""
        return _constrain(self.functions, self.data, position)

    def has_changed(self) -> bool:
        """Whether the model computes something else than when traced: it may read variables."""
        return _fingerprint(self.functions, self.data) != self.functions.trace

    def digest(self) -> str:
        """Sixteen characters that tell apart the data of the density, for the names of files."""
        constants = [leaf for _, _, leaf in self.functions.arguments.rest]
        told = [identify_leaf(leaf) for leaf in [*jax.tree.leaves(self.data), *constants]]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def with_arguments(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> "FlatModel":
        """The model of other data with the same sites, traced again only where shapes differ."""
        model, (known, fixed) = self.functions.model, self.data
        constants, arrays = split_arrays((model_args, model_kwargs))
        alike = [(a.shape, a.dtype) for a in arrays] == [(a.shape, a.dtype) for a in known]
        # Initial values of parameters may be computed from the data.
        alike &= not fixed
        if alike and self.functions.arguments == constants and not self.has_changed():
            return _flat_model(self.functions, (arrays, fixed), (model_args, model_kwargs))
        flat = flatten_model(model, model_args, model_kwargs)
        was, now = (m.functions.shapes for m in (self, flat))
        if was != now:
            raise ValueError(
                f"With these arguments model {name_of(model)!r} has the latent sites {now} "
                f"(unconstrained shapes), and this sampler was trained on {was}. Call "
                ".train(rng_key, ...) to train anew, or make a new OneStepSampler."
            )
        return flat


@dataclasses.dataclass(frozen=True)
class _Functions:
    """A model's functions of data and position, comparable: equal ones are compiled once."""

    model: Callable[..., Any]
    arguments: Arguments
    sites: tuple[tuple[str, tuple[int, ...]], ...]  # names and unconstrained shapes of the latent
    trace: str | None = None  # fingerprint of what they compute, see `_fingerprint`
    missing: tuple[tuple[str, tuple[int, ...]], ...] = ()  # see `missing_values`; by site
    is_scaled: bool = False  # whether handlers scale or mask latent sites

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(size for _, _, size, _ in self._parts())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Unconstrained shapes of the latent sites, of one with observed entries what varies."""
        return {name: shape if some is None else (n,) for name, shape, n, some in self._parts()}

    def __call__(self, data: ArrayTree, x: Array) -> Array:
        """Log density."""
        model, args, kwargs = self.of(data)
        free = self.unravel(x)
        if not self.is_scaled:
            return -potential_energy(model, args, kwargs, free)
        # Handlers around a site would take its Jacobian, which is a factor there, for part of it.
        sites = constrain_fn(model, args, kwargs, free)
        value, trace = log_density(model, args, kwargs, sites)
        return value + log_abs_det(trace, free, sites)

    def constrain_sites(self, data: ArrayTree, sites: Samples) -> Samples:
        """Sites and deterministics of one draw."""
        model, args, kwargs = self.of(data)
        return constrain_fn(model, args, kwargs, sites, return_deterministic=True)

    def unravel(self, x: Array) -> Samples:
        """One position to unconstrained sites; their order is that of their names."""
        sites, begin = {}, 0
        for name, shape, size, missing in self._parts():
            part = x[begin : begin + size]
            if missing is not None:
                part = jnp.zeros(math.prod(shape), x.dtype).at[np.array(missing, int)].set(part)
            sites[name] = part.reshape(shape)
            begin += size
        return sites

    def ravel(self, sites: Samples) -> Array:
        """The position of unconstrained sites, as `unravel` takes it apart."""
        parts = []
        for name, _, _, missing in self._parts():
            flat = jnp.ravel(sites[name])
            parts.append(flat if missing is None else flat[np.array(missing, int)])
        return jnp.concatenate(parts)

    def _parts(self) -> Iterator[tuple[str, tuple[int, ...], int, tuple[int, ...] | None]]:
        """Name and shape of each site, how many of its coordinates vary, and which if not all."""
        some = dict(self.missing)
        for name, shape in sorted(self.sites):
            size = len(some[name]) if name in some else math.prod(shape)
            yield name, shape, size, some.get(name)

    def of(
        self, data: ArrayTree, seed: PRNGKey | int = 0
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The model with its random sites seeded, and its arguments."""
        arrays, fixed = data
        args, kwargs = self.arguments.join(arrays)

        def seeded_model(*args: Any, **kwargs: Any) -> Any:
            # A fresh handler each time: it stores keys, which must not leak out of a JAX trace.
            fixed_model = handlers.substitute(self.model, data=fixed)
            return handlers.seed(fixed_model, seed)(*args, **kwargs)

        return seeded_model, args, kwargs


@dataclasses.dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A model that Python cannot hash, such as an instance of a dataclass: equal to itself only."""

    fn: Callable[..., Any]

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # whose signature it has
        return self.fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.fn is other.fn

    def __hash__(self) -> int:
        return id(self.fn)


def flatten_model(
    model: Callable[..., Any], model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
) -> FlatModel:
    """A model with its arguments as a density on R^dim, from a trace of it.

    This is ``numpyro.infer.initialize_model`` without its search for a starting point, which
    gives up on a density that is NaN without saying so; our own checks name the cause.
    """
    try:
        hash(model)
    except TypeError:
        model = _ByIdentity(model)
    check_arguments(name_of(model), (model_args, model_kwargs))
    trace = trace_of(model, model_args, model_kwargs)
    check_trace(name_of(model), trace)

    sites = []
    for site_name, site in trace.items():
        if site["type"] == "sample" and not site["is_observed"]:
            with helpful_support_errors(site):
                transform = dist.biject_to(site["fn"].support)
            # Of the value, which ``sample_shape=`` makes larger than its distribution.
            sites.append((site_name, tuple(transform.inverse_shape(jnp.shape(site["value"])))))
    # Parameters (of neural networks, say) keep their initial values, as under MCMC.
    fixed = {k: s["value"] for k, s in trace.items() if s["type"] in ("param", "mutable")}
    arguments = model_args, model_kwargs
    constants, arrays = split_arrays(arguments)
    missing = {name: missing_values(name_of(model), trace, name, shape) for name, shape in sites}
    some = tuple((name, index) for name, index in missing.items() if index is not None)
    scaled = any(is_scaled(trace[name]) for name, index in missing.items() if index is None)
    functions = _Functions(model, constants, tuple(sites), missing=some, is_scaled=scaled)
    if not some and (functions := _traced(functions, (arrays, fixed))).trace is not None:
        return _flat_model(functions, (arrays, fixed), arguments)
    # The model looks at its data, to count groups or to choose a branch, or we did, for what is
    # missing: they are constants to it.
    leaves, structure = jax.tree.flatten(arguments)
    rest = Opaque((i, type(leaf), leaf) for i, leaf in enumerate(leaves))
    functions = dataclasses.replace(functions, arguments=Arguments(structure, rest))
    return _flat_model(_traced(functions, ([], fixed)), ([], fixed), arguments)


def _traced(functions: _Functions, data: ArrayTree) -> _Functions:
    """Functions with the fingerprint of what they compute, which must be the same each time."""
    computed = _fingerprint(functions, data)
    if computed is not None and computed != _fingerprint(functions, data):
        raise ValueError(
            f"Model {name_of(functions.model)!r} computes something else each time that it is "
            "called: it draws random numbers of NumPy or Python. Draw them once outside of the "
            "model and give them as an argument, or make them a site of it (numpyro.sample)."
        )
    return dataclasses.replace(functions, trace=computed)


def _flat_model(functions: _Functions, data: ArrayTree, arguments: Call) -> FlatModel:
    sites = tuple((name, math.prod(shape)) for name, shape in sorted(functions.shapes.items()))
    name = name_of(functions.model)
    target = Target(Partial(functions, data), functions.dim, name, sites=sites)
    return FlatModel(target, functions, data, arguments, identify(functions.model, *arguments))


def _fingerprint(functions: _Functions, data: ArrayTree) -> str | None:
    """A hash of all that the model computes, constants around it included.

    None where the model cannot be traced without looking at what its arrays hold.
    """

    def everything(data: ArrayTree, x: Array) -> tuple[Array, Samples]:
        return functions(data, x), functions.constrain_sites(data, functions.unravel(x))

    try:
        hash(functions)
        trace = jax.make_jaxpr(everything)(data, jnp.zeros(functions.dim))
    except Exception:
        # Whatever it was: a fault of the model itself is met again, and told, without tracing.
        return None
    # Addresses of functions say nothing.
    told = re.sub("0x[0-9a-f]+", "", str(trace)), [identify_leaf(leaf) for leaf in trace.consts]
    return hashlib.sha256(repr(told).encode()).hexdigest()


@functools.partial(jit, static_argnums=0)
def _constrain(functions: _Functions, data: ArrayTree, position: Array) -> Samples:
    def one(x: Array) -> Samples:
        return functions.constrain_sites(data, functions.unravel(x))

    outputs = jax.tree.leaves(jax.eval_shape(one, position[0]))
    num_floats = sum(math.prod(output.shape) for output in outputs)
    chunk = max(1, min(_MAX_CHUNK, _MAX_CHUNK_FLOATS // max(1, num_floats)))
    return jax.lax.map(one, position, batch_size=chunk)
