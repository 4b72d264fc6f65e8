"""The base alone as a sampler: its width, and what its weights are worth."""

import dataclasses
from collections.abc import Callable

from consistent_samplers.bases import (
    Base,
    DiagonalBase,
    GaussianBase,
    MixtureBase,
    ProductMixtureBase,
)
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.recipe.route import LEAST_BASE_ESS
from consistent_samplers.sampler import Sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Draws, PRNGKey

# A fit by reverse KL is narrower than its target: weights of a wider base have lighter tails, at
# the price of a smaller share of effective draws.
_WIDTHS = (1.0, 1.05, 1.1, 1.2)


def widened(base: Base, width: float) -> Base | None:
    """The base with all its standard deviations times ``width``; None of a class not known here."""
    if width == 1.0:
        return base
    if isinstance(base, GaussianBase):
        return dataclasses.replace(base, scale_tril=width * base.scale_tril)
    if isinstance(base, MixtureBase):
        return dataclasses.replace(
            base, scale_tril=width * base.scale_tril, whitener=base.whitener / width
        )
    if isinstance(base, ProductMixtureBase | DiagonalBase):
        return dataclasses.replace(base, scale=width * base.scale)
    return None


def widest_needed(
    rng_key: PRNGKey,
    target: Target,
    base: Base,
    num_draws: int,
    is_enough: Callable[[Sampler, Draws, Evidence], str | None],
) -> tuple[Sampler, Draws, Evidence, str | None]:
    """The base at the first width at which its weights are enough, else as it is.

    Sampler, draws (of one key for every width), evidence, and why it is enough, in words, or None.
    A ValueError where the weights of the base as it is cannot be used.
    """
    own = Sampler.of_base(base)
    draws = own.sample(rng_key, target, num_draws)
    worth = evidence(draws)
    first = (own, draws, worth, is_enough(own, draws, worth))
    # A few large weights of a narrow base may halve its share of effective draws.
    if first[-1] is not None or float(worth.ess) < 0.5 * LEAST_BASE_ESS:
        return first
    for width in _WIDTHS[1:]:
        wider = widened(base, width)
        if wider is None:
            break
        sampler = Sampler.of_base(wider)
        drawn = sampler.sample(rng_key, target, num_draws)
        try:
            found = evidence(drawn)
        except ValueError:
            continue
        enough = is_enough(sampler, drawn, found)
        if enough is not None:
            return sampler, drawn, found, enough
    return first
