"""Flow perturbation: weights of a map without its Jacobian, exact whatever the inverse is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.corrections import perturbed

MEAN, COVARIANCE = np.array([0.5, -0.3]), np.array([[1.2, 0.3], [0.3, 0.7]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)
SHIFTED = cs.Target(lambda x: TARGET.log_density(x) + 2.0, 2, "shifted")
LOG_Z = float(TARGET.log_z) + 2.0
# Of a map that is affine: T(z) = m + J z.
JACOBIAN = np.array([[1.15, 0.2], [-0.1, 0.9]])


def affine(jacobian, num_steps=1, base=None):
    """A sampler whose map is m + J z in one step, and as close to it as flow steps are in more."""
    control = cs.osds(SHIFTED, base=cs.bases.standard_normal(2), hidden=(8,)).control
    reach = 1.0 - float(control.process.signal(0.0))
    weight = jnp.asarray((jacobian - np.eye(2)) / reach, jnp.float32)
    shift = jnp.asarray(MEAN / reach, jnp.float32)
    network = cs.networks.Network(lambda key: (), lambda params, x, t, d: weight @ x + shift)
    base = cs.bases.standard_normal(2) if base is None else base
    settings = {"network": network, "guidance": None, "max_steps": num_steps}
    algorithm = cs.osds(SHIFTED, base=base, **settings)
    return algorithm, algorithm.init(jax.random.key(0))


def check(draws, mean=MEAN, covariance=COVARIANCE, log_z=LOG_Z):
    """E[w] = Z and E[w f] = Z E[f] for the moments, at 4 standard errors: fails in 1 of 3,000."""
    assert draws.bound == "lower"
    x = np.asarray(draws.position, float)
    w = np.exp(np.asarray(draws.log_weight, float) - log_z)
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :] - covariance
    zero = np.concatenate([centred, products.reshape(-1, 4)], axis=1)
    terms = np.concatenate([w[:, None] - 1.0, w[:, None] * zero], axis=1)
    stderr = terms.std(0, ddof=1) / len(w) ** 0.5
    np.testing.assert_array_less(np.abs(terms.mean(0)), 4.0 * stderr)
    assert stderr[0] < 0.03
    return w


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_iterations": 1},  # a poor inverse costs variance, and no bias
        {"noise": 0.3, "backward_noise": 0.25},
    ],
)
def test_weights_are_unbiased_whatever_the_inverse(settings):
    algorithm, state = affine(JACOBIAN)
    check(perturbed(jax.random.key(1), algorithm, state, 8_192, **settings))


@pytest.mark.parametrize("backward", [None, 0.02])
def test_the_price_of_leaving_out_the_determinant(backward):
    # The target is the map's image: its exact weights do not vary, and all variance is the noise's.
    exact = cs.targets.gaussian(MEAN, JACOBIAN @ JACOBIAN.T)
    algorithm, state = affine(JACOBIAN)
    algorithm = cs.algorithms.build(exact, algorithm.objective, control=algorithm.control)
    own = algorithm.sample(jax.random.key(2), state, 100)
    assert float(own.log_weight.std()) < 1e-4
    inverse = np.linalg.inv(JACOBIAN)
    a = inverse.T @ inverse
    if backward is None:  # the mean square of J⁻¹ ε by coordinate, from the pilot's 256 draws
        a = a * 2.0 / np.trace(a)
    settings = {"noise": 0.02, "backward_noise": backward, "num_iterations": 30}
    draws = perturbed(jax.random.key(3), algorithm, state, 20_480, **settings)
    gap = np.asarray(draws.log_weight) - float(exact.log_z)
    left = np.eye(2) - a
    expected = 0.5 * np.trace(left @ left)
    # Standard error of a variance; the exponent is a quadratic form with excess kurtosis 3 to 12.
    # The pilot's noise is off by 1 / √512, which the variance feels in proportion to tr (I - A).
    tolerance = 4.0 * expected * (10.0 / len(gap)) ** 0.5 + (0.0 if backward else 0.02)
    assert abs(gap.var() - expected) < tolerance < 0.5 * expected
    if backward:  # and the mean, E[log w] = log Z + ½ tr (I - A) + log |det J⁻¹|
        mean = 0.5 * np.trace(left) + np.linalg.slogdet(inverse)[1]
        assert abs(gap.mean() - mean) < 4.0 * gap.std() / len(gap) ** 0.5 + 1e-3


def test_several_steps_are_perturbed_one_by_one():
    algorithm, state = affine(JACOBIAN, 4)
    check(perturbed(jax.random.key(4), algorithm, state, 8_192, 4))


def test_frames_of_a_mixture():
    loc = jnp.array([[1.0, 0.0], [-0.5, -0.5]])
    base = cs.bases.mixture(jnp.log(jnp.array([0.6, 0.4])), loc, jnp.tile(jnp.eye(2), (2, 1, 1)))
    algorithm, state = affine(np.eye(2) + 0.1, base=base)
    check(perturbed(jax.random.PRNGKey(5), algorithm, state, 12_288))


def test_an_iteration_that_diverges_still_leaves_a_density():
    # T(z) = m + 40 z: the iterates grow by 39 each, beyond the largest number of single precision.
    wide = cs.targets.gaussian(MEAN, 1600.0 * np.eye(2))
    algorithm, state = affine(40.0 * np.eye(2))
    algorithm = cs.algorithms.build(wide, algorithm.objective, control=algorithm.control)
    draws = perturbed(jax.random.key(6), algorithm, state, 500, num_iterations=60)
    assert not bool(jnp.isnan(draws.log_weight).any())
    assert bool(jnp.isfinite(draws.log_weight).any())


def test_a_guided_network():
    settings = {"guidance": "ratio", "hidden": (8,), "max_steps": 1}
    algorithm = cs.osds(SHIFTED, base=cs.bases.standard_normal(2), **settings)
    # Not trained, but away from the identity and with the gate open.
    state = jax.tree.map(lambda x: x + 0.01, algorithm.init(jax.random.key(0)))
    check(perturbed(jax.random.key(7), algorithm, state, 4_096))


def test_bad_input_is_refused():
    algorithm, state = affine(JACOBIAN)
    key = jax.random.key(0)
    for settings, message in (
        ({"noise": 0.0}, "noise must be positive"),
        ({"backward_noise": -1.0}, "backward_noise must be positive"),
        ({"num_iterations": 0}, "num_iterations must be a positive integer"),
        ({"num_steps": 3}, "num_steps=3"),
    ):
        with pytest.raises(ValueError, match=message):
            perturbed(key, algorithm, state, 10, **settings)
    base = cs.bases.DiagonalBase(jnp.zeros(2), jnp.ones(2))
    control = cs.maps.hierarchical_map(base, SHIFTED.structure)
    fixed = cs.algorithms.build(SHIFTED, algorithm.objective, control=control)
    with pytest.raises(ValueError, match="no flow steps to perturb"):
        perturbed(key, fixed, state, 10)
