"""Data in shards: products of maps and split chains, against what is known of Gaussians."""

import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.consensus import combine, product_target, split_gibbs

KEY = jax.random.key(0)
MEANS = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
COVARIANCES = np.array([[[2.0, 0.8], [0.8, 1.5]], np.diag([1.0, 3.0]), 2.0 * np.eye(2)])
SHARDS = [cs.targets.gaussian(m, c) for m, c in zip(MEANS, COVARIANCES, strict=True)]


def product_moments(covariances):
    """Mean and covariance of the product of Gaussians."""
    precisions = np.linalg.inv(covariances)
    covariance = np.linalg.inv(precisions.sum(0))
    return covariance @ np.einsum("sij,sj->i", precisions, MEANS), covariance


def trained(target, **options):
    return cs.train_sampler(KEY, target, progress_bar=False, **options)


def test_the_product_of_gaussian_shards_is_their_posterior():
    combined = combine(
        KEY, [trained(s, effort="base") for s in SHARDS], effort="base", progress_bar=False
    )
    mean, covariance = product_moments(COVARIANCES)
    draws = combined.sample(KEY, 4_000)
    # Four standard errors; the base is fitted, so its moments are off by some hundredths as well.
    np.testing.assert_allclose(
        draws.position.mean(0), mean, atol=4 * (covariance.max() / 4e3) ** 0.5
    )
    np.testing.assert_allclose(np.cov(draws.position.T), covariance, atol=0.06)
    # The full density, whose constant is not the shards': its log Z is exact again.
    full = cs.Target(lambda x: sum(s.log_density(x) for s in SHARDS), 2)
    points = jnp.zeros((1, 2))
    exact = float(full.log_density(points[0])) + 0.5 * mean @ np.linalg.solve(covariance, mean)
    exact += 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    found = combined.reweight(full)
    assert found.evidence.ess > 0.98 and found.verdict.level == "trusted"
    assert abs(float(found.evidence.log_z) - exact) < 4 * float(found.evidence.log_z_stderr) + 1e-3


@pytest.mark.parametrize("style", [jax.random.key, jax.random.PRNGKey])
def test_split_chains_have_the_law_of_the_widened_product(style):
    coupling = 0.7
    chains = split_gibbs(style(1), SHARDS, 2_000, coupling=coupling, num_chains=32)
    mean, covariance = product_moments(COVARIANCES + coupling**2 * np.eye(2))
    by_chain = np.asarray(chains.position).mean(1)
    error = by_chain.std(0) / len(by_chain) ** 0.5
    assert (abs(by_chain.mean(0) - mean) < 4.5 * error).all()
    spread = np.asarray(jax.vmap(lambda x: jnp.cov(x.T))(chains.position))
    error = spread.std(0) / len(spread) ** 0.5
    assert (abs(spread.mean(0) - covariance) < 4.5 * error + 0.01 * abs(covariance)).all()
    # Not that of the posterior itself, which is narrower by far more than the error.
    assert (np.diag(spread.mean(0)) > np.diag(product_moments(COVARIANCES)[1] + 0.1)).all()
    assert chains.acceptance.shape == (3,) and chains.acceptance.min() > 0.7


def test_split_chains_in_the_coordinates_of_a_base():
    base = cs.bases.GaussianBase(jnp.array([0.5, 0.5]), jnp.array([[1.0, 0.0], [0.3, 0.8]]))
    chains = split_gibbs(KEY, SHARDS, 2_000, base=base, coupling=0.5, num_chains=32)
    factor = np.asarray(base.scale_tril)
    mean, covariance = product_moments(COVARIANCES + 0.25 * factor @ factor.T)
    by_chain = np.asarray(chains.position).mean(1)
    assert (abs(by_chain.mean(0) - mean) < 4.5 * by_chain.std(0) / 32**0.5).all()
    spread = np.asarray(jax.vmap(lambda x: jnp.cov(x.T))(chains.position))
    error = spread.std(0) / 32**0.5
    assert (abs(spread.mean(0) - covariance) < 4.5 * error + 0.01 * abs(covariance)).all()


def test_what_cannot_be_combined_is_said():
    one = trained(SHARDS[0], effort="base")
    with pytest.raises(ValueError, match="two or more samplers"):
        product_target([one])
    other = trained(cs.targets.gaussian(jnp.zeros(1), jnp.eye(1)), effort="base")
    with pytest.raises(ValueError, match=r"dimensions \[1, 2\]"):
        product_target([one, other])
    algorithm = cs.dis(SHARDS[0], base=cs.bases.standard_normal(2), max_steps=2, guidance="ratio")
    guided = cs.TrainedSampler.of(algorithm, algorithm.init(KEY))
    with pytest.raises(ValueError, match="guidance=None"):
        product_target([one, guided])
    with pytest.raises(ValueError, match="two or more shards"):
        split_gibbs(KEY, SHARDS[:1])
    with pytest.raises(ValueError, match="coupling"):
        split_gibbs(KEY, SHARDS, coupling=0.0)
    with pytest.raises(ValueError, match="num_samples"):
        split_gibbs(KEY, SHARDS, 0)
    with pytest.raises(ValueError, match="one frame"):
        split_gibbs(KEY, SHARDS, base=cs.bases.standard_normal(3))


_SHARD = """
import sys
import jax, jax.numpy as jnp
import consistent_samplers as cs

X = jax.random.normal(jax.random.key(0), (200, 3))
p = jax.nn.sigmoid(X @ jnp.array([1.0, -1.0, 0.5]))
sign = 2.0 * (jax.random.uniform(jax.random.key(1), (200,)) < p) - 1.0


def posterior(rows, share):
    def log_density(x):
        prior = -0.5 * (x @ x) - 1.5 * jnp.log(2 * jnp.pi)
        return share * prior - jnp.logaddexp(0.0, -sign[rows] * (X[rows] @ x)).sum()

    return cs.Target(log_density, 3)


full = posterior(slice(None), 1.0)
halves = [posterior(slice(0, 100), 0.5), posterior(slice(100, 200), 0.5)]
if __name__ == "__main__":
    index, folder = int(sys.argv[1]), sys.argv[2]
    cs.train_sampler(jax.random.key(index), halves[index], progress_bar=False).save(folder)
"""


@pytest.mark.slow
def test_two_processes_that_see_half_of_the_data_each(tmp_path):
    script = tmp_path / "shard.py"
    script.write_text(_SHARD)
    folders = [tmp_path / name for name in ("a", "b")]
    runs = [
        subprocess.Popen([sys.executable, str(script), str(i), str(folder)])
        for i, folder in enumerate(folders)
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    model = runpy.run_path(str(script))
    shards = [cs.load(folder, half) for folder, half in zip(folders, model["halves"], strict=True)]
    combined = combine(KEY, shards, progress_bar=False).reweight(model["full"])
    truth = trained(model["full"]).evidence(KEY)
    assert combined.verdict.level != "not to be used" and combined.evidence.ess > 0.8
    error = np.hypot(combined.evidence.log_z_stderr, truth.log_z_stderr)
    assert abs(float(combined.evidence.log_z - truth.log_z)) < 4.0 * float(error) + 1e-3
