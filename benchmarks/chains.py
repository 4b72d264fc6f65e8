"""NumPyro's NUTS in blocks of draws: how long it takes to a number of effective draws."""

import time
from typing import Any, NamedTuple

CHAINS = 4


class Race(NamedTuple):
    """What 4 vectorised chains took.

    Attributes:
      first_seconds: of compilation, warm-up and the first block.
      block_seconds: of a further block, everything compiled.
      draws: in all blocks.
      effective: of them, the smallest effective sample size over all sites.
      seconds: to the number of effective draws that was asked for: the first block, and as many
        further ones, and parts of one, as are missing at this rate.
      extrapolated: whether more blocks are charged than were run.
      rate: effective draws a second of a further block.
    """

    first_seconds: float
    block_seconds: float
    draws: int
    effective: float
    seconds: float
    extrapolated: bool
    rate: float


def race(
    kernel: Any,
    rng_key: Any,
    arguments: tuple[Any, ...],
    init_params: Any,
    *,
    warm_up: int,
    block: int,
    effective: int,
    enough: float,
    most_seconds: float = float("inf"),
) -> Race:
    """Runs at least two blocks, and more until enough draws are effective or time is up.

    Args:
      kernel: NUTS on a model or a potential.
      rng_key: key.
      arguments: of the model.
      init_params: of the chains, or None.
      warm_up: iterations of it.
      block: draws a chain between two looks at the effective size.
      effective: effective draws whose time is asked for.
      enough: effective draws that tell the rate.
      most_seconds: of further blocks.
    """
    import jax
    import numpy as np
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import MCMC

    settings = {"num_chains": CHAINS, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=warm_up, num_samples=block, **settings)
    blocks: list[Any] = []
    seconds: list[float] = []
    reached = 0.0
    while len(blocks) < 2 or (reached < enough and sum(seconds[1:]) < most_seconds):
        begin = time.perf_counter()
        key = mcmc.last_state.rng_key if blocks else rng_key
        mcmc.run(key, *arguments, init_params=init_params)
        blocks.append(jax.tree.map(np.asarray, mcmc.get_samples(group_by_chain=True)))
        seconds.append(time.perf_counter() - begin)
        mcmc.post_warmup_state = mcmc.last_state
        sites = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *blocks)
        reached = min(float(effective_sample_size(x).min()) for x in jax.tree.leaves(sites))
    # The least of them: the second block may find something to compile, too.
    each, per_block = min(seconds[1:]), reached / len(blocks)
    missing = max(effective / per_block - 1.0, 0.0)
    draws, total = CHAINS * block * len(blocks), seconds[0] + missing * each
    return Race(
        seconds[0], each, draws, reached, total, missing + 1.0 > len(blocks), per_block / each
    )
