"""Speed: where a training iteration and a draw spend their time, against goals."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import speed_compute, speed_device, speed_figure, speed_process, speed_profile
from benchmarks.rows import cell, number, save, versions_and_device, write_json
from benchmarks.speed_cases import QUICK, Sizes

PARTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "draws": speed_compute.draws,
    "weights": speed_compute.weights,
    "training": speed_compute.training,
    "nuts": speed_process.nuts,
    "compile": speed_process.compilation,
    "memory": speed_process.memory,
    "device": speed_device.device,
    "scaling": speed_compute.scaling,
    "profile": speed_profile.profile,
}


def run(
    parts: Sequence[str],
    targets: Sequence[str] | None,
    rounds: int | None,
    quick: bool,
    keep: bool,
    output: Path,
    peak_tflops: float | None = None,
) -> dict[str, Any]:
    """Measures the parts and holds them to their goals.

    Args:
      parts: names of `PARTS`.
      targets: of the part against NUTS; all if None.
      rounds: repetitions of everything, those in processes of their own included; a few each if
        None.
      quick: tiny sizes, to try the command: the figures mean nothing.
      keep: leave what an earlier run measured of other parts in place, and of other targets.
      output: folder for speed.json, .md and .png.
      peak_tflops: of the device, for the shares of it in the part ``device``.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a number of rounds that is not positive.
    """
    sizes = QUICK if quick else Sizes()
    command = ["python -m benchmarks speed --parts", *parts]
    if targets is not None:
        sizes = dataclasses.replace(sizes, targets=tuple(targets))
        command += ["--targets", *targets]
    if rounds is not None:
        if rounds < 1:
            raise ValueError(f"rounds must be positive, got {rounds}.")
        sizes = dataclasses.replace(sizes, rounds=rounds, process_rounds=rounds)
        command += ["--rounds", str(rounds)]
    if peak_tflops is not None:
        sizes = dataclasses.replace(sizes, peak_tflops=peak_tflops)
        command += ["--peak-tflops", f"{peak_tflops:g}"]
    command += ["--quick"] * quick
    path = output / "speed.json"
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    if keep and path.is_file():
        found = json.loads(path.read_text())["parts"]
    for part in parts:
        print(f"{part} ...", flush=True)
        start = time.perf_counter()
        measured = PARTS[part](sizes)
        seconds = time.perf_counter() - start
        if part == "nuts" and part in found:
            measured = _with_other_targets(measured, found[part])
        # Of each part: they may come from several runs.
        found[part] = {
            "command": " ".join(command),
            **versions_and_device(),
            "cores": _num_cores(),
            "seconds": seconds,
            **measured,
        }
        print(f"{part}: measured in {seconds:.0f} s", flush=True)
        # Written after every part: a run of an hour may end early.
        ordered = {name: found[name] for name in PARTS if name in found}
        write_json(path, {"parts": ordered})
    return save(output, "speed", {"parts": ordered}, markdown, speed_figure.figure)


def _with_other_targets(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What was measured against NUTS, and what is kept of other targets."""
    targets = {row["target"] for row in new["rows"]}
    rows = [row for row in old["rows"] if row["target"] not in targets]
    goals = [row for row in old["goals"] if row["what"].split(",")[0] not in targets]
    return {"rows": [*rows, *new["rows"]], "goals": [*goals, *new["goals"]]}


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def markdown(results: dict[str, Any]) -> str:
    """The goals with what was measured, and the details of each part."""
    parts = results["parts"]
    text = [
        "# Speed",
        "",
        "Medians of interleaved repetitions, with quartiles. A bare evaluation is the network "
        "alone on a batch, compiled.",
        "",
        "| part | what | measured | quartiles | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for part, measured in parts.items():
        for row in measured["goals"]:
            m, sign = row["measured"], {"<=": "≤", ">=": "≥"}[row["sense"]]
            text.append(
                f"| {part} | {row['what']} | {cell(m['median'])} | {cell(m['low'])} to "
                f"{cell(m['high'])} | {sign} {cell(row['limit'])} | "
                f"{'yes' if row['met'] else 'NO'} |"
            )
    for part, measured in parts.items():
        versions = ", ".join(f"{k} {v}" for k, v in measured["versions"].items())
        text += [
            "",
            f"## {part}",
            "",
            f"Made by `{measured['command']}` in {measured['seconds']:.0f} s, on "
            f"{measured['device']} with {measured['cores']} cores; {versions}. "
            f"{(PARTS[part].__doc__ or '').splitlines()[0]}",
            "",
            *_table(part, measured["rows"]),
        ]
        if part == "profile":
            text += [
                "",
                "FLOPs and bytes as XLA counts them, the body of a loop once; the last column "
                "counts the operations of the function as written, loops in full.",
            ]
    return "\n".join(text) + "\n"


def _table(part: str, rows: list[dict[str, Any]]) -> list[str]:
    """The rows of a part as a table, one column a number."""
    columns: tuple[str, ...]
    if part == "profile":
        columns = ("whole", "piece", "ms", "share", "flops", "bytes", "full_flops")
        return _lines(columns, [[row[c] for c in columns] for row in rows])
    if part == "nuts":
        flat = [
            {
                "target": row["target"],
                "settings": row["settings"],
                "seed": i,
                "ours [s]": ours["seconds"],
                "route": ours["route"],
                "training [s]": ours["training_seconds"],
                "our draws": ours["draws"],
                "our share effective": ours["effective"] / ours["draws"],
                "ours, further [1/s]": ours["rate"],
                "NUTS [s]": theirs["seconds"],
                "warm-up and first block [s]": theirs["first_seconds"],
                "NUTS draws": theirs["draws"],
                "NUTS, further [1/s]": theirs["rate"],
                "extrapolated": theirs["extrapolated"],
            }
            for row in rows
            for i, (ours, theirs) in enumerate(zip(row["ours"], row["nuts"], strict=True))
        ]
        return _lines(tuple(flat[0]), [list(row.values()) for row in flat])
    columns = tuple(dict.fromkeys(c for row in rows for c in row))
    return _lines(columns, [[row.get(c) for c in columns] for row in rows])


def _lines(columns: Sequence[str], rows: list[list[Any]]) -> list[str]:
    head = [column.replace("_", " ") for column in columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        shown = value.get("median")
        if shown is not None:
            return cell(shown)
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) or value is None:
        return cell(number(value))
    return f"{value:,}" if isinstance(value, int) else str(value)
