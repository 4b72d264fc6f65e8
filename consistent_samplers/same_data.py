"""Whether several models observe the same data, whatever they call them."""

from collections.abc import Mapping, Sequence

import numpy as np

# Precision up to which two arrays hold the same data: one of them may be in single precision.
_SAME = 1e-6


def in_one_order(observed: Mapping[str, dict[str, np.ndarray]]) -> dict[str, list[str]]:
    """Sites of each model in an order in which the values are the same, under whatever names.

    Args:
      observed: by model and site, arrays of any shape.

    Raises:
      ValueError: there is none.

    Example:
      >>> import numpy as np
      >>> from consistent_samplers.same_data import in_one_order
      >>> a, b = np.zeros(2), np.ones(3)
      >>> in_one_order({"m": {"y": a, "z": b}, "n": {"v": b, "w": a}})
      {'m': ['y', 'z'], 'n': ['w', 'v']}
    """
    as_given = {name: list(sites) for name, sites in observed.items()}
    by_value = {name: _by_value(sites) for name, sites in observed.items()}
    for orders in (as_given, by_value):
        values = [_joined(observed[name], order) for name, order in orders.items()]
        if all(_same(values[0], other) for other in values[1:]):
            return orders
    first, *others = observed
    joined = {name: _joined(sites, as_given[name]) for name, sites in observed.items()}
    other = next(name for name in others if not _same(joined[first], joined[name]))
    a, b = joined[first], joined[other]
    apart = f"{a.size} and {b.size} values"
    if _same(np.sort(a), np.sort(b)):
        apart = "the same values in another order; give both the data in one order"
    elif a.size == b.size:
        apart = f"{np.sum(~_close(a, b))} of {a.size} values are different"
    raise ValueError(
        f"Models {first!r} and {other!r} observe different data ({apart}): evidence compares "
        "models of the same data."
    )


def _by_value(sites: Mapping[str, np.ndarray]) -> list[str]:
    return sorted(sites, key=lambda name: (sites[name].size, sites[name].ravel().tolist()))


def _joined(sites: Mapping[str, np.ndarray], order: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.asarray(sites[name], np.float64).ravel() for name in order])


def _close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.isclose(a, b, rtol=_SAME, atol=0.0, equal_nan=True)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(_close(a, b).all())
