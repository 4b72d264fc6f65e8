"""Tasks of sbibm, each answered by one training for all observations, beside published C2ST.

C2ST: the accuracy by which a network tells draws from those of the reference posterior, in five
folds, as sbibm has it; 0.5 is the best. Published figures are means over the same ten observations
of neural posterior estimates from 100,000 simulations (Lueckmann et al., 2021, supplement; the
better of two networks); they know no likelihood. Defaults, escalation included.
"""

import functools
import time
from typing import Any

import jax
import numpy as np

import consistent_samplers as cs
from benchmarks.case import Benchmark, Case
from benchmarks.models.sbibm import TASKS, observed
from benchmarks.report import Report, Row, goal
from benchmarks.timing import timed
from consistent_samplers.amortized.posterior import AMORTIZED
from consistent_samplers.diagnostics import LEVELS

# A worse mean by chance: it has ten terms, each of ten thousand draws.
_BY_CHANCE = 0.01


def measure(case: Case) -> list[Row]:
    """One task: its family, then observation by observation."""
    task, num = TASKS[case.target], case.settings["num_draws"]
    argument, key = task.argument(task.num_rows), jax.random.key(case.seed)
    data = [observed(case.target, i) for i in range(1, case.settings["num_observations"] + 1)]
    train = functools.partial(cs.amortize, num_rows=task.num_rows, observed={"y": "y"})
    family, training = timed(lambda: train(key, task.model, lambda key, num: ((argument,), {})))
    found: list[Row] = []
    for i, (y, reference) in enumerate(data):
        begin = time.perf_counter()
        one = family.condition(jax.random.fold_in(key, i), argument, y=y, num_samples=5 * num)
        seconds = time.perf_counter() - begin
        draws = np.random.default_rng(i).permutation(np.asarray(one.get_samples()["theta"]))[:num]
        found.append(
            {
                "ess": float(one.evidence.ess),
                "usable": one.verdict.level != LEVELS[-1],
                "escalated": one.route is not None and one.route.name != AMORTIZED,
                "seconds": seconds,
                # As many of both: the larger sample would be told by its size. Chains have fewer.
                "c2st": c2st(reference[: len(draws)], draws),
            }
        )
    usable = [of for of in found if of["usable"]]
    mean = float(np.mean([of["c2st"] for of in found]))
    best = min(task.published.values())
    return [
        {
            "dim": data[0][1].shape[1],
            "training": training,
            "seconds": float(np.median([of["seconds"] for of in found])),
            "ess": float(np.median([of["ess"] for of in found])),
            "escalated": sum(of["escalated"] for of in found),
            "usable": len(usable),
            "c2st": mean,
            "worst": max(of["c2st"] for of in found),
            "published": task.published,
            "goals": {"c2st": goal(mean, "<=", best + _BY_CHANCE)},
        }
    ]


def c2st(reference: Any, draws: Any, seed: int = 1) -> float:
    """The mean accuracy of a classifier of two samples, in five folds."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    both = np.concatenate([reference, draws])
    both = (both - reference.mean(axis=0)) / reference.std(axis=0)
    labels = np.repeat([0, 1], [len(reference), len(draws)])
    layers = (10 * both.shape[1],) * 2
    network = MLPClassifier(layers, max_iter=10_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(network, both, labels, cv=folds).mean())


BENCHMARK = Benchmark(
    name="sbibm",
    names=lambda settings: TASKS,
    measure=measure,
    options={
        "--num-draws": (10_000, "draws of each posterior"),
        "--num-observations": (10, "of those that sbibm has"),
        "--seed": (0, "of everything"),
    },
    report=Report(
        __doc__,
        """task: {target} | d: {dim} | training: {training:.0f} | seconds a set: {seconds:.1f} |
        effective: {ess:.2f} | escalated: {escalated} | can be used: {usable} |
        C2ST: {c2st:.3f}@c2st | worst: {worst:.3f} |
        NPE: {published.npe:.3f} | SNPE: {published.snpe:.3f}""",
        "Training in seconds. Effective draws and seconds a set: medians over the observations.",
    ),
)
