"""A function of one data set for many of them: blocks of one size, compiled once."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from consistent_samplers import progress
from consistent_samplers.compilation import jit
from consistent_samplers.types import ArrayTree


def in_blocks(function: Callable[..., Any], size: int) -> Callable[..., ArrayTree]:
    """A function of trees with a leading axis; its result is on the host.

    The last block is filled up by its last entry, so that nothing is compiled anew for it.
    """
    run = jit(jax.vmap(function))

    def call(*trees: ArrayTree) -> ArrayTree:
        num = len(jax.tree.leaves(trees)[0])
        block = min(size, num)
        begins, parts = list(range(0, num, block)), []
        for begin in progress.counted("data sets", begins, len(begins)):
            index = np.minimum(np.arange(begin, begin + block), num - 1)
            parts.append(jax.device_get(run(*jax.tree.map(lambda x, i=index: x[i], trees))))
        return jax.tree.map(lambda *xs: np.concatenate(xs)[:num], *parts)

    return call
