"""Posteriors of data in shards: samplers trained apart and multiplied, and chains that agree.

With data in S shards the posterior is the product of S subposteriors
ρ_s(x) = p(x)^{1/S} p(data_s | x), each of which sees its own data alone.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from consistent_samplers.bases import Base, standard_normal
from consistent_samplers.bases.base import one_frame
from consistent_samplers.checks import check_integer
from consistent_samplers.compilation import as_partial, jit
from consistent_samplers.maps import marginal
from consistent_samplers.recipe import TrainedSampler, train_sampler
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, LogDensityFn, PRNGKey

# Leapfrog steps of a shard's move, and their length in standard deviations of the narrowest
# Gaussian that it may meet, times dim^(-1/4).
_NUM_LEAPFROG, _STEP_SIZE = 5, 0.7


def product_target(shards: Sequence[TrainedSampler]) -> Target:
    """The target Π_s q_s(x) of the exact densities of several samplers' one-step draws.

    It needs no data: what a shard's process sends is its sampler, saved or as a pytree.

    Args:
      shards: samplers of one dimension, two at least, whose maps have a density (`maps.marginal`).

    Raises:
      ValueError: fewer than two, of several dimensions, or a map without a density.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.zeros(1), jnp.eye(1)), cs.bases.standard_normal(1)
      >>> alone = cs.Sampler.of_base(base)
      >>> shard = cs.TrainedSampler(target, alone, alone)
      >>> product = cs.consensus.product_target([shard, shard, shard])
      >>> round(float(product.log_density(jnp.ones(1)) - product.log_density(jnp.zeros(1))), 3)
      -1.5
    """
    dims = sorted({shard.target.dim for shard in shards})
    if len(shards) < 2 or len(dims) != 1:
        raise ValueError(
            f"A product needs two or more samplers of one dimension, got {len(shards)} of "
            f"dimensions {dims}."
        )
    parts: list[tuple[Any, Any]] = []
    for shard in shards:
        own = shard.unguided
        part = marginal(own.control, own.params, np.arange(dims[0]))
        if part is None or "map" not in own.methods:
            raise ValueError(
                f"The sampler of target {shard.target.name!r} has no density in closed form: train "
                "it with cs.train_sampler and guidance=None, from a Gaussian or a mixture base."
            )
        parts.append(part)
    return Target(Partial(_log_product, parts), dims[0], "product of shards")


def _log_product(parts: Sequence[tuple[Any, Any]], x: Array) -> Array:
    return sum((control.log_prob(params, x) for control, params in parts), jnp.zeros(()))


def combine(rng_key: PRNGKey, shards: Sequence[TrainedSampler], **options: Any) -> TrainedSampler:
    """A sampler trained on the product of the shards' densities, from which data are absent.

    Consensus by multiplication (Neiswanger, Wang & Xing, 2014, equation 1), with exact densities
    of one-step maps (as Mesquita, Blomstedt & Kaski, 2019, have those of flows) in place of kernel
    density estimates. The product is as good as its factors where all of them have mass: shards
    whose posteriors hardly overlap meet in the factors' tails, which no training sees. So the
    draws are to be corrected against the full density, ``combined.reweight(full)``, whose
    log density may be a sum over processes: exact weights, log Z, and a verdict that says where
    the factors were not good enough.

    Args:
      rng_key: PRNG key.
      shards: trained on ρ_s(x) = p(x)^{1/S} p(data_s | x), anywhere.
      **options: of `train_sampler`.

    Raises:
      ValueError: as of `product_target`.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> def shard(mean):
      ...     target = cs.targets.gaussian(jnp.array([mean]), 2.0 * jnp.eye(1))
      ...     return cs.train_sampler(jax.random.key(0), target, effort="base", progress_bar=False)
      >>> key = jax.random.key(1)
      >>> options = {"effort": "base", "progress_bar": False}
      >>> combined = cs.consensus.combine(key, [shard(0.0), shard(1.0)], **options)
      >>> full = combined.reweight(cs.targets.gaussian(jnp.array([0.5]), jnp.eye(1)))
      >>> bool(full.evidence.ess > 0.99)
      True
    """
    return train_sampler(rng_key, product_target(shards), **options)


class SplitChains(NamedTuple):
    """Chains of `split_gibbs`.

    Attributes:
      position: ``[num_chains, num_samples, dim]``, the point that the shards agree about.
      shards: ``[num_chains, num_shards, dim]``, each shard's own point at the end.
      acceptance: ``[num_shards]``, mean acceptance probability of each shard's moves.

    Example:
      >>> from consistent_samplers.consensus import SplitChains
      >>> SplitChains._fields
      ('position', 'shards', 'acceptance')
    """

    position: Array
    shards: Array
    acceptance: Array


def split_gibbs(
    rng_key: PRNGKey,
    shards: Sequence[Target],
    num_samples: int = 1_000,
    *,
    base: Base | None = None,
    coupling: float = 0.5,
    num_chains: int = 16,
    num_warmup: int = 200,
) -> SplitChains:
    """Chains by splitting, as ADMM splits: each shard moves its own point, all meet in one.

    Vono, Paulin & Doucet, "Efficient MCMC sampling with dimension-free convergence rate using
    ADMM-type splitting", JMLR 2022, arXiv:1905.11937; Rendell et al., "Global consensus Monte
    Carlo", 2021. Of the augmented density

        π(x, y_1 .. y_S) ∝ Π_s ρ_s(y_s) N(y_s; x, c² I)

    in the coordinates of a base, a sweep draws every y_s given x, by one Hamiltonian Monte Carlo
    transition on its own shard's density (side by side where shards are on machines of their own),
    and x given all y_s, exactly N(ȳ, c² I / S). The law of x is Π_s (ρ_s * N(0, c² I)), not the
    posterior Π_s ρ_s: for Gaussian shards of covariance C it is wider by the factor (C + c² I) / C.
    A smaller ``coupling`` c has less of this and mixes more slowly, c² / S a sweep. There are no
    weights: nothing here knows how far the posterior is.

    Args:
      rng_key: PRNG key.
      shards: targets with ρ_s(x) = p(x)^{1/S} p(data_s | x), of one dimension.
      num_samples: draws of each chain that are kept.
      base: whose coordinates the chains live in and whose draws they start from, of one frame;
        best about as wide as the posterior; N(0, I) if None.
      coupling: c, in standard deviations of the base.
      num_chains: number of chains.
      num_warmup: sweeps before the first draw that is kept.

    Raises:
      ValueError: fewer than two shards, another dimension, a base of several frames, or a number
        out of range.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> shards = [cs.targets.gaussian(jnp.array([m]), 2.0 * jnp.eye(1)) for m in (0.0, 1.0)]
      >>> chains = cs.consensus.split_gibbs(jax.random.key(0), shards, 200)
      >>> bool(abs(chains.position.mean() - 0.5) < 0.2)
      True
    """
    dims = sorted({shard.dim for shard in shards})
    if len(shards) < 2 or len(dims) != 1:
        raise ValueError(
            f"Consensus needs two or more shards of one dimension, got {len(shards)} of "
            f"dimensions {dims}."
        )
    base = standard_normal(dims[0]) if base is None else base
    if base.dim != dims[0] or not one_frame(base):
        raise ValueError(
            f"The base must be of one frame and of dimension {dims[0]}: fit one, e.g. "
            "cs.bases.fit_gaussian(rng_key, shard)."
        )
    for name, value, least in (
        *(("num_samples", num_samples, 1), ("num_chains", num_chains, 1)),
        ("num_warmup", num_warmup, 0),
    ):
        check_integer(name, value, least)
    if not coupling > 0.0:
        raise ValueError(f"coupling must be positive, got {coupling}.")
    densities = [as_partial(shard.log_density) for shard in shards]
    keys = jax.random.split(rng_key, num_chains)
    run = functools.partial(_chain, num=(num_warmup, num_samples))
    position, points, rates = jit(jax.vmap(run, (0, None, None, None)))(
        keys, densities, base, jnp.asarray(coupling)
    )
    return SplitChains(position, points, rates.mean((0, 1)))


def _chain(
    rng_key: PRNGKey, densities: Sequence[LogDensityFn], base: Any, coupling: Array, num: Any
) -> tuple[Array, Array, Array]:
    """One chain's kept points, its shards' points at the end, and acceptance rates."""
    import blackjax

    kernel, dim = blackjax.hmc.build_kernel(), base.dim
    key_start, key_sweeps = jax.random.split(rng_key)
    # What a shard's own density adds to the coupling's precision is at most the posterior's.
    step_size = _STEP_SIZE * dim**-0.25 / jnp.sqrt(1.0 + coupling**-2)

    def moved(key: PRNGKey, density: LogDensityFn, x: Array, y: Array) -> tuple[Array, Array]:
        def joint(y: Array) -> Array:
            place = base.unwhiten(y, ())
            # The posterior has the base's volume once: each shard its part.
            value = density(place) + base.log_correction(place, ()) / len(densities)
            value = jnp.where(jnp.isnan(value), -jnp.inf, value)
            return value - 0.5 * jnp.sum((y - x) ** 2) / coupling**2

        state = blackjax.hmc.init(y, joint)
        state, info = kernel(key, state, joint, step_size, jnp.ones(dim), _NUM_LEAPFROG)
        return state.position, info.acceptance_rate

    def sweep(carry: tuple[Array, Array], key: PRNGKey) -> tuple[Any, tuple[Array, Array]]:
        x, points = carry
        key_x, *keys = jax.random.split(key, 1 + len(densities))
        each = [
            moved(key, density, x, y)
            for key, density, y in zip(keys, densities, points, strict=True)
        ]
        points = jnp.stack([y for y, _ in each])
        spread = coupling / jnp.sqrt(len(densities))
        x = points.mean(0) + spread * jax.random.normal(key_x, (dim,))
        return (x, points), (x, jnp.stack([rate for _, rate in each]))

    start = jax.random.normal(key_start, (dim,))
    points = jnp.tile(start, (len(densities), 1))
    keys = jax.random.split(key_sweeps, sum(num))
    (_, points), (path, rates) = jax.lax.scan(sweep, (start, points), keys)
    unwhiten = jax.vmap(lambda z: base.unwhiten(z, ()))
    return unwhiten(path[num[0] :]), unwhiten(points), rates
