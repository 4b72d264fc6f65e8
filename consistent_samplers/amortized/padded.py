"""A NumPyro model as one density for data sets of all sizes: rows are filled up and masked.

What has rows is found by asking for shapes with one row more. Rows beyond those of a data set
repeat its last one, so that everything computed of them is a number, and count for nothing: neither
what is observed of them, nor latent variables that belong to them (members). So log Z is that of
the data set itself, exactly, which `simulated.check_padding` holds every model to.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import (
    _unconstrain_reparam,
    compute_log_probs,
    constrain_fn,
    unconstrain_fn,
)

from consistent_samplers.amortized.reading import canonical, normal_form, taken
from consistent_samplers.integrations.numpyro.arguments import Call, name_of
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.types import Array, PRNGKey

Covariates: TypeAlias = Callable[[PRNGKey, int], Call]
"""The arguments ``(args, kwargs)`` of one simulated data set, without what is observed."""


class DataSet(NamedTuple):
    """One data set, or many with a leading axis: ``N`` rows, of which some are there.

    Attributes:
      arrays: of the model's arguments.
      observed: by site.
      mask: ``[N]`` bool, which rows are there.
    """

    arrays: list[Any]
    observed: dict[str, Any]
    mask: Any


class Site(NamedTuple):
    """A latent site: its unconstrained shape at `PaddedModel.max_rows`, and its axis of rows."""

    name: str
    shape: tuple[int, ...]
    axis: int | None

    @property
    def size(self) -> int:
        """Coordinates, of one member where the site has members."""
        return math.prod(d for i, d in enumerate(self.shape) if i != self.axis)


@dataclasses.dataclass(frozen=True, eq=False)
class PaddedModel:
    """A model with the shapes of its arguments at ``max_rows`` rows.

    Positions are ``(globals [g], members [N, p])``: coordinates of sites that have no axis of rows,
    and of those that have one. The globals are in ``order``, the members in that of the sites.
    """

    model: Callable[..., Any]
    observed: tuple[tuple[str, str], ...]  # site and keyword
    max_rows: int
    structure: Any  # of the arguments, without what is observed
    constants: tuple[tuple[int, Any], ...]  # leaves that are no arrays, by place; None: the rows
    arrays: tuple[tuple[tuple[int, ...], Any, int | None], ...]  # shape, dtype, axis of rows
    data: tuple[tuple[str, tuple[int, ...], Any, int | None], ...]  # the same of what is observed
    sites: tuple[Site, ...]
    axes: tuple[tuple[str, int | None], ...]  # of rows, in the log densities of all sites
    outputs: tuple[tuple[str, int | None], ...]  # of rows, in sites and deterministics
    order: tuple[int, ...]  # coordinates of the globals' sites, as positions have them

    @property
    def name(self) -> str:
        """The model's name."""
        return name_of(self.model)

    @functools.cached_property
    def num_globals(self) -> int:
        """Coordinates that every data set has."""
        return sum(site.size for site in self.sites if site.axis is None)

    @functools.cached_property
    def num_each(self) -> int:
        """Coordinates of each member."""
        return sum(site.size for site in self.sites if site.axis is not None)

    @property
    def has_rows(self) -> bool:
        """Whether anything of the data has an axis of rows."""
        return any(axis is not None for *_, axis in [*self.arrays, *self.data])

    def with_rows(self, num_rows: int) -> "PaddedModel":
        """The same for data sets of up to another number of rows."""

        def resized(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
            return shape if axis is None else (*shape[:axis], num_rows, *shape[axis + 1 :])

        return dataclasses.replace(
            self,
            max_rows=num_rows,
            arrays=tuple((resized(s, axis), dtype, axis) for s, dtype, axis in self.arrays),
            data=tuple((n, resized(s, axis), dtype, axis) for n, s, dtype, axis in self.data),
            sites=tuple(Site(n, resized(s, axis), axis) for n, s, axis in self.sites),
        )

    def log_density(self, at: tuple[Array, Array], data: DataSet) -> Array:
        """Log of the joint density ``[]`` of a position and a data set, padding left out."""
        return sum((jnp.sum(term) for term in self.terms(at, data).values()), jnp.zeros(()))

    def terms(self, at: tuple[Array, Array], data: DataSet) -> Samples:
        """Log densities of all sites at a position, zero in rows that are not there."""
        args, kwargs = self.arguments(data)
        seeded = handlers.seed(self.model, 0)
        reparam = functools.partial(_unconstrain_reparam, self.unravel(*at))
        terms, _ = compute_log_probs(
            handlers.substitute(seeded, substitute_fn=reparam), args, kwargs, {}, sum_log_prob=False
        )
        axes = dict(self.axes)
        return {name: masked(term, data.mask, axes[name]) for name, term in terms.items()}

    def arguments(self, data: DataSet, with_observed: bool = True) -> Call:
        """The model's arguments."""
        leaves: list[Any] = list(data.arrays)
        for place, constant in self.constants:
            leaves.insert(place, self.max_rows if constant is None else constant)
        args, kwargs = jax.tree.unflatten(self.structure, leaves)
        if with_observed:
            kwargs = kwargs | {keyword: data.observed[site] for site, keyword in self.observed}
        return args, kwargs

    def unravel(self, at_globals: Array, at_members: Array) -> Samples:
        """Unconstrained sites of one position."""
        at_globals = at_globals[..., np.argsort(self.order)]
        sites, begin = {}, {True: 0, False: 0}
        for name, shape, axis in self.sites:
            site = Site(name, shape, axis)
            members = axis is not None
            end = begin[members] + site.size
            part = (at_members if members else at_globals)[..., begin[members] : end]
            if axis is not None:
                rest = (*shape[:axis], *shape[axis + 1 :])
                sites[name] = jnp.moveaxis(part.reshape(self.max_rows, *rest), 0, axis)
            else:
                sites[name] = part.reshape(shape)
            begin[members] = end
        return sites

    def ravel(self, sites: Samples) -> tuple[Array, Array]:
        """The position of unconstrained sites."""
        parts: dict[bool, list[Array]] = {True: [], False: []}
        for name, _, axis in self.sites:
            if axis is None:
                parts[False].append(sites[name].reshape(-1))
            else:
                rows = jnp.moveaxis(sites[name], axis, 0)
                parts[True].append(rows.reshape(self.max_rows, -1))
        at_globals = jnp.concatenate(parts[False]) if parts[False] else jnp.zeros(0)
        at_globals = at_globals[np.array(self.order, int)]
        none = jnp.zeros((self.max_rows, 0))
        return at_globals, jnp.concatenate(parts[True], -1) if parts[True] else none

    def constrain(self, at: tuple[Array, Array], data: DataSet) -> Samples:
        """Sites and deterministics of one position; NaN where a row is not there."""
        args, kwargs = self.arguments(data)
        model = handlers.seed(self.model, 0)
        found = constrain_fn(model, args, kwargs, self.unravel(*at), return_deterministic=True)
        return {name: masked(found[name], data.mask, axis, jnp.nan) for name, axis in self.outputs}

    def simulate(self, rng_key: PRNGKey, data: DataSet) -> tuple[tuple[Array, Array], DataSet]:
        """A position drawn from the prior, and the data set with what is observed given it."""
        args, kwargs = self.arguments(data, with_observed=False)
        trace = handlers.trace(handlers.seed(self.model, rng_key)).get_trace(*args, **kwargs)
        latent = {site.name: trace[site.name]["value"] for site in self.sites}
        values = {name: (trace[name]["value"], canonical(dtype)) for name, _, dtype, _ in self.data}
        drawn = {name: jnp.asarray(*of) for name, of in values.items()}
        made = data._replace(observed=drawn)
        args, kwargs = self.arguments(made)
        sites = unconstrain_fn(handlers.seed(self.model, 0), args, kwargs, latent)
        return self.ravel({name: sites[name] for name in latent}), made

    def pad(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DataSet:
        """One data set's arguments with their rows filled up, as arrays of NumPy.

        Raises:
          ValueError: see `AmortizedSampler.condition`.
        """
        return self.filled(self.read(args, kwargs))

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DataSet:
        """One data set's arguments with the rows that it has, as arrays of NumPy.

        Raises:
          ValueError: see `AmortizedSampler.condition`.
        """
        keywords = [keyword for _, keyword in self.observed]
        args, kwargs, values = normal_form(self.model, args, kwargs, keywords)
        drawn = {}
        for site, keyword in self.observed:
            if values.get(keyword) is None:
                raise ValueError(
                    f"A data set of model {self.name!r} lacks {keyword}=, what is observed at "
                    f"site {site!r}."
                )
            drawn[site] = values[keyword]
        try:
            leaves = self.structure.flatten_up_to((args, kwargs))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The arguments of this data set are {jax.tree.structure((args, kwargs))} beside "
                f"what is observed, and covariates gave {self.structure}: give the same ones."
            ) from error
        plain = dict(self.constants)
        given = [leaf for place, leaf in enumerate(leaves) if place not in plain]
        num_rows = self._rows(given, drawn)
        for place, known in plain.items():
            wanted, value = num_rows if known is None else known, leaves[place]
            if np.ndim(value) or np.asarray(value) != wanted:
                what = f"the number of rows, {num_rows}" if known is None else repr(known)
                raise ValueError(f"Argument {place} of the model must be {what}, got {value!r}.")
        arrays = [
            self._taken(a, known, num_rows, f"Argument {i}")
            for i, (a, known) in enumerate(zip(given, self.arrays, strict=True))
        ]
        observed = {
            name: self._taken(drawn[name], known, num_rows, f"Site {name!r}")
            for name, *known in self.data
        }
        return DataSet(arrays, observed, np.ones(num_rows, bool))

    def filled(self, data: DataSet) -> DataSet:
        """A data set with its rows filled up, each by the last one."""
        missing = self.max_rows - len(data.mask)

        def fill(array: np.ndarray, axis: int | None) -> np.ndarray:
            width = [(0, missing if i == axis else 0) for i in range(array.ndim)]
            return np.pad(array, width, mode="edge") if missing and axis is not None else array

        return self._by_rows(fill, data, np.pad(data.mask, (0, missing)))

    def cut(self, data: DataSet) -> DataSet:
        """The first ``max_rows`` rows of a data set."""

        def first(array: Any, axis: int | None) -> Any:
            return first_rows(array, axis, self.max_rows)

        return self._by_rows(first, data, data.mask[: self.max_rows])

    def _by_rows(self, change: Callable[..., Any], data: DataSet, mask: Any) -> DataSet:
        """A data set with all arrays changed, which are given along with their axes of rows."""
        pairs = zip(data.arrays, self.arrays, strict=True)
        observed = {name: change(data.observed[name], axis) for name, *_, axis in self.data}
        return DataSet([change(array, axis) for array, (*_, axis) in pairs], observed, mask)

    def _rows(self, given: list[Any], drawn: dict[str, Any]) -> int:
        """The number of rows of a data set, from the first array that has any."""
        pairs = list(zip(given, [axis for *_, axis in self.arrays], strict=True))
        pairs += [(drawn[name], axis) for name, *_, axis in self.data]
        for array, axis in pairs:
            if axis is not None and axis < np.ndim(array):
                if not (num_rows := int(np.shape(array)[axis])):
                    raise ValueError(f"This data set of model {self.name!r} has no rows.")
                return num_rows
        return self.max_rows

    def _taken(self, value: Any, known: Any, num_rows: int, what: str) -> np.ndarray:
        shape, dtype, axis = known
        wanted = tuple(num_rows if i == axis else d for i, d in enumerate(shape))
        if np.shape(value) != wanted:
            raise ValueError(
                f"{what} of this data set has shape {np.shape(value)}, and model {self.name!r} was "
                f"simulated with {wanted} for {num_rows} rows."
            )
        return taken(value, dtype, axis, what)


@functools.lru_cache(maxsize=64)
def of_size(model: PaddedModel, num_rows: int) -> PaddedModel:
    """`PaddedModel.with_rows`, the same one for the same number."""
    return model if num_rows == model.max_rows else model.with_rows(num_rows)


def first_rows(array: Any, axis: int | None, num_rows: int) -> Any:
    """The first so many entries along an axis of rows, if there is one."""
    return array if axis is None else array[(slice(None),) * axis + (slice(num_rows),)]


def masked(values: Array, mask: Array, axis: int | None, fill: float = 0.0) -> Array:
    """Values with ``fill`` in the rows that are not there."""
    if axis is None:
        return values
    shape = [1] * jnp.ndim(values)
    shape[axis] = -1
    return jnp.where(mask.reshape(shape), values, fill)
