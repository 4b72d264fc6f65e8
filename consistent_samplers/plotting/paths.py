"""How particles travel from the base to the target."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import jit
from consistent_samplers.maps import Control
from consistent_samplers.plotting import style
from consistent_samplers.recipe import TrainedSampler
from consistent_samplers.schedules import check_num_steps, time_grid
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array, Params, PRNGKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRID = 150
_MASSES = (0.99, 0.9, 0.5)


def trajectories(
    rng_key: PRNGKey,
    sampler: TrainedSampler | Algorithm,
    num_particles: int,
    num_steps: int,
    *,
    state: SamplerState | None = None,
    stochastic: bool | None = None,
) -> Array:
    """Paths ``[num_particles, num_steps + 1, dim]`` from the base to the target.

    They are those of the sampler's draws, in the target's coordinates: with the same key
    ``sampler.sample(..., weights=False)`` returns their end points.

    Args:
      rng_key: key.
      sampler: a trained sampler; or an algorithm, and its ``state``.
      num_particles: number of paths.
      num_steps: sampler steps, a power of two that the sampler was trained for.
      state: trained state of an algorithm; of a `TrainedSampler`, in place of its own.
      stochastic: simulate the SDE instead of the deterministic map. None for what the sampler
        itself draws by: the map, or of an iterative algorithm the SDE.

    Raises:
      ValueError: an algorithm without a state, or paths or steps that the sampler does not have.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> target, base = cs.targets.funnel(2), cs.bases.standard_normal(2)
      >>> algorithm = cs.osds(target, base=base, max_steps=4, hidden=(8,), guidance=None)
      >>> state = algorithm.init(jax.random.key(0))
      >>> cs.plotting.trajectories(jax.random.key(1), algorithm, 5, 4, state=state).shape
      (5, 5, 2)
    """
    check_integer("num_particles", num_particles)
    if isinstance(sampler, TrainedSampler):
        drawing = sampler.one_step if num_steps == 1 and not stochastic else sampler.many_steps
        if state is not None:
            drawing = dataclasses.replace(drawing, params=state.ema_params)
    elif state is None:
        raise ValueError(f"{sampler.name!r} needs the state of training: state=cs.fit(...).state.")
    else:
        drawing = sampler.sampler(state)
    if stochastic is None:
        stochastic = drawing.methods[0] == "path"
    if ("path" if stochastic else "map") not in drawing.methods:
        kind = "stochastic" if stochastic else "deterministic"
        raise ValueError(f"This sampler has no {kind} paths; take stochastic={not stochastic}.")
    control = drawing.control
    check_num_steps(num_steps, drawing.max_steps if stochastic else control.max_flow_steps)
    gradient = jax.grad(sampler.target.log_density) if control.guided else None

    def one(params: Params, key: PRNGKey) -> Array:
        # Keys as where draws are made, so that the paths are the draws'.
        key_base, key_path = jax.random.split(key)
        component = control.base.draw_component(jax.random.fold_in(key_base, 1))
        z = jax.random.normal(key_base, (control.dim,))[None]
        if not isinstance(control, Control):  # one step, by no control function
            end, *_ = control.carry(params, z[0], component)
            z = jnp.concatenate([z, end[None]])
        elif stochastic:
            kernels = control.kernels(params, component, gradient)
            z, _ = simulate.simulate_path(key_path, z[0], kernels, num_steps)
        else:
            u = control.bind(params, component, gradient)

            def step(z: Array, t: Array) -> tuple[Array, Array]:
                # Without the Jacobians of `simulate.flow_path`.
                z_next = simulate.flow_step(u, control.process, z, t, jnp.asarray(1.0 / num_steps))
                return z_next, z_next

            z = jnp.concatenate([z, jax.lax.scan(step, z[0], time_grid(num_steps))[1]])
        return jax.vmap(lambda point: control.base.unwhiten(point, component))(z)

    keys = jax.vmap(lambda i: jax.random.fold_in(rng_key, i))(jnp.arange(num_particles))
    return jit(jax.vmap(one, (None, 0)))(drawing.params, keys)


def plot_trajectories(
    paths: Array | np.ndarray,
    *,
    dims: Sequence[int] | None = None,
    target: Target | None = None,
    max_paths: int = 200,
    names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Paths of particles from the base to the target: in a plane, or one coordinate against time.

    Args:
      paths: ``[num_particles, num_steps + 1, dim]``, as of `trajectories`.
      dims: two coordinates for a plane, or one against time t, 0 at the base and 1 at the target;
        the first two if None.
      target: in two dimensions; contours of its density hold 50, 90 and 99 % of its mass in view.
      max_paths: most paths; the first are drawn.
      names: a label for each of the ``dim`` coordinates.
      ax: where to draw; a new figure if None.

    Raises:
      ValueError: paths, coordinates or a target that cannot be drawn.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers import plotting
      >>> plotting.plot_trajectories(np.random.default_rng(0).normal(size=(50, 17, 2))).get_xlabel()
      'x[0]'
    """
    values = np.asarray(paths, np.float64)
    if values.ndim != 3 or 0 in values.shape or values.shape[1] < 2:
        raise ValueError(
            "paths must have shape [num_particles, num_steps + 1, dim] with at least one step, got "
            f"{values.shape}. Make them by plotting.trajectories(rng_key, sampler, ...)."
        )
    dim = values.shape[-1]
    style.check_finite("paths", values)
    shown = style.chosen(range(min(2, dim)) if dims is None else dims, dim)
    if len(shown) > 2:
        raise ValueError(f"dims must be one or two coordinates, got {dims!r}.")
    if target is not None and (shown != [0, 1] or target.dim != 2 or dim != 2):
        raise ValueError(
            "Contours need a target in two dimensions and dims=(0, 1): leave target out for "
            f"coordinates {shown} of {dim}."
        )
    check_integer("max_paths", max_paths)
    labels = style.coordinate_labels(names, dim, "paths")
    values = values[:max_paths]
    plane = len(shown) == 2
    ax = style.one_axes(ax, (5.2, 5.0) if plane else (6.0, 4.0))
    time = np.broadcast_to(np.linspace(0.0, 1.0, values.shape[1]), values.shape[:2])
    x, y = values[..., shown[0]] if plane else time, values[..., shown[-1]]
    # Fewer paths can be darker and still be told apart.
    alpha = float(np.clip(30.0 / len(values), 0.2, 0.6))
    ax.plot(x.T, y.T, color=style.TRUTH, alpha=alpha, linewidth=0.7, zorder=2)
    # Hollow and larger, so that a particle that hardly moved shows both.
    ax.plot(
        x[:, 0], y[:, 0], "o", color=style.BASE, mfc="none", ms=5.0, label="base, t = 0", zorder=3
    )
    ax.plot(x[:, -1], y[:, -1], "o", color=style.DRAWS, ms=3.0, label="end, t = 1", zorder=3)
    ax.set(xlabel=labels[shown[0]] if plane else "time t (0 base, 1 target)")
    ax.set(ylabel=labels[shown[-1]])
    if plane:
        ax.margins(0.05)
    if target is not None:
        _draw_contours(ax, target)
    style.tidy(ax)
    style.legend_above(ax)
    return ax


def _draw_contours(ax: "Axes", target: Target) -> None:
    """Regions of highest density, over the range that the axes have."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = np.linspace(left, right, _GRID), np.linspace(bottom, top, _GRID)
    points = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    values = np.asarray(jit(jax.vmap(target.log_density))(points), np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return  # nothing of the target is in view
    density = np.exp(np.where(finite, values, -np.inf) - values[finite].max())
    ordered = np.sort(density)[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    levels = sorted({float(ordered[np.searchsorted(held, mass)]) for mass in _MASSES})
    density = density.reshape(_GRID, _GRID)
    ax.contour(x, y, density, levels, colors=style.REFERENCE, linewidths=0.9, zorder=1)
    ax.plot([], [], color=style.REFERENCE, linewidth=0.9, label="target: 50, 90, 99 % of mass")
    ax.set(xlim=(left, right), ylim=(bottom, top))
