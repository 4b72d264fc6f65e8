"""What objectives that simulate paths of a diffusion share: settings, constructor, presets."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import optax
from jax.typing import DTypeLike

from consistent_samplers import networks, schedules
from consistent_samplers.algorithms import building
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.building import Constructor
from consistent_samplers.algorithms.objectives import PathLoss
from consistent_samplers.algorithms.protocol import Evaluate, Objective
from consistent_samplers.bases import Base, standard_normal
from consistent_samplers.checks import check_choice, check_widths
from consistent_samplers.maps import Control, Guidance, LearnedKernels
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Params, PRNGKey


class PathInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array
    elbo: Array  # of this batch's paths
    num_steps: Array  # of the paths
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPaths(Objective):
    """Settings of every objective that simulates paths, beside those of `Objective`.

    Attributes:
      anneal_iterations: over which the training target passes from the base to ρ, so that modes
        are shared out before they part; 0 for none.
      hidden: widths of the networks' hidden layers.
      guidance: target gradient inside the control, see `maps.Guidance`.
      elementwise_gain: let the network also scale each coordinate of x.
      path_dtype: of the network's hidden layers along the stochastic paths of training alone:
        ``jnp.bfloat16`` is faster where a device is made for it.
      schedule: noising rate; the algorithm's own if None.
      integrator: discretisation of the SDE and the flow.
      learned_kernels: see `maps.LearnedKernels`. Train them at the numbers of steps to be sampled.

    Example:
      >>> import consistent_samplers as cs
      >>> settings = cs.algorithms.OnPaths(max_steps=4, hidden=(8,))
      >>> control = settings.control(cs.bases.standard_normal(2), network="general")
      >>> control.max_flow_steps, control.guided
      (4, False)
    """

    anneal_iterations: int = 100
    hidden: tuple[int, ...] = (64, 64)
    guidance: Guidance = None
    elementwise_gain: bool = True
    path_dtype: DTypeLike | None = None
    schedule: NoisingRate | None = None
    integrator: Integrator = "exponential"
    learned_kernels: LearnedKernels = None

    own_schedule: ClassVar[NoisingRate] = schedules.linear()
    step_conditioned: ClassVar[bool] = True

    def process(self) -> OrnsteinUhlenbeck:
        """The noising process."""
        return OrnsteinUhlenbeck(self.schedule or self.own_schedule, self.integrator)

    def path_loss(self) -> PathLoss | None:
        """The control loss, if any."""
        return None

    def init(self, rng_key: PRNGKey, control: Control, evaluate: Evaluate) -> dict[str, Params]:
        """Parameters of the control loss."""
        loss = self.path_loss()
        return {} if loss is None else loss.init(rng_key, control, evaluate)

    def control(self, base: Base, network: Any) -> Control:
        """What is trained."""
        check_choice("guidance", self.guidance, (None, "ratio", "interpolated"))
        check_choice("learned_kernels", self.learned_kernels, (None, "backward", "both"))
        check_widths(self.hidden)
        dim, hidden = base.dim, tuple(self.hidden)
        general = functools.partial(networks.StepConditionedMLP, dim, hidden, self.elementwise_gain)
        chosen = building.choose_network(network, dim, general, hidden)
        if hasattr(chosen, "split") and self.guidance is not None:
            raise ValueError("network='structured' goes with guidance=None only.")
        if self.path_dtype is not None and not isinstance(chosen, networks.StepConditionedMLP):
            raise ValueError("path_dtype goes with network='general' only.")
        correction = networks.KernelCorrection(dim, hidden)
        # The papers' gate starts at one: an untrained control is the interpolated score.
        gate = networks.Gate(dim, 1.0 if self.guidance == "interpolated" else 0.0)
        sees_step = self.step_conditioned or self.learned_kernels is not None
        control = Control(
            base,
            chosen,
            self.process(),
            self.max_steps,
            self.guidance,
            gate=None if self.guidance is None else gate,
            backward=None if self.learned_kernels is None else correction,
            forward_scale=correction if self.learned_kernels == "both" else None,
            shown_step=None if sees_step else 1.0 / self.max_steps,
            path_dtype=self.path_dtype,
        )
        if not isinstance(network, str):
            building.check_control(control)
        return control


_ARGUMENTS = """
Args:
  target: what to sample.
  base: where samples start; fitted to the target if None.
  network: ``"general"``, ``"structured"``, or one's own (`algorithms.building.choose_network`).
  optimizer: an optax transformation; Adam at ``learning_rate`` if None.
  **settings: see `{}`; the defaults are ours, those of the paper in ``.paper``.

Raises:
  TypeError: no such setting.
  ValueError: base and target differ in dimension, or a setting is out of range.

Example:"""


def on_paths(objective: type[OnPaths], paper: Callable[..., dict[str, Any]]) -> Constructor:
    """The constructor of an objective on paths, whose summary and example it has."""

    def make(
        target: Target,
        *,
        base: Base | None = None,
        network: Any = "general",
        optimizer: optax.GradientTransformation | None = None,
        **settings: Any,
    ) -> Algorithm:
        chosen = objective(**settings)
        schedules.check_max_steps(chosen.max_steps)
        control = chosen.control(building.choose_base(target, base), network)
        return building.build(target, chosen, control=control, optimizer=optimizer)

    summary, _, example = inspect.cleandoc(objective.__doc__ or "").partition("\nExample:")
    summary = summary.partition("\nAttributes:")[0]
    make.__doc__ = summary + _ARGUMENTS.format(objective.__name__) + example
    make.__module__, make.__name__ = objective.__module__, objective.name
    return Constructor(make, objective, paper)


def paper_settings(target: Target, **own: Any) -> dict[str, Any]:
    """What the settings of all papers on paths share, and one paper's own."""
    base = standard_normal(target.dim)
    shared = {"max_steps": 128, "anneal_iterations": 0, "elementwise_gain": False}
    return {"base": base, **shared, **own}


def all_steps(**own: Any) -> Callable[[Target, dict[str, Any]], dict[str, Any]]:
    """The preset of a paper whose training paths take all steps."""

    def settings(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
        train_steps = (overrides.get("max_steps", 128),)
        return paper_settings(target, learning_rate=5e-3, train_steps=train_steps, **own)

    return settings
