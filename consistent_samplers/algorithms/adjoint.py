"""Adjoint sampling (Havens et al., 2025)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers import schedules, simulate
from consistent_samplers.algorithms.batches import batch_elbo
from consistent_samplers.algorithms.on_paths import OnPaths, PathInfo, on_paths, paper_settings
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now
from consistent_samplers.bases import Component
from consistent_samplers.maps import Control
from consistent_samplers.schedules import NoisingRate, annealing
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, ArrayTree, Method, Params, PRNGKey


class EndPoints(NamedTuple):
    """The most recent ends of paths, in the frames of their components."""

    position: Array  # [capacity, dim]
    adjoint: Array  # [capacity, dim], ∇ log(ρ/p0) there
    component: Component  # of the base, stacked
    usable: Array  # [capacity] bool; of what was put in, whether its density is positive
    num_added: Array  # [] int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdjointSampling(OnPaths):
    """Adjoint sampling: the control is regressed on gradients at the ends of its own paths.

    Havens, Miller, Yan, Domingo-Enrich, Sriram, Wood, Levine, Hu, Amos, Karrer, Fu, Liu & Chen,
    "Adjoint Sampling: highly scalable diffusion samplers via adjoint matching", 2025,
    arXiv:2504.11713. Our process is dx = -½β x dt + β a u dt + √β dW with a(t) = exp(-½ ∫_t^1 β);
    uncontrolled, x_1 | x_t ~ N(a x_t, (1 - a²) I), so that the optimal pull

        a u* = ∇_x log E[(ρ/p0)(x_1) | x_t = x] = a E*[g(x_1) | x_t = x],       g = ∇ log(ρ/p0),

    the mean being that of the optimal paths. With a(t) g(x_1) the paper's lean adjoint, in units of
    our control the regression is on g alone:

        min_u  E |u(x_t, t) - g(x_1)|²,     x_t | x_1 ~ N(a x_1, (1 - a²) I).

    Ends x_1 are those of the present control's paths; x_t is drawn anew each time, from the
    uncontrolled process given its end (the reciprocal projection), so an end serves many updates
    for one evaluation of its gradient. The only fixed point is u*. That x_t does not depend on x_0
    takes a memoryless process, a(0) = 0, as the default Brownian motion and the paper's geometric
    noise are. Of one with a(0) > 0 the paths start from p0 and not from the noised target; their
    weights take that into account.

    No path is differentiated, and the density is asked for ``num_fresh`` gradients an iteration.
    Gradients at a few ends are noisy regression targets: where the control itself is wanted to the
    last digit a loss on paths as in `dis` does better.

    Attributes:
      num_fresh: paths simulated in each iteration, whose ends go into the buffer.
      buffer_capacity: ends in the buffer, the most recent ones.
      max_adjoint: largest norm of g, times √dim: longer ones are shortened, as in the paper.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.algorithms.adjoint_sampling(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.methods, algorithm.asks_outside
      (('path', 'map'), True)
    """

    max_steps: int = 128
    batch_size: int = 512
    num_fresh: int = 64
    buffer_capacity: int = 8_192
    max_adjoint: float = 100.0

    name: ClassVar[str] = "adjoint_sampling"
    methods: ClassVar[tuple[Method, ...]] = ("path", "map")
    step_conditioned: ClassVar[bool] = False
    own_schedule: ClassVar[NoisingRate] = schedules.brownian()

    def __post_init__(self) -> None:
        if self.learned_kernels is not None:
            raise ValueError("The regression learns a control only: learned_kernels must be None.")
        if not 1 <= self.num_fresh <= self.buffer_capacity:
            raise ValueError(
                f"num_fresh={self.num_fresh} must be at least 1 and at most "
                f"buffer_capacity={self.buffer_capacity}."
            )
        if not self.max_adjoint > 0.0:
            raise ValueError(f"max_adjoint must be positive, got {self.max_adjoint}.")

    @property
    def default_steps(self) -> int:
        """All of them."""
        return self.max_steps

    def init_memory(self, control: Control, params: Params) -> ArrayTree:
        """An empty buffer."""
        capacity = self.buffer_capacity
        points, usable = jnp.zeros((capacity, control.dim)), jnp.zeros(capacity, bool)
        component = control.draw_components(jax.random.key(0), capacity)
        return EndPoints(points, points, component, usable, jnp.zeros((), jnp.int32))

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The regression on points of the buffer, after fresh ends were put into it."""
        key_path, key_draw, key_time, key_noise = jax.random.split(now.rng_key, 4)
        memory, elbo = self._refreshed(key_path, now, evaluate)
        # Before the first usable end any is drawn, and the loss is zero.
        share = jnp.where(memory.usable.any(), memory.usable, True).astype(float)
        capacity, size = self.buffer_capacity, (self.batch_size,)
        index = jax.random.choice(key_draw, capacity, size, p=share / share.sum())
        end, adjoint, component, usable = jax.tree.map(lambda leaf: leaf[index], memory[:4])
        # The gradient of the tempered log (ρ/p0)^temper.
        adjoint *= annealing(now.state.iteration, self.anneal_iterations)
        t = jax.random.randint(key_time, (self.batch_size,), 0, self.max_steps) / self.max_steps
        b = jax.vmap(lambda t: now.control.process.schedule.integral(t, 1.0))(t)[:, None]
        noise = jax.random.normal(key_noise, end.shape)
        x = jnp.exp(-0.5 * b) * end + jnp.sqrt(-jnp.expm1(-b)) * noise
        d = jnp.asarray(1.0 / self.max_steps)
        found = jax.vmap(lambda c, x, t: now.bind(params, c)(x, t, d))(component, x, t)
        loss = jnp.where(usable, jnp.sum((found - adjoint) ** 2, axis=1), 0.0).mean()
        return Loss((loss,), PathInfo(loss, elbo, jnp.asarray(self.max_steps), loss), memory)

    def _refreshed(self, rng_key: PRNGKey, now: Now, evaluate: Evaluate) -> tuple[EndPoints, Array]:
        """The buffer with fresh ends in place of the oldest, and their `batch_elbo`."""
        control = now.control.on_training_paths()
        memory, params = now.state.memory, now.state.params
        key_base, key_component, key_path = jax.random.split(rng_key, 3)
        z0 = jax.random.normal(key_base, (self.num_fresh, control.dim))
        component = control.draw_components(key_component, self.num_fresh)

        def path(key: PRNGKey, z0: Array, component: Component) -> tuple[Array, Array]:
            kernels = control.kernels(params, component, now.gradient)
            points, log_ratio = simulate.simulate_path(key, z0, kernels, self.max_steps)
            return points[-1], log_ratio.sum() - simulate.standard_normal_log_prob(z0)

        end, log_ratio = jax.vmap(path)(jax.random.split(key_path, self.num_fresh), z0, component)
        finite = jnp.isfinite(end).all(axis=1)
        end = jnp.where(finite[:, None], end, 0.0)
        (x, correction), pull_back = jax.vjp(jax.vmap(control.place), end, component)
        # The first call is where the points are asked for; its derivative is at the same points.
        log_rho = evaluate(x)
        (score,) = jax.vjp(evaluate, x)[1](jnp.ones_like(log_rho))
        score = jnp.where(jnp.isfinite(score), score, 0.0)
        adjoint = pull_back((score, jnp.ones_like(correction)))[0] + end
        length = jnp.linalg.norm(adjoint, axis=1, keepdims=True)
        longest = self.max_adjoint * control.dim**0.5
        adjoint *= longest / jnp.maximum(length, longest)
        fresh = (end, adjoint, component, finite & jnp.isfinite(log_rho))
        slots = (memory.num_added + jnp.arange(self.num_fresh)) % self.buffer_capacity
        kept = jax.tree.map(lambda old, new: old.at[slots].set(new), memory[:4], fresh)
        position, adjoint, component, usable = kept
        added = memory.num_added + self.num_fresh
        log_weight = jnp.where(finite, log_rho + correction + log_ratio, -jnp.inf)
        return EndPoints(position, adjoint, component, usable, added), batch_elbo(log_weight)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    """The paper's geometric noise, on a perceptron from N(0, I)."""
    return paper_settings(target, schedule=schedules.geometric(1_000.0))


adjoint_sampling = on_paths(AdjointSampling, _paper)
