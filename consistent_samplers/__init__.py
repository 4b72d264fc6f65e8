"""Draws from unnormalised densities in one or a few network evaluations, and what they are worth.

Public names load on first use, so that importing the package stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

from consistent_samplers.guard import keep_threads_free

keep_threads_free()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from consistent_samplers import (
        algorithms,
        amortized,
        bases,
        bayes_factors,
        bracket,
        bridge,
        checkpoint,
        comparison,
        consensus,
        corrections,
        diagnostics,
        estimate,
        kernels,
        log_det,
        losses,
        maps,
        networks,
        plotting,
        prediction,
        processes,
        recipe,
        schedules,
        sharding,
        simulate,
        solvers,
        streaming,
        targets,
        training,
        training_free,
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
    from consistent_samplers.amortized import AmortizedSampler, amortize, load_family
    from consistent_samplers.checkpoint import CheckpointError
    from consistent_samplers.comparison import Comparison, compare
    from consistent_samplers.corrections import Expectation, expectation
    from consistent_samplers.estimate import Evidence, evidence
    from consistent_samplers.integrations.numpyro import as_prior
    from consistent_samplers.recipe import TrainedSampler, load, train_sampler, with_chains
    from consistent_samplers.registry import register_base, register_network
    from consistent_samplers.sampler import Sampler
    from consistent_samplers.targets import Target
    from consistent_samplers.training import FitResult, TrainingDivergedError, fit
    from consistent_samplers.types import Draws

# What modules are asked for, beside the modules themselves.
_NAMES = {
    "algorithms": (
        *("Algorithm", "SamplerState", "calibration", "progressive_distillation"),
        *("cdds", "dds", "dis", "osds", "pis", "scds"),
    ),
    "amortized": ("AmortizedSampler", "amortize", "load_family"),
    "checkpoint": ("CheckpointError",),
    "comparison": ("Comparison", "compare"),
    "corrections": ("Expectation", "expectation"),
    "estimate": ("Evidence", "evidence"),
    "integrations.numpyro": ("as_prior",),
    "recipe": ("TrainedSampler", "load", "train_sampler", "with_chains"),
    "registry": ("register_base", "register_network"),
    "sampler": ("Sampler",),
    "targets": ("Target",),
    "training": ("FitResult", "TrainingDivergedError", "fit"),
    "types": ("Draws",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Algorithm",
    "AmortizedSampler",
    "CheckpointError",
    "Comparison",
    "Draws",
    "Evidence",
    "Expectation",
    "FitResult",
    "Sampler",
    "SamplerState",
    "Target",
    "TrainedSampler",
    "TrainingDivergedError",
    "algorithms",
    "amortize",
    "amortized",
    "as_prior",
    "bases",
    "bayes_factors",
    "bracket",
    "bridge",
    "calibration",
    "cdds",
    "checkpoint",
    "compare",
    "comparison",
    "consensus",
    "corrections",
    "dds",
    "diagnostics",
    "dis",
    "estimate",
    "evidence",
    "expectation",
    "fit",
    "kernels",
    "load",
    "load_family",
    "log_det",
    "losses",
    "maps",
    "networks",
    "osds",
    "pis",
    "plotting",
    "prediction",
    "processes",
    "progressive_distillation",
    "recipe",
    "register_base",
    "register_network",
    "scds",
    "schedules",
    "sharding",
    "simulate",
    "solvers",
    "streaming",
    "targets",
    "train_sampler",
    "training",
    "training_free",
    "types",
    "with_chains",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        # A submodule may share the name (evidence, fit): the public name is the function.
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
