"""Trajectory balance off policy, with local search (Sendera et al., 2024)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from consistent_samplers.algorithms import local_search, replay
from consistent_samplers.algorithms.batches import PathBatch
from consistent_samplers.algorithms.local_search import Chains
from consistent_samplers.algorithms.objectives import ControlLoss
from consistent_samplers.algorithms.on_paths import on_paths, paper_settings
from consistent_samplers.algorithms.pis import PIS
from consistent_samplers.algorithms.protocol import Evaluate, Loss, Now
from consistent_samplers.algorithms.replay import ReplayBuffer
from consistent_samplers.checks import check_integer
from consistent_samplers.maps import Control
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, ArrayTree, Params, PRNGKey

# Draws by rank are even to within a percent with so large an offset of the ranks.
_EVEN = 100.0


class Searching(NamedTuple):
    """What goes from one iteration to the next."""

    ends: ReplayBuffer  # end points of the sampler's own paths
    found: ReplayBuffer  # points of chains
    chains: Chains


@dataclasses.dataclass(frozen=True, kw_only=True)
class GFlowNet(PIS):
    """Trajectory balance on the sampler's own paths and on paths to points that chains found.

    Sendera, Kim, Mittal, Lemos, Scimeca, Rector-Brooks, Adam, Bengio & Malkin, "Improved off-policy
    training of diffusion samplers", NeurIPS 2024, arXiv:2402.05098. On PIS's Brownian motion, for
    any path x_0, ..., x_K, with a learned log Z,

        L = (log Z + log p0(x_0) + Σ_k [log F(x_{k+1} | x_k) - log B(x_k | x_{k+1})] - log ρ(x_K))².

    Half of the paths are the sampler's own. The others end at points of a buffer and are made up by
    the backward kernels. Local search fills the buffer: chains start from end points of the
    sampler's paths, those of large weight more often, and take a Metropolis-adjusted Langevin step
    on the target an iteration, whose size is adapted to an acceptance of 0.574. Their points are
    asked for together with those of the loss: an iteration has ``batch_size + num_searched`` of
    them. The paper's noise of exploration is left out, and its learned backward kernels are the
    setting ``learned_kernels``.

    Chains climb to the modes nearest to where they start; they do not pass between modes
    that are far apart, nor find one that no path comes near. How many chains are in a mode says
    little of its mass: that is left to the loss. The base must have one component.

    Attributes:
      num_searched: chains; 0 for a buffer of the sampler's own end points alone.
      search_steps: steps of a chain before it starts anew.
      burn_in: steps of a chain before its points are put into the buffer.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.algorithms.gflownet(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.objective.num_replayed, algorithm.init(jax.random.key(0)).memory._fields
      (256, ('ends', 'found', 'chains'))
    """

    loss: ControlLoss = "trajectory_balance"
    replay_share: float = 1.0
    num_searched: int = 64
    search_steps: int = 100
    burn_in: int = 50

    name: ClassVar[str] = "gflownet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_searched", self.num_searched, 0)
        check_integer("search_steps", self.search_steps)
        check_integer("burn_in", self.burn_in, 0)
        if self.burn_in >= self.search_steps:
            raise ValueError(
                f"burn_in={self.burn_in} must be below search_steps={self.search_steps}, or no "
                "point of a chain is ever put into the buffer."
            )
        if self.num_searched and not self.num_replayed:
            raise ValueError("Local search needs a replay_share: nothing else uses its points.")
        if self.num_searched > self.replay_capacity:
            raise ValueError(
                f"replay_capacity must be at least num_searched={self.num_searched}, got "
                f"{self.replay_capacity}."
            )

    def init_memory(self, control: Control, params: Params) -> ArrayTree:
        """The buffers and the chains."""
        ends = super().init_memory(control, params)
        if not self.num_searched:
            return ends
        found = replay.init(self.replay_capacity, control.dim)
        chains = local_search.init(self.num_searched, control.dim, self.search_steps)
        return Searching(ends, found, chains)

    def replayed(self, rng_key: PRNGKey, memory: Any) -> Array:
        """End points ``[num_replayed, dim]``, of chains as soon as there are any."""
        if not self.num_searched:
            return super().replayed(rng_key, memory)
        own = super().replayed(rng_key, memory.ends)
        found = replay.draw(rng_key, memory.found, self.num_replayed, _EVEN)
        return jnp.where(jnp.isfinite(memory.found.log_weight).any(), found, own)

    def remember(self, memory: Any, batch: PathBatch) -> ArrayTree:
        """The memory with the ends of fresh paths."""
        if not self.num_searched:
            return super().remember(memory, batch)
        return memory._replace(ends=super().remember(memory.ends, batch))

    def __call__(self, params: Params, now: Now, evaluate: Evaluate) -> Loss:
        """The loss, and one step of every chain."""
        if not self.num_searched:
            return super().__call__(params, now, evaluate)
        key_loss, key_start, key_move, key_accept = jax.random.split(now.rng_key, 4)
        memory, lifetime = now.state.memory, self.search_steps
        shape = memory.chains.position.shape
        drawn = replay.draw(key_start, memory.ends, self.num_searched)
        starts = jnp.where(memory.ends.num_added > 0, drawn, jax.random.normal(key_start, shape))
        proposals = local_search.propose(key_move, memory.chains, starts, lifetime)
        x, correction = jax.vmap(now.control.place)(proposals.position)
        together = _Together(evaluate, x)
        loss = super().__call__(params, now._replace(rng_key=key_loss), together)

        def in_frame(z: Array, gradient: Array) -> Array:
            x, correction = now.control.place(z)
            return gradient @ x + correction

        gradient = jax.vmap(jax.grad(in_frame))(proposals.position, together.gradients)
        gain = (1.0 + now.state.iteration) ** -0.5
        values, kept = together.values + correction, memory.chains
        chains = local_search.accept(
            key_accept, kept, proposals, values, gradient, lifetime=lifetime, gain=gain
        )
        settled = (chains.age >= self.burn_in) & jnp.isfinite(chains.log_density)
        evenly = jnp.where(settled, 0.0, -jnp.inf)
        found = replay.add(memory.found, chains.position, evenly)
        return loss._replace(memory=loss.memory._replace(found=found, chains=chains))


class _Together:
    """A density that is asked for further points in the same call.

    Their values ``[n]`` and gradients ``[n, dim]`` are kept for after the call.
    """

    values: Array
    gradients: Array

    def __init__(self, evaluate: Evaluate, further: Array) -> None:
        self._evaluate, self._further = evaluate, jax.lax.stop_gradient(further)

    def __call__(self, points: Array) -> Array:
        num, both = points.shape[0], jnp.concatenate([points, self._further])
        log_rho = self._evaluate(both)
        # No second question: the same points, and an answer that is known by now.
        _, pull_back = jax.vjp(self._evaluate, jax.lax.stop_gradient(both))
        (gradients,) = pull_back(jnp.ones_like(log_rho))
        self.values, self.gradients = jax.lax.stop_gradient((log_rho[num:], gradients[num:]))
        return log_rho[:num]


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    settings = {"batch_size": 300, "learning_rate": 1e-3, "search_steps": 200, "burn_in": 100}
    return paper_settings(target, train_steps=(overrides.get("max_steps", 128),), **settings)


gflownet = on_paths(GFlowNet, _paper)
