"""Draws of a sampler under another density than the one that it was trained on."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.bridge import effective_draws
from consistent_samplers.corrections.chains import Chains
from consistent_samplers.diagnostics import LEVELS, REMEDIES, Verdict, verdict
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Draws, PRNGKey

_CURE = "train for it with cs.train_sampler(rng_key, target, start=trained)"


class Reweighted(NamedTuple):
    """Draws with weights for another density, and what they are worth there.

    Attributes:
      draws: of the sampler or of chains, with weights for the new density.
      evidence: log Z of the new density among them.
      verdict: what they are worth; nobody has looked for modes of the new density.
      samples: of a NumPyro model its latent sites ``[n, ...]``, resampled by the new weights; else
        None.

    Example:
      >>> from consistent_samplers.corrections import Reweighted
      >>> Reweighted._fields
      ('draws', 'evidence', 'verdict', 'samples')
    """

    draws: Draws
    evidence: Evidence
    verdict: Verdict
    samples: dict[str, Any] | None = None


def reweight(
    rng_key: PRNGKey,
    sampler: Sampler,
    target: Target,
    num_samples: int = 10_000,
    num_steps: int = 1,
    *,
    judged: Verdict | None = None,
    cure: str = _CURE,
    guide: Target | None = None,
) -> Reweighted:
    """A sampler's draws with weights for any target of its dimension, and their verdict.

    They are the draws of the same key for the sampler's own target. The weights are exact, whatever
    it was trained on: where the new density has mass in the draws' tails or beyond, they are
    uneven, and the verdict says so.

    Args:
      rng_key: key.
      sampler: any sampler; of a guided control with a ``guide``.
      target: the new one.
      num_samples: number of draws.
      num_steps: network evaluations of each.
      judged: what the sampler's draws are worth for its own target; the verdict is no better. The
        weights show neither folds elsewhere nor modes that no draw reaches. None of one that nobody
        judged.
      cure: what the verdict recommends where the weights are too uneven.
      guide: the target whose density a guided control draws by.

    Raises:
      ValueError: the target has another dimension, no weight is positive, or the control is guided
        and nothing is said of what guides it.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> sampler = cs.Sampler.of_base(cs.bases.standard_normal(1))
      >>> other = cs.targets.gaussian(jnp.full(1, 0.3), jnp.ones(1))
      >>> found = cs.corrections.reweight(jax.random.key(0), sampler, other)
      >>> bool(abs(found.evidence.log_z - other.log_z) < 0.05), found.verdict.level
      (True, 'trusted')
    """
    _check_dim(sampler.base.dim, target)
    if sampler.control.guided and guide is None:
        raise ValueError(
            "Draws of a guided control depend on the density that guides it: give that, "
            "guide=target, or use cs.TrainedSampler.reweight, which knows it."
        )
    method = "map" if "map" in sampler.methods else sampler.methods[0]
    draws = sampler.sample(rng_key, target, num_samples, num_steps, method=method, guide=guide)
    found = evidence(draws)
    return Reweighted(draws, found, _no_better(verdict(found, remedies=_remedies(cure)), judged))


def reweight_chains(
    chains: Chains, judged: Verdict, old: Target, target: Target, *, cure: str = _CURE
) -> Reweighted:
    """Draws of chains with weights for any target of their dimension, and their verdict.

    The weights are ρ_new / ρ_old times the chains' Z: their mean is Z of the new target. Its
    standard error takes in the chains' own of log Z, and that neighbours of a chain are alike.
    Where the old density is zero there are no draws: the new support must not be larger.

    Args:
      chains: draws of ``old``.
      judged: what they are worth; the verdict is no better.
      old: the target of the chains.
      target: the new one.
      cure: as of `reweight`.

    Raises:
      ValueError: the target has another dimension, or no weight is positive.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.corrections import reweight_chains
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> chains = cs.corrections.latent_chains(
      ...     jax.random.key(0), target, cs.Sampler.of_base(base), num_warmup=50, num_samples=400)
      >>> judged = cs.diagnostics.Verdict("trusted", "")
      >>> other = cs.targets.gaussian(jnp.full(1, 1.3), jnp.ones(1))
      >>> found = reweight_chains(chains, judged, target, other)
      >>> bool(abs(found.evidence.log_z - other.log_z) < 0.1)
      True
    """
    _check_dim(old.dim, target)
    position = chains.position.reshape(-1, old.dim)
    was, now = (evaluation.values(t.log_density, position) for t in (old, target))
    log_ratio = np.asarray(now, np.float64) - np.asarray(was, np.float64)
    log_weight = np.where(np.isnan(log_ratio), -np.inf, log_ratio) + chains.log_z.log_z
    weights = jax.device_put(log_weight.astype(np.asarray(now).dtype))
    draws = Draws(position, weights, now, bound="lower")
    found = evidence(draws)
    weight = np.exp(log_weight - log_weight.max()).reshape(chains.position.shape[:2])
    alike = math.sqrt(weight.size / effective_draws(weight))
    of_z, of_elbo = (
        jnp.hypot(alike * stderr, chains.log_z.log_z_stderr)
        for stderr in (found.log_z_stderr, found.elbo_stderr)
    )
    found = dataclasses.replace(found, log_z_stderr=of_z, elbo_stderr=of_elbo)
    return Reweighted(draws, found, _no_better(verdict(found, remedies=_remedies(cure)), judged))


def _no_better(found: Verdict, judged: Verdict | None) -> Verdict:
    """The verdict on new weights, no better than that on the draws for their own density."""
    if judged is None or judged.level == LEVELS[0]:
        return found
    worse = max(found, judged, key=lambda verdict: LEVELS.index(verdict.level))
    to_improve = worse.words.removeprefix(worse.findings)
    words = f"For its own density: {judged.findings}\nBy the new weights: {found.findings}"
    return Verdict(worse.level, words + to_improve)


def _check_dim(dim: int, target: Target) -> None:
    if target.dim != dim:
        raise ValueError(
            f"The draws have {dim} dimensions, and target {target.name!r} has {target.dim}: train "
            "a sampler for it with cs.train_sampler(rng_key, target)."
        )


def _remedies(cure: str) -> dict[str, str]:
    return {"longer": cure, "more": REMEDIES["more"], "double": REMEDIES["double"]}
