"""Particles, lattices and many wells: evidence and draws of ours beside parallel tempering.

Parallel tempering runs from a Gaussian; its log Z is that of bridges between its temperatures, with
their standard error, which takes no modes into account that no chain came to. "particles": adaptive
tempered SMC (`cs.bases.explore`), three runs, their spread the error. "symmetric base": weighted
draws of `cs.bases.fit_symmetric`. "recipe": `cs.train_sampler` with its defaults. W2 is exact for a
thousand draws of each, in the target's coordinates and of their log densities, against draws of
parallel tempering; the line of tempering itself compares two halves of its draws. Figure:
histograms of the log densities, the first and the last bin with all that lies beyond.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import consistent_samplers as cs
from benchmarks import race
from benchmarks.case import Benchmark, Case
from benchmarks.process import isolated
from benchmarks.report import Report, Row, grouped
from benchmarks.tempering import parallel_tempering
from benchmarks.timing import timed
from consistent_samplers.targets import Target, evaluation

# Each with the standard deviation of the Gaussian that tempering starts from, and its symmetries.
SYSTEMS: dict[str, tuple[Callable[[], Target], float, tuple[int, int] | None]] = {
    "dw4": (cs.targets.dw4, 2.0, (4, 2)),
    "lj13": (cs.targets.lj13, 1.0, None),
    "lj13_deep": (partial(cs.targets.lj13, 2.0), 1.0, None),
    "lj55": (cs.targets.lj55, 1.0, None),
    "many_well_200": (partial(cs.targets.many_well, 200), 2.0, None),
    "phi4_8": (cs.targets.phi4, 1.0, None),
    "phi4_16": (partial(cs.targets.phi4, 16, coupling=5.113), 1.0, None),
}
_NUM_COMPARED, _NUM_RUNS, _NUM_DRAWS, _NUM_BINS = 1_000, 3, 10_000, 40


def measure(case: Case) -> list[Row]:
    """All methods on a system, in a process of its own."""
    given = {"name": case.target, "seed": case.seed}
    found = isolated("benchmarks.particles:rows", given, case.settings["limit"])
    return found.get("rows", [found | {"method": "tempering"}])


def rows(name: str, seed: int) -> dict[str, list[Row]]:
    """What each method finds."""
    build, scale, symmetries = SYSTEMS[name]
    target, key = build(), jax.random.key(seed)
    base = cs.bases.GaussianBase(jnp.zeros(target.dim), scale * jnp.eye(target.dim))
    ladder = max(12, round(2.0 * math.sqrt(target.dim)))
    settings = {"num_temperatures": ladder, "num_warmup": 1_000}
    tempered, seconds = timed(lambda: parallel_tempering(key, target, base, 250, **settings))
    draws = np.asarray(tempered.position, np.float32).reshape(-1, target.dim)
    draws = np.random.default_rng(0).permutation(draws)
    first, second = draws[:_NUM_COMPARED], draws[_NUM_COMPARED : 2 * _NUM_COMPARED]

    def row(method: str, position: Any, seconds: float, **more: Any) -> Row:
        own = {"method": method, "dim": target.dim, "true_log_z": target.log_z}
        return own | {"seconds": seconds} | distances(target, np.asarray(position), first) | more

    evidence = {"log_z": tempered.log_z, "log_z_stderr": tempered.log_z_stderr}
    found = [row("tempering", second, seconds, evaluations=tempered.num_evaluations, **evidence)]
    runs, seconds = timed(lambda: [_explored(k, target) for k in jax.random.split(key, _NUM_RUNS)])
    log_z = np.array([run.log_z for run in runs])
    evidence = {"log_z": log_z.mean(), "log_z_stderr": log_z.std(ddof=1) / math.sqrt(_NUM_RUNS)}
    found.append(row("particles", runs[0].particles, seconds, **evidence))
    if symmetries is not None:
        weighted, seconds = timed(lambda: _symmetric(key, target, symmetries))
        index = cs.corrections.systematic_indices(key, weighted.log_weight, _NUM_COMPARED)
        worth = race.figures(cs.evidence(weighted))
        found.append(row("symmetric base", weighted.position[index], seconds, **worth))
    ours = race.ours(race.Subject(target), key)
    names = ("log_z", "log_z_stderr", "elbo", "ess", "level", "route")
    worth = {name: ours.row[name] for name in names}
    found.append(row("recipe", ours.samples["x"], ours.row["call_seconds"], **worth))
    return {"rows": found}


def _explored(rng_key: Any, target: Target) -> cs.bases.Exploration:
    return cs.bases.explore(rng_key, target, num_starts=8)


def _symmetric(rng_key: Any, target: Target, of: tuple[int, int]) -> cs.Draws:
    base = cs.bases.fit_symmetric(rng_key, target, cs.targets.particle_symmetries(*of))
    return cs.Sampler.of_base(base).sample(rng_key, target, _NUM_DRAWS)


def distances(target: Target, x: np.ndarray, reference: np.ndarray) -> Row:
    """W2 of draws ``[n, dim]`` to the reference's and of their log densities, and a histogram.

    The histogram's bins reach half of the reference's range beyond it, on either side.
    """
    x = np.random.default_rng(1).permutation(x)[: len(reference)]
    if len(x) < len(reference):
        return {}
    cost = cdist(x, reference, "sqeuclidean")
    own, theirs = (np.sort(evaluation.values(target.log_density, of)) for of in (x, reference))
    beyond = 0.5 * (theirs[-1] - theirs[0])
    low, high = float(theirs[0] - beyond), float(theirs[-1] + beyond)
    counts, _ = np.histogram(np.clip(own, low, high), _NUM_BINS, (low, high))
    return {
        "w2": math.sqrt(cost[linear_sum_assignment(cost)].mean()),
        "energy_w2": math.sqrt(float(np.mean((own - theirs) ** 2))),
        "histogram": {"low": low, "high": high, "shares": (counts / len(own)).tolist()},
    }


def _figure(rows: Sequence[Row]) -> Any:
    """Histograms of the log densities: a panel a system, a line a method."""
    from consistent_samplers.plotting import style

    systems = grouped([row for row in rows if "histogram" in row], "target")
    if not systems:
        return None
    colors = dict(zip((name for (name,) in grouped(rows, "method")), style.CYCLE, strict=False))
    axes = style.row_of_axes(None, len(systems), columns=4)
    for ax, ((name,), found) in zip(axes, systems.items(), strict=True):
        for row in found:
            low, high, shares = (row["histogram"][part] for part in ("low", "high", "shares"))
            edges = np.linspace(low, high, len(shares) + 1)
            ax.stairs(shares, edges, color=colors[row["method"]], label=row["method"])
        ax.set(title=name, xlabel="log density", yticks=[])
        style.tidy(ax, left=False)
    style.legend(axes[0], of_figure=True, loc="outside lower center", ncols=4)
    return axes[0].figure


BENCHMARK = Benchmark(
    name="particles",
    names=lambda settings: list(SYSTEMS),
    measure=measure,
    options={"--limit": (1_800.0, "seconds of a system"), "--seed": (0, "of every method")},
    report=Report(
        __doc__,
        """system: {target} | d: {dim} | method: {method} |
        log Z: {log_z:.3f} ± {log_z_stderr:.2g} | true: {true_log_z:.3f} |
        ELBO: {elbo:.2f} | ESS: {ess:.3f} | level: {level} | route: {route} | W2: {w2:.2f} |
        W2 of log densities: {energy_w2:.2f} | evaluations: {evaluations:.3g} |
        seconds: {seconds:.0f}""",
        figure=_figure,
    ),
)
