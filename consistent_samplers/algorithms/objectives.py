"""Control losses over batches of paths: what makes small steps a correct sampler.

Two kinds. Reverse KL differentiates through the simulation. The others take the paths as given,
from wherever they come, and differentiate their weights only: no back-propagation through time,
and a replay buffer may supply some of the paths.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from consistent_samplers import losses, networks, simulate
from consistent_samplers.algorithms.base import check_choice
from consistent_samplers.algorithms.control import Control
from consistent_samplers.bases import Component
from consistent_samplers.sharding import shard_batch
from consistent_samplers.types import Array, LogDensityFn, Params, PRNGKey

ControlLoss: TypeAlias = Literal[
    "reverse_kl",
    "path_gradient",
    "log_variance",
    "trajectory_balance",
    "sub_trajectory_balance",
]
CONTROL_LOSSES: tuple[ControlLoss, ...] = (
    "reverse_kl",
    "path_gradient",
    "log_variance",
    "trajectory_balance",
    "sub_trajectory_balance",
)
ON_POLICY: tuple[ControlLoss, ...] = ("reverse_kl", "path_gradient")

# The learned log Z moves this many times faster than the networks' weights.
_LOG_Z_RATE = 10.0


class PathBatch(NamedTuple):
    """Paths simulated for one iteration; no gradient.

    Attributes:
      position: ``[batch_size, num_steps + 1, dim]``.
      log_weight: ``[batch_size]``.
      component: of the base, in whose frame each path runs.
    """

    position: Array
    log_weight: Array
    component: Component = ()


class PathLossFn(Protocol):
    """``(params, rng_key, num_steps, *, temper=1, replayed=None) -> (loss, PathBatch)``."""

    def __call__(
        self,
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        *,
        temper: Array | float = 1.0,
        replayed: Array | None = None,
    ) -> tuple[Array, PathBatch]:
        """The loss ``[]`` of a fresh batch, and of paths to end points ``[n, dim]`` if given.

        Trains towards p0^(1 - temper) ρ^temper; the batch's weights are those of ρ.
        """
        ...


class Objective(NamedTuple):
    """A control loss.

    Attributes:
      init: ``(rng_key) -> dict`` of the loss's own parameters.
      path_loss: the loss.
    """

    init: Callable[[PRNGKey], dict[str, Params]]
    path_loss: PathLossFn


def build_objective(
    control: Control,
    dim: int,
    *,
    loss: ControlLoss,
    batch_size: int,
    hidden: tuple[int, ...],
    segment_share: float = 0.25,
) -> Objective:
    """A control loss by its name.

    Args:
      control: what is trained.
      dim: dimension of the target.
      loss: ``"reverse_kl"`` (Zhang & Chen, 2022; Berner et al., 2024), ``"path_gradient"`` the
        same without the score term, whose mean is zero (Roeder et al., 2017; Vaitl et al., 2022),
        ``"log_variance"`` (Richter & Berner, 2024), ``"trajectory_balance"`` with a learned log Z,
        or ``"sub_trajectory_balance"`` with a learned flow, on a stretch of each path.
      batch_size: paths simulated an iteration.
      hidden: widths of the flow's hidden layers.
      segment_share: length of the stretch, as a share of the path.

    Raises:
      ValueError: no such loss.
    """
    check_choice("loss", loss, CONTROL_LOSSES)
    log_flow = networks.scalar_mlp(dim, hidden=hidden)

    def init(rng_key: PRNGKey) -> dict[str, Params]:
        if "trajectory_balance" not in loss:
            return {}
        key_base, key_flow = jax.random.split(rng_key)
        # Start log Z where the base alone sees it: the weights of a posterior may be far from 1.
        z = jax.random.normal(key_base, (512, dim))
        component = control.draw_components(jax.random.fold_in(key_base, 1), 512)
        log_rho = jax.vmap(lambda z, c: control.at(c).log_density(z))(z, component)
        log_weight = log_rho - jax.vmap(simulate.standard_normal_log_prob)(z)
        start = jnp.median(jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf))
        params = {"log_z": jnp.where(jnp.isfinite(start), start, 0.0) / _LOG_Z_RATE}
        if loss == "sub_trajectory_balance":
            params["log_flow"] = log_flow.init(key_flow)
        return params

    def tempered(component: Component, temper: Array | float) -> LogDensityFn:
        """The training target in a frame."""
        log_density = control.at(component).log_density

        def log_rho(x: Array) -> Array:
            return (1.0 - temper) * simulate.standard_normal_log_prob(x) + temper * log_density(x)

        return log_rho

    def simulate_paths(
        params: Params, rng_key: PRNGKey, num_steps: int, temper: Array | float
    ) -> tuple[simulate.StochasticPath, Component]:
        key_base, key_path = jax.random.split(rng_key)
        x0 = shard_batch(jax.random.normal(key_base, (batch_size, dim)))
        keys = jax.random.split(key_path, batch_size)
        component = control.draw_components(jax.random.fold_in(key_base, 1), batch_size)

        def one(key: PRNGKey, x: Array, component: Component) -> simulate.StochasticPath:
            here = control.at(component).on_training_paths()
            kernels, weighing = here.kernels(params), None
            if loss == "path_gradient":
                still = here.kernels(jax.lax.stop_gradient(params))
                weighing = kernels._replace(forward=still.forward)
            log_rho = tempered(component, temper)
            return simulate.stochastic_path(
                key, x, kernels, log_rho, num_steps, density_kernels=weighing
            )

        return jax.vmap(one)(keys, x0, component), component

    def given_loss(
        params: Params,
        rng_key: PRNGKey,
        position: Array,
        component: Component,
        num_steps: int,
        temper: Array | float,
    ) -> Array:
        """Loss of given paths ``[n, num_steps + 1, dim]``."""
        if loss != "sub_trajectory_balance":

            def path_log_weight(path: Array, component: Component) -> Array:
                kernels = control.at(component).on_training_paths().kernels(params)
                log_ratio = simulate.path_log_ratio(path, kernels, num_steps)
                return simulate.path_log_weight(path, log_ratio, tempered(component, temper))

            log_weight = jax.vmap(path_log_weight)(position, component)
            log_weight = losses.tame(log_weight)
            if loss == "log_variance":
                return losses.log_variance(log_weight).mean()
            log_z = _LOG_Z_RATE * params["log_z"]
            return losses.trajectory_balance(log_weight, log_z).mean()

        length = max(1, round(segment_share * num_steps))
        first = jax.random.randint(rng_key, (position.shape[0],), 0, num_steps - length + 1)

        def segment_loss(path: Array, first: Array, component: Component) -> Array:
            kernels = control.at(component).on_training_paths().kernels(params)
            stretch = jax.lax.dynamic_slice_in_dim(path, first, length + 1)
            log_ratio = simulate.path_log_ratio(stretch, kernels, num_steps, first)
            index = first + jnp.arange(length + 1)
            log_p0 = jax.vmap(simulate.standard_normal_log_prob)(stretch)
            log_rho = jax.vmap(tempered(component, temper))(stretch)
            t = index / num_steps
            learned = jax.vmap(lambda x, t: log_flow.apply(params["log_flow"], x, t))(stretch, t)
            log_z = _LOG_Z_RATE * params["log_z"]
            # Between the ends a geometric path of densities, corrected by the network.
            middle = (1.0 - t) * (log_z + log_p0) + t * log_rho + learned
            flow = jnp.where(index == 0, log_z + log_p0, middle)
            flow = jnp.where(index == num_steps, log_rho, flow)
            return losses.sub_trajectory_balance(flow, log_ratio)

        return jax.vmap(segment_loss)(position, first, component).mean()

    def path_loss(
        params: Params,
        rng_key: PRNGKey,
        num_steps: int,
        *,
        temper: Array | float = 1.0,
        replayed: Array | None = None,
    ) -> tuple[Array, PathBatch]:
        key_fresh, key_replay, key_segment = jax.random.split(rng_key, 3)
        stop = jax.lax.stop_gradient

        def batch(paths: simulate.StochasticPath, component: Component) -> PathBatch:
            def untempered(x: Array, component: Component) -> Array:
                return control.at(component).log_density(x) - tempered(component, temper)(x)

            change = jax.vmap(untempered)(paths.position[:, -1], component)
            return PathBatch(stop(paths.position), stop(paths.log_weight + change), component)

        if loss in ON_POLICY:
            paths, component = simulate_paths(params, key_fresh, num_steps, temper)
            return losses.reverse_kl(paths.log_weight).mean(), batch(paths, component)
        paths, component = simulate_paths(stop(params), key_fresh, num_steps, temper)
        fresh = batch(paths, component)
        position = paths.position
        if replayed is not None:
            kernels = control.kernels(stop(params))
            keys = jax.random.split(key_replay, replayed.shape[0])
            back = jax.vmap(lambda k, x: simulate.backward_path(k, x, kernels, num_steps))
            position = jnp.concatenate([position, back(keys, replayed)])
        # A path that ran off to infinity teaches nothing, and would make every gradient NaN.
        log_rho = jax.vmap(lambda x, c: tempered(c, temper)(x))(position[:, -1], component)
        good = jnp.isfinite(position).all(axis=(1, 2)) & jnp.isfinite(log_rho)
        position = stop(jnp.where(good[:, None, None], position, 0.0))
        return given_loss(params, key_segment, position, component, num_steps, temper), fresh

    return Objective(init, path_loss)


def annealing(iteration: Array, num_iterations: int) -> Array:
    """Exponent of the tempered target: rises from 0 to 1 as (i / num_iterations)², ``[]``.

    While it is small the modes are joined, and mass settles among them evenly; a control that is
    shown the bare target from the start runs to the mode that it meets first. Slow at first, since
    a peaked density bites at small exponents.
    """
    return jnp.minimum(1.0, (iteration + 1.0) / max(num_iterations, 1)) ** 2
