"""The whole recipe with good defaults: fit a base, and train as far as the draws asked for need."""

import contextlib
import dataclasses
import functools
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from consistent_samplers import checkpoint, progress
from consistent_samplers.algorithms.building import check_base
from consistent_samplers.algorithms.hierarchical import check_structure
from consistent_samplers.bases import Base, fit_base, fit_diagonal, fit_gaussian, standard_normal
from consistent_samplers.bases.base import as_pytree
from consistent_samplers.bases.iterating import folded, pair, split
from consistent_samplers.checks import check_choice, check_integer, check_key, check_widths
from consistent_samplers.compilation import as_partial
from consistent_samplers.recipe import chain_stage, map_choice, route, warm_start
from consistent_samplers.recipe.ahead import compile_iterations, compile_training
from consistent_samplers.recipe.building import distillation
from consistent_samplers.recipe.looking import NUM_PLACED
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.recipe.route import EFFORTS, Effort
from consistent_samplers.recipe.stages import train
from consistent_samplers.recipe.trained import TrainedSampler
from consistent_samplers.schedules import check_max_steps
from consistent_samplers.targets import Target, evaluation, rounding
from consistent_samplers.targets.base import check_density
from consistent_samplers.types import Array, Draws, PRNGKey

# Above it, determinants of a general network's steps are too dear to train on.
_MAX_GENERAL_DIM = 100
_LARGE_ITERATIONS = 300
_NETWORKS = ("general", "hierarchical", "structured")
# What the keys of chains and of other maps are folded with.
_CHAINS, _OTHER, _LAPLACE = 5, 6, 7


def train_sampler(
    rng_key: PRNGKey,
    target: Target,
    *,
    base: Base | None = None,
    init_position: Array | None = None,
    num_samples: int = 10_000,
    effort: Effort = "auto",
    max_steps: int = 1,
    hidden: tuple[int, ...] = (64, 64),
    network: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int | None = None,
    num_calibration_iterations: int | None = None,
    explore: bool = True,
    start: TrainedSampler | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> TrainedSampler:
    """A one-step sampler of a target: a fitted base and, where needed, one step calibrated from it.

    The cheapest route that gives the draws asked for is taken: the base alone if its weights can be
    trusted and drawing more of it is cheaper than training; else a short calibration of one step
    on its exact likelihood; else a long one; else chains in the map's latent space
    (`recipe.route`). ``trained.route`` says which and why. Where ``max_steps`` asks for more steps
    than one, a sampler of all numbers of steps is distilled first, by OSDS.

    Args:
      rng_key: key.
      target: what to sample.
      base: where samples start; the best of several kinds if None, see `explore`.
      init_position: ``[dim]`` or ``[n, dim]``, points where the target is known to have mass,
        for fitting the base.
      num_samples: effective draws that are wanted, which the route is chosen for.
      effort: ``"auto"``, or how far to go whatever the weights are worth: ``"base"``,
        ``"short"``, ``"full"``, for a sampler of many later draws, or ``"chains"``. Chains follow
        ``"auto"`` and ``"full"`` too where the weights of one step are not to be used, unless
        ``num_calibration_iterations`` says how long to train.
      max_steps: most steps that the sampler is to draw in, a power of two; more than one has it
        distilled, and trained in full.
      hidden: widths of the network's hidden layers.
      network: ``"general"``, the default up to 100 dimensions; ``"hierarchical"``, the default
        above, and below where the general one is dear or falls short, if ``target.structure`` takes
        the target apart: globals first, then members given them (`maps.HierarchicalMap`);
        ``"structured"``, the default elsewhere: a looser bound and a smaller share of effective
        draws, but weighted draws for the price of a few network evaluations instead of ``dim + 1``,
        and quicker training; or one's own: a linen module or anything with ``init`` and ``apply``,
        called as (x [dim], t [], d []) -> [dim].
      optimizer: an optax transformation; Adam on an annealed learning rate if None.
      num_iterations: iterations of OSDS. If None, 300, or 100 above 100 dimensions, where
        ``max_steps`` exceeds one, and none elsewhere. Without any, more steps than one are no
        better than the base.
      num_calibration_iterations: iterations of calibration, which are then run whatever the base
        is worth. If None, as the route says: 250, and 1,250 more in full where less than nine
        tenths of the draws are effective by then; above 100 dimensions 500 and 1,000 of a
        hierarchical map, and 300 of others.
      explore: look for modes by many optimiser starts and tempered SMC, and take the best of a
        Gaussian, a mixture and a product of mixtures as base (`bases.fit_base`); afterwards look
        again from fresh starts for modes that the draws do not show, and warn of them. False fits
        a Gaussian at once: quicker, where the target is known to have one mode.
      start: a sampler of a similar target, such as the posterior of other data, to go on from: its
        base is moved and its network trained for a third of the iterations, without a new
        exploration; ``max_steps``, ``hidden`` and ``network`` are its own. Where that ends with
        less than half its share of effective draws, or misses modes, a warning says so and training
        begins anew.
      progress_bar: show a line for each stage, with the time left of those that count iterations,
        where standard error is a terminal or in a notebook.
      checkpoint_dir: folder to keep the training in: a call that was killed and is made again
        goes on from there (the base is fitted anew, with the same result). One folder for each
        target; a warm start, which is short, keeps nothing there.

    Returns:
      A `TrainedSampler`; after Ctrl-C during the training of the network, with what it had reached
      and a warning. A stage whose training diverges keeps its last good state, with a
      warning, and the calibrated step is kept only if its ELBO is no worse.

    Raises:
      TypeError: ``target`` is no `Target`, ``rng_key`` is not a single key, or network or optimiser
        are none.
      ValueError: the density is NaN, +inf, or zero everywhere it was tried; base or start differ
        from the target in dimension; or a number of iterations, steps or units makes no sense.
      CheckpointError: ``checkpoint_dir`` cannot be used, or another process trains there.
      TrainingDivergedError: the draws of the trained sampler have no usable weights (the density
        is NaN or +inf where it was not before); carries the trained state.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.array([0.5]), jnp.ones(1))
      >>> base = cs.bases.standard_normal(1)  # fitted to the target if not given
      >>> tiny = dict(hidden=(8,), num_calibration_iterations=5, progress_bar=False)  # for a test
      >>> trained = cs.train_sampler(jax.random.key(0), target, base=base, **tiny)
      >>> list(trained.stages), trained.stages["calibrated"].bound
      (['base', 'calibrated'], 'lower-if-injective')
      >>> trained.sample(jax.random.key(1), 1_000, weights=False).position.shape
      (1000, 1)
    """
    begin = time.perf_counter()
    if not isinstance(target, Target):
        raise TypeError(
            f"target must be a cs.Target, got {type(target).__name__}. Wrap a log density of one "
            "point: cs.Target(log_density, dim)."
        )
    check_key(rng_key)
    check_integer("num_samples", num_samples)
    check_choice("effort", effort, EFFORTS)
    # Whoever says how long to train is not made to wait for more.
    own_budget = num_calibration_iterations is not None or effort in ("base", "short")
    chains = True if effort == "chains" else False if own_budget else None
    if effort == "chains":
        effort = "full"
    check_max_steps(max_steps)
    check_widths(hidden)
    if isinstance(network, str):
        check_choice("network", network, _NETWORKS)
    if start is not None:
        warm_start.check_start(start, target)
        max_steps = start.many_steps.max_steps
    large = target.dim > _MAX_GENERAL_DIM
    if num_iterations is None:
        num_iterations = 0 if max_steps == 1 else 100 if large else 300
    check_integer("num_iterations", num_iterations, minimum=0)
    rounds = (_LARGE_ITERATIONS,) if large else (route.SHORT_ITERATIONS, route.FURTHER_ITERATIONS)
    if num_calibration_iterations is not None:
        check_integer("num_calibration_iterations", num_calibration_iterations)
        rounds, effort = (num_calibration_iterations,), "full"
    if num_iterations and effort == "auto":
        effort = "full"
    if start is not None:
        network = warm_start.network_of(start) or network
    if network is None and large:
        given = base is not None or start is not None
        network = map_choice.of_many_dimensions(target, given, effort, num_iterations)
    plan = Plan(
        num_samples,
        effort,
        max_steps,
        tuple(hidden),
        network or "general",
        optimizer,
        num_iterations,
        rounds[:1] if effort == "short" else rounds,
        explore,
        progress_bar,
        None if checkpoint_dir is None else Path(checkpoint_dir),
    )
    all_ours = network is None and base is None and start is None
    fan, general = all_ours and map_choice.is_dear_fan(target, plan), plan
    if network == "hierarchical" or fan:
        plan = plan._replace(network="hierarchical")
        if num_calibration_iterations is None:
            plan = plan._replace(rounds=map_choice.HIERARCHICAL_ROUNDS[: len(plan.rounds)])
    # Built before minutes are spent, for what is wrong with network or optimiser.
    if plan.network == "hierarchical":
        if num_iterations:
            raise ValueError(
                "A hierarchical map takes one step: leave max_steps at 1 and num_iterations out."
            )
        if start is None:
            check_structure(target)
    else:
        distillation(target, base or standard_normal(target.dim), plan)
    # Known again by JAX: its functions are then compiled once, for every part of what follows.
    target = dataclasses.replace(target, log_density=as_partial(target.log_density))
    key_chains = folded(rng_key, _CHAINS)
    chained = functools.partial(_chained, key_chains, plan=plan, wanted=chains)
    with contextlib.nullcontext() if plan.folder is None else checkpoint.reserved(plan.folder):
        key_base = split(rng_key)[0]
        if start is not None:
            with progress.stage("move the base", progress_bar=progress_bar):
                moved = warm_start.moved_base(key_base, target, start) if base is None else base
            check_base(target, moved)
            warm = Start(as_pytree(moved), explore and base is None, trained=start)
            trained, interrupted = train(rng_key, target, warm, plan._replace(folder=None), begin)
            short = warm_start.where_it_falls_short(trained, start)
            if short is None:
                return trained if interrupted else chained(trained)
            warnings.warn(
                f"The warm start on target {target.name!r} {short}: training begins anew.",
                stacklevel=2,
            )
        if plan.network == "hierarchical" and base is None:
            with progress.stage("fit a base", progress_bar=progress_bar):
                compile_iterations(key_base, target, plan)
                evaluation.compile_ahead(target.log_density, target.dim)
                fitted = fit_diagonal(key_base, target, init_position=init_position)
            cold = Start(fitted, explore)
        else:
            cold = _cold_start(key_base, target, base, init_position, plan)
        trained, interrupted = train(rng_key, target, cold, plan, begin)
        found = trained.exploration
        if fan and not interrupted and found is not None and found.lacks_modes:
            # Several modes are a general map's, on a base that has them.
            plan = general._replace(folder=plan.folder and plan.folder / "general")
            cold = _cold_start(key_base, target, None, init_position, plan)
            trained, interrupted = train(rng_key, target, cold, plan, begin)
            found = trained.exploration
        if found is not None and found.missed is not None and cold.known is not None:
            # Two looks disagree: what either of them found goes into another base, once.
            key_base, rng_key = pair(folded(rng_key, 1))
            known = np.concatenate([found.missed, cold.known.loc])
            if plan.folder is not None:
                plan = plan._replace(folder=plan.folder / "again")
            cold = _cold_start(key_base, target, None, jax.device_put(known), plan)
            trained, interrupted = train(rng_key, target, cold, plan, begin)
        shown: list[Draws] | None = None
        if all_ours and not (fan or num_iterations or interrupted or own_budget):
            key_other = folded(rng_key, _OTHER)
            found_better = map_choice.or_hierarchical(key_other, trained, cold, plan, begin)
            trained, interrupted, shown = found_better
        if not (interrupted or own_budget or chains):
            if shown is None:  # the draws by which chains would be decided on
                shown = map_choice.shown_short(key_chains, trained)
            key_laplace = folded(rng_key, _LAPLACE)
            found_better = map_choice.or_laplace(key_laplace, trained, shown, cold, plan)
            trained, interrupted, shown = found_better
        if not interrupted and not (shown == [] and chains is None):
            trained = chained(trained, cold.particles, shown or ())
        found = trained.exploration if trained.chains is None else trained.chains.exploration
        if found is not None and not found.passed:
            warnings.warn(str(found), stacklevel=2)
        return trained


def _chained(
    rng_key: PRNGKey,
    trained: TrainedSampler,
    particles: Any = None,
    draws: Sequence[Draws] = (),
    *,
    plan: Plan,
    wanted: bool | None,
) -> TrainedSampler:
    """What was trained, with chains where one step falls short of what was asked for."""
    return chain_stage.where_needed(
        rng_key,
        trained,
        wanted,
        draws=draws,
        num_samples=plan.num_samples,
        particles=None if particles is None else jax.device_put(particles[:NUM_PLACED]),
        progress_bar=plan.progress_bar,
    )


def _cold_start(
    rng_key: PRNGKey,
    target: Target,
    base: Base | None,
    init_position: Array | None,
    plan: Plan,
) -> Start:
    """A base, given or fitted."""
    if base is not None:
        check_base(target, base)
        check_density(target, base.sample(rng_key, 64))
        return Start(as_pytree(base), False)
    name = "explore" if plan.explore else "fit a base"
    with progress.stage(name, progress_bar=plan.progress_bar):
        if not plan.explore:
            return Start(fit_gaussian(rng_key, target, init_position=init_position), False)
        told = functools.partial(compile_training, rng_key, target.dim, plan)
        fitted = fit_base(rng_key, target, init_position=init_position, told=told)
    # A Gaussian is fitted from starts of its own: the modes that others found are an independent
    # look. A mixture is made of them.
    modes = fitted.exploration.modes if fitted.kind == "gaussian" else None
    found = fitted.exploration
    particles = found.particles if len(found.particles) else None
    log_z = found.log_z
    if particles is not None:  # which were weighed in the precision that there is
        points = particles[:64]
        values = evaluation.values(target.log_density, points)
        log_z += rounding.constant(target.log_density, points, values, warn=False)
    return Start(fitted.base, True, modes, log_z, particles, known=found.modes)
