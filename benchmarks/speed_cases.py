"""What the speed of is measured: samplers of the recipe, and the bare network beside them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import consistent_samplers as cs
from benchmarks import registry
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Base
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      rounds: interleaved repetitions.
      process_rounds: repetitions of what takes a process of its own.
      draws: targets and batch of draws without weights.
      general: targets of weighted draws, general network, and their two numbers of draws.
      structured: dimensions of weighted draws, structured network, and their numbers of draws.
      paper: finest steps and batch of the paper's OSDS.
      profiled: draws behind a profile.
      dims: of the scaling in d, for general networks' weights up to 100.
      num_draws: draws of the scaling in d, steps and components.
      batches: of the scaling in batch.
      iteration_batches: of training's scaling in batch.
      steps: of the scaling in steps.
      components: of the scaling in components.
      effective: effective draws to reach against NUTS.
      warm_up: of NUTS.
      block: draws of each chain of NUTS between two looks at its effective size.
      max_nuts_seconds: sampling beyond it is extrapolated.
      train: settings of ``train_sampler`` where it is timed.
      compiled: target whose compilation is timed.
      stream: target and numbers of draws of streaming evidence.
      large: target whose training memory is measured.
      large_train: settings of ``train_sampler`` for it: memory does not grow with iterations.
      hidden: widths of every network.
      device_batch: points at which the network is evaluated for a share of the device's peak.
      device_width: width of a wide network beside the default one.
      peak_tflops: of the device, where it is known.
    """

    rounds: int = 7
    process_rounds: int = 3
    draws: tuple[tuple[str, ...], int] = (("seeds", "sonar"), 100_000)
    general: tuple[tuple[str, ...], tuple[int, int]] = (("seeds", "sonar"), (2_048, 8_192))
    structured: tuple[tuple[int, tuple[int, int]], ...] = (
        (26, (1_024, 4_096)),
        (400, (1_024, 4_096)),
        (1_600, (512, 2_048)),
    )
    paper: tuple[str, int, int] = ("seeds", 128, 256)
    profiled: tuple[str, int] = ("seeds", 4_096)
    dims: tuple[int, ...] = (2, 8, 26, 100, 400, 1_600)
    num_draws: int = 2_048
    batches: tuple[int, ...] = (1_024, 4_096, 16_384, 65_536)
    iteration_batches: tuple[int, ...] = (32, 128, 512, 2_048)
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    components: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    targets: tuple[str, ...] = ("seeds", "sonar", "ionosphere", "credit", "cancer")
    effective: int = 10_000
    warm_up: int = 1_000
    block: int = 2_500
    max_nuts_seconds: float = 120.0
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    compiled: str = "seeds"
    stream: tuple[str, tuple[int, int]] = ("funnel", (100_000, 10_000_000))
    large: str = "lgcp"
    large_train: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"num_iterations": 10, "num_calibration_iterations": 10}
    )
    hidden: tuple[int, ...] = (64, 64)
    device_batch: int = 65_536
    device_width: int = 1_024
    peak_tflops: float | None = None


_TINY = {
    "max_steps": 2,
    "hidden": (4,),
    "num_iterations": 2,
    "num_calibration_iterations": 2,
    "explore": False,
}
QUICK = Sizes(
    rounds=2,
    process_rounds=1,
    draws=(("gmm9",), 64),
    general=(("gmm9",), (32, 64)),
    structured=((4, (32, 64)),),
    paper=("gmm9", 2, 4),
    profiled=("gmm9", 32),
    dims=(2, 4),
    num_draws=16,
    batches=(16, 32),
    iteration_batches=(2, 4),
    steps=(1, 2),
    components=(1, 2),
    targets=("funnel",),
    effective=20,
    warm_up=10,
    block=20,
    max_nuts_seconds=0.0,
    train=_TINY,
    compiled="funnel",
    stream=("funnel", (70_000, 80_000)),
    large="funnel",
    large_train=_TINY,
    hidden=(4,),
    device_batch=16,
    device_width=8,
)


class Case(NamedTuple):
    """A sampler to time."""

    algorithm: Algorithm
    state: SamplerState

    @property
    def dim(self) -> int:
        """Of the target."""
        return self.algorithm.target.dim

    def sampling(self, num: int, weights: bool = True, num_steps: int = 1) -> Callable[[], Any]:
        """Draws of the map, as a function of nothing."""
        key, sampler, target = jax.random.key(1), self.sampler, self.algorithm.target
        return lambda: sampler.sample(key, target, num, num_steps, method="map", weights=weights)

    @property
    def sampler(self) -> cs.Sampler:
        """What draws."""
        return self.algorithm.sampler(self.state)

    def sample(self, rng_key: Array, num: int) -> cs.Draws:
        """Weighted draws of the map."""
        return self.sampler.sample(rng_key, self.algorithm.target, num, 1, method="map")

    def bare(self, num: int, chunk: int | None = None) -> Callable[[], Any]:
        """The network alone, of one batch of given points, or of chunks of it in turn."""
        x = jax.random.normal(jax.random.key(2), (num, self.dim))
        network = bare_network(self.algorithm)

        def in_chunks(params: Params, x: Array) -> Array:
            one = lambda y: network(params, y[None])[0]  # noqa: E731
            return jax.lax.map(one, x, batch_size=chunk)

        evaluate = jax.jit(network if chunk is None else in_chunks)
        return lambda: evaluate(self.state.ema_params, x)


def full_base(dim: int) -> Base:
    """A Gaussian with a full covariance, as a fitted base is one."""
    rng = np.random.default_rng(0)
    factor = np.eye(dim) + np.tril(rng.normal(size=(dim, dim)), -1) * 0.3 / np.sqrt(dim)
    return cs.bases.GaussianBase(jnp.zeros(dim), jnp.asarray(0.5 * factor, jnp.float32))


@flax.struct.dataclass
class _Diagonal(cs.bases.GaussianBase):
    """A Gaussian without correlations: ``scale_tril`` is its diagonal ``[dim]``."""

    @property
    def log_abs_det(self) -> Array:
        return jnp.sum(jnp.log(self.scale_tril))

    def unwhiten(self, z: Array, component: tuple[()] = ()) -> Array:
        return self.loc + self.scale_tril * z

    def whiten(self, x: Array, component: tuple[()] = ()) -> Array:
        return (x - self.loc) / self.scale_tril


def diagonal_base(dim: int) -> Base:
    """A Gaussian without correlations, whose whitening costs O(dim)."""
    return _Diagonal(jnp.zeros(dim), 0.5 * jnp.ones(dim))


def mixed_base(dim: int, num: int) -> Base:
    """A mixture of Gaussians with full covariances."""
    loc = 3.0 * np.random.default_rng(0).normal(size=(num, dim))
    return cs.bases.mixture(jnp.zeros(num), jnp.asarray(loc), jnp.tile(jnp.eye(dim), (num, 1, 1)))


def plain_target(dim: int) -> Target:
    """A target that costs next to nothing."""
    return Target(lambda x: -0.5 * jnp.sum(x**2), dim, name="standard normal")


def case(
    target: Target | str,
    hidden: tuple[int, ...],
    network: str = "general",
    base: Base | None = None,
    max_steps: int = 16,
) -> Case:
    """The recipe's sampler with parameters that do something; training would not change its cost.

    Args:
      target: the target, or its name in the registry.
      hidden: widths.
      network: its kind.
      base: a Gaussian with a full covariance if None.
      max_steps: number of finest steps.
    """
    built = registry.TARGETS[target].build() if isinstance(target, str) else target
    base = full_base(built.dim) if base is None else base
    return started(
        cs.osds(
            built, base=base, max_steps=max_steps, hidden=hidden, network=network, guidance=None
        )
    )


def started(algorithm: Algorithm) -> Case:
    """With parameters away from their zeros."""
    state = algorithm.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.01 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    return Case(algorithm, state._replace(params=params, ema_params=params))


def control_of(algorithm: Algorithm, params: Params) -> Any:
    """The control function of some parameters, the target's gradient in it where it is guided."""
    return algorithm.control.bind(params, gradient=jax.grad(algorithm.target.log_density))


def bare_network(algorithm: Algorithm) -> Callable[[Params, Array], Array]:
    """The network at t = 0 and d = 1 for a batch ``[n, dim]``, and nothing else."""

    def evaluate(params: Params, x: Array) -> Array:
        t, d = jnp.zeros(()), jnp.ones(())
        return jax.vmap(lambda y: control_of(algorithm, params)(y, t, d))(x)

    return evaluate


class Evaluations(NamedTuple):
    """Network evaluations (with the target's gradient where the network has it) of an iteration.

    Attributes:
      both: numbers of batches and their sizes, forward and pulled back to parameters and points.
      forward: the same, forward only.
    """

    both: tuple[tuple[int, int], ...]
    forward: tuple[tuple[int, int], ...] = ()

    def function(self, algorithm: Algorithm) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A compiled function that makes them at given points, and its points.

        Batches of one kind follow each other in a ``lax.scan`` at one time each, as the steps of
        a simulation do, but none waits for the one before.
        """

        def evaluate(params: Params, both: Any, forward: Any) -> Any:
            grads = jax.tree.map(jnp.zeros_like, params)
            outputs = []

            def values(params: Params, x: Array, t: Array) -> Array:
                d = jnp.asarray(1.0 / 16.0)
                return jax.vmap(lambda y: control_of(algorithm, params)(y, t, d))(x)

            def pulled(grads: Params, inputs: tuple[Array, Array]) -> tuple[Params, Array]:
                x, t = inputs
                value, pull_back = jax.vjp(lambda p, x: values(p, x, t), params, x)
                by_params, by_x = pull_back(value)
                return jax.tree.map(jnp.add, grads, by_params), by_x

            for x in both:
                times = jnp.arange(len(x)) / len(x)
                grads, by_x = jax.lax.scan(pulled, grads, (x, times))
                outputs.append(by_x)
            for x in forward:
                times = jnp.arange(len(x)) / len(x)
                outputs.append(jax.lax.map(lambda args: values(params, *args), (x, times)))
            return grads, outputs

        def points(shapes: Sequence[tuple[int, int]]) -> list[Array]:
            key, dim = jax.random.key(4), algorithm.target.dim
            return [jax.random.normal(key, (*shape, dim)) for shape in shapes]

        return jax.jit(evaluate), (points(self.both), points(self.forward))
