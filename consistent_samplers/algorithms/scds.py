"""SCDS: the self-consistent diffusion sampler (Jutras-Dubé, Zhang & Zhang, 2025).

"Single-Step Consistent Diffusion Samplers", arXiv:2502.07579. One network u(x, t, d) learns, from
scratch and without a data set,

- at d = 1/N to control the reversal of the noising: log-variance divergence of SDE paths;
- at d = 2^k/N to land where two steps of d/2 land (of the same network, held constant), from
  points of those paths: self-consistency of the probability flow.

Two curricula: over the number N of finest steps, which starts small and doubles, and over d,
whose largest value grows from 2/N to 1, since a big step has nothing to learn from before the
steps of half its size are right.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import losses, schedules
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
from consistent_samplers.maps import Control
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Method, Params, PRNGKey


class SCDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``.

    Attributes:
      loss: what was minimised.
      elbo: mean log weight of this batch's paths.
      state_consistency: mean squared gap between one step and two.
      num_steps: N of this iteration.
      max_step: largest d of this iteration.
      gradient_norm: before clipping.
    """

    loss: Array
    elbo: Array
    state_consistency: Array
    num_steps: Array
    max_step: Array
    gradient_norm: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SCDS(OnPaths):
    """Settings of SCDS, beside those of `OnPaths`.

    Attributes:
      max_steps: number N of finest steps at the end of its curriculum, a power of two.
      first_steps: N at the start, a power of two.
      steps_iterations: over which N doubles from ``first_steps`` to ``max_steps``, for equal
        times each.
      size_iterations: over which the largest step size of the consistency loss doubles from 2/N
        to 1, for equal times each.
      control_loss: see `PathLoss`.
      consistency_weight: weight of self-consistency.
      clip_aims: hold what two half steps aim at inside the box that the batch's stochastic paths
        visit. Half steps of the network itself may leave it, and what leaves is the next big
        step's aim: without a limit, such aims grew without end on the funnel.
      num_consistency_samples: paths of each batch on which self-consistency is taken.
      gradient_clip: on the global norm, of each loss by itself: log-variance gradients are large
        at first, and would leave self-consistency nothing.
    """

    max_steps: int = 32
    batch_size: int = 256
    learning_rate: Any = 3e-3
    anneal_iterations: int = 700
    first_steps: int = 16
    steps_iterations: int = 500
    size_iterations: int = 700
    control_loss: ControlLoss = "log_variance"
    consistency_weight: float = 1.0
    clip_aims: bool = True
    num_consistency_samples: int = 256

    name: ClassVar[str] = "scds"
    methods: ClassVar[tuple[Method, ...]] = ("map", "path", "heuristic")
    part_clip: ClassVar[str | None] = "gradient_clip"

    def __post_init__(self) -> None:
        schedules.check_max_steps(self.max_steps)
        schedules.check_num_steps(min(self.first_steps, self.max_steps), self.max_steps)
        check_choice("control_loss", self.control_loss, CONTROL_LOSSES)

    def _path_loss(self) -> PathLoss:
        first = min(self.first_steps, self.max_steps)
        counts = [2**k for k in range(self.max_steps.bit_length()) if 2**k >= first]
        return PathLoss(self.control_loss, self.batch_size, tuple(self.hidden), tuple(counts))

    def init(self, rng_key: PRNGKey, control: Control, evaluate: Evaluate) -> dict[str, Params]:
        """Parameters of the control loss."""
        return self._path_loss().init(rng_key, control, evaluate)

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """Control loss, and self-consistency of the flow's steps; each clipped by itself."""
        key_path, key_pair = jax.random.split(now.rng_key)
        path_loss, iteration = self._path_loss(), now.state.iteration
        which = _stage(iteration, self.steps_iterations, len(path_loss.step_counts))
        loss, paths = path_loss(
            params,
            now,
            key_path,
            evaluate,
            which=which,
            temper=annealing(iteration, self.anneal_iterations),
        )
        levels = jnp.asarray([n.bit_length() - 1 for n in path_loss.step_counts])[which]
        level = jnp.where(levels > 0, 1 + _stage(iteration, self.size_iterations, levels), 0)
        gap = jnp.zeros(())
        if self.max_steps > 1:
            gap = self._consistency(params, now, key_pair, paths, level)
        elbo, max_step = paths.log_weight.mean(), 2.0**level / paths.num_steps
        weighted = self.consistency_weight * gap
        info = SCDSInfo(loss + weighted, elbo, gap, paths.num_steps, max_step, loss)
        return Loss((loss, weighted), info)

    def _consistency(
        self, params: Params, now: Now, rng_key: PRNGKey, paths: PathBatch, level: Array
    ) -> Array:
        """Mean squared gap between one step and two, on path points; zero at level zero."""
        num = min(self.num_consistency_samples, self.batch_size)
        position = paths.position
        x, t, d = draw_steps(rng_key, position[:num], paths.num_steps, jnp.maximum(level, 1))
        component = jax.tree.map(lambda c: c[:num], paths.component)
        on_path = (jnp.arange(position.shape[1]) <= paths.num_steps)[None, :, None]
        low = jnp.where(on_path, position, jnp.inf).min((0, 1))
        high = jnp.where(on_path, position, -jnp.inf).max((0, 1))

        def gap(component: Component, x: Array, t: Array, d: Array) -> Array:
            u = now.control.bind(params, component, now.gradient)
            pair = losses.step_pair(u, u, now.control.process, x, t, d, with_jacobians=False)
            if self.clip_aims:
                pair = pair._replace(teacher=jnp.clip(pair.teacher, low, high))
            return losses.state_consistency(pair)

        return jnp.where(level > 0, jax.vmap(gap)(component, x, t, d).mean(), 0.0)


def _stage(iteration: Array, num_iterations: int, num_stages: Array | int) -> Array:
    """Stage of a curriculum, 0 .. num_stages - 1: the last one is reached at num_iterations."""
    stage = iteration * (num_stages - 1) // max(num_iterations, 1)
    return jnp.minimum(stage, num_stages - 1)


def _scds(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "general",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """Self-consistent diffusion sampler, with defaults of ours.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `SCDS`.

    Returns:
      An `Algorithm`.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import jax
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.gmm9(), cs.bases.standard_normal(2, scale=5.0)
      >>> algorithm = cs.scds(target, base=base, max_steps=4, first_steps=2, hidden=(8,))
      >>> state = algorithm.init(jax.random.key(0))
      >>> _, info = jax.eval_shape(algorithm.step, jax.random.key(1), state)
      >>> info._fields
      ('loss', 'elbo', 'state_consistency', 'num_steps', 'max_step', 'gradient_norm')
      >>> cs.scds.paper(target).max_steps
      128
    """
    return build_on_paths(target, SCDS(**settings), base, network, optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of the paper, its curricula at work (the release configures but ignores them).

    N = 128 Euler-Maruyama steps, β from 10 to 0.1, log-variance divergence, the interpolated score.
    """
    return {
        "base": standard_normal(target.dim),
        "max_steps": 128,
        "batch_size": 512,
        "learning_rate": 5e-3,
        "control_loss": "log_variance",
        "anneal_iterations": 0,
        "clip_aims": False,
        "guidance": "interpolated",
        "elementwise_gain": False,
        "schedule": schedules.linear(0.1, 10.0),
        "integrator": "euler_maruyama",
    }


scds = Constructor(_scds, SCDS, _paper)
