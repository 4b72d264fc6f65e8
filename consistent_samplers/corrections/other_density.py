"""Draws of a sampler under another density than the one that it was trained on."""

from typing import Any, NamedTuple

from consistent_samplers.diagnostics import REMEDIES, Verdict, verdict
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Draws, PRNGKey


class Reweighted(NamedTuple):
    """Draws with weights for another density, and what they are worth there.

    Attributes:
      draws: of the sampler, with weights for the new density.
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
    cure: str = "train for it with cs.train_sampler(rng_key, target, start=trained)",
) -> Reweighted:
    """A sampler's draws with weights for any target of its dimension, and their verdict.

    They are the draws of the same key for the sampler's own target. The weights are exact, whatever
    it was trained on: where the new density has mass in the draws' tails or beyond, they are
    uneven, and the verdict says so.

    Args:
      rng_key: key.
      sampler: any sampler but of a guided control, whose draws depend on the target.
      target: the new one.
      num_samples: number of draws.
      num_steps: network evaluations of each.
      cure: what the verdict recommends where the weights are too uneven.

    Raises:
      ValueError: the target has another dimension, no weight is positive, or the control is guided.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> sampler = cs.Sampler.of_base(cs.bases.standard_normal(1))
      >>> other = cs.targets.gaussian(jnp.full(1, 0.3), jnp.ones(1))
      >>> found = cs.corrections.reweight(jax.random.key(0), sampler, other)
      >>> bool(abs(found.evidence.log_z - other.log_z) < 0.05), found.verdict.level
      (True, 'trusted')
    """
    if target.dim != sampler.base.dim:
        raise ValueError(
            f"The draws have {sampler.base.dim} dimensions, and target {target.name!r} has "
            f"{target.dim}: train a sampler for it with cs.train_sampler(rng_key, target)."
        )
    if sampler.control.guided:
        raise ValueError(
            "Draws of a guided control depend on the density that guides it, so that they cannot "
            "be used for another: train with guidance=None."
        )
    method = "map" if "map" in sampler.methods else sampler.methods[0]
    draws = sampler.sample(rng_key, target, num_samples, num_steps, method=method)
    found = evidence(draws)
    remedies = {"longer": cure, "more": REMEDIES["more"], "double": REMEDIES["double"]}
    return Reweighted(draws, found, verdict(found, remedies=remedies))
