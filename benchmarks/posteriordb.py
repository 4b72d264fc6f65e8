"""Posteriors of posteriordb as NumPyro models: one-step draws, chains of them and NUTS."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

from benchmarks.rows import cell, save, versions_and_device, write_json
from consistent_samplers.estimate import pareto_smooth
from consistent_samplers.integrations.numpyro import OneStepMH, OneStepSampler

FOLDER_VARIABLE = "CONSISTENT_SAMPLERS_POSTERIORDB"
_DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference" / "posteriordb"
_NUM_DRAWS = 10_000
# What "right" is held to: of a weighted draw's moments in reference standard deviations.
MEAN_TOLERANCE = 0.1
STD_TOLERANCE = 0.1

# --- Models -------------------------------------------------------------------------------------
# As in the Stan programs of the data base (Magnusson et al.), flat priors included.


def _flat(name: str, support: Any = constraints.real, shape: tuple[int, ...] = ()) -> Any:
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def ark(data: dict[str, Any]) -> None:
    """Autoregression of order K."""
    y, order = data["y"], int(data["K"])
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    before = jnp.stack([y[order - 1 - k : len(y) - 1 - k] for k in range(order)], axis=1)
    numpyro.sample("y", dist.Normal(alpha + before @ beta, sigma), obs=y[order:])


def eight_schools_noncentered(data: dict[str, Any]) -> None:
    """Eight schools, with standardised effects."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    standard = numpyro.sample("theta_trans", dist.Normal().expand([len(data["y"])]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * standard)
    numpyro.sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])


def gp_regr(data: dict[str, Any]) -> None:
    """Gaussian process with a squared exponential kernel; sigma is the noise's variance."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = data["x"]
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    covariance += sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=data["y"])


def kidscore_momiq(data: dict[str, Any]) -> None:
    """Linear regression with flat coefficients."""
    beta = _flat("beta", constraints.real_vector, (2,))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample(
        "y", dist.Normal(beta[0] + beta[1] * data["mom_iq"], sigma), obs=data["kid_score"]
    )


def kilpisjarvi(data: dict[str, Any]) -> None:
    """Linear trend of temperatures by year, as the years are: nearly collinear."""
    alpha = numpyro.sample("alpha", dist.Normal(data["pmualpha"], data["psalpha"]))
    beta = numpyro.sample("beta", dist.Normal(data["pmubeta"], data["psbeta"]))
    sigma = _flat("sigma", constraints.positive)
    numpyro.sample("y", dist.Normal(alpha + beta * data["x"], sigma), obs=data["y"])


def low_dim_gauss_mix(data: dict[str, Any]) -> None:
    """Mixture of two Gaussians with ordered means."""
    mu = _flat("mu", constraints.ordered_vector, (2,))
    numpyro.factor("prior of mu", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    parts = dist.Normal(mu, sigma).log_prob(data["y"][:, None])
    weights = jnp.log(jnp.stack([theta, 1.0 - theta]))
    numpyro.factor("y", jax.scipy.special.logsumexp(weights + parts, axis=1).sum())


def logmesquite(data: dict[str, Any]) -> None:
    """Regression on logarithms, all priors flat."""
    beta = _flat("beta", constraints.real_vector, (7,))
    sigma = _flat("sigma", constraints.positive)
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [jnp.ones(len(data["weight"])), *(jnp.log(data[n]) for n in names), data["group"]]
    mean = jnp.stack(columns, axis=1) @ beta
    numpyro.sample("y", dist.Normal(mean, sigma), obs=jnp.log(data["weight"]))


def blr(data: dict[str, Any]) -> None:
    """Bayesian linear regression."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([int(data["D"])]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(data["X"] @ beta, sigma), obs=data["y"])


MODELS: dict[str, Callable[[dict[str, Any]], None]] = {
    "arK": ark,
    "eight_schools_noncentered": eight_schools_noncentered,
    "gp_regr": gp_regr,
    "kidscore_momiq": kidscore_momiq,
    "kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix": low_dim_gauss_mix,
    "logmesquite": logmesquite,
    "blr": blr,
}

# --- Runs ---------------------------------------------------------------------------------------


def run(posteriors: list[str] | None, seed: int, folder: Path | None, output: Path) -> Any:
    """One-step draws, chains and NUTS on each posterior, against its reference.

    Args:
      posteriors: names of models; all of `MODELS` if None.
      seed: seed of everything.
      folder: where the reference files lie; `FOLDER_VARIABLE` or next to the project if None.
      output: folder for posteriordb.json and .md; what it holds of others is kept.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: no such posterior, or no reference files.
    """
    folder = folder or Path(os.environ.get(FOLDER_VARIABLE, _DEFAULT_FOLDER))
    files = {}
    for path in sorted(folder.glob("*.json")):
        reference = json.loads(path.read_text())
        files[reference["model"]] = reference
    wanted = posteriors or [name for name in MODELS if name in files]
    missing = [name for name in wanted if name not in files or name not in MODELS]
    if missing or not wanted:
        raise ValueError(
            f"No reference or model for {missing or 'any posterior'} in {folder}: give the folder "
            f"of posteriordb's files by --folder or {FOLDER_VARIABLE}; models: "
            f"{', '.join(MODELS)}."
        )
    output.mkdir(parents=True, exist_ok=True)
    path = output / "posteriordb.json"
    rows = {}
    if path.is_file():
        rows = {row["posterior"]: row for row in json.loads(path.read_text())["rows"]}
    for name in wanted:
        rows[name] = _row(name, files[name], seed)
        print(_line(rows[name]), flush=True)
        results = {
            "command": f"python -m benchmarks posteriordb --seed {seed}",
            **versions_and_device(),
            "rows": [rows[other] for other in MODELS if other in rows],
        }
        write_json(path, results)
    return save(output, "posteriordb", results, markdown)


def _row(name: str, reference: dict[str, Any], seed: int) -> dict[str, Any]:
    data = {
        k: np.asarray(v, np.float32) if isinstance(v, list) else v
        for k, v in reference["data"].items()
    }
    sampler = OneStepSampler(MODELS[name], num_samples=_NUM_DRAWS, progress_bar=False)
    start = time.perf_counter()
    sampler.run(jax.random.key(seed), data)
    train_seconds = time.perf_counter() - start
    samples, log_weight = sampler.get_weighted_samples()
    smoothed = np.asarray(pareto_smooth(log_weight)[0], np.float64)
    weight = np.exp(smoothed - smoothed.max())
    one_step = _moment_errors(_columns(samples, reference), weight / weight.sum(), reference)
    sampler.draw(jax.random.key(seed), _NUM_DRAWS)
    start = time.perf_counter()
    jax.block_until_ready(sampler.draw(jax.random.key(seed + 1), _NUM_DRAWS))
    draw_seconds = time.perf_counter() - start
    e, trained = sampler.evidence, sampler.trained
    explored = trained.exploration
    chains = _chains(OneStepMH(sampler), 0, seed, data, reference, ("accept_prob",))
    nuts = _chains(NUTS(MODELS[name]), 1_000, seed, data, reference, ("diverging",))
    right = one_step["mean_error"] <= MEAN_TOLERANCE and one_step["std_error"] <= STD_TOLERANCE
    return {
        "posterior": name,
        "dim": trained.target.dim,
        "base": type(trained.base).__name__,
        "train_seconds": train_seconds,
        "seconds_per_10000_draws": draw_seconds,
        "one_step": one_step,
        "right": right,
        # By what says whether the weights can correct the draws, and by the look for modes.
        "flagged": not sampler.reweighted or not (explored is None or explored.passed),
        "verdict": str(trained.verdict(e)),
        "log_z": float(e.log_z),
        "log_z_stderr": float(e.log_z_stderr),
        "elbo": float(e.elbo),
        "base_elbo": float(trained.stages["base"].elbo),
        "ess": float(e.ess),
        "pareto_k": float(e.pareto_k),
        "chains": chains,
        "nuts": nuts,
    }


def _columns(samples: dict[str, Any], reference: dict[str, Any]) -> dict[str, np.ndarray]:
    """Scalars by the reference's names, such as ``beta[1]``: last axes of the arrays."""
    found = {}
    for name in reference["reference_mean"]:
        site, _, index = name.partition("[")
        value = np.asarray(samples[site], np.float64)
        found[name] = value[..., int(index[:-1]) - 1] if index else value
    return found


def _moment_errors(
    columns: dict[str, np.ndarray], weight: np.ndarray, reference: dict[str, Any]
) -> dict[str, float]:
    """Largest error of a mean, in reference deviations, and of a standard deviation, relative."""
    mean_errors, std_errors = [], []
    for name, value in columns.items():
        mean = float(weight @ value)
        std = math.sqrt(float(weight @ (value - mean) ** 2))
        expected = reference["reference_std"][name]
        mean_errors.append(abs(mean - reference["reference_mean"][name]) / expected)
        std_errors.append(abs(std / expected - 1.0))
    # Unlike max(), which may pass over a NaN.
    return {"mean_error": float(np.max(mean_errors)), "std_error": float(np.max(std_errors))}


def _chains(
    kernel: Any,
    num_warmup: int,
    seed: int,
    data: dict[str, Any],
    reference: dict[str, Any],
    fields: tuple[str, ...],
) -> dict[str, Any]:
    """Four chains of 2,500 draws against the reference."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=2_500,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    mcmc.run(jax.random.key(seed + 2), data, extra_fields=fields)
    columns = _columns(mcmc.get_samples(group_by_chain=True), reference)
    seconds = time.perf_counter() - start
    errors, r_hats, sizes = [], [], []
    for name, value in columns.items():
        size = float(effective_sample_size(value))
        expected = reference["reference_std"][name]
        # The reference has an error of its own.
        error = expected * math.sqrt(1.0 / size + 1.0 / reference["ess_bulk"][name])
        errors.append(abs(value.mean() - reference["reference_mean"][name]) / error)
        r_hats.append(float(split_gelman_rubin(value)))
        sizes.append(size)
    flat = {name: value.reshape(-1) for name, value in columns.items()}
    weight = np.full(10_000, 1e-4)
    return {
        "seconds": seconds,
        "largest_error_in_stderr": float(np.max(errors)),
        "r_hat": float(np.max(r_hats)),
        "num_effective": float(np.min(sizes)),
        fields[0]: float(np.mean(mcmc.get_extra_fields()[fields[0]])),
        **_moment_errors(flat, weight, reference),
    }


def _line(row: dict[str, Any]) -> str:
    one, mh = row["one_step"], row["chains"]
    return (
        f"{row['posterior']:>26} {row['dim']:>3}-d {row['base']:<19} mean {one['mean_error']:.3f} "
        f"std {one['std_error']:.3f} k {row['pareto_k']:.2f} ESS {row['ess']:.2f} "
        f"{row['train_seconds']:.0f} s {'right' if row['right'] else 'WRONG'}"
        f"{', flagged' if row['flagged'] else ''}; chains {mh['largest_error_in_stderr']:.1f} s.e. "
        f"r-hat {mh['r_hat']:.4f} accept {mh['accept_prob']:.2f}; NUTS "
        f"{row['nuts']['largest_error_in_stderr']:.1f} s.e. {row['nuts']['seconds']:.0f} s"
    )


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    text = [
        "# posteriordb: one-step draws against reference posteriors",
        "",
        f"Made by `{results['command']}` on {results['device']}: `OneStepSampler(model)` and "
        "nothing else. Errors are the largest over all parameters: of a mean in reference standard "
        f"deviations, of a standard deviation relative; right: at most {MEAN_TOLERANCE} and "
        f"{STD_TOLERANCE}. Chains are `OneStepMH` on the same sampler, 4 of 2,500 draws without a "
        "warm-up; NUTS has 4 of 2,500 after 1,000. Their errors are in Monte-Carlo standard "
        "errors, the largest over all parameters.",
        "",
        "| posterior | dim | base | mean error | std error | right | flagged | Pareto k | ESS | "
        "ELBO (base alone) | log Z | seconds to train | s / 10,000 draws | chains: error | r-hat | "
        "accepted | NUTS: mean error | std error | error | seconds |",
        "|" + "---|" * 20,
    ]
    for row in results["rows"]:
        one, chains, nuts = row["one_step"], row["chains"], row["nuts"]
        cells = (
            row["posterior"],
            str(row["dim"]),
            row["base"].removesuffix("Base"),
            cell(one["mean_error"]),
            cell(one["std_error"]),
            "yes" if row["right"] else "NO",
            "yes" if row["flagged"] else "no",
            cell(row["pareto_k"]),
            cell(row["ess"]),
            f"{row['elbo']:.3f} ({row['base_elbo']:.3f})",
            f"{row['log_z']:.3f} ± {row['log_z_stderr']:.2g}",
            f"{row['train_seconds']:.0f}",
            cell(row["seconds_per_10000_draws"]),
            cell(chains["largest_error_in_stderr"]),
            f"{chains['r_hat']:.4f}",
            cell(chains["accept_prob"]),
            cell(nuts["mean_error"]),
            cell(nuts["std_error"]),
            cell(nuts["largest_error_in_stderr"]),
            f"{nuts['seconds']:.0f}",
        )
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"
