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
_NUM_TIMED = 5  # runs of NUTS that are made twice, without compilation


def measure(case: Case) -> list[Row]:
    """One family."""
    family, settings = FAMILIES[case.target], case.settings
    num_data_sets, num_nuts = settings["num_data_sets"], settings["num_nuts"]
    keys = jax.random.split(jax.random.key(case.seed), 6)
    train = functools.partial(cs.amortize, num_rows=family.num_rows, observed={"y": "y"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        made, training = timed(lambda: train(keys[0], family.model, family.covariates))
    sets = _data_sets(keys[1], family, made.num_rows, num_data_sets)
    made.condition_many(keys[2], sets[:16], num_samples=NUM_SAMPLES)  # compiles
    many, seconds = timed(lambda: made.condition_many(keys[2], sets, num_samples=NUM_SAMPLES))
    ess, usable = np.asarray(many.evidence.ess), many.trusted
    check = made.calibration_check(keys[3], num_data_sets, num_samples=NUM_SAMPLES)
    index = np.random.default_rng(case.seed).permutation(num_data_sets)[:num_nuts]
    found = [
        _compared(keys[4], family, sets[i], many, int(i), timing=at < _NUM_TIMED)
        for at, i in enumerate(index)
    ]
    wrong = [i for i, (same, _) in zip(index, found, strict=True) if not same]
    silent = sum(bool(usable[i]) for i in wrong)
    # Each with a further training, as one run, and then against NUTS.
    rest = np.flatnonzero(~usable)[: settings["num_escalated"]]
    mended, escalation, of_rest = np.zeros(0, bool), 0.0, [True]
    if len(rest):
        again, escalation = timed(
            lambda: made.condition_many(
                keys[5], [sets[i] for i in rest], num_samples=NUM_SAMPLES, escalate=True
            )
        )
        mended = again.trusted
        used = np.flatnonzero(mended)[:num_nuts]
        of_rest = [_compared(keys[4], family, sets[rest[i]], again, int(i))[0] for i in used]
    share = float(usable.mean())
    answered = share + (1.0 - share) * float(np.mean(mended)) if len(rest) else share
    escalation *= (num_data_sets - usable.sum()) / max(len(rest), 1)
    per_1000 = seconds / num_data_sets * 1_000.0 / (np.median(ess) * NUM_SAMPLES)
    nuts = np.nanmedian([s for _, s in found]) if found else np.nan
    return [
        {
            "dim": made.model.num_globals + made.model.max_rows * made.model.num_each,
            "training": training,
            "minutes": (training + seconds + escalation) / 60.0,
            "effective": "/".join(f"{q:.2f}" for q in np.quantile(ess, (0.25, 0.5, 0.75))),
            "usable": share,
            "answered": answered,
            "missed": float(made.missed),
            "seconds": float(per_1000),
            "nuts_ratio": float(nuts / per_1000),
            "right": f"{len(found) - len(wrong)} of {len(found)}",
            "silent": silent + len(of_rest) - sum(of_rest),
            "right_escalated": f"{sum(of_rest)} of {len(of_rest)}" if len(rest) else "",
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


def _compared(
    rng_key: Any, family: Family, data: Any, many: Any, index: int, *, timing: bool = False
) -> tuple[bool, float]:
    """Whether means and deviations agree with NUTS, and its seconds for 1,000 effective draws."""
    args, kwargs = data
    mcmc = race.mcmc_of(NUTS(family.model, target_accept_prob=0.95), 1_000, 2_000)

    def run() -> Any:
        mcmc.run(rng_key, *args, **kwargs)
        return mcmc.get_samples()

    drawn, seconds = run(), np.nan
    if timing:  # what is compiled by now
        drawn, seconds = timed(run)
    # A process may hold the programs of some dozen runs, and another data set needs its own.
    jax.clear_caches()
    theirs = race.flat_sites(family.compared(jax.device_get(drawn)))
    ours = race.flat_sites(family.compared({name: x[index] for name, x in many.samples.items()}))
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
        "--num-nuts": (20, "of them through NUTS, and of the escalated ones"),
        "--num-escalated": (50, "of those that are not to be used, the most to be escalated"),
        "--seed": (0, "of everything"),
    },
    report=Report(
        __doc__,
        """family: {target} | d: {dim} | training: {training:.0f} | minutes: {minutes:.1f} |
        effective: {effective} | can be used: {usable:.3f} | escalated as well: {answered:.3f} |
        missed mass: {missed:.3f} | seconds a set: {seconds:.4f} |
        NUTS over ours: {nuts_ratio:.0f} | right of NUTS: {right} |
        of the escalated: {right_escalated} | silent: {silent} |
        ranks: {uniform}, {uniform_weighted}""",
        """Training in seconds. Minutes: training, the data sets, and the escalation of all that
        cannot be used, by the seconds of those that were escalated. Effective: quartiles of the
        share of effective draws over the data sets. Seconds a set: until 1,000 draws of it are
        effective, all sets together. Ranks: whether those of simulation-based calibration are
        uniform, without and with weights.""",
    ),
)
