"""Algorithms that start from a trained teacher's parameters."""

import dataclasses
from typing import Any

from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.protocol import SamplerState
from consistent_samplers.bases.base import one_frame
from consistent_samplers.targets import Target
from consistent_samplers.types import Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Distilled(Algorithm):
    """An algorithm whose parameters start as a teacher's.

    Attributes:
      start: the parameters.
    """

    start: Params = None

    def init(self, rng_key: PRNGKey) -> SamplerState:
        """The teacher's parameters and a fresh optimiser."""
        return self._from_params(self.start)


def distilled(algorithm: Algorithm, start: Params) -> Distilled:
    """The algorithm with other parameters to start from."""
    own: dict[str, Any] = {
        f.name: getattr(algorithm, f.name) for f in dataclasses.fields(Algorithm)
    }
    return Distilled(**own, start=start)


def check_teacher(target: Target, teacher: Algorithm) -> None:
    """Raises unless a teacher has a probability flow of several steps to the target.

    Raises:
      ValueError: it samples another space, takes one step, or starts from several components.
    """
    if target.dim != teacher.target.dim:
        raise ValueError(
            f"The teacher samples {teacher.target.name!r} in {teacher.target.dim} dimensions, but "
            f"the target {target.name!r} has {target.dim}. Distil a teacher of this target."
        )
    if teacher.control.max_flow_steps < 2:
        raise ValueError(
            f"The teacher {teacher.name!r} has no probability flow of several steps to distil. "
            "Take one of cs.dis, cs.dds, cs.pis, cs.scds or cs.osds."
        )
    if not one_frame(teacher.base):
        raise ValueError(
            f"The teacher {teacher.name!r} starts from a base of several components, which "
            "distillation of a teacher does not follow. Train the teacher on a Gaussian base, or "
            "use cs.osds or cs.scds, which distil themselves on any base."
        )
