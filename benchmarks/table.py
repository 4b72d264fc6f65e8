"""Tables of the papers: every row by its own command, published figures beside ours."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import consistent_samplers as cs
from benchmarks import methods, published
from benchmarks.methods import Budget
from benchmarks.rows import cell, command, number, path_of, save

_SAMPLERS = (
    *("base", "dis", "dds", "pis", "cdds", "scds", "osds"),
    *("osds-calibrated", "recipe"),
)
_QUICK = {
    "scds": {
        "gmm9": _SAMPLERS,
        # Without dds and pis, which the quick budget leaves on one ring each.
        "rings": tuple(name for name in _SAMPLERS if name not in ("dds", "pis")),
        "mw54": _SAMPLERS,
        "funnel": ("nuts", *_SAMPLERS),
    },
    "osds": {
        "seeds": ("base", "nuts", "dis", "scds", "osds", "osds-calibrated", "recipe"),
        "funnel": ("base", "nuts", "dis", "scds", "osds", "osds-calibrated", "recipe"),
        "gmm9": ("base", "dis", "scds", "osds", "osds-calibrated", "recipe"),
        "mw54": ("base", "dis", "scds", "osds", "osds-calibrated", "recipe"),
    },
}
_FEW_STEPS = (
    *("cdds", "scds", "osds", "cdds-calibrated", "osds-calibrated", "dis-learned", "progressive"),
    *("recipe", "scds.paper", "osds.paper"),
)
_ALL = ("base", "dis", "dds", "pis", *_FEW_STEPS)
_FULL = {
    "scds": {
        **dict.fromkeys(("gmm9", "gmm40", "rings", "image", "mw54", "mw52"), _ALL),
        "funnel": ("nuts", *_ALL),
    },
    "osds": {
        **dict.fromkeys(
            ("seeds", "funnel", "ionosphere", "sonar", "credit", "credit_likelihood"),
            ("base", "nuts", "dis", *_FEW_STEPS),
        ),
        **dict.fromkeys(("cancer", "brownian"), ("base", "nuts", "dis", *_FEW_STEPS)),
        **dict.fromkeys(("gmm9", "gmm40", "mw54", "mw52"), ("base", "dis", *_FEW_STEPS)),
    },
}
_SETS: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, tuple[int, ...]], int]] = {
    "quick": (_QUICK, methods.QUICK_ITERATIONS, methods.STEPS | methods.QUICK_STEPS, 2),
    "full": (_FULL, methods.FULL_ITERATIONS, methods.STEPS, 3),
}


def plan(name: str, budget_set: str) -> list[tuple[str, str, str]]:
    """Rows of a table: ``(target, method, command)``, in order."""
    table, iterations, steps, seeds = _SETS[budget_set]
    rows = []
    for target, names in table[name].items():
        for method in dict.fromkeys(names):
            budget = Budget(iterations=iterations.get(method, 1))
            # One iteration for methods that do not train: their seeds differ by draws only.
            line = command(target, method, steps[method], budget, seeds)
            rows.append((target, method, line))
    return rows


def run(name: str, budget_set: str, jobs: int, keep: bool, output: Path) -> None:
    """Runs the rows and writes table-NAME.json, table-NAME.md and figures.

    A row that fails is reported and left out; the table says so.

    Args:
      name: "scds" or "osds".
      budget_set: "quick" or "full".
      jobs: rows at a time.
      keep: keep rows that the same command and version of the package left.
      output: folder for the results; rows go to its folder "rows".
    """
    from benchmarks import table_figures

    start = time.perf_counter()
    rows_folder = output / "rows"
    planned = plan(name, budget_set)
    wanted = [row for row in planned if not (keep and _is_current(rows_folder, *row))]
    print(f"{len(planned)} rows, {len(wanted)} to run, {jobs} at a time", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        failures = dict(pool.map(lambda row: _run_row(row, rows_folder), wanted))
    failures = {line: text for line, text in failures.items() if text}
    rows = [
        json.loads(path_of(rows_folder, target, method).read_text())
        for target, method, line in planned
        if line not in failures
    ]
    results = {
        "command": f"python -m benchmarks table {name} --budget-set {budget_set} --jobs {jobs}",
        "wall_seconds": time.perf_counter() - start,
        "row_seconds": sum(row["wall_seconds"] for row in rows),
        "version": cs.__version__,
        "failed": failures,
        "lines": [line for row in rows for line in lines(row)],
    }
    save(output, f"table-{name}", results, lambda found: markdown(name, rows, found))
    for label, figure in table_figures.all_figures(name, rows).items():
        figure.savefig(output / f"table-{name}-{label}.png", dpi=130)


def _is_current(folder: Path, target: str, method: str, line: str) -> bool:
    path = path_of(folder, target, method)
    if not path.is_file():
        return False
    row = json.loads(path.read_text())
    same_version = row["versions"]["consistent_samplers"] == cs.__version__
    return bool(same_version and row["command"] == line)


def _run_row(row: tuple[str, str, str], folder: Path) -> tuple[str, str]:
    """Runs a row's command in a process of its own: ``(command, error or "")``."""
    line = row[2]
    start = time.perf_counter()
    arguments = [sys.executable, *shlex.split(line)[1:], "--output", str(folder.resolve())]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    seconds = time.perf_counter() - start
    state = "done" if done.returncode == 0 else "FAILED"
    print(f"{state} in {seconds:.0f} s: {line}", flush=True)
    if done.returncode == 0:
        return line, ""
    return line, (done.stderr.strip() or f"exit status {done.returncode}")[-2_000:]


def lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table from a row: evidence, distances and published figures joined."""
    summary = row["summary"]
    distances = {(d["num_steps"], d["kind"]): d for d in summary["distances"]}
    found = summary["evidence"] or [d | {"bound": None} for d in summary["distances"]]
    joined = []
    for line in found:
        entry = {
            "target": row["target"],
            "method": row["method"],
            "true_log_z": row["true_log_z"],
            "training_seconds": sum(summary["training_seconds"].values()),
            "noise_floor": row.get("noise_floor", {}).get("sinkhorn"),
            "command": row["command"],
        }
        entry |= distances.get((line["num_steps"], line["kind"]), {}) | line
        # A paper's row says one number of steps and one kind of draw: the method's own.
        if (line["bound"], line["kind"]) == (found[0]["bound"], found[0]["kind"]):
            entry["published"] = published.find(row["target"], row["method"], line["num_steps"])
        joined.append(entry)
    return joined


def markdown(name: str, rows: Sequence[dict[str, Any]], results: dict[str, Any]) -> str:
    """The table as Markdown, one section a target, the command of every row below it."""
    parts = [
        f"# Table {name.upper()}: measured beside published",
        "Made by `" + results["command"] + "`. Mean ± standard error over seeds. NFE: network "
        "evaluations a draw. Draws are of the stochastic path or of the deterministic map; a "
        "`lower-if-injective` ELBO is a bound only where the map does not fold, `heuristic` is "
        "no bound at all. A figure that a seed lacks is left out. In brackets: the published "
        "figure. " + published.load()["note"] + f" All rows took "
        f"{results['row_seconds'] / 60:.0f} minutes of one process each, training, drawing and "
        "distances included; with two at a time, half of that.",
    ]
    for target in dict.fromkeys(row["target"] for row in rows):
        parts.append(_section(name, [row for row in rows if row["target"] == target]))
    if results["failed"]:
        parts.append("## Failed")
        parts += [f"`{line}`: {text.splitlines()[-1]}" for line, text in results["failed"].items()]
    parts.append("## Sources of published figures")
    parts += [f"- {key}: {text}" for key, text in published.load()["sources"].items()]
    parts += [f"- Warning ({k}): {text}" for k, text in published.load()["warnings"].items()]
    return "\n\n".join(parts) + "\n"


def _section(name: str, rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    truth = "unknown" if first["true_log_z"] is None else f"{first['true_log_z']:.4f}"
    floor = first.get("noise_floor", {}).get("sinkhorn")
    text = [f"## {first['target']} ({first['dim']}-d, true log Z {truth})", ""]
    text.append(
        f"All samplers start from {first['base']}, but the recipe, which finds a base of its own "
        f"(its training time holds all of that). Distances to {first['reference']}; Sinkhorn "
        f"cost of reference draws to reference draws: {cell(floor)}."
    )
    header = (
        "method",
        "NFE",
        "weights",
        "ELBO",
        "EUBO",
        "abs. error of log Z",
        "ESS",
        "folded",
        "Sinkhorn",
        "modes missed",
        "training s",
        "drawing s",
    )
    text += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for line in (line for row in rows for line in lines(row)):
        shown = (None, "lower", "lower-if-injective")
        if name == "scds" and line["bound"] not in shown:
            continue
        said = line.get("published") or {}
        cells = (
            line["method"],
            "0" if line["method"] == "base" else str(line["num_steps"]),
            line["bound"] or "none",
            _with_error(line, "elbo") or ("" if line["bound"] is None else "no number"),
            _with_error(line, "eubo"),
            _with_error(line, "log_z_error", said),
            _with_error(line, "ess", said),
            cell(line.get("folded")),
            _with_error(line, "sinkhorn", said),
            cell(line.get("num_missed_modes")),
            cell(line["training_seconds"]),
            cell(line.get("sampling_seconds")),
        )
        text.append("| " + " | ".join(cells) + " |")
    others = published.unmatched(first["target"], {row["method"] for row in rows})
    if others:
        text += ["", "Published, with no row of the same kind above:", ""]
        for figure in others:
            values = {k: v for k, v in figure.items() if k not in _LABELS}
            steps = figure["num_steps"] or "NFE not stated"
            text.append(f"- {figure['method']} @ {steps} ({figure['source']}): {values}")
    text += ["", "Commands:", ""]
    text += [f"- {row['method']}: `{row['command']}`" for row in rows]
    return "\n".join(text)


_LABELS = ("target", "method", "num_steps", "source")
_PUBLISHED_NAMES = {"log_z_error": "abs_error_log_z"}


def _with_error(line: dict[str, Any], metric: str, said: dict[str, Any] | None = None) -> str:
    """A metric as mean ± standard error, the published figure in brackets."""
    text = cell(line.get(metric))
    error = number(line.get(f"{metric}_stderr"))
    if text and error == error:
        text += f" ± {error:.2g}"
    figure = (said or {}).get(_PUBLISHED_NAMES.get(metric, metric))
    return text if figure is None else f"{text} [{figure:g}]"
