"""Diagnostics: MMD against closed forms, and the verdict's wording."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from consistent_samplers.diagnostics import ExplorationCheck, is_trustworthy, mmd, verdict
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.types import Draws


def normal(seed: int, n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def test_mmd_matches_the_definition():
    sizes = (300, 41)  # one full chunk of 256 rows and a remainder
    x, y = (np.asarray(normal(i, n, 3), np.float64) for i, n in enumerate(sizes))

    def gram(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=2) / (2 * 1.5**2))

    n, m = sizes
    expected = (gram(x, x).sum() - n) / (n * (n - 1)) + (gram(y, y).sum() - m) / (m * (m - 1))
    expected -= 2 * gram(x, y).mean()
    assert mmd(x, y, 1.5) == pytest.approx(expected, abs=2e-6)


def test_mmd_matches_the_closed_form_for_shifted_normals():
    # For N(0, I) and N(delta, I): 2 (h^2 / (h^2 + 2))^(d/2) (1 - exp(-|delta|^2 / (2 (h^2 + 2)))).
    dim, h, delta = 2, 1.0, 1.0
    x, y = normal(0, 2_000, dim), normal(1, 2_000, dim) + np.full((1, dim), delta, np.float32)
    scale = (h**2 / (h**2 + 2)) ** (dim / 2)
    expected = 2 * scale * -math.expm1(-dim * delta**2 / (2 * (h**2 + 2)))
    assert mmd(x, y, h) == pytest.approx(expected, abs=0.02)


def test_mmd_is_unbiased_under_equality():
    compare = jax.jit(jax.vmap(mmd))
    values = compare(
        normal(2, 100 * 50, 3).reshape(100, 50, 3), normal(3, 5_000, 3).reshape(100, 50, 3)
    )
    assert abs(jnp.mean(values)) < 4 * jnp.std(values) / 10
    assert jnp.min(values) < 0 < jnp.max(values)


def test_median_heuristic_tells_scales_apart_and_is_invariant():
    x, y = normal(4, 600, 4), 1.5 * normal(5, 600, 4)
    value = mmd(x, y)
    assert value > 5 * abs(mmd(x, normal(6, 600, 4)))
    np.testing.assert_allclose(mmd(x * 100 + 1e3, y * 100 + 1e3), value, atol=1e-4)


def test_mmd_of_coinciding_points_is_zero():
    assert mmd(jnp.ones((5, 2)), jnp.ones((4, 2))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (jnp.zeros(5), jnp.zeros(5), r"Reshape scalars to \[n, 1\]"),
        (jnp.zeros((5, 2)), jnp.zeros((5, 3)), "shapes"),
        (jnp.zeros((1, 2)), jnp.zeros((5, 2)), "at least 2 points"),
    ],
)
def test_mmd_errors(x, y, match):
    with pytest.raises(ValueError, match=match):
        mmd(x, y)


def make_evidence(**changes) -> Evidence:
    fields = {
        "log_z": 0.0,
        "log_z_stderr": 0.01,
        "elbo": -0.1,
        "elbo_stderr": 0.01,
        "ess": 0.8,
        "pareto_k": 0.2,
    }
    static = {"bound": "lower", "num_samples": 2_000}
    static |= {key: changes.pop(key) for key in list(changes) if key in static}
    arrays = {key: jnp.asarray(value) for key, value in (fields | changes).items()}
    return Evidence(**arrays, **static)


@pytest.mark.parametrize(
    ("changes", "level", "parts"),
    [
        ({}, "trusted", ["can be trusted", "modes that no sample reaches"]),
        (
            {"bound": "heuristic"},
            "not to be used",
            ["neither figure bounds log Z", 'method="map"'],
        ),
        ({"folded": 0.25}, "not to be used", ["folds at 25 %", "may exceed log Z"]),
        ({"folded": 0.0, "round_trip_error": 0.01}, "trusted", ["can be trusted"]),
        ({"folded": 0.0, "round_trip_error": 1.0}, "not to be used", ["not inverted", "exceed"]),
        ({"folded": 0.0, "round_trip_error": jnp.inf}, "not to be used", ["not inverted"]),
        ({"pareto_k": 0.9, "unseen": 0.1}, "not to be used", ["Pareto k 0.90", "too low"]),
        ({"pareto_k": 0.6, "unseen": 0.03}, "not to be used", ["3 % of Z"]),
        (
            {"pareto_k": 0.6, "unseen": 0.004},
            "usable",
            ["can be used", "Pareto k 0.60", "wider", "0.4 % of Z"],
        ),
        # What little such a tail hides changes no interval.
        ({"pareto_k": 0.6, "unseen": 0.0001}, "trusted", ["can be trusted"]),
        ({"pareto_k": 0.6, "unseen": 0.015, "num_samples": 150}, "not to be used", ["above 0.54"]),
        # Where many draws are effective, such a k comes from large weights that were seen.
        ({"pareto_k": 0.9, "unseen": 0.008}, "usable", ["Pareto k 0.90", "wider", "0.8 % of Z"]),
        ({"pareto_k": 0.9, "unseen": 0.008, "ess": 0.2}, "not to be used", ["Pareto k 0.90"]),
        (
            {"pareto_k": jnp.inf, "num_samples": 20},
            "not to be used",
            ["too little of the weights' tail", "draw more samples"],
        ),
        ({"pareto_k": jnp.nan}, "not to be used", ["not numbers"]),
        ({"ess": 0.01}, "not to be used", ["Only about 20 of 2000", "draw more samples"]),
        ({"ess": 0.1}, "usable", ["Only 10 % of the samples are effective"]),
        (
            {"ess": 0.1, "pareto_k": 0.6, "unseen": 0.01},
            "not to be used",
            ["Only 10 % of the samples are effective"],
        ),
        ({"log_z": 1e6}, "usable", ["steps of 0.12 nats", "x64"]),
        ({"log_z": -1e7}, "not to be used", ["too coarse to tell weights apart"]),
        ({"ess": 0.15}, "trusted", ["15 % of 2000 samples"]),
        ({"outside": 0.4}, "trusted", ["40 % of the samples lie outside"]),
        ({"outside": 0.4, "undefined": 0.1}, "usable", ["NaN at 10 %"]),
    ],
)
def test_verdict(changes, level, parts):
    found = verdict(make_evidence(**changes))
    assert found.level == level
    for part in parts:
        assert part in str(found)
    assert is_trustworthy(make_evidence(**changes)) == (level != "not to be used")
    for line in found.words.splitlines():
        assert not line[0].islower() or line.startswith("log Z")
        assert line.endswith(".") and "  " not in line


def test_verdict_joins_findings_without_repeating():
    text = str(verdict(make_evidence(folded=0.1, round_trip_error=3.0, pareto_k=1.2, ess=0.001)))
    assert text.count("may exceed log Z") == 1
    assert "Pareto k 1.20" in text and "nly about 2 of 2000" in text
    assert text.count("To improve:") == 1


def test_verdict_says_what_was_seen_from_outside():
    missed = ExplorationCheck(num_modes=2, num_missed=1, missed_share=1.0, log_z_excess=math.nan)
    seen = missed._replace(num_missed=0, missed_share=0.0)
    evidence = make_evidence()
    assert is_trustworthy(evidence, seen) and not is_trustworthy(evidence, missed)
    assert verdict(evidence, missed).words.startswith("1 of 2 modes that fresh optimiser")
    text = verdict(evidence, seen).words
    assert text.endswith("found 2 mode(s), all of them sampled.")
    assert "no sample reaches" not in text


def heavy_tailed_weights(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Log weights of mean 1, of draws of a normal for a target with heavier tails."""
    z = np.random.default_rng(len(kind)).normal(size=shape)
    if kind == "exponential":  # to the left of -3/2, where the normal's slope goes on at 0.6 of it
        log_z = math.log(stats.norm.sf(-1.5) + stats.norm.pdf(1.5) / 0.9)
        return np.where(z > -1.5, 0.0, 0.5 * (z**2 - 1.5**2) - 0.9 * (-1.5 - z)) - log_z
    target = {"laplace": stats.laplace, "logistic": stats.logistic(scale=0.6)}[kind]
    log_ratio = target.logpdf(z) - stats.norm.logpdf(z)
    return (
        np.logaddexp(math.log(0.5), math.log(0.5) + log_ratio) if kind == "laplace" else log_ratio
    )


@pytest.mark.parametrize("kind", ["exponential", "laplace", "logistic"])
def test_intervals_of_heavy_tails_cover_where_they_may_be_used(kind):
    log_weights = heavy_tailed_weights(kind, (300, 5_000)).astype(np.float32)
    found = [
        evidence(Draws(jnp.zeros((5_000, 1)), jnp.asarray(row), bound="lower"))
        for row in log_weights
    ]
    used = [e for e in found if is_trustworthy(e)]
    error, stderr, k = (
        np.array([abs(float(getattr(e, name))) for e in used])
        for name in ("log_z", "log_z_stderr", "pareto_k")
    )
    heavy = k > 0.7
    print(
        kind,
        len(used),
        heavy.sum(),
        np.mean(error[k > 0.5] < 2.0 * stderr[k > 0.5]),
        np.mean(error < 2.0 * stderr),
        error.max(),
    )
    assert not np.any(error > np.maximum(4.0 * stderr, 0.05))
    assert heavy.sum() >= 5 and np.mean(error[heavy] < 2.0 * stderr[heavy]) > 0.93
