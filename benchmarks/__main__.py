"""Command line of the benchmarks."""

import argparse
from pathlib import Path

_POSTERIORS = ("seeds", "cancer", "funnel")
_RESULTS = Path(__file__).parent / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the samplers. Results (JSON and figures) go to benchmarks/results "
        "unless --output names another folder.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _POSTERIORS:
        sub = commands.add_parser(
            name,
            help=f"train on the {name} posterior through OneStepSampler, with NUTS beside it",
            description=f"Trains a one-step sampler on the {name} posterior, runs NUTS on the same "
            "NumPyro model, and prints evidence against the true log Z, means and standard "
            "deviations, and speed; saves NAME.json and NAME.png.",
        )
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--num-samples", type=int, default=10_000, help="one-step draws")
        sub.add_argument(
            "--num-steps", type=int, default=1, help="network evaluations a draw (1, 2, 4, 8, 16)"
        )
        sub.add_argument("--output", type=Path, default=_RESULTS, help="folder for the results")
    sub = commands.add_parser(
        "osds-paper",
        help="OSDS with the paper's settings: the three kinds of evidence at 1 to 128 steps",
        description="Trains cs.osds.paper on the nine-mode mixture (true log Z = 0) and prints "
        "ELBO and log Z of all three kinds of evidence at K = 1, 2, 4, ..., 128 steps, with the "
        "base alone and our defaults beside it; saves osds_paper.json and osds_paper.png.",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--num-iterations", type=int, default=1_500)
    sub.add_argument("--batch-size", type=int, default=256)
    sub.add_argument("--num-samples", type=int, default=4_000)
    sub.add_argument("--output", type=Path, default=_RESULTS, help="folder for the results")
    return parser


def main() -> None:
    """Parses the command line and runs one benchmark."""
    arguments = vars(_parser().parse_args())
    command = arguments.pop("command")
    # Imported late: --help answers at once.
    if command == "osds-paper":
        from benchmarks import osds_paper

        osds_paper.run(**arguments)
    else:
        from benchmarks import posterior

        posterior.run(command, **arguments)


if __name__ == "__main__":
    main()
