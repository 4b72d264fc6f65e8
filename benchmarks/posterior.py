"""Posteriors with the defaults, through NumPyro, beside NUTS.

One network evaluation a draw, nothing compiled before. "Base alone" is the fitted base without any
network. Effective draws a second leave out training and warm-up.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import race
from benchmarks.case import Benchmark, Case
from benchmarks.models.posteriors import POSTERIORS
from benchmarks.report import Report, Row, fill
from benchmarks.timing import timed
from consistent_samplers.corrections import weighted_moments
from consistent_samplers.types import Draws

_MILLION = 1_000_000
_READ = (
    *("dim", "base_elbo", "elbo", "elbo_stderr", "log_z", "log_z_stderr", "ess", "pareto_k"),
    *("folded", "level", "route", "call_seconds", "training_seconds", "rate"),
)
_READ_OF_NUTS = ("rate", "first_seconds", "r_hat", "divergences")
_TITLE = (
    "{target}: log Z {log_z:.3f} ± {log_z_stderr:.3f} (true {true_log_z:.3f}), ESS {ess:.0%}, "
    "trained in {training_seconds:.0f} s"
)


def measure(case: Case) -> list[Row]:
    """Trains on a posterior, runs NUTS, prints every parameter of both and draws the figure."""
    posterior, num_steps = POSTERIORS[case.target](), case.settings["num_steps"]
    subject = race.Subject(posterior.model, posterior.arguments)
    steps = {"num_steps": num_steps, "max_steps": num_steps}
    num, key = case.settings["num_samples"], jax.random.key(case.seed)
    ours = race.ours(subject, key, num_samples=num, progress_bar=True, **steps)
    about = "4 chains, 1,000 warm-up and blocks of 2,500 draws"
    print(f"\nNUTS on {case.target}: {about} ...", flush=True)
    nuts = race.nuts(subject, jax.random.key(case.seed))
    sampler = ours.sampler
    sampler.draw(key, _MILLION)
    _, million_seconds = timed(lambda: sampler.draw(jax.random.key(1), _MILLION))
    row = {name: ours.row[name] for name in _READ}
    row |= {"true_log_z": posterior.target.log_z, "million_seconds": million_seconds}
    row["nuts"] = {name: nuts.row[name] for name in _READ_OF_NUTS}
    row |= _compare(sampler, race.flat_sites(nuts.samples))
    _figure(case, posterior.shown, row, ours, nuts)
    return [row]


def _compare(sampler: Any, theirs: dict[str, np.ndarray]) -> Row:
    """Prints mean and standard deviation of every scalar, weighted draws beside NUTS."""
    weighted, log_weight = sampler.get_weighted_samples()
    flat, worst = race.flat_sites(weighted), {"mean_off": 0.0, "std_off": 0.0}
    print(f"\n{'':24}{'mean':>10}{'NUTS':>10}{'std':>10}{'NUTS':>10}")
    for name, values in theirs.items():
        draws = Draws(jnp.asarray(flat[name])[:, None], log_weight, bound=sampler.evidence.bound)
        mean, std = (float(moment[0]) for moment in weighted_moments(draws))
        of_nuts = float(values.mean()), float(values.std())
        print(f"{name:>24}{mean:>10.3f}{of_nuts[0]:>10.3f}{std:>10.3f}{of_nuts[1]:>10.3f}")
        worst["mean_off"] = max(worst["mean_off"], abs(mean - of_nuts[0]) / of_nuts[1])
        worst["std_off"] = max(worst["std_off"], abs(std / of_nuts[1] - 1.0))
    return dict(worst)


def _figure(case: Case, shown: tuple[str, ...], row: Row, *found: race.Found) -> None:
    """Saves NAME.png: marginals and pairs of some coordinates."""
    from benchmarks import figures
    from consistent_samplers import plotting

    flat = [race.flat_sites(of.samples) for of in found]
    ours, nuts = (np.stack([of[name] for name in shown], axis=1) for of in flat)
    words: dict[str, Any] = {"label": "one step", "reference_label": "NUTS"}
    figure = plotting.plot_pairs(ours, nuts, names=shown, **words)[0, 0].figure
    figure.suptitle(fill(_TITLE, row | {"target": case.target}))
    figures.save(figure, case.settings["output"] / f"{case.target}.png")


BENCHMARK = Benchmark(
    name="posterior",
    names=lambda settings: list(POSTERIORS),
    measure=measure,
    by=("target",),
    options={
        "--seed": (0, "of everything"),
        "--num-samples": (10_000, "one-step draws"),
        "--num-steps": (1, "network evaluations a draw"),
    },
    report=Report(
        __doc__,
        """posterior: {target} | dim: {dim} | true log Z: {true_log_z:.3f} |
        ELBO, base alone: {base_elbo:.3f} | **ELBO**: **{elbo:.3f}** ± {elbo_stderr:.3f} |
        log Z estimate: {log_z:.3f} ± {log_z_stderr:.3f} | ESS: {ess:.0%} |
        Pareto k: {pareto_k:.2f} | det J ≤ 0: {folded:.0%} |
        call of `run` to samples: {call_seconds:.0f} s | effective draws/s: {rate:,.0f} |
        NUTS effective draws/s: {nuts.rate:,.0f} |
        seconds of a million draws: {million_seconds:.1f}""",
    ),
)
