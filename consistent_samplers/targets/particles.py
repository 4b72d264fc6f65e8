"""Particle systems: interchangeable particles bound by the energy of their distances.

The densities live on configurations with their centre of mass at zero, in orthonormal coordinates
of that subspace: free translations would leave nothing to normalise. Rotations, reflections and
permutations of the particles leave the density unchanged.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import helmert

from consistent_samplers.checks import check_integer
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.numerics import safe_sqrt
from consistent_samplers.types import Array

# Of squared distances.
_PairEnergy: TypeAlias = Callable[[Array], Array]


def dw4() -> Target:
    """Four particles in the plane whose pairs have a double-well energy; 6 coordinates.

    log ρ = -Σ_{i<j} [-4 (d_ij - 4)² + 0.9 (d_ij - 4)⁴], every pair once: the equation
    1/(2τ) Σ_{i≠j} of Köhler, Klein & Noé, Equivariant flows (arXiv:2006.02425), with a = 0,
    b = -4, c = 0.9, d_0 = 4 and τ = 1. The centre of mass is fixed; rotations, reflections and
    permutations remain, which `bases.fit_symmetric` takes in. log Z is not known. The density has a
    cusp where two particles coincide, at exp(-170) of a pair's peak; the pair's gradient is taken
    to be zero there.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> square = 4.0 * jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
      >>> x = cs.targets.particle_coordinates(square)
      >>> round(float(cs.targets.dw4().log_density(x)), 2)
      8.4
    """

    def pair_energy(squared: Array) -> Array:
        offset = (safe_sqrt(squared) - 4.0) ** 2
        return offset * (0.9 * offset - 4.0)

    return _particle_target("dw4", 4, 2, pair_energy, stiffness=0.0)


def lj13(epsilon: float = 1.0) -> Target:
    """Thirteen Lennard-Jones particles in a weak trap; 36 coordinates.

    log ρ = -ε Σ_{i<j} [d_ij^-12 - 2 d_ij^-6] - ½ Σ_i |x_i - x̄|²: every pair once, r_m = τ = 1,
    the equation ε/(2τ) Σ_{i≠j} of Köhler, Klein & Noé, Equivariant flows (arXiv:2006.02425),
    with the trap of their code. The code and data of equivariant flow matching and iDEM
    (Akhound-Sadegh et al., arXiv:2402.06121) count every pair twice: ``epsilon=2.0`` here.

    The centre of mass is fixed; rotations, reflections and permutations remain. log Z is not
    known. Where a pair's repulsion ε d^-12 exceeds 4,096 (d < 1/2 for ε = 1), at a cost of over
    2,800 nats, its energy goes on linearly in d², finite in float32 where particles coincide.

    Args:
      epsilon: depth of a pair's well, in units of the temperature, up to 100.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.targets.particle_positions(jnp.zeros(cs.targets.lj13().dim), 13).shape
      (13, 3)
    """
    return _particle_target("lj13", 13, 3, _lennard_jones(epsilon), stiffness=1.0)


def lj55(epsilon: float = 1.0) -> Target:
    """Fifty-five Lennard-Jones particles in a weak trap; 162 coordinates.

    The density of ``lj13`` with more particles; ``epsilon`` as there.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.lj55().dim
      162
    """
    return _particle_target("lj55", 55, 3, _lennard_jones(epsilon), stiffness=1.0)


def particle_positions(x: Array, num_particles: int) -> Array:
    """Positions ``[..., num_particles, spatial_dim]``, with their centre of mass at zero.

    The map is an isometry: Σ_i |position_i|² = |x|².

    Args:
      x: ``[..., (num_particles - 1) * spatial_dim]``, points of a particle target.
      num_particles: number of particles, at least 2.

    Raises:
      ValueError: the last axis does not go with that number of particles.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.targets.particle_positions(jnp.arange(6.0), num_particles=4).shape
      (4, 2)
    """
    check_integer("num_particles", num_particles, 2)
    if x.ndim < 1 or x.shape[-1] == 0 or x.shape[-1] % (num_particles - 1):
        raise ValueError(
            f"x must have a last axis of (num_particles - 1) * spatial_dim, a multiple of "
            f"{num_particles - 1}, got shape {x.shape}."
        )
    free = x.reshape(*x.shape[:-1], num_particles - 1, -1)
    # The rows of Helmert's matrix are an orthonormal basis of the vectors with zero sum.
    basis = jnp.asarray(helmert(num_particles).T, x.dtype)
    return jnp.einsum("nk,...ks->...ns", basis, free, precision=jax.lax.Precision.HIGHEST)


def particle_coordinates(positions: Array) -> Array:
    """Coordinates ``[..., (num_particles - 1) * spatial_dim]`` of a configuration.

    The centre of mass is taken out; then this is the inverse of ``particle_positions``.

    Args:
      positions: ``[..., num_particles, spatial_dim]``.

    Raises:
      ValueError: fewer than two axes or particles.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> square = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
      >>> cs.targets.particle_coordinates(square).shape
      (6,)
    """
    if positions.ndim < 2 or positions.shape[-2] < 2:
        raise ValueError(
            "positions must have shape [..., num_particles, spatial_dim] with at least 2 "
            f"particles, got {positions.shape}."
        )
    basis = jnp.asarray(helmert(positions.shape[-2]).T, positions.dtype)
    free = jnp.einsum("nk,...ns->...ks", basis, positions, precision=jax.lax.Precision.HIGHEST)
    return free.reshape(*positions.shape[:-2], -1)


def particle_symmetries(
    num_particles: int, spatial_dim: int, *, num_rotations: int = 32
) -> np.ndarray:
    """Orthogonal matrices ``[n, dim, dim]`` that generate symmetries of a particle target.

    On the coordinates of ``particle_coordinates``, dim = (num_particles - 1) * spatial_dim: two
    permutations that generate all of them, and of the space a reflection and rotations, in the
    plane by 2π / num_rotations, else by right angles. For ``cs.bases.symmetric``.

    Args:
      num_particles: number of particles, at least 2.
      spatial_dim: dimension of their space.
      num_rotations: of the circle of rotations of the plane, this many are kept.

    Raises:
      ValueError: numbers out of range.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.particle_symmetries(4, 2).shape
      (4, 6, 6)
    """
    check_integer("num_particles", num_particles, 2)
    check_integer("spatial_dim", spatial_dim)
    check_integer("num_rotations", num_rotations)
    basis = helmert(num_particles)
    order = np.arange(num_particles)
    swapped = np.concatenate([order[1::-1], order[2:]])
    moves = [np.diag([-1.0] + (spatial_dim - 1) * [1.0])]
    angle = 2.0 * np.pi / num_rotations if spatial_dim == 2 else 0.5 * np.pi
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for i in range(spatial_dim - 1):
        move = np.eye(spatial_dim)
        move[i : i + 2, i : i + 2] = turn
        moves.append(move)
    return np.stack(
        [
            *(
                np.kron(basis @ np.eye(num_particles)[p] @ basis.T, np.eye(spatial_dim))
                for p in (swapped, np.roll(order, 1))
            ),
            *(np.kron(np.eye(num_particles - 1), move) for move in moves),
        ]
    )


def _particle_target(
    name: str, num_particles: int, spatial_dim: int, pair_energy: _PairEnergy, stiffness: float
) -> Target:
    """Target of a pair energy in a harmonic trap."""
    # As int32: JAX trips over 64-bit host indices when its precision is changed in between.
    first, second = np.stack(np.triu_indices(num_particles, k=1)).astype(np.int32)

    def log_density(x: Array) -> Array:
        positions = particle_positions(x, num_particles)
        squared = jnp.sum((positions[first] - positions[second]) ** 2, axis=-1)
        # Coordinates are orthonormal: Σ_i |x_i - x̄|² is their own sum of squares.
        return -jnp.sum(pair_energy(squared)) - 0.5 * stiffness * jnp.sum(x**2)

    return Target(log_density, (num_particles - 1) * spatial_dim, name=name)


def _lennard_jones(epsilon: float) -> _PairEnergy:
    """Energy ε (d^-12 - 2 d^-6), continued to be finite at 0."""
    if not (math.isfinite(epsilon) and 0 < epsilon <= 100):
        raise ValueError(
            f"epsilon must be positive and at most 100, got {epsilon!r}. It is the depth of a "
            "pair's well over the temperature."
        )
    closest = (epsilon / 4096.0) ** (1 / 6)
    slope = -6 * epsilon * (closest**-7 - closest**-4)

    def pair_energy(squared: Array) -> Array:
        kept = jnp.maximum(squared, closest)
        attraction = kept**-3
        missing = jnp.minimum(squared - closest, 0.0)
        return epsilon * attraction * (attraction - 2) + slope * missing

    return pair_energy
