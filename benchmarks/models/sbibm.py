"""Tasks of sbibm (Lueckmann et al., 2021) whose likelihood is known, as NumPyro models."""

import bz2
import io
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import plate, sample


class Task(NamedTuple):
    """A model, what its one argument is for so many rows, their number and an observation's file.

    ``published``: mean C2ST of 100,000 simulations over the ten observations, by the better of MAF
    and NSF: NPE, trained once for all observations, and SNPE, trained for each.
    """

    model: Callable[..., Any]
    argument: Callable[[int], Any]
    num_rows: int
    published: dict[str, float]
    file: str = "observation.csv"
    shape: tuple[int, ...] = (-1,)


def _gaussian_linear(num_rows: int, y: Any = None) -> None:
    scale = jnp.sqrt(0.1)
    theta = sample("theta", dist.Normal(jnp.zeros(10), scale).to_event(1))
    sample("y", dist.Normal(theta, scale).to_event(1), obs=y)


def _bernoulli_glm(design: Any, y: Any = None) -> None:
    size = design.shape[1] - 1
    difference = np.eye(size) - np.eye(size, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(size) / size))
    precision = np.zeros((size + 1, size + 1))
    precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
    prior = dist.MultivariateNormal(jnp.zeros(size + 1), precision_matrix=jnp.asarray(precision))
    theta = sample("theta", prior)
    with plate("bins", design.shape[0]):
        sample("y", dist.Bernoulli(logits=design @ theta), obs=y)


def _design(num_rows: int) -> Any:
    """A constant and a white stimulus at nine lags, of sbibm's seed."""
    stimulus = np.random.RandomState(42).normal(size=num_rows)
    lags = [np.r_[np.zeros(lag), stimulus[: num_rows - lag]] for lag in range(9)]
    return jnp.asarray(np.stack([np.ones(num_rows), *lags], axis=1), jnp.float32)


def _slcp(num_rows: int, y: Any = None) -> None:
    theta = sample("theta", dist.Uniform(-3.0 * jnp.ones(5), 3.0).to_event(1))
    first, second = theta[2] ** 2, theta[3] ** 2
    both = jnp.tanh(theta[4]) * first * second
    covariance = jnp.array([[first**2, both], [both, second**2]]) + 1e-6 * jnp.eye(2)
    with plate("points", num_rows):
        sample("y", dist.MultivariateNormal(theta[:2], covariance_matrix=covariance), obs=y)


class _Moon(dist.Distribution):
    """Half of a circle's neighbourhood: uniform angles, radii close to 0.1."""

    support = dist.constraints.real_vector
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    _RADIUS = dist.Normal(0.1, 0.01)

    def __init__(self, centre: Any) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], (2,))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Points of the half with the larger first coordinate."""
        key_angle, key_radius = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        angle = jax.random.uniform(key_angle, shape, minval=-0.5 * jnp.pi, maxval=0.5 * jnp.pi)
        way = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
        return self.centre + self._RADIUS.sample(key_radius, shape)[..., None] * way

    def log_prob(self, value: Any) -> Any:
        """Log density by area."""
        away = value - self.centre
        radius = jnp.sqrt(jnp.sum(away**2, -1) + 1e-12)
        inside = self._RADIUS.log_prob(radius) - jnp.log(jnp.pi * radius)
        return jnp.where(away[..., 0] > 0.0, inside, -jnp.inf)


def _two_moons(num_rows: int, y: Any = None) -> None:
    theta = sample("theta", dist.Uniform(-jnp.ones(2), 1.0).to_event(1))
    shift = jnp.stack([-jnp.abs(theta[0] + theta[1]), theta[1] - theta[0]]) / jnp.sqrt(2.0)
    sample("y", _Moon(shift + jnp.array([0.25, 0.0])), obs=y)


def _number(num_rows: int) -> int:
    return num_rows


TASKS = {
    "gaussian_linear": Task(_gaussian_linear, _number, 1, {"npe": 0.506, "snpe": 0.507}),
    "bernoulli_glm": Task(
        _bernoulli_glm, _design, 100, {"npe": 0.555, "snpe": 0.515}, "observation_raw.csv"
    ),
    "two_moons": Task(_two_moons, _number, 1, {"npe": 0.542, "snpe": 0.530}),
    "slcp": Task(_slcp, _number, 4, {"npe": 0.831, "snpe": 0.666}, shape=(4, 2)),
}
"""Tasks by the names of the rows."""


def observed(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One of sbibm's ten observations, and 10,000 draws of its posterior.

    Raises:
      ModuleNotFoundError: sbibm is not installed; its files are enough, without what it needs.
    """
    try:
        package = metadata.distribution("sbibm")
    except metadata.PackageNotFoundError:
        said = "The observations are sbibm's: pip install --no-deps sbibm"
        raise ModuleNotFoundError(said) from None
    folder = f"sbibm/tasks/{name}/files/num_observation_{number}"

    def table(file: str) -> np.ndarray:
        content = package.locate_file(f"{folder}/{file}").read_bytes()  # type: ignore[attr-defined]
        content = bz2.decompress(content) if file.endswith("bz2") else content
        return np.loadtxt(io.BytesIO(content), np.float32, delimiter=",", skiprows=1)

    task = TASKS[name]
    return table(task.file).reshape(task.shape), table("reference_posterior_samples.csv.bz2")
