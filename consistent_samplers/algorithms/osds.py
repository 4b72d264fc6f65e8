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
import optax

from consistent_samplers import log_det, losses, schedules, simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor
from consistent_samplers.algorithms.consistency import draw_steps
from consistent_samplers.algorithms.objectives import (
    CONTROL_LOSSES,
    ControlLoss,
    PathBatch,
    PathLoss,
    annealing,
)
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now
from consistent_samplers.algorithms.stochastic import OnPaths, build_on_paths
from consistent_samplers.bases import Base, Component, standard_normal
from consistent_samplers.checks import check_choice
from consistent_samplers.maps import Control, Guidance
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, GradientFn, Method, Params, PRNGKey


class OSDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``.

    Attributes:
      loss: what was minimised.
      elbo: ELBO of the N-step stochastic paths of this batch.
      state_consistency: mean squared gap between one step and two.
      volume_consistency: mean squared gap of their log-volumes.
      consistency_weight: weight of both at this iteration.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    state_consistency: Array
    volume_consistency: Array
    consistency_weight: Array
    gradient_norm: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class OSDS(OnPaths):
    """Settings of OSDS, beside those of `OnPaths`.

    Attributes:
      control_loss: ``"reverse_kl"`` (or ``"path_gradient"``) back-propagates through the paths;
        ``"log_variance"`` and the balance losses do not (see `PathLoss`).
      volume: log-volumes of volume consistency: ``"exact"`` log-determinants, or the paper's
        ``"hutchinson"`` traces with the target gradient frozen.
      consistency_weight: weight of both consistency losses after warm-up.
      volume_weight: weight of volume against state consistency, in addition to its own 0.25.
      warmup_iterations: over which ``consistency_weight`` grows linearly from 0.
      monotonicity_weight: weight of the penalty that keeps big steps from folding (only with
        exact log-volumes, whose Jacobians it shares).
      monotonicity_margin: smallest eigenvalue it asks of the Jacobian's symmetric part.
      jacobian_weight: weight of the paper's penalty ‖J v‖² on the control's Jacobian.
      num_consistency_samples: paths of each batch on which the consistency losses are taken.
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
        check_choice("volume", self.volume, ("exact", "hutchinson"))
        check_choice("control_loss", self.control_loss, CONTROL_LOSSES)

    def _path_loss(self) -> PathLoss:
        hidden = tuple(self.hidden)
        return PathLoss(self.control_loss, self.batch_size, hidden, (self.max_steps,))

    def init(self, rng_key: PRNGKey, control: Control, evaluate: Evaluate) -> dict[str, Params]:
        """Parameters of the control loss."""
        return self._path_loss().init(rng_key, control, evaluate)

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """Control loss + weight (state + volume consistency) + penalties."""
        key_path, key_pair = jax.random.split(now.rng_key)
        iteration = now.state.iteration
        loss, paths = self._path_loss()(
            params, now, key_path, evaluate, temper=annealing(iteration, self.anneal_iterations)
        )
        warm = jnp.minimum(1.0, iteration / max(self.warmup_iterations, 1))
        weight, state_gap = self.consistency_weight * warm, jnp.zeros(())
        volume_gap = state_gap
        if self.max_steps > 1:
            state_gap, volume_gap, penalty = self._consistency(params, now, key_pair, paths)
            loss += weight * (state_gap + self.volume_weight * volume_gap) + penalty
        elbo = paths.log_weight.mean()
        return Loss((loss,), OSDSInfo(loss, elbo, state_gap, volume_gap, weight, loss))

    def _consistency(
        self, params: Params, now: Now, rng_key: PRNGKey, paths: PathBatch
    ) -> tuple[Array, Array, Array]:
        """Mean state consistency, volume consistency and the penalties, on path points."""
        num = min(self.num_consistency_samples, self.batch_size)
        key_pairs, key_probe = jax.random.split(rng_key)
        most = self.max_steps.bit_length() - 1
        x, t, d = draw_steps(key_pairs, paths.position[:num], paths.num_steps, most)
        component = jax.tree.map(lambda c: c[:num], paths.component)
        probe = jax.random.normal(key_probe, x.shape)
        control, teacher = now.control, now.state.ema_params

        def gaps(
            x: Array, t: Array, d: Array, component: Component, probe: Array
        ) -> tuple[Array, Array, Array]:
            student = control.bind(params, component, now.gradient)
            ema = control.bind(teacher, component, now.gradient)
            exact, roughness = self.volume == "exact", jnp.zeros(())
            pair = losses.step_pair(student, ema, control.process, x, t, d, with_jacobians=exact)
            shortfall = jnp.zeros(())
            if pair.jacobians is None:
                log_volumes = _trace_volumes(
                    control, params, teacher, component, now.gradient, x, t, d, probe
                )
            else:
                log_volumes = log_det.slogdet(pair.jacobians).log_abs_det
                big = jax.tree.map(lambda parts: parts[-1], pair.jacobians)
                shortfall = losses.monotonicity_shortfall(big, probe, self.monotonicity_margin)
            if self.jacobian_weight > 0.0:
                roughness = losses.jacobian_penalty(student, x, t, d, probe)
            penalty = self.monotonicity_weight * shortfall + self.jacobian_weight * roughness
            volume_gap = losses.volume_consistency(log_volumes)
            return losses.state_consistency(pair), volume_gap, penalty

        state_gap, volume_gap, penalty = jax.vmap(gaps)(x, t, d, component, probe)
        return state_gap.mean(), volume_gap.mean(), penalty.mean()


def _trace_volumes(
    control: Control,
    params: Params,
    teacher: Params,
    component: Component,
    gradient: GradientFn | None,
    x: Array,
    t: Array,
    d: Array,
    probe: Array,
) -> Array:
    """The paper's log-volumes of two half steps and the big one: d · tr ∂(drift)/∂x, ``[3]``."""
    half = 0.5 * d

    def log_volume(params: Params, x: Array, t: Array, d: Array) -> Array:
        frozen = control.bind(params, component, gradient, frozen=True)
        divergence = log_det.hutchinson_trace(lambda y: frozen(y, t, d), x, probe)
        return control.process.flow_divergence(divergence, t, d)

    first_half = control.bind(teacher, component, gradient)
    middle = simulate.flow_step(first_half, control.process, x, t, half)
    halves = log_volume(teacher, x, t, half), log_volume(teacher, middle, t + half, half)
    return jnp.stack([*jax.lax.stop_gradient(halves), log_volume(params, x, t, d)])


def _osds(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "general",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """One-step diffusion sampler by self-distillation, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `OSDS`.

    Returns:
      An `Algorithm`.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, ``max_steps`` is not a power of two, or
        an option has no such choice.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.gmm9(), cs.bases.standard_normal(2, scale=5.0)
      >>> algorithm = cs.osds(target, base=base, max_steps=4, hidden=(8,))
      >>> state = algorithm.init(jax.random.key(0))
      >>> algorithm.name, algorithm.methods
      ('osds', ('map', 'path', 'heuristic'))
      >>> _, info = jax.eval_shape(algorithm.step, jax.random.key(1), state)
      >>> info._fields[:4]
      ('loss', 'elbo', 'state_consistency', 'volume_consistency')
      >>> cs.osds.paper(target, batch_size=256).max_steps  # the settings of the paper, but one
      128
    """
    return build_on_paths(target, OSDS(**settings), base, network, optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of the paper and its release, which trains for 60,000 iterations.

    N = 128 Euler-Maruyama steps, β from 10 to 0.01 as cos², reverse KL, the interpolated gradient,
    Hutchinson traces, EMA 0.999, weight 0.25 after 2,500 iterations. Where the release departs from
    the paper's equations these follow the paper; in particular x0 is not clipped.
    """
    return {
        "base": standard_normal(target.dim),
        "max_steps": 128,
        "batch_size": 1_024,
        "learning_rate": 5e-4,
        "control_loss": "reverse_kl",
        "anneal_iterations": 0,
        "volume": "hutchinson",
        "consistency_weight": 0.25,
        "volume_weight": 1.0,
        "warmup_iterations": 2_500,
        "jacobian_weight": 1e-4,
        "ema_decay": 0.999,
        "gradient_clip": 1.0,
        "guidance": "interpolated",
        "elementwise_gain": False,
        "schedule": schedules.cosine(0.01, 10.0),
        "integrator": "euler_maruyama",
        "num_consistency_samples": overrides.get("batch_size", 1_024),
    }


osds = Constructor(_osds, OSDS, _paper)
