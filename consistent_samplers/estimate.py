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
from consistent_samplers.pareto import MAX_TAIL_K as MAX_TAIL_K
from consistent_samplers.pareto import MIN_TAIL as MIN_TAIL
from consistent_samplers.pareto import judge_tail as judge_tail
from consistent_samplers.pareto import pareto_smooth as pareto_smooth
from consistent_samplers.pareto import shift_by_max
from consistent_samplers.pareto import tail_size as tail_size
from consistent_samplers.types import BOUNDS, Array, Bound, Draws, FlowDiagnostics

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
      log_z_stderr: ``[]``, its standard error, three parts in quadrature:
        ``sqrt(var(w) / n) / mean(w)`` by the delta method, twice ``unseen``, and half the distance
        between floating-point numbers of the size of log Z. On Pareto weights the 95 % interval
        then covers log Z in more than 90 % of runs up to a tail index of 0.6; it is meaningless
        much above 0.7.
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
      undefined: ``[]``, share of samples whose density is NaN, which counts as zero; or None.
      unseen: ``[]``, share of Z that is expected beyond the largest weight, by the distribution
        fitted to the tail of the weights; or None where none was fitted.

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
    shifted, _ = shift_by_max(log_weight)
    log_ess = 2.0 * logsumexp(shifted) - logsumexp(2.0 * shifted) - math.log(log_weight.shape[0])
    return jnp.where(jnp.all(log_weight == -jnp.inf), 0.0, jnp.minimum(jnp.exp(log_ess), 1.0))


def evidence(draws: Draws) -> Evidence:
    """Estimates of log Z and the ELBO from weighted draws, with errors and what they are worth.

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
    shifted, largest = shift_by_max(log_weight)
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
