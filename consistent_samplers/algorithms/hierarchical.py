"""The hierarchical map, trained by the path gradient of the reverse KL."""

import dataclasses
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp

from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.batches import antithetic_draws, batch_elbo
from consistent_samplers.algorithms.building import build
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective
from consistent_samplers.bases.diagonal import DiagonalBase, fit_diagonal
from consistent_samplers.maps.hierarchical import HierarchicalMap, hierarchical_map
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Params

# Times the median distance between two scores beyond which a draw pulls no more than at it.
_FAR = 4.0
WIDEST = 1.5
"""How much wider than the base globals are drawn for their tails, at most."""


class HierarchicalInfo(NamedTuple):
    """What an iteration reports, all ``[]``."""

    loss: Any  # reverse KL of this batch less log Z
    elbo: Any
    gradient_norm: Any  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hierarchical(Objective):
    """Settings of the hierarchical map's training, beside those of `Objective`.

    The gradient of E[log q(x) - log ρ(x)] over x = T(z) along the path alone (Roeder et al., 2017):

        E[ (∂T/∂θ)ᵀ (∇ log q(x) - ∇ log ρ(x)) ],

    whose noise vanishes as the map's density q approaches the target's. The map's own score comes
    from its inverse.

    Attributes:
      tail_share: part of the batch that is drawn from wider than the base, by 1 + 2 / √dim, and the
        globals by up to a half.
    """

    learning_rate: Any = 1e-2
    batch_size: int = 128
    gradient_clip: float = 50.0
    ema_decay: float = 0.995
    tail_share: float = 0.25

    name: ClassVar[str] = "hierarchical"

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The reverse KL along its path gradient."""
        control, stop = now.control, jax.lax.stop_gradient
        assert isinstance(control, HierarchicalMap)
        num = control.globals.shape[0]
        wider = jnp.full(control.dim, 1.0 + 2.0 / control.dim**0.5)
        # Of the globals' tails a batch sees little, and every member hangs on them.
        wider = wider.at[:num].set(min(1.0 + 2.0 / max(num, 1) ** 0.5, WIDEST))
        z, own = antithetic_draws(
            now.rng_key, self.batch_size, control.dim, wider=wider, tail_share=self.tail_share
        )
        y, log_det = jax.vmap(control.forward, (None, 0))(params, z)
        x = jax.vmap(control.base.unwhiten, (0, None))(y, ())
        correction = control.base.log_correction(x[0], ())
        log_rho = evaluate(x) + correction
        log_weight = stop(log_rho + log_det - jax.vmap(standard_normal_log_prob)(z))

        def log_prob(y: jax.Array) -> jax.Array:
            z, log_det = control.inverse(stop(params), y)
            return standard_normal_log_prob(z) - log_det

        score = jax.vmap(jax.grad(log_prob))(stop(y))
        inside = jnp.isfinite(log_weight) & jnp.isfinite(score).all(-1)
        pull = pulls(log_weight, inside)
        towards = jnp.sum(jnp.where(inside[:, None], score, 0.0) * y, axis=-1)
        along_path = (pull * (towards - jnp.where(inside, log_rho, 0.0))).mean()
        elbo = batch_elbo(jnp.where(inside, log_weight, -jnp.inf), own)
        return Loss((along_path,), HierarchicalInfo(-elbo, elbo, elbo))


def pulls(log_weight: Array, inside: Array) -> Array:
    """What share of its gradient each draw ``[n]`` counts with, zero outside.

    What a draw far out has to say is limited: the median one's distance is the measure.
    """
    away = jnp.where(inside, jnp.abs(log_weight - jnp.median(log_weight)), jnp.inf)
    limit = 1.0 + _FAR * jnp.median(away)
    return jnp.where(inside, jnp.minimum(1.0, limit / jnp.maximum(away, 1e-6)), 0.0)


def hierarchical(
    target: Target,
    control: HierarchicalMap | None = None,
    *,
    base: DiagonalBase | None = None,
    hidden: int = 32,
    optimizer: Any = None,
    **settings: Any,
) -> Algorithm:
    """The algorithm that trains the hierarchical map of a target's structure.

    Args:
      target: the target; without a ``control``, `Target.structure` must not be dense.
      control: a map made before; made of base and structure if None.
      base: a mean-field base; `bases.fit_diagonal` if None.
      hidden: width of the networks of each group.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `Hierarchical`.

    Raises:
      TypeError: the base is of another kind.
      ValueError: the target's structure is dense: nothing takes it apart.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> def log_density(x):
      ...     return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2))
      >>> target = cs.Target(log_density, dim=11)
      >>> base = cs.bases.DiagonalBase(jnp.zeros(11), jnp.ones(11))
      >>> algorithm = cs.algorithms.hierarchical(target, base=base)
      >>> algorithm.init(jax.random.key(0)).params["globals"]["loc"].shape
      (1,)
    """
    if control is None:
        check_structure(target)
        control = hierarchical_map(mean_field(target, base), target.structure, hidden=hidden)
    of_target = cast(Any, control)
    return build(target, Hierarchical(**settings), control=of_target, optimizer=optimizer)


def mean_field(target: Target, base: Any = None) -> DiagonalBase:
    """A mean-field base, fitted if none is given; a TypeError of another one."""
    if base is None:
        return fit_diagonal(jax.random.key(0), target)
    if not isinstance(base, DiagonalBase):
        raise TypeError(
            "A hierarchical map starts from a mean-field base, cs.bases.fit_diagonal(rng_key, "
            f"target), not from a {type(base).__name__}."
        )
    return base


def check_structure(target: Target) -> None:
    """Raises a ValueError unless a target falls apart into globals and members.

    Args:
      target: the target.

    Example:
      >>> import consistent_samplers as cs
      >>> from consistent_samplers.algorithms.hierarchical import check_structure
      >>> target = cs.Target(lambda x: -0.5 * (x**2).sum(), dim=9)
      >>> check_structure(target)
    """
    if target.structure.is_dense:
        raise ValueError(
            f"Target {target.name!r} does not fall apart into members: leave network out "
            '(cs.train_sampler takes a general one, or "structured"), or use cs.osds or another '
            "algorithm."
        )
