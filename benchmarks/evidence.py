"""Valid evidence at one step on every benchmark, with no setting of any target's own."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import consistent_samplers as cs
from benchmarks import baselines, figures, registry
from benchmarks.rows import cell, number, save, versions_and_device, write_json
from consistent_samplers.corrections import annealed
from consistent_samplers.maps import Control
from consistent_samplers.types import Draws, PRNGKey


class Goal(NamedTuple):
    """What a row is held to.

    Attributes:
      elbo_gap: log Z - ELBO at one step, at most.
      log_z_tolerance: |log Z estimate - truth|, at most, beyond three standard errors.
      ess: share of effective draws, at least; None where nothing is asked.
      seconds: from the call to the end of training, compilation included, at most.
    """

    elbo_gap: float
    log_z_tolerance: float
    ess: float | None
    seconds: float


GOALS = {
    "seeds": Goal(0.20, 0.03, 0.3, 90),
    "ionosphere": Goal(0.10, 0.02, 0.7, 90),
    "sonar": Goal(0.20, 0.03, 0.5, 150),
    "credit": Goal(0.05, 0.02, 0.8, 90),
    "cancer": Goal(0.25, 0.04, 0.4, 90),
    "brownian": Goal(0.30, 0.05, 0.3, 90),
    "funnel": Goal(0.15, 0.05, 0.5, 60),
    "gmm9": Goal(0.05, 0.02, 0.8, 60),
    "gmm40": Goal(0.05, 0.01, 0.9, 60),
    "gmm40_50d": Goal(0.05, 0.02, 0.9, 120),
    "mw54": Goal(0.03, 0.01, 0.9, 90),
    "mw52": Goal(0.15, 0.05, 0.6, 150),
    "many_well": Goal(0.20, 0.03, 0.6, 150),
    "rings": Goal(0.10, 0.03, 0.6, 90),
    "student_t_mixture": Goal(2.0, 0.3, None, 300),
    "lgcp": Goal(2.5, 0.2, 0.02, 600),
}


def run(
    targets: list[str] | None,
    num_samples: int,
    seeds: int,
    parts: list[str],
    output: Path,
) -> dict[str, Any]:
    """Trains ``cs.train_sampler(rng_key, target, effort="full")`` on each target, for its goal.

    Args:
      targets: names of `GOALS`; all if None.
      num_samples: weighted one-step draws behind each figure.
      seeds: number of seeds.
      parts: ``"recipe"`` trains and measures; ``"baselines"`` gives tempered SMC and NumPyro's
        flow guides the time that the recipe's row took, in this run or in the one before.
      output: folder for evidence.json, .md and .png; what it already holds of other targets, and
        baselines of a row that is measured again, are kept.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a target without a goal, or baselines without a recipe's row to go by.
    """
    unknown = [name for name in targets or () if name not in GOALS]
    if unknown:
        raise ValueError(f"target must be one of {', '.join(GOALS)}, got {unknown[0]!r}.")
    path = output / "evidence.json"
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if path.is_file():
        rows = {(row["target"], row["seed"]): row for row in json.loads(path.read_text())["rows"]}
    for name in targets or GOALS:
        for seed in range(seeds):
            row = rows.get((name, seed))
            if "recipe" in parts:
                row = _row(name, seed, num_samples) | {
                    "baselines": {} if row is None else row["baselines"]
                }
                print(_line(row), flush=True)
            if row is None:
                raise ValueError(
                    f"No row of {name}, seed {seed}, to take a time from: run it first."
                )
            if "baselines" in parts:
                row["baselines"] = _baselines(name, seed, row["seconds"], num_samples)
                print(f"{'':>18} baselines {row['baselines']}", flush=True)
            rows[name, seed] = row
            # Written after every row: a run of an hour may end early.
            ordered = [rows[key] for key in sorted(rows, key=_place)]
            results = {
                "command": f"python -m benchmarks evidence --num-samples {num_samples} "
                f"--seeds {seeds}",
                **versions_and_device(),
                "rows": ordered,
            }
            write_json(path, results)
    return save(output, "evidence", results, markdown, figures.goals_figure)


def _place(key: tuple[str, int]) -> tuple[int, int]:
    return list(GOALS).index(key[0]), key[1]


def _measured(e: cs.Evidence, true_log_z: float) -> dict[str, Any]:
    """The figures of some weights against the truth."""
    fields = ("elbo", "elbo_stderr", "log_z", "log_z_stderr", "ess", "pareto_k")
    values = {field: float(getattr(e, field)) for field in fields}
    folded = None if e.folded is None else float(e.folded)
    return {**values, "folded": folded, "elbo_gap": true_log_z - values["elbo"]}


def _row(name: str, seed: int, num_samples: int) -> dict[str, Any]:
    """Trains in full and measures one step."""
    target = registry.TARGETS[name].build()
    assert target.log_z is not None
    start = time.perf_counter()
    trained = cs.train_sampler(jax.random.key(seed), target, effort="full", progress_bar=False)
    seconds = time.perf_counter() - start
    key = jax.random.fold_in(jax.random.key(seed), 2**20)
    e = trained.evidence(key, num_samples)
    goal = GOALS[name]
    row: dict[str, Any] = {
        "target": name,
        "dim": target.dim,
        "seed": seed,
        "command": f"python -m benchmarks evidence --num-samples {num_samples} "
        f"--seeds {seed + 1} --targets {name}",
        "true_log_z": target.log_z,
        "base": type(trained.base).__name__,
        "base_elbo": float(trained.stages["base"].elbo),
        "base_ess": float(trained.stages["base"].ess),
        "seconds": seconds,
        "bound": e.bound,
        "verdict": str(trained.verdict(e)),
        "goal": goal._asdict(),
        **_measured(e, target.log_z),
    }
    error = abs(row["log_z"] - target.log_z)
    allowed = 3.0 * row["log_z_stderr"] + goal.log_z_tolerance
    row["valid"] = row["elbo_gap"] > -3.0 * row["elbo_stderr"] and error <= allowed
    row["reached"] = {
        "elbo_gap": row["elbo_gap"] <= goal.elbo_gap,
        "ess": goal.ess is None or row["ess"] >= goal.ess,
        "seconds": seconds <= goal.seconds,
    }
    row["stochastic"] = _stochastic_step(key, trained, num_samples)
    row["further"] = []
    if not (row["valid"] and row["reached"]["elbo_gap"] and row["reached"]["ess"]):
        row["further"] = _further(key, trained, num_samples)
    return row


def _stochastic_step(
    rng_key: PRNGKey, trained: cs.TrainedSampler, num_samples: int
) -> dict[str, Any]:
    """The other way to one step: a stochastic one, with kernels learned both ways."""
    target = trained.target
    assert target.log_z is not None
    iterations = len(trained.histories["calibrated"].loss)
    start = time.perf_counter()
    algorithm = cs.dis(
        target,
        base=trained.base,
        max_steps=1,
        learned_kernels="both",
        loss="path_gradient",
        batch_size=128,
        anneal_iterations=0,
        learning_rate=optax.cosine_decay_schedule(5e-3, iterations),
    )
    state = cs.fit(rng_key, algorithm, iterations, progress_bar=False).state
    seconds = time.perf_counter() - start
    e = cs.evidence(algorithm.sample(rng_key, state, num_samples, 1))
    return {"seconds": seconds, **_measured(e, target.log_z)}


def _further(rng_key: PRNGKey, trained: cs.TrainedSampler, num_samples: int) -> list[dict]:
    """What more steps and more work a draw bring, where one step falls short."""
    target, truth = trained.target, trained.target.log_z
    assert truth is not None
    found = []

    def add(what: str, draws: Draws, start: float) -> None:
        seconds = time.perf_counter() - start
        found.append({"what": what, "seconds": seconds, **_measured(cs.evidence(draws), truth)})

    start = time.perf_counter()
    control = trained.one_step.control
    assert isinstance(control, Control)  # trained in full
    network = control.network
    algorithm = cs.osds(target, base=trained.base, guidance=None, network=network)
    distilled = cs.fit(rng_key, algorithm, 300, progress_bar=False).state
    draws = algorithm.sample(rng_key, distilled, num_samples, 16, method="path")
    add("16 stochastic steps, distilled for 300 iterations", draws, start)
    for num_steps in (2, 4, 8):
        start = time.perf_counter()
        step = cs.calibration(algorithm, num_steps=num_steps)
        state = step.restart(distilled)
        state = cs.fit(rng_key, step, 500, state=state, progress_bar=False).state
        draws = step.sample(rng_key, state, num_samples, num_steps)
        add(f"{num_steps} steps, calibrated for 500 iterations more", draws, start)
    start = time.perf_counter()
    calibrated = distilled._replace(ema_params=trained.one_step.params)
    result = annealed(rng_key, algorithm, calibrated, num_samples // 4)
    add("one step, annealed over 8 temperatures", result.draws, start)
    return found


def _baselines(name: str, seed: int, seconds: float, num_samples: int) -> dict[str, Any]:
    """Other ways to evidence in the same time."""
    target = registry.TARGETS[name].build()
    key = jax.random.fold_in(jax.random.key(seed), 2**21)
    found: dict[str, Any] = {"tempered SMC": baselines.tempered_smc(key, target, seconds)}
    for guide in baselines.GUIDES:
        found[guide] = baselines.flow_guide(key, target, guide, seconds, num_samples)
    return found


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['target']:>18} {row['dim']:>5}-d {row['base']:<19} gap {row['elbo_gap']:8.4f} "
        f"log Z error {row['log_z'] - row['true_log_z']:+.4f} ± {row['log_z_stderr']:.4f} "
        f"ESS {row['ess']:.3f} {row['seconds']:.0f} s "
        f"{'valid' if row['valid'] else 'NOT VALID'}, reached {row['reached']}"
    )


def markdown(results: dict[str, Any]) -> str:
    """The table; goals in brackets, a cross where one is not reached."""
    text = [
        "# Evidence at one step",
        "",
        f"Made by `{results['command']}` (a row by its own with `--targets NAME`): "
        '`cs.train_sampler(rng_key, target, effort="full")` and nothing else, on '
        f"{results['device']}. Time is from the call to the end of training, compilation included. "
        '"valid": ELBO ≤ log Z + 3 s.e., and |log Z estimate - truth| ≤ 3 s.e. + the tolerance. In '
        "brackets the goal.",
        "",
        "| target | dim | base | gap of the base alone | ELBO gap at one step | log Z error | "
        "ESS | folded | seconds | valid |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        error = row["log_z"] - row["true_log_z"]
        cells = (
            row["target"],
            str(row["dim"]),
            row["base"].removesuffix("Base"),
            cell(row["true_log_z"] - row["base_elbo"]),
            _held(row, f"{row['elbo_gap']:.4f} ± {row['elbo_stderr']:.2g}", "elbo_gap"),
            f"{error:+.4f} ± {row['log_z_stderr']:.2g} [{row['goal']['log_z_tolerance']:g}]",
            _held(row, cell(row["ess"]), "ess"),
            cell(row["folded"]),
            _held(row, f"{row['seconds']:.0f}", "seconds"),
            "yes" if row["valid"] else "NO",
        )
        text.append("| " + " | ".join(cells) + " |")
    text += [
        "",
        "## Others",
        "",
        "A stochastic step is one of the generative SDE on the same base, its kernels learned both "
        "ways for as many iterations as the map was calibrated: a bound by construction at O(d). "
        "Tempered SMC is BlackJAX's, from fresh optimiser starts; it has no ELBO. The guides are "
        "NumPyro's, trained by SVI. They had the wall time, of training only for the guides, that "
        "the recipe's row took when they were run: the last column. Empty: not run, or "
        "(AutoBNAFNormal above 200 dimensions) too large.",
        "",
        "| target | gap of the base alone | **one step** | one stochastic step | AutoIAFNormal | "
        "AutoBNAFNormal | log Z error: **one step** | tempered SMC | AutoIAFNormal | "
        "AutoBNAFNormal | seconds of the guides |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        truth, others = row["true_log_z"], row["baselines"]
        guides = [others.get(name) or {} for name in baselines.GUIDES]
        smc = others.get("tempered SMC", {})
        cells = (
            row["target"],
            cell(truth - row["base_elbo"]),
            cell(row["elbo_gap"]),
            cell(row["stochastic"]["elbo_gap"]),
            *(cell(_less(truth, guide.get("elbo"))) for guide in guides),
            cell(row["log_z"] - truth),
            *(cell(_less(o.get("log_z"), truth)) for o in (smc, *guides)),
            cell(guides[0].get("seconds")),
        )
        text.append("| " + " | ".join(cells) + " |")
    if any(row["further"] for row in results["rows"]):
        text += [
            "",
            "## Where one step falls short of its goal: more steps, and corrections",
            "",
            "| target | what | ELBO gap | log Z error | ESS | further seconds |",
            "|---|---|---|---|---|---|",
        ]
    for row in results["rows"]:
        for more in row["further"]:
            error = more["log_z"] - row["true_log_z"]
            text.append(
                f"| {row['target']} | {more['what']} | {more['elbo_gap']:.4f} | {error:+.4f} ± "
                f"{more['log_z_stderr']:.2g} | {cell(more['ess'])} | {more['seconds']:.0f} |"
            )
    return "\n".join(text) + "\n"


def _held(row: dict[str, Any], value: str, name: str) -> str:
    """A value, in brackets what is asked of it, and a cross where it falls short."""
    asked = "" if row["goal"][name] is None else f" [{row['goal'][name]:g}]"
    return value + asked + ("" if row["reached"][name] else " ✗")


def _less(a: Any, b: Any) -> float:
    return number(a) - number(b)
