"""Contrastive energy prediction, CEP (Lu, Chen, Chen, Su, Li & Zhu, 2023)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consistent_samplers import schedules, simulate
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.batches import batch_elbo
from consistent_samplers.algorithms.building import (
    Constructor,
    build,
    check_control,
    choose_base,
    choose_network,
)
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now, Objective
from consistent_samplers.bases import Base, Component, standard_normal
from consistent_samplers.checks import check_integer
from consistent_samplers.maps import Control
from consistent_samplers.networks import Potential
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.schedules import NoisingRate
from consistent_samplers.sharding import shard_batch
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Method, Params


class ContrastiveInfo(NamedTuple):
    """What one training iteration reports, all ``[]``."""

    loss: Array  # cross-entropy less the entropy of the weights; what noising blurs remains
    elbo: Array  # of the base's draws: training makes no others
    ess: Array  # share of effective ones among them
    gradient_norm: Array  # before clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Settings of contrastive energy prediction, beside those of `Objective`.

    Attributes:
      num_times: times t of an iteration; all candidates are noised to each.
      hidden: widths of the network's hidden layers.
      schedule: noising rate; β from 10 to 0.01 as cos² if None.
    """

    max_steps: int = 128
    batch_size: int = 512
    learning_rate: Any = 3e-3
    num_times: int = 4
    hidden: tuple[int, ...] = (64, 64)
    schedule: NoisingRate | None = None

    name: ClassVar[str] = "contrastive"
    methods: ClassVar[tuple[Method, ...]] = ("path", "map", "heuristic")

    def __post_init__(self) -> None:
        schedules.check_max_steps(self.max_steps)
        check_integer("num_times", self.num_times)
        check_integer("batch_size, the number of candidates to tell apart,", self.batch_size, 2)

    @property
    def default_steps(self) -> int:
        """All of them."""
        return self.max_steps

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The divergence of the network's shares of the candidates from those of their weights."""
        control, num = now.control, self.batch_size
        key_base, key_component, key_time, key_noise = jax.random.split(now.rng_key, 4)
        z = shard_batch(jax.random.normal(key_base, (num, control.dim)))
        component = control.draw_components(key_component, num)
        x, correction = jax.vmap(control.place)(z, component)
        log_weight = evaluate(x) + correction - jax.vmap(simulate.standard_normal_log_prob)(z)
        log_weight = jax.lax.stop_gradient(log_weight)
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        # A batch without a weight says nothing: all shares are alike, and have no gradient.
        any_weight = jnp.isfinite(log_weight).any()
        log_share = jax.nn.log_softmax(jnp.where(any_weight, log_weight, 0.0))
        share = jnp.exp(log_share)
        d = jnp.asarray(control.shown_step)

        def energy(x: Array, t: Array, component: Component) -> Array:
            features = control.base.features(component)
            more = {} if features is None else {"features": features}
            own = params["control"]
            scalar: Any = control.network.apply(own, x, t, d, method="scalar", **more)
            return control.process.signal(t) * scalar

        def divergence(t: Array, noise: Array) -> Array:
            a = control.process.signal(t)
            noised = a * z + jnp.sqrt(1.0 - a**2) * noise
            found = jax.nn.log_softmax(jax.vmap(energy, (0, None, 0))(noised, t, component))
            return jnp.where(share > 0.0, share * (log_share - found), 0.0).sum()

        # One time in each of equal parts of [0, 1].
        offset = jax.random.uniform(key_time, (self.num_times,))
        times = (jnp.arange(self.num_times) + offset) / self.num_times
        noise = jax.random.normal(key_noise, (self.num_times, num, control.dim))
        loss = jnp.where(any_weight, jax.vmap(divergence)(times, noise).mean(), 0.0)
        ess = jnp.where(any_weight, 1.0 / (num * jnp.sum(share**2)), 0.0)
        return Loss((loss,), ContrastiveInfo(loss, batch_elbo(log_weight), ess, loss))


def _contrastive(
    target: Target,
    *,
    base: Base | None = None,
    network: Any = "general",
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Algorithm:
    """Contrastive energy prediction: the control learned from weighted draws of the base alone.

    Lu, Chen, Chen, Su, Li & Zhu, "Contrastive energy prediction for exact energy-guided diffusion
    sampling in offline reinforcement learning", ICML 2023, arXiv:2304.12824. The target is the base
    reweighted, ρ = p0 e^ℓ with ℓ = log(ρ/p0), and noised, in the base's frame where the noising
    keeps p0 = N(0, I),

        p_t(x) ∝ p0(x) e^{f(x, t)},    f(x, t) = log E[e^{ℓ(x_1)} | x_t = x],    x_1 ~ p0.

    A scalar network is to tell K candidates x_1 ~ p0 by their noised x_t = a x_1 + √(1 - a²) ε as
    their weights do,

        L = -E_t Σ_i softmax(ℓ(x_1))_i log softmax(f(x_t, t))_i,

    which is least at f, up to a constant and to O(1/K): the paper's weights are not divided by
    their sum, ours are. The noised score is -x + ∇f, and -x + a(t) u in terms of the control
    (`processes.OrnsteinUhlenbeck.score`), so that f = a(t) φ with u = ∇φ: the network is
    `networks.Potential`. An iteration asks for the density of ``batch_size`` base draws, whatever
    the number of steps, and simulates nothing; draws and weights are those of ``cs.dis``.

    It learns from what the base draws. Where those hardly reach, at a target that is wider than the
    base or far from it, a few candidates have all the weight (``ess`` of an iteration) and there is
    nothing to learn from: fit the base first.

    Args:
      target: what to sample.
      base: where samples start; fitted to the target if None.
      network: ``"general"``, or a linen module like `networks.Potential`, with a method ``scalar``.
      optimizer: an optax transformation; Adam at ``learning_rate`` if None.
      **settings: see `Contrastive`.

    Raises:
      TypeError: no such setting, or a network without a scalar.
      ValueError: base and target differ in dimension, or a setting is out of range.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2, scale=2.0)
      >>> algorithm = cs.algorithms.contrastive(target, base=base, max_steps=4, hidden=(8,))
      >>> state, info = algorithm.step(jax.random.key(1), algorithm.init(jax.random.key(0)))
      >>> bool(0.0 < info.ess < 1.0)
      True
    """
    objective, base = Contrastive(**settings), choose_base(target, base)
    hidden = tuple(objective.hidden)
    chosen = choose_network(network, base.dim, lambda: Potential(base.dim, hidden), hidden)
    if not hasattr(chosen, "scalar"):
        raise TypeError(
            "cs.algorithms.contrastive needs a network that is the gradient of a scalar, with a "
            f"method scalar like cs.networks.Potential's, got {type(chosen).__name__}."
        )
    process = OrnsteinUhlenbeck(objective.schedule or schedules.cosine())
    control = Control(
        base, chosen, process, objective.max_steps, shown_step=1.0 / objective.max_steps
    )
    if not isinstance(network, str):
        check_control(control)
    return build(target, objective, control=control, optimizer=optimizer)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The base in place of the behaviour policy, and the schedule of Song et al. (2021)."""
    return {"base": standard_normal(target.dim), "schedule": schedules.linear(0.1, 20.0)}


contrastive = Constructor(_contrastive, Contrastive, _paper)
