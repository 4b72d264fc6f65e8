"""Command line of the benchmarks."""

import argparse
import importlib
import sys

from benchmarks.case import Benchmark, run

COMMANDS = {
    "posterior": "seeds, cancer and funnel through OneStepSampler, beside NUTS (also: seeds, ...)",
    "evidence": "evidence at one step on every target, trained in full, against its goal",
    "brackets": "log Z from both sides, models compared, posteriors as priors, against truths",
    "honesty": "how far the diagnostics can be believed, on runs that must fail as well",
    "field": "models and densities as users bring them, against the truth",
    "hierarchical": "hierarchical models beside NUTS: right, and how soon",
    "sizes": "seconds and memory of a hierarchical family as it grows",
    "amortized": "families of data sets: one training each, a thousand new data sets",
    "sbibm": "tasks of sbibm by one training each, beside published accuracy",
    "calibration": "simulation-based calibration of NumPyro models: ranks and coverage",
    "posteriordb": "posteriors of posteriordb: one step, chains of it, and NUTS",
    "first": "seconds from the start of a process to 10,000 effective draws, beside NUTS",
    "speed": "where a draw and an iteration spend their time, against goals and NUTS",
    "table": "the rows of a paper's table, published figures beside them",
    "particles": "particles, lattices and many wells beside parallel tempering",
    "solvers": "ELBO against network evaluations: solvers of one control, on several grids",
    "hang": "whether densities that call LAPACK hang, in many processes",
    "notebooks": "the notebooks in full, and how long they take",
    "readme": "fills the numbers of README and documentation in from the rows; --check compares",
}


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a command or of a file of results."""
    module = importlib.import_module(f"benchmarks.{name.split('-')[0]}")
    found: Benchmark = module.BENCHMARK
    return found


def main(arguments: list[str] | None = None) -> None:
    """Parses a command line (the process's own if None) and runs one benchmark."""
    first, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if first == "readme":
        _readme(rest)
        return
    if first not in COMMANDS:
        first, rest = _of_target(first, rest)
    benchmark = benchmark_of(first)
    parser = benchmark.parser()
    settings = vars(parser.parse_args(rest))
    names, output, keep = (settings.pop(name) for name in ("names", "output", "keep"))
    try:
        run(benchmark, settings, names, output, keep)
    except ValueError as error:
        parser.error(str(error))


def _of_target(name: str, rest: list[str]) -> tuple[str, list[str]]:
    """``gmm9 --method dis`` is a row of a table, ``seeds`` alone a posterior beside NUTS."""
    from benchmarks.models.posteriors import POSTERIORS
    from benchmarks.registry import TARGETS

    if name in TARGETS and "--method" in rest:
        return "table", ["row", "--names", name, *rest]
    if name in POSTERIORS:
        return "posterior", ["--names", name, *rest]
    width = max(map(len, COMMANDS))
    words = "\n".join(f"  {command:{width}}  {about}" for command, about in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the samplers; results go to benchmarks/results.\n\n" + words,
        epilog=f"TARGET --method METHOD measures one row: {', '.join(TARGETS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=[*COMMANDS, *TARGETS], metavar="COMMAND")
    parser.parse_args([name])
    parser.error(f"{name} takes --method.")


def _readme(rest: list[str]) -> None:
    from benchmarks import readme

    parser = argparse.ArgumentParser(prog="python -m benchmarks readme")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if they differ")
    check = parser.parse_args(rest).check
    differ = readme.run(check)
    print("\n".join(differ) or "All numbers are those of the rows.")
    if check and differ:
        sys.exit(1)


if __name__ == "__main__":
    main()
