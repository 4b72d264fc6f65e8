"""OSDS: a one-step diffusion sampler by self-distillation (Jutras-Dubé et al., 2025).

"One-Step Diffusion Samplers via Self-Distillation and Deterministic Flow", arXiv:2512.05251.
One network u(x, t, d) is trained on three things at once:

- small steps d = 1/N are a diffusion sampler: a control loss over simulated SDE paths;
- a step of size d lands where two half steps of the EMA teacher land: state consistency;
- their log-determinants agree: volume consistency (here on exact determinants, by default).

After training a single step of size d = 1 carries the base to the target.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from consistent_samplers import log_det, losses, schedules, simulate
from consistent_samplers.algorithms import objectives
from consistent_samplers.algorithms.base import (
    Algorithm,
    SamplerState,
    WithPaperPreset,
    apply_gradients,
    check_base,
    check_choice,
    init_and_restart,
)
from consistent_samplers.algorithms.consistency import draw_steps
from consistent_samplers.algorithms.control import (
    Control,
    Guidance,
    LearnedKernels,
    NetworkKind,
    build_control,
)
from consistent_samplers.algorithms.objectives import ControlLoss, PathBatch
from consistent_samplers.algorithms.sampling import build_sample
from consistent_samplers.bases import Base, Component, standard_normal
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Bound, Params, PRNGKey

_BOUNDS: tuple[Bound, ...] = ("lower-if-injective", "lower", "heuristic")


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


def _osds(
    target: Target,
    *,
    base: Base | None = None,
    max_steps: int = 16,
    batch_size: int = 128,
    learning_rate: float | optax.Schedule = 2e-3,
    control_loss: ControlLoss = "reverse_kl",
    anneal_iterations: int = 100,
    volume: Literal["exact", "hutchinson"] = "exact",
    consistency_weight: float = 1.0,
    volume_weight: float = 0.25,
    warmup_iterations: int = 200,
    monotonicity_weight: float = 10.0,
    monotonicity_margin: float = 0.05,
    jacobian_weight: float = 0.0,
    ema_decay: float = 0.99,
    gradient_clip: float = 1.0,
    hidden: tuple[int, ...] = (64, 64),
    guidance: Guidance = "ratio",
    elementwise_gain: bool = True,
    network: NetworkKind = "general",
    path_dtype: DTypeLike | None = None,
    schedule: schedules.Schedule | None = None,
    integrator: Integrator = "exponential",
    learned_kernels: LearnedKernels = None,
    num_consistency_samples: int = 64,
) -> Algorithm:
    """One-step diffusion sampler by self-distillation, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      max_steps: number N of finest steps, a power of two. Sampling may take any power of two
        up to it.
      batch_size: paths of one iteration.
      learning_rate: Adam's.
      control_loss: ``"reverse_kl"`` (or ``"path_gradient"``) back-propagates through the paths;
        ``"log_variance"`` and the balance losses do not (see `objectives.build_objective`).
      anneal_iterations: over which the training target passes from the base to ρ, so that modes
        are shared out before they part; 0 for none.
      volume: log-volumes of volume consistency: ``"exact"`` log-determinants, or the paper's
        ``"hutchinson"`` traces with the target gradient frozen.
      consistency_weight: weight of both consistency losses after warm-up.
      volume_weight: weight of volume against state consistency, in addition to its own 0.25.
      warmup_iterations: over which ``consistency_weight`` grows linearly from 0.
      monotonicity_weight: weight of the penalty that keeps big steps from folding (only with
        exact log-volumes, whose Jacobians it shares).
      monotonicity_margin: smallest eigenvalue it asks of the Jacobian's symmetric part.
      jacobian_weight: weight of the paper's penalty ‖J v‖² on the control's Jacobian.
      ema_decay: of the teacher, and of the parameters that sample.
      gradient_clip: on the global norm.
      hidden: widths of the network's hidden layers.
      guidance: target gradient inside the control: ``"ratio"`` ∇ log(ρ/p0), ``"interpolated"``
        the paper's, or None.
      elementwise_gain: let the network also scale each coordinate of x.
      network: ``"general"``, or ``"structured"`` for many dimensions, with determinants
        that are products (see `control.build_control`).
      path_dtype: precision of the stochastic paths of training, see `control.build_control`.
      schedule: noising rate; linear from 10 to 0.1 if None.
      integrator: discretisation of the SDE and the flow.
      learned_kernels: corrections to the kernels of the stochastic paths, see
        `control.build_control`.
      num_consistency_samples: paths of each batch on which the consistency losses are taken.

    Returns:
      An `Algorithm`.

    Raises:
      ValueError: base and target differ in dimension, ``max_steps`` is not a power of two, or
        an option has no such choice.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target = cs.targets.gmm9()
      >>> algorithm = cs.osds(
      ...     target, base=cs.bases.standard_normal(2, scale=5.0), max_steps=4, hidden=(8,)
      ... )
      >>> state = algorithm.init(jax.random.key(0))
      >>> algorithm.name, algorithm.bounds
      ('osds', ('lower-if-injective', 'lower', 'heuristic'))
      >>> _, info = jax.eval_shape(algorithm.step, jax.random.key(1), state)
      >>> info._fields[:4]
      ('loss', 'elbo', 'state_consistency', 'volume_consistency')
      >>> cs.osds.paper(target, batch_size=256).max_steps  # the settings of the paper, but one
      128
    """
    base = standard_normal(target.dim) if base is None else base
    check_base(target, base)
    schedules.check_max_steps(max_steps)
    check_choice("control_loss", control_loss, objectives.CONTROL_LOSSES)
    check_choice("volume", volume, ("exact", "hutchinson"))
    process = OrnsteinUhlenbeck(schedule or schedules.linear(), integrator)
    control = build_control(
        target,
        base,
        process,
        max_steps=max_steps,
        hidden=hidden,
        guidance=guidance,
        elementwise_gain=elementwise_gain,
        learned_kernels=learned_kernels,
        network=network,
        path_dtype=path_dtype,
    )
    control_objective = objectives.build_objective(
        control, target.dim, loss=control_loss, batch_size=batch_size, hidden=hidden
    )
    optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optax.adam(learning_rate))
    num_levels = max_steps.bit_length() - 1

    def init_params(rng_key: PRNGKey) -> Params:
        key_control, key_loss = jax.random.split(rng_key)
        return control.init(key_control) | control_objective.init(key_loss)

    init, restart = init_and_restart(init_params, optimizer)

    def consistency(
        params: Params, teacher: Params, rng_key: PRNGKey, paths: PathBatch
    ) -> tuple[Array, Array, Array]:
        """Mean state consistency, volume consistency and the penalties, on path points."""
        num = min(num_consistency_samples, batch_size)
        key_pairs, key_probe = jax.random.split(rng_key)
        x, t, d = draw_steps(key_pairs, paths.position[:num], num_levels)
        component = jax.tree.map(lambda c: c[:num], paths.component)
        probe = jax.random.normal(key_probe, x.shape)

        def gaps(
            x: Array, t: Array, d: Array, component: Component, probe: Array
        ) -> tuple[Array, Array, Array]:
            here = control.at(component)
            student, ema = here.bind(params), here.bind(teacher)
            exact = volume == "exact"
            pair = losses.step_pair(student, ema, process, x, t, d, with_jacobians=exact)
            state_gap, shortfall = losses.state_consistency(pair), jnp.zeros(())
            if pair.jacobians is None:
                log_volumes = _trace_volumes(here, params, teacher, x, t, d, probe)
            else:
                log_volumes = log_det.slogdet(pair.jacobians).log_abs_det
                big = jax.tree.map(lambda parts: parts[-1], pair.jacobians)
                shortfall = losses.monotonicity_shortfall(big, probe, monotonicity_margin)
            return state_gap, losses.volume_consistency(log_volumes), shortfall

        state_gap, volume_gap, shortfall = (
            values.mean() for values in jax.vmap(gaps)(x, t, d, component, probe)
        )
        penalty = monotonicity_weight * shortfall
        if jacobian_weight > 0.0:
            roughness = jax.vmap(
                lambda c, *args: losses.jacobian_penalty(control.at(c).bind(params), *args)
            )
            penalty += jacobian_weight * roughness(component, x, t, d, probe).mean()
        return state_gap, volume_gap, penalty

    def step(rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, OSDSInfo]:
        key_path, key_pair = jax.random.split(rng_key)
        temper = objectives.annealing(state.iteration, anneal_iterations)
        weight = consistency_weight * jnp.minimum(1.0, state.iteration / max(warmup_iterations, 1))

        def objective(params: Params) -> tuple[Array, tuple[Array, Array, Array]]:
            loss, paths = control_objective.path_loss(params, key_path, max_steps, temper=temper)
            state_gap = volume_gap = jnp.zeros(())
            if num_levels:
                state_gap, volume_gap, penalty = consistency(
                    params, state.ema_params, key_pair, paths
                )
                loss += weight * (state_gap + volume_weight * volume_gap)
                loss += penalty
            return loss, (paths.log_weight.mean(), state_gap, volume_gap)

        (loss, (elbo, state_gap, volume_gap)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        info = OSDSInfo(loss, elbo, state_gap, volume_gap, weight, optax.tree.norm(grads))
        return apply_gradients(optimizer, state, grads, ema_decay), info

    sample, reverse, per_draw = build_sample(base, control, max_steps, _BOUNDS, 1)
    return Algorithm(
        "osds",
        target,
        base,
        max_steps,
        control,
        init,
        restart,
        step,
        sample,
        reverse,
        _BOUNDS,
        per_draw,
    )


def _trace_volumes(
    control: Control,
    params: Params,
    teacher: Params,
    x: Array,
    t: Array,
    d: Array,
    probe: Array,
) -> Array:
    """The paper's log-volumes of two half steps and the big one: d · tr ∂(drift)/∂x, ``[3]``."""
    half = 0.5 * d

    def log_volume(params: Params, x: Array, t: Array, d: Array) -> Array:
        divergence = log_det.hutchinson_trace(
            lambda y: control.bind_frozen(params)(y, t, d), x, probe
        )
        return control.process.flow_divergence(divergence, t, d)

    middle = simulate.flow_step(control.bind(teacher), control.process, x, t, half)
    first = log_volume(teacher, x, t, half)
    second = log_volume(teacher, middle, t + half, half)
    return jnp.stack([*jax.lax.stop_gradient((first, second)), log_volume(params, x, t, d)])


def _paper(target: Target, *, base: Base | None = None, **overrides: Any) -> Algorithm:
    """OSDS with the settings of the paper and its release.

    Base N(0, I) unless given, N = 128 Euler-Maruyama steps, β from 10 to 0.01 as cos², reverse
    KL, the interpolated gradient, Hutchinson traces, EMA 0.999, weight 0.25 after 2,500
    iterations, batch 1,024, learning rate 5e-4 (the release trains for 60,000 iterations, and
    takes the base's scale from the target's configuration). It follows the paper's equations
    where the release departs from them; in particular x0 is not clipped.

    Args:
      target: what to sample.
      base: where samples start; a standard normal if None.
      **overrides: any setting of ``cs.osds``.
    """
    settings = {
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
    algorithm = _osds(target, base=base, **(settings | overrides))
    return dataclasses.replace(algorithm, name="osds.paper")


osds = WithPaperPreset(_osds, _paper)
