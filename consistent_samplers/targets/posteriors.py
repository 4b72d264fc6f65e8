"""Posteriors of Bayesian models on real data, with trusted values of log Z.

Every constant of prior and likelihood is kept, unless said otherwise: log Z is the log evidence.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular

from consistent_samplers.checks import check_integer
from consistent_samplers.targets import datasets
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.numerics import LOG_2PI, matvec
from consistent_samplers.types import Array


def seeds() -> Target:
    """Random-effects logistic regression of the germination of seeds, 26 dimensions.

    a_0, a_1, a_2, a_12 ~ N(0, 10²); τ ~ Gamma(0.01, rate 0.01); b_i ~ N(0, 1/τ), and
    r_i ~ Binomial(N_i, sigmoid(a_0 + a_1 x1_i + a_2 x2_i + a_12 x1_i x2_i + b_i)) on 21 plates.
    A point is (a_0, a_1, a_12, a_2, b_1 .. b_21, log τ); the log Jacobian of log τ is included.
    log Z = -73.4059 ± 0.0005 (quadrature). Data from Crowder (1978), model from Breslow &
    Clayton, JASA 88 (1993), and the BUGS examples, volume 1.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.seeds().log_z
      -73.4059
    """
    germinated, total, x1, x2 = datasets.seeds()
    design = np.stack([np.ones_like(x1), x1, x1 * x2, x2], axis=1)  # [21, 4], in flat order
    num_plates, num_fixed = design.shape
    shape = rate = 0.01
    log_constant = (
        sum(math.log(math.comb(int(n), int(r))) for n, r in zip(total, germinated, strict=True))
        - num_fixed * (0.5 * LOG_2PI + math.log(10))
        - num_plates * 0.5 * LOG_2PI
        + shape * math.log(rate)
        - math.lgamma(shape)
    )

    def log_density(x: Array) -> Array:
        fixed, effects, log_tau = x[:num_fixed], x[num_fixed:-1], x[-1]
        logits = matvec(design, fixed) + effects
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
      >>> cs.targets.brownian().log_z
      1.187749
    """
    observations = datasets.brownian_observations()
    is_observed = ~np.isnan(observations)
    observed = np.where(is_observed, observations, 0.0)
    num_times, num_observed = len(observations), int(is_observed.sum())
    prior_std = 2.0
    log_constant = -0.5 * (num_times + num_observed) * LOG_2PI
    log_constant -= 2 * (0.5 * LOG_2PI + math.log(prior_std))

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

    return Target(log_density, num_times + 2, name="brownian", log_z=1.187749)


def _log_softplus(x: Array) -> Array:
    # log log(1 + e^x) = x - e^x / 2 + O(e^2x): softplus itself underflows far on the left.
    small = x < -18.0
    left = x - 0.5 * jnp.exp(jnp.where(small, x, -18.0))
    return jnp.where(small, left, jnp.log(jax.nn.softplus(jnp.where(small, -18.0, x))))


def ionosphere() -> Target:
    """Logistic regression on radar returns from the ionosphere, 35 dimensions.

    Features are centred and divided by their standard deviation (the column that does not vary
    stays 0) behind a column of ones; every weight has the prior N(0, 1), and
    P(label 1) = sigmoid(x·w). log Z = -111.6084 ± 0.0022 (bridge sampling). Some code of the
    field leaves the prior out: that posterior is improper. Data from Sigillito et al.,
    Classification of radar returns from the ionosphere using neural networks (1989).

    Raises:
      ImportError, ConnectionError, FileNotFoundError, ValueError: the data cannot be had.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.ionosphere().log_z  # doctest: +SKIP
      -111.6084
    """
    return _logistic_regression("ionosphere", -111.6084, *datasets.ionosphere(), 1.0, centre=True)


def sonar() -> Target:
    """Logistic regression on sonar returns from rocks and mines, 61 dimensions.

    Features, prior, likelihood and errors as of ``ionosphere``. log Z = -108.3867 ± 0.0031 (bridge
    sampling). Data from Gorman & Sejnowski, Analysis of hidden units in a layered network trained
    to classify sonar targets, Neural Networks 1 (1988).

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.sonar().log_z  # doctest: +SKIP
      -108.3867
    """
    return _logistic_regression("sonar", -108.3867, *datasets.sonar(), 1.0, centre=True)


def credit() -> Target:
    """Logistic regression on the German credit data, 25 dimensions.

    Features (numeric coding) are divided by their standard deviation (not centred) behind a
    column of ones; every weight has the prior N(0, 10²), and P(label 1) = sigmoid(-x·w): the
    weights are minus the usual ones, as the field codes it. log Z = -585.0985 ± 0.0007 (bridge
    sampling). Data from Hofmann (1994), Statlog. Errors as of ``ionosphere``.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.credit().log_z  # doctest: +SKIP
      -585.0985
    """
    features, labels = datasets.german_credit()
    return _logistic_regression("credit", -585.0985, features, 1 - labels, 10.0)


def credit_likelihood() -> Target:
    """The likelihood of ``credit`` alone, under a flat prior: what newer code of the field runs.

    It is proper, since no hyperplane separates the classes. log Z = -504.4864 ± 0.0004 (bridge
    sampling); figures in the literature of about -504 are for this density, those of about -585
    for ``credit``. Errors as of ``ionosphere``.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.credit_likelihood().log_z  # doctest: +SKIP
      -504.4864
    """
    features, labels = datasets.german_credit()
    return _logistic_regression("credit_likelihood", -504.4864, features, 1 - labels, None)


def cancer() -> Target:
    """Logistic regression on the breast cancer data of Wisconsin, 31 dimensions.

    Features, prior and likelihood as of ``credit``. log Z = -77.569 ± 0.004 (bridge sampling).
    The field's code leaves the prior out; the classes are separable, so that posterior is improper
    (log Z = +inf), and it is not offered here. Data from Street, Wolberg & Mangasarian, Nuclear
    feature extraction for breast tumor diagnosis (1993).

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.cancer().log_z
      -77.569
    """
    features, labels = datasets.breast_cancer()
    return _logistic_regression("cancer", -77.569, features, 1 - labels, 10.0)


def _logistic_regression(
    name: str,
    log_z: float | None,
    features: np.ndarray,
    labels: np.ndarray,
    prior_std: float | None,
    centre: bool = False,
) -> Target:
    """Posterior of weights w ~ N(0, prior_std²), or under a flat prior, with P(label 1) = σ(x·w).

    A row x is 1 and the scaled ``features [num_rows, num_features]``; ``labels [num_rows]``.
    """
    std = features.std(axis=0)
    # A column that does not vary has nothing to scale by.
    scaled = (features - features.mean(axis=0) * centre) / np.where(std > 0, std, 1.0)
    design = np.concatenate([np.ones((len(scaled), 1)), scaled], axis=1)
    signed_design = np.where(labels == 1, 1.0, -1.0)[:, None] * design
    dim = design.shape[1]

    def log_density(x: Array) -> Array:
        log_likelihood = jnp.sum(jax.nn.log_sigmoid(matvec(signed_design, x)))
        if prior_std is None:
            return log_likelihood
        log_constant = -dim * (0.5 * LOG_2PI + math.log(prior_std))
        return log_likelihood - 0.5 * jnp.sum((x / prior_std) ** 2) + log_constant

    return Target(log_density, dim, name=name, log_z=log_z)


def lgcp(num_bins: int = 40) -> Target:
    """Log-Gaussian Cox process on the Finnish pines, num_bins² dimensions (1600).

    The unit square is cut into num_bins × num_bins cells; y_i of 126 saplings stand in cell i. A
    point x is the log intensity cell by cell, not whitened: x ~ N(μ, K), with
    μ = log(126) - σ²/2, K_ij = σ² exp(-33 |i - j| / num_bins), σ² = 1.91, and
    y_i ~ Poisson(a exp(x_i)), a = 1 / num_bins². As in the field, the likelihood is
    Σ y_i x_i - a exp(x_i), without Σ y_i log a - log y_i!, which is constant. log Z = 501.803 ±
    0.011 for 40 bins (tempered sequential Monte Carlo and bridge sampling, pooled; the 512.6 of
    some code is wrong), and None for other numbers. Model from Møller, Syversveen & Waagepetersen,
    Log Gaussian Cox processes, Scandinavian Journal of Statistics 25 (1998); as a test of samplers
    from Heng et al., Controlled sequential Monte Carlo, Annals of Statistics 48 (2020).

    Args:
      num_bins: cells a side of the square.

    Raises:
      ImportError, ConnectionError, FileNotFoundError, ValueError: the data cannot be had.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.targets.lgcp(40).log_z  # doctest: +SKIP
      501.803
    """
    check_integer("num_bins", num_bins)
    counts = _bin_counts(datasets.finnish_pines(), num_bins)
    variance, length_scale = 1.91, 1 / 33  # in widths of the unit square
    mean = math.log(126) - 0.5 * variance  # 126 saplings
    log_z = 501.803 if num_bins == 40 else None
    return _cox_process(counts, mean, variance, length_scale, log_z)


def _cox_process(
    counts: np.ndarray,
    mean: float,
    variance: float,
    length_scale: float,
    log_z: float | None = None,
) -> Target:
    """Posterior of the log intensity on a square grid, given the counts ``[num_bins, num_bins]``.

    A priori it has this mean, variance and correlation exp(-distance / length_scale), the side of
    the square being 1.
    """
    num_bins, dim = len(counts), counts.size
    cells = np.stack(np.meshgrid(*[np.arange(num_bins) / num_bins] * 2, indexing="ij"), axis=-1)
    cells = cells.reshape(dim, 2)
    distance = np.sqrt(((cells[:, None] - cells[None]) ** 2).sum(axis=-1))
    # On the host, in float64: an exact factor, and no LAPACK where the density is vmapped.
    cholesky = np.linalg.cholesky(variance * np.exp(-distance / length_scale))
    whitening = solve_triangular(cholesky, np.eye(dim), lower=True)
    log_constant = -0.5 * dim * LOG_2PI - float(np.log(np.diag(cholesky)).sum())
    flat_counts = counts.reshape(dim)
    area = 1 / dim

    def log_density(x: Array) -> Array:
        # |L⁻¹(x - μ)|² rather than (x - μ)ᵀK⁻¹(x - μ): the latter loses twice the digits.
        white = matvec(whitening, x - mean)
        log_likelihood = jnp.sum(jnp.asarray(flat_counts, x.dtype) * x - area * jnp.exp(x))
        return log_likelihood - 0.5 * jnp.sum(white**2) + log_constant

    return Target(log_density, dim, name="lgcp", log_z=log_z)


def _bin_counts(points: np.ndarray, num_bins: int) -> np.ndarray:
    """Number of points ``[n, 2]`` of the unit square in every cell, ``[num_bins, num_bins]``."""
    # A point on the upper edge belongs to the last cell.
    cells = np.minimum(np.floor(points * num_bins).astype(int), num_bins - 1)
    counts = np.zeros((num_bins, num_bins))
    np.add.at(counts, (cells[:, 0], cells[:, 1]), 1)
    return counts
