"""Particle systems: energies against the papers' sums, symmetries, finite values everywhere."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from consistent_samplers import targets
from consistent_samplers.targets import particles

# jax < 0.8 has the context manager under another name.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

SYSTEMS = {  # factory, number of particles, dimension of their space
    "dw4": (targets.dw4, 4, 2),
    "lj13": (targets.lj13, 13, 3),
    "lj55": (targets.lj55, 55, 3),
}


def configuration(num_particles, spatial_dim, seed=0):
    """Particles on a jittered grid, 1.1 apart: no two closer than 0.7; [n, spatial_dim]."""
    side = math.ceil(num_particles ** (1 / spatial_dim))
    grid = np.array(list(itertools.product(range(side), repeat=spatial_dim)))[:num_particles]
    jitter = np.random.default_rng(seed).uniform(-0.1, 0.1, grid.shape)
    return 1.1 * grid + jitter


def log_densities(target, points):
    return np.asarray(jax.jit(jax.vmap(target.log_density))(jnp.asarray(points)))


def ordered_pair_distances(positions):
    """|x_i - x_j| over all i ≠ j: every pair twice."""
    return [np.linalg.norm(a - b) for a, b in itertools.permutations(positions, 2)]


def lennard_jones_energy(positions, epsilon):
    """The papers' sum over ordered pairs with ε/(2τ), and the trap."""
    d = np.array(ordered_pair_distances(positions))
    trap = 0.5 * ((positions - positions.mean(axis=0)) ** 2).sum()
    return epsilon / 2 * (d**-12 - 2 * d**-6).sum() + trap


def double_well_energy(positions):
    d = np.array(ordered_pair_distances(positions))
    return 0.5 * (0 * (d - 4) - 4 * (d - 4) ** 2 + 0.9 * (d - 4) ** 4).sum()


@pytest.mark.parametrize("name", SYSTEMS)
def test_density_is_the_papers_energy(name):
    factory, num_particles, spatial_dim = SYSTEMS[name]
    target = factory()
    assert (target.name, target.log_z, target.sample) == (name, None, None)
    assert target.dim == (num_particles - 1) * spatial_dim
    scale = 3.0 if name == "dw4" else 1.0
    batch = np.stack([scale * configuration(num_particles, spatial_dim, s) for s in range(3)])
    energy = double_well_energy if name == "dw4" else lambda x: lennard_jones_energy(x, 1.0)
    expected = [-energy(positions) for positions in batch]
    with enable_x64(True):
        points = particles.particle_coordinates(jnp.asarray(batch))
        np.testing.assert_allclose(log_densities(target, points), expected, rtol=1e-12)
    single = log_densities(target, np.asarray(points, np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=2e-5)


def test_epsilon_two_counts_every_pair_twice():
    positions = configuration(13, 3)
    d = np.array(ordered_pair_distances(positions))
    # As released with iDEM: the sum over ordered pairs without the half.
    expected = -(d**-12 - 2 * d**-6).sum()
    expected -= 0.5 * ((positions - positions.mean(axis=0)) ** 2).sum()
    with enable_x64(True):
        point = particles.particle_coordinates(jnp.asarray(positions))
        log_density = targets.lj13(epsilon=2.0).log_density(point)
    np.testing.assert_allclose(log_density, expected, rtol=1e-12)


def test_lj13_icosahedron_has_the_known_minimum():
    # Lowest energy of 13 particles: -44.326801 ε (Hoare & Pal 1971, Cambridge Cluster Database).
    golden = (1 + math.sqrt(5)) / 2
    signs = itertools.product((-1, 1), (-golden, golden))
    shell = np.array([np.roll([0, a, b], k) for a, b in signs for k in range(3)])
    cluster = np.concatenate([np.zeros((1, 3)), shell / np.linalg.norm(shell[0])])
    radii = np.linspace(0.9, 1.0, 1001)
    with enable_x64(True):
        scaled = jnp.asarray(radii[:, None, None] * cluster)
        points = np.asarray(particles.particle_coordinates(scaled))
        energy = -log_densities(targets.lj13(), points) - 0.5 * np.sum(points**2, axis=1)
    np.testing.assert_allclose(energy.min(), -44.326801, atol=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_density_keeps_the_symmetries(name):
    factory, num_particles, spatial_dim = SYSTEMS[name]
    rng = np.random.default_rng(1)
    x = configuration(num_particles, spatial_dim)
    rotation = scipy.stats.ortho_group.rvs(spatial_dim, random_state=2)
    mirror = np.diag([-1.0] + [1.0] * (spatial_dim - 1))
    shift = rng.standard_normal(spatial_dim)
    images = np.stack([x, x @ rotation, x @ mirror, rng.permutation(x), x + shift])
    with enable_x64(True):
        points = particles.particle_coordinates(jnp.asarray(images))
        values = log_densities(factory(), points)
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    # Shifts are gone from the coordinates; all else remains in them.
    np.testing.assert_allclose(points[4], points[0], atol=1e-12)
    assert (np.abs(points[1:4] - points[0]).max(axis=1) > 0.1).all()


@pytest.mark.parametrize(("num_particles", "spatial_dim"), [(2, 1), (4, 2), (55, 3)])
def test_positions_and_coordinates_are_inverse_isometries(num_particles, spatial_dim):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 2, (num_particles - 1) * spatial_dim))
    with enable_x64(True):
        positions = particles.particle_positions(jnp.asarray(x), num_particles)
        assert positions.shape == (5, 2, num_particles, spatial_dim)
        np.testing.assert_allclose(positions.mean(axis=-2), 0.0, atol=1e-14)
        np.testing.assert_allclose((positions**2).sum(axis=(-2, -1)), (x**2).sum(axis=-1))
        back = particles.particle_coordinates(positions + 1.7)
        np.testing.assert_allclose(back, x, atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_density_is_finite_and_differentiable_where_particles_meet(name):
    factory, num_particles, spatial_dim = SYSTEMS[name]
    target = factory()
    apart = configuration(num_particles, spatial_dim)
    two, close = apart.copy(), apart.copy()
    two[1], close[1] = two[0], close[0] + 1e-4
    batch = jnp.asarray(np.stack([0 * apart, two, close, apart, 1e3 * apart]), jnp.float32)
    points = particles.particle_coordinates(batch)
    both = jax.jit(jax.vmap(jax.value_and_grad(target.log_density)))
    values, grads = both(points)
    assert values.dtype == grads.dtype == jnp.float32
    assert np.isfinite(values).all() and np.isfinite(grads).all()
    assert values[0] < values[1] < values[3]
    # A difference quotient in float64: the gradient is that of the value.
    with enable_x64(True):
        x = np.asarray(points[3], np.float64)
        direction = np.random.default_rng(4).standard_normal(x.shape)
        trio = np.stack([x, x + 1e-6 * direction, x - 1e-6 * direction])
        values, grads = (np.asarray(a) for a in both(jnp.asarray(trio)))
        np.testing.assert_allclose(grads[0] @ direction, (values[1] - values[2]) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.0])
def test_continued_repulsion_touches_no_density_that_matters(epsilon):
    energy = particles._lennard_jones(epsilon)
    d = np.linspace(0.0, 3.0, 3001)
    with enable_x64(True):
        values = np.asarray(energy(jnp.asarray(d**2)))
        slopes = np.asarray(jax.vmap(jax.grad(energy))(jnp.asarray(d**2)))
    exact = epsilon * (np.maximum(d, 1e-9) ** -12.0 - 2 * np.maximum(d, 1e-9) ** -6.0)
    # Unchanged wherever a pair costs less than 2,000 nats: exp(-2000) is 0 even in float64.
    kept = exact < 2000
    np.testing.assert_allclose(values[kept], exact[kept], rtol=1e-12, atol=1e-12)
    assert (values[~kept] > 1999).all() and (values <= exact + 1e-9).all()
    # No kink: finite, repulsive all the way to 0, and continuous in value and slope.
    assert np.isfinite(values).all() and (slopes[d < 0.99] < 0).all()
    steep = d < 0.99
    assert np.abs(np.diff(slopes[steep])).max() < 0.05 * np.abs(slopes).max()
    assert np.abs(np.diff(values[steep])).max() < 0.05 * values.max()


@pytest.mark.parametrize("factory", [targets.lj13, targets.lj55])
@pytest.mark.parametrize("epsilon", [0.0, -1.0, 101.0, float("nan"), float("inf")])
def test_bad_epsilon_is_refused(factory, epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive"):
        factory(epsilon)


@pytest.mark.parametrize("name", SYSTEMS)
def test_strict_rank_promotion(name):
    with jax.numpy_rank_promotion("raise"):
        target = SYSTEMS[name][0]()
        jax.eval_shape(jax.grad(target.log_density), jnp.zeros(target.dim))


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="a multiple of 3"):
        particles.particle_positions(jnp.zeros(7), 4)
    with pytest.raises(ValueError, match="a multiple of 3"):
        particles.particle_positions(jnp.zeros(()), 4)
    with pytest.raises(ValueError, match="num_particles must be"):
        particles.particle_positions(jnp.zeros(6), 1)
    with pytest.raises(ValueError, match="at least 2 particles"):
        particles.particle_coordinates(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 particles"):
        particles.particle_coordinates(jnp.zeros(3))
