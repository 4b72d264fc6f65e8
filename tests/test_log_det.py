"""Log-determinants of sampler steps against NumPy in float64 and against autodiff."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from consistent_samplers import log_det, simulate
from consistent_samplers.processes import OrnsteinUhlenbeck

pytestmark = pytest.mark.usefixtures("strict_ranks")

# One size on each side of the threshold to LAPACK, which is crossed on purpose.
LARGE = log_det.MAX_ELIMINATION_DIM + 16
seeds = st.integers(0, 2**31 - 1)
slogdet = jax.jit(log_det.slogdet)
solve = jax.jit(log_det.solve)
gauss_jordan = jax.jit(log_det.gauss_jordan)


def random_matrices(seed: int, *shape: int) -> np.ndarray:
    """Gaussian matrices, none nearly singular: they would test float32, not the code."""
    rng = np.random.default_rng(seed)
    matrices = rng.normal(size=shape)
    hopeless = np.linalg.cond(matrices) > 1e3
    matrices[hopeless] += 3.0 * np.sqrt(shape[-1]) * np.eye(shape[-1])
    return matrices.astype(np.float32)


def check_slogdet(matrices: np.ndarray) -> None:
    sign, log_abs = np.linalg.slogdet(matrices.astype(np.float64))
    det = slogdet(jnp.asarray(matrices))
    np.testing.assert_array_equal(det.sign, sign)
    np.testing.assert_allclose(det.log_abs_det, log_abs, rtol=1e-5, atol=1e-3)


@given(dim=st.integers(1, 40), seed=seeds)
def test_slogdet_matches_numpy(dim, seed):
    check_slogdet(random_matrices(seed, 16, dim, dim))


@pytest.mark.parametrize("dim", [1, 2, log_det.MAX_ELIMINATION_DIM, LARGE])
def test_slogdet_at_special_sizes(dim):
    matrices = random_matrices(dim, 2, 3, dim, dim)
    matrices[0, :, 0] *= -1.0
    check_slogdet(matrices)


def test_random_matrices_have_both_signs():
    # Guards the tests above: with one sign only they would not see a wrong one.
    sign, _ = np.linalg.slogdet(random_matrices(0, 16, 7, 7))
    assert set(sign) == {-1.0, 1.0}


def test_unbatched_matrix():
    det = log_det.slogdet(jnp.diag(jnp.array([2.0, -3.0])))
    assert det.sign == -1.0
    np.testing.assert_allclose(det.log_abs_det, np.log(6.0), rtol=1e-6)


def test_every_permutation_of_four():
    # Every pivot order there is, and with it every parity.
    eye = np.eye(4, dtype=np.float32)
    matrices = np.stack([eye[list(p)] for p in itertools.permutations(range(4))])
    det = slogdet(jnp.asarray(matrices))
    np.testing.assert_array_equal(det.sign, np.round(np.linalg.det(matrices)))
    np.testing.assert_array_equal(det.log_abs_det, 0.0)


@given(seed=seeds)
def test_rows_of_very_different_scale(seed):
    # Pivoting has to find the large row wherever it is.
    matrices = random_matrices(seed, 8, 6, 6)
    scale = 10.0 ** np.random.default_rng(seed).uniform(-4, 4, size=(8, 6, 1))
    sign, log_abs = np.linalg.slogdet(matrices.astype(np.float64))
    det = slogdet(jnp.asarray(scale * matrices, jnp.float32))
    np.testing.assert_array_equal(det.sign, sign)
    np.testing.assert_allclose(
        det.log_abs_det, log_abs + np.log(scale).sum((-2, -1)), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((1, 1)),
        np.zeros((3, 3)),
        np.ones((2, 2)),
        np.ones((4, 4)),
        np.diag([1.0, 0.0, 2.0]),
        np.diag([0.0, 1.0, 2.0]),
        np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]]),
        np.diag(np.arange(float(LARGE))),
    ],
    ids=["zero1", "zero3", "ones2", "ones4", "diagonal", "first", "multiple", "lapack"],
)
def test_singular(matrix):
    det = slogdet(jnp.asarray(matrix, jnp.float32))
    assert det.sign == 0.0
    assert det.log_abs_det == -jnp.inf


@pytest.mark.parametrize("dim", [3, 20, LARGE])
def test_gradient_is_the_inverse_transpose(dim):
    matrices = random_matrices(dim, 4, dim, dim)
    grads = jax.jit(jax.grad(lambda m: log_det.slogdet(m).log_abs_det.sum()))(matrices)
    expected = np.linalg.inv(matrices.astype(np.float64)).swapaxes(-1, -2)
    np.testing.assert_allclose(grads, expected, rtol=1e-2, atol=1e-3)


def test_second_derivative():
    matrix, direction = random_matrices(3, 2, 5, 5)

    def along(s):
        return log_det.slogdet(matrix + s * direction).log_abs_det

    # d²/ds² log |det (M + s D)| = -tr (M⁻¹ D M⁻¹ D).
    ratio = np.linalg.solve(matrix.astype(np.float64), direction)
    for second in (jax.grad(jax.grad(along)), jax.jacfwd(jax.jacrev(along))):
        np.testing.assert_allclose(jax.jit(second)(0.0), -np.trace(ratio @ ratio), rtol=1e-3)


@given(seed=seeds)
def test_inverse(seed):
    matrix = random_matrices(seed, 9, 9)
    _, inverse = gauss_jordan(jnp.asarray(matrix))
    np.testing.assert_allclose(inverse @ matrix, np.eye(9), atol=2e-3)


@pytest.mark.parametrize("dim", [1, 6, LARGE])
def test_solve(dim):
    matrix, rhs = random_matrices(dim, dim, dim), random_matrices(dim + 1, dim, dim)[0]
    expected = np.linalg.solve(matrix.astype(np.float64), rhs)
    solution = log_det.solve(jnp.asarray(matrix), jnp.asarray(rhs))
    np.testing.assert_allclose(solution, expected, rtol=1e-2, atol=1e-3)


def sylvester(rank: int, seed: int) -> log_det.Sylvester:
    """Six dimensions; the product of its factors is triangular, with a diagonal of both signs."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(6, rank)))
    right = np.triu(rng.normal(size=(rank, rank))) @ left.T
    parts = rng.uniform(0.5, 2.0, 6), rng.uniform(0.0, 2.0, rank), left, right, right @ left
    return log_det.Sylvester(*(jnp.asarray(part, jnp.float32) for part in parts))


@pytest.mark.parametrize("rank", [1, 3, 6])
@given(seed=seeds)
def test_sylvester_matches_dense(rank, seed):
    matrix = sylvester(rank, seed)
    full = np.asarray(matrix.dense(), np.float64)
    # A float32 determinant of a matrix that is next to singular says little.
    assume(np.linalg.cond(full) < 1e3)
    sign, log_abs = np.linalg.slogdet(full)
    vector = np.random.default_rng(seed + 1).normal(size=6).astype(np.float32)
    for parts, whole in ((matrix, full), (matrix.mT, full.T)):
        det = slogdet(parts)
        assert det.sign == sign
        np.testing.assert_allclose(det.log_abs_det, log_abs, atol=2e-3)
        np.testing.assert_allclose(parts.dense(), whole, rtol=1e-6)
        np.testing.assert_allclose(parts @ jnp.asarray(vector), whole @ vector, atol=1e-4)
        solution = solve(parts, jnp.asarray(vector))
        np.testing.assert_allclose(whole @ np.asarray(solution), vector, rtol=1e-2, atol=1e-2)
        multiply, distance = log_det.symmetric_part(parts)
        symmetric = 0.5 * (full + full.T)
        np.testing.assert_allclose(multiply(jnp.asarray(vector)), symmetric @ vector, atol=1e-4)
        assert distance >= 0.999 * np.linalg.norm(symmetric - np.eye(6), 2)


def test_sylvester_matrices_have_both_signs():
    signs = {float(slogdet(sylvester(3, seed)).sign) for seed in range(20)}
    assert signs == {-1.0, 1.0}


def test_a_batch_of_sylvester_matrices():
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), sylvester(3, 0), sylvester(3, 1))
    for i in (0, 1):
        single = sylvester(3, i)
        np.testing.assert_allclose(
            slogdet(stacked).log_abs_det[i], slogdet(single).log_abs_det, rtol=1e-5
        )
        np.testing.assert_allclose(stacked.dense()[i], single.dense(), rtol=1e-6)


def nonlinear(weights: jax.Array):
    """A map with a dense Jacobian that is not symmetric."""
    return lambda x: jnp.tanh(weights @ x) + 0.3 * x**2


def test_value_and_jacobian():
    fn = nonlinear(jnp.asarray(random_matrices(0, 5, 5)))
    x = jnp.linspace(-1.0, 1.0, 5)
    value, jacobian = log_det.value_and_jacobian(fn, x)
    np.testing.assert_allclose(value, fn(x), rtol=1e-6)
    np.testing.assert_allclose(jacobian, jax.jacrev(fn)(x), rtol=1e-5, atol=1e-6)


def test_hutchinson_trace_is_unbiased():
    fn = nonlinear(jnp.asarray(random_matrices(0, 4, 4)))
    x = jnp.linspace(-1.0, 1.0, 4)
    # The average over all Rademacher probes is the expectation itself.
    probes = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=4)))
    traces = jax.vmap(lambda probe: log_det.hutchinson_trace(fn, x, probe))(probes)
    np.testing.assert_allclose(traces.mean(), jnp.trace(jax.jacrev(fn)(x)), rtol=1e-5)
    assert traces.std() > 0.1


@pytest.mark.parametrize("integrator", ["exponential", "euler_maruyama"])
@pytest.mark.parametrize("scale", [0.5, -3.0], ids=["injective", "folding"])
def test_flow_path_matches_the_jacobian_of_the_composed_map(integrator, scale):
    process = OrnsteinUhlenbeck(integrator=integrator)
    weights = jnp.eye(3) + 0.3 * jnp.asarray(random_matrices(5, 3, 3))

    def control(x, t, d):
        return scale * jnp.tanh(weights @ x + t) + d * x

    x0 = jax.random.normal(jax.random.key(0), (64, 3))
    path = jax.jit(jax.vmap(lambda x: simulate.flow_path(control, process, x, 4)))(x0)
    end, jacobian = jax.jit(
        jax.vmap(
            lambda x: (
                simulate.flow_map(control, process, x, 4),
                jax.jacfwd(lambda y: simulate.flow_map(control, process, y, 4))(x),
            )
        )
    )(x0)
    np.testing.assert_allclose(path.position[:, -1], end, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(path.position[:, 0], x0)
    sign, log_abs = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    well = np.linalg.cond(jacobian) < 1e3
    assert well.mean() > 0.5
    np.testing.assert_array_equal(path.sign.prod(-1)[well], sign[well])
    np.testing.assert_allclose(path.log_abs_det.sum(-1)[well], log_abs[well], atol=5e-3)
    # The folding control must fold, the other must not.
    assert bool((path.sign <= 0).any()) == (scale < 0)


def test_gradient_of_the_path_determinant_in_closed_form():
    process, dim, num_steps = OrnsteinUhlenbeck(), 3, 4

    def total(c):
        path = simulate.flow_path(lambda x, t, d: c * x, process, jnp.ones(dim), num_steps)
        return path.log_abs_det.sum()

    # Each step of the control c x is a multiplication by 1 + c (a(t + d) - a(t)).
    gain = np.diff([float(process.signal(k / num_steps)) for k in range(num_steps + 1)])
    value, grad = jax.value_and_grad(total)(0.7)
    np.testing.assert_allclose(value, dim * np.log1p(0.7 * gain).sum(), rtol=1e-4)
    np.testing.assert_allclose(grad, dim * (gain / (1 + 0.7 * gain)).sum(), rtol=1e-4)
