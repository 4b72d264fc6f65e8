"""Command line of the benchmarks."""

import argparse
import importlib
from pathlib import Path
from typing import Any

_POSTERIORS = ("seeds", "cancer", "funnel")
_PARTS = ("recipe", "baselines")
_SPEED_PARTS = (
    "draws",
    "weights",
    "training",
    "nuts",
    "compile",
    "memory",
    "device",
    "scaling",
    "profile",
)
_SPEED_TARGETS = ("seeds", "sonar", "ionosphere", "credit", "cancer")
_RESULTS = Path(__file__).parent / "results"
_COPIES = Path(__file__).parents[1] / "build" / "notebooks"


def _parser() -> argparse.ArgumentParser:
    # Imported late in `main`: a bare import of this module stays cheap.
    from benchmarks import methods, registry

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the samplers. Results (JSON and figures) go to benchmarks/results "
        "unless --output names another folder.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in registry.TARGETS:
        simple = name in _POSTERIORS
        words = "Trains a method on the target, measures it and saves rows/NAME-METHOD.json. "
        if simple:
            words += (
                f"Without --method: trains a one-step sampler on the {name} posterior through "
                "OneStepSampler, runs NUTS on the same NumPyro model, and prints evidence against "
                "the true log Z, means and standard deviations, and speed; saves NAME.json and "
                "NAME.png."
            )
        sub = commands.add_parser(name, help=f"a method on {name}", description=words)
        sub.add_argument("--method", choices=methods.METHODS, required=not simple)
        sub.add_argument("--steps", type=int, nargs="+", help="network evaluations a draw")
        sub.add_argument(
            "--budget", default="2000it", help='training: iterations ("2000") or seconds ("60s")'
        )
        sub.add_argument("--seeds", type=int, default=1, help="number of seeds")
        sub.add_argument("--seed", type=int, default=0, help="first seed")
        sub.add_argument("--num-samples", type=int, help="draws behind each line")
        sub.add_argument("--output", type=Path, help="folder for the results")
        if simple:
            sub.add_argument(
                "--num-steps",
                type=int,
                default=1,
                help="without --method: network evaluations a draw (1, 2, 4, 8, 16)",
            )
    _add_osds_paper(commands)
    sub = _command(
        commands,
        "table",
        "the rows of a paper's table by their commands, with published figures beside them",
    )
    sub.add_argument("name", choices=("scds", "osds"))
    sub.add_argument("--budget-set", choices=("quick", "full"), default="quick")
    sub.add_argument("--jobs", type=int, default=2, help="rows at a time")
    sub.add_argument(
        "--keep", action="store_true", help="keep rows of the same command and version"
    )
    sub = _command(
        commands,
        "heuristic",
        "where the papers' heuristic ELBO exceeds the true log Z, and by how much",
    )
    sub.add_argument("--targets", nargs="+", choices=tuple(registry.TARGETS))
    sub.add_argument("--num-iterations", type=int, default=100)
    sub.add_argument("--num-samples", type=int, default=1_000)
    sub.add_argument("--seed", type=int, default=0)
    sub = _command(
        commands,
        "kernels",
        "the few-step bound with the paper's, fixed and learned transition kernels",
    )
    sub.add_argument("--targets", nargs="+", default=["funnel", "seeds"])
    sub.add_argument("--num-iterations", type=int, default=1_000)
    sub.add_argument("--num-samples", type=int, default=4_000)
    sub.add_argument("--seeds", type=int, default=1, help="number of seeds")
    sub = _command(
        commands, "steps", "what distillation and more steps add to the calibrated single step"
    )
    sub.add_argument("--targets", nargs="+", default=["seeds", "funnel", "mw54", "rings"])
    sub.add_argument("--num-samples", type=int, default=4_096)
    sub.add_argument("--seed", type=int, default=0)
    sub = _command(
        commands,
        "evidence",
        "evidence at one step on every benchmark, trained in full, against its goal",
    )
    sub.add_argument("--targets", nargs="+")
    sub.add_argument("--num-samples", type=int, default=10_000)
    sub.add_argument("--seeds", type=int, default=1, help="number of seeds")
    sub.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    sub = _command(
        commands,
        "honesty",
        "how far the diagnostics can be believed, on runs that work and runs that must fail",
    )
    sub.add_argument("--seeds", type=int, default=6, help="runs of each case")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--num-samples", type=int, default=4_000)
    sub = _command(
        commands,
        "posteriordb",
        "posteriors of posteriordb as NumPyro models: one step, chains of it, and NUTS",
    )
    sub.add_argument("--posteriors", nargs="+", help="names of models")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--folder", type=Path, help="folder of the reference files")
    sub = _command(commands, "notebooks", "the notebooks in full, and how long they take")
    sub.add_argument("--names", nargs="+", help="notebooks, without .ipynb")
    sub.add_argument("--folder", type=Path, default=_COPIES, help="folder for executed copies")
    sub = _command(commands, "hang", "whether densities that call LAPACK hang, in many processes")
    sub.add_argument("--processes", type=int, default=100)
    sub.add_argument("--limit", type=float, default=300.0, help="seconds; what takes longer hangs")
    sub.add_argument("--late", action="store_true", help="JAX is in use before the package is")
    sub.add_argument("--unguarded", action="store_true", help="with the scheduler at fault")
    sub = _command(commands, "field", "models and densities as users bring them, against the truth")
    sub.add_argument("--names", nargs="+", help="cases; all if left out")
    sub.add_argument("--folder", type=Path, help="folder of the cases")
    sub.add_argument("--limit", type=float, default=600.0, help="seconds of a case")
    sub.add_argument("--seed", type=int, help="of every case, instead of its own")
    sub = _command(commands, "hierarchical", "hierarchical models beside NUTS: right, and how soon")
    sub.add_argument("--names", nargs="+", help="models; all if left out")
    sub.add_argument("--limit", type=float, default=900.0, help="seconds of a process")
    sub.add_argument("--seed", type=int, default=0)
    sub = _command(commands, "amortized", "families of data sets from one training, beside NUTS")
    sub.add_argument("--names", nargs="+", help="families; all if left out")
    sub.add_argument("--num-data-sets", type=int, default=1_000)
    sub.add_argument("--num-nuts", type=int, default=50, help="data sets to run NUTS on")
    sub.add_argument("--seed", type=int, default=0)
    sub = _command(commands, "sizes", "seconds and memory of a hierarchical family as it grows")
    sub.add_argument("--dims", nargs="+", type=int, default=[100, 300, 1_000, 3_000, 10_000])
    sub.add_argument("--limit", type=float, default=1_800.0, help="seconds of a process")
    sub.add_argument("--seed", type=int, default=0)
    _add_first(commands)
    _add_speed(commands)
    return parser


def _add_first(commands: Any) -> None:
    sub = _command(
        commands,
        "first",
        "seconds from the start of a process to 10,000 effective draws, beside NUTS",
    )
    sub.add_argument("--models", nargs="+", help="names of rows; all if left out")
    sub.add_argument("--skip-nuts", action="store_true", help="measure ours only")
    sub.add_argument("--repeats", type=int, default=3, help="repetitions, of which medians")
    sub.add_argument("--effective", type=int, default=10_000, help="effective draws to reach")


def _add_speed(commands: Any) -> None:
    sub = _command(
        commands, "speed", "where an iteration and a draw spend their time, against goals and NUTS"
    )
    sub.add_argument("--parts", nargs="+", choices=_SPEED_PARTS, default=_SPEED_PARTS)
    sub.add_argument("--targets", nargs="+", choices=_SPEED_TARGETS, help="of the part nuts")
    sub.add_argument("--rounds", type=int, help="repetitions of everything")
    sub.add_argument("--peak-tflops", type=float, help="the device's, for the part device")
    sub.add_argument("--quick", action="store_true", help="tiny sizes, to try the command")
    sub.add_argument("--keep", action="store_true", help="keep other parts of an earlier run")


def _add_osds_paper(commands: Any) -> None:
    sub = _command(
        commands,
        "osds-paper",
        "OSDS with the paper's settings: the three kinds of evidence at 1 to 128 steps",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--num-iterations", type=int, default=1_500)
    sub.add_argument("--batch-size", type=int, default=256)
    sub.add_argument("--num-samples", type=int, default=4_000)


def _command(commands: Any, name: str, words: str) -> argparse.ArgumentParser:
    """A command that saves results."""
    about = f"Measures {words}; saves its results as JSON and, most of them, a table and figures."
    sub: argparse.ArgumentParser = commands.add_parser(name, help=words, description=about)
    sub.add_argument("--output", type=Path, default=_RESULTS, help="folder for the results")
    return sub


def main(arguments: list[str] | None = None) -> None:
    """Parses a command line (the process's own if None) and runs one benchmark."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        _run(command, options)
    except ValueError as error:
        parser.error(str(error))


def _run(command: str, options: dict[str, Any]) -> None:
    from benchmarks import registry

    # Each benchmark is imported when it is asked for: some need NumPyro, some matplotlib.
    if command not in registry.TARGETS:
        module = importlib.import_module(f"benchmarks.{command.replace('-', '_')}")
        module.run(**options)
    elif options["method"] is None:
        from benchmarks import posterior

        posterior.run(
            command,
            options["seed"],
            options["num_samples"] or 10_000,
            options["num_steps"],
            options["output"] or _RESULTS,
        )
    else:
        from benchmarks import rows

        options.pop("num_steps", None)
        options["num_samples"] = options["num_samples"] or rows.NUM_SAMPLES
        options["output"] = options["output"] or _RESULTS / "rows"
        rows.run(command, **options)


if __name__ == "__main__":
    main()
