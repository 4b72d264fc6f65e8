"""Families of data sets: one training each, a thousand new data sets, and NUTS on a few of them."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from numpyro.diagnostics import summary
from numpyro.handlers import seed, trace
from numpyro.infer import NUTS

import consistent_samplers as cs
from benchmarks import race
from benchmarks.case import Benchmark, Case
from benchmarks.models.families import FAMILIES, Family
from benchmarks.report import Report, Row
from benchmarks.timing import timed
from consistent_samplers.amortized.answering import sites_of
from consistent_samplers.amortized.padded import DataSet, PaddedModel
from consistent_samplers.diagnostics import MIXED_R_HAT

NUM_SAMPLES = 2_000
_MAX_AWAY = 5.0  # standard errors of a mean, beside a tenth of a standard deviation
_NUM_TIMED = 5  # runs of NUTS that are made twice, the second without compilation
_LENGTH, _ACCEPTED = (1_000, 2_000), 0.95
_CENTRAL = 0.05, 0.95, 0.16, 0.84  # ends of two intervals; deviations of few rows hardly exist


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
    # By NumPyro on the model as it is, timed, which also holds what follows to it.
    nuts = [_by_numpyro(keys[4], family, sets[i]) for i in index[:_NUM_TIMED]]
    long = _long_chains(keys[4], made.model)
    fine = {i: x for i, (x, _) in zip(index, nuts, strict=False) if _is_mixed(x)}
    theirs = [fine[i] if i in fine else long(*sets[i]) for i in index]
    found = [_same(family, x, many, i) for x, i in zip(theirs, index, strict=True)]
    wrong = [i for i, same in zip(index, found, strict=True) if not same]
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
        of_rest = [_same(family, long(*sets[rest[i]]), again, i) for i in used]
    share = float(usable.mean())
    answered = share + (1.0 - share) * float(np.mean(mended)) if len(rest) else share
    escalation *= (num_data_sets - usable.sum()) / max(len(rest), 1)
    per_1000 = seconds / num_data_sets * 1_000.0 / (np.median(ess) * NUM_SAMPLES)
    theirs_per_1000 = np.median([seconds for _, seconds in nuts]) if nuts else np.nan
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
            "nuts_ratio": float(theirs_per_1000 / per_1000),
            "right": f"{sum(found)} of {len(found)}",
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


def _by_numpyro(rng_key: Any, family: Family, data: Any) -> tuple[dict[str, Any], float]:
    """Long chains of NumPyro, and their seconds for 1,000 effective draws, without compilation."""
    args, kwargs = data
    mcmc = race.mcmc_of(NUTS(family.model, target_accept_prob=_ACCEPTED), *_LENGTH)

    def run() -> Any:
        mcmc.run(rng_key, *args, **kwargs)
        return jax.device_get(mcmc.get_samples())

    run()
    drawn, seconds = timed(run)
    jax.clear_caches()  # a process may hold the programs of some dozen runs
    found = family.compared(drawn)
    return found, seconds * 1_000.0 / min(of["n_eff"] for of in _by_site(found).values())


def _long_chains(rng_key: Any, model: PaddedModel) -> Callable[..., dict[str, Any]]:
    """BlackJAX's NUTS on data sets with their rows filled up: compiled once for all of them."""
    num, num_warmup, num_samples = model.num_globals, *_LENGTH
    dim = num + model.max_rows * model.num_each

    def split(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        members = at[..., num:].reshape(*at.shape[:-1], model.max_rows, model.num_each)
        return at[..., :num], members

    @jax.jit
    def chains(data: DataSet) -> jax.Array:
        def log_density(at: jax.Array) -> jax.Array:
            members = split(at)[1]
            none = norm.logpdf(members).sum(-1)  # where there are no rows
            free = jnp.where(data.mask, 0.0, none).sum()
            return model.log_density((at[:num], members), data) + free

        def one(key: Any) -> jax.Array:
            key_start, key_warmup, key_draw = jax.random.split(key, 3)
            start = jax.random.uniform(key_start, (dim,), minval=-2.0, maxval=2.0)
            adaptation = blackjax.window_adaptation(
                blackjax.nuts, log_density, target_acceptance_rate=_ACCEPTED
            )
            (state, found), _ = adaptation.run(key_warmup, start, num_warmup)
            step = blackjax.nuts(log_density, **found).step

            def draw(state: Any, key: Any) -> tuple[Any, jax.Array]:
                state, _ = step(key, state)
                return state, state.position

            return jax.lax.scan(draw, state, jax.random.split(key_draw, num_samples))[1]

        at: jax.Array = jax.vmap(one)(jax.random.split(rng_key, race.CHAINS))
        return at.reshape(-1, dim)

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        data = model.pad(args, kwargs)
        at, members = split(chains(data))
        data = jax.tree.map(lambda x: x[None], data)
        found = sites_of(model, (at[None], members[None]), data)
        return {name: x[0] for name, x in found.items()}

    return run


def _same(family: Family, drawn: dict[str, Any], many: Any, index: int) -> bool:
    """Whether means and central intervals agree with those of chains."""
    ours = race.flat_sites(family.compared({name: x[index] for name, x in many.samples.items()}))
    weight = np.exp(many.log_weight[index] - many.log_weight[index].max())
    weight /= weight.sum()
    same, theirs = True, family.compared(drawn)
    stats = _by_site(theirs)
    for name, values in race.flat_sites(theirs).items():
        if np.isnan(values).all():  # of a row that this data set does not have
            continue
        error = values.std() * np.sqrt(1.0 / stats[name]["n_eff"] + (weight**2).sum())
        away = abs(weight @ ours[name] - values.mean())
        same &= bool(away < _MAX_AWAY * error + 0.1 * values.std())
        quantiles = functools.partial(np.quantile, method="inverted_cdf")
        found = quantiles(ours[name], _CENTRAL, weights=weight)
        ratios = np.diff(found)[::2] / np.diff(quantiles(values, _CENTRAL))[::2]
        same &= bool((ratios > 0.8).all() and (ratios < 1.25).all())
    return same


def _is_mixed(samples: dict[str, Any]) -> bool:
    """Whether chains agree: some stay where they started."""
    return all(of["r_hat"] < MIXED_R_HAT for of in _by_site(samples).values())


def _by_site(samples: dict[str, Any]) -> dict[str, Any]:
    """What NumPyro says of the chains of each coordinate."""
    flat = race.flat_sites(samples)
    return summary({name: x.reshape(race.CHAINS, -1) for name, x in flat.items()})


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
        effective, all sets together; of NUTS, compiled already, so long for one set. Right: means
        within a tenth of a standard deviation and the chains' error, central 68 and 90 % intervals
        within a quarter in width. Ranks: whether those of simulation-based calibration are
        uniform, without and with weights.""",
    ),
)
