"""A sampler: a map from a base with its parameters, as a pytree of arrays without a density.

Draws are made in blocks of a few sizes, so that what is compiled for one number of them serves
every other; draw i depends on the key and on i alone, whatever the blocks and devices.
"""

import functools
import warnings
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from consistent_samplers.bases import Base
from consistent_samplers.checks import check_choice, check_integer, check_key
from consistent_samplers.compilation import as_partial, is_traced
from consistent_samplers.maps import Control, Identity, Proposal, moving
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.sharding import check_mesh, replicate
from consistent_samplers.targets import Target, evaluation, rounding
from consistent_samplers.types import (
    BOUND_OF,
    Array,
    Bound,
    Draws,
    FlowDiagnostics,
    LogDensityFn,
    Method,
    Params,
    PRNGKey,
)


@flax.struct.dataclass
class Sampler:
    """A map or path from a base to a target, with its parameters.

    Attributes:
      control: the control and its dynamics; holds the base.
      params: its parameters.
      max_steps: most steps of a draw, a power of two.
      methods: which transitions it can take, the default first.
      default_steps: number of steps unless told.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> algorithm = cs.osds(target, base=base, guidance=None, hidden=(8,))
      >>> sampler = algorithm.sampler(algorithm.init(jax.random.key(0)))
      >>> sampler.sample(jax.random.key(1), target, 100).bound
      'lower-if-injective'
    """

    control: Control | Identity
    params: Params
    max_steps: int = flax.struct.field(pytree_node=False)
    methods: tuple[Method, ...] = flax.struct.field(pytree_node=False)
    default_steps: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of_base(cls, base: Base) -> "Sampler":
        """The sampler that draws from a base as it is."""
        return cls(Identity(base), {}, 1, ("map",), 1)

    @property
    def base(self) -> Base:
        """Where samples start."""
        return self.control.base

    def bound(self, method: Method) -> Bound:
        """The bound of a method's weights; ``"lower"`` of a map injective by construction."""
        return "lower" if method == "map" and self.control.injective else BOUND_OF[method]

    def sample(
        self,
        rng_key: PRNGKey,
        target: Target,
        num_samples: int,
        num_steps: int | None = None,
        *,
        method: Method | None = None,
        weights: bool = True,
        mesh: Mesh | None = None,
        guide: Target | None = None,
    ) -> Draws:
        """``num_samples`` draws, with weights for a target.

        Args:
          rng_key: key.
          target: what the weights are for.
          num_samples: number of draws.
          num_steps: network evaluations of a draw; ``default_steps`` if None.
          method: which transitions; the first of ``methods`` if None.
          weights: without them a draw costs one network evaluation a step and nothing else.
          mesh: devices to spread the draws over; the draws are the same.
          guide: what a guided control draws by, if not ``target``: the draws are then those for the
            guide.

        Raises:
          TypeError: ``rng_key`` is not a single key, or ``mesh`` no mesh.
          ValueError: the sampler does not take this number of steps or draws, or this method; or
            both ``mesh`` and ``guide``.
        """
        num_steps, method = self._checked(num_steps, method)
        check_key(rng_key)
        check_integer("num_samples", num_samples)
        density = as_partial(target.log_density)
        guiding = density if guide is None else as_partial(guide.log_density)
        settings: dict[str, Any] = {"num_steps": num_steps, "method": method, "weights": weights}
        settings["batch_size"] = self._batch_size(num_steps, method, weights)
        if mesh is not None:
            check_mesh(mesh)
            if guide is not None:
                raise ValueError("Draws by a guide are made on one device: leave out mesh.")
            settings |= {"num_samples": num_samples, "mesh": mesh}
            # Results of stored programs are bound to the device that they were made on.
            drawn, values = moving.propose_on_mesh(
                *replicate((density, self._mover(None), rng_key), mesh), **settings
            )
        else:
            drawn, values = self._draw(rng_key, guiding, num_samples, settings), None
        if not weights:
            return Draws(_on_device(drawn.position))
        if values is None:
            values = evaluation.values(density, drawn.position)
        values = rounding.mended(density, drawn.position, values)
        xp = _arrays_on(rng_key)
        values, log_ratio = xp.asarray(values), xp.asarray(drawn.log_ratio)
        log_weight = _log_weight(values, log_ratio, xp)
        flow = None
        if drawn.folded is not None:
            flow = self._diagnostics(rng_key, guiding, drawn.folded, num_steps, xp)
        position, log_weight, values = _on_device((drawn.position, log_weight, values))
        return Draws(position, log_weight, values, flow, self.bound(method))

    def log_weight(
        self,
        rng_key: PRNGKey,
        target: Target,
        position: Array,
        num_steps: int | None = None,
        *,
        method: Method | None = None,
    ) -> Array:
        """Log weights ``[n]`` of draws that end at given points, run in reverse.

        The path back is drawn from the backward kernels, or by inverting the map (NaN where that
        fails). The mean over exact draws of the target is an evidence upper bound.

        Args:
          rng_key: key.
          target: what the weights are for.
          position: ``[n, dim]``.
          num_steps: see `sample`.
          method: see `sample`; the heuristic has no reverse.

        Raises:
          ValueError: as `sample`, or points of another dimension.
        """
        num_steps, method = self._checked(num_steps, method, reverse=True)
        dim = self.base.dim
        if position.ndim != 2 or position.shape[1] != dim:
            raise ValueError(f"position must have shape [n, {dim}], got {position.shape}.")
        density = as_partial(target.log_density)
        settings: dict[str, Any] = {"num_steps": num_steps, "method": method}
        settings["batch_size"] = self._batch_size(num_steps, method, True)
        log_ratio = moving.reverse(self._mover(density), rng_key, position, **settings)
        values = rounding.values(density, position)
        if is_traced((values, log_ratio)):
            return values + log_ratio
        xp = _arrays_on(rng_key)
        found: Array = _on_device(xp.asarray(values) + xp.asarray(log_ratio))
        return found

    def weigh(self, target: Target, latent: Array) -> Draws:
        """Weighted draws of one step of the map from given points ``[n, dim]`` of the latent space.

        The base must have a single frame, as a Gaussian has. If the points follow a standard
        normal, the draws are the sampler's own.
        """
        self._checked(1, "map")
        density = as_partial(target.log_density)
        position, log_ratio, folded = moving.carry(
            self._mover(density), latent, batch_size=self._batch_size(1, "map", True)
        )
        values = rounding.values(density, position)
        unmeasured = jnp.full(log_ratio.shape, jnp.nan, log_ratio.dtype)
        flow = FlowDiagnostics(folded, unmeasured)
        return Draws(position, _log_weight(values, log_ratio), values, flow, self.bound("map"))

    def block_size(self, num_samples: int) -> int:
        """Draws that are made at once where so many are wanted with weights, by the first method.

        Their numbers are few: each has a program of its own.
        """
        with_jacobians = self._has_jacobians(self.methods[0], True)
        return moving.block_size(num_samples, self.base.dim, with_jacobians)

    def map_cost(self) -> float:
        """Floating-point operations of a draw with its determinant, as the compiler counts them.

        In one step of the map, without the density.
        """
        mover = self._mover(None)
        latent = jax.ShapeDtypeStruct((1, self.base.dim), jnp.zeros(0).dtype)
        component = self.base.draw_component(jax.random.key(0))

        def carry(z: Array) -> tuple[Array, ...]:
            # Of a guided control's gradient the shape is enough.
            return mover.control.carry(mover.params, z, component, 1, jnp.zeros_like)[:2]

        lowered = jax.jit(jax.vmap(carry)).lower(latent)
        return float((lowered.cost_analysis() or {}).get("flops", 0.0))

    def draw_one(
        self, rng_key: PRNGKey, log_density: LogDensityFn, num_steps: int, method: Method
    ) -> Draws:
        """One weighted draw, ``position [dim]``: pure, for chains that JAX traces."""
        drawn = self._mover(log_density).draw(rng_key, num_steps, method, True)
        value = log_density(drawn.position)
        log_weight = _log_weight(value, drawn.log_ratio)
        return Draws(drawn.position, log_weight, value, None, self.bound(method))

    def _mover(self, density: LogDensityFn | None) -> moving.Mover:
        return moving.Mover(density if self.control.guided else None, self.control, self.params)

    def _draw(
        self, rng_key: PRNGKey, density: Partial, num_samples: int, settings: dict[str, Any]
    ) -> Proposal:
        """Proposals in blocks, the last one cut."""
        propose = functools.partial(moving.propose, self._mover(density), rng_key)
        if is_traced((rng_key, self.params, density)):
            return propose(np.int32(0), size=num_samples, **settings)
        with_jacobians = self._has_jacobians(settings["method"], settings["weights"])
        size = moving.block_size(num_samples, self.base.dim, with_jacobians)
        begins = map(np.int32, range(0, num_samples, size))
        blocks = [propose(begin, size=size, **settings) for begin in begins]
        xp = _arrays_on(rng_key)
        return jax.tree.map(
            lambda *parts: xp.concatenate([*map(xp.asarray, parts)])[:num_samples], *blocks
        )

    def _diagnostics(
        self, rng_key: PRNGKey, density: Partial, folded: Array, num_steps: int, xp: Any
    ) -> FlowDiagnostics:
        """Folds of all draws and round trips of the first ones."""
        settings = {"num_steps": num_steps, "batch_size": self._batch_size(1, "map", True)}
        measured = moving.round_trips(self._mover(density), rng_key, **settings)
        errors = xp.asarray(measured)[: len(folded)]
        unmeasured = xp.full(len(folded) - len(errors), xp.nan, errors.dtype)
        return FlowDiagnostics(*_on_device((folded, xp.concatenate([errors, unmeasured]))))

    def _checked(
        self, num_steps: int | None, method: Method | None, reverse: bool = False
    ) -> tuple[int, Method]:
        num_steps = self.default_steps if num_steps is None else num_steps
        check_num_steps(num_steps, self.max_steps)
        method = self.methods[0] if method is None else method
        choices = tuple(m for m in self.methods if not (reverse and m == "heuristic"))
        check_choice("method", method, choices)
        return int(num_steps), method

    def _has_jacobians(self, method: Method, weights: bool) -> bool:
        # A Jacobian by its parts takes no more than a point does.
        return weights and method == "map" and not self.control.structured

    def _batch_size(self, num_steps: int, method: Method, weights: bool) -> int:
        has_jacobians = self._has_jacobians(method, weights)
        most = moving.batch_size(self.base.dim, num_steps if has_jacobians else 0)
        if (points := getattr(self.control, "points_at_once", 0)) > 0:
            # What a density keeps of a point may be as large as its data.
            most = min(most, evaluation.products_at_once() // points)
        return max(1, most)


def weighed(
    target: Target,
    position: Array,
    log_ratio: Array,
    bound: Bound,
    folded: Array | None = None,
) -> Draws:
    """Draws of points ``[n, dim]`` and their log ratios ``[n]``, with weights for a target.

    Those whose weight is not a number weigh nothing.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> from consistent_samplers.sampler import weighed
      >>> target, x = cs.targets.gaussian(jnp.zeros(1), jnp.eye(1)), jnp.zeros((2, 1))
      >>> weighed(target, x, jnp.array([0.0, jnp.nan]), "lower").log_weight.tolist()
      [0.0, -inf]
    """
    values = jnp.asarray(rounding.values(as_partial(target.log_density), position))
    log_weight = _log_weight(values, log_ratio)
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    flow = None
    if folded is not None:
        flow = FlowDiagnostics(folded, jnp.full(folded.shape, jnp.nan, log_weight.dtype))
    return Draws(position, log_weight, values, flow, bound)


def method_of_bound(bound: Bound | None, method: Method | None) -> tuple[Method | None, bool]:
    """Method and whether weights are wanted, of the deprecated argument ``bound``; warns of it.

    Example:
      >>> import warnings
      >>> from consistent_samplers.sampler import method_of_bound
      >>> with warnings.catch_warnings(action="ignore"):
      ...     method_of_bound("lower", None), method_of_bound(None, None)
      (('path', True), (None, False))
    """
    said = "weights=False" if bound is None else f'method="{_METHOD_OF.get(bound, "map")}"'
    warnings.warn(
        f"bound={bound!r} as an argument is deprecated: say {said}. A bound is what draws report.",
        DeprecationWarning,
        stacklevel=3,
    )
    if bound is None:
        return method, False
    check_choice("bound", bound, tuple(_METHOD_OF))
    return _METHOD_OF[bound], True


_METHOD_OF: dict[Bound, Method] = {bound: method for method, bound in BOUND_OF.items()}


def _log_weight(log_density: Any, log_ratio: Any, xp: Any = jnp) -> Any:
    """Log weights of draws: those without a density have weight zero, whatever their log ratio.

    A density that is NaN counts as zero; `Draws.log_density` keeps the NaN.
    """
    outside = xp.isneginf(log_density) | xp.isnan(log_density)
    return xp.where(outside, -xp.inf, log_density + log_ratio)


def _on_device(tree: Any) -> Any:
    """NumPy's arrays as JAX's; those that lie on devices, of several hosts perhaps, stay there."""
    # `device_put` compiles nothing for a new shape, as `jnp.asarray` does.
    return jax.tree.map(lambda x: jax.device_put(x) if isinstance(x, np.ndarray) else x, tree)


def _arrays_on(rng_key: PRNGKey) -> Any:
    """NumPy where arrays are on the host in any case: JAX compiles every length of them."""
    return np if jax.default_backend() == "cpu" and not is_traced(rng_key) else jnp
