"""Seconds and memory of one hierarchical family as its members grow, with the defaults.

Poisson counts of groups, centred: two globals and a member for each group. Each size is a process
of its own, timed from before it starts to the draws. Draws: microseconds each, weighted, when
everything is compiled. Memory is the largest resident set, of which a process that only imports the
package holds the first part.
"""

from benchmarks.case import Benchmark, Case, Settings
from benchmarks.hierarchical import measured
from benchmarks.report import Report, Row

_READ = ("ess", "pareto_k", "route", "level", "seconds", "draw_seconds", "peak_bytes", "error")


def names(settings: Settings) -> list[str]:
    """The dimensions."""
    if (least := min(settings["dims"])) < 3:
        raise ValueError(f"A dimension is two globals and the members; got {least}.")
    return list(map(str, settings["dims"]))


def measure(case: Case) -> list[Row]:
    """One size."""
    dim = int(case.target)
    found = measured(f"counts:{dim - 2}", "ours", case.seed, case.settings["limit"])
    row = {"dim": dim} | {name: found[name] for name in _READ if name in found}
    if "error" not in row:
        row |= {"mebibytes": row["peak_bytes"] / 2**20, "microseconds": 100 * row["draw_seconds"]}
    return [row]


BENCHMARK = Benchmark(
    name="sizes",
    names=names,
    measure=measure,
    options={
        "--dims": ((100, 300, 1_000, 3_000, 10_000), "dimensions"),
        "--limit": (1_800.0, "seconds of a process"),
        "--seed": (0, "of every run"),
    },
    report=Report(
        __doc__,
        """d: {target} | ESS: {ess:.2f} | k: {pareto_k:.2f} | route: {route} | level: {level} |
        seconds: {seconds:.0f} | microseconds a draw: {microseconds:.1f} |
        memory, MiB: {mebibytes:.0f}""",
    ),
)
