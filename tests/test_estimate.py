"""Evidence: closed forms, PSIS against ArviZ, calibration, invariances, messages."""

import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import consistent_samplers as cs
from consistent_samplers.estimate import (
    Evidence,
    effective_sample_size,
    evidence,
    pareto_smooth,
)
from consistent_samplers.types import Draws, FlowDiagnostics

jit_evidence = jax.jit(evidence)

SIZE = 400
"""One size for most tests: each new one costs a compilation."""


def make_draws(log_weight, bound="lower", **kwargs) -> Draws:
    """Draws with given log weights at an irrelevant position."""
    # Through NumPy, which drops JAX's weak types: they would each compile anew.
    log_weight = jnp.asarray(np.asarray(log_weight))
    position = np.zeros((log_weight.shape[0], 1), np.float32)
    return Draws(position=position, log_weight=log_weight, bound=bound, **kwargs)


def normal_log_weight(seed: int, n: int, mean: float, std: float) -> np.ndarray:
    # NumPy rather than JAX: inputs should cost no compilations.
    return (mean + std * np.random.default_rng(seed).normal(size=n)).astype(np.float32)


# --- closed forms ------------------------------------------------------------------------------


def test_log_normal_weights_have_known_evidence():
    mean, std, n = 3.0, 0.7, 100_000
    result = evidence(make_draws(normal_log_weight(0, n, mean, std)))
    assert abs(result.log_z - (mean + std**2 / 2)) < 4 * result.log_z_stderr
    assert abs(result.elbo - mean) < 4 * result.elbo_stderr
    assert result.log_z_stderr == pytest.approx(math.sqrt(math.expm1(std**2) / n), rel=0.05)
    assert result.elbo_stderr == pytest.approx(std / math.sqrt(n), rel=0.02)
    assert result.ess == pytest.approx(math.exp(-(std**2)), rel=0.02)
    assert result.num_samples == n and result.bound == "lower"


def test_standard_error_of_log_z_is_calibrated():
    mean, std, replications, n = -2.0, 0.5, 300, 2_000
    log_weight = normal_log_weight(1, replications * n, mean, std).reshape(replications, n)
    batch = Draws(position=np.zeros((replications, n, 1)), log_weight=log_weight, bound="lower")
    result = jax.jit(jax.vmap(evidence))(batch)
    tolerance = 3 * math.sqrt(replications * 0.95 * 0.05)
    for estimate, stderr, truth in (
        (result.log_z, result.log_z_stderr, mean + std**2 / 2),
        (result.elbo, result.elbo_stderr, mean),
    ):
        covered = int(jnp.sum(jnp.abs(estimate - truth) < 1.96 * stderr))
        assert abs(covered - 0.95 * replications) < tolerance


@pytest.mark.parametrize("level", [0.0, 512.0, -3e4])
def test_constant_weights_are_exact(level):
    result = evidence(make_draws(jnp.full((SIZE,), level)))
    assert result.log_z == pytest.approx(level, abs=1e-5)
    assert result.elbo == level
    half_step = 0.5 * jnp.finfo(result.log_z.dtype).eps * abs(level)
    assert result.log_z_stderr == pytest.approx(half_step, abs=1e-6) and result.elbo_stderr == 0.0
    assert result.ess == pytest.approx(1.0) and result.ess <= 1.0
    assert result.pareto_k == 0.0


@pytest.mark.parametrize("level", [1e7, -1e7])
def test_rounding_is_not_taken_for_even_weights(level):
    result = evidence(make_draws(normal_log_weight(3, SIZE, 0.0, 1.0) + level))
    assert result.pareto_k != 0.0
    said = str(cs.diagnostics.verdict(result))
    assert not cs.diagnostics.is_trustworthy(result)
    assert "nats is computed in steps of" in said and "jax_enable_x64" in said


def test_large_offsets_keep_float32_digits():
    # A shift on float32's own grid, so that only our arithmetic could lose digits.
    log_weight = np.round(normal_log_weight(2, SIZE, 0.0, 1.0) * 256) / 256
    base, shifted = evidence(make_draws(log_weight)), evidence(make_draws(log_weight + 4096.0))
    assert shifted.ess == base.ess and shifted.pareto_k == base.pareto_k
    np.testing.assert_allclose(shifted.log_z_stderr, base.log_z_stderr, rtol=1e-4)
    assert abs(shifted.log_z - 4096.0 - base.log_z) < 1e-3


def test_zero_weights_count():
    log_weight = jnp.where(jnp.arange(SIZE) % 4 == 0, -jnp.inf, 0.0)
    result = evidence(make_draws(log_weight))
    assert result.log_z == pytest.approx(math.log(0.75), abs=1e-6)
    assert result.elbo == -jnp.inf and result.elbo_stderr == jnp.inf
    assert result.ess == pytest.approx(0.75)
    assert result.log_z_stderr == pytest.approx(math.sqrt(0.25 / 0.75 / (SIZE - 1)), rel=1e-4)


# --- Pareto smoothing --------------------------------------------------------------------------

WEIGHTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "log-normal": lambda rng, n: 0.5 * rng.normal(size=n),
    "wide": lambda rng, n: 3.0 * rng.normal(size=n),
    "spanning 400 nats": lambda rng, n: 60.0 * rng.normal(size=n),
    "student": lambda rng, n: rng.standard_t(3, size=n),
    "pareto 0.9": lambda rng, n: 0.9 * rng.exponential(size=n),
    "bounded": lambda rng, n: np.log(rng.uniform(size=n)),
}


def assert_matches(log_weight: np.ndarray, reference: Callable) -> None:
    """Compares normalised smoothed weights and k with a float64 reference."""
    log_weight = log_weight.astype(np.float32)
    smoothed, k = pareto_smooth(jnp.asarray(log_weight))
    smoothed = np.asarray(smoothed, np.float64)
    smoothed -= np.logaddexp.reduce(smoothed)
    expected, expected_k = reference(log_weight.astype(np.float64))
    assert float(k) == pytest.approx(float(expected_k), rel=1e-4, abs=1e-4)
    # rtol: log weights of hundreds of nats carry float32's relative rounding.
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("n", [100, SIZE, 2_500])
@pytest.mark.parametrize("name", WEIGHTS)
def test_psis_matches_arviz_stats(name, n):
    base = pytest.importorskip(
        "arviz_stats.base", reason="cross-check needs arviz_stats (pip install arviz-stats)"
    )
    # arviz_stats takes log likelihoods, that is, negated log weights.
    log_weight = WEIGHTS[name](np.random.default_rng(n), n)
    assert_matches(log_weight, lambda x: base.array_stats.psislw(-x))


@pytest.mark.parametrize("n", [100, 2_500])
@pytest.mark.parametrize("name", WEIGHTS)
def test_psis_matches_arviz(name, n):
    # ArviZ before 1.0 rounds the length of the tail up: for these n it is an integer anyway.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # announces ArviZ 1.0 on import, once a day
        arviz = pytest.importorskip("arviz", reason="cross-check needs arviz (pip install arviz)")
        if not hasattr(arviz, "psislw"):
            pytest.skip("arviz >= 1.0 has psislw in arviz_stats, checked above")
    log_weight = WEIGHTS[name](np.random.default_rng(n), n)
    assert_matches(log_weight, lambda x: arviz.psislw(x))


@pytest.mark.parametrize(
    ("n", "slope", "expected_k", "expected_largest"),
    [
        (100, 0.3, 0.377270, -3.368616),
        (100, 0.9, 0.720597, -1.687831),
        (100, 2.0, 1.353156, -0.535054),
        (2500, 0.3, 0.315373, -5.625443),
        (2500, 0.9, 0.862953, -2.110186),
        (2500, 2.0, 1.866624, -0.260800),
    ],
)
def test_psis_matches_stored_arviz_stats(n, slope, expected_k, expected_largest):
    """Figures of arviz_stats 0.8.0 for Pareto quantiles, where no ArviZ is installed."""
    log_weight = -slope * np.log1p(-(np.arange(n) + 0.5) / n)
    smoothed, k = map(np.asarray, pareto_smooth(log_weight.astype(np.float32)))
    assert k == pytest.approx(expected_k, abs=1e-3)
    assert smoothed[-1] - np.logaddexp.reduce(smoothed) == pytest.approx(expected_largest, abs=1e-3)


@pytest.mark.parametrize("k_true", [0.2, 0.7, 1.5])
def test_psis_recovers_the_tail_index(k_true):
    log_weight = k_true * np.random.default_rng(3).exponential(size=40_000).astype(np.float32)
    assert pareto_smooth(log_weight)[1] == pytest.approx(k_true, abs=0.15)


def test_psis_keeps_scale_body_and_maximum():
    log_weight = (40.0 + np.random.default_rng(4).standard_t(3, SIZE)).astype(np.float32)
    smoothed, _ = map(np.asarray, pareto_smooth(log_weight))
    order = np.argsort(log_weight)
    tail = int(3 * math.sqrt(SIZE))
    assert np.array_equal(smoothed[order[:-tail]], log_weight[order[:-tail]])
    assert np.max(smoothed) <= np.max(log_weight)
    assert np.all(np.diff(smoothed[order]) >= 0)
    assert not np.array_equal(smoothed, log_weight)


def test_psis_recovers_mean_better_than_raw_weights():
    # k = 0.6: infinite variance. Smoothing must cut the error of the log mean weight.
    log_weight = 0.6 * np.random.default_rng(5).exponential(size=(200, 2_000)).astype(np.float32)
    smoothed = jax.jit(jax.vmap(pareto_smooth))(log_weight)[0]
    truth = math.log(1 / (1 - 0.6))
    raw_error, smooth_error = (
        np.sqrt(np.mean((np.log(np.mean(np.exp(np.asarray(x)), axis=1)) - truth) ** 2))
        for x in (log_weight, smoothed)
    )
    assert smooth_error < raw_error


@pytest.mark.parametrize(
    ("log_weight", "expected_k"),
    [
        (jnp.zeros(400), 0.0),
        (jnp.full(400, 1e4), 0.0),
        (jnp.where(jnp.arange(400) < 200, -jnp.inf, 0.0), 0.0),  # rejection sampling
        (jnp.zeros(400).at[0].set(1.0), jnp.inf),  # one weight stands out: too few to judge
        (jnp.full(400, -jnp.inf).at[0].set(0.0), jnp.inf),
        (jnp.full(400, -jnp.inf), jnp.inf),
        (jnp.arange(24.0), jnp.inf),
    ],
)
def test_psis_degenerate_weights_stay(log_weight, expected_k):
    smoothed, k = pareto_smooth(np.asarray(log_weight))
    assert k == expected_k
    assert jnp.array_equal(smoothed, log_weight)


def test_psis_with_mostly_zero_weights_fits_the_rest():
    positive = normal_log_weight(6, 20, 0.0, 1.0)
    log_weight = jnp.full(400, -jnp.inf).at[:20].set(positive)
    smoothed, k = pareto_smooth(log_weight)
    assert jnp.isfinite(k)
    assert jnp.all(jnp.isfinite(smoothed[:20])) and jnp.all(smoothed[20:] == -jnp.inf)


def test_psis_with_many_ties_is_finite():
    log_weight = np.round(2.0 * normal_log_weight(7, SIZE, 0.0, 1.0)) / 2.0
    smoothed, k = pareto_smooth(log_weight)
    assert jnp.isfinite(k) and jnp.all(jnp.isfinite(smoothed))


# --- invariances -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**20), st.floats(0.3, 4.0), st.integers(-128, 128))
def test_invariant_to_scale_and_order(seed, std, shift):
    rng = np.random.default_rng(seed)
    # On a grid that float32 adds exactly, so that differences are the algorithm's.
    log_weight = (np.round(std * rng.normal(size=SIZE) * 4096) / 4096).astype(np.float32)
    base = evidence(make_draws(log_weight))
    shifted = evidence(make_draws(log_weight + np.float32(shift)))
    permuted = evidence(make_draws(rng.permutation(log_weight)))
    assert 0 < base.ess <= 1
    assert base.log_z >= base.elbo - 1e-5  # Jensen, exact for the empirical means
    np.testing.assert_allclose(shifted.log_z - shift, base.log_z, atol=1e-4)
    np.testing.assert_allclose(shifted.elbo - shift, base.elbo, atol=1e-4)
    for other in (shifted, permuted):
        np.testing.assert_allclose(other.ess, base.ess, rtol=1e-5)
        np.testing.assert_allclose(other.pareto_k, base.pareto_k, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other.log_z_stderr, base.log_z_stderr, rtol=1e-4)
    np.testing.assert_allclose(permuted.log_z, base.log_z, atol=1e-5)
    np.testing.assert_allclose(permuted.elbo, base.elbo, atol=1e-5)


def test_effective_sample_size_of_one_dominant_weight():
    log_weight = jnp.full((50,), -1e4).at[7].set(0.0)
    assert effective_sample_size(log_weight) == pytest.approx(1 / 50)


# --- jit, flow evidence, text ------------------------------------------------------------------


def flow(n: int, num_folded: int, error: float) -> FlowDiagnostics:
    return FlowDiagnostics(
        folded=jnp.arange(n) < num_folded, round_trip_error=jnp.full((n,), error)
    )


def test_jit_agrees_and_keeps_static_fields():
    draws = make_draws(normal_log_weight(8, SIZE, 0.0, 1.0), "lower-if-injective")
    draws = draws.replace(flow=flow(SIZE, 4, 0.5))
    eager, jitted = evidence(draws), jit_evidence(draws)
    assert jitted.bound == "lower-if-injective" and jitted.num_samples == SIZE
    assert jax.tree.structure(eager) == jax.tree.structure(jitted)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert jitted.folded == pytest.approx(0.01)
    assert jitted.round_trip_error == pytest.approx(0.5)


def test_flow_evidence_is_none_where_not_measured():
    log_weight = normal_log_weight(9, SIZE, 0.0, 1.0)
    without = evidence(make_draws(log_weight))
    assert without.folded is None and without.round_trip_error is None
    unmeasured = evidence(make_draws(log_weight, flow=flow(SIZE, 0, math.nan)))
    assert unmeasured.folded == 0 and unmeasured.round_trip_error is None


def test_round_trip_error_is_a_high_quantile_of_the_measured():
    error = jnp.full((SIZE,), jnp.nan).at[:100].set(jnp.arange(100.0)).at[99].set(jnp.inf)
    diagnostics = FlowDiagnostics(folded=jnp.zeros(SIZE, bool), round_trip_error=error)
    result = evidence(make_draws(jnp.zeros(SIZE), flow=diagnostics))
    assert result.round_trip_error == jnp.inf  # a failed inversion in a hundred is not hidden


def test_str_is_readable():
    draws = make_draws(normal_log_weight(10, SIZE, 1.0, 0.3), "lower-if-injective")
    text = str(evidence(draws.replace(flow=flow(SIZE, 0, 0.002))))
    for part in ("log Z", "±", "ELBO", "ESS", "of 400 samples", "Pareto k", "injective", "0.0 %"):
        assert part in text
    assert "WARNING" not in text
    folded = str(evidence(draws.replace(flow=flow(SIZE, 10, 0.002))))
    assert "WARNING   2.5 % of samples are folded" in folded and "may exceed log Z" in folded
    assert evidence(draws.replace(flow=flow(SIZE, 10, 0.0))).bound == "lower-if-injective"
    assert "no bound" in str(evidence(make_draws(jnp.zeros(10), "heuristic")))
    assert "too short" in str(evidence(make_draws(jnp.zeros(10))))


def test_str_of_traced_evidence_does_not_fail():
    texts = []

    @jax.jit
    def traced(draws: Draws) -> Evidence:
        result = evidence(draws)
        texts.append(str(result))
        return result

    traced(make_draws(jnp.zeros(10)))
    assert texts[0].startswith("Evidence(")


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draws", "match"),
    [
        (Draws(position=jnp.zeros((5, 2))), "Sample with weights.*weights=False"),
        (make_draws(jnp.zeros(1)), "at least 2 draws"),
        (make_draws(jnp.zeros(5), bound=None), "do not say what they are worth"),
        (make_draws(jnp.zeros(5), bound="upper"), "one of 'lower'"),
        (make_draws(jnp.zeros(5).at[2].set(jnp.nan)), "1 of 5 log weights are NaN"),
        (make_draws(jnp.zeros(5).at[2].set(jnp.inf)), r"NaN or \+inf"),
        (make_draws(jnp.full(5, -jnp.inf)), "Every weight is zero"),
        (Draws(jnp.zeros((5, 2)), jnp.zeros((5, 1)), bound="lower"), "one entry a draw"),
    ],
)
def test_errors_name_the_remedy(draws, match):
    with pytest.raises(ValueError, match=match):
        evidence(draws)


def test_values_are_not_checked_while_tracing():
    result = jit_evidence(make_draws(jnp.zeros(10).at[0].set(jnp.nan)))
    assert jnp.isnan(result.log_z) and jnp.isnan(result.elbo)
    assert jit_evidence(make_draws(jnp.full(10, -jnp.inf))).log_z == -jnp.inf


@pytest.mark.parametrize("index", [0.2, 0.4, 0.5, 0.6])
def test_intervals_cover_the_truth_under_heavy_tails(index):
    """Of Pareto weights, whose mean comes out low the more often the heavier their tail is."""
    rng = np.random.default_rng(1)
    log_weight = jnp.asarray(index * rng.exponential(size=(400, 4_000)), jnp.float32)
    log_z = -math.log1p(-index)
    found = jax.vmap(lambda w: evidence(Draws(w[:, None], w, bound="lower")))(log_weight)
    error = np.abs(np.asarray(found.log_z) - log_z)
    covered = np.mean(error < 1.96 * np.asarray(found.log_z_stderr))
    # Three standard errors of 400 runs below nine tenths.
    assert covered > 0.9 - 3 * math.sqrt(0.09 / 400)
    if index > 0.5:  # what the variance alone says is too little
        variance = np.square(found.log_z_stderr) - np.square(2.0 * np.asarray(found.unseen))
        assert np.mean(error < 1.96 * np.sqrt(variance)) < covered - 0.03
