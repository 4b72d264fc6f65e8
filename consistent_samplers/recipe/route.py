"""The cheapest route to draws that earn trust: the base, a short calibration, a long one, chains.

Each step up is taken because the numbers say so: the weights so far are not to be trusted, or
drawing as many effective samples as were asked for would cost more than training on. Costs are
counted in floating-point operations, so that a decision is the same on every machine.
"""

import itertools
from typing import Literal, NamedTuple, TypeAlias, get_args

from consistent_samplers.diagnostics import (
    FINITE_VARIANCE_K,
    LEAST_ESS,
    MIN_EFFECTIVE,
    MODEST_UNSEEN,
    ExplorationCheck,
    tail_is_light,
)
from consistent_samplers.estimate import Evidence

Effort: TypeAlias = Literal["auto", "base", "short", "full", "chains"]
"""How far training goes: ``"auto"`` as far as draws asked for need, or always to a stage; chains
follow ``"auto"`` and ``"full"`` too where the weights of one step are not to be used."""

EFFORTS: tuple[Effort, ...] = get_args(Effort)
"""All values of `Effort`."""

ASKED_FOR = "asked for"
"""The reason of a route that was."""

SHORT_ITERATIONS, FURTHER_ITERATIONS = 250, 1_250
"""Iterations of the short calibration, and of the further ones of the full one."""

LEAST_BASE_ESS = 0.2
"""Share of effective draws below which the base alone will not do: of so uneven weights the largest
are yet to be seen, and log Z comes out low by several of its standard errors."""

TAIL_ITERATIONS = 250
"""Iterations on widened draws, where the weights' tail is too heavy to be relied on."""

# What a point costs in training, in draws: one with its Jacobian, forwards and backwards, and its
# inverse.
_DRAWS_PER_POINT = 4.0
_BATCH = 128
COMPILING = 2e10
"""What compiling a calibration costs, in operations."""
# The base's Pareto k must stay this far below its limit, as the best of several widths was taken.
_MARGIN = 0.05


class Route(NamedTuple):
    """How far training went, and why.

    Attributes:
      name: ``"base"``, ``"short"``, ``"full"`` or ``"chains"``.
      reason: in words.
      stages: share of effective draws after each stage.

    Example:
      >>> from consistent_samplers.recipe import Route
      >>> print(Route("base", "its weights give the draws asked for", {"base": 0.98}))
      base: its weights give the draws asked for (effective: base 98 %)
    """

    name: str
    reason: str
    stages: dict[str, float]

    def __str__(self) -> str:
        """One line."""
        percent = {name: 100.0 * ess for name, ess in self.stages.items()}
        shares = ", ".join(
            f"{name} {share:.0f} %" if share >= 10.0 else f"{name} {share:.2g} %"
            for name, share in percent.items()
        )
        return f"{self.name}: {self.reason} (effective: {shares})"


class Costs(NamedTuple):
    """Floating-point operations of weighted draws, and of a density's value and gradient."""

    base_draw: float
    map_draw: float
    density: float

    def calibration(self, num_iterations: int) -> float:
        """Operations of so many iterations of calibration."""
        point = _DRAWS_PER_POINT * self.map_draw + self.density
        return num_iterations * _BATCH * point + COMPILING


def costs(dim: int, hidden: tuple[int, ...], structured: bool, density: float) -> Costs:
    """Operations of draws in ``dim`` dimensions with a network of some hidden widths."""
    widths = (dim, *hidden, 2 * dim)
    network = 2.0 * sum(a * b for a, b in itertools.pairwise(widths))
    base = dim**2 + density / 3.0
    jacobian = 3.0 * network if structured else dim * network + 2.0 * dim**3 / 3.0
    return Costs(base, base + network + jacobian, density)


def base_is_enough(
    evidence: Evidence,
    exploration: ExplorationCheck | None,
    num_samples: int,
    cost: Costs,
) -> str | None:
    """Why the base alone will do for so many effective draws, in words; None where it will not."""
    k, ess = float(evidence.pareto_k), float(evidence.ess)
    if not (k <= FINITE_VARIANCE_K - _MARGIN and ess * evidence.num_samples >= MIN_EFFECTIVE):
        return None
    if ess < LEAST_BASE_ESS or float(evidence.unseen or 0.0) > MODEST_UNSEEN:
        return None
    if exploration is not None and not exploration.passed:
        return None
    # As many again as are effective already at hand cost nothing like a training.
    if num_samples / ess * cost.base_draw > cost.calibration(SHORT_ITERATIONS):
        return None
    return "its weights can be trusted, and drawing more is cheaper than training"


def many_bear_out(evidence: Evidence) -> bool:
    """Whether many draws of the base bear out what few said of its weights."""
    even = float(evidence.ess) >= 0.5 * LEAST_BASE_ESS
    return even and float(evidence.pareto_k) <= FINITE_VARIANCE_K + 2.0 * _MARGIN


def calibration_is_enough(evidence: Evidence, num_samples: int, cost: Costs) -> str | None:
    """Why the short calibration will do, in words; None where it will not."""
    k, ess = float(evidence.pareto_k), float(evidence.ess)
    if not tail_is_light(evidence) or ess * evidence.num_samples < MIN_EFFECTIVE:
        return None
    # Of other draws it might be just beyond what a verdict lets pass.
    if float(evidence.unseen or 0.0) > MODEST_UNSEEN or (ess < LEAST_ESS and k > FINITE_VARIANCE_K):
        return None
    if num_samples * (1.0 / ess - 1.0) * cost.map_draw > cost.calibration(FURTHER_ITERATIONS):
        return None
    return "its weights can be used, and drawing more is cheaper than training on"
