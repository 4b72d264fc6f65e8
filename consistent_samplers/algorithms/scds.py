"""SCDS: the self-consistent diffusion sampler (Jutras-Dubé, Zhang & Zhang, 2025).

"Single-Step Consistent Diffusion Samplers", arXiv:2502.07579. One network u(x, t, d) learns, from
scratch and without a data set,

- at d = 1/N to control the reversal of the noising: log-variance divergence of SDE paths;
- at d = 2^k/N to land where two steps of d/2 land (of the same network, held constant), from
  points of those paths: self-consistency of the probability flow.

Two curricula: the number N of finest steps doubles, and the largest d grows from 2/N to 1, since a
big step has nothing to learn from before the steps of half its size are right.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import losses, schedules
from consistent_samplers.algorithms.batches import PathBatch, batch_elbo
from consistent_samplers.algorithms.consistency import draw_steps
from consistent_samplers.algorithms.objectives import CONTROL_LOSSES, ControlLoss, PathLoss
from consistent_samplers.algorithms.on_paths import OnPaths, on_paths, paper_settings
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now
from consistent_samplers.bases import Component
from consistent_samplers.checks import check_choice, check_integer
from consistent_samplers.schedules import annealing
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Method, Params, PRNGKey


class SCDSInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array
    elbo: Array  # of this batch's paths
    state_consistency: Array  # mean squared gap between one step and two
    num_steps: Array  # N of this iteration
    max_step: Array  # largest d of this iteration
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class SCDS(OnPaths):
    """Self-consistent diffusion sampler, with the settings of `OnPaths` and its own.

    Attributes:
      max_steps: number N of finest steps at the end of its curriculum, a power of two.
      first_steps: N at the start, a power of two.
      steps_iterations: over which N doubles from ``first_steps`` to ``max_steps``, at equal times.
      size_iterations: over which the largest d of the consistency loss doubles from 2/N to 1.
      control_loss: see `PathLoss`.
      consistency_weight: weight of self-consistency.
      clip_aims: hold what two half steps aim at inside the box that the batch's stochastic paths
        visit: without a limit, aims that the network sets itself grew without end on the funnel.
      num_consistency_samples: paths of each batch on which self-consistency is taken.
      gradient_clip: on the global norm, of each loss by itself: log-variance gradients are large
        at first, and would leave self-consistency nothing.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.gmm9(), cs.bases.standard_normal(2, scale=5.0)
      >>> algorithm = cs.scds(target, base=base, max_steps=4, first_steps=2, hidden=(8,))
      >>> algorithm.max_steps, cs.scds.paper(target).max_steps
      (4, 128)
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
        check_integer("first_steps", self.first_steps)
        first = min(self.first_steps, self.max_steps)
        schedules.check_num_steps(first, self.max_steps, "first_steps")
        check_integer("num_consistency_samples", self.num_consistency_samples)
        check_choice("control_loss", self.control_loss, CONTROL_LOSSES)
        self.path_loss()

    def path_loss(self) -> PathLoss:
        """The control loss."""
        first = min(self.first_steps, self.max_steps)
        counts = [2**k for k in range(self.max_steps.bit_length()) if 2**k >= first]
        return PathLoss(self.control_loss, self.batch_size, tuple(self.hidden), tuple(counts))

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """Control loss, and self-consistency of the flow's steps; each clipped by itself."""
        key_path, key_pair = jax.random.split(now.rng_key)
        path_loss, iteration = self.path_loss(), now.state.iteration
        which = _stage(iteration, self.steps_iterations, len(path_loss.step_counts))
        temper = annealing(iteration, self.anneal_iterations)
        loss, paths = path_loss(params, now, key_path, evaluate, which=which, temper=temper)
        levels = jnp.asarray([n.bit_length() - 1 for n in path_loss.step_counts])[which]
        level = jnp.where(levels > 0, 1 + _stage(iteration, self.size_iterations, levels), 0)
        gap = jnp.zeros(())
        if self.max_steps > 1:
            gap = self._consistency(params, now, key_pair, paths, level)
        elbo, max_step = batch_elbo(paths.log_weight), 2.0**level / paths.num_steps
        weighted = self.consistency_weight * gap
        info = SCDSInfo(loss + weighted, elbo, gap, paths.num_steps, max_step, loss)
        return Loss((loss, weighted), info)

    def _consistency(
        self, params: Params, now: Now, rng_key: PRNGKey, paths: PathBatch, level: Array
    ) -> Array:
        """Mean squared gap between one step and two, on path points; zero at level zero."""
        num, position = self.num_consistency_samples, paths.position
        steps = draw_steps(rng_key, paths, num, jnp.maximum(level, 1))
        on_path = (jnp.arange(position.shape[1]) <= paths.num_steps)[None, :, None]
        low = jnp.where(on_path, position, jnp.inf).min((0, 1))
        high = jnp.where(on_path, position, -jnp.inf).max((0, 1))

        def gap(component: Component, x: Array, t: Array, d: Array) -> Array:
            u = now.bind(params, component)
            pair = losses.step_pair(u, u, now.control.process, x, t, d, with_jacobians=False)
            if self.clip_aims:
                pair = pair._replace(teacher=jnp.clip(pair.teacher, low, high))
            return losses.state_consistency(pair)

        return jnp.where(level > 0, jax.vmap(gap)(*steps).mean(), 0.0)


def _stage(iteration: Array, num_iterations: int, num_stages: Array | int) -> Array:
    """Stage of a curriculum, 0 .. num_stages - 1: the last one is reached at num_iterations."""
    stage = iteration * (num_stages - 1) // max(num_iterations, 1)
    return jnp.minimum(stage, num_stages - 1)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of the paper, with its curricula, which the release configures but ignores."""
    return paper_settings(
        target,
        batch_size=512,
        learning_rate=5e-3,
        control_loss="log_variance",
        clip_aims=False,
        guidance="interpolated",
        schedule=schedules.linear(0.1, 10.0),
        integrator="euler_maruyama",
    )


scds = on_paths(SCDS, _paper)
