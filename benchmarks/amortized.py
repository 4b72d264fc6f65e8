"""Families of data sets: one training each, a thousand new data sets, and NUTS on a few of them."""

import functools
import warnings
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import summary
from numpyro.handlers import seed, trace
from numpyro.infer import NUTS

import consistent_samplers as cs
from benchmarks import race
from benchmarks.case import Benchmark, Case
from benchmarks.models.families import FAMILIES, Family
from benchmarks.report import Report, Row
from benchmarks.timing import timed

NUM_SAMPLES = 2_000
_MAX_AWAY = 5.0  # standard errors of a mean, beside a tenth of a standard deviation


def measure(case: Case) -> list[Row]:
    """One family."""
    family, settings = FAMILIES[case.target], case.settings
    num_data_sets, num_nuts = settings["num_data_sets"], settings["num_nuts"]
    keys = jax.random.split(jax.random.key(case.seed), 5)
    train = functools.partial(cs.amortize, num_rows=family.num_rows, observed={"y": "y"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        made, training = timed(lambda: train(keys[0], family.model, family.covariates))
    sets = _data_sets(keys[1], family, made.num_rows, num_data_sets)
    made.condition_many(keys[2], sets[:16], num_samples=NUM_SAMPLES)  # compiles
    many, seconds = timed(lambda: made.condition_many(keys[2], sets, num_samples=NUM_SAMPLES))
    ess = np.asarray(many.evidence.ess)
    check = made.calibration_check(keys[3], num_data_sets, num_samples=NUM_SAMPLES)
    index = np.random.default_rng(case.seed).permutation(num_data_sets)[:num_nuts]
    found = [_compared(keys[4], family, sets[i], many, int(i)) for i in index]
    per_1000 = seconds / num_data_sets * 1_000.0 / (np.median(ess) * NUM_SAMPLES)
    nuts = np.median([s for _, s in found]) if found else np.nan
    wrong = [i for i, (same, _) in zip(index, found, strict=True) if not same]
    return [
        {
            "dim": made.model.num_globals + made.model.max_rows * made.model.num_each,
            "training": training,
            "effective": "/".join(f"{q:.2f}" for q in np.quantile(ess, (0.25, 0.5, 0.75))),
            "usable": float(many.trusted.mean()),
            "missed": float(made.missed),
            "seconds": float(per_1000),
            "nuts_ratio": float(nuts / per_1000),
            "right": f"{len(found) - len(wrong)} of {len(found)}",
            "silent": sum(bool(many.trusted[i]) for i in wrong),
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
        simulated = trace(seed(family.model, key_model)).get_trace(*args, **kwargs)
        found.append((args, kwargs | {"y": simulated["y"]["value"]}))
    return found


def _compared(rng_key: Any, family: Family, data: Any, many: Any, index: int) -> tuple[bool, float]:
    """Whether means and deviations agree with NUTS, and its seconds for 1,000 effective draws."""
    args, kwargs = data
    mcmc = race.mcmc_of(NUTS(family.model, target_accept_prob=0.95), 1_000, 2_000)

    def run() -> Any:
        mcmc.run(rng_key, *args, **kwargs)
        return mcmc.get_samples()

    run()  # compiles
    drawn, seconds = timed(run)
    theirs = race.flat_sites(drawn)
    ours = race.flat_sites({name: x[index] for name, x in many.samples.items()})
    stats = summary({name: x.reshape(race.CHAINS, -1) for name, x in theirs.items()})
    weight = np.exp(many.log_weight[index] - many.log_weight[index].max())
    weight /= weight.sum()
    same = True
    for name, values in theirs.items():
        mean = weight @ ours[name]
        spread = np.sqrt(weight @ (ours[name] - mean) ** 2)
        true, scale = values.mean(), values.std()
        error = scale * np.sqrt(1.0 / stats[name]["n_eff"] + (weight**2).sum())
        same &= abs(mean - true) < _MAX_AWAY * error + 0.1 * scale
        same &= 0.8 < spread / scale < 1.25
    return bool(same), seconds * 1_000.0 / float(min(of["n_eff"] for of in stats.values()))


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
        __doc__,
        """family: {target} | d: {dim} | training, s: {training:.0f} | effective: {effective} |
        can be used: {usable:.3f} | missed mass: {missed:.3f} |
        s for 1,000 effective: {seconds:.4f} | NUTS over ours: {nuts_ratio:.0f} |
        right of NUTS: {right} | silent: {silent} | ranks: {uniform}, {uniform_weighted}""",
        """Effective: quartiles of the share of effective draws over the data sets. Ranks:
        whether those of simulation-based calibration are uniform, without and with weights.""",
    ),
)
