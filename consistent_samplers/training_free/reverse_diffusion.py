"""Reverse diffusion Monte Carlo: a diffusion sampler whose scores are short chains.

Huang, Dong, Hao, Ma & Zhang, "Reverse diffusion Monte Carlo", ICLR 2024, arXiv:2307.02037. With
x_t | x_1 ~ N(a x_1, (1 - a²) I) the score is a posterior's mean, by Tweedie's formula

    ∇ log p_t(x) = (a E[x_1 | x_t = x] - x) / (1 - a²),
    p(x_1 | x_t = x) ∝ ρ(x_1) N(x; a x_1, (1 - a²) I),

and the mean that of Langevin chains, adjusted by Metropolis here, which begin at candidates chosen
by importance weights. The larger a, the more nearly the posterior is Gaussian. So the generative
SDE begins at a time where a is not small, and there with Langevin steps along the same scores.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from consistent_samplers.bases import Base
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate import standard_normal_log_prob
from consistent_samplers.targets import Target
from consistent_samplers.training_free.counted import CountedDraws
from consistent_samplers.training_free.frame import choose_frame, whitened
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey

_START_STEP = 0.5


def reverse_diffusion(
    rng_key: PRNGKey,
    target: Target,
    num_samples: int,
    *,
    base: Base | None = None,
    start: float = 0.5,
    num_steps: int = 16,
    num_start_steps: int = 16,
    num_candidates: int = 32,
    num_chains: int = 8,
    chain_length: int = 8,
    step_size: float = 0.8,
    process: OrnsteinUhlenbeck | None = None,
) -> CountedDraws:
    """Draws by reverse diffusion Monte Carlo, which are close to the target and have no weights.

    Each score is the mean of short chains. Candidates z ~ N(a x, (1 - a²) I), which is the
    posterior where the target is the base, have the weights ρ / p0; chains begin at some chosen by
    these. The last step is no Gaussian: it returns where a chain ended.

    The law is that of the target up to finite steps, short chains, and the first steps' distance
    from p_t at the start: none of it is corrected, and the draws cannot say how much it is. Modes
    far apart, in the base's units, need an early start and many candidates; in many dimensions the
    candidates miss.

    Args:
      rng_key: PRNG key.
      target: the target.
      num_samples: number of draws.
      base: the coordinates, in which the target should be of order one; N(0, I) if None.
      start: time at which the paths begin, from 0 (the base) to below 1.
      num_steps: steps of the SDE from there to the target.
      num_start_steps: Langevin steps from the base to p_t at the start; none at time 0.
      num_candidates: candidates for the chains of a score.
      num_chains: chains of a score.
      chain_length: states of each.
      step_size: of the chains, in units of sqrt(1 - a²) dim^(-1/6).
      process: the noising; linear rates and exponential steps if None.

    Returns:
      Draws without weights, and their evaluations: of each draw, ``num_steps + num_start_steps``
      times ``num_candidates + num_chains * (1 + chain_length)``.

    Raises:
      ValueError: numbers out of range, or a base of another dimension or of several frames.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.gaussian(jnp.ones(2), 0.5)
      >>> draws, num_evaluations = cs.training_free.reverse_diffusion(
      ...     jax.random.key(0), target, 500, num_steps=8, num_start_steps=4
      ... )
      >>> draws.position.mean(0).round().tolist(), num_evaluations // 500
      ([1.0, 1.0], 1248)
    """
    for name, value, least in (
        ("num_samples", num_samples, 1),
        ("num_steps", num_steps, 1),
        ("num_start_steps", num_start_steps, 0),
        ("num_candidates", num_candidates, 1),
        ("num_chains", num_chains, 1),
        ("chain_length", chain_length, 1),
    ):
        check_integer(name, value, least)
    if not 0.0 <= start < 1.0:
        raise ValueError(f"start must be a time from 0 to below 1, got {start!r}.")
    if not step_size > 0.0:
        raise ValueError(f"step_size must be positive, got {step_size!r}.")
    if start == 0.0:
        num_start_steps = 0  # paths begin at the base itself
    position = _reversed(
        jax.random.split(rng_key, num_samples),
        choose_frame(target, base),
        as_partial(target.log_density),
        start,
        step_size,
        process=OrnsteinUhlenbeck() if process is None else process,
        num_steps=int(num_steps),
        num_start_steps=int(num_start_steps),
        num_candidates=int(num_candidates),
        num_chains=int(num_chains),
        chain_length=int(chain_length),
    )
    of_score = num_candidates + num_chains * (1 + chain_length)
    return CountedDraws(Draws(position), num_samples * (num_steps + num_start_steps) * of_score)


@partial(
    jit,
    static_argnames=(
        *("process", "num_steps", "num_start_steps"),
        *("num_candidates", "num_chains", "chain_length"),
    ),
)
def _reversed(
    keys: Array,
    frame: Base,
    density: LogDensityFn,
    start: Array | float,
    step_size: Array | float,
    *,
    process: OrnsteinUhlenbeck,
    num_steps: int,
    num_start_steps: int,
    num_candidates: int,
    num_chains: int,
    chain_length: int,
) -> Array:
    """Where paths of one key each end: ``[n, dim]``."""
    log_density = whitened(density, frame)
    value_and_grad = jax.value_and_grad(log_density)
    scaled = step_size * frame.dim ** (-1.0 / 6.0)

    def states(key: PRNGKey, x: Array, t: Array) -> Array:
        """States of chains under p(x_1 | x_t = x): ``[chain_length, num_chains, dim]``."""
        a = process.signal(t)
        variance = 1.0 - a**2
        std, h = jnp.sqrt(variance), scaled**2 * variance
        key_candidates, key_choose, key_chains = jax.random.split(key, 3)
        noise = jax.random.normal(key_candidates, (num_candidates, *x.shape), x.dtype)
        z = a * x + std * noise
        log_weight = jax.vmap(lambda z: log_density(z) - standard_normal_log_prob(z))(z)
        log_weight = jnp.where((log_weight == -jnp.inf).all(), 0.0, log_weight)
        chosen = jax.random.categorical(key_choose, log_weight, shape=(num_chains,))

        def posterior(z: Array) -> tuple[Array, Array, Array]:
            value, grad = value_and_grad(z)
            away = x - a * z
            # No gradient where there is none, and none that throws a chain out of sight.
            grad = jnp.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0) + a * away / variance
            return z, value - 0.5 * (away @ away) / variance, grad

        def move(now: Any, key: PRNGKey) -> tuple[Any, Array]:
            key_noise, key_accept = jax.random.split(key)
            noise = jax.random.normal(key_noise, x.shape, x.dtype)
            new = posterior(now[0] + 0.5 * h * now[2] + jnp.sqrt(h) * noise)
            back = now[0] - new[0] - 0.5 * h * new[2]
            log_ratio = new[1] - now[1] + 0.5 * (noise @ noise) - 0.5 * (back @ back) / h
            accept = jnp.log(jax.random.uniform(key_accept, dtype=x.dtype)) < log_ratio
            now = jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, now)
            return now, now[0]

        def chain(key: PRNGKey, z: Array) -> Array:
            return jax.lax.scan(move, posterior(z), jax.random.split(key, chain_length))[1]

        keys = jax.random.split(key_chains, num_chains)
        return jax.vmap(chain, out_axes=1)(keys, z[chosen])

    # Every step is x -> α x + β u + γ ε: at first Langevin's dx = ½ (a u - x) dτ + dW, exact for a
    # frozen control u, and then those of the process.
    d = (1.0 - start) / num_steps
    times = jnp.maximum(jnp.arange(-num_start_steps, num_steps), 0) * d + start
    is_start = jnp.arange(-num_start_steps, num_steps) < 0
    keep = math.exp(-0.5 * _START_STEP)
    zero, unit = jnp.zeros(()), jnp.ones(())

    def coefficients(t: Array, is_start: Array) -> tuple[Array, Array, Array]:
        kept, std = process.forward_kernel(unit, zero, t, jnp.asarray(d))
        pulled = process.forward_kernel(zero, unit, t, jnp.asarray(d)).mean
        first = (keep, (1.0 - keep) * process.signal(t), math.sqrt(1.0 - keep**2))
        return jax.tree.map(partial(jnp.where, is_start), first, (kept, pulled, std))

    def one(key: PRNGKey) -> Array:
        key_base, key_steps = jax.random.split(key)

        def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], None]:
            x, _ = carry
            t, (kept, pulled, std), key = inputs
            key_chains, key_noise = jax.random.split(key)
            z, a = states(key_chains, x, t), process.signal(t)
            control = (z.mean((0, 1)) - a * x) / (1.0 - a**2)
            noise = jax.random.normal(key_noise, x.shape, x.dtype)
            return (kept * x + pulled * control + std * noise, z[-1, 0]), None

        x = jax.random.normal(key_base, (frame.dim,))
        keys = jax.random.split(key_steps, len(times))
        steps = (times, jax.vmap(coefficients)(times, is_start), keys)
        (_, end), _ = jax.lax.scan(step, (x, x), steps)
        return frame.unwhiten(end, ())

    position: Array = jax.lax.map(one, keys, batch_size=256)
    return position
