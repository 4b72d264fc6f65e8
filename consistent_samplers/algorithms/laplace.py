"""The map by Newton's steps, trained on Laplace's marginal of the globals and members' shapes."""

import dataclasses
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp

from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.batches import antithetic_draws, batch_elbo
from consistent_samplers.algorithms.building import build
from consistent_samplers.algorithms.hierarchical import WIDEST, HierarchicalInfo, mean_field, pulls
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective
from consistent_samplers.bases.diagonal import DiagonalBase
from consistent_samplers.maps.laplace import LaplaceMap, laplace_map
from consistent_samplers.maps.triangular import globals_forward, globals_inverse
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laplace(Objective):
    """Settings of the training, beside those of `Objective`.

    Two reverse KLs, side by side. The globals' is that to Laplace's marginal,

        log ρ(g, m(g)) - ½ log det Λ(g),    Λ = -∂² log ρ / ∂m²  at the mode m(g),

    along its path gradient alone (Roeder et al., 2017), with the derivatives of mode and curvature;
    the members' is that of their conditional, along its path as well, in which globals, modes and
    curvatures are constant.

    Attributes:
      tail_share: part of the batch whose globals are drawn from wider than the base.
    """

    learning_rate: Any = 1e-2
    batch_size: int = 64
    gradient_clip: float = 50.0
    ema_decay: float = 0.995
    tail_share: float = 0.25

    name: ClassVar[str] = "laplace"

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """Both reverse KLs, of one batch."""
        control, gradient, stop = cast(Any, now.control), now.gradient, jax.lax.stop_gradient
        assert isinstance(control, LaplaceMap) and gradient is not None
        num, own = control.globals.shape[0], cast(Any, params)
        wider = jnp.ones(control.dim).at[:num].set(min(1.0 + 2.0 / num**0.5, WIDEST))
        z, counted = antithetic_draws(
            now.rng_key, self.batch_size, control.dim, wider=wider, tail_share=self.tail_share
        )

        def forward(z: Array) -> tuple[Any, ...]:
            at, log_det, features = globals_forward(own["globals"], z[:num])
            still = stop(at)
            modes = stop(control.modes_at(gradient, still))
            (half, roots), by_globals = jax.value_and_grad(
                lambda at: control.half_log_det(gradient, at, modes), has_aux=True
            )(still)
            # At a mode the density changes with the globals alone.
            y = control.point(still, modes)
            score = control.gradient_at(gradient, y)[control.globals] - by_globals
            members, gained = control.members_forward(
                params, stop(features), modes, jax.tree.map(stop, roots), z[num:]
            )
            moved = control.point(still, members)

            def log_prob(y: Array) -> Array:
                given = stop(features), modes, jax.tree.map(stop, roots)
                z, log_det = control.members_inverse(stop(params), *given, y)
                return standard_normal_log_prob(z) - log_det

            # Of the members alone: the globals' part is no function of their shapes.
            own_score = jax.grad(log_prob)(stop(moved))
            return at, log_det, gained, half, score, y, moved, own_score

        at, log_det, gained, half, score, y, moved, own_score = jax.vmap(forward)(z)
        place = jax.vmap(lambda y: control.base.unwhiten(y, ()))
        log_rho = evaluate(jnp.concatenate([stop(place(y)), place(moved)]))
        correction = control.base.log_correction(moved[0], ())
        at_mode, log_rho = jnp.split(log_rho + correction, 2)
        log_weight = stop(log_rho + log_det + gained - jax.vmap(standard_normal_log_prob)(z))

        def log_prob(at: Array) -> Array:
            z, log_det, _ = globals_inverse(stop(own["globals"]), at)
            return standard_normal_log_prob(z) - log_det

        log_q, of_q = jax.vmap(jax.value_and_grad(log_prob))(stop(at))
        marginal = stop(at_mode - half - log_q)
        marginal = jnp.where(jnp.isfinite(marginal), marginal, -jnp.inf)
        inside = jnp.isfinite(marginal + (score + of_q).sum(-1))
        towards = jnp.sum(jnp.where(inside[:, None], stop(of_q - score), 0.0) * at, axis=-1)
        along_path = (pulls(marginal, inside) * towards).mean()
        fine = jnp.isfinite(log_rho) & jnp.isfinite(own_score).all(-1)
        own_score = jnp.where(fine[:, None], stop(own_score), 0.0)
        of_members = jnp.sum(own_score * moved, axis=-1) - jnp.where(fine, log_rho, 0.0)
        elbo = batch_elbo(log_weight, counted)
        return Loss((along_path, of_members.mean()), HierarchicalInfo(-elbo, elbo, elbo))


def laplace(
    target: Target,
    control: LaplaceMap | None = None,
    *,
    base: DiagonalBase | None = None,
    optimizer: Any = None,
    **settings: Any,
) -> Algorithm:
    """The algorithm of a target whose members depend on globals alone, by their modes.

    Args:
      target: the target; without a ``control`` its structure is to have `Structure.blocks`.
      control: a map made before; made around ``base`` if None.
      base: a mean-field base; `bases.fit_diagonal` if None.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `Laplace`.

    Raises:
      TypeError: the base is of another kind.
      ValueError: the target has no members that depend on globals alone.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> def log_density(x):
      ...     return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2))
      >>> target = cs.Target(log_density, dim=11)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(11), jnp.ones(11))
      >>> algorithm = cs.algorithms.laplace(target, base=base)
      >>> algorithm.init(jax.random.key(0)).params["globals"]["loc"].shape
      (1,)
    """
    if control is None:
        control = laplace_map(target, mean_field(target, base))
    of_target = cast(Any, control)
    return build(target, Laplace(**settings), control=of_target, optimizer=optimizer)
