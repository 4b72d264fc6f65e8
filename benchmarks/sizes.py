"""Seconds and memory of one hierarchical family as its members grow, with the defaults.

Poisson counts of groups, centred: two globals and a member for each group. Each size is a process
of its own, timed from before it starts. Memory is the largest resident set, of which a process that
only imports the package holds the first part.
"""

import math
from pathlib import Path
from typing import Any

from benchmarks.hierarchical import measured

FAMILY = "counts"


def run(dims: list[int], limit: float, seed: int, output: Path) -> dict[str, Any]:
    """Measures the sizes.

    Args:
      dims: dimensions, of at least three.
      limit: seconds of a process.
      seed: of every run.
      output: folder for sizes.json, sizes.md and sizes.png.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a dimension is below three.
    """
    from benchmarks.rows import save, versions_and_device

    if min(dims) < 3:
        raise ValueError(f"A dimension is two globals and the members; got {min(dims)}.")
    command = f"python -m benchmarks sizes --dims {' '.join(map(str, dims))}"
    results: dict[str, Any] = {"command": command, **versions_and_device(), "rows": []}
    for dim in dims:
        row = {"dim": dim, **measured(f"{FAMILY}:{dim - 2}", "ours", seed, limit)}
        row.pop("moments", None)
        results["rows"].append(row)
        print(f"{dim:>7} {_cells(row)}", flush=True)
    return save(output, "sizes", results, markdown, _figure)


def _cells(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    return (
        f"ESS {row['ess']:.2f} {row['route']} {row['level']}, {row['seconds']:.0f} s, "
        f"{row['peak_bytes'] / 2**20:.0f} MiB"
    )


def markdown(results: dict[str, Any]) -> str:
    """A line for each size."""
    text = [
        "# One hierarchical family, by size",
        "",
        f"Made by `{results['command']}` on {results['device']}. Seconds: of a process, draws "
        "included. Draws: microseconds each, weighted, when everything is compiled. Memory: the "
        "largest resident set.",
        "",
        "| d | ESS | k | route | level | seconds | microseconds a draw | memory, MiB |",
        "|" + "---|" * 8,
    ]
    for row in results["rows"]:
        if "error" in row:
            text.append(f"| {row['dim']} | {row['error']} |" + " |" * 6)
            continue
        cells = [str(row["dim"]), f"{row['ess']:.2f}", f"{row['pareto_k']:.2f}", row["route"]]
        cells += [row["level"], f"{row['seconds']:.0f}", f"{row['draw_seconds'] * 100:.1f}"]
        text.append("| " + " | ".join([*cells, f"{row['peak_bytes'] / 2**20:.0f}"]) + " |")
    return "\n".join(text) + "\n"


def _figure(results: dict[str, Any]) -> Any:
    """Seconds and memory against dimension, with lines of slope one through the largest."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results["rows"] if "error" not in row]
    dims = [row["dim"] for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    shown = (
        ("seconds to 10,000 weighted draws", [row["seconds"] for row in rows]),
        ("largest resident set, MiB", [row["peak_bytes"] / 2**20 for row in rows]),
    )
    for axis, (label, values) in zip(axes, shown, strict=True):
        axis.loglog(dims, values, "o-", color="#d1495b", label="measured")
        if len(dims) > 1:
            line = [values[-1] * dim / dims[-1] for dim in dims]
            axis.loglog(dims, line, "--", color="#888888", label="linear in d")
        axis.set(xlabel="dimension", title=label)
        axis.set_ylim(min(values) / 2, 2 * max(values))
        axis.legend(frameon=False)
    assert all(math.isfinite(value) for _, values in shown for value in values)
    return figure
