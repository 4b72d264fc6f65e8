"""The whole recipe with good defaults: fit a base, distil a sampler, calibrate, check."""

import os
import time
import warnings
from pathlib import Path

import jax
import optax

from consistent_samplers.algorithms import Algorithm, SamplerState, calibration
from consistent_samplers.algorithms.base import check_base
from consistent_samplers.bases import Base, fit_base, fit_gaussian
from consistent_samplers.diagnostics import exploration_check
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.recipe.trained import Settings, TrainedSampler
from consistent_samplers.targets.base import Target, check_density
from consistent_samplers.training import FitResult, TrainingDivergedError, fit
from consistent_samplers.types import Array, PRNGKey

# Draws on which the stages of the recipe are compared with each other.
_NUM_CHECK_DRAWS = 4_000
# Above it, determinants of a general network's steps are too dear to train on, and an iteration
# of any network takes longer.
_MAX_GENERAL_DIM = 100
# Nats below which two stages are as good as each other: rounding, where the base is exact.
_SAME_ELBO = 1e-3


def train_sampler(
    rng_key: PRNGKey,
    target: Target,
    *,
    base: Base | None = None,
    init_position: Array | None = None,
    max_steps: int = 16,
    hidden: tuple[int, ...] = (64, 64),
    num_iterations: int | None = None,
    num_calibration_iterations: int | None = None,
    explore: bool = True,
    progress_bar: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> TrainedSampler:
    """Trains a one-step sampler: fits a base, runs OSDS on it, calibrates the single step.

    Args:
      rng_key: key.
      target: what to sample.
      base: where samples start; the best of several kinds if None, see `explore`.
      init_position: ``[dim]`` or ``[n, dim]``, points where the target is known to have mass,
        for fitting the base.
      max_steps: number N of finest steps of the distilled sampler.
      hidden: widths of the network's hidden layers.
      num_iterations: iterations of OSDS; 300 if None, 100 above 100 dimensions.
      num_calibration_iterations: iterations of calibration; 1,500 if None, 300 above 100
        dimensions.
      explore: look for modes by many optimiser starts and tempered SMC, and take the best of a
        Gaussian, a mixture and a product of mixtures as base (`bases.fit_base`); afterwards look
        again from fresh starts for modes that the draws do not show, and warn of them. False fits
        a Gaussian at once: quicker, where the target is known to have one mode.
      progress_bar: show progress with the current ELBO.
      checkpoint_dir: folder to keep the training in: a call that was killed and is made again
        goes on from there (the base is fitted anew, with the same result).

    Returns:
      A `TrainedSampler`; after Ctrl-C during the training of the network, with what it had reached
      and a warning. A stage whose training diverges keeps its last good state, with a
      warning, and the calibrated step is kept only if its ELBO is no worse.

    Raises:
      ValueError: the density is NaN, +inf, or zero everywhere it was tried, or base and target
        differ in dimension.
      TrainingDivergedError: the draws of the trained sampler have no usable weights (the density
        is NaN or +inf where it was not before); carries the trained state.
    """
    start = time.perf_counter()
    key_base, key_fit, key_calibrate, key_check = jax.random.split(rng_key, 4)
    key_explore = jax.random.fold_in(rng_key, 4)
    large = target.dim > _MAX_GENERAL_DIM
    if num_iterations is None:
        num_iterations = 100 if large else 300
    if num_calibration_iterations is None:
        num_calibration_iterations = 300 if large else 1_500
    fitted = None
    if base is None and explore:
        fitted = fit_base(key_base, target, init_position=init_position)
        base = fitted.base
    elif base is None:
        base = fit_gaussian(key_base, target, init_position=init_position)
    else:
        check_base(target, base)
        check_density(target, base.sample(key_base, 64))
    settings = Settings(max_steps, tuple(hidden), "structured" if large else "general")
    algorithm = settings.build(target, base, _warmup_cosine(2e-3, num_iterations))
    untrained = algorithm.init(key_fit)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    distilled, interrupted = _fit_or_keep(
        key_fit, algorithm, num_iterations, untrained, progress_bar, folder and folder / "distilled"
    )
    calibrated, histories = distilled, {"distilled": distilled.history}
    if not interrupted:
        calibrated_algorithm = calibration(
            algorithm, learning_rate=_warmup_cosine(1e-2, num_calibration_iterations)
        )
        calibrated, interrupted = _fit_or_keep(
            key_calibrate,
            calibrated_algorithm,
            num_calibration_iterations,
            calibrated_algorithm.restart(distilled.state),
            progress_bar,
            folder and folder / "calibrated",
        )
        histories["calibrated"] = calibrated.history

    def check(state: SamplerState) -> Evidence:
        return evidence(algorithm.sample(key_check, state, _NUM_CHECK_DRAWS))

    # An untrained control is zero: its single step is the base itself.
    states = {"base": untrained, "distilled": distilled.state, "calibrated": calibrated.state}
    try:
        stages = {name: check(state) for name, state in states.items()}
    except ValueError as error:
        raise TrainingDivergedError(
            f"The sampler of target {target.name!r} was trained, but its draws cannot be weighed: "
            f"{error} The trained state is in this error's .result.state.",
            calibrated,
        ) from error
    best = max(stages, key=lambda name: float(stages[name].elbo))
    # On a target that the base already fits, the stages differ by noise only.
    noise = 2.0 * float(stages["calibrated"].elbo_stderr) + _SAME_ELBO
    if float(stages["calibrated"].elbo) >= float(stages[best].elbo) - noise:
        best = "calibrated"
    else:
        warnings.warn(
            f"Calibration did not improve the one-step ELBO ({stages['calibrated'].elbo:.3f}); "
            f"the {best} sampler ({stages[best].elbo:.3f}) is used instead. Try more iterations "
            "or another rng_key.",
            stacklevel=2,
        )
    exploration = None
    if fitted is not None and not interrupted:
        draws = algorithm.sample(key_check, states[best], _NUM_CHECK_DRAWS, bound=None)
        exploration = exploration_check(
            key_explore,
            target,
            draws.position,
            float(stages[best].log_z),
            particle_log_z=fitted.exploration.log_z,
        )
        if not exploration.passed:
            warnings.warn(str(exploration), stacklevel=2)
    return TrainedSampler(
        algorithm,
        distilled.state,
        states[best],
        stages,
        histories,
        time.perf_counter() - start,
        exploration,
        settings,
    )


def _warmup_cosine(peak: float, num_iterations: int) -> optax.Schedule:
    """A tenth of the run to warm up (at most 100 iterations), then a cosine to zero."""
    warmup = max(1, min(100, num_iterations // 10))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_iterations, warmup + 1))


def _fit_or_keep(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    num_iterations: int,
    state: SamplerState,
    progress_bar: bool,
    checkpoint_dir: Path | None,
) -> tuple[FitResult, bool]:
    """`fit`, going on with the last good state if it diverges; and whether Ctrl-C cut it short."""
    try:
        result = fit(
            rng_key,
            algorithm,
            num_iterations,
            state=state,
            progress_bar=progress_bar,
            checkpoint_dir=checkpoint_dir,
        )
    except TrainingDivergedError as error:
        warnings.warn(f"{error} The recipe goes on from that state.", stacklevel=3)
        return error.result, False
    return result, len(result.history.loss) < num_iterations
