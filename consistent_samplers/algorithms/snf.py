"""Stochastic normalising flows, SNF (Wu, Köhler & Noé, 2020)."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import networks, schedules, simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.batches import batch_elbo
from consistent_samplers.algorithms.building import Constructor, build, choose_base, choose_network
from consistent_samplers.algorithms.on_paths import PathInfo
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective
from consistent_samplers.bases import Base, Component, standard_normal
from consistent_samplers.maps import Control, StochasticFlow
from consistent_samplers.processes import Integrator, OrnsteinUhlenbeck
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Method, Params, PRNGKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class SNF(Objective):
    """Stochastic normalising flow: learned layers and Langevin layers by turns, exact weights.

    Wu, Köhler & Noé, "Stochastic normalizing flows", NeurIPS 2020, arXiv:2002.06707. Each of
    ``max_steps`` layers is an injective step y = x + c u(x, t, d), and then a Langevin step towards
    π_{t+d} ∝ p0^{1-λ} ρ^λ, λ = λ(t + d),

        log w = log ρ(x_K) - log p0(x_0) + Σ [log |det ∂y/∂x| + log K(y | x') - log K(x' | y)]

    with the Langevin kernel K of the layer that leads to x' (equations 9 to 12), and E[w] = Z for
    any parameters. The loss is the reverse KL, -E[log w], differentiated through all layers. The
    steps' network has a determinant by parts and folds nowhere (`networks.Structured`), so that
    the weights are a bound by construction. λ and the length of the Langevin steps are learned too.

    Every layer evaluates the target's gradient twice, and the loss its second derivatives. Reverse
    KL leaves modes that the base does not cover to the Langevin steps, which are local.

    Attributes:
      hidden: widths, of which the largest is the number of hidden units of a step.
      schedule: of the Langevin steps' lengths, untrained; a constant rate of 1 if None.
      integrator: of the Langevin steps.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.algorithms.snf(target, base=base, max_steps=4, hidden=(8,))
      >>> algorithm.methods, algorithm.objective.default_steps
      (('path',), 4)
    """

    max_steps: int = 8
    learning_rate: Any = 5e-3
    hidden: tuple[int, ...] = (64,)
    schedule: NoisingRate | None = None
    integrator: Integrator = "exponential"

    name: ClassVar[str] = "snf"
    methods: ClassVar[tuple[Method, ...]] = ("path",)

    @property
    def default_steps(self) -> int:
        """All layers."""
        return self.max_steps

    def control(self, base: Base, network: Any) -> Control:
        """What is trained."""
        general = functools.partial(networks.StepConditionedMLP, base.dim, tuple(self.hidden))
        chosen = choose_network(network, base.dim, general, tuple(self.hidden))
        if not hasattr(chosen, "split"):
            raise ValueError(
                "Layers need a network whose steps fold nowhere: network='structured', or a module "
                "with a split, as cs.networks.Structured has."
            )
        process = OrnsteinUhlenbeck(self.schedule or schedules.constant(1.0), self.integrator)
        return StochasticFlow(base, chosen, process, 0)

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The reverse KL of whole paths."""
        control: Any = now.control
        key_base, key_component, key_path = jax.random.split(now.rng_key, 3)
        z0 = jax.random.normal(key_base, (self.batch_size, control.dim))
        component = control.draw_components(key_component, self.batch_size)

        def path(key: PRNGKey, z0: Array, component: Component) -> tuple[Array, Array]:
            followed = control.follow(params, key, z0, component, self.max_steps, now.gradient)
            x, correction = control.place(followed[0], component)
            return x, followed[1] + correction - simulate.standard_normal_log_prob(z0)

        keys = jax.random.split(key_path, self.batch_size)
        x, log_ratio = jax.vmap(path)(keys, z0, component)
        log_weight = evaluate(x) + log_ratio
        good = jnp.isfinite(log_weight)
        # Paths that leave the support say nothing of where to turn.
        mean = jnp.where(good, log_weight, 0.0).sum() / jnp.maximum(good.sum(), 1)
        elbo = batch_elbo(log_weight)
        return Loss((-mean,), PathInfo(-mean, elbo, jnp.asarray(self.max_steps), -mean))


def _snf(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "structured",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """Stochastic normalising flow (Wu, Köhler & Noé, 2020, arXiv:2002.06707); see `SNF`.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"structured"``, or one's own with a ``split``.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `SNF`.

    Raises:
      TypeError: no such setting.
      ValueError: base and target differ in dimension, a network that may fold, or a setting out of
        range.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> cs.algorithms.snf(target, base=base, max_steps=4).name
      'snf'
    """
    objective = SNF(**settings)
    schedules.check_max_steps(objective.max_steps)
    control = objective.control(choose_base(target, base), network)
    return build(target, objective, control=control, optimizer=optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """From N(0, I), with Euler's Langevin steps."""
    return {"base": standard_normal(target.dim), "integrator": "euler_maruyama"}


snf = Constructor(_snf, SNF, _paper)
