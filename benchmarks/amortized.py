"""Families of data sets: one training each, a thousand new data sets, and NUTS on a few of them."""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import consistent_samplers as cs

NUM_SAMPLES = 2_000
_MAX_AWAY = 5.0  # standard errors of a mean, beside a tenth of a standard deviation


class Family(NamedTuple):
    """A model, what simulates its covariates, and how many rows a data set has."""

    model: Callable[..., Any]
    covariates: Callable[..., Any]
    num_rows: int | tuple[int, int]


def _schools(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _standard_errors(rng_key: Any, num_rows: int) -> Any:
    return (jax.random.uniform(rng_key, (num_rows,), minval=8.0, maxval=20.0),), {}


def _logistic(X: Any, y: Any = None) -> None:
    b = numpyro.sample("b", dist.Normal(jnp.zeros(X.shape[1]), 1.0).to_event(1))
    with numpyro.plate("rows", X.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=X @ b), obs=y)


def _regression(X: Any, y: Any = None) -> None:
    b = numpyro.sample("b", dist.Normal(jnp.zeros(X.shape[1]), 1.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("rows", X.shape[0]):
        numpyro.sample("y", dist.Normal(X @ b, sigma), obs=y)


def _some_columns(num_columns: int) -> Callable[..., Any]:
    """Rows of standard normal columns, of which some are zero: their weights follow the prior."""

    def covariates(rng_key: Any, num_rows: int) -> Any:
        key_x, key_used = jax.random.split(rng_key)
        used = jax.random.randint(key_used, (), 3, num_columns + 1)
        X = jax.random.normal(key_x, (num_rows, num_columns))
        return (X * (jnp.arange(num_columns) < used),), {}

    return covariates


def _poisson(exposure: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", exposure.shape[0]):
        rate = numpyro.sample("rate", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Poisson(exposure * jnp.exp(rate)), obs=y)


def _exposures(rng_key: Any, num_rows: int) -> Any:
    return (jax.random.uniform(rng_key, (num_rows,), minval=0.5, maxval=5.0),), {}


class _Wald(dist.Distribution):
    """First passage of a Brownian motion with drift to a threshold, after a delay (Wald, 1947)."""

    support = dist.constraints.positive
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, drift: Any, threshold: Any, delay: Any) -> None:
        self.mean_time, self.shape_of, self.delay = drift, threshold, delay
        super().__init__(jnp.broadcast_shapes(*map(jnp.shape, (drift, threshold, delay))))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws by the transform of Michael, Schucany and Haas (1976)."""
        shape = (*sample_shape, *self.batch_shape)
        key_normal, key_uniform = jax.random.split(key)
        mean, size = self.shape_of / self.mean_time, self.shape_of**2
        square = jax.random.normal(key_normal, shape) ** 2
        part = mean * square / (2.0 * size)
        low = mean / (1.0 + part + jnp.sqrt(part * (part + 2.0)))
        pick = jax.random.uniform(key_uniform, shape) <= mean / (mean + low)
        return self.delay + jnp.where(pick, low, mean**2 / low)

    def log_prob(self, value: Any) -> Any:
        """Log density; next to none before the delay."""
        time = jnp.maximum(value - self.delay, 1e-4)
        away = (self.shape_of - self.mean_time * time) ** 2 / (2.0 * time)
        inside = jnp.log(self.shape_of) - 0.5 * jnp.log(2.0 * jnp.pi * time**3) - away
        return jnp.where(value > self.delay, inside, -1e3 * (1.0 + self.delay - value))


def _diffusion(fast: Any, y: Any = None) -> None:
    drift = numpyro.sample("drift", dist.LogNormal(jnp.zeros(2), 0.5).to_event(1))
    threshold = numpyro.sample("threshold", dist.LogNormal(0.3, 0.3))
    delay = numpyro.sample("delay", dist.LogNormal(-1.5, 0.3))
    with numpyro.plate("trials", fast.shape[0]):
        numpyro.sample("y", _Wald(drift[fast], threshold, delay), obs=y)


def _conditions(rng_key: Any, num_rows: int) -> Any:
    return (jax.random.bernoulli(rng_key, 0.5, (num_rows,)).astype(int),), {}


def _dose(dose: Any, y: Any = None) -> None:
    top = numpyro.sample("top", dist.LogNormal(0.0, 0.5))
    half = numpyro.sample("half", dist.Normal(0.0, 1.0))  # log dose of half the effect
    slope = numpyro.sample("slope", dist.LogNormal(0.5, 0.4))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.3))
    with numpyro.plate("wells", dose.shape[0]):
        effect = top * jax.nn.sigmoid(slope * (dose - half))
        numpyro.sample("y", dist.Normal(effect, 0.02 + sigma), obs=y)


def _doses(rng_key: Any, num_rows: int) -> Any:
    return (jax.random.uniform(rng_key, (num_rows,), minval=-3.0, maxval=3.0),), {}


def _mixture(num_rows: Any, y: Any = None) -> None:
    loc = numpyro.sample("loc", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    share = numpyro.sample("share", dist.Beta(5.0, 5.0))
    with numpyro.plate("rows", num_rows):
        weights = dist.Categorical(probs=jnp.stack([share, 1.0 - share]))
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(loc, 1.0)), obs=y)


FAMILIES = {
    "schools": Family(_schools, _standard_errors, (8, 30)),
    "logistic": Family(_logistic, _some_columns(10), (20, 200)),
    "logistic_40x6": Family(_logistic, lambda k, n: ((jax.random.normal(k, (n, 6)),), {}), 40),
    "regression": Family(_regression, _some_columns(6), (10, 100)),
    "poisson": Family(_poisson, _exposures, (8, 30)),
    "diffusion": Family(_diffusion, _conditions, (30, 150)),
    "dose": Family(_dose, _doses, (8, 40)),
    "mixture": Family(_mixture, lambda k, n: ((n,), {}), (20, 60)),
}
"""Families by the names of the rows."""


def run(
    names: list[str] | None, num_data_sets: int, num_nuts: int, seed: int, output: Path
) -> None:
    """Trains each family, asks it for new data sets, compares some with NUTS, and saves a table."""
    rows = {}
    for name in names or list(FAMILIES):
        rows[name] = _row(FAMILIES[name], num_data_sets, num_nuts, seed)
        print(name, json.dumps(rows[name]), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / "amortized.json").write_text(json.dumps(rows, indent=1))
    titles = list(next(iter(rows.values())))
    lines = [["family", *titles], ["---"] * (1 + len(titles))]
    lines += [[name, *(str(row[title]) for title in titles)] for name, row in rows.items()]
    (output / "amortized.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _row(family: Family, num_data_sets: int, num_nuts: int, seed: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 5)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        made = cs.amortize(
            keys[0], family.model, family.covariates, num_rows=family.num_rows, observed={"y": "y"}
        )
    training = time.perf_counter() - begin
    sets = _data_sets(keys[1], family, made.num_rows, num_data_sets)
    made.condition_many(keys[2], sets[:16], num_samples=NUM_SAMPLES)  # compiles
    begin = time.perf_counter()
    many = made.condition_many(keys[2], sets, num_samples=NUM_SAMPLES)
    seconds = (time.perf_counter() - begin) / num_data_sets
    ess = np.asarray(many.evidence.ess)
    check = made.calibration_check(keys[3], num_data_sets, num_samples=NUM_SAMPLES)
    index = np.random.default_rng(seed).permutation(num_data_sets)[:num_nuts]
    found = [_compared(keys[4], family, sets[i], many, int(i)) for i in index]
    per_1000 = seconds * 1_000.0 / (np.median(ess) * NUM_SAMPLES)
    nuts = np.median([s for _, s in found]) if found else np.nan
    quartiles = "/".join(f"{q:.2f}" for q in np.quantile(ess, (0.25, 0.5, 0.75)))
    right = sum(bool(same) for same, _ in found)
    silent = sum(
        not same and bool(many.trusted[i]) for (same, _), i in zip(found, index, strict=True)
    )
    return {
        "d": made.model.num_globals + made.model.max_rows * made.model.num_each,
        "training s": round(training, 1),
        "effective": quartiles,
        "can be used": f"{100 * many.trusted.mean():.1f} %",
        "missed mass": f"{100 * made.missed:.1f} %",
        "s for 1,000 effective": round(float(per_1000), 4),
        "NUTS / ours": round(float(nuts / per_1000), 1),
        "right of NUTS": f"{right} of {len(found)}",
        "silent": silent,
        "ranks": f"{check.is_uniform} / {check.is_uniform_weighted}",
    }


def _data_sets(rng_key: Any, family: Family, num_rows: tuple[int, int], num: int) -> list[Any]:
    """New data sets of the family, as a user has them."""
    sizes = np.random.default_rng(0).integers(num_rows[0], num_rows[1] + 1, num)
    found = []
    for i, size in enumerate(sizes.tolist()):
        key_covariates, key_model = jax.random.split(jax.random.fold_in(rng_key, i))
        args, kwargs = family.covariates(key_covariates, size)
        prior = numpyro.handlers.trace(numpyro.handlers.seed(family.model, key_model))
        y = prior.get_trace(*args, **kwargs)["y"]["value"]
        found.append((args, kwargs | {"y": y}))
    return found


def _compared(rng_key: Any, family: Family, data: Any, many: Any, index: int) -> tuple[bool, float]:
    """Whether means and deviations agree with NUTS, and its seconds for 1,000 effective draws."""
    args, kwargs = data
    mcmc = MCMC(
        NUTS(family.model, target_accept_prob=0.95),
        num_warmup=1_000,
        num_samples=2_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, *args, **kwargs)
    begin = time.perf_counter()
    mcmc.run(rng_key, *args, **kwargs)
    seconds = time.perf_counter() - begin
    chains = mcmc.get_samples(group_by_chain=True)
    weight = np.exp(many.log_weight[index] - many.log_weight[index].max())
    weight /= weight.sum()
    same, least = True, np.inf
    for name, values in chains.items():
        values = np.asarray(values).reshape(4, 2_000, -1)
        ours = many.samples[name][index].reshape(NUM_SAMPLES, -1)[:, : values.shape[-1]]
        for j in range(values.shape[-1]):
            effective = float(effective_sample_size(values[..., j]))
            least = min(least, effective)
            mean = weight @ ours[:, j]
            spread = np.sqrt(weight @ (ours[:, j] - mean) ** 2)
            true, scale = values[..., j].mean(), values[..., j].std()
            error = scale * np.sqrt(1.0 / effective + (weight**2).sum())
            same &= abs(mean - true) < _MAX_AWAY * error + 0.1 * scale
            same &= 0.8 < spread / scale < 1.25
    return bool(same), seconds * 1_000.0 / least
