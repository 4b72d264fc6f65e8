"""Calibration: the K-step map trained on its exact likelihood, as a stage after distillation.

Consistency training brings a large step near the flow of the small ones, up to an accumulated
error. Calibration minimises the reverse KL of the discrete map itself,

    E_{x0 ~ p0} [ log p0(x0) - log |det ∂T/∂x0| - log ρ(T(x0)) ],

with the determinant of the step actually taken. Its gradient is the path gradient, whose noise
vanishes as the map's density approaches the target; where a batch folds or weighs too unevenly for
that, the gradient in full. A penalty keeps the symmetric part of every step's Jacobian positive
definite on a ball wider than the base: a map with that property is injective, which is what its
change of variables needs to be a bound.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import losses, simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.batches import antithetic_draws, batch_elbo
from consistent_samplers.algorithms.building import choose_optimizer
from consistent_samplers.algorithms.monotonicity import shortfall_of_monotonicity
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective
from consistent_samplers.bases import Component
from consistent_samplers.checks import check_integer
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.types import Array, Method, Params


class CalibrationInfo(NamedTuple):
    """What one calibration iteration reports, all ``[]``."""

    loss: Array  # reverse KL of this batch, tamed, and the penalty (whatever ``alpha`` is)
    elbo: Array  # exact, of this batch through the map (see `batches.batch_elbo`)
    monotonicity_penalty: Array  # mean squared shortfall of the smallest eigenvalue
    folded: Array  # share of the batch with a determinant that is not positive
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Objective):
    """Settings of calibration, beside those of `Objective`.

    Attributes:
      num_steps: K, the number of steps of the map to calibrate.
      alpha: divergence that is minimised (`losses.pull_weight`): 0 the reverse KL, which ends in
        the tightest ELBO but may leave modes; 1 the importance-weighted forward KL, which covers
        what the draws reach; values between 0 and 1 interpolate.
      monotonicity_weight: of the injectivity penalty; a fold gains up to log 2 nats of reverse KL.
      monotonicity_margin: smallest eigenvalue asked of the Jacobian's symmetric part.
      wide_scale: the penalty is also taken at base draws times this: folds start in the tails.
      tail_share: part of the batch that is drawn from the base widened by 1 + 2 / √dim, and pulled
        along the path only: the map learns there what few draws of the base would teach it.
      calibrated: name and methods of the algorithm that is calibrated, and its default steps.
    """

    learning_rate: Any = 3e-3
    num_steps: int = 1
    alpha: float = 0.0
    monotonicity_weight: float = 1_000.0
    monotonicity_margin: float = 0.05
    wide_scale: float = 1.3
    tail_share: float = 0.0
    calibrated: tuple[str, tuple[Method, ...], int] = ("", ("map",), 1)

    name: ClassVar[str] = "calibration"

    def __post_init__(self) -> None:
        if self.alpha < 0.0:
            raise ValueError(f"alpha must not be negative, got {self.alpha}.")
        if not 0.0 <= self.tail_share < 1.0:
            raise ValueError(f"tail_share must be from 0 to below 1, got {self.tail_share}.")

    @property
    def methods(self) -> tuple[Method, ...]:  # type: ignore[override]
        """Those of the algorithm that is calibrated."""
        return self.calibrated[1]

    @property
    def default_steps(self) -> int:
        """That of the algorithm that is calibrated."""
        return self.calibrated[2]

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The reverse KL along its path gradient, or in full, and the injectivity penalty."""
        control, process, stop = now.control, now.control.process, jax.lax.stop_gradient
        key_base, key_probe = jax.random.split(now.rng_key)
        wider = jnp.asarray(1.0 + 2.0 / control.dim**0.5)
        x0, own = antithetic_draws(
            key_base, self.batch_size, control.dim, wider=wider, tail_share=self.tail_share
        )
        component = control.draw_components(jax.random.fold_in(key_base, 1), self.batch_size)

        def landing(x0: Array, component: Component) -> Array:
            return simulate.flow_map(now.bind(params, component), process, x0, self.num_steps)

        landed = jax.vmap(landing)(x0, component)
        x, correction = jax.vmap(control.place)(landed, component)
        log_rho = evaluate(x) + correction
        log_p0 = jax.vmap(simulate.standard_normal_log_prob)(x0)

        def score(x0: Array, component: Component) -> tuple[Array, Array, Array]:
            u = now.bind(stop(params), component)
            path, of_density = simulate.flow_score(u, process, x0, self.num_steps)
            return path.log_abs_det.sum(), of_density, jnp.any(path.sign <= 0)

        log_abs_det, of_density, folded = stop(jax.vmap(score)(x0, component))
        log_weight = stop(log_rho) - log_p0 + log_abs_det
        # Where the density is zero there is no gradient to learn from: such a draw has no say.
        inside = jnp.isfinite(log_weight)
        elbo = batch_elbo(log_weight, own)
        largest = jnp.where(inside, log_weight, -jnp.inf).max()
        log_weight = jnp.where(inside, log_weight, largest)
        log_rho = jnp.where(inside, log_rho, 0.0)
        pull = losses.pull_weight(log_weight, self.alpha)
        usable = inside & jnp.isfinite(pull) & jnp.isfinite(of_density).all(-1)

        # What is reported, and the gradient in full, are of the base's own draws.
        own = own & inside

        def mean(value: Array) -> Array:
            return jnp.where(own, value, 0.0).sum() / jnp.maximum(own.sum(), 1)

        pull = jnp.where(usable, pull, 0.0)

        def along_path() -> Array:
            # Where T(x0) lies, pulled by the difference of the two scores.
            towards = jnp.sum(jnp.where(usable[:, None], of_density, 0.0) * landed, axis=-1)
            return (pull * (towards - jnp.where(usable, log_rho, 0.0))).mean()

        def in_full() -> Array:
            def log_det(x0: Array, component: Component) -> Array:
                u = now.bind(params, component)
                return simulate.flow_path(u, process, x0, self.num_steps).log_abs_det.sum()

            full = log_rho - log_p0 + jax.vmap(log_det)(x0, component)
            full = jnp.where(inside, full, log_weight)
            return mean(losses.reverse_kl(losses.tame(full)))

        # What the path gradient leaves out has mean zero for injective maps only: where a map
        # folds, the determinant's own gradient is what holds it back. And far from the target its
        # pull is the noisier one.
        away = jnp.where(own, jnp.abs(log_weight - jnp.median(log_weight)), 0.0)
        far = away.max() > losses.TAME_LIMIT
        divergence = jax.lax.cond((folded & own).any() | far, in_full, along_path)
        quarter = -(-self.batch_size // 4)
        x0, component = jax.tree.map(lambda part: part[:quarter], (x0, component))
        penalty = shortfall_of_monotonicity(
            params,
            now,
            key_probe,
            x0,
            component,
            num_steps=self.num_steps,
            wide_scale=self.wide_scale,
            margin=self.monotonicity_margin,
        )
        weighted = self.monotonicity_weight * penalty
        reverse_kl = mean(losses.reverse_kl(losses.tame(log_weight)))
        info = CalibrationInfo(reverse_kl + weighted, elbo, penalty, folded.mean(), elbo)
        return Loss((divergence + weighted,), info)


def calibration(
    algorithm: Algorithm, *, optimizer: optax.GradientTransformation | None = None, **settings: Any
) -> Algorithm:
    """The algorithm that calibrates the ``num_steps``-step map of a trained one.

    Start it from the trained state with ``calibrated.restart(state)``.

    Args:
      algorithm: any algorithm with a deterministic map.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `Calibration`.

    Raises:
      TypeError: the optimiser is none.
      ValueError: ``num_steps`` is not one the algorithm was trained for, or ``alpha`` is negative.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> algorithm = cs.osds(target, base=base, max_steps=2, hidden=(8,), guidance=None)
      >>> state = algorithm.init(jax.random.key(0))  # train it: cs.fit
      >>> calibrated = cs.calibration(algorithm, batch_size=16)
      >>> calibrated.name, int(calibrated.restart(state).iteration)
      ('osds.calibration', 0)
    """
    own = algorithm.objective
    calibrated = (algorithm.name, own.methods, own.default_steps)
    objective = Calibration(max_steps=own.max_steps, calibrated=calibrated, **settings)
    check_num_steps(objective.num_steps, algorithm.control.max_flow_steps)
    check_integer("batch_size", objective.batch_size)
    name, chosen = f"{algorithm.name}.calibration", choose_optimizer(objective, optimizer)
    return dataclasses.replace(algorithm, name=name, objective=objective, optimizer=chosen)
