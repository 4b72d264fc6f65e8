"""One run of ours and one of NUTS on a model or a density: what each took, and what it is worth."""

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import Row

# What is timed imports itself: JAX is imported where it is needed.

CHAINS = 4
_BATCH, _MOST_DRAWS = 65_536, 10_000_000
# Times as many draws as at first up to which they are made in batches of as many.
_FEW_BATCHES = 10


class Subject(NamedTuple):
    """A NumPyro model with its arguments, or a `Target` in its place."""

    model: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012


class Found(NamedTuple):
    """A row, what drew, and its draws by site."""

    row: Row
    sampler: Any
    samples: dict[str, Any]


def ours(
    subject: Subject, rng_key: Any, effective: float = 0.0, num_samples: int = 10_000, **train: Any
) -> Found:
    """Trains and draws, until enough draws are effective; then draws again, with all compiled.

    Args:
      subject: what to sample.
      rng_key: key.
      effective: draws to reach; those that `num_samples` has if it is zero.
      num_samples: draws at once, of which the row's evidence is.
      **train: settings of `OneStepSampler` or `train_sampler`; without a progress bar if not given.
    """
    from benchmarks import timing

    events = timing.compilations()
    import jax

    import consistent_samplers as cs

    begin, train = time.perf_counter(), {"progress_bar": False} | train
    if isinstance(subject.model, cs.Target):
        trained = cs.train_sampler(rng_key, subject.model, **train)
        sampler: Any = trained
        draws = trained.sample(jax.random.fold_in(rng_key, 1), num_samples)
        worth = cs.diagnostics.informed(cs.evidence(draws), trained.exploration)
        chains, worth, verdict = trained.concluded(worth)
        samples = {"x": draws.position}
        if chains is not None:
            samples = {"x": chains.position.reshape(-1, subject.model.dim)}
        elif effective == 0.0:
            smooth = cs.estimate.pareto_smooth(draws.log_weight)[0]
            key = jax.random.fold_in(rng_key, 2)
            index = cs.corrections.systematic_indices(key, smooth, num_samples)
            samples = {"x": draws.position[np.asarray(index)]}
        distrusted: Sequence[str] = ()
    else:
        from consistent_samplers.integrations.numpyro import OneStepSampler

        sampler = OneStepSampler(subject.model, num_samples=num_samples, **train)
        sampler.run(rng_key, *subject.args, **subject.kwargs)
        trained, worth, verdict = sampler.trained, sampler.evidence, sampler.verdict
        samples, distrusted = sampler.get_samples(), sampler.diagnostics()["distrusted"]
        chains = trained.concluded(worth)[0]
    num_drawn, reached = worth.num_samples, float(worth.ess) * worth.num_samples
    while reached < effective and num_drawn < _MOST_DRAWS:
        # As many as before: that is compiled.
        missing = (effective - reached) / float(worth.ess)
        num = num_samples if missing < _FEW_BATCHES * num_samples else _BATCH
        more = trained.evidence(jax.random.fold_in(rng_key, num_drawn), num)
        num_drawn, reached = num_drawn + num, reached + float(more.ess) * num
    end, seconds = time.time(), time.perf_counter() - begin
    compiling, key = timing.covered(events), jax.random.fold_in(rng_key, 3)
    _, draw_seconds = timing.timed(lambda: trained.sample(key, num_samples).log_weight)
    rate = float(worth.ess) * num_samples / draw_seconds
    if chains is not None:  # more of their draws take as long again
        reached = min(chains.mixing.bulk, chains.mixing.tail)
        rate = reached / trained.training_seconds
    assert trained.route is not None
    row = {
        "end": end,
        "call_seconds": seconds,
        "training_seconds": trained.training_seconds,
        "compile_seconds": compiling,
        "draw_seconds": draw_seconds,
        "draws": num_drawn,
        "effective": reached,
        "rate": rate,
        "dim": trained.target.dim,
        **figures(worth),
        "level": verdict.level,
        "verdict": str(verdict),
        "distrusted": list(distrusted),
        "route": trained.route.name,
        "reason": trained.route.reason,
        "unseen": float(worth.unseen or 0.0),
        "tail": None if chains is None else float(chains.mixing.tail),
        "base": type(trained.base).__name__.removesuffix("Base"),
        "peak_bytes": peak_bytes(),
    }
    if (base := trained.stages.get("base")) is not None:
        row |= {"base_elbo": float(base.elbo), "base_ess": float(base.ess)}
    return Found(row, sampler, samples)


def figures(worth: Any) -> Row:
    """The numbers of an `Evidence`."""
    names = ("log_z", "log_z_stderr", "elbo", "elbo_stderr", "ess", "pareto_k")
    row: Row = {name: float(getattr(worth, name)) for name in names}
    return row | {"folded": None if worth.folded is None else float(worth.folded)}


def mcmc_of(kernel: Any, num_warmup: int, num_samples: int) -> Any:
    """NumPyro's `MCMC` of `CHAINS` vectorised chains."""
    from numpyro.infer import MCMC

    settings = {"num_chains": CHAINS, "chain_method": "vectorized", "progress_bar": False}
    return MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **settings)


def nuts(
    subject: Subject,
    rng_key: Any,
    *,
    warm_up: int = 1_000,
    block: int = 2_500,
    effective: float = 10_000,
    enough: float = 0.0,
) -> Found:
    """Vectorised chains in at least two blocks, and more until enough draws are effective.

    Args:
      subject: what to sample; chains on a target start uniformly from (-2, 2).
      rng_key: key.
      warm_up: iterations of it.
      block: draws a chain between two looks at the effective size, the smallest over all sites.
      effective: effective draws whose time is asked for: the first block, warm-up and compilation
        included, and as many further ones, and parts of one, as are missing at their rate.
      enough: effective draws that tell the rate.
    """
    import jax
    from numpyro.diagnostics import summary
    from numpyro.infer import NUTS

    (key, key_start), start, target = jax.random.split(rng_key), None, subject.model
    if hasattr(target, "log_density"):
        kernel = NUTS(potential_fn=lambda x: -target.log_density(x))
        start = jax.random.uniform(key_start, (CHAINS, target.dim), minval=-2.0, maxval=2.0)
    else:
        kernel = NUTS(target)
    mcmc = mcmc_of(kernel, warm_up, block)
    blocks: list[Any] = []
    seconds: list[float] = []
    reached, divergences, begin = 0.0, 0, time.time()
    while len(blocks) < 2 or reached < enough:
        now, fields = time.perf_counter(), {"extra_fields": ("diverging",), "init_params": start}
        key = mcmc.last_state.rng_key if blocks else key
        mcmc.run(key, *subject.args, **fields, **subject.kwargs)
        blocks.append(jax.tree.map(np.asarray, mcmc.get_samples(group_by_chain=True)))
        seconds.append(time.perf_counter() - now)
        divergences += int(mcmc.get_extra_fields()["diverging"].sum())
        mcmc.post_warmup_state = mcmc.last_state
        sites = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *blocks)
        sites = sites if isinstance(sites, dict) else {"x": sites}
        stats = summary(sites)
        reached = min(float(np.nanmin(site["n_eff"])) for site in stats.values())
    # The least of them: the second block may find something to compile, too.
    each, per_block = min(seconds[1:]), reached / len(blocks)
    missing = max(effective / per_block - 1.0, 0.0)
    row = {
        "end": begin + seconds[0] + missing * each,
        "call_seconds": seconds[0] + missing * each,
        "first_seconds": seconds[0],
        "block_seconds": each,
        "draws": CHAINS * block * len(blocks),
        "effective": reached,
        "rate": per_block / each,
        "extrapolated": missing + 1.0 > len(blocks),
        "r_hat": max(float(np.nanmax(site["r_hat"])) for site in stats.values()),
        "divergences": divergences,
    }
    return Found(row, mcmc, {k: v.reshape(-1, *v.shape[2:]) for k, v in sites.items()})


def flat_sites(samples: dict[str, Any]) -> dict[str, np.ndarray]:
    """Coordinates of all sites by name, ``b[0]`` for an element."""
    flat: dict[str, np.ndarray] = {}
    for name, value in samples.items():
        columns = np.asarray(value, np.float64).reshape(len(value), -1)
        single = np.ndim(value) == 1
        flat |= {name if single else f"{name}[{j}]": c for j, c in enumerate(columns.T)}
    return flat


def peak_bytes() -> int:
    """Largest resident memory of this process."""
    # Where it can be had: the other figure takes in the process that this one was forked from.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(r for r in status.read_text().splitlines() if r.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
