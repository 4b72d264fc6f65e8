"""Simulators: stochastic paths with their weights, deterministic maps with their determinants.

Every function here is for one sample, in the base's whitened coordinates; batches go through
``jax.vmap``. Steps run in ``jax.lax.scan``, so compile time does not grow with them. Throughout,

- ``control`` is the control u(x, t, d) and ``process`` the noising process;
- a step of size ``d []`` starts at ``x [dim]``, at time ``t []``;
- ``num_steps`` equal steps lead from a base draw ``x0 [dim]`` to ``x1 [dim]``;
- ``log_density`` is the target's whitened log density log ρ, and p0 the base's density;
- ``rng_key`` is the key of the noise, and ``kernels`` are the `PathKernels` that move the point.
"""

from consistent_samplers.simulate.controls import (
    ControlFn,
    StructuredControl,
    standard_normal_log_prob,
)
from consistent_samplers.simulate.flows import (
    FlowPath,
    flow_jacobians,
    flow_log_weight,
    flow_map,
    flow_path,
    flow_path_gradient,
    flow_score,
    flow_step,
    flow_step_and_jacobian,
    heuristic_flow_log_weight,
    heuristic_log_volume,
    invert_flow,
    invert_step,
)
from consistent_samplers.simulate.paths import (
    PathKernels,
    StochasticPath,
    backward_path,
    noising_kernels,
    path_log_ratio,
    path_log_weight,
    simulate_path,
    stochastic_path,
)
from consistent_samplers.simulate.preimages import preimage

__all__ = [
    "ControlFn",
    "FlowPath",
    "PathKernels",
    "StochasticPath",
    "StructuredControl",
    "backward_path",
    "flow_jacobians",
    "flow_log_weight",
    "flow_map",
    "flow_path",
    "flow_path_gradient",
    "flow_score",
    "flow_step",
    "flow_step_and_jacobian",
    "heuristic_flow_log_weight",
    "heuristic_log_volume",
    "invert_flow",
    "invert_step",
    "noising_kernels",
    "path_log_ratio",
    "path_log_weight",
    "preimage",
    "simulate_path",
    "standard_normal_log_prob",
    "stochastic_path",
]
