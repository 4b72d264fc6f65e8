"""Log Z from both sides: a bound below, a bound above, and the bridge in between."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from consistent_samplers.bridge import bridge, effective_draws


class Bracket(NamedTuple):
    """Log Z from both sides; everything in nats.

    Attributes:
      lower: the mean log weight of the sampler's draws (ELBO).
      lower_stderr: its standard error; +inf where the bound is -inf.
      upper: the mean log weight of draws of the target (EUBO), or None without such draws.
      upper_stderr: its standard error, chains counted by effective draws, or None.
      log_z: the estimate in between.
      stderr: its standard error.
      method: ``"bridge"``, or ``"importance"`` without draws of the target.
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


def bracket(log_weight: ArrayLike, target_log_weight: ArrayLike) -> Bracket:
    """Bounds on log Z and the optimal bridge, of draws of a sampler and of its target.

    With w = ρ / q, E_q[log w] <= log Z <= E_p[log w] (Grosse et al., 2015, section 3): they are
    KL(q | p) below and KL(p | q) above.

    Args:
      log_weight: ``[n]``, log ρ / q at independent draws of the sampler; -inf outside of the
        support.
      target_log_weight: ``[num_chains, m]``, the same at draws of the target.

    Raises:
      ValueError: as of `bridge.bridge`.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.bracket import bracket
      >>> rng = np.random.default_rng(0)
      >>> q, p = rng.normal(size=4_000), 1.0 + rng.normal(size=(1, 4_000))
      >>> found = bracket(q - 0.5 + 3.0, p - 0.5 + 3.0)  # N(0, 1) and e³ N(1, 1)
      >>> found.lower < found.log_z < found.upper  # 2.5, 3.0 and 3.5
      True
    """
    between = bridge(log_weight, target_log_weight)
    own = np.asarray(log_weight, np.float64)
    own = np.where(np.isnan(own), -np.inf, own)
    theirs = np.atleast_2d(np.asarray(target_log_weight, np.float64))
    finite = bool(np.isfinite(own).all())
    return Bracket(
        lower=float(own.mean()),
        lower_stderr=float(own.std(ddof=1) / np.sqrt(own.size)) if finite else float("inf"),
        upper=float(theirs.mean()),
        upper_stderr=float(theirs.std(ddof=1) / np.sqrt(effective_draws(theirs))),
        log_z=between.log_z,
        stderr=between.log_z_stderr,
        method="bridge",
        num_target_draws=theirs.size,
    )
