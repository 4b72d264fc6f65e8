"""Lattice fields: the action by definition, its symmetries, the Gaussian case in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import consistent_samplers as cs

# jax < 0.8 has the context manager under another name.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def laplacian(length):
    """□ of the paper by its definition, site by site: [length², length²]."""
    matrix = np.zeros((length**2, length**2))
    for i, j in itertools.product(range(length), repeat=2):
        x = i * length + j
        for di, dj in [(1, 0), (0, 1)]:
            matrix[x, x] += 2
            for sign in (1, -1):
                y = (i + sign * di) % length * length + (j + sign * dj) % length
                matrix[x, y] -= 1
    return matrix


def log_densities(target, fields):
    points = jnp.asarray(fields).reshape(len(fields), -1)
    return np.asarray(jax.jit(jax.vmap(target.log_density))(points))


@pytest.mark.parametrize("length", [2, 3, 8])
def test_density_is_the_papers_action(length):
    target = cs.targets.phi4(length, mass_squared=-1.3, coupling=0.7)
    assert (target.name, target.dim, target.log_z, target.sample) == ("phi4", length**2, None, None)
    fields = np.random.default_rng(0).normal(size=(3, length**2))
    kinetic = np.einsum("ni,ij,nj->n", fields, laplacian(length), fields)
    expected = -(kinetic + (-1.3 * fields**2 + 0.7 * fields**4).sum(1))
    with enable_x64(True):
        np.testing.assert_allclose(log_densities(target, fields), expected, rtol=1e-12)
    single = log_densities(target, fields.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-4)


def test_symmetries():
    field = np.random.default_rng(1).normal(size=(6, 6))
    same = [field, -field, np.roll(field, 1, 0), np.roll(field, (2, 5), (0, 1)), field[::-1]]
    same += [field[:, ::-1], field.T, np.rot90(field)]
    other = np.random.default_rng(2).permutation(field.ravel()).reshape(6, 6)
    with enable_x64(True):
        values = log_densities(cs.targets.phi4(6), np.stack([*same, other]))
    np.testing.assert_allclose(values[:-1], values[0], rtol=1e-12)
    assert abs(values[-1] - values[0]) > 1.0


def test_gradient_is_minus_the_equation_of_motion():
    length, m2, coupling = 5, -4.0, 6.0
    x = np.random.default_rng(3).normal(size=length**2)
    expected = -(2 * laplacian(length) @ x + 2 * m2 * x + 4 * coupling * x**3)
    with enable_x64(True):
        found = jax.grad(cs.targets.phi4(length, m2, coupling).log_density)(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("length", "mass_squared"), [(2, 0.5), (5, 1.0), (8, 0.01)])
def test_log_z_without_coupling_is_the_determinant(length, mass_squared):
    target = cs.targets.phi4(length, mass_squared, coupling=0.0)
    sign, log_det = np.linalg.slogdet(laplacian(length) + mass_squared * np.eye(length**2))
    expected = 0.5 * (length**2 * np.log(np.pi) - log_det)
    assert sign == 1.0
    np.testing.assert_allclose(target.log_z, expected, rtol=1e-10)
    # The formula of the docstring.
    wave = 4 * np.sin(np.pi * np.arange(length) / length) ** 2
    modes = mass_squared + wave[:, None] + wave
    np.testing.assert_allclose(target.log_z, 0.5 * np.log(np.pi / modes).sum(), rtol=1e-10)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_draws_without_coupling(make_key):
    length, num = 3, 20_000
    target = cs.targets.phi4(length, mass_squared=0.5, coupling=0.0)
    draws = np.asarray(target.sample(make_key(0), num), np.float64)
    assert draws.shape == (num, 9)
    covariance = np.linalg.inv(2 * (laplacian(length) + 0.5 * np.eye(9)))
    # Each entry's standard error from the fourth moments of a normal; 45 entries.
    var = np.diag(covariance)
    error = np.sqrt((np.outer(var, var) + covariance**2) / num)
    assert (np.abs(draws.T @ draws / num - covariance) < 4.5 * error).all()
    # -log ρ of a Gaussian of 9 dimensions is half a chi-square: mean 4.5, variance 4.5.
    values = -log_densities(target, draws.astype(np.float32))
    assert abs(values.mean() - 4.5) < 4.5 * np.sqrt(4.5 / num)


def test_no_coupling_is_the_limit_of_a_weak_one():
    # Two by two with a coupling: log Z by quadrature over the sites, each neighbour met twice.
    grid = np.linspace(-4.0, 4.0, 33)
    mesh = np.stack(np.meshgrid(*[grid] * 4, indexing="ij"), -1).reshape(-1, 4)

    def log_z(coupling):
        with enable_x64(True):
            rho = np.exp(log_densities(cs.targets.phi4(2, 1.0, coupling), mesh)).reshape([33] * 4)
        for _ in range(4):
            rho = scipy.integrate.trapezoid(rho, grid, axis=-1)
        return np.log(rho)

    exact = cs.targets.phi4(2, 1.0, 0.0).log_z
    np.testing.assert_allclose(log_z(0.0), exact, atol=1e-6)
    # To first order log Z falls by λ Σ_x 3 ⟨φ²⟩².
    var = np.diag(np.linalg.inv(2 * (laplacian(2) + np.eye(4))))
    np.testing.assert_allclose(log_z(1e-3) - exact, -1e-3 * 3 * (var**2).sum(), rtol=0.01)


def test_strict_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        target = cs.targets.phi4(3, 1.0, 0.0)
        jax.eval_shape(jax.grad(target.log_density), jnp.zeros(9))
        target.sample(jax.random.key(0), 2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"length": 1}, "length must be"),
        ({"length": 2.5}, "length must be"),
        ({"mass_squared": float("nan")}, "must be finite"),
        ({"coupling": float("inf")}, "must be finite"),
        ({"coupling": -0.1}, "not negative"),
        ({"mass_squared": 0.0, "coupling": 0.0}, "must be positive"),
        ({"mass_squared": -4.0, "coupling": 0.0}, "must be positive"),
    ],
)
def test_bad_input_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        cs.targets.phi4(**arguments)
