"""ELBO against network evaluations a draw: solvers of one trained control, on several grids.

`cs.dis` on a base of the table's, trained once a target; then `cs.solvers.solve` with each solver.
"learned": the stochastic path and DPM-Solver++ on grids of `cs.solvers.learned_times`. NFE counts
the parts that restarts repeat. All weights have the mean Z; an ELBO of "flow", "dpm++" and
"restart" is a bound where nothing is folded. The base alone is without any network.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import methods, registry
from benchmarks.case import Benchmark, Case
from benchmarks.race import figures
from benchmarks.report import Report, Row, grouped

# Above so many steps a grid has little left to learn, and to learn it takes minutes.
_MOST_LEARNED = 16
_SOLVERS: tuple[cs.solvers.Solver, ...] = ("flow", "dpm++", "path", "sa", "restart")
_LEARNED: tuple[cs.solvers.Solver, ...] = ("path", "dpm++")


def measure(case: Case) -> list[Row]:
    """All solvers of one control."""
    target, num = registry.TARGETS[case.target].build(), case.settings["num_samples"]
    base, words = registry.build_base(registry.TARGETS[case.target], target)
    trainer = methods.Trainer("dis", target, base, case.settings["iterations"], (128,))
    trained = trainer.train(case.seed)
    sampler, key = trained.trained.many_steps, jax.random.key(case.seed + 2**20)
    key, key_times = jax.random.split(key)
    solve = functools.partial(cs.solvers.solve, key, sampler, target, num)
    common = {"dim": target.dim, "true_log_z": target.log_z, "base": words}
    common |= {"training_seconds": trained.seconds}
    alone = cs.evidence(cs.Sampler.of_base(base).sample(key, target, num))
    rows = [_row(target, alone) | {"solver": "base alone", "num_steps": 0, "evaluations": None}]
    for steps in case.settings["steps"]:
        for solver in _SOLVERS:
            row = _row(target, cs.evidence(solve(solver, steps)))
            evaluations = cs.solvers.num_evaluations(solver, steps)
            rows.append(row | {"solver": solver, "num_steps": steps, "evaluations": evaluations})
        for solver in _LEARNED if 1 < steps <= _MOST_LEARNED else ():
            times = cs.solvers.learned_times(key_times, sampler, target, steps, solver)
            row = _row(target, cs.evidence(solve(solver, steps, times=times)))
            more = {"solver": f"{solver}, learned", "num_steps": steps, "evaluations": steps}
            rows.append(row | more | {"times": [float(t) for t in times]})
    return [common | row for row in rows]


def _row(target: cs.Target, worth: cs.Evidence) -> Row:
    row = figures(worth)
    if target.log_z is not None:
        row |= {"elbo_gap": target.log_z - row["elbo"], "log_z_error": row["log_z"] - target.log_z}
    return row


def _figure(rows: Sequence[Row]) -> Any:
    from benchmarks.figures import lines

    points = [
        (target, solver, row["evaluations"], row["elbo_gap"])
        for (target, solver), found in grouped(rows, "target", "solver").items()
        for row in found
    ]
    return lines(points, "network evaluations a draw", "true log Z - ELBO [nats]")


BENCHMARK = Benchmark(
    name="solvers",
    names=lambda settings: ["gmm40", "funnel", "many_well", "seeds"],
    measure=measure,
    by=("target", "solver", "num_steps", "seed"),
    options={
        "--steps": ((1, 2, 4, 8, 16, 32, 64, 128), "numbers of steps"),
        "--iterations": (1_200, "of training"),
        "--num-samples": (4_000, "draws behind each figure"),
        "--seed": (0, "of training and draws"),
    },
    report=Report(
        __doc__,
        """target: {target} | dim: {dim} | solver: {solver} | steps: {num_steps} |
        NFE: {evaluations} | ELBO gap: {elbo_gap:.3f} ± {elbo_stderr:.2g} |
        log Z error: {log_z_error:+.3f} ± {log_z_stderr:.2g} | ESS: {ess:.3f} | folded: {folded}""",
        figure=_figure,
    ),
)
