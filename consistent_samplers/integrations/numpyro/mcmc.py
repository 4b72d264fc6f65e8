"""Markov chains whose proposals are one-step draws: asymptotically exact posterior samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from consistent_samplers.bases import Base, Component
from consistent_samplers.corrections.latent import WeighFn, warn_of_rounding, weigh_latent
from consistent_samplers.corrections.metropolis import NUM_STARTS, accept, choose_start
from consistent_samplers.integrations.numpyro.model import Samples
from consistent_samplers.integrations.numpyro.sampler import OneStepSampler
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.types import Array, PRNGKey


class OneStepMHState(NamedTuple):
    """State of one chain; ``extra_fields`` of ``MCMC.run`` may name its fields.

    Attributes:
      i: ``[]`` int, iterations done.
      z: unconstrained latent sites by name.
      latent: ``[dim]``, the point of the base that the map takes there.
      component: of the base that it was drawn from.
      log_weight: ``[]``, exact log importance weight.
      accept_prob: ``[]``, of this iteration's proposal.
      mean_accept_prob: ``[]``, over the iterations since the warm-up.
      inner: state of the inner kernel, or an empty tuple.
      rng_key: key of the next iteration.

    Example:
      >>> from consistent_samplers.integrations.numpyro import OneStepMHState
      >>> OneStepMHState._fields[:4]
      ('i', 'z', 'latent', 'component')
    """

    i: Array
    z: Samples
    latent: Array
    component: Component
    log_weight: Array
    accept_prob: Array
    mean_accept_prob: Array
    inner: Any
    rng_key: PRNGKey


class OneStepMH(MCMCKernel):
    """Independence Metropolis-Hastings with one-step draws as proposals (Tierney 1994).

    A proposal is accepted with probability min(1, w' / w), w the exact importance weight. The
    chain's law tends to the posterior however good the sampler is: quickly where its weights are
    even, and never to modes that it does not reach. It needs no warm-up of its own.

    An inner kernel makes one move after each proposal, in the sampler's latent space, where a good
    sampler has left a standard normal. It explores what the proposals miss, is adapted during the
    warm-up, and costs gradients of log-determinants.

    Args:
      sampler: the sampler that proposes. If nothing is trained yet, the first run trains it.
      inner: makes the inner kernel of a model: ``numpyro.infer.NUTS``, or say
        ``functools.partial(numpyro.infer.HMC, trajectory_length=1.0)``. Give it some warm-up.

    Raises:
      TypeError: ``sampler`` is no `OneStepSampler`, or ``inner`` is not callable.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist
      >>> from numpyro.infer import MCMC
      >>> from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler
      >>> def model():
      ...     numpyro.sample("x", dist.Normal(0.0, 1.0))
      >>> kernel = OneStepMH(OneStepSampler(model))
      >>> mcmc = MCMC(kernel, num_warmup=0, num_samples=2_500, progress_bar=False)
      >>> mcmc.run(jax.random.key(0), extra_fields=("accept_prob",))  # doctest: +SKIP
      >>> mcmc.get_samples()["x"].shape  # doctest: +SKIP
      (2500,)
    """

    def __init__(
        self, sampler: OneStepSampler, inner: Callable[..., MCMCKernel] | None = None
    ) -> None:
        if not isinstance(sampler, OneStepSampler):
            raise TypeError(
                f"sampler must be a OneStepSampler of the model, got {type(sampler).__name__}."
            )
        if inner is not None and not callable(inner):
            raise TypeError(
                "inner must make a kernel of a model, such as numpyro.infer.NUTS itself, got "
                f"{type(inner).__name__}."
            )
        self._sampler = sampler
        self._inner = None if inner is None else inner(self._latent_model)
        self._num_warmup = 0

    @property
    def model(self) -> Callable[..., Any]:
        """The NumPyro model."""
        return self._sampler.model

    @property
    def sample_field(self) -> str:
        """Name of the state's field that is collected."""
        return "z"

    def get_diagnostics_str(self, state: OneStepMHState) -> str:
        """The mean acceptance probability, for the progress bar."""
        return f"acc. prob={float(state.mean_accept_prob):.2f}"

    def init(
        self,
        rng_key: PRNGKey,
        num_warmup: int,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> OneStepMHState:
        """State of one chain, or of several where ``rng_key`` holds several keys.

        Raises:
          ValueError: ``init_params`` is given; or as `OneStepSampler.run`.
          RuntimeError: nothing is trained, and training is impossible inside ``jax.pmap``.
        """
        if init_params is not None:
            raise ValueError(
                "OneStepMH starts its chains from draws of the sampler: leave init_params out."
            )
        single = is_prng_key(rng_key)
        if not self._sampler.is_trained and isinstance(rng_key, jax.core.Tracer):
            raise RuntimeError(
                "Chains in parallel cannot train the sampler, which happens on one device first: "
                "call sampler.train(rng_key, ...) or sampler.run(rng_key, ...) before MCMC.run."
            )
        self._sampler.ensure_trained(rng_key if single else rng_key[0], *model_args, **model_kwargs)
        if not isinstance(rng_key, jax.core.Tracer):
            warn_of_rounding(self._base, self._sampler.flat_model.target)
        self._num_warmup = num_warmup
        return self._init_one(rng_key) if single else jax.vmap(self._init_one)(rng_key)

    def sample(
        self, state: OneStepMHState, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> OneStepMHState:
        """One iteration of one chain, or of several.

        Raises:
          ValueError: under ``MCMC(..., jit_model_args=True)``, whose compiled chain would go on
            with the data that it was compiled for.
        """
        leaves = jax.tree.leaves((model_args, model_kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            raise ValueError(
                "OneStepMH proposes for one data set, and jit_model_args=True compiles a chain for "
                "any: leave jit_model_args out of MCMC(...)."
            )
        if is_prng_key(state.rng_key):
            return self._sample_one(state)
        return jax.vmap(self._sample_one)(state)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Samples], Samples]:
        """Unconstrained sites to constrained and deterministic ones."""
        return self._sampler.flat_model.constrain_sites

    def _weigh(self) -> WeighFn:
        trained, num_steps = self._sampler.trained, self._sampler.num_steps
        return weigh_latent(trained.sampler_for(num_steps), trained.target, num_steps)

    @property
    def _base(self) -> Base:
        return self._sampler.trained.sampler_for(self._sampler.num_steps).base

    def _propose(self, rng_key: PRNGKey) -> tuple[Samples, Array, Component, Array]:
        """Sites, latent point, component and log weight of a draw."""
        key_component, key_latent = jax.random.split(rng_key)
        base = self._base
        component = base.draw_component(key_component)
        latent = jax.random.normal(key_latent, (base.dim,))
        point = self._weigh()(latent, component)
        z = self._sampler.flat_model.functions.unravel(point.position)
        return z, latent, component, point.log_weight

    def _latent_model(self, component: Component) -> None:
        """The target within a component of the base, as a model for the inner kernel."""
        space = dist.ImproperUniform(dist.constraints.real_vector, (), (self._base.dim,))
        latent = numpyro.sample("latent", space)
        with numpyro.handlers.block():  # the density is a model of its own
            log_weight = self._weigh()(latent, component).log_weight
        numpyro.factor("target", standard_normal_log_prob(latent) + log_weight)

    def _init_one(self, rng_key: PRNGKey) -> OneStepMHState:
        key_starts, key_choice, key_inner, key_next = jax.random.split(rng_key, 4)
        starts = jax.vmap(self._propose)(jax.random.split(key_starts, NUM_STARTS))
        z, latent, component, log_weight = choose_start(key_choice, starts, starts[3])
        inner: Any = ()
        if self._inner is not None:
            start = {"latent": latent}
            inner = self._inner.init(key_inner, self._num_warmup, start, (component,), {})
        i, zero = jnp.zeros((), int), jnp.zeros((), log_weight.dtype)
        return OneStepMHState(i, z, latent, component, log_weight, zero, zero, inner, key_next)

    def _sample_one(self, state: OneStepMHState) -> OneStepMHState:
        key_propose, key_accept, key_next = jax.random.split(state.rng_key, 3)
        proposed = self._propose(key_propose)
        current = (state.z, state.latent, state.component, state.log_weight)
        accept_prob, accepted = accept(key_accept, proposed[3], state.log_weight)
        z, latent, component, log_weight = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), proposed, current
        )
        inner = state.inner
        if self._inner is not None:
            # The inner kernel caches the density where it last was, in another component perhaps.
            inner = self._inner.refresh(inner._replace(z={"latent": latent}), (component,), {})
            inner = self._inner.sample(inner, (component,), {})
            latent = inner.z["latent"]
            moved = self._weigh()(latent, component)
            z = self._sampler.flat_model.functions.unravel(moved.position)
            log_weight = moved.log_weight
        i = state.i + 1
        num = jnp.where(i <= self._num_warmup, i, i - self._num_warmup)
        mean = state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / num
        return OneStepMHState(
            i, z, latent, component, log_weight, accept_prob, mean, inner, key_next
        )
