"""What importance weights say about log Z, and what that is worth.

Everything here is made from log weights ``log w = log ρ(x) - log q(x)``, ``[n]``, -inf for a weight
of zero. Pure functions, safe in float32, free of LAPACK, and usable under ``jax.jit``; checks that
need values are skipped while tracing.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.scipy.stats import sem

from consistent_samplers.kernels import kernel
from consistent_samplers.types import BOUNDS, Array, Bound, Draws, FlowDiagnostics

MIN_TAIL = 5
"""Fewest tail weights a generalised Pareto distribution is fitted to (as in loo and ArviZ)."""

MAX_TAIL_K = 0.95
"""Pareto k that the mean beyond the largest weight is computed with at most; infinite at 1."""

# Nats of rounding in log weights above which nothing is said of a tail that it covers.
_MAX_ROUNDING = 0.5

BOUND_IN_WORDS: dict[str, str] = {
    "lower": "a lower bound on log Z by construction",
    "lower-if-injective": "a lower bound on log Z wherever the map is injective",
    "heuristic": "a heuristic, no bound: it may exceed log Z",
}
"""What each `types.Bound` says of an ELBO, for tables and messages."""


@flax.struct.dataclass
class Evidence:
    """Estimates of log Z with their standard errors, in nats, and how far to trust them.

    Attributes:
      log_z: ``[]``, importance-sampling estimate, log of the mean weight.
      log_z_stderr: ``[]``, its standard error: ``sqrt(var(w) / n) / mean(w)``, by the delta method,
        twice ``unseen``, and half the step between numbers of its size, in quadrature. On Pareto
        weights the 95 % interval then covers log Z in more than 90 % of runs up to an index of 0.6;
        it is meaningless much above 0.7.
      elbo: ``[]``, evidence lower bound, the mean log weight; -inf if any weight is zero.
      elbo_stderr: ``[]``, its standard error; +inf where the ELBO is -inf.
      ess: ``[]``, share of effective samples, in (0, 1].
      pareto_k: ``[]``, tail index of the weights; +inf where it cannot be judged.
      bound: what the ELBO is worth as a bound (static); see ``types.Bound``.
      folded: ``[]``, share of samples with det J <= 0, or None for stochastic kernels.
      round_trip_error: ``[]``, 99 % quantile over the measured samples, in base standard
        deviations, or None where it was not measured (NaN instead of None under ``jax.jit``).
      num_samples: number of weights (static).
      outside: ``[]``, share of samples of weight zero, or None where it was not counted.
      undefined: ``[]``, of them those whose density is NaN, which counts as zero.
      unseen: ``[]``, part of Z that the tail of the weights lets expect beyond the largest of them,
        or None where no tail was fitted.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> evidence = cs.evidence(cs.Draws(jnp.zeros((100, 1)), jnp.zeros(100), bound="lower"))
      >>> float(evidence.log_z), float(evidence.ess), evidence.bound
      (0.0, 1.0, 'lower')
    """

    log_z: Array
    log_z_stderr: Array
    elbo: Array
    elbo_stderr: Array
    ess: Array
    pareto_k: Array
    bound: Bound = flax.struct.field(pytree_node=False)
    folded: Array | None = None
    round_trip_error: Array | None = None
    num_samples: int = flax.struct.field(pytree_node=False, default=0)
    outside: Array | None = None
    undefined: Array | None = None
    unseen: Array | None = None

    def __str__(self) -> str:
        """A few readable lines; falls back to ``repr`` for traced or batched values."""
        if isinstance(self.log_z, jax.core.Tracer) or jnp.ndim(self.log_z) > 0:
            return repr(self)
        k = float(self.pareto_k)
        tail = "not available (tail too short to judge)" if math.isinf(k) else f"{k:.2f}"
        lines = [
            f"log Z     {float(self.log_z):.4f} ± {float(self.log_z_stderr):.4f}",
            f"ELBO      {float(self.elbo):.4f} ± {float(self.elbo_stderr):.4f}",
            f"bound     the ELBO is {BOUND_IN_WORDS[self.bound]}",
            f"ESS       {100 * float(self.ess):.1f} % of {self.num_samples} samples",
            f"Pareto k  {tail}",
        ]
        if self.folded is not None:
            share = float(self.folded)
            # "0.0 %" must mean that none is folded.
            text = f"{100 * share:.1f} %" if share == 0 or share >= 1e-3 else f"{100 * share:.2g} %"
            lines.append(f"folded    {text} of samples (det J <= 0)")
            if share > 0 and self.bound == "lower-if-injective":
                lines.append(
                    f"WARNING   {text} of samples are folded: the map is not injective, so these "
                    "figures may exceed log Z"
                )
        if self.outside is not None and float(self.outside) > 0:
            nan = float(self.undefined or 0.0)
            of_them = f", {100 * nan:.2g} % where it is NaN" if nan else ""
            lines.append(f"outside   {100 * float(self.outside):.2g} % have no density{of_them}")
        if self.round_trip_error is not None:
            lines.append(
                f"return    x0 is recovered within {float(self.round_trip_error):.2g} base "
                "standard deviations for 99 % of samples"
            )
        return "\n".join(lines)


@kernel(effort="least")
def effective_sample_size(log_weight: Array) -> Array:
    """Share of effective samples, ``(sum w)^2 / (n sum w^2)`` (Kish 1965); 0 if every w is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers import estimate
      >>> log_weight = jnp.log(jnp.array([1.0, 1.0, 2.0]))
      >>> round(float(estimate.effective_sample_size(log_weight)), 3)  # (1 + 1 + 2)² / (3 · 6)
      0.889
    """
    shifted, _ = _shift_by_max(log_weight)
    log_ess = 2.0 * logsumexp(shifted) - logsumexp(2.0 * shifted) - math.log(log_weight.shape[0])
    return jnp.where(jnp.all(log_weight == -jnp.inf), 0.0, jnp.minimum(jnp.exp(log_ess), 1.0))


@kernel(effort="least")
def pareto_smooth(log_weight: Array) -> tuple[Array, Array]:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024, JMLR 25:72).

    The `tail_size` largest weights are replaced by the expected order statistics of a generalised
    Pareto distribution fitted to them, capped at the largest raw weight. The weights keep their
    scale. Weights that span hundreds of nats do not underflow. ``arviz_stats.psislw`` takes the
    negated log weights; the sign of k is the same.

    Returns:
      ``(smoothed [n], pareto_k [])``. Above k = 0.7 the mean of the weights is unreliable. Two
      cases leave the weights as they are: k = 0 if the tail is constant up to rounding (exact
      draws), and k = +inf ("cannot be judged") if fewer than 25 weights, or fewer than `MIN_TAIL`
      distinct from the threshold, are given.

    Example:
      >>> import jax
      >>> from consistent_samplers import estimate
      >>> smoothed, k = estimate.pareto_smooth(0.5 * jax.random.normal(jax.random.key(0), (400,)))
      >>> smoothed.shape, bool(k < 0.7)
      ((400,), True)
    """
    n = log_weight.shape[0]
    num = tail_size(n)
    if num < MIN_TAIL:
        return log_weight, jnp.full((), jnp.inf, log_weight.dtype)
    shifted, largest = _shift_by_max(log_weight)
    order = jnp.argsort(shifted)
    where = order[n - num :]
    k, tail, fitted, _ = _smooth_tail(shifted[where], shifted[order[n - num - 1]], largest)
    return log_weight.at[where].set(jnp.where(fitted, tail + largest, log_weight[where])), k


def tail_size(num_samples: int) -> int:
    """How many of the largest weights make the tail: min(n/5, 3 √n), as in loo and ArviZ.

    Example:
      >>> from consistent_samplers import estimate
      >>> estimate.tail_size(10_000)
      300
    """
    return int(min(num_samples / 5.0, 3.0 * math.sqrt(num_samples)))


@kernel(effort="least")
def judge_tail(tail: Array, cutoff: Array) -> tuple[Array, Array]:
    """Pareto k of n weights, as `pareto_smooth` finds it, and the log weight beyond the largest.

    The largest alone tell them: ``tail [tail_size(n)]``, ascending, and ``cutoff []``, the next
    smaller log weight. Beyond the largest weight, which one draw in n is expected to exceed, the
    fitted tail expects (σ + k x) / (1 - k) more, x being its excess over the cutoff; of the sum of
    all weights that much is yet unseen.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers import estimate
      >>> weight = jnp.linspace(1.0, 2.0, 400)  # a tail of 60
      >>> k, log_beyond = estimate.judge_tail(jnp.log(weight[-60:]), jnp.log(weight[-61]))
      >>> bool(k < 0.0), bool(log_beyond < 0.0)
      (True, True)
    """
    if tail.shape[0] < MIN_TAIL:
        return jnp.full((), jnp.inf, tail.dtype), jnp.full((), -jnp.inf, tail.dtype)
    k, _, _, log_beyond = _smooth_tail(tail - tail[-1], cutoff - tail[-1], tail[-1])
    return k, log_beyond + tail[-1]


def _smooth_tail(tail: Array, cutoff: Array, largest: Array) -> tuple[Array, ...]:
    """``(k [], smoothed tail [m], where it is smoothed [m], log excess [])`` of m log weights.

    The excess is what the tail expects beyond the largest weight, see `judge_tail`. The ascending
    ``tail`` and ``cutoff``, the next smaller one, are relative to ``largest``.
    """
    num = tail.shape[0]
    # Weights tied with the threshold stay in the body, so the tail's length is only known at
    # run time: a mask over the static tail.
    above = tail > cutoff
    length = jnp.sum(above)
    rounding = 8.0 * jnp.finfo(tail.dtype).eps * jnp.maximum(1.0, jnp.abs(largest))
    # Weights that differ by rounding only are even, unless rounding hides what they differ by.
    even = (tail[-1] - cutoff <= rounding) & (rounding <= _MAX_ROUNDING)
    constant = jnp.isfinite(cutoff) & even
    fitted = ~constant & (length >= MIN_TAIL)
    # Any harmless numbers where nothing is fitted: their results are discarded below.
    ramp = jnp.linspace(0.5, 1.0, num, dtype=tail.dtype)
    above = jnp.where(fitted, above, True)
    length = jnp.where(fitted, length, num)
    gap = jnp.where(fitted & above, cutoff - jnp.where(above, tail, 0.0), -1.0)
    log_exceedance = jnp.where(fitted, tail + jnp.log(-jnp.expm1(gap)), jnp.log(ramp))

    k, log_sigma = _fit_generalised_pareto(log_exceedance, above, length)
    rank = jnp.arange(num) - (num - length)
    probability = jnp.where(above, (rank + 0.5) / length, 0.5)
    log_quantile = log_sigma + _log_standard_quantile(probability, k)
    smoothed_tail = jnp.minimum(jnp.logaddexp(cutoff, log_quantile), 0.0)
    positive = jnp.clip(k, 1e-6, MAX_TAIL_K)
    log_excess = jnp.log(positive) + jnp.log(-jnp.expm1(jnp.where(fitted, cutoff, -1.0)))
    log_beyond = jnp.logaddexp(log_sigma, log_excess) - jnp.log1p(-positive)
    k = jnp.where(fitted, k, jnp.where(constant, 0.0, jnp.inf))
    return k, smoothed_tail, fitted & above, jnp.where(fitted, log_beyond, -jnp.inf)


def evidence(draws: Draws) -> Evidence:
    """Estimates log Z, the ELBO and their worth from draws with weights and a bound.

    The weights are used raw: smoothing would cost the estimate of Z its unbiasedness.

    Raises:
      ValueError: fewer than 2 draws, no bound, no weights, any NaN or +inf, or all of them zero.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> base = cs.bases.standard_normal(1, scale=1.2)
      >>> x = base.sample(jax.random.key(0), 1_000)
      >>> log_weight = -(x[:, 0] ** 2) / 2 - base.log_prob(x)
      >>> round(float(cs.evidence(cs.Draws(x, log_weight, bound="lower")).log_z), 1)  # log √2π
      0.9
    """
    log_weight = checked_log_weight(draws)
    n = log_weight.shape[0]
    if n < 2:
        raise ValueError(f"A standard error needs at least 2 draws, got {n}: draw more samples.")
    if draws.bound not in BOUNDS:
        raise ValueError(
            f"draws carry weights but do not say what they are worth (bound={draws.bound!r}). "
            f"Build them with Draws(..., bound=...), one of {', '.join(map(repr, BOUNDS))}."
        )
    entries = _estimates(log_weight)
    entries["folded"], entries["round_trip_error"] = flow_summary(draws.flow)
    if draws.log_density is not None:
        entries["undefined"] = share_undefined(draws.log_density)
    return Evidence(**entries, bound=draws.bound, num_samples=n)


def checked_log_weight(draws: Draws) -> Array:
    """The log weights of ``draws``, ``[n]`` and floating point, if they can be used.

    Raises:
      ValueError: no weights, not of shape ``[n]``, and (unless traced) NaN, +inf or all -inf.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers import estimate
      >>> estimate.checked_log_weight(cs.Draws(jnp.zeros((2, 1))))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      ValueError: draws have no importance weights. Sample with weights: ...
    """
    if draws.log_weight is None:
        raise ValueError(
            "draws have no importance weights. Sample with weights: leave weights=False out of "
            "sample(...)."
        )
    log_weight = jnp.asarray(draws.log_weight)
    if log_weight.ndim != 1 or log_weight.shape[0] != draws.position.shape[0]:
        n, shape = draws.position.shape[0], log_weight.shape
        raise ValueError(f"log_weight must have one entry a draw, {n}: got shape {shape}.")
    if not jnp.issubdtype(log_weight.dtype, jnp.floating):
        log_weight = log_weight.astype(float)
    if isinstance(log_weight, jax.core.Tracer):
        return log_weight
    num_bad, all_zero = map(int, _count_unusable(log_weight))
    if num_bad:
        raise ValueError(
            f"{num_bad} of {len(log_weight)} log weights are NaN or +inf. Check that log_density "
            "is finite where the sampler draws, or train with a smaller learning rate."
        )
    if all_zero:
        raise ValueError(
            "Every weight is zero: the target's log_density is -inf at every draw. Check its "
            "support, or fit the base to the target first."
        )
    return log_weight


@kernel(effort="least")
def _estimates(log_weight: Array) -> dict[str, Any]:
    """The entries of Evidence made from the raw weights."""
    n = log_weight.shape[0]
    shifted, largest = _shift_by_max(log_weight)
    log_mean = logsumexp(shifted) - math.log(n)
    relative = jnp.exp(shifted - jnp.where(jnp.isfinite(log_mean), log_mean, 0.0))
    any_zero = jnp.any(log_weight == -jnp.inf)
    finite = jnp.where(any_zero, 0.0, shifted)
    top = jnp.sort(shifted)[n - min(tail_size(n) + 1, n) :]
    k, log_beyond = judge_tail(top[1:] + largest, top[0] + largest)
    unseen = jnp.exp(log_beyond - largest - log_mean - math.log(n))
    log_z = log_mean + largest
    half_step = 0.5 * jnp.finfo(log_z.dtype).eps * jnp.where(jnp.isfinite(log_z), log_z, 0.0)
    return {
        "log_z": log_z,
        "log_z_stderr": jnp.hypot(jnp.hypot(sem(relative), 2.0 * unseen), half_step),
        "unseen": unseen,
        "outside": jnp.mean(log_weight == -jnp.inf, dtype=log_weight.dtype),
        "elbo": jnp.where(any_zero, -jnp.inf, jnp.mean(finite) + largest),
        "elbo_stderr": jnp.where(any_zero, jnp.inf, sem(finite)),
        "ess": effective_sample_size(log_weight),
        "pareto_k": k,
    }


@kernel(effort="least")
def share_undefined(log_density: Array) -> Array:
    """Share of log densities ``[n]`` that are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers import estimate
      >>> float(estimate.share_undefined(jnp.array([0.0, jnp.nan])))
      0.5
    """
    return jnp.mean(jnp.isnan(log_density), dtype=log_density.dtype)


@kernel(effort="least")
def _count_unusable(log_weight: Array) -> tuple[Array, Array]:
    """``(number of NaN or +inf, whether all are -inf)``."""
    bad = jnp.isnan(log_weight) | (log_weight == jnp.inf)
    return jnp.sum(bad), jnp.all(log_weight == -jnp.inf)


def flow_summary(flow: FlowDiagnostics | None) -> tuple[Array | None, Array | None]:
    """The entries ``folded`` and ``round_trip_error`` of `Evidence`, from what draws say of a map.

    Example:
      >>> import jax.numpy as jnp
      >>> from consistent_samplers import estimate, types
      >>> flow = types.FlowDiagnostics(jnp.array([True, False]), jnp.array([0.25, jnp.nan]))
      >>> [float(entry) for entry in estimate.flow_summary(flow)]
      [0.5, 0.25]
    """
    if flow is None:
        return None, None
    folded, error = _flow_summary(flow)
    measured = isinstance(error, jax.core.Tracer) or not math.isnan(float(error))
    return folded, error if measured else None


@kernel(effort="least")
def _flow_summary(flow: FlowDiagnostics) -> tuple[Array, Array]:
    """``(share folded, 99 % quantile of the measured round-trip errors, NaN without any)``."""
    # "higher": the quantile is one of the errors, and an infinite one does not turn into NaN.
    # Sorting puts the NaNs of unmeasured samples last.
    error = jnp.sort(flow.round_trip_error)
    num_measured = jnp.sum(~jnp.isnan(error))
    rank = jnp.ceil(0.99 * (num_measured - 1)).astype(int)
    return jnp.mean(flow.folded, dtype=error.dtype), error[jnp.maximum(rank, 0)]


def _shift_by_max(log_weight: Array) -> tuple[Array, Array]:
    """Log weights less the largest, which keeps the digits of differences, and the largest."""
    largest = jnp.max(log_weight)
    largest = jnp.where(largest == -jnp.inf, 0.0, largest)
    return log_weight - largest, largest


def _fit_generalised_pareto(
    log_exceedance: Array, mask: Array, length: Array
) -> tuple[Array, Array]:
    """``(k, log sigma)`` fitted to the last ``length`` of ascending ``log_exceedance [m]``.

    Posterior mean of Zhang & Stephens (2009, Technometrics 51:316), with the prior on k of Vehtari
    et al. (2024), as in loo and ArviZ: 10 observations at k = 0.5, not for sigma.
    """
    m = log_exceedance.shape[0]
    num_grid = 30 + int(math.sqrt(m))
    first_quartile = log_exceedance[m - length + (length / 4.0 + 0.5).astype(int) - 1]
    # In units of the first quartile theta stays O(1); theta > 0 only for short tails.
    log_x = jnp.where(mask, log_exceedance - first_quartile, 0.0)
    grid = (1.0 - jnp.sqrt(num_grid / (jnp.arange(1, num_grid + 1) - 0.5))) / 3.0
    theta = jnp.exp(-log_x[-1]) + grid.astype(log_x.dtype)
    theta = jnp.where(theta == 0.0, jnp.finfo(log_x.dtype).eps, theta)

    def shape(theta: Array) -> Array:
        # Mean of log(1 - theta x), without forming x where it is large.
        negative = theta < 0
        heavy = jnp.logaddexp(0.0, jnp.log(jnp.where(negative, -theta, 1.0)) + log_x)
        light = jnp.log1p(-jnp.where(negative, 0.0, theta) * jnp.exp(jnp.minimum(log_x, 20.0)))
        return jnp.sum(jnp.where(mask, jnp.where(negative, heavy, light), 0.0)) / length

    k_grid = jax.vmap(shape)(theta)
    log_likelihood = length * (jnp.log(-theta / k_grid) - k_grid - 1.0)
    theta_mean = jnp.sum(theta * jax.nn.softmax(log_likelihood))
    theta_mean = jnp.where(theta_mean == 0.0, jnp.finfo(log_x.dtype).eps, theta_mean)
    k = shape(theta_mean)
    log_sigma = jnp.log(-k / theta_mean) + first_quartile
    return (length * k + 5.0) / (length + 10.0), log_sigma


def _log_standard_quantile(probability: Array, k: Array) -> Array:
    """Log quantile of the generalised Pareto distribution with sigma = 1."""
    # log(expm1(k a) / k), arranged to neither overflow for large k nor lose digits around k = 0.
    a = -jnp.log1p(-probability)
    size = jnp.abs(k) * a
    safe = jnp.maximum(size, 1e-4)
    log_ratio = jnp.where(size < 1e-4, -size / 2.0, jnp.log(-jnp.expm1(-safe) / safe))
    return jnp.log(a) + log_ratio + jnp.maximum(k, 0.0) * a
