"""Posteriors of hierarchical models with their data typed in, and trusted values of log Z.

Every constant of prior and likelihood is kept: log Z is the log evidence of the model.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.targets import datasets
from consistent_samplers.targets.base import Target
from consistent_samplers.types import Array

_LOG_2PI = math.log(2 * math.pi)


def seeds() -> Target:
    """Random-effects logistic regression of the germination of seeds, 26 dimensions.

    a_0, a_1, a_2, a_12 ~ N(0, 10²); τ ~ Gamma(0.01, rate 0.01); b_i ~ N(0, 1/τ), and
    r_i ~ Binomial(N_i, sigmoid(a_0 + a_1 x1_i + a_2 x2_i + a_12 x1_i x2_i + b_i)) on 21 plates.
    A point is (a_0, a_1, a_12, a_2, b_1 .. b_21, log τ); the log Jacobian of log τ is included.
    log Z = -73.4059 ± 0.0005 (quadrature). Data from Crowder (1978), model from Breslow &
    Clayton, JASA 88 (1993), and the BUGS examples, volume 1.

    Example:
      >>> import consistent_samplers as cs
      >>> target = cs.targets.seeds()
      >>> target.dim, target.log_z
      (26, -73.4059)
    """
    germinated, total, x1, x2 = datasets.seeds()
    design = np.stack([np.ones_like(x1), x1, x1 * x2, x2], axis=1)  # [21, 4], in flat order
    num_plates, num_fixed = design.shape
    shape = rate = 0.01
    log_constant = (
        sum(math.log(math.comb(int(n), int(r))) for n, r in zip(total, germinated, strict=True))
        - num_fixed * (0.5 * _LOG_2PI + math.log(10))
        - num_plates * 0.5 * _LOG_2PI
        + shape * math.log(rate)
        - math.lgamma(shape)
    )

    def log_density(x: Array) -> Array:
        fixed, effects, log_tau = x[:num_fixed], x[num_fixed:-1], x[-1]
        logits = _matvec(design, fixed) + effects
        # Each term in its stable form: r log σ(l) + (N - r) log σ(-l).
        log_likelihood = jnp.sum(
            jnp.asarray(germinated, x.dtype) * jax.nn.log_sigmoid(logits)
            + jnp.asarray(total - germinated, x.dtype) * jax.nn.log_sigmoid(-logits)
        )
        log_prior_fixed = -0.5 * jnp.sum((fixed / 10) ** 2)
        log_prior_effects = 0.5 * num_plates * log_tau - 0.5 * jnp.sum(
            (effects * jnp.exp(0.5 * log_tau)) ** 2
        )
        # The power of τ is shape - 1, and one more from the Jacobian of log τ.
        log_prior_tau = shape * log_tau - rate * jnp.exp(log_tau)
        return log_likelihood + log_prior_fixed + log_prior_effects + log_prior_tau + log_constant

    dim = num_fixed + num_plates + 1
    return Target(log_density, dim, name="seeds", log_z=-73.4059)


def brownian() -> Target:
    """Brownian motion of unknown scales seen through noise, the middle missing; 32 dimensions.

    Innovation scale σ and observation scale s ~ LogNormal(0, 2); x_1 ~ N(0, σ²),
    x_t ~ N(x_{t-1}, σ²) for t to 30, and y_t ~ N(x_t, s²) at times 1 to 10 and 21 to 30.
    A point is (softplus⁻¹ σ, softplus⁻¹ s, x_1 .. x_30), the log Jacobians of the scales
    included. log Z = 1.187749 (quadrature over the two scales, the path integrated out exactly;
    error below 1e-8). Published figures of about 1.0 are loose lower bounds. Model and data from
    inference_gym: Sountsov, Radul et al. (2020), TensorFlow Probability.

    Example:
      >>> import consistent_samplers as cs
      >>> target = cs.targets.brownian()
      >>> target.dim, target.log_z
      (32, 1.187749)
    """
    observations = datasets.brownian_observations()
    return _brownian_motion(observations, name="brownian", log_z=1.187749)


def _brownian_motion(observations: np.ndarray, name: str, log_z: float | None) -> Target:
    """Posterior of the scales and the path of a Brownian motion.

    Args:
      observations: ``[num_times]``, NaN where nothing was observed.
      name: name of the target.
      log_z: its log evidence, if known.
    """
    is_observed = ~np.isnan(observations)
    observed = np.where(is_observed, observations, 0.0)
    num_times, num_observed = len(observations), int(is_observed.sum())
    prior_std = 2.0
    log_constant = -0.5 * (num_times + num_observed) * _LOG_2PI
    log_constant -= 2 * (0.5 * _LOG_2PI + math.log(prior_std))

    def log_density(x: Array) -> Array:
        unconstrained, path = x[:2], x[2:]
        log_scale = _log_softplus(unconstrained)
        # LogNormal density of the scales; the derivative of softplus is sigmoid.
        log_prior_scales = jnp.sum(
            -0.5 * (log_scale / prior_std) ** 2 - log_scale + jax.nn.log_sigmoid(unconstrained)
        )
        log_sigma, log_s = log_scale[0], log_scale[1]
        innovations = jnp.diff(path, prepend=0.0) * jnp.exp(-log_sigma)
        misses = jnp.where(is_observed, jnp.asarray(observed, x.dtype) - path, 0.0)
        residuals = misses * jnp.exp(-log_s)
        log_prior_path = -0.5 * jnp.sum(innovations**2) - num_times * log_sigma
        log_likelihood = -0.5 * jnp.sum(residuals**2) - num_observed * log_s
        return log_prior_scales + log_prior_path + log_likelihood + log_constant

    return Target(log_density, num_times + 2, name=name, log_z=log_z)


def _log_softplus(x: Array) -> Array:
    # log log(1 + e^x) = x - e^x / 2 + O(e^2x): softplus itself underflows far on the left.
    small = x < -18.0
    left = x - 0.5 * jnp.exp(jnp.where(small, x, -18.0))
    return jnp.where(small, left, jnp.log(jax.nn.softplus(jnp.where(small, -18.0, x))))


def _matvec(matrix: np.ndarray, x: Array) -> Array:
    # The default precision of a matrix product on accelerators is far below float32.
    return jnp.matmul(jnp.asarray(matrix, x.dtype), x, precision=jax.lax.Precision.HIGHEST)
