"""Flow perturbation: exact weights of a deterministic map without its Jacobian."""

import jax
import jax.numpy as jnp

from consistent_samplers import simulate
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import jit
from consistent_samplers.corrections.latent import check_map
from consistent_samplers.processes import GaussianKernel
from consistent_samplers.sampler import weighed
from consistent_samplers.schedules import check_num_steps
from consistent_samplers.types import Array, Draws, PRNGKey


def perturbed(
    rng_key: PRNGKey,
    algorithm: Algorithm,
    state: SamplerState,
    num_samples: int,
    num_steps: int = 1,
    *,
    noise: float = 0.05,
    num_iterations: int = 4,
) -> Draws:
    """Draws of a sampler's map with a little noise on each step, and exact weights of the noise.

    Peng & Gao, "Flow perturbation to accelerate unbiased sampling of Boltzmann distribution", 2024,
    arXiv:2407.10666. With x' = T(x) + s ε and a backward kernel around any guess R of the inverse,

        log w = log ρ(x_K) - log p0(x_0) + Σ [log N(x; R(x'), s²) - log N(x'; T(x), s²)]

    has E[w] = Z for every R, so that no determinant is needed, and no Jacobian: R is a fixed-point
    iteration x ← x - (T(x) - x'), which converges where a step is closer to the identity than to
    nothing. What is saved is paid for in evenness: a step of Jacobian J adds ½ ‖I - J⁻¹J⁻ᵀ‖² to the
    variance of log w, whatever a small s is. So it is for maps that are too large for determinants,
    in several steps, from a base that fits.

    Args:
      rng_key: PRNG key.
      algorithm: a trained sampler with a deterministic map.
      state: its state.
      num_samples: number of draws.
      num_steps: steps of the map.
      noise: s, in standard deviations of the base; the draws are that much wider.
      num_iterations: of the inverse of a step, each a network evaluation.

    Returns:
      Draws of ``bound="lower"``.

    Raises:
      ValueError: no deterministic map, a number out of range, or ``num_steps`` that the sampler was
        not trained for.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.ones(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.osds(target, base=base, max_steps=1, hidden=(8,), guidance=None)
      >>> state = algorithm.init(jax.random.key(0))  # not trained
      >>> draws = cs.corrections.perturbed(jax.random.key(1), algorithm, state, 1_000)
      >>> bool(abs(cs.evidence(draws).log_z - target.log_z) < 0.2), draws.bound
      (True, 'lower')
    """
    check_map(algorithm)
    check_num_steps(num_steps, algorithm.control.max_flow_steps)
    check_integer("num_samples", num_samples)
    check_integer("num_iterations", num_iterations)
    if not noise > 0.0:
        raise ValueError(f"noise must be positive, got {noise}: without it there is no weight.")
    control, params, density = algorithm.control, state.ema_params, algorithm.target.log_density
    gradient, std = jax.grad(density) if control.guided else None, jnp.asarray(noise)

    def one(key: PRNGKey) -> tuple[Array, Array]:
        key_base, key_path = jax.random.split(key)
        z0, component = control.start_point(key_base)
        u = control.bind(params, component, gradient)

        def step(x: Array, t: Array, d: Array) -> Array:
            return simulate.flow_step(u, control.process, x, t, d)

        def back(x_next: Array, t: Array, d: Array) -> GaussianKernel:
            guess = jax.lax.fori_loop(
                0, num_iterations, lambda _, x: x + x_next - step(x, t, d), x_next
            )
            return GaussianKernel(guess, std)

        kernels = simulate.PathKernels(lambda x, t, d: GaussianKernel(step(x, t, d), std), back)
        path, log_ratios = simulate.simulate_path(key_path, z0, kernels, num_steps)
        log_ratio = log_ratios.sum() - simulate.standard_normal_log_prob(z0)
        landed = control.landed(path[-1], component, log_ratio)
        return landed.position, landed.log_ratio

    keys = jax.random.split(rng_key, num_samples)
    position, log_ratio = jit(lambda keys: jax.lax.map(one, keys, batch_size=256))(keys)
    # Where the iteration runs off there is no way back, and no weight.
    return weighed(algorithm.target, position, log_ratio, "lower")
