"""Control losses over batches of paths: what makes small steps a correct sampler.

Two kinds. Reverse KL differentiates through the simulation. The others take the paths as given,
from wherever they come, and differentiate their weights only: no back-propagation through time,
and a replay buffer may supply some of the paths.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from consistent_samplers import losses, simulate
from consistent_samplers.algorithms.batches import PathBatch, paths_back, simulated_paths
from consistent_samplers.algorithms.protocol import Evaluate, Now
from consistent_samplers.bases import Component
from consistent_samplers.checks import check_choice, check_integer
from consistent_samplers.maps import Control
from consistent_samplers.networks import ScalarMLP
from consistent_samplers.types import Array, Params, PRNGKey

ControlLoss: TypeAlias = Literal[
    "reverse_kl", "path_gradient", "log_variance", "trajectory_balance", "sub_trajectory_balance"
]
CONTROL_LOSSES: tuple[ControlLoss, ...] = get_args(ControlLoss)
ON_POLICY: tuple[ControlLoss, ...] = ("reverse_kl", "path_gradient")

# The learned log Z moves this many times faster than the networks' weights.
_LOG_Z_RATE = 10.0
_NUM_START_DRAWS = 512


@dataclasses.dataclass(frozen=True)
class PathLoss:
    """A control loss by its name.

    ``"reverse_kl"`` (Zhang & Chen, 2022; Berner et al., 2024), ``"path_gradient"`` the same
    without the score term, whose mean is zero (Roeder et al., 2017; Vaitl et al., 2022),
    ``"log_variance"`` (Richter & Berner, 2024), ``"trajectory_balance"`` with a learned log Z,
    or ``"sub_trajectory_balance"`` with a learned flow, on a stretch of each path. The log weights
    of the last are those that the paths would have if the learned flow and log Z were right outside
    of the stretch, under the training target: exact where the stretch is the whole path.
    """

    kind: ControlLoss
    batch_size: int  # paths simulated an iteration
    hidden: tuple[int, ...]  # widths of the flow's hidden layers
    step_counts: tuple[int, ...]  # numbers of steps that paths may have
    segment_share: float = 0.25  # length of the stretch, as a share of the path
    decay: float = 1.0  # weight of a piece of the stretch that is one step longer

    def __post_init__(self) -> None:
        check_choice("loss", self.kind, CONTROL_LOSSES)
        fewest = 2 if self.kind == "log_variance" else 1
        check_integer(f"batch_size of the loss {self.kind!r}", self.batch_size, fewest)

    def init(self, rng_key: PRNGKey, control: Control, evaluate: Evaluate) -> dict[str, Params]:
        """The loss's own parameters."""
        if "trajectory_balance" not in self.kind:
            return {}
        key_base, key_flow = jax.random.split(jax.random.fold_in(rng_key, 1))
        # Start log Z where the base alone sees it: the weights of a posterior may be far from 1.
        x = control.base.sample(key_base, _NUM_START_DRAWS)
        log_weight = evaluate(x) - control.base.log_prob(x)
        start = jnp.median(jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf))
        start = jnp.where(jnp.isfinite(start), start, 0.0)
        params: dict[str, Params] = {"log_z": start / _LOG_Z_RATE}
        if self.kind == "sub_trajectory_balance":
            flow = ScalarMLP(self.hidden)
            params["log_flow"] = flow.init(key_flow, jnp.zeros(control.dim), jnp.zeros(()))
        return params

    def __call__(
        self,
        params: Params,
        now: Now,
        rng_key: PRNGKey,
        evaluate: Evaluate,
        *,
        which: Array | int = 0,
        temper: Array | float = 1.0,
        replayed: Array | None = None,
    ) -> tuple[Array, PathBatch]:
        """The loss ``[]`` of a fresh batch, and of paths to end points ``[n, dim]`` if given.

        Of ``step_counts[which]`` steps, towards p0^(1 - temper) ρ^temper. End points are in the
        frame of a base of one component.
        """
        control, stop = now.control.on_training_paths(), jax.lax.stop_gradient
        on_policy, num_steps = self.kind in ON_POLICY, jnp.asarray(self.step_counts)[which]
        moving = params if on_policy else stop(params)
        run = functools.partial(self._simulate, moving, now, rng_key, replayed)
        runs = [functools.partial(run, n) for n in self.step_counts]
        position, log_ratio, component = jax.lax.switch(which, runs)
        finite = jnp.isfinite(position).all(axis=(1, 2))
        # A path that ran off to infinity teaches nothing, and would make every gradient NaN.
        position = jnp.where(finite[:, None, None], position, 0.0)
        if not on_policy:
            position = stop(position)
        points, first = self._points(position, which, jax.random.split(rng_key, 3)[2])
        x, correction = jax.vmap(jax.vmap(control.place, (0, None)))(points, component)
        log_rho = evaluate(x.reshape(-1, control.dim)).reshape(points.shape[:2]) + correction
        tempered = (1.0 - temper) * _log_normal(points) + temper * log_rho

        end, imbalance = tempered[:, -1], jnp.zeros_like(log_ratio)
        log_weight = end - _log_normal(position[:, 0]) + log_ratio
        if not on_policy:
            given = [jax.vmap(self._given(params, now, n)) for n in self.step_counts]
            paths = (position, component, first, tempered)
            log_weight, imbalance = jax.lax.switch(which, given, *paths)
        loss = self._reduced(params, log_weight, imbalance, finite & jnp.isfinite(end))
        fresh = slice(0, self.batch_size)
        if self.kind != "sub_trajectory_balance":
            log_weight = log_weight + log_rho[:, -1] - end
        log_weight = stop(log_weight)[fresh]
        log_weight = jnp.where(finite[fresh] & ~jnp.isnan(log_weight), log_weight, -jnp.inf)
        component = jax.tree.map(lambda c: c[fresh], component)
        return loss, PathBatch(stop(position)[fresh], log_weight, component, num_steps)

    def _simulate(
        self, params: Params, now: Now, rng_key: PRNGKey, replayed: Array | None, num_steps: int
    ) -> tuple[Array, Array, Component]:
        """Fresh paths and those to given end points: as `batches.simulated_paths` returns them."""
        key_fresh, key_replay, _ = jax.random.split(rng_key, 3)
        room: Any = {"most_steps": max(self.step_counts), "gradient": now.gradient}
        position, log_ratio, component = simulated_paths(
            now.control.on_training_paths(),
            params,
            key_fresh,
            num_steps,
            batch_size=self.batch_size,
            still=self.kind == "path_gradient",
            **room,
        )
        if replayed is not None:
            back = paths_back(now.control, params, key_replay, num_steps, replayed, **room)
            position = jnp.concatenate([position, back])
            log_ratio = jnp.pad(log_ratio, (0, replayed.shape[0]))
        return position, log_ratio, component

    def _length(self, num_steps: int) -> int:
        return max(1, round(self.segment_share * num_steps))

    def _points(self, position: Array, which: Array | int, rng_key: PRNGKey) -> tuple[Array, Array]:
        """Where the density is asked for ``[n, num_points, dim]``: the ends, or a stretch of each.

        And the step ``[n]`` at which the stretch begins.
        """
        num, num_steps = position.shape[0], jnp.asarray(self.step_counts)[which]
        if self.kind != "sub_trajectory_balance":
            return position[:, num_steps][:, None], jnp.full(num, 0)
        lengths = [self._length(n) for n in self.step_counts]
        length = jnp.asarray(lengths)[which]
        first = jnp.floor(jax.random.uniform(rng_key, (num,)) * (num_steps - length + 1))
        first = jnp.minimum(first.astype(jnp.int32), num_steps - length)
        index = first[:, None] + jnp.minimum(jnp.arange(max(lengths) + 1), length)
        return jnp.take_along_axis(position, index[:, :, None], axis=1), first

    def _given(self, params: Params, now: Now, num_steps: int) -> Callable[..., Any]:
        """(path, component, first, log_rho) -> log weight and imbalance ``[]`` of a given path."""
        control, log_flow = now.control.on_training_paths(), ScalarMLP(self.hidden)
        length = self._length(num_steps)

        def given(path: Array, component: Component, first: Array, log_rho: Array) -> Any:
            kernels = control.kernels(params, component, now.gradient)
            if self.kind != "sub_trajectory_balance":
                log_ratio = simulate.path_log_ratio(path[: num_steps + 1], kernels, num_steps).sum()
                log_weight = log_rho[-1] - _log_normal(path[0]) + log_ratio
                return log_weight, jnp.zeros_like(log_weight)
            path = jax.lax.dynamic_slice_in_dim(path, first, length + 1)
            log_ratio = simulate.path_log_ratio(path, kernels, num_steps, first)
            index = first + jnp.arange(length + 1)
            t, log_p0, log_rho = index / num_steps, _log_normal(path), log_rho[: length + 1]
            learned = jax.vmap(lambda x, t: log_flow.apply(params["log_flow"], x, t))(path, t)
            log_z = _LOG_Z_RATE * params["log_z"]
            # Between the ends a geometric path of densities, corrected by the network.
            middle = (1.0 - t) * (log_z + log_p0) + t * log_rho + learned
            flow = jnp.where(index == 0, log_z + log_p0, middle)
            flow = jnp.where(index == num_steps, log_rho, flow)
            log_weight = log_z + flow[-1] - flow[0] + log_ratio.sum()
            return log_weight, losses.sub_trajectory_balance(flow, log_ratio, self.decay)

        return given

    def _reduced(self, params: Params, log_weight: Array, imbalance: Array, good: Array) -> Array:
        """The loss ``[]`` of all paths; the others than the good ones say nothing."""
        if self.kind in ON_POLICY:
            each = losses.reverse_kl(jnp.where(good, log_weight, 0.0))
            return each.sum() / jnp.maximum(good.sum(), 1)
        if self.kind == "sub_trajectory_balance":
            return jnp.where(good & jnp.isfinite(imbalance), imbalance, 0.0).mean()
        usual = jnp.nanmedian(jnp.where(good, jax.lax.stop_gradient(log_weight), jnp.nan))
        usual = jnp.where(good.any(), usual, 0.0)
        log_weight = losses.tame(jnp.where(good, log_weight, usual))
        if self.kind == "log_variance":
            return losses.log_variance(log_weight).mean()
        log_z = _LOG_Z_RATE * params["log_z"]
        balance = losses.trajectory_balance(log_weight, log_z).mean()
        return jnp.where(good.any(), balance, 0.0)


_log_normal = jnp.vectorize(simulate.standard_normal_log_prob, signature="(d)->()")
