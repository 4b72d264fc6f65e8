"""Evidence by chunks is evidence of all the draws at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers.recipe import trained
from consistent_samplers.streaming import stream_evidence
from consistent_samplers.types import FlowDiagnostics

KEY = jax.random.key(0)


def weights(kind):
    def log_weight(key, num):
        z = jax.random.normal(key, (num,))
        if kind == "heavy":
            return -jnp.log1p(-jax.random.uniform(key, (num,))) * 0.9 - 70.0
        if kind == "zeros":
            return jnp.where(z > 1.5, -jnp.inf, z)
        if kind == "far":
            return 400.0 + 8.0 * z
        if kind == "even":
            return jnp.full(num, 3.0)
        return 0.4 * z - 2.0

    return log_weight


def sampler(kind, flow=False):
    def sample(key, num):
        log_weight = weights(kind)(key, num)
        seen = None
        if flow:
            error = jnp.where(jnp.arange(num) < 50, 1e-5, jnp.nan)
            seen = FlowDiagnostics(log_weight > -2.0, error)
        return cs.Draws(jnp.zeros((num, 1)), log_weight, flow=seen, bound="lower-if-injective")

    return sample


def at_once(sample, num_samples, chunk_size):
    """The same draws as one batch."""
    sizes = [min(chunk_size, num_samples - i) for i in range(0, num_samples, chunk_size)]
    draws = [sample(jax.random.fold_in(KEY, i), size) for i, size in enumerate(sizes)]
    return cs.evidence(jax.tree.map(lambda *x: jnp.concatenate(x), *draws))


@pytest.mark.parametrize("kind", ["light", "heavy", "zeros", "far", "even"])
@pytest.mark.parametrize("chunk_size", [1_000, 5_000])
def test_chunks_add_up(kind, chunk_size):
    sample = sampler(kind)
    found = stream_evidence(KEY, sample, 4_700, chunk_size=chunk_size)
    expected = at_once(sample, 4_700, chunk_size)
    assert found.num_samples == 4_700 and found.bound == expected.bound
    for name in ("log_z", "elbo", "ess", "pareto_k"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=2e-4, atol=2e-4, err_msg=name
        )
    for name in ("log_z_stderr", "elbo_stderr"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-6, err_msg=name
        )


def test_folds_are_counted_over_all_chunks():
    sample = sampler("light", flow=True)
    found, expected = (
        f(sample)
        for f in (
            lambda s: stream_evidence(KEY, s, 3_000, chunk_size=700),
            lambda s: at_once(s, 3_000, 700),
        )
    )
    np.testing.assert_allclose(found.folded, expected.folded, rtol=1e-6)
    assert 0.1 < float(found.folded) < 0.9
    np.testing.assert_allclose(found.round_trip_error, 1e-5, rtol=1e-3)


def test_sums_do_not_lose_digits_over_many_chunks():
    """Means far from zero and small deviations: what float32 sums of all would lose."""

    def sample(key, num):
        log_weight = 5_000.0 + 0.01 * jax.random.normal(key, (num,))
        return cs.Draws(jnp.zeros((num, 1)), log_weight, bound="lower")

    found = stream_evidence(KEY, sample, 20_000, chunk_size=100)
    # float32 itself rounds log weights of this size by 2.4e-4.
    assert abs(float(found.elbo) - 5_000.0) < 1e-3
    np.testing.assert_allclose(found.elbo_stderr, 0.01 / np.sqrt(20_000), rtol=0.05)


def test_chunks_without_any_weight_are_no_error_while_others_have_some():
    def sample(key, num):
        log_weight = jnp.where(jax.random.bernoulli(key), jnp.zeros(num), -jnp.inf)
        return cs.Draws(jnp.zeros((num, 1)), log_weight, bound="lower")

    found = stream_evidence(KEY, sample, 4_000, chunk_size=100)
    assert abs(float(jnp.exp(found.log_z)) - 0.5) < 0.4  # 40 coins
    assert found.elbo == -jnp.inf

    def nothing(key, num):
        return cs.Draws(jnp.zeros((num, 1)), jnp.full(num, -jnp.inf), bound="lower")

    with pytest.raises(ValueError, match="Every weight is zero"):
        stream_evidence(KEY, nothing, 300, chunk_size=100)


def test_bad_weights_raise():
    def sample(key, num):
        return cs.Draws(jnp.zeros((num, 1)), jnp.full(num, jnp.nan), bound="lower")

    with pytest.raises(ValueError, match="NaN"):
        stream_evidence(KEY, sample, 300, chunk_size=100)
    with pytest.raises(ValueError, match="at least 2"):
        stream_evidence(KEY, sample, 1)


def test_trained_samplers_stream_by_themselves(monkeypatch):
    target = cs.targets.gaussian(jnp.ones(1), jnp.eye(1))
    base = cs.bases.GaussianBase(jnp.full(1, 0.8), 1.3 * jnp.eye(1))
    algorithm = cs.osds(target, base=base, max_steps=1, hidden=(8,), guidance=None)
    trained = cs.TrainedSampler.of(algorithm, algorithm.init(KEY))
    from consistent_samplers.recipe import trained as module

    monkeypatch.setattr(module, "CHUNK_SIZE", 500)
    sizes = []

    def record(rng_key, sample, num_samples):
        sizes.append(num_samples)
        return stream_evidence(rng_key, sample, num_samples, chunk_size=500)

    monkeypatch.setattr(module, "stream_evidence", record)
    many = trained.evidence(KEY, 2_000)
    few = trained.evidence(KEY, 500)
    assert sizes == [2_000]
    for evidence in (many, few):
        error = abs(float(evidence.log_z) - target.log_z)
        assert error < 4 * float(evidence.log_z_stderr)
    assert float(many.log_z_stderr) < float(few.log_z_stderr)


@pytest.mark.parametrize("number", [int, np.int64])
def test_many_draws_are_never_all_there(number, monkeypatch):
    """Whatever kind of whole number says how many."""
    monkeypatch.setattr(trained, "CHUNK_SIZE", 100)
    in_chunks = functools.partial(stream_evidence, chunk_size=100)
    monkeypatch.setattr(trained, "stream_evidence", in_chunks)
    sizes, draw = [], cs.TrainedSampler.sample

    def sample(self, rng_key, num_samples, *args, **settings):
        sizes.append(num_samples)
        return draw(self, rng_key, num_samples, *args, **settings)

    monkeypatch.setattr(cs.TrainedSampler, "sample", sample)
    base = cs.Sampler.of_base(cs.bases.standard_normal(1))
    made = cs.TrainedSampler(cs.targets.gaussian(jnp.zeros(1), jnp.eye(1)), base, base)
    assert made.evidence(KEY, number(250)).num_samples == 250 and max(sizes) == 100
