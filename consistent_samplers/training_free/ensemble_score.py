"""The score of an ensemble: a diffusion sampler without network and without gradients.

Bao, Zhang & Zhang, "An ensemble score filter for tracking high-dimensional nonlinear dynamical
systems", 2023, arXiv:2309.00983. Points z_i of the base (t = 1 is the target here) with weights
w_i = ρ(z_i) / p0(z_i) stand for the target. Noised, they are a mixture of Gaussians, and so

    ∇ log p_t(x) = Σ_i w_i(x, t) (a z_i - x) / (1 - a²),   w_i(x, t) ∝ w_i N(x; a z_i, (1 - a²) I).

The paper follows a filter's posterior. Here the target is any density; what is added are exact
weights, and further rounds, in which the weighted draws are the next ensemble.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from consistent_samplers.bases import Base
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import jit
from consistent_samplers.processes import GaussianKernel, OrnsteinUhlenbeck
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.targets import Target, rounding
from consistent_samplers.training_free.counted import CountedDraws
from consistent_samplers.training_free.frame import choose_frame
from consistent_samplers.types import Array, Draws, PRNGKey

_BATCH = 256


def ensemble_score(
    rng_key: PRNGKey,
    target: Target,
    num_samples: int,
    *,
    base: Base | None = None,
    ensemble_size: int = 1_024,
    num_rounds: int = 4,
    num_steps: int = 16,
    base_share: float = 0.1,
    process: OrnsteinUhlenbeck | None = None,
) -> CountedDraws:
    """Weighted draws by the score of a weighted ensemble, which takes no gradient of the target.

    In each round as many paths as the ensemble has points go through all steps of the generative
    SDE but the last. Given these, the last step's law is a mixture q of their Gaussian kernels, and
    draws of it are independent with the weight ρ / q: E[w] = Z for any ensemble. A share of q is
    the base itself, which bounds the weights where the base covers the target.

    The last step's noise is the width of the kernels: more steps resolve narrower targets, and need
    more points to fill them. An ensemble falls apart into its points where dimensions are more than
    a few: ESS then is low, and says so. It knows no mode that no point of a round has hit.

    Args:
      rng_key: PRNG key.
      target: the target; only its values are used.
      num_samples: number of draws.
      base: where the first ensemble is drawn, and the coordinates; N(0, I) if None. It has to cover
        the target.
      ensemble_size: points of an ensemble; a round costs as many densities, and its square
        ``num_steps`` times in distances.
      num_rounds: ensembles, the base's own included.
      num_steps: steps of the SDE, the last one that of the kernels.
      base_share: share of the base in q, from 0 (then nothing bounds the weights) to below 1.
      process: the noising; linear rates and exponential steps if None.

    Returns:
      Draws of ``bound="lower"``, and ``num_samples + num_rounds * ensemble_size`` evaluations.

    Raises:
      ValueError: numbers out of range, or a base of another dimension or of several frames.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(2), 0.3)
      >>> draws, num_evaluations = cs.training_free.ensemble_score(
      ...     jax.random.key(0), target, 2_000, ensemble_size=256
      ... )
      >>> bool(abs(cs.evidence(draws).log_z - target.log_z) < 0.1), num_evaluations
      (True, 3024)
    """
    for name, value in (
        ("num_samples", num_samples),
        ("ensemble_size", ensemble_size),
        ("num_rounds", num_rounds),
        ("num_steps", num_steps),
    ):
        check_integer(name, value)
    if not 0.0 <= base_share < 1.0:
        raise ValueError(f"base_share must be at least 0 and below 1, got {base_share!r}.")
    frame = choose_frame(target, base)
    process = OrnsteinUhlenbeck() if process is None else process

    def weigh(z: Array, log_q: Array) -> Draws:
        x = jax.vmap(lambda z: frame.unwhiten(z, ()))(z)
        value = jnp.asarray(rounding.values(target.log_density, x))
        value = jnp.where(jnp.isnan(value), -jnp.inf, value)
        shift = jax.vmap(lambda x: frame.log_correction(x, ()))(x)
        return Draws(x, value + shift - log_q, value, bound="lower")

    key_base, *keys = jax.random.split(rng_key, 1 + num_rounds)
    z = jax.random.normal(key_base, (ensemble_size, target.dim))
    log_q = jax.vmap(standard_normal_log_prob)(z)
    for i, key in enumerate(keys):
        key_paths, key_draw = jax.random.split(key)
        kernels = _kernels(process, num_steps, key_paths, z, weigh(z, log_q).log_weight)
        num = ensemble_size if i + 1 < num_rounds else num_samples
        z, log_q = _draw(num, key_draw, kernels, base_share)
    return CountedDraws(weigh(z, log_q), num_samples + num_rounds * ensemble_size)


@functools.partial(jit, static_argnums=(0, 1))
def _kernels(
    process: OrnsteinUhlenbeck, num_steps: int, rng_key: PRNGKey, z: Array, log_weight: Array
) -> GaussianKernel:
    """Last kernels of as many paths as an ensemble has points: means ``[n, dim]``, std ``[n]``."""
    # An ensemble without any density is taken as it is, for the next to look elsewhere.
    log_weight = jnp.where((log_weight == -jnp.inf).all(), 0.0, log_weight)
    d = 1.0 / num_steps

    def kernel(x: Array, t: Array) -> GaussianKernel:
        a = process.signal(t)
        variance = 1.0 - a**2
        log_near = -0.5 * ((x - a * z) ** 2).sum(-1) / variance
        mean = jax.nn.softmax(log_weight + log_near) @ z
        return process.forward_kernel(x, (mean - a * x) / variance, t, jnp.asarray(d))

    def path(key: PRNGKey) -> GaussianKernel:
        keys = jax.random.split(key, num_steps)

        def step(x: Array, inputs: Any) -> tuple[Array, None]:
            t, key = inputs
            return kernel(x, t).sample(key), None

        x = jax.random.normal(keys[0], z.shape[1:], z.dtype)
        x, _ = jax.lax.scan(step, x, (d * jnp.arange(num_steps - 1), keys[1:]))
        return kernel(x, jnp.asarray(1.0 - d, x.dtype))

    return jax.lax.map(path, jax.random.split(rng_key, len(z)), batch_size=_BATCH)


@functools.partial(jit, static_argnums=0)
def _draw(
    num: int, rng_key: PRNGKey, kernels: GaussianKernel, base_share: float
) -> tuple[Array, Array]:
    """Draws of base and kernels ``[num, dim]`` with their log densities ``[num]``."""

    def log_density(z: Array) -> Array:
        of_each = jax.vmap(lambda kernel: kernel.log_prob(z))(kernels)
        log_mean = logsumexp(of_each) - jnp.log(len(of_each))
        log_base = standard_normal_log_prob(z) + jnp.log(base_share)
        return jnp.logaddexp(log_base, log_mean + jnp.log1p(-base_share))

    def one(key: PRNGKey) -> tuple[Array, Array]:
        key_which, key_index, key_noise = jax.random.split(key, 3)
        index = jax.random.randint(key_index, (), 0, len(kernels.mean))
        noise = jax.random.normal(key_noise, kernels.mean.shape[1:])
        z = kernels.mean[index] + kernels.std[index] * noise
        z = jnp.where(jax.random.uniform(key_which) < base_share, noise, z)
        return z, log_density(z)

    return jax.lax.map(one, jax.random.split(rng_key, num), batch_size=_BATCH)
