"""Hierarchical models of 50 to 500 parameters with simulated data, as NumPyro users write them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import plate, sample

Model = Callable[[], None]
"""A model that holds its data."""


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _scale(name: str, size: float = 1.0) -> Any:
    return sample(name, dist.HalfNormal(size))


def radon(centred: bool = True, groups: int = 85, rows: int = 919) -> Model:
    """Varying intercepts and slopes."""
    r = _rng(0)
    c, x = r.integers(0, groups, rows), r.integers(0, 2, rows).astype(np.float32)
    intercept, slope = 1.4 + 0.35 * r.normal(size=groups), -0.7 + 0.25 * r.normal(size=groups)
    y = (intercept[c] + slope[c] * x + 0.75 * r.normal(size=rows)).astype(np.float32)

    def model() -> None:
        means = [sample(name, dist.Normal(0.0, 5.0)) for name in ("ma", "mb")]
        scales = [sample(name, dist.HalfCauchy(5.0)) for name in ("sa", "sb")]
        noise = sample("noise", dist.HalfCauchy(5.0))
        effects = []
        with plate("groups", groups):
            for name, mean, scale in zip("ab", means, scales, strict=True):
                if centred:
                    effects.append(sample(name, dist.Normal(mean, scale)))
                else:
                    effects.append(mean + scale * sample(f"z{name}", dist.Normal(0.0, 1.0)))
        sample("y", dist.Normal(effects[0][c] + effects[1][c] * x, noise), obs=y)

    return model


def correlated_slopes(logistic: bool, groups: int = 60, size: int = 4, rows: int = 1_200) -> Model:
    """Effects of each group with an LKJ prior on their correlations."""
    r = _rng(1)
    c = r.integers(0, groups, rows)
    x = np.c_[np.ones(rows), r.normal(size=(rows, size - 1))].astype(np.float32)
    root = np.linalg.cholesky(0.5 * np.eye(size) + 0.5) * np.linspace(1.0, 0.5, size)[:, None]
    effects = r.normal(size=(groups, size)) @ root.T + np.linspace(-0.5, 0.8, size)
    predictor = (x * effects[c]).sum(1)
    noisy = (predictor + 0.7 * r.normal(size=rows)).astype(np.float32)
    binary = (r.random(rows) < 1.0 / (1.0 + np.exp(-predictor))).astype(int)

    def model() -> None:
        mean = sample("mean", dist.Normal(0.0, 2.0).expand([size]).to_event(1))
        scale = sample("scale", dist.HalfNormal(1.5).expand([size]).to_event(1))
        root = sample("root", dist.LKJCholesky(size, 2.0))
        with plate("groups", groups):
            b = sample("b", dist.MultivariateNormal(mean, scale_tril=scale[:, None] * root))
        predictor = (x * b[c]).sum(-1)
        if logistic:
            sample("y", dist.Bernoulli(logits=predictor), obs=binary)
        else:
            sample("y", dist.Normal(predictor, _scale("noise")), obs=noisy)

    return model


def item_response(parameters: int, people: int = 200, items: int = 20) -> Model:
    """Rasch's model, or with a discrimination for each item."""
    r = _rng(2)
    ability, difficulty = r.normal(size=(people, 1)), r.normal(size=items)
    slope = np.exp(0.3 * r.normal(size=items)) if parameters == 2 else 1.0
    y = (r.random((people, items)) < 1 / (1 + np.exp(-slope * (ability - difficulty)))).astype(int)

    def model() -> None:
        mean, spread = sample("mean", dist.Normal(0.0, 2.0)), _scale("spread", 2.0)
        scale = _scale("scale", 2.0) if parameters == 1 else 1.0
        with plate("items", items):
            b = sample("b", dist.Normal(mean, spread))
            a = sample("a", dist.LogNormal(0.0, 0.5)) if parameters == 2 else 1.0
        with plate("people", people):
            theta = sample("theta", dist.Normal(0.0, scale))
        sample("y", dist.Bernoulli(logits=a * (theta[:, None] - b)), obs=y)

    return model


def crossed(first: int = 60, second: int = 40, rows: int = 1_500) -> Model:
    """Two crossed groupings of a normal outcome."""
    r = _rng(3)
    i, j = r.integers(0, first, rows), r.integers(0, second, rows)
    u, v = 0.8 * r.normal(size=first), 0.5 * r.normal(size=second)
    y = (1.0 + u[i] + v[j] + r.normal(size=rows)).astype(np.float32)

    def model() -> None:
        mean, noise = sample("mean", dist.Normal(0.0, 5.0)), _scale("noise", 2.0)
        su, sv = _scale("su", 2.0), _scale("sv", 2.0)
        with plate("first", first):
            u = sample("u", dist.Normal(0.0, su))
        with plate("second", second):
            v = sample("v", dist.Normal(0.0, sv))
        sample("y", dist.Normal(mean + u[i] + v[j], noise), obs=y)

    return model


def counts(groups: int, dispersed: bool) -> Model:
    """Poisson or negative binomial counts of groups, centred."""
    r = _rng(4)
    rate = np.exp(0.5 + 0.7 * r.normal(size=groups))
    y = r.poisson(rate * (r.gamma(3.0, 1 / 3.0, (3, groups)) if dispersed else 1.0), (3, groups))

    def model() -> None:
        mean, scale = sample("mean", dist.Normal(0.0, 2.0)), _scale("scale")
        with plate("groups", groups):
            u = sample("u", dist.Normal(mean, scale))
        if dispersed:
            size = sample("size", dist.Gamma(2.0, 0.5))
            sample("y", dist.NegativeBinomial2(jnp.exp(u), size), obs=y)
        else:
            sample("y", dist.Poisson(jnp.exp(u)), obs=y)

    return model


def horseshoe(regularised: bool, rows: int = 100, size: int = 50) -> Model:
    """Sparse regression."""
    r = _rng(5)
    x = r.normal(size=(rows, size)).astype(np.float32)
    y = (x[:, :3] @ np.array([2.0, -1.0, 0.5]) + 0.5 * r.normal(size=rows)).astype(np.float32)

    def model() -> None:
        tau = sample("tau", dist.HalfCauchy(0.1))
        local = sample("local", dist.HalfCauchy(1.0).expand([size]).to_event(1))
        z = sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        scale = tau * local
        if regularised:
            slab = sample("slab", dist.InverseGamma(2.0, 8.0))
            scale = scale * jnp.sqrt(slab / (slab + scale**2))
        noise = _scale("noise")
        sample("y", dist.Normal(x @ (scale * z), noise), obs=y)

    return model


def stochastic_volatility(steps: int = 300) -> Model:
    """An autoregressive log volatility."""
    r = _rng(6)
    h = np.zeros(steps)
    for t in range(1, steps):
        h[t] = 0.95 * h[t - 1] + 0.25 * r.normal()
    y = (np.exp(0.5 * (h - 1.0)) * r.normal(size=steps)).astype(np.float32)

    def model() -> None:
        mean = sample("mean", dist.Normal(-1.0, 1.0))
        phi, scale = sample("phi", dist.Beta(20.0, 1.5)), _scale("scale", 0.5)
        h = sample("h", dist.Normal(0.0, 1.0).expand([steps]).mask(False).to_event(1))
        start = dist.Normal(mean, scale / jnp.sqrt(1.0 - phi**2)).log_prob(h[0])
        moves = dist.Normal(mean + phi * (h[:-1] - mean), scale).log_prob(h[1:]).sum()
        numpyro.factor("volatility", start + moves)
        sample("y", dist.Normal(0.0, jnp.exp(0.5 * h)), obs=y)

    return model


def local_level(steps: int = 200) -> Model:
    """A random walk under noise."""
    r = _rng(7)
    y = (np.cumsum(0.3 * r.normal(size=steps)) + 0.5 * r.normal(size=steps)).astype(np.float32)

    def model() -> None:
        noise, scale = _scale("noise"), _scale("scale")
        level = sample("level", dist.GaussianRandomWalk(scale, num_steps=steps))
        sample("y", dist.Normal(level, noise), obs=y)

    return model


def latent_process(size: int = 100) -> Model:
    """Poisson counts with a Gaussian process for the log rate."""
    r = _rng(8)
    x = np.linspace(-3.0, 3.0, size)
    y = r.poisson(np.exp(0.5 + np.cos(1.7 * x)))
    squares = (x[:, None] - x) ** 2

    def model() -> None:
        scale, length = _scale("scale", 2.0), sample("length", dist.InverseGamma(3.0, 3.0))
        covariance = scale**2 * jnp.exp(-0.5 * squares / length**2) + 1e-4 * jnp.eye(size)
        z = sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        f = sample("mean", dist.Normal(0.0, 2.0)) + jnp.linalg.cholesky(covariance) @ z
        sample("y", dist.Poisson(jnp.exp(f)), obs=y)

    return model


def dynamic_item_response(people: int = 20, steps: int = 12, items: int = 15) -> Model:
    """Abilities that walk at random."""
    r = _rng(9)
    ability = np.cumsum(0.3 * r.normal(size=(people, steps)), 1) + r.normal(size=(people, 1))
    logits = ability[..., None] - r.normal(size=items)
    y = (r.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)

    def model() -> None:
        scale, spread = _scale("scale"), _scale("spread", 2.0)
        with plate("items", items):
            b = sample("b", dist.Normal(0.0, spread))
        with plate("people", people):
            first = sample("first", dist.Normal(0.0, 1.0))
            moves = dist.Normal(0.0, 1.0).expand([steps - 1]).to_event(1)
            rest = sample("rest", dist.Normal(0.0, 1.0).expand([steps - 1]).mask(False).to_event(1))
        theta = jnp.concatenate([first[:, None], rest], 1)
        away = jnp.diff(theta, axis=1) / scale
        numpyro.factor("moves", moves.log_prob(away).sum() - away.size * jnp.log(scale))
        sample("y", dist.Bernoulli(logits=theta[..., None] - b), obs=y)

    return model


def poststratification(states: int = 50, rows: int = 2_000) -> Model:
    """Multilevel logistic regression on states, ages, education and their cells."""
    r = _rng(10)
    sizes = {"state": states, "age": 6, "education": 5, "cell": 30}
    index = {name: r.integers(0, size, rows) for name, size in sizes.items()}
    effects = {name: 0.5 * r.normal(size=size) for name, size in sizes.items()}
    predictor = -0.3 + sum(effects[name][index[name]] for name in sizes)
    y = (r.random(rows) < 1 / (1 + np.exp(-predictor))).astype(int)

    def model() -> None:
        predictor = sample("mean", dist.Normal(0.0, 2.0))
        for name, size in sizes.items():
            scale = _scale(f"scale_{name}")
            with plate(f"of_{name}", size):
                predictor = predictor + sample(name, dist.Normal(0.0, scale))[index[name]]
        sample("y", dist.Bernoulli(logits=predictor), obs=y)

    return model


def capture_recapture(animals: int = 120, occasions: int = 8) -> Model:
    """Capture histories with a probability of its own for each animal that was seen."""
    r = _rng(11)
    caught = r.binomial(occasions, 1 / (1 + np.exp(0.8 - 0.9 * r.normal(size=3 * animals))))
    y = caught[caught > 0][:animals]

    def model() -> None:
        mean, scale = sample("mean", dist.Normal(0.0, 1.5)), _scale("scale", 1.5)
        with plate("animals", len(y)):
            logit = sample("logit", dist.Normal(mean, scale))
            sample("y", dist.Binomial(occasions, logits=logit), obs=y)
            # Each was seen at least once.
            missed = occasions * jax.nn.log_sigmoid(-logit)
            numpyro.factor("seen", -jnp.log1p(-jnp.exp(missed)))

    return model


def three_levels(schools: int = 20, classes: int = 6, pupils: int = 8) -> Model:
    """Pupils in classes in schools."""
    r = _rng(12)
    school = 0.8 * r.normal(size=schools)
    room = school[:, None] + 0.5 * r.normal(size=(schools, classes))
    y = (room[..., None] + r.normal(size=(schools, classes, pupils))).astype(np.float32)

    def model() -> None:
        mean, noise = sample("mean", dist.Normal(0.0, 5.0)), _scale("noise", 2.0)
        between, within = _scale("between"), _scale("within")
        with plate("schools", schools, dim=-2):
            a = sample("a", dist.Normal(mean, between))
            with plate("classes", classes, dim=-1):
                b = sample("b", dist.Normal(a, within))
        sample("y", dist.Normal(b[..., None], noise), obs=y)

    return model


def many_rows(groups: int = 200, rows: int = 10_000) -> Model:
    """Varying intercepts and five covariates in ten thousand rows."""
    r = _rng(13)
    c, x = r.integers(0, groups, rows), r.normal(size=(rows, 5)).astype(np.float32)
    predictor = 0.6 * r.normal(size=groups)[c] + x @ np.linspace(-1.0, 1.0, 5)
    y = (r.random(rows) < 1 / (1 + np.exp(-predictor))).astype(int)

    def model() -> None:
        mean, scale = sample("mean", dist.Normal(0.0, 2.0)), _scale("scale", 2.0)
        beta = sample("beta", dist.Normal(0.0, 2.0).expand([5]).to_event(1))
        with plate("groups", groups):
            a = sample("a", dist.Normal(mean, scale))
        sample("y", dist.Bernoulli(logits=a[c] + x @ beta), obs=y)

    return model


MODELS: dict[str, Callable[[], Model]] = {
    "radon_centred": lambda: radon(True),
    "radon_noncentred": lambda: radon(False),
    "correlated_slopes": lambda: correlated_slopes(False),
    "correlated_logistic": lambda: correlated_slopes(True),
    "rasch": lambda: item_response(1),
    "two_parameter": lambda: item_response(2),
    "crossed": crossed,
    "poisson": lambda: counts(400, False),
    "negative_binomial": lambda: counts(200, True),
    "horseshoe": lambda: horseshoe(False),
    "regularised_horseshoe": lambda: horseshoe(True),
    "stochastic_volatility": stochastic_volatility,
    "local_level": local_level,
    "latent_process": latent_process,
    "dynamic_item_response": dynamic_item_response,
    "poststratification": poststratification,
    "capture_recapture": capture_recapture,
    "three_levels": three_levels,
    "many_rows": many_rows,
    "large_poisson": lambda: counts(1_998, False),
}
"""By name: what makes each, data included."""


def model_of(name: str) -> Model:
    """A model by its name, or Poisson counts of as many groups as follow ``counts:``."""
    family, _, size = name.partition(":")
    return counts(int(size), False) if family == "counts" else MODELS[name]()
