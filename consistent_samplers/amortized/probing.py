"""What of a model and its arguments has rows: found by asking for shapes with one row more."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer.util import (
    _unconstrain_reparam,
    compute_log_probs,
    constrain_fn,
    get_transforms,
)

from consistent_samplers.amortized.padded import Covariates, PaddedModel, Site
from consistent_samplers.amortized.reading import normal_form, split_constants
from consistent_samplers.integrations.numpyro.arguments import name_of
from consistent_samplers.integrations.numpyro.checking import check_trace
from consistent_samplers.types import PRNGKey

# What JAX raises where a traced array is asked for its values.
_LOOKS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def padded_model(
    model: Callable[..., Any],
    covariates: Covariates,
    num_rows: tuple[int, int],
    observed: dict[str, str],
) -> PaddedModel:
    """The model with its shapes at the largest number of rows.

    Raises:
      TypeError: covariates do not return ``(args, kwargs)``.
      ValueError: a site of ``observed`` is unknown or an unknown keyword, or the model has a
        discrete latent site, or something that rows cannot be masked in.
    """
    least, most = num_rows
    first = _shapes(model, covariates, most, observed)
    try:
        second = _shapes(model, covariates, most + 1, observed)
        return _with_axes(model, most, observed, first, second)
    except Exception:
        if least < most:
            raise
    # Arguments of one size alone, or rows that cannot be told apart: nothing has rows.
    return _with_axes(model, most, observed, first, first)


def _with_axes(
    model: Callable[..., Any],
    most: int,
    observed: dict[str, str],
    first: dict[str, Any],
    second: dict[str, Any],
) -> PaddedModel:
    """The model with its axes of rows, by its shapes and those for one row more."""
    if first["structure"] != second["structure"]:
        raise ValueError(
            "covariates must give arguments of the same structure for every number of rows."
        )
    name, row = name_of(model), functools.partial(_row_axis, num_rows=most)
    arrays = tuple(
        (a.shape, a.dtype, row(f"Argument {i} of model {name!r}", a.shape, b.shape))
        for i, (a, b) in enumerate(zip(first["arrays"], second["arrays"], strict=True))
    )
    data = tuple(
        (n, a.shape, a.dtype, row(f"Observed site {n!r}", a.shape, second["observed"][n].shape))
        for n, a in first["observed"].items()
    )
    constants = []
    for (place, value), (_, other) in zip(first["constants"], second["constants"], strict=True):
        if value != other and (value, other) != (most, most + 1):
            raise ValueError(
                f"Argument {place} of model {name!r} changes with the number of rows, from "
                f"{value!r} to {other!r}: only the number of rows itself may."
            )
        constants.append((place, value if value == other else None))
    sites = tuple(
        Site(n, shape, row(f"Latent site {n!r}", shape, second["sites"][n]))
        for n, shape in sorted(first["sites"].items())
    )
    axes, outputs = (
        tuple((n, row(f"Site {n!r}", s, second[what][n])) for n, s in first[what].items())
        for what in ("terms", "outputs")
    )
    of_terms = dict(axes)
    for site in sites:
        if site.axis is not None and of_terms[site.name] is None:
            raise ValueError(
                f"Latent site {site.name!r} of model {name!r} is one draw of all rows together, "
                "which has no part that could be left out. Give num_rows as one number."
            )
    num_globals = sum(site.size for site in sites if site.axis is None)
    return PaddedModel(
        model,
        tuple(observed.items()),
        most,
        first["structure"],
        tuple(constants),
        arrays,
        data,
        sites,
        axes,
        outputs,
        tuple(range(num_globals)),
    )


def _shapes(
    model: Callable[..., Any], covariates: Covariates, num_rows: int, observed: dict[str, str]
) -> dict[str, Any]:
    """Shapes of all that matters for a number of rows, without computing anything.

    Raises:
      TypeError: the model or covariates look at values.
      ValueError: see `padded_model`.
    """
    found: dict[str, Any] = {}
    name = name_of(model)

    def run(rng_key: PRNGKey) -> Any:
        args, kwargs, given = called(covariates, rng_key, num_rows, model, list(observed.values()))
        if given:
            raise ValueError(
                f"covariates gives {next(iter(given))}=, which is observed: leave it out, the "
                "model simulates it."
            )
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays, constants = split_constants(leaves)
        prior = handlers.trace(handlers.seed(model, 0)).get_trace(*args, **kwargs)
        _check_observed(name, prior, observed)
        drawn = {site: prior[site]["value"] for site in observed}
        kwargs = kwargs | {observed[site]: value for site, value in drawn.items()}
        seeded = handlers.seed(model, 0)
        trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args, **kwargs)
        check_trace(name, trace | {site: _free(trace[site]) for site in observed})
        for site in observed:
            if not trace[site]["is_observed"]:
                raise ValueError(
                    f"Site {site!r} of model {name!r} stays latent with {observed[site]}= given: "
                    f"write numpyro.sample({site!r}, ..., obs={observed[site]})."
                )
        latent = {
            n: s["value"]
            for n, s in trace.items()
            if s["type"] == "sample" and not s["is_observed"]
        }
        transforms = get_transforms(seeded, args, kwargs, latent)
        sites = {n: tuple(t.inverse_shape(latent[n].shape)) for n, t in transforms.items()}
        at = {n: jax.numpy.zeros(shape) for n, shape in sites.items()}
        outputs = constrain_fn(handlers.seed(model, 0), args, kwargs, at, return_deterministic=True)
        found.update(
            structure=structure,
            constants=constants,
            arrays=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in map(jax.numpy.asarray, arrays)],
            observed={n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in drawn.items()},
            sites=sites,
            outputs={n: x.shape for n, x in outputs.items()},
            terms=_terms(model, args, kwargs, at),
        )
        return ()

    try:
        jax.eval_shape(run, jax.random.key(0))
    except _LOOKS as error:
        raise TypeError(
            f"Model {name!r}, or covariates, looks at the values of arrays (if, int(), NumPy): of "
            "simulated data sets these are not known yet. Use jax.numpy on arrays, and let "
            "covariates give what must be known as a Python number, the same for all data sets. "
            f"{error}"
        ) from error
    except NotImplementedError as error:
        raise ValueError(
            f"Model {name!r} has a site that cannot be drawn, an ImproperUniform say, so no data "
            f"set can be simulated from it. Give it a proper prior, such as a Normal. {error}"
        ) from error
    return found


def _terms(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], at: dict[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the log densities of all sites."""
    reparam = functools.partial(_unconstrain_reparam, at)
    model = handlers.substitute(handlers.seed(model, 0), substitute_fn=reparam)
    terms, _ = compute_log_probs(model, args, kwargs, {}, sum_log_prob=False)
    return {name: tuple(jax.numpy.shape(term)) for name, term in terms.items()}


def called(
    covariates: Covariates,
    rng_key: PRNGKey,
    num_rows: int,
    model: Callable[..., Any],
    observed: Iterable[str],
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """One simulated data set's arguments in their normal form; see `normal_form`."""
    given = covariates(rng_key, num_rows)
    pair = isinstance(given, tuple) and len(given) == 2
    if not pair or not isinstance(given[0], tuple) or not isinstance(given[1], dict):
        raise TypeError(
            "covariates(rng_key, num_rows) must return the model's arguments as (args, kwargs), a "
            f"tuple and a dictionary, such as ((X,), {{}}): got {type(given).__name__}."
        )
    return normal_form(model, *given, list(observed))


def _free(site: dict[str, Any]) -> dict[str, Any]:
    """An observed site whose value says nothing, for checks of the other sites."""
    return site | {"value": np.zeros(1)}


def _check_observed(name: str, prior: dict[str, Any], observed: dict[str, str]) -> None:
    sampled = [n for n, s in prior.items() if s["type"] == "sample"]
    for site in observed:
        if site not in sampled:
            raise ValueError(
                f"Model {name!r} has no site {site!r}. observed= maps sites to keyword arguments; "
                f"the model's sites are {', '.join(map(repr, sampled))}."
            )
        if prior[site]["is_observed"]:
            raise ValueError(
                f"Site {site!r} of model {name!r} is observed without {observed[site]}=: "
                "covariates must leave out what is observed, and the model take None for it."
            )


def _row_axis(what: str, shape: Any, other: Any, *, num_rows: int) -> int | None:
    """The axis that has one entry a row, if there is one."""
    shape, other = tuple(shape), tuple(other)
    if shape == other:
        return None
    axes = [i for i, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
    if len(shape) != len(other) or len(axes) != 1 or shape[axes[0]] != num_rows:
        raise ValueError(
            f"{what} has shape {shape} for {num_rows} rows and {other} for one more: rows can be "
            "left out only along one axis that has one entry a row. Give num_rows as one number."
        )
    return axes[0]
