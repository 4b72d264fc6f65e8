"""What every algorithm is: pure functions over a state, of an objective and a control."""

import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh

from consistent_samplers.algorithms.learning import ask, init_params, init_state, learn
from consistent_samplers.algorithms.protocol import Now, Objective, SamplerState
from consistent_samplers.bases import Base
from consistent_samplers.compilation import as_partial, is_traced
from consistent_samplers.maps import Control
from consistent_samplers.sampler import Sampler, method_of_bound
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Array, ArrayTree, Bound, Draws, Method, Params, PRNGKey

_UNSET: Any = object()


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A trainable sampler.

    Attributes:
      name: label for progress bars and tables.
      target: what is sampled.
      control: the control, its dynamics and its base.
      objective: what is minimised, with its settings.
      optimizer: `Adam`, or an optax transformation.
      extra: constants of the objective.
      start: parameters that training starts from, a teacher's; fresh ones if None.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> algorithm = cs.dis(target, base=base, max_steps=2, hidden=(8,), batch_size=8)
      >>> state = algorithm.init(jax.random.key(0))
      >>> algorithm.sample(jax.random.key(2), state, 16, num_steps=1, weights=False).position.shape
      (16, 2)
    """

    name: str
    target: Target
    control: Control
    objective: Objective
    optimizer: Any
    extra: ArrayTree = ()
    start: Params = None

    @property
    def base(self) -> Base:
        """Where samples start."""
        return getattr(self.control.base, "own", self.control.base)

    @property
    def max_steps(self) -> int:
        """The number N of finest steps."""
        return self.objective.max_steps

    @property
    def methods(self) -> tuple[Method, ...]:
        """Which transitions its draws can take, the default first."""
        return self.objective.methods

    @property
    def asks_outside(self) -> bool:
        """Whether its iterations run with the density outside."""
        return not self.control.guided

    def init(self, rng_key: PRNGKey) -> SamplerState:
        """The parameters that training starts from, and a fresh optimiser."""
        if self.start is not None:
            return self._from_params(self.start)
        evaluate = functools.partial(evaluation.values, self.target.log_density)
        own = self.objective.init(rng_key, self.control, evaluate)
        return self._from_params(init_params(self.control, rng_key) | own)

    def restart(self, state: SamplerState) -> SamplerState:
        """A state to train on from: the moving average of another, with a fresh optimiser.

        The other state may be that of any algorithm with this network.
        """
        return self._from_params(state.ema_params)

    def step(self, rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, Any]:
        """The next state, and a NamedTuple of at least ``loss`` and ``elbo``; pure and jittable."""
        return self._step(rng_key, state, fold=False)

    def advance(self, rng_key: PRNGKey, state: SamplerState) -> tuple[SamplerState, Any]:
        """`step` with the key ``fold_in(rng_key, state.iteration)``: what `fit` repeats."""
        return self._step(rng_key, state, fold=True)

    def sampler(self, state: SamplerState) -> Sampler:
        """The sampler of a state: a pytree without the density and the optimiser."""
        default_steps = self.objective.default_steps
        return Sampler(self.control, state.ema_params, self.max_steps, self.methods, default_steps)

    def sample(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        num_samples: int,
        num_steps: int | None = None,
        *,
        method: Method | None = None,
        weights: bool = True,
        mesh: Mesh | None = None,
        bound: Bound | None = _UNSET,
    ) -> Draws:
        """``num_samples`` draws of a state; see `Sampler.sample`.

        ``bound`` is the earlier spelling of ``method`` and warns.
        """
        if bound is not _UNSET:
            method, weights = method_of_bound(bound, method)
        return self.sampler(state).sample(
            rng_key, self.target, num_samples, num_steps, method=method, weights=weights, mesh=mesh
        )

    def reverse_log_weight(
        self,
        rng_key: PRNGKey,
        state: SamplerState,
        position: Array,
        num_steps: int | None = None,
        *,
        method: Method | None = None,
        bound: Bound | None = _UNSET,
    ) -> Array:
        """Log weights ``[n]`` of given points ``[n, dim]``; see `Sampler.log_weight`."""
        if bound is not _UNSET:
            method, _ = method_of_bound(bound, method)
        return self.sampler(state).log_weight(
            rng_key, self.target, position, num_steps, method=method
        )

    def _from_params(self, params: Params) -> SamplerState:
        return init_state(self.control, params, objective=self.objective, optimizer=self.optimizer)

    def _step(self, rng_key: PRNGKey, state: SamplerState, fold: bool) -> tuple[SamplerState, Any]:
        density = as_partial(self.target.log_density)
        objective, now = self.objective, Now(rng_key, self.control, state, self.extra)
        learned = functools.partial(learn, objective=objective, optimizer=self.optimizer, fold=fold)
        if self.control.guided or is_traced((rng_key, state, density)):
            return learned(density, None, now)
        points = ask(now, objective=objective, fold=fold)
        answer = None if points is None else evaluation.values_and_grads(density, points)
        return learned(None, answer, now)
