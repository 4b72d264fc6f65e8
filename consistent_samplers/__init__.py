"""Samples from unnormalised densities in one or a few network evaluations.

And says how far its numbers can be trusted. Public names load on first use, so that importing
the package stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

from consistent_samplers.guard import choose_scheduler

choose_scheduler()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from consistent_samplers import (
        algorithms,
        bases,
        checkpoint,
        corrections,
        diagnostics,
        estimate,
        kernels,
        log_det,
        losses,
        maps,
        networks,
        plotting,
        processes,
        recipe,
        schedules,
        sharding,
        simulate,
        streaming,
        targets,
        training,
        types,
    )
    from consistent_samplers.algorithms.base import Algorithm
    from consistent_samplers.algorithms.calibration import calibration
    from consistent_samplers.algorithms.cdds import cdds
    from consistent_samplers.algorithms.dds import dds
    from consistent_samplers.algorithms.dis import dis
    from consistent_samplers.algorithms.osds import osds
    from consistent_samplers.algorithms.pis import pis
    from consistent_samplers.algorithms.progressive import progressive_distillation
    from consistent_samplers.algorithms.protocol import SamplerState
    from consistent_samplers.algorithms.scds import scds
    from consistent_samplers.checkpoint import CheckpointError
    from consistent_samplers.estimate import Evidence, evidence
    from consistent_samplers.recipe import TrainedSampler, load, train_sampler
    from consistent_samplers.registry import register as register_base
    from consistent_samplers.registry import register as register_network
    from consistent_samplers.sampler import Sampler
    from consistent_samplers.targets import Target
    from consistent_samplers.training import FitResult, TrainingDivergedError, fit
    from consistent_samplers.types import Draws

# Where a public name lives, and what it is called there if it is called otherwise.
_HOME = {
    "Algorithm": "algorithms",
    "SamplerState": "algorithms",
    "calibration": "algorithms",
    "cdds": "algorithms",
    "dds": "algorithms",
    "dis": "algorithms",
    "osds": "algorithms",
    "pis": "algorithms",
    "progressive_distillation": "algorithms",
    "scds": "algorithms",
    "Evidence": "estimate",
    "evidence": "estimate",
    "FitResult": "training",
    "TrainingDivergedError": "training",
    "fit": "training",
    "TrainedSampler": "recipe",
    "train_sampler": "recipe",
    "load": "recipe",
    "CheckpointError": "checkpoint",
    "register_base": "registry.register",
    "register_network": "registry.register",
    "Sampler": "sampler",
    "Target": "targets",
    "Draws": "types",
}
_MODULES = (
    "algorithms",
    "bases",
    "checkpoint",
    "corrections",
    "diagnostics",
    "estimate",
    "kernels",
    "log_det",
    "losses",
    "maps",
    "networks",
    "plotting",
    "processes",
    "recipe",
    "schedules",
    "sharding",
    "simulate",
    "streaming",
    "targets",
    "training",
    "types",
)

__all__ = [
    "Algorithm",
    "CheckpointError",
    "Draws",
    "Evidence",
    "FitResult",
    "Sampler",
    "SamplerState",
    "Target",
    "TrainedSampler",
    "TrainingDivergedError",
    "algorithms",
    "bases",
    "calibration",
    "cdds",
    "checkpoint",
    "corrections",
    "dds",
    "diagnostics",
    "dis",
    "estimate",
    "evidence",
    "fit",
    "kernels",
    "load",
    "log_det",
    "losses",
    "maps",
    "networks",
    "osds",
    "pis",
    "plotting",
    "processes",
    "progressive_distillation",
    "recipe",
    "register_base",
    "register_network",
    "scds",
    "schedules",
    "sharding",
    "simulate",
    "streaming",
    "targets",
    "train_sampler",
    "training",
    "types",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        module, _, own_name = _HOME[name].partition(".")
        value = getattr(importlib.import_module(f"{__name__}.{module}"), own_name or name)
        # A submodule may share the name (evidence, fit): the public name is the function.
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
