"""Hierarchical models of 50 to 500 parameters with simulated data, as NumPyro users write them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import factor, plate, sample

# A model without arguments simulates its data itself, the same at each call.


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _binary(r: np.random.Generator, logits: Any) -> Any:
    """Outcomes of logistic models."""
    return (r.random(logits.shape) < 1.0 / (1.0 + np.exp(-logits))).astype(int)


def _noisy(r: np.random.Generator, mean: Any, scale: float = 1.0) -> Any:
    return (mean + scale * r.normal(size=np.shape(mean))).astype(np.float32)


def _normal(name: str, scale: float = 2.0) -> Any:
    return sample(name, dist.Normal(0.0, scale))


def _scale(name: str, size: float = 1.0) -> Any:
    return sample(name, dist.HalfNormal(size))


def _vector(name: str, fn: Any, size: int) -> Any:
    return sample(name, fn.expand([size]).to_event(1))


def _members(of: str, size: int, name: str, *fn: Any) -> Any:
    """A latent value of each member of a plate, normal or as given."""
    with plate(of, size):
        return sample(name, fn[0] if len(fn) == 1 else dist.Normal(*fn))


def radon(centred: bool = True, groups: int = 85, rows: int = 919) -> None:
    """Varying intercepts and slopes."""
    r = _rng(0)
    c, x = r.integers(0, groups, rows), r.integers(0, 2, rows).astype(np.float32)
    intercept, slope = 1.4 + 0.35 * r.normal(size=groups), -0.7 + 0.25 * r.normal(size=groups)
    y = _noisy(r, intercept[c] + slope[c] * x, 0.75)

    means = [_normal(name, 5.0) for name in ("ma", "mb")]
    scales = [sample(name, dist.HalfCauchy(5.0)) for name in ("sa", "sb")]
    noise = sample("noise", dist.HalfCauchy(5.0))
    effects = []
    with plate("groups", groups):
        for name, mean, scale in zip("ab", means, scales, strict=True):
            if centred:
                effects.append(sample(name, dist.Normal(mean, scale)))
            else:
                effects.append(mean + scale * _normal(f"z{name}", 1.0))
    sample("y", dist.Normal(effects[0][c] + effects[1][c] * x, noise), obs=y)


def correlated_slopes(logistic: bool, groups: int = 60, size: int = 4, rows: int = 1_200) -> None:
    """Effects of each group with an LKJ prior on their correlations."""
    r = _rng(1)
    c = r.integers(0, groups, rows)
    x = np.c_[np.ones(rows), r.normal(size=(rows, size - 1))].astype(np.float32)
    root = np.linalg.cholesky(0.5 * np.eye(size) + 0.5) * np.linspace(1.0, 0.5, size)[:, None]
    effects = r.normal(size=(groups, size)) @ root.T + np.linspace(-0.5, 0.8, size)
    predictor = (x * effects[c]).sum(1)
    noisy, binary = _noisy(r, predictor, 0.7), _binary(r, predictor)

    mean = _vector("mean", dist.Normal(0.0, 2.0), size)
    scale = _vector("scale", dist.HalfNormal(1.5), size)[:, None]
    scale = scale * sample("root", dist.LKJCholesky(size, 2.0))
    b = _members("groups", groups, "b", dist.MultivariateNormal(mean, scale_tril=scale))
    if logistic:
        sample("y", dist.Bernoulli(logits=(x * b[c]).sum(-1)), obs=binary)
    else:
        sample("y", dist.Normal((x * b[c]).sum(-1), _scale("noise")), obs=noisy)


def item_response(parameters: int, people: int = 200, items: int = 20) -> None:
    """Rasch's model, or with a discrimination for each item."""
    r = _rng(2)
    ability, difficulty = r.normal(size=(people, 1)), r.normal(size=items)
    slope = np.exp(0.3 * r.normal(size=items)) if parameters == 2 else 1.0
    y = _binary(r, slope * (ability - difficulty))

    mean, spread = _normal("mean"), _scale("spread", 2.0)
    scale = _scale("scale", 2.0) if parameters == 1 else 1.0
    with plate("items", items):
        b = sample("b", dist.Normal(mean, spread))
        a = sample("a", dist.LogNormal(0.0, 0.5)) if parameters == 2 else 1.0
    theta = _members("people", people, "theta", 0.0, scale)
    sample("y", dist.Bernoulli(logits=a * (theta[:, None] - b)), obs=y)


def crossed(first: int = 60, second: int = 40, rows: int = 1_500) -> None:
    """Two crossed groupings of a normal outcome."""
    r = _rng(3)
    i, j = r.integers(0, first, rows), r.integers(0, second, rows)
    u, v = 0.8 * r.normal(size=first), 0.5 * r.normal(size=second)
    y = _noisy(r, 1.0 + u[i] + v[j])

    mean, noise = _normal("mean", 5.0), _scale("noise", 2.0)
    u = _members("first", first, "u", 0.0, _scale("su", 2.0))
    v = _members("second", second, "v", 0.0, _scale("sv", 2.0))
    sample("y", dist.Normal(mean + u[i] + v[j], noise), obs=y)


def counts(groups: int, dispersed: bool) -> None:
    """Poisson or negative binomial counts of groups, centred."""
    r = _rng(4)
    true = np.exp(0.5 + 0.7 * r.normal(size=groups))
    y = r.poisson(true * (r.gamma(3.0, 1 / 3.0, (3, groups)) if dispersed else 1.0), (3, groups))

    rate = jnp.exp(_members("groups", groups, "u", _normal("mean"), _scale("scale")))
    if dispersed:
        size = sample("size", dist.Gamma(2.0, 0.5))
        sample("y", dist.NegativeBinomial2(rate, size), obs=y)
    else:
        sample("y", dist.Poisson(rate), obs=y)


def horseshoe(regularised: bool, rows: int = 100, size: int = 50) -> None:
    """Sparse regression."""
    r = _rng(5)
    x = r.normal(size=(rows, size)).astype(np.float32)
    y = _noisy(r, x[:, :3] @ np.array([2.0, -1.0, 0.5]), 0.5)

    scale = sample("tau", dist.HalfCauchy(0.1)) * _vector("local", dist.HalfCauchy(1.0), size)
    z = _vector("z", dist.Normal(0.0, 1.0), size)
    if regularised:
        slab = sample("slab", dist.InverseGamma(2.0, 8.0))
        scale = scale * jnp.sqrt(slab / (slab + scale**2))
    sample("y", dist.Normal(x @ (scale * z), _scale("noise")), obs=y)


def stochastic_volatility(steps: int = 300) -> None:
    """An autoregressive log volatility."""
    r = _rng(6)
    h = np.zeros(steps)
    for t in range(1, steps):
        h[t] = 0.95 * h[t - 1] + 0.25 * r.normal()
    y = (np.exp(0.5 * (h - 1.0)) * r.normal(size=steps)).astype(np.float32)

    mean = sample("mean", dist.Normal(-1.0, 1.0))
    phi, scale = sample("phi", dist.Beta(20.0, 1.5)), _scale("scale", 0.5)
    h = sample("h", dist.Normal(0.0, 1.0).expand([steps]).mask(False).to_event(1))
    start = dist.Normal(mean, scale / jnp.sqrt(1.0 - phi**2)).log_prob(h[0])
    moves = dist.Normal(mean + phi * (h[:-1] - mean), scale).log_prob(h[1:]).sum()
    factor("volatility", start + moves)
    sample("y", dist.Normal(0.0, jnp.exp(0.5 * h)), obs=y)


def local_level(steps: int = 200) -> None:
    """A random walk under noise."""
    r = _rng(7)
    y = _noisy(r, np.cumsum(0.3 * r.normal(size=steps)), 0.5)

    level = sample("level", dist.GaussianRandomWalk(_scale("scale"), num_steps=steps))
    sample("y", dist.Normal(level, _scale("noise")), obs=y)


def latent_process(size: int = 100) -> None:
    """Poisson counts with a Gaussian process for the log rate."""
    x = np.linspace(-3.0, 3.0, size)
    y = _rng(8).poisson(np.exp(0.5 + np.cos(1.7 * x)))
    squares = (x[:, None] - x) ** 2

    scale, length = _scale("scale", 2.0), sample("length", dist.InverseGamma(3.0, 3.0))
    covariance = scale**2 * jnp.exp(-0.5 * squares / length**2) + 1e-4 * jnp.eye(size)
    z = _vector("z", dist.Normal(0.0, 1.0), size)
    sample("y", dist.Poisson(jnp.exp(_normal("mean") + jnp.linalg.cholesky(covariance) @ z)), obs=y)


def dynamic_item_response(people: int = 20, steps: int = 12, items: int = 15) -> None:
    """Abilities that walk at random."""
    r = _rng(9)
    ability = np.cumsum(0.3 * r.normal(size=(people, steps)), 1) + r.normal(size=(people, 1))
    y = _binary(r, ability[..., None] - r.normal(size=items))

    scale, spread = _scale("scale"), _scale("spread", 2.0)
    b = _members("items", items, "b", 0.0, spread)
    moves = dist.Normal(0.0, 1.0).expand([steps - 1])
    with plate("people", people):
        first = _normal("first", 1.0)
        rest = sample("rest", moves.mask(False).to_event(1))
    theta = jnp.concatenate([first[:, None], rest], 1)
    away = jnp.diff(theta, axis=1) / scale
    factor("moves", moves.log_prob(away).sum() - away.size * jnp.log(scale))
    sample("y", dist.Bernoulli(logits=theta[..., None] - b), obs=y)


def poststratification(states: int = 50, rows: int = 2_000) -> None:
    """Multilevel logistic regression on states, ages, education and their cells."""
    r = _rng(10)
    sizes = {"state": states, "age": 6, "education": 5, "cell": 30}
    index = {name: r.integers(0, size, rows) for name, size in sizes.items()}
    effects = {name: 0.5 * r.normal(size=size) for name, size in sizes.items()}
    y = _binary(r, -0.3 + sum(effects[name][index[name]] for name in sizes))

    predictor = _normal("mean")
    for name, size in sizes.items():
        effect = _members(f"of_{name}", size, name, 0.0, _scale(f"scale_{name}"))
        predictor = predictor + effect[index[name]]
    sample("y", dist.Bernoulli(logits=predictor), obs=y)


def capture_recapture(animals: int = 120, occasions: int = 8) -> None:
    """Capture histories with a probability of its own for each animal that was seen."""
    r = _rng(11)
    caught = r.binomial(occasions, 1 / (1 + np.exp(0.8 - 0.9 * r.normal(size=3 * animals))))
    y = caught[caught > 0][:animals]

    mean, scale = _normal("mean", 1.5), _scale("scale", 1.5)
    with plate("animals", len(y)):
        logit = sample("logit", dist.Normal(mean, scale))
        sample("y", dist.Binomial(occasions, logits=logit), obs=y)
        # Each was seen at least once.
        missed = occasions * jax.nn.log_sigmoid(-logit)
        factor("seen", -jnp.log1p(-jnp.exp(missed)))


def three_levels(schools: int = 20, classes: int = 6, pupils: int = 8) -> None:
    """Pupils in classes in schools."""
    r = _rng(12)
    school = 0.8 * r.normal(size=schools)
    room = school[:, None] + 0.5 * r.normal(size=(schools, classes))
    y = (room[..., None] + r.normal(size=(schools, classes, pupils))).astype(np.float32)

    mean, noise = _normal("mean", 5.0), _scale("noise", 2.0)
    between, within = _scale("between"), _scale("within")
    with plate("schools", schools, dim=-2):
        a = sample("a", dist.Normal(mean, between))
        with plate("classes", classes, dim=-1):
            b = sample("b", dist.Normal(a, within))
    sample("y", dist.Normal(b[..., None], noise), obs=y)


def many_rows(groups: int = 200, rows: int = 10_000) -> None:
    """Varying intercepts and five covariates in ten thousand rows."""
    r = _rng(13)
    c, x = r.integers(0, groups, rows), r.normal(size=(rows, 5)).astype(np.float32)
    y = _binary(r, 0.6 * r.normal(size=groups)[c] + x @ np.linspace(-1.0, 1.0, 5))

    a = _members("groups", groups, "a", _normal("mean"), _scale("scale", 2.0))
    beta = _vector("beta", dist.Normal(0.0, 2.0), 5)
    sample("y", dist.Bernoulli(logits=a[c] + x @ beta), obs=y)


MODELS: dict[str, Callable[[], None]] = {
    "radon_centred": radon,
    "radon_noncentred": partial(radon, False),
    "correlated_slopes": partial(correlated_slopes, False),
    "correlated_logistic": partial(correlated_slopes, True),
    "rasch": partial(item_response, 1),
    "two_parameter": partial(item_response, 2),
    "crossed": crossed,
    "poisson": partial(counts, 400, False),
    "negative_binomial": partial(counts, 200, True),
    "horseshoe": partial(horseshoe, False),
    "regularised_horseshoe": partial(horseshoe, True),
    "stochastic_volatility": stochastic_volatility,
    "local_level": local_level,
    "latent_process": latent_process,
    "dynamic_item_response": dynamic_item_response,
    "poststratification": poststratification,
    "capture_recapture": capture_recapture,
    "three_levels": three_levels,
    "many_rows": many_rows,
    "large_poisson": partial(counts, 1_998, False),
}
"""By name."""


def model_of(name: str) -> Callable[[], None]:
    """A model by its name, or Poisson counts of as many groups as follow ``counts:``."""
    family, _, size = name.partition(":")
    return partial(counts, int(size), False) if family == "counts" else MODELS[name]
