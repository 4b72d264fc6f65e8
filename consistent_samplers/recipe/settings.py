"""What the recipe's sampler is made of."""

from typing import NamedTuple

import optax

from consistent_samplers.algorithms import Algorithm, osds
from consistent_samplers.algorithms.control import NetworkKind
from consistent_samplers.bases import Base
from consistent_samplers.targets.base import Target


class Settings(NamedTuple):
    """What a sampler's network and steps are made of.

    Attributes:
      max_steps: number N of finest steps.
      hidden: widths of the network's hidden layers.
      network: its kind.

    Example:
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.recipe import Settings
      >>> settings = Settings(max_steps=2, hidden=(8,), network="general")
      >>> settings.build(cs.targets.funnel(2), cs.bases.standard_normal(2)).name
      'osds'
    """

    max_steps: int
    hidden: tuple[int, ...]
    network: NetworkKind

    def build(
        self, target: Target, base: Base, learning_rate: float | optax.Schedule = 2e-3
    ) -> Algorithm:
        """The recipe's OSDS.

        The gradient of the target is left out of the control: on a fitted base it costs more (a
        Hessian in every Jacobian) than it brings, and one step stays one network evaluation.
        """
        return osds(
            target,
            base=base,
            max_steps=self.max_steps,
            hidden=self.hidden,
            guidance=None,
            network=self.network,
            learning_rate=learning_rate,
        )
