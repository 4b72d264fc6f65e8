"""Densities and models that call LAPACK or make Fourier transforms, several to a point."""

from typing import Any

# A child may use JAX before it imports the package: imports are where they are needed.

LAPACK = ("triangular", "cholesky", "slogdet", "eigh", "inv", "mixture")
MODELS = ("normals", "correlations", "latent_process", "components")
KINDS = (*LAPACK, "process", "processes", "fourier", *MODELS, "fit")
"""Log densities, NumPyro models, and a density that a user fits OSDS to and moves draws on."""
_DIM = 8  # of points and of most matrices


def density_of(kind: str) -> tuple[Any, int]:
    """A log density and its dimension."""
    import jax.numpy as jnp
    import numpy as np
    from jax.nn import logsumexp
    from jax.scipy.linalg import solve_triangular

    rng = np.random.default_rng(0)
    turns = jnp.asarray(rng.normal(size=(3, _DIM, _DIM)) / _DIM**0.5)
    times, eye = jnp.linspace(0.0, 1.0, 24), jnp.eye(24)
    series = jnp.asarray(rng.normal(size=(2, 24))) + jnp.sin(6.0 * times)

    calls: dict[str, Any] = {
        "triangular": lambda m, s, x: -(solve_triangular(jnp.tril(m), x, lower=True) ** 2).sum(),
        "cholesky": lambda m, s, x: -2.0 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(m))).sum(),
        "slogdet": lambda m, s, x: -jnp.linalg.slogdet(m)[1],
        "eigh": lambda m, s, x: -jnp.log(jnp.linalg.eigh(m)[0]).sum(),
        "inv": lambda m, s, x: -(x @ jnp.linalg.inv(m) @ x),
        "fourier": lambda m, s, x: -1e-3 * (jnp.abs(jnp.fft.rfft(jnp.tile(s, 32))) ** 2).sum(),
    }

    def terms(name: str, x: Any) -> Any:
        """Three calls that do not depend on each other."""
        sides = [jnp.tanh(turn @ x) for turn in turns]
        matrices = [(1.0 + i) * jnp.eye(_DIM) + jnp.outer(s, s) for i, s in enumerate(sides)]
        return jnp.stack([calls[name](m, s, x) for m, s in zip(matrices, sides, strict=True)])

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
            value = logsumexp(jnp.concatenate([terms(name, x) for name in LAPACK[:-1]]))
        else:
            value = terms(kind, x).sum() / 3.0
        return value - 0.5 * x @ x

    return log_density, {"process": 3, "processes": 6}.get(kind, _DIM)


def model_of(kind: str) -> tuple[Any, tuple[Any, ...]]:
    """A NumPyro model and its data."""
    import jax.numpy as jnp
    import numpy as np
    import numpyro.distributions as dist
    from numpyro import deterministic, sample

    y = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    times, eye = jnp.linspace(0.0, 1.0, 40), jnp.eye(40)

    def model(y: Any) -> None:
        scale = sample("scale", dist.HalfNormal(1.0).expand([4]).to_event(1))
        mean = sample("mean", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        if kind == "correlations":
            root = scale[:, None] * sample("root", dist.LKJCholesky(4, 2.0))
            sample("y", dist.MultivariateNormal(mean, scale_tril=root), obs=y)
        elif kind == "latent_process":
            squares = ((times[:, None] - times) / scale[0]) ** 2
            covariance = scale[1] ** 2 * jnp.exp(-0.5 * squares) + 0.01 * eye
            f = sample("f", dist.MultivariateNormal(mean[0], covariance))
            sample("y", dist.Normal(f, 0.1 + scale[2]), obs=y[:40, 0])
        else:
            near = jnp.outer(mean, mean) + jnp.diag(0.1 + scale**2)
            normal = dist.MultivariateNormal(mean, near)
            deterministic("precision", jnp.linalg.inv(near))
            if kind == "components":
                weights = dist.Categorical(jnp.array([0.7, 0.3]))
                wide = dist.MultivariateNormal(jnp.zeros(4), 4.0 * jnp.eye(4) + near)
                normal = dist.MixtureGeneral(weights, [normal, wide])
            sample("y", normal, obs=y)

    return model, (y,)
