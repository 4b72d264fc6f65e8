"""Families of data sets: one training each, a thousand new data sets, and NUTS on a few of them."""

import time
import warnings
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import consistent_samplers as cs
from benchmarks.case import Benchmark, Case
from benchmarks.models.families import FAMILIES, Family
from benchmarks.report import Report, Row, Table

NUM_SAMPLES = 2_000
_MAX_AWAY = 5.0  # standard errors of a mean, beside a tenth of a standard deviation


def measure(case: Case) -> list[Row]:
    """One family."""
    family, settings, seed = FAMILIES[case.target], case.settings, case.seed
    num_data_sets, num_nuts = settings["num_data_sets"], settings["num_nuts"]
    keys = jax.random.split(jax.random.key(seed), 5)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        made = cs.amortize(
            keys[0], family.model, family.covariates, num_rows=family.num_rows, observed={"y": "y"}
        )
    training = time.perf_counter() - begin
    sets = _data_sets(keys[1], family, made.num_rows, num_data_sets)
    made.condition_many(keys[2], sets[:16], num_samples=NUM_SAMPLES)  # compiles
    begin = time.perf_counter()
    many = made.condition_many(keys[2], sets, num_samples=NUM_SAMPLES)
    seconds = (time.perf_counter() - begin) / num_data_sets
    ess = np.asarray(many.evidence.ess)
    check = made.calibration_check(keys[3], num_data_sets, num_samples=NUM_SAMPLES)
    index = np.random.default_rng(seed).permutation(num_data_sets)[:num_nuts]
    found = [_compared(keys[4], family, sets[i], many, int(i)) for i in index]
    per_1000 = seconds * 1_000.0 / (np.median(ess) * NUM_SAMPLES)
    nuts = np.median([s for _, s in found]) if found else np.nan
    quartiles = "/".join(f"{q:.2f}" for q in np.quantile(ess, (0.25, 0.5, 0.75)))
    right = sum(bool(same) for same, _ in found)
    silent = sum(
        not same and bool(many.trusted[i]) for (same, _), i in zip(found, index, strict=True)
    )
    return [
        {
            "dim": made.model.num_globals + made.model.max_rows * made.model.num_each,
            "training": training,
            "effective": quartiles,
            "usable": float(many.trusted.mean()),
            "missed": float(made.missed),
            "seconds": float(per_1000),
            "nuts_ratio": float(nuts / per_1000),
            "right": f"{right} of {len(found)}",
            "silent": silent,
            "uniform": bool(check.is_uniform),
            "uniform_weighted": bool(check.is_uniform_weighted),
        }
    ]


def _data_sets(rng_key: Any, family: Family, num_rows: tuple[int, int], num: int) -> list[Any]:
    """New data sets of the family, as a user has them."""
    sizes = np.random.default_rng(0).integers(num_rows[0], num_rows[1] + 1, num)
    found = []
    for i, size in enumerate(sizes.tolist()):
        key_covariates, key_model = jax.random.split(jax.random.fold_in(rng_key, i))
        args, kwargs = family.covariates(key_covariates, size)
        prior = numpyro.handlers.trace(numpyro.handlers.seed(family.model, key_model))
        y = prior.get_trace(*args, **kwargs)["y"]["value"]
        found.append((args, kwargs | {"y": y}))
    return found


def _compared(rng_key: Any, family: Family, data: Any, many: Any, index: int) -> tuple[bool, float]:
    """Whether means and deviations agree with NUTS, and its seconds for 1,000 effective draws."""
    args, kwargs = data
    mcmc = MCMC(
        NUTS(family.model, target_accept_prob=0.95),
        num_warmup=1_000,
        num_samples=2_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, *args, **kwargs)
    begin = time.perf_counter()
    mcmc.run(rng_key, *args, **kwargs)
    seconds = time.perf_counter() - begin
    chains = mcmc.get_samples(group_by_chain=True)
    weight = np.exp(many.log_weight[index] - many.log_weight[index].max())
    weight /= weight.sum()
    same, least = True, np.inf
    for name, values in chains.items():
        values = np.asarray(values).reshape(4, 2_000, -1)
        ours = many.samples[name][index].reshape(NUM_SAMPLES, -1)[:, : values.shape[-1]]
        for j in range(values.shape[-1]):
            effective = float(effective_sample_size(values[..., j]))
            least = min(least, effective)
            mean = weight @ ours[:, j]
            spread = np.sqrt(weight @ (ours[:, j] - mean) ** 2)
            true, scale = values[..., j].mean(), values[..., j].std()
            error = scale * np.sqrt(1.0 / effective + (weight**2).sum())
            same &= abs(mean - true) < _MAX_AWAY * error + 0.1 * scale
            same &= 0.8 < spread / scale < 1.25
    return bool(same), seconds * 1_000.0 / least


BENCHMARK = Benchmark(
    name="amortized",
    names=lambda settings: FAMILIES,
    measure=measure,
    options={
        "--num-data-sets": (1_000, "new data sets of each family"),
        "--num-nuts": (20, "of them through NUTS"),
        "--seed": (0, "of everything"),
    },
    report=Report(
        doc=__doc__,
        words="""Effective: quartiles of the share of effective draws over the data sets. Ranks:
        whether those of simulation-based calibration are uniform, without and with weights.""",
        tables=(
            Table(
                """family: {target} | d: {dim} | training, s: {training:.0f} |
                effective: {effective} | can be used: {usable:.3f} | missed mass: {missed:.3f} |
                s for 1,000 effective: {seconds:.4f} | NUTS over ours: {nuts_ratio:.0f} |
                right of NUTS: {right} | silent: {silent} | ranks: {uniform}, {uniform_weighted}"""
            ),
        ),
    ),
)
