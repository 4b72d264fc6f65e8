"""What the last run of a NumPyro model's sampler gave: samples, a table, what they are worth."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from consistent_samplers.bases.iterating import folded
from consistent_samplers.diagnostics import Verdict
from consistent_samplers.estimate import Evidence
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.integrations.numpyro.run import MAX_OVERSAMPLING, Run
from consistent_samplers.types import Array, PRNGKey


class Results:
    """What can be asked of the last run; each answer is a RuntimeError where there was none."""

    _run: Run | None = None

    def get_samples(self, *, resampled: bool | None = None) -> Samples:
        """Sites by name, ``[num_samples, ...]``: equally weighted draws of the last run.

        Where the weights allow it (see `reweighted`), the draws are resampled with Pareto-smoothed
        importance weights, from up to ten times as many candidates so that few draws appear
        twice. Where chains had to be run (`route`), they are those of the chains, one chain after
        the other, as many as these have. Elsewhere they are what the trained sampler gives, and a
        warning says so.

        Args:
          resampled: True always corrects one-step draws, False never does.
        """
        run = self._last_run("get_samples")
        if resampled is None and run.chains is not None:
            return dict(run.chain_samples())
        return dict(run.samples(self._resampled(run, resampled))[0])

    def get_weighted_samples(self) -> tuple[Samples, Array]:
        """The last run's one-step draws as they are, with their log weights ``[num_samples]``."""
        samples, log_weight = self._last_run("get_weighted_samples").samples(False)
        return dict(samples), log_weight

    def to_arviz(
        self,
        *,
        resampled: bool | None = None,
        log_likelihood: bool = True,
        rng_key: PRNGKey | None = None,
    ) -> Any:
        """The last run as ``arviz.InferenceData``, or ``xarray.DataTree`` with ArviZ 1.

        One chain, or the chains where these were run. Groups: the posterior as from `get_samples`;
        sample statistics, which are ``log_weight`` of the one-step draws, or ``log_weight`` and
        ``diverging`` of the chains; and, unless the likelihood is a ``numpyro.factor``, log
        likelihood, posterior predictive draws and observed data.

        Args:
          resampled: as in `get_samples`.
          log_likelihood: whether to compute it.
          rng_key: key of the posterior predictive draws; the run's own if None.

        Raises:
          ImportError: ArviZ is not installed.
        """
        run = self._last_run("to_arviz")
        if resampled is not None or run.chains is None:
            resampled = self._resampled(run, resampled)
        key = folded(run.rng_key, MAX_OVERSAMPLING + 1) if rng_key is None else rng_key
        return run.to_arviz(resampled, key, log_likelihood)

    def print_summary(
        self,
        prob: float = 0.9,
        exclude_deterministic: bool = True,
        *,
        var_names: str | Sequence[str] | None = None,
    ) -> None:
        """Prints a table like that of ``MCMC.print_summary``, then what the draws are worth.

        It is 100 characters wide. Above 60 rows long sites show their first and last ones only.

        Args:
          prob: mass of the highest-density interval.
          exclude_deterministic: leave out deterministic sites.
          var_names: which sites, with all their rows: a name or a sequence of names, which may
            have ``*`` and ``?`` as in file names. One that begins with ``~`` leaves out instead:
            ``["a*", "~a_raw"]``, or ``"~theta"`` for all but one.

        Raises:
          ValueError: ``prob`` is not between 0 and 1, or ``var_names`` has a name of no site, or
            leaves none.
        """
        if not 0.0 < prob < 1.0:
            raise ValueError(f"prob must be between 0 and 1, such as 0.9, got {prob!r}.")
        print(self._last_run("print_summary").summary(prob, exclude_deterministic, var_names))

    def diagnostics(self) -> dict[str, Any]:
        """What the last run's draws are worth, as plain numbers.

        ``ess`` (share), ``pareto_k``, ``folded`` (share), ``round_trip_error`` (None where not
        measured), ``bound``, ``reweighted``, ``level`` and ``verdict``, ``training_seconds``;
        ``distrusted``: sites whose quantiles the weights' tail may change; ``stage_elbos``: the
        one-step ELBO after each stage of training; ``route``: how far training went;
        ``warm_started``: whether it went on from a sampler of other data; of chains ``r_hat``,
        ``bulk`` and ``tail``, their least effective draws, and ``divergent``, a share (else None).
        """
        return self._last_run("diagnostics").diagnostics()

    @property
    def evidence(self) -> Evidence:
        """Evidence from the last run's weighted draws."""
        return self._last_run("evidence").evidence

    @property
    def verdict(self) -> Verdict:
        """What the last run's draws are worth: ``level`` and ``words``."""
        return self._last_run("verdict").verdict

    @property
    def reweighted(self) -> bool:
        """Whether `get_samples` corrects the last run's draws by their weights.

        It does if at least `MIN_RESAMPLED_EFFECTIVE` draws are effective and
        `diagnostics.weights_are_reliable`.
        """
        return self._last_run("reweighted").reweighted

    @property
    def observed(self) -> dict[str, np.ndarray]:
        """Values of the last run's observed sites by name, as far as they count.

        None of a ``numpyro.factor``; of a site with a mask those that it leaves, as a vector.
        """
        return self._last_run("observed").observed()

    @property
    def factors(self) -> tuple[str, ...]:
        """Sites of the last run that are a ``numpyro.factor``: what data are in it is not known."""
        return self._last_run("factors").factors()

    @property
    def scaled(self) -> tuple[str, ...]:
        """Sites of the last run whose densities are scaled, with which there is no evidence."""
        return self._last_run("scaled").scaled()

    @property
    def improper(self) -> tuple[str, ...]:
        """Latent sites of the last run with improper priors, with which there is no evidence."""
        return self._last_run("improper").improper()

    def _resampled(self, run: Run, resampled: bool | None) -> bool:
        """Whether draws are to be corrected, with a warning where they cannot be."""
        if resampled is None and not run.reweighted:
            warnings.warn(
                "These draws are not corrected by their importance weights, which are too uneven "
                "for it: they follow the trained sampler, not exactly the posterior. "
                f"{run.verdict.words} (To take them as they are, without this "
                "warning: get_samples(resampled=False).)",
                stacklevel=3,
            )
        return run.reweighted if resampled is None else resampled

    def _last_run(self, what: str) -> Run:
        if self._run is None:
            raise RuntimeError(f"No draws yet: call run(rng_key, ...) before {what}.")
        return self._run
