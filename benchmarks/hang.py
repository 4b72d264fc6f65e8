"""Does any density hang? Runs in processes of their own, with a time limit and default flags.

The kinds call LAPACK or make Fourier transforms, several to a point, and in batches large enough
for jaxlib to hand parts of them to XLA's threads: what hangs without `consistent_samplers.guard`.
Of a kind's runs a third have it as the only target of their process, a third as the second and a
third as the third one; half of all run two at a time. Trainings are short, to the same programs.
"""

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.processes import run_module

# A child may use JAX before it imports the package: the rest is imported where it is needed.

_LAPACK = ("triangular", "cholesky", "slogdet", "eigh", "inv", "mixture")
_MODELS = ("normals", "correlations", "latent_process", "components")
KINDS = (*_LAPACK, "process", "processes", "fourier", *_MODELS, "fit")
"""Log densities, NumPyro models, and a density that a user fits OSDS to and moves draws on."""
_DIM = 8  # of points and of most matrices


def run(processes: int, limit: float, late: bool, unguarded: bool, output: Path) -> dict[str, Any]:
    """Runs the kinds in turn, and counts the processes that do not end.

    Args:
      processes: their number.
      limit: seconds of one; what takes longer hangs.
      late: JAX is in use before the package is imported.
      unguarded: with the scheduler at fault, to see that the kinds can hang.
      output: folder for hang.json and hang.md; for hang-late or hang-unguarded where that is asked.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a number that is not positive.
    """
    if processes < 1 or limit <= 0:
        raise ValueError(f"Numbers must be positive, got {processes} and {limit}.")
    from benchmarks.rows import save, versions_and_device

    variant = " --late" * late + " --unguarded" * unguarded
    command = f"python -m benchmarks hang --processes {processes} --limit {limit:g}{variant}"
    plan = [(KINDS[i % len(KINDS)], (i + i // len(KINDS)) % 3) for i in range(processes)]
    half = (processes + 1) // 2
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for side_by_side, part in ((1, plan[:half]), (2, plan[half:])):
            with ThreadPoolExecutor(side_by_side) as pool:
                done = [pool.submit(_process, *of, late, unguarded, limit, folder) for of in part]
                for of, result in zip(part, done, strict=True):
                    found = {"kind": of[0], "targets_before": of[1], "side_by_side": side_by_side}
                    runs.append(found | result.result())
                    print(runs[-1], flush=True)
    results = {"command": command, **versions_and_device(), "cores": os.cpu_count(), "runs": runs}
    return save(output, "hang" + variant.replace(" --", "-"), results, markdown)


def _process(
    kind: str, before: int, late: bool, unguarded: bool, limit: float, folder: str
) -> dict[str, Any]:
    """One run: how it ended, and after how many seconds."""
    from consistent_samplers import guard

    # Flags of a shell would hide the fault, and so would another platform.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CONSISTENT_SAMPLERS_CACHE": folder}
    environment["XLA_FLAGS"] = f"--{guard.FLAG}=true" if unguarded else ""
    arguments = ["benchmarks.hang", "--child", kind, str(before), str(late)]
    ended = run_module(arguments, environment, limit, Path(__file__).resolve().parents[1])
    end = "hang" if ended.hung else ended.error or "done"
    return {"end": end, "seconds": ended.seconds}


def markdown(results: dict[str, Any]) -> str:
    """The counts, and a line for each kind."""
    runs = results["runs"]
    text = [
        "# Processes that hang",
        "",
        f"Made by `{results['command']}` with jax {results['versions']['jax']} on "
        f"{results['device']} with {results['cores']} cores: {_count(runs, 'hang')} of {len(runs)} "
        f"processes hung, and {len(runs) - _count(runs, 'hang', 'done')} failed. Seconds are those "
        "of the processes that ended.",
        "",
        "| kind | runs | of them two at a time | hung | seconds, median | largest |",
        "|" + "---|" * 6,
    ]
    for kind in dict.fromkeys(run["kind"] for run in runs):
        of = [run for run in runs if run["kind"] == kind]
        ended = sorted(run["seconds"] for run in of if run["end"] != "hang")
        seconds = (ended[len(ended) // 2], ended[-1]) if ended else ()
        loaded = sum(run["side_by_side"] == 2 for run in of)
        cells = (kind, len(of), loaded, _count(of, "hang"), *(f"{s:.0f}" for s in seconds))
        text.append("| " + " | ".join(map(str, cells)) + " |" + " |" * 2 * (not ended))
    return "\n".join(text) + "\n"


def _count(runs: list[dict[str, Any]], *ends: str) -> int:
    return sum(run["end"] in ends for run in runs)


def _density(kind: str) -> tuple[Any, int]:
    """A log density and its dimension."""
    import jax.numpy as jnp
    import numpy as np
    from jax.nn import logsumexp
    from jax.scipy.linalg import solve_triangular

    rng = np.random.default_rng(0)
    turns = jnp.asarray(rng.normal(size=(3, _DIM, _DIM)) / _DIM**0.5)
    times, eye = jnp.linspace(0.0, 1.0, 24), jnp.eye(24)
    series = jnp.asarray(rng.normal(size=(2, 24))) + jnp.sin(6.0 * times)

    def terms(name: str, x: Any) -> Any:
        found = []
        for i, turn in enumerate(turns):  # three calls that do not depend on each other
            side = jnp.tanh(turn @ x)
            matrix = (1.0 + i) * jnp.eye(_DIM) + jnp.outer(side, side)
            if name == "triangular":
                found.append(-jnp.sum(solve_triangular(jnp.tril(matrix), x, lower=True) ** 2))
            elif name == "cholesky":
                found.append(-2.0 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(matrix))).sum())
            elif name == "slogdet":
                found.append(-jnp.linalg.slogdet(matrix)[1])
            elif name == "eigh":
                found.append(-jnp.log(jnp.linalg.eigh(matrix)[0]).sum())
            elif name == "fourier":
                found.append(-1e-3 * (jnp.abs(jnp.fft.rfft(jnp.tile(side, 32))) ** 2).sum())
            else:
                found.append(-(x @ jnp.linalg.inv(matrix) @ x))
        return jnp.stack(found)

    def process(x: Any, y: Any) -> Any:
        """Of the logarithms of a Gaussian process's amplitude, length and noise."""
        squares = ((times[:, None] - times) / (0.3 * jnp.exp(x[1]))) ** 2
        covariance = jnp.exp(2.0 * x[0] - 0.5 * squares) + jnp.exp(2.0 * x[2]) * eye
        root = jnp.linalg.cholesky(covariance + 1e-3 * eye)
        white = solve_triangular(root, y, lower=True)
        return -0.5 * white @ white - jnp.log(jnp.diagonal(root)).sum()

    def log_density(x: Any) -> Any:
        if kind == "process":
            value = process(x, series[0])
        elif kind == "processes":  # of two, one for each series; or exchanged
            one, other = process(x[:3], series[0]), process(x[3:], series[1])
            swapped = process(x[3:], series[0]) + process(x[:3], series[1])
            value = jnp.logaddexp(one + other, swapped)
        elif kind == "mixture":
            value = logsumexp(jnp.concatenate([terms(name, x) for name in _LAPACK[:-1]]))
        else:
            value = terms(kind, x).sum() / 3.0
        return value - 0.5 * x @ x

    return log_density, {"process": 3, "processes": 6}.get(kind, _DIM)


def _model(kind: str) -> tuple[Any, tuple[Any, ...]]:
    """A NumPyro model and its data."""
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist

    y = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    times = jnp.linspace(0.0, 1.0, 8)

    def model(y: Any) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([4]).to_event(1))
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        if kind == "correlations":
            root = scale[:, None] * numpyro.sample("root", dist.LKJCholesky(4, 2.0))
            numpyro.sample("y", dist.MultivariateNormal(mean, scale_tril=root), obs=y)
        elif kind == "latent_process":
            squares = ((times[:, None] - times) / scale[0]) ** 2
            covariance = scale[1] ** 2 * jnp.exp(-0.5 * squares) + 0.01 * jnp.eye(8)
            f = numpyro.sample("f", dist.MultivariateNormal(mean[0], covariance))
            numpyro.sample("y", dist.Normal(f, 0.1 + scale[2]), obs=y[:8, 0])
        else:
            near = jnp.outer(mean, mean) + jnp.diag(0.1 + scale**2)
            normal = dist.MultivariateNormal(mean, near)
            numpyro.deterministic("precision", jnp.linalg.inv(near))
            if kind == "components":
                weights = dist.Categorical(jnp.array([0.7, 0.3]))
                wide = dist.MultivariateNormal(jnp.zeros(4), 4.0 * jnp.eye(4) + near)
                normal = dist.MixtureGeneral(weights, [normal, wide])
            numpyro.sample("y", normal, obs=y)

    return model, (y,)


def _child(kind: str, before: int, late: bool) -> None:
    """Trains on the targets of a run, and does what users do then."""
    import jax
    import jax.numpy as jnp

    if late:
        jax.block_until_ready(jnp.ones(2) + 1.0)
    import consistent_samplers as cs

    key = jax.random.key(before)
    short: dict[str, Any] = {"effort": "short", "num_calibration_iterations": 50}
    short["progress_bar"] = False
    # The second target before is the next kind: its programs are as likely to hang.
    others = [None, KINDS[(KINDS.index(kind) + 1) % len(_LAPACK)]]
    for name in [*others[:before], kind]:
        if name in _MODELS:
            from consistent_samplers.integrations.numpyro import OneStepSampler

            model, data = _model(str(name))
            sampler = OneStepSampler(model, num_samples=2_000, **short)
            sampler.run(key, *data)
            jax.block_until_ready(sampler.get_samples())
            continue
        density, dim = _density("inv" if name == "fit" else str(name))
        target = cs.Target(density if name else lambda x: -0.5 * x @ x, dim)
        if name != "fit":
            trained = cs.train_sampler(key, target, **short)
            print(name, float(trained.evidence(key, 2_000).log_z))
            continue
        base = cs.bases.standard_normal(dim)
        algorithm = cs.osds(target, base=base, max_steps=2, hidden=(8,))
        state = cs.fit(key, algorithm, 20, progress_bar=False).state
        draws = algorithm.sample(key, state, 2_000)
        moved, _ = cs.corrections.move(key, draws, density, num_moves=2)
        print(name, jax.block_until_ready(moved.position).shape)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--child", nargs=3, required=True)
    _kind, _before, _late = _parser.parse_args().child
    _child(_kind, int(_before), _late == "True")
