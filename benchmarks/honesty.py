"""How far the diagnostics can be believed: many small runs, among them ones that must fail."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consistent_samplers as cs
from benchmarks.honest_cases import Case, cases
from benchmarks.rows import save, versions_and_device
from consistent_samplers.bases import GaussianBase
from consistent_samplers.bases.exploration import find_modes
from consistent_samplers.types import Array, Draws, PRNGKey

# Nats of error, and standard errors, that no run should pass the diagnostics with.
SILENT_ERROR, SILENT_STDERRS = 0.05, 5.0
_Z95 = 1.96


def run(seeds: int, seed: int, num_samples: int, output: Path) -> dict[str, Any]:
    """Trains every case for a number of seeds and compares its verdict with the truth.

    A run is a base, a calibrated step and its evidence; every second case is in double precision.
    Fitted Gaussians are fitted anew for each seed, mixtures once for all seeds of a case (their
    shapes could differ otherwise); the look for modes is taken once for each target, from starts
    that no run knows of.

    Args:
      seeds: runs of each case.
      seed: of all of them.
      num_samples: weighted draws of each run.
      output: folder for honesty.json and honesty.md.

    Returns:
      What was written to the JSON file.
    """
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    looks: dict[tuple[str, bool], Any] = {}
    for number, case in enumerate(cases()):
        target, double = case.target, number % 2 == 1
        name = f"{target.name}, {target.dim}-d"
        with jax.enable_x64(double):
            if (name, double) not in looks:
                looks[name, double] = find_modes(jax.random.key(2**20), target)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), seeds)
            rows += _rows(case, keys, num_samples, looks[name, double])
        now = rows[-seeds:]
        print(
            f"{name:>28} {case.fails or 'meant to work':<26} passed "
            f"{sum(row['passed'] for row in now)} of {seeds}, covered "
            f"{sum(row['passed'] and row['covered'] for row in now)}, silently wrong "
            f"{sum(map(is_silent, now))}",
            flush=True,
        )
    results = {
        "command": f"python -m benchmarks honesty --seeds {seeds} --seed {seed} "
        f"--num-samples {num_samples}",
        **versions_and_device(),
        "rows": rows,
        "wall_seconds": time.perf_counter() - start,
    }
    return save(output, "honesty", results, markdown)


def _rows(case: Case, keys: Array, num_samples: int, modes: Any) -> list[dict[str, Any]]:
    """All runs of a case, trained side by side in one computation."""
    target = case.target

    def train(key: PRNGKey, base: Any) -> Draws:
        key_fit, key_draw = jax.random.split(key)
        algorithm = cs.osds(target, base=base, guidance=None, hidden=(32, 32))
        state = algorithm.init(key_fit)
        if case.untrained:
            state = state._replace(ema_params=_shaken(key_fit, state.ema_params, case.untrained))
        else:
            rate = optax.cosine_decay_schedule(1e-2, case.iterations)
            step = cs.calibration(algorithm, **({"learning_rate": rate} | case.settings))
            state, _ = jax.lax.scan(
                lambda state, key: (step.step(key, state)[0], None),
                step.restart(state),
                jax.random.split(key_fit, case.iterations),
            )
        return algorithm.sample(key_draw, state, num_samples)

    pairs = [jax.random.split(key) for key in keys]
    first = case.base(pairs[0][0], target)
    train_keys = jnp.stack([pair[1] for pair in pairs])
    if isinstance(first, GaussianBase):
        others = [case.base(pair[0], target) for pair in pairs[1:]]
        bases = jax.tree.map(lambda *parts: jnp.stack(parts), first, *others)
        draws = jax.jit(jax.vmap(train))(train_keys, bases)
    else:
        draws = jax.jit(jax.vmap(train, (0, None)))(train_keys, first)
    every = [jax.tree.map(lambda leaf, i=i: leaf[i], draws) for i in range(len(keys))]
    return [_row(case, seed, run, modes) for seed, run in enumerate(every)]


def _row(case: Case, seed: int, draws: Draws, modes: Any) -> dict[str, Any]:
    """What one run says of itself, and the truth."""
    target = case.target
    assert target.log_z is not None
    e = cs.evidence(draws)
    exploration = cs.diagnostics.exploration_check(
        jax.random.key(seed),
        target,
        draws.position,
        float(e.log_z),
        log_weight=draws.log_weight,
        modes=modes,
    )
    assert e.folded is not None
    error = float(e.log_z) - float(target.log_z)
    verdict = cs.diagnostics.verdict(e, exploration)
    return {
        "target": target.name,
        "dim": target.dim,
        "dtype": str(draws.position.dtype),
        "fails": case.fails,
        "seed": seed,
        "error": error,
        "log_z_stderr": float(e.log_z_stderr),
        "covered": abs(error) <= _Z95 * float(e.log_z_stderr) + 1e-4,
        "passed": verdict.level != "not to be used",
        "level": verdict.level,
        "weights_passed": cs.diagnostics.is_trustworthy(e),
        "verdict": verdict.words,
        "ess": float(e.ess),
        "pareto_k": float(e.pareto_k),
        "folded": float(e.folded),
        "modes_missed": exploration.num_missed,
    }


def _shaken(key: PRNGKey, params: Any, scale: float) -> Any:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + scale * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def is_silent(row: dict[str, Any]) -> bool:
    """Whether a run passes and is off by more than its interval allows for."""
    return bool(row["passed"]) and _is_off(row)


def _is_off(row: dict[str, Any]) -> bool:
    return abs(row["error"]) > max(SILENT_ERROR, SILENT_STDERRS * row["log_z_stderr"])


def markdown(results: dict[str, Any]) -> str:
    """The two figures asked for, and a line for each case."""
    rows = results["rows"]
    passed = [row for row in rows if row["passed"]]
    covered = sum(row["covered"] for row in passed)
    blind = [row for row in rows if row["weights_passed"] and _is_off(row)]
    share = covered / max(len(passed), 1)
    bad = [row for row in rows if _is_off(row)]
    off = f"{SILENT_ERROR} nats and {SILENT_STDERRS:g} standard errors"
    densities = len({(row["target"], row["dim"]) for row in rows})
    text = [
        "# Honesty: what the diagnostics let pass",
        "",
        f"Made by `{results['command']}` on {results['device']}: {len(rows)} runs on {densities} "
        f"densities, {sum(row['dtype'] == 'float64' for row in rows)} of them in double precision "
        f"and {sum(bool(row['fails']) for row in rows)} of them meant to fail. A run passes if its "
        'verdict is "trusted" or "usable". Off is what is wrong by more than '
        f"{off}.",
        "",
        f"- {len(passed)} runs pass, {sum(row['level'] == 'trusted' for row in rows)} of them "
        f"trusted; the 95 % interval of log Z covers the truth in {covered} of them "
        f"({100 * share:.1f} %; to 1e-4, the rounding of float32).",
        f"- Runs that pass and are off: **{sum(map(is_silent, rows))}**. Without the look for "
        f"modes from outside it would be {len(blind)}.",
        f"- Of {len(bad)} runs that are off, {sum(not row['passed'] for row in bad)} are flagged.",
        f"- Of {sum(not row['fails'] for row in rows)} runs that are meant to work, "
        f"{sum(not row['fails'] and not row['passed'] and not _is_off(row) for row in rows)} are "
        "right and flagged.",
        "",
        "| target | dim | meant to fail by | runs | trusted | usable | covered of those | off "
        "| of those flagged | median error | median ESS |",
        "|" + "---|" * 11,
    ]
    for kind in dict.fromkeys((row["target"], row["dim"], row["fails"]) for row in rows):
        group = [row for row in rows if (row["target"], row["dim"], row["fails"]) == kind]
        wrong = [row for row in group if _is_off(row)]
        cells = (
            *(*kind, len(group)),
            *(sum(row["level"] == level for row in group) for level in ("trusted", "usable")),
            sum(row["passed"] and row["covered"] for row in group),
            *(len(wrong), sum(not row["passed"] for row in wrong)),
            f"{np.median([row['error'] for row in group]):+.3g}",
            f"{np.median([row['ess'] for row in group]):.2g}",
        )
        text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"
