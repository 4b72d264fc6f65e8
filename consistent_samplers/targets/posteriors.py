"""Bayesian posteriors on real data, with trusted values of log Z.

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


def cancer() -> Target:
    """Logistic regression on the breast cancer data of Wisconsin, 31 dimensions.

    Features are divided by their standard deviation (not centred) behind a column of ones; every
    weight has the prior N(0, 10²), and P(label 1) = sigmoid(-x·w): the weights are minus the usual
    ones, as the field codes it. log Z = -77.569 ± 0.004 (bridge sampling).

    The field's code leaves the prior out; the classes are separable, so that posterior is
    improper (log Z = +inf), and it is not offered here. Data from Street, Wolberg & Mangasarian,
    Nuclear feature extraction for breast tumor diagnosis (1993).

    Raises:
      ImportError: scikit-learn, which carries the data, is not installed.
    """
    features, labels = datasets.breast_cancer()
    scaled = features / features.std(axis=0)
    design = np.concatenate([np.ones((len(scaled), 1)), scaled], axis=1)
    signs = np.where(labels == 1, -1.0, 1.0)
    return _logistic_regression(design, signs, prior_std=10.0, name="cancer", log_z=-77.569)


def _logistic_regression(
    design: np.ndarray, signs: np.ndarray, prior_std: float, name: str, log_z: float
) -> Target:
    """Posterior of weights w ~ N(0, prior_std²) given log-likelihood Σ log σ(signs_i design_i·w).

    Args:
      design: ``[num_rows, dim]``.
      signs: ``[num_rows]`` of ±1.
      prior_std: standard deviation of every weight.
      name: name of the target.
      log_z: its log evidence.
    """
    signed_design = signs[:, None] * design
    dim = design.shape[1]
    log_constant = -dim * (0.5 * _LOG_2PI + math.log(prior_std))

    def log_density(x: Array) -> Array:
        log_likelihood = jnp.sum(jax.nn.log_sigmoid(_matvec(signed_design, x)))
        return log_likelihood - 0.5 * jnp.sum((x / prior_std) ** 2) + log_constant

    return Target(log_density, dim, name=name, log_z=log_z)


def _matvec(matrix: np.ndarray, x: Array) -> Array:
    # The default precision of a matrix product on accelerators is far below float32.
    return jnp.matmul(jnp.asarray(matrix, x.dtype), x, precision=jax.lax.Precision.HIGHEST)
