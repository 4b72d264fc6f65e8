"""What answers are held against: kept truths, long NUTS, and the outcomes of a comparison."""

import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks import case, race
from benchmarks.process import isolated
from benchmarks.report import Row

# A child imports JAX after its settings: it is imported where it is needed.

OUTCOMES = ("right", "flagged", "cried wolf", "silently wrong", "crash", "no truth")
"""Right, and to be used; wrong, and said not to be used; right, and said not to be used; ..."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOG_Z_LIMIT, QUANTILE_LIMIT = 0.05, 0.1
"""Nats, and robust standard deviations, of error that may go unsaid, beyond the answer's own."""
_MAX_STDERR = 0.25  # an interval that takes in everything is no answer
# Of chains: too heavy-tailed for quantiles of a scale, or not mixing.
_MAX_R_HAT = 1.02


def kept(benchmark: str, name: str, given: Row, limit: float) -> Row:
    """The truth of a case, from BENCHMARK-references.jsonl, or by ``BENCHMARK:reference``."""
    path = case.RESULTS / f"{benchmark}-references.jsonl"
    truths = case.read(path)
    found = next((row for row in truths if row["target"] == name), None)
    if found is None:
        found = {"target": name} | isolated(f"benchmarks.{benchmark}:reference", given, limit)
        case.write(path, [*truths, found])
    return found


def judged(answer: Row, known: Row) -> Row:
    """How far an answer is off, and which of `OUTCOMES` that is."""
    if "error" in answer:
        # What has no evidence may be refused.
        refused = known.get("improper") and answer["error"].startswith("ValueError")
        return {"outcome": "flagged" if refused else "crash"}
    wrong, found = bool(known.get("improper")), dict[str, Any]()
    if known.get("log_z") is not None:
        off = answer["log_z"] - known["log_z"]
        found |= {"log_z_error": off, "true_log_z": known["log_z"]}
        wrong |= not abs(off) <= max(LOG_Z_LIMIT, 4.0 * answer["log_z_stderr"])
    used = answer["level"] != "not to be used"
    worst = ("", 0.0)
    # Of hundreds of quantiles some are off by three standard errors in any right answer.
    numbers = sum(len(part[0]) for part in known.get("quantiles", {}).values())
    width = max(2.0, NormalDist().inv_cdf(1.0 - 0.025 / max(numbers, 1)))
    for site, (quantiles, spread, errors) in known.get("quantiles", {}).items():
        # Of a site that the verdict names nothing is claimed.
        if site not in answer["quantiles"] or (used and site in answer["distrusted"]):
            continue
        mine, own = (np.asarray(part) for part in answer["quantiles"][site])
        error = width * np.sqrt(np.square(errors) + np.square(own))
        beyond = (np.abs(mine - np.asarray(quantiles)) - error) / spread
        beyond = np.where(np.isnan(mine + own), np.inf, beyond)
        if beyond.max() > worst[1]:
            worst = (site, float(beyond.max()))
    # Nor is NaN right.
    wrong |= not (answer["log_z_stderr"] <= _MAX_STDERR and worst[1] <= QUANTILE_LIMIT)
    found |= {"quantile_error": worst[1], "worst_site": worst[0]}
    if "log_z" not in known and not known.get("quantiles") and not known.get("improper"):
        return found | {"outcome": "no truth"}
    if wrong:
        return found | {"outcome": "silently wrong" if used else "flagged"}
    return found | {"outcome": "right" if used else "cried wolf"}


def counts(rows: Sequence[Row]) -> dict[str, Any]:
    """How many rows have each outcome (spaces as underscores), and all of it in words."""
    found = [row["outcome"] for row in rows if "outcome" in row]
    number = {kind: found.count(kind) for kind in OUTCOMES}
    words = ", ".join(f"{kind}: {num}" for kind, num in number.items()) + f" of {len(found)}"
    share = number["cried wolf"] / max(number["right"] + number["cried wolf"], 1)
    named = {kind.replace(" ", "_"): num for kind, num in number.items()}
    return named | {"counts": words, "cried_share": 100.0 * share}


# --- In the child -------------------------------------------------------------------------------


def answered(found: race.Found, samples: dict[str, Any] | None = None) -> Row:
    """The row of ours with the quantiles of all sites, to be judged."""
    # What the weights' tail may hide could all lie on one side of a quantile.
    size, unseen = found.row["effective"], found.row["unseen"]
    if (tail := found.row["tail"]) is not None:
        size, unseen = tail, 0.0
    flat = race.flat_sites(found.samples if samples is None else samples)
    sites = {k: _quantiles(v, size, unseen) for k, v in flat.items()}
    return found.row | {"quantiles": {k: (q, e) for k, (q, _, e) in sites.items()}}


def of_draws(draws: dict[str, np.ndarray], sizes: dict[str, float]) -> Row:
    """A truth by quantiles, of the coordinates whose effective numbers are given."""
    return {
        "quantiles": {k: _quantiles(v, sizes[k]) for k, v in draws.items() if k in sizes},
        "sites": len(draws),
    }


def _quantiles(
    values: np.ndarray, num_effective: float, unseen: float = 0.0
) -> tuple[list[float], float, list[float]]:
    """Quantiles, IQR / 1.349 and the quantiles' standard errors, to the third digit of the IQR."""
    probabilities = np.asarray(QUANTILES)
    found = np.quantile(values, probabilities)
    away = np.sqrt(probabilities * (1.0 - probabilities) / max(num_effective, 1.0) + unseen**2)
    low, high = (np.quantile(values, np.clip(probabilities + s * away, 0, 1)) for s in (-1, 1))
    spread = float((found[3] - found[1]) / 1.349)
    size = math.log10(spread) if 0.0 < spread < math.inf else 0.0
    rounded: Any = partial(np.round, decimals=3 - math.floor(size))
    return rounded(found).tolist(), float(rounded(spread)), rounded(0.5 * (high - low)).tolist()


def long_nuts(module: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Draws of long NUTS, and the effective number of those coordinates whose chains agree.

    Of the model as it is and with its normals non-centred, the one that mixes better: chains in the
    neck of a centred hierarchy may agree on what they all miss.
    """
    if hasattr(module, "ref_model"):
        return _chains(module, module.ref_model)
    from numpyro.handlers import reparam

    models = (module.model, reparam(module.model, config=_non_centred))
    found = [_chains(module, model) for model in models]
    common = [name for name in found[0][0] if name in found[1][0]]

    def mixing(of: tuple[dict[str, np.ndarray], dict[str, float]]) -> tuple[int, float]:
        agree = [of[1][name] for name in common if name in of[1]]
        return len(agree), min(agree, default=0.0)

    draws, sizes = max(found, key=mixing)
    return {k: draws[k] for k in common}, {k: sizes[k] for k in common if k in sizes}


def _non_centred(site: dict[str, Any]) -> Any:
    """How ``reparam`` treats a site: latent normals by their locations and scales."""
    from numpyro import distributions as dist
    from numpyro.infer.reparam import LocScaleReparam

    fn = site["fn"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    latent = site["type"] == "sample" and not site["is_observed"]
    latent &= not site["name"].endswith("_decentered")  # made by it
    return LocScaleReparam(0.0) if latent and isinstance(fn, dist.Normal) else None


def _chains(module: Any, model: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Draws of a model, and the effective numbers."""
    import jax
    from numpyro.diagnostics import summary
    from numpyro.infer import NUTS, init_to_median

    settings = {"target_accept_prob": 0.9, "init_strategy": init_to_median}
    kernel = NUTS(model, **(settings | getattr(module, "NUTS_KERNEL", {})))
    sizes = {"num_warmup": 1_000, "num_samples": 2_000} | getattr(module, "NUTS_RUN", {})
    mcmc = race.mcmc_of(kernel, **sizes)
    args, kwargs = jax.tree.map(_in_double, (module.args, module.kwargs))
    mcmc.run(jax.random.PRNGKey(1), *args, **kwargs)
    flat = race.flat_sites(mcmc.get_samples())
    grouped = {k: v.reshape(race.CHAINS, -1) for k, v in flat.items() if np.ptp(v) > 0}
    stats = summary(grouped)
    return flat, {k: float(s["n_eff"]) for k, s in stats.items() if s["r_hat"] < _MAX_R_HAT}


def _in_double(leaf: Any) -> Any:
    single = isinstance(leaf, np.ndarray) and leaf.dtype == np.float32
    return leaf.astype(np.float64) if single else leaf
