"""How far the diagnostics can be believed: many small runs, among them ones that must fail."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consistent_samplers as cs
from benchmarks.rows import save, versions_and_device
from consistent_samplers.bases import GaussianBase, MixtureBase
from consistent_samplers.bases.exploration import find_modes
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, PRNGKey

# Nats of error that no run should pass the diagnostics with.
LARGE_ERROR = 0.5
_Z95 = 1.96


@dataclasses.dataclass(frozen=True)
class Case:
    """Runs of one kind.

    Attributes:
      target: what is sampled.
      base: makes the base of one run.
      fails: how the run is meant to fail, or "" for one that is meant to work.
      iterations: of calibration.
      settings: of the calibration.
      untrained: scale of random numbers put into the network instead of training it.
    """

    target: Target
    base: Callable[[PRNGKey, Target], Any]
    fails: str = ""
    iterations: int = 300
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    untrained: float = 0.0


def _gaussian(key: PRNGKey, target: Target) -> GaussianBase:
    return cs.bases.fit_gaussian(key, target, num_iterations=300)


def _mixture(key: PRNGKey, target: Target) -> MixtureBase:
    return cs.bases.fit_mixture(key, target)


def _wide(scale: float) -> Callable[[PRNGKey, Target], GaussianBase]:
    return lambda key, target: cs.bases.standard_normal(target.dim, scale)


def _at(loc: float, scale: float = 1.0) -> Callable[[PRNGKey, Target], GaussianBase]:
    """A Gaussian at (loc, 0, ..., 0)."""

    def build(key: PRNGKey, target: Target) -> GaussianBase:
        place = jnp.zeros(target.dim).at[0].set(loc)
        return GaussianBase(place, scale * jnp.eye(target.dim))

    return build


def _two_modes(dim: int, distance: float, share: float) -> Target:
    """Unit Gaussians at ± distance / 2 on the first axis, the right one with a given share."""
    place = jnp.zeros(dim).at[0].set(0.5 * distance)

    def log_density(x: Array) -> Array:
        normal = jax.scipy.stats.norm.logpdf
        right = jnp.log(share) + normal(x, place).sum()
        left = jnp.log1p(-share) + normal(x, -place).sum()
        return jnp.logaddexp(right, left)

    return Target(log_density, dim, name=f"two_modes_{dim}d_{share:g}", log_z=0.0)


def _student(dim: int, df: float) -> Target:
    """Independent Student-t coordinates."""

    def log_density(x: Array) -> Array:
        return jax.scipy.stats.t.logpdf(x, df).sum()

    return Target(log_density, dim, name=f"student_t{df:g}_{dim}d", log_z=0.0)


def _correlated(dim: int) -> Target:
    mixing = np.random.default_rng(dim).normal(size=(dim, dim))
    return cs.targets.gaussian(np.arange(dim), mixing @ mixing.T / dim + 0.1 * np.eye(dim))


def cases() -> list[Case]:
    """All of them."""
    funnel, banana, wells = cs.targets.funnel(5), cs.targets.rosenbrock(2), cs.targets.many_well(8)
    gmm9, rings = cs.targets.gmm9(), cs.targets.rings()
    return [
        Case(_correlated(5), _gaussian),
        Case(_correlated(20), _gaussian, iterations=100),
        Case(_student(3, 8.0), _gaussian),
        Case(_student(10, 8.0), _gaussian),
        Case(funnel, _gaussian, iterations=600),
        Case(banana, _gaussian, iterations=600),
        Case(gmm9, _mixture),
        Case(cs.targets.gmm40(2), _mixture, iterations=100),
        Case(_two_modes(5, 8.0, 0.5), _mixture),
        Case(cs.targets.double_wells(5, 2, 3.0), _mixture),
        Case(wells, _gaussian, "a Gaussian on many modes"),
        Case(gmm9, _wide(5.0), "a Gaussian on many modes"),
        Case(rings, _wide(3.0), "a Gaussian on many modes"),
        Case(_two_modes(2, 12.0, 0.5), _at(6.0), "a missed mode"),
        Case(_two_modes(10, 12.0, 0.5), _at(6.0), "a missed mode"),
        Case(_two_modes(5, 12.0, 0.2), _at(6.0), "a missed mode"),
        Case(_student(2, 1.5), _wide(1.0), "heavy tails"),
        Case(_student(10, 2.0), _wide(1.0), "heavy tails"),
        Case(_student(20, 2.0), _gaussian, "heavy tails"),
        Case(_correlated(10), _wide(1.0), "a cut budget", iterations=20),
        Case(funnel, _wide(1.0), "a cut budget", iterations=20),
        Case(banana, _wide(1.0), "a cut budget", iterations=20),
        Case(gmm9, _wide(4.0), "a folded map", untrained=0.6),
        Case(_correlated(5), _at(0.0), "a folded map", untrained=0.6),
        Case(
            rings,
            _wide(3.0),
            "a folded map",
            settings={"monotonicity_weight": 0.0, "learning_rate": 3e-2},
        ),
    ]


def run(seeds: int, seed: int, num_samples: int, output: Path) -> dict[str, Any]:
    """Trains every case for a number of seeds and compares its verdict with the truth.

    A run is a base, a calibrated step and its evidence. Fitted Gaussians are fitted anew for each
    seed, mixtures once for all seeds of a case (their shapes could differ otherwise); the look for
    modes is taken once for each target, from starts that no run knows of.

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
    looks: dict[str, Any] = {}
    for number, case in enumerate(cases()):
        target = case.target
        name = f"{target.name}, {target.dim}-d"
        if name not in looks:
            looks[name] = find_modes(jax.random.key(2**20), target)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), seeds)
        rows += _rows(case, keys, num_samples, looks[name])
        passed = sum(row["passed"] for row in rows[-seeds:])
        large = sum(abs(row["error"]) > LARGE_ERROR for row in rows[-seeds:])
        print(
            f"{name:>26} {case.fails or 'meant to work':<26} passed {passed} of {seeds}, "
            f"off by more than {LARGE_ERROR}: {large}",
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
    error = float(e.log_z) - target.log_z
    return {
        "target": target.name,
        "dim": target.dim,
        "fails": case.fails,
        "seed": seed,
        "error": error,
        "log_z_stderr": float(e.log_z_stderr),
        "covered": abs(error) <= _Z95 * float(e.log_z_stderr) + 1e-4,
        "passed": cs.diagnostics.is_trustworthy(e, exploration),
        "weights_passed": cs.diagnostics.is_trustworthy(e),
        "verdict": str(cs.diagnostics.verdict(e, exploration)),
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


def markdown(results: dict[str, Any]) -> str:
    """The two figures asked for, and a line for each case."""
    rows = results["rows"]
    passed = [row for row in rows if row["passed"]]
    covered = sum(row["covered"] for row in passed)
    wrong = [row for row in passed if abs(row["error"]) > LARGE_ERROR]
    blind = [row for row in rows if row["weights_passed"] and abs(row["error"]) > LARGE_ERROR]
    share = covered / max(len(passed), 1)
    bad = [row for row in rows if abs(row["error"]) > LARGE_ERROR]
    text = [
        "# Honesty: what the diagnostics let pass",
        "",
        f"Made by `{results['command']}` on {results['device']}: {len(rows)} runs, "
        f"{sum(bool(row['fails']) for row in rows)} of them meant to fail. A run passes if "
        "`cs.diagnostics.is_trustworthy(evidence, exploration)` says so.",
        "",
        f"- {len(passed)} runs pass; the 95 % interval of log Z covers the truth in {covered} of "
        f"them ({100 * share:.1f} %; to 1e-4, the rounding of float32).",
        f"- Runs that pass with log Z off by more than {LARGE_ERROR}: **{len(wrong)}**. Without "
        f"the look for modes from outside it would be {len(blind)}.",
        f"- Of {len(bad)} runs that are off by more than {LARGE_ERROR}, "
        f"{sum(not row['passed'] for row in bad)} are flagged.",
        "",
        "| target | dim | meant to fail by | runs | pass | covered of those | off by more than "
        f"{LARGE_ERROR} | of those flagged | median error | median ESS |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys((row["target"], row["fails"]) for row in rows):
        group = [row for row in rows if (row["target"], row["fails"]) == kind]
        fine = [row for row in group if row["passed"]]
        off = [row for row in group if abs(row["error"]) > LARGE_ERROR]
        cells = (
            *(kind[0], group[0]["dim"], kind[1], len(group), len(fine)),
            *(sum(row["covered"] for row in fine), len(off)),
            sum(not row["passed"] for row in off),
            f"{np.median([row['error'] for row in group]):+.3g}",
            f"{np.median([row['ess'] for row in group]):.2g}",
        )
        text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"
