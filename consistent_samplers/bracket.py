"""Log Z from both sides: a bound below, a bound above, and the bridge in between."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from consistent_samplers.bridge import bridge, effective_draws

AT_ONCE = 16
"""Draws whose mean weight both bounds take the logarithm of, at least. With K of them each
bound is off by about v / (2 K), v being the variance of w / Z: where half of the draws are
effective, single draws give bounds that are some ten times as far apart as sixteen do. Where
weights are more uneven, K is eight times v."""

# Groups that a standard error takes, those that are left where weights are uneven, and those that a
# bound above is made of.
_FEWEST_GROUPS, _ENOUGH_GROUPS, _MOST_GROUPS = 32, 64, 1_000
_FOR_EACH = 8.0  # draws at once for each variance of the weights


class Bracket(NamedTuple):
    """Log Z from both sides; everything in nats.

    Attributes:
      lower: the mean of the log mean weight of `AT_ONCE` draws of the sampler, or of more.
      lower_stderr: its standard error; +inf where the bound is -inf.
      upper: the same with a draw of the target among them, or None without such draws.
      upper_stderr: its standard error, chains counted by effective draws, or None.
      log_z: the estimate in between.
      stderr: its standard error.
      method: ``"bridge"``, or ``"importance"`` where the sampler's own weights stand for draws of
        the target.
      num_target_draws: draws of the target that were used.
      note: why there is no upper bound, or what else to know; empty if nothing.
      level: of the verdict on what log Z stands on (`diagnostics.Level`), or None if none was made.

    Example:
      >>> from consistent_samplers.bracket import Bracket
      >>> print(Bracket(-1.02, 0.01, -0.97, 0.01, -1.0, 0.004, "bridge", 4_000))
      log Z -1.0000 ± 0.0040 (bridge), from -1.0200 ± 0.0100 below to -0.9700 ± 0.0100 above
    """

    lower: float
    lower_stderr: float
    upper: float | None
    upper_stderr: float | None
    log_z: float
    stderr: float
    method: str
    num_target_draws: int
    note: str = ""
    level: str | None = None

    def __str__(self) -> str:
        words = f"log Z {self.log_z:.4f} ± {self.stderr:.4f} ({self.method}), "
        words += f"from {self.lower:.4f} ± {self.lower_stderr:.4f} below "
        if self.upper is None:
            words += "and no bound above"
        else:
            words += f"to {self.upper:.4f} ± {self.upper_stderr:.4f} above"
        return f"{words}\n{self.note}" if self.note else words


def bracket(
    log_weight: ArrayLike, target_log_weight: ArrayLike, at_once: int | None = None
) -> Bracket:
    """Bounds on log Z and the optimal bridge, of draws of a sampler and of its target.

    With w = ρ / q and draws of the sampler q, but for one of the target p above,

        E[log (w_1 + ... + w_K) / K] <= log Z <= E_{1 of p}[log (w_1 + ... + w_K) / K]

    (Burda et al., 2016; Sobolev & Vetrov, 2019). With K = 1 they are ELBO and EUBO, off by
    KL(q | p) and KL(p | q).

    Args:
      log_weight: ``[n]``, log ρ / q at independent draws of the sampler; -inf outside of the
        support.
      target_log_weight: ``[num_chains, m]``, the same at draws of the target.
      at_once: K; fewer where there would be fewer than 32 groups. If None, `AT_ONCE`, or where
        weights are uneven, by draws of either kind, as many more as leave 64 groups.

    Raises:
      ValueError: as of `bridge.bridge`.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bracket import bracket
      >>> rng = np.random.default_rng(0)
      >>> q, p = rng.normal(size=4_000), 1.0 + rng.normal(size=(1, 4_000))
      >>> found = bracket(q - 0.5 + 3.0, p - 0.5 + 3.0, at_once=1)  # N(0, 1) and e³ N(1, 1)
      >>> found.lower < found.log_z < found.upper  # 2.5, 3.0 and 3.5
      True
      >>> narrow = bracket(q - 0.5 + 3.0, p - 0.5 + 3.0)
      >>> bool(narrow.upper - narrow.lower < 0.2)
      True
    """
    between = bridge(log_weight, target_log_weight)
    theirs = np.atleast_2d(np.asarray(target_log_weight, np.float64))
    if at_once is None:
        # Under the target the mean of w / Z is one more than its variance under the sampler.
        log_mean = np.logaddexp.reduce(theirs, axis=None) - np.log(theirs.size)
        variance = np.expm1(min(log_mean - between.log_z, 20.0))
        at_once = _draws_at_once(log_weight, variance)
    groups = _groups(log_weight, at_once)
    lower, lower_stderr = _mean(np.logaddexp.reduce(groups, axis=1) - np.log(groups.shape[1]))
    upper, upper_stderr = _with_one_of_target(groups[:_MOST_GROUPS], theirs)
    return Bracket(
        lower=lower,
        lower_stderr=lower_stderr,
        upper=upper,
        upper_stderr=upper_stderr,
        log_z=between.log_z,
        stderr=between.log_z_stderr,
        method="bridge",
        num_target_draws=theirs.size,
    )


def weighted_bounds(log_weight: ArrayLike) -> tuple[float, float, float, float]:
    """The bounds of `bracket` and their standard errors, by weights in place of target draws.

    A draw of the target among K of the sampler is a group of the sampler, weighted by its mean
    weight W: the bound above is E[W log W] / E[W].

    Args:
      log_weight: ``[n]``, as of `bracket`.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bracket import weighted_bounds
      >>> q = np.random.default_rng(0).normal(size=4_000)
      >>> lower, _, upper, _ = weighted_bounds(q - 0.5 + 3.0)  # N(0, 1) and e³ N(1, 1)
      >>> lower < upper < lower + 0.2
      True
    """
    groups = _groups(log_weight, _draws_at_once(log_weight))
    log_mean = np.logaddexp.reduce(groups, axis=1) - np.log(groups.shape[1])
    weight = np.exp(log_mean - log_mean.max())
    weight = weight / weight.mean()
    finite = np.where(weight > 0.0, log_mean, 0.0)
    upper = float((weight * finite).mean())
    return *_mean(log_mean), upper, _mean(weight * (finite - upper))[1]


def _draws_at_once(log_weight: ArrayLike, variance: float = 0.0) -> int:
    """How many the bounds take, of the relative variance of the weights, or a larger one."""
    own = np.asarray(log_weight, np.float64)
    own = np.exp(own - np.nanmax(own))
    variance = max(variance, float(np.nanvar(own) / np.nanmean(own) ** 2))
    most = max(AT_ONCE, own.size // _ENOUGH_GROUPS)
    return int(np.clip(_FOR_EACH * variance, AT_ONCE, most))


def _groups(log_weight: ArrayLike, at_once: int) -> np.ndarray:
    """Log weights ``[num_groups, at_once or fewer]``; what is left over is left out."""
    own = np.asarray(log_weight, np.float64)
    own = np.where(np.isnan(own), -np.inf, own)
    size = max(1, min(at_once, own.size // _FEWEST_GROUPS))
    return own[: own.size // size * size].reshape(-1, size)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error; -inf has an infinite one."""
    finite = bool(np.isfinite(values).all())
    stderr = float(values.std(ddof=1) / np.sqrt(values.size)) if finite else float("inf")
    return float(values.mean()), stderr


def _with_one_of_target(groups: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Mean over all pairs of a target's draw and a group, less one of its own, and its error."""
    rest = np.logaddexp.reduce(groups[:, 1:], axis=1)
    of_theirs, of_rest = np.zeros_like(theirs), np.zeros_like(rest)
    for i, others in enumerate(rest):
        values = np.logaddexp(theirs, others) - np.log(groups.shape[1])
        of_theirs += values / rest.size
        of_rest[i] = values.mean()
    # Of a mean over pairs of two independent samples.
    variance = of_theirs.var(ddof=1) / effective_draws(of_theirs) + of_rest.var(ddof=1) / rest.size
    return float(of_rest.mean()), float(np.sqrt(variance))
