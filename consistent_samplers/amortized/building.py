"""`amortize`: from a model to a family."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from consistent_samplers import checkpoint, progress
from consistent_samplers.amortized import fitting, keeping, modes, simulated
from consistent_samplers.amortized.answering import distance
from consistent_samplers.amortized.conditional import ConditionalMap, Fitted
from consistent_samplers.amortized.coverage import MAX_MISSED, missed_mass
from consistent_samplers.amortized.family import AmortizedSampler
from consistent_samplers.amortized.ordering import ordered
from consistent_samplers.amortized.padded import Covariates, PaddedModel
from consistent_samplers.amortized.probing import padded_model
from consistent_samplers.checks import check_integer, check_key
from consistent_samplers.compilation import jit
from consistent_samplers.types import PRNGKey

NUM_DATA_SETS = 16_000
"""Data sets that are simulated for training, unless asked for otherwise."""

NUM_ITERATIONS = (400, 800)
"""Iterations of maximum likelihood, and of that with the path gradient."""

NUM_PROBES = 4
"""Data sets at which the log density of a model is kept, to know it again."""

NUM_SEARCHED = 500
"""Data sets that are searched for further modes, and for what drives the spread of what."""

MAX_APART = 1_000
"""Data sets that are simulated and not trained on, for the share of mass that is missed."""

# Least share of simulated data sets that lie near their frames: these are trained on.
_LEAST_NEAR = 0.2
# Share of the simulated data sets that lie farther out than the others.
_SHARE_UNLIKE = 0.001
_MARGIN = 1.1


def amortize(
    rng_key: PRNGKey,
    model: Callable[..., Any],
    covariates: Covariates,
    *,
    num_rows: int | tuple[int, int],
    observed: dict[str, str],
    num_data_sets: int = NUM_DATA_SETS,
    num_iterations: tuple[int, int] = NUM_ITERATIONS,
    hidden: int = 64,
    progress_bar: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> AmortizedSampler:
    """The posteriors of a NumPyro model for any data set of a family, from one training.

    Data sets are simulated from the model's own prior. A triangular map, in units of the Laplace
    approximation of each data set, is trained on them: by maximum likelihood first, then by that
    and the path gradient on the exact densities together. Where their posteriors have several
    modes, it is a mixture over these. Answers carry exact weights.

    Args:
      rng_key: key.
      model: a NumPyro model; what is observed is simulated where its keyword is left out.
      covariates: ``(rng_key, num_rows) -> (args, kwargs)``, the model's arguments of one simulated
        data set without what is observed; a JAX function of its key.
      num_rows: rows of a data set, or the least and the most. Whatever has one entry a row may
        vary with it, latent variables (members) included; what the log density makes of rows must
        then be theirs alone. Of one number of rows a model may make anything.
      observed: observed sites, each with the keyword argument that holds its values.
      num_data_sets: to simulate.
      num_iterations: of maximum likelihood, and of that with the path gradient.
      hidden: width of the networks, at least 2.
      progress_bar: show a line for each stage.
      checkpoint_dir: folder to keep the training in: a call that was killed and is made again goes
        on from there (data sets are simulated anew, with the same result). One folder for each
        family.

    Returns:
      The family; after Ctrl-C while it trains, with what it had reached and a warning.

    Raises:
      TypeError: ``rng_key`` is not a single key, covariates return no ``(args, kwargs)``, or look
        at values of arrays, as the model may not either.
      CheckpointError: ``checkpoint_dir`` cannot be used, or another process trains there.
      ValueError: a setting is none, a site of ``observed`` is unknown, the model has a discrete
        latent site, uses rows together where their number varies, or its prior cannot be drawn or
        simulates NaN more often than not.

    Warns:
      RuntimeWarning: the prior simulates NaN or infinite numbers sometimes, posteriors have mass
        that the map misses (`AmortizedSampler.missed`), or the model's arguments cannot be saved.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> import numpyro, numpyro.distributions as dist
      >>> def model(num_rows, y=None):
      ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
      ...     with numpyro.plate("rows", num_rows):
      ...         numpyro.sample("y", dist.Poisson(rate), obs=y)
      >>> tiny = dict(num_data_sets=200, num_iterations=(5, 5), progress_bar=False)  # for a test
      >>> family = cs.amortize(
      ...     jax.random.key(0), model, lambda rng_key, num_rows: ((num_rows,), {}),
      ...     num_rows=(5, 10), observed={"y": "y"}, **tiny,
      ... )
      >>> counts = jnp.array([1, 0, 2, 1, 3, 2])
      >>> family.condition(jax.random.key(1), 6, y=counts).verdict.level
      'trusted'
    """
    check_key(rng_key)
    least, most = _rows(num_rows)
    check_integer("num_data_sets", num_data_sets, 100)
    if not callable(model) or not callable(covariates):
        raise TypeError("model and covariates must be functions.")
    if not isinstance(observed, dict) or not observed:
        raise ValueError(
            "observed must map observed sites to keyword arguments, such as {'y': 'y'}."
        )
    if not isinstance(num_iterations, tuple | list) or len(num_iterations) != 2:
        raise ValueError(
            "num_iterations must be two numbers, of maximum likelihood and of the path gradient, "
            f"such as {NUM_ITERATIONS}, got {num_iterations!r}."
        )
    for count in num_iterations:
        check_integer("num_iterations must hold two numbers; each", count, 0)
    check_integer("hidden, the width of the networks,", hidden, 2)
    padded = padded_model(model, covariates, (least, most), observed)
    keeping.check_can_be_kept(padded)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with contextlib.nullcontext() if folder is None else checkpoint.reserved(folder):
        return _trained(
            rng_key,
            padded,
            (least, most),
            covariates,
            num_data_sets,
            num_iterations,
            hidden,
            progress_bar,
            folder,
        )


def _trained(
    rng_key: PRNGKey,
    padded: PaddedModel,
    num_rows: tuple[int, int],
    covariates: Covariates,
    num_data_sets: int,
    num_iterations: tuple[int, int],
    hidden: int,
    progress_bar: bool,
    folder: Path | None,
) -> AmortizedSampler:
    """`amortize` of what was checked."""
    keys = jax.random.split(rng_key, 4)
    with progress.stage("simulate", progress_bar=progress_bar):
        pairs = simulated.simulate(keys[0], padded, covariates, num_rows, num_data_sets)
        simulated.check_padding(padded, pairs)
    with progress.stage("modes", progress_bar=progress_bar):
        some = jax.tree.map(lambda x: x[:NUM_SEARCHED], pairs)
        num_modes, away = modes.survey(padded, fitting.starts_of(pairs), some)
    order = ordered(away)
    padded = dataclasses.replace(padded, order=order)
    pairs = simulated.Pairs(pairs.data, pairs.globals[:, np.array(order, int)], pairs.members)
    starts = fitting.starts_of(pairs)
    with progress.stage("Laplace frames", progress_bar=progress_bar):
        prepared = fitting.prepare(padded, starts, pairs, num_modes)
    # Some are kept apart, for what training says of itself.
    num_apart = min(MAX_APART, num_data_sets // 10)
    apart = jax.tree.map(lambda x: x[:num_apart], (prepared, pairs))
    prepared = jax.tree.map(lambda x: x[num_apart:], prepared)
    is_near = fitting.near(prepared)
    prepared = jax.tree.map(lambda x: x[is_near], prepared)
    if is_near.mean() < _LEAST_NEAR:
        raise ValueError(
            f"For {100 * (1 - is_near.mean()):.0f} % of the data sets simulated from model "
            f"{padded.name!r}, the values that they were simulated from lie far from the mode that "
            "was found: posteriors have several modes, or none. Give the model tighter priors, or "
            "train OneStepSampler on each data set."
        )
    standard = fitting.standard_of(prepared)
    made = ConditionalMap(padded.num_globals, padded.num_each, hidden, num_modes, heavy=False)
    params = made.init(keys[1], standard.data_set.shape[1], standard.member.shape[1])
    fitted = Fitted(made, params, standard)
    first, second = num_iterations
    with progress.stage("train on pairs", progress_bar=progress_bar):
        on_pairs = fitting.by_likelihood(keys[2], fitted, prepared, first, folder)
    fitted = on_pairs.fitted
    losses: dict[str, list[float]] = {"likelihood": on_pairs.losses, "density": []}
    if not on_pairs.interrupted:
        with progress.stage("train on densities", progress_bar=progress_bar):
            on_densities = fitting.by_path_gradient(
                keys[3], padded, fitted, prepared, second, folder
            )
        fitted, losses["density"] = on_densities.fitted, on_densities.losses
    fitted = fitted._replace(map=made._replace(heavy=True))
    with progress.stage("check", progress_bar=progress_bar):
        missed = missed_mass(keys[1], padded, fitted, *apart)
    if missed > MAX_MISSED:
        warnings.warn(
            f"In at least {100 * missed:.2g} % of simulated data sets the values that they were "
            "simulated from lie where this family hardly draws: posteriors have more modes or "
            "heavier tails than its map. Verdicts say so; condition(...) gives a data set a "
            "training of its own.",
            RuntimeWarning,
            stacklevel=3,
        )
    away = np.asarray(distance(prepared.frames.features[:, 0], standard))
    probes = jax.tree.map(lambda x: x[:NUM_PROBES], pairs)
    values = jit(jax.vmap(padded.log_density))((probes.globals, probes.members), probes.data)
    return AmortizedSampler(
        padded,
        num_rows,
        *fitted,
        starts,
        float(_MARGIN * np.quantile(away, 1.0 - _SHARE_UNLIKE)),
        missed,
        (tuple(probes), np.asarray(values)),
        covariates,
        losses,
    )


def _rows(num_rows: Any) -> tuple[int, int]:
    """Least and most rows."""
    pair = num_rows if isinstance(num_rows, tuple | list) else (num_rows, num_rows)
    if len(pair) != 2:
        raise ValueError(f"num_rows must be one number or (least, most), got {num_rows!r}.")
    for number in pair:
        check_integer("num_rows must hold whole numbers; each", number)
    if pair[0] > pair[1]:
        raise ValueError(f"num_rows must be (least, most), got {num_rows!r}.")
    return int(pair[0]), int(pair[1])
