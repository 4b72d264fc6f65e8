"""Stochastic normalising flows: exact weights of mixed layers, both ways."""

import jax
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.algorithms import snf

KEY = jax.random.key(0)
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[0.8, 0.4], [0.4, 0.5]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)


def build(**settings):
    small = {"base": cs.bases.standard_normal(2), "max_steps": 4, "hidden": (8,)}
    return snf(TARGET, **small | {"batch_size": 64} | settings)


def perturbed(state, scale):
    leaves, structure = jax.tree.flatten(state.ema_params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return state._replace(ema_params=jax.tree.unflatten(structure, noisy))


@pytest.mark.slow
@pytest.mark.parametrize("integrator", ["exponential", "euler_maruyama"])
def test_weights_hold_for_any_parameters_in_both_directions(integrator):
    algorithm = build(integrator=integrator)
    state = perturbed(algorithm.init(KEY), 0.3)
    draws = algorithm.sample(jax.random.PRNGKey(1), state, 8_000)
    e = cs.evidence(draws)
    # Four standard errors.
    assert abs(float(e.log_z) - TARGET.log_z) < 4.0 * float(e.log_z_stderr)
    assert draws.bound == "lower" and float(e.elbo) < TARGET.log_z
    weight = np.asarray(jax.nn.softmax(draws.log_weight))
    error = 5.0 / np.sqrt(8_000 * float(e.ess))
    np.testing.assert_allclose(weight @ np.asarray(draws.position), MEAN, atol=error)
    # Backwards from exact draws: E[1 / w] = 1 / Z.
    points = TARGET.sample(jax.random.key(2), 4_000)
    back = np.asarray(algorithm.reverse_log_weight(jax.random.key(3), state, points), np.float64)
    assert np.isfinite(back).all() and back.mean() > TARGET.log_z
    inverse = np.exp(TARGET.log_z - back)
    assert abs(inverse.mean() - 1.0) < 4.0 * inverse.std() / len(back) ** 0.5


@pytest.mark.slow
def test_training_makes_the_bound_tight(tmp_path):
    algorithm = build()
    before = cs.evidence(algorithm.sample(KEY, algorithm.init(KEY), 4_000))
    state = cs.fit(KEY, algorithm, 400, progress_bar=False).state
    draws = algorithm.sample(jax.random.key(1), state, 4_000)
    after = cs.evidence(draws)
    assert TARGET.log_z - after.elbo < 0.1 * (TARGET.log_z - before.elbo)
    assert abs(after.log_z - TARGET.log_z) < 4.0 * after.log_z_stderr < 0.1
    trained = cs.TrainedSampler.of(algorithm, state)
    trained.save(tmp_path)
    again = cs.load(tmp_path, TARGET).sample(jax.random.key(1), 4_000, 4)
    np.testing.assert_array_equal(again.position, draws.position)


def test_what_may_fold_is_refused():
    with pytest.raises(ValueError, match="fold nowhere"):
        build(network="general")
    with pytest.raises(ValueError, match="no deterministic map"):
        algorithm = build()
        cs.corrections.annealed(KEY, algorithm, algorithm.init(KEY), 10)
    # Its layers are no Gaussian steps: taken for such, they would be another sampler.
    state = algorithm.init(KEY)
    for wrong in (
        lambda: cs.corrections.resampled_paths(KEY, algorithm, state, 10, 4),
        lambda: cs.corrections.guided(KEY, algorithm, state, lambda x: 0.0, 10, 4),
        lambda: cs.corrections.product_paths(KEY, [algorithm], [state], [1.0], 10, 4),
        lambda: algorithm.control.kernels(state.params),
    ):
        with pytest.raises(ValueError, match=r"no Gaussian steps.*draws"):
            wrong()
    assert snf.paper(TARGET).name == "snf.paper"
