"""Feynman-Kac correctors: powers and products of targets from the samplers trained for them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases.base import one_frame
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.corrections.annealing import AnnealedDraws
from consistent_samplers.corrections.particles import (
    check_paths,
    genealogical_stderr,
    resampled_steps,
)
from consistent_samplers.estimate import effective_sample_size
from consistent_samplers.processes import GaussianKernel
from consistent_samplers.sampler import Sampler
from consistent_samplers.simulate import ControlFn
from consistent_samplers.targets import rounding
from consistent_samplers.types import Array, Draws, LogDensityFn, PRNGKey


def product_paths(
    rng_key: PRNGKey,
    algorithms: Sequence[Algorithm],
    states: Sequence[SamplerState],
    exponents: Sequence[float],
    num_samples: int,
    num_steps: int,
    *,
    resample_below: float = 0.5,
) -> AnnealedDraws:
    """Weighted draws of the product Π_i ρ_i^{β_i} of targets, from samplers of each.

    A single sampler and an exponent give the tempered ρ^β. Skreta et al., "Feynman-Kac correctors
    in diffusion: annealing, guidance, and product of experts", 2025, arXiv:2503.02819. With the
    controls u_i of the samplers, scores v_i = -x + a u_i of their marginals p_t^i, U = Σ β_i u_i
    and B = Σ β_i, paths from N(0, I / B) follow, in the frame of the base,

        dx = (-½ β x + ½ (1 + 1/B) β a U) dt + √(β / B) dW.

    Were the scores exact, a path with the weight exp ∫ V dt would follow Π_i (p_t^i)^{β_i}, where

        V = ½ β a [a (‖U‖² - Σ β_i ‖u_i‖²) - (B - 1) x·U]

    has no divergence: those of the u_i cancel. (The paper's drift with the linear part such that
    V = 0 without controls.) Paths are resampled by it. At the end it gives way to the exact ratio
    of the discrete path, against backward kernels with the drift -½ β x - ½ (1 - 1/B) β a U in
    reversed time, for which both agree in the limit. So E[mean w] = Z holds for any controls and
    any number of steps, with Z = ∫ Π ρ_i^{β_i}.

    Args:
      rng_key: PRNG key.
      algorithms: samplers with stochastic paths, around the same base of one frame (a Gaussian) and
        with the same process: train them with the same ``base=`` and settings.
      states: their states.
      exponents: β_i, of either sign, with a positive sum.
      num_samples: number of draws, two or more.
      num_steps: steps of a path; each evaluates every network once, and once more at the start.
      resample_below: share of effective paths below which they are resampled; never if it is 0.

    Returns:
      Draws of ``bound="lower"``, whose log density is Σ β_i log ρ_i, and the share of effective
      paths after each step, at last that of the draws. As in `resampled_paths` copies are
      dependent, and the log of the mean weight is the lower bound. Learned kernels are not used.

    Raises:
      ValueError: numbers of samplers, states and exponents that differ; exponents that are zero,
        not finite or have no positive sum; samplers without paths of ``num_steps``, with several
        frames or with different bases or processes.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.dis(target, base=base, max_steps=4, hidden=(8,))
      >>> key, state = jax.random.key(1), algorithm.init(jax.random.key(0))  # not trained
      >>> result = cs.corrections.product_paths(key, [algorithm], [state], [2.0], 1_000, 4)
      >>> truth = 0.5 * jnp.log(jnp.pi) - jnp.log(2.0 * jnp.pi) + 2.0 * target.log_z
      >>> bool(abs(result.log_z - truth) < 0.3)
      True
    """
    check_integer("num_samples", num_samples, 2)
    _check(algorithms, states, exponents, num_steps)
    power, total = jnp.asarray(exponents, float), float(sum(exponents))
    x, log_ratio, origin, effective = _product(
        rng_key,
        tuple(a.sampler(state) for a, state in zip(algorithms, states, strict=True)),
        tuple(as_partial(algorithm.target.log_density) for algorithm in algorithms),
        power,
        jnp.asarray(total),
        resample_below,
        num_samples=int(num_samples),
        num_steps=int(num_steps),
    )
    values = [rounding.values(algorithm.target.log_density, x) for algorithm in algorithms]
    log_density = sum(power[i] * value for i, value in enumerate(values))
    outside = jnp.stack([jnp.isnan(value) | jnp.isneginf(value) for value in values]).any(axis=0)
    log_density = jnp.where(outside, -jnp.inf, log_density)
    log_weight = log_density + log_ratio
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    effective = effective.at[-1].set(effective_sample_size(log_weight))
    log_z = logsumexp(log_weight) - jnp.log(num_samples)
    draws = Draws(x, log_weight, log_density, bound="lower")
    return AnnealedDraws(draws, log_z, genealogical_stderr(log_weight, origin), effective)


@functools.partial(jit, static_argnames=("num_samples", "num_steps"))
def _product(
    rng_key: PRNGKey,
    samplers: tuple[Sampler, ...],
    densities: tuple[LogDensityFn, ...],
    power: Array,
    total: Array,
    resample_below: Array | float,
    *,
    num_samples: int,
    num_steps: int,
) -> tuple[Array, Array, Array, Array]:
    """Ends of paths ``[n, dim]``, what their log weights lack of the densities, origins, shares."""
    first: Any = samplers[0].control
    base, process = first.base, first.process
    # Shares of the drift that the forward and the backward kernel take of it; 1 and 0 for B = 1.
    ahead, back, scale = 0.5 * (1.0 + 1.0 / total), 0.5 * (1.0 - 1.0 / total), total**-0.5

    def bound(sampler: Sampler, density: LogDensityFn) -> ControlFn:
        control: Any = sampler.control
        gradient = jax.grad(lambda x: density(x)) if control.guided else None
        u: ControlFn = control.bind(sampler.params, (), gradient)
        return u

    controls = [*map(bound, samplers, densities)]

    def potential(z: Array, u: Array) -> tuple[Array, Array]:
        """What V holds of a² and of a."""
        pull = power @ u
        return jnp.sum(pull**2) - power @ jnp.sum(u**2, axis=1), (1.0 - total) * (z @ pull)

    def evaluated(z: Array, t: Array, d: Array) -> Array:
        # No network was trained at t = 1.
        return jnp.stack([u(z, jnp.minimum(t, 1.0 - d), d) for u in controls])

    def advance(
        key: PRNGKey, particle: tuple[Array, Array, Array], t: Array, d: Array
    ) -> tuple[tuple[Array, Array, Array], Array, Array]:
        z, u, owed = particle
        forward = process.forward_kernel(z, ahead * (power @ u), t, d)
        forward = forward._replace(std=scale * forward.std)
        after = forward.sample(key)
        u_after = evaluated(after, t + d, d)
        backward = process.backward_kernel(after, t, d)
        shift = process.forward_kernel(jnp.zeros_like(z), back * (power @ u_after), t, d).mean
        backward = GaussianKernel(backward.mean - shift, scale * backward.std)
        log_ratio = backward.log_prob(z) - forward.log_prob(after)
        # ∫ ½ β a dt is the rise of a, and ∫ ½ β a² dt half of that of a².
        before, now = process.signal(t), process.signal(t + d)
        square, linear = (
            0.5 * (p + q) for p, q in zip(potential(z, u), potential(after, u_after), strict=True)
        )
        gained = 0.5 * (now**2 - before**2) * square + (now - before) * linear
        return (after, u_after, owed + log_ratio - gained), gained, jnp.zeros(())

    key_base, key_steps = jax.random.split(rng_key)
    noise = jax.random.normal(key_base, (num_samples, base.dim))
    log_start = jax.vmap(simulate.standard_normal_log_prob)(noise) - base.dim * jnp.log(scale)
    z, d = scale * noise, jnp.asarray(1.0 / num_steps)
    u = jax.vmap(evaluated, (0, None, None))(z, jnp.zeros(()), d)
    (z, _, owed), log_weight, origin, effective = resampled_steps(
        key_steps, (z, u, -log_start), advance, num_steps, resample_below
    )
    x, correction = jax.vmap(first.place)(z)
    return x, log_weight + owed + correction, origin, effective


def _check(
    algorithms: Sequence[Algorithm],
    states: Sequence[SamplerState],
    exponents: Sequence[float],
    num_steps: int,
) -> None:
    """Raises unless samplers go together."""
    if not 0 < len(algorithms) == len(states) == len(exponents):
        raise ValueError(
            "There must be a state and an exponent for each sampler, got "
            f"{len(algorithms)} samplers, {len(states)} states and {len(exponents)} exponents."
        )
    if not (all(math.isfinite(e) and e != 0.0 for e in exponents) and sum(exponents) > 0.0):
        raise ValueError(
            f"exponents must be finite, not zero, and have a positive sum, got {[*exponents]}."
        )
    first = algorithms[0].control
    for algorithm in algorithms:
        check_paths(algorithm, num_steps, noised=True)
        control = algorithm.control
        if not one_frame(control.base):
            raise ValueError(
                f"The base of {algorithm.name!r} has several frames, and powers of a target do not "
                "share them out. Train with a Gaussian base, cs.bases.fit_gaussian say."
            )
        parts: list[Any] = [jax.tree.flatten(base) for base in (control.base, first.base)]
        (leaves, structure), (others, other) = parts
        same = structure == other and all(map(np.array_equal, leaves, others))
        if not same or control.process != first.process:
            raise ValueError(
                f"{algorithm.name!r} and {algorithms[0].name!r} differ in "
                f"{'their noising process' if same else 'their base'}: their paths share no time "
                "or frame. Train them with the same base=, schedule= and integrator=."
            )
