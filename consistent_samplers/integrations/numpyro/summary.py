"""The table that a user of NumPyro knows."""

import itertools

import numpy as np
from numpyro.diagnostics import hpdi


def summary_table(samples: dict[str, np.ndarray], prob: float, num_effective: float) -> str:
    """The table of ``numpyro.diagnostics.print_summary``, without chain diagnostics."""
    columns = ["mean", "std", "median", f"{50 * (1 - prob):.1f}%", f"{50 * (1 + prob):.1f}%"]
    rows: list[tuple[str, list[float]]] = []
    for name, value in samples.items():
        interval = hpdi(value, prob, axis=0)
        parts = [value.mean(0), value.std(0, ddof=1), np.median(value, 0), *interval]
        for index in itertools.product(*map(range, value.shape[1:])):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            rows.append((label, [float(part[index]) for part in parts]))
    width = max([10, *(len(label) for label, _ in rows)])
    lines = ["", f"{'':>{width}}" + "".join(f" {column:>9}" for column in [*columns, "n_eff"])]
    for label, numbers in rows:
        cells = "".join(f" {number:>9.2f}" for number in [*numbers, num_effective])
        lines.append(f"{label:>{width}}{cells}")
    return "\n".join([*lines, ""])
