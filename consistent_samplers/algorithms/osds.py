"""OSDS: a one-step diffusion sampler by self-distillation (Jutras-Dubé et al., 2025).

"One-Step Diffusion Samplers via Self-Distillation and Deterministic Flow", arXiv:2512.05251.
One network u(x, t, d) is trained on three things at once:

- small steps d = 1/N are a diffusion sampler: a control loss over simulated SDE paths;
- a step of size d lands where two half steps of the EMA teacher land: state consistency;
- their log-determinants agree: volume consistency (here on exact determinants, by default).

After training a single step of size d = 1 carries the base to the target.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import log_det, losses, schedules, simulate
from consistent_samplers.algorithms.batches import PathBatch, batch_elbo
from consistent_samplers.algorithms.consistency import draw_steps
from consistent_samplers.algorithms.objectives import CONTROL_LOSSES, ControlLoss, PathLoss
from consistent_samplers.algorithms.on_paths import OnPaths, on_paths, paper_settings
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now
from consistent_samplers.bases import Component
from consistent_samplers.checks import check_choice, check_integer
from consistent_samplers.maps import Guidance
from consistent_samplers.schedules import annealing
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Method, Params, PRNGKey


class OSDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array
    elbo: Array  # of the N-step stochastic paths of this batch
    state_consistency: Array  # mean squared gap between one step and two
    volume_consistency: Array  # mean squared gap of their log-volumes
    consistency_weight: Array  # of both, at this iteration
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class OSDS(OnPaths):
    """One-step diffusion sampler by self-distillation, with the settings of `OnPaths` and its own.

    Attributes:
      control_loss: ``"reverse_kl"`` (or ``"path_gradient"``) back-propagates through the paths;
        ``"log_variance"`` and the balance losses do not (see `PathLoss`).
      volume: log-volumes of volume consistency: ``"exact"`` log-determinants, or the paper's
        ``"hutchinson"`` traces with the target gradient frozen.
      consistency_weight: weight of both consistency losses after warm-up.
      volume_weight: weight of volume against state consistency, in addition to its own 0.25.
      warmup_iterations: over which ``consistency_weight`` grows linearly from 0.
      monotonicity_weight: of the penalty that keeps big steps from folding (exact volumes only).
      monotonicity_margin: smallest eigenvalue it asks of the Jacobian's symmetric part.
      jacobian_weight: weight of the paper's penalty ‖J v‖² on the control's Jacobian.
      num_consistency_samples: paths of each batch on which the consistency losses are taken.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.gmm9(), cs.bases.standard_normal(2, scale=5.0)
      >>> algorithm = cs.osds(target, base=base, max_steps=4, hidden=(8,))
      >>> algorithm.max_steps, cs.osds.paper(target, batch_size=256).max_steps
      (4, 128)
    """

    max_steps: int = 16
    learning_rate: Any = 2e-3
    guidance: Guidance = "ratio"
    control_loss: ControlLoss = "reverse_kl"
    volume: Literal["exact", "hutchinson"] = "exact"
    consistency_weight: float = 1.0
    volume_weight: float = 0.25
    warmup_iterations: int = 200
    monotonicity_weight: float = 10.0
    monotonicity_margin: float = 0.05
    jacobian_weight: float = 0.0
    num_consistency_samples: int = 64

    name: ClassVar[str] = "osds"
    methods: ClassVar[tuple[Method, ...]] = ("map", "path", "heuristic")

    def __post_init__(self) -> None:
        check_integer("num_consistency_samples", self.num_consistency_samples)
        check_choice("volume", self.volume, ("exact", "hutchinson"))
        check_choice("control_loss", self.control_loss, CONTROL_LOSSES)
        self.path_loss()

    def path_loss(self) -> PathLoss:
        """The control loss."""
        return PathLoss(self.control_loss, self.batch_size, tuple(self.hidden), (self.max_steps,))

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """Control loss + weight (state + volume consistency) + penalties."""
        key_path, key_pair = jax.random.split(now.rng_key)
        iteration = now.state.iteration
        temper = annealing(iteration, self.anneal_iterations)
        loss, paths = self.path_loss()(params, now, key_path, evaluate, temper=temper)
        warm = jnp.minimum(1.0, iteration / max(self.warmup_iterations, 1))
        weight = self.consistency_weight * warm
        state_gap = volume_gap = jnp.zeros(())
        if self.max_steps > 1:
            state_gap, volume_gap, penalty = self._consistency(params, now, key_pair, paths)
            loss += weight * (state_gap + self.volume_weight * volume_gap) + penalty
        elbo = batch_elbo(paths.log_weight)
        return Loss((loss,), OSDSInfo(loss, elbo, state_gap, volume_gap, weight, loss))

    def _consistency(
        self, params: Params, now: Now, rng_key: PRNGKey, paths: PathBatch
    ) -> tuple[Array, Array, Array]:
        """Mean state consistency, volume consistency and the penalties, on path points."""
        key_pairs, key_probe = jax.random.split(rng_key)
        num, max_level = self.num_consistency_samples, self.max_steps.bit_length() - 1
        component, x, t, d = draw_steps(key_pairs, paths, num, max_level)
        probe = jax.random.normal(key_probe, x.shape)
        exact, process = self.volume == "exact", now.control.process
        ema_params, stop = now.state.ema_params, jax.lax.stop_gradient

        def gaps(
            component: Component, x: Array, t: Array, d: Array, probe: Array
        ) -> tuple[Array, Array, Array]:
            def trace(params: Params, x: Array, t: Array, d: Array) -> Array:
                u = now.control.bind(params, component, now.gradient, frozen=True)
                divergence = log_det.hutchinson_trace(lambda y: u(y, t, d), x, probe)
                return process.flow_divergence(divergence, t, d)

            student, teacher = now.bind(params, component), now.bind(ema_params, component)
            pair = losses.step_pair(student, teacher, process, x, t, d, with_jacobians=exact)
            shortfall = roughness = jnp.zeros(())
            if pair.jacobians is None:
                half = 0.5 * d
                middle = simulate.flow_step(teacher, process, x, t, half)
                halves = trace(ema_params, x, t, half), trace(ema_params, middle, t + half, half)
                log_volumes = jnp.stack([*stop(halves), trace(params, x, t, d)])
            else:
                log_volumes = log_det.slogdet(pair.jacobians).log_abs_det
                big = jax.tree.map(lambda parts: parts[-1], pair.jacobians)
                shortfall = losses.monotonicity_shortfall(big, probe, self.monotonicity_margin)
            if self.jacobian_weight > 0.0:
                roughness = losses.jacobian_penalty(student, x, t, d, probe)
            penalty = self.monotonicity_weight * shortfall + self.jacobian_weight * roughness
            volume_gap = losses.volume_consistency(log_volumes)
            return losses.state_consistency(pair), volume_gap, penalty

        state_gap, volume_gap, penalty = jax.vmap(gaps)(component, x, t, d, probe)
        return state_gap.mean(), volume_gap.mean(), penalty.mean()


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of the paper and its release, with the paper's equations (x0 is not clipped)."""
    return paper_settings(
        target,
        batch_size=1_024,
        learning_rate=5e-4,
        control_loss="reverse_kl",
        volume="hutchinson",
        consistency_weight=0.25,
        volume_weight=1.0,
        warmup_iterations=2_500,
        jacobian_weight=1e-4,
        ema_decay=0.999,
        guidance="interpolated",
        schedule=schedules.cosine(0.01, 10.0),
        integrator="euler_maruyama",
        num_consistency_samples=overrides.get("batch_size", 1_024),
    )


osds = on_paths(OSDS, _paper)
