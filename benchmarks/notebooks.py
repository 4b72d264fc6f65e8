"""The notebooks in full: that they run, how long they take, and copies with their pictures."""

import base64
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import save, versions_and_device

SOURCES = Path(__file__).parents[1] / "notebooks"
_QUICK = "CONSISTENT_SAMPLERS_QUICK"
_CELL_SECONDS = 1_200


def run(names: list[str] | None, folder: Path, output: Path) -> dict[str, Any]:
    """Executes the notebooks with their full budgets.

    Args:
      names: which, without their suffix; all if None.
      folder: where the executed copies and their pictures go.
      output: folder for notebooks.json and notebooks.md.

    Returns:
      What was written to the JSON file.

    Raises:
      ValueError: a name that is not there.
      RuntimeError: a cell failed; everything is written all the same.
    """
    there = sorted(path.stem for path in SOURCES.glob("*.ipynb"))
    unknown = sorted(set(names or ()) - set(there))
    if unknown:
        raise ValueError(f"names must be among {', '.join(there)}; got {', '.join(unknown)}.")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = ["--names", *names] if names else []
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks notebooks", *chosen]),
        **versions_and_device(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "rows": [],
    }
    for name in names or there:
        row = _execute(name, folder)
        results["rows"].append(row)
        print(
            f"{name:>32} {row['seconds']:6.1f} s, {row['num_pictures']} pictures"
            + (f", FAILED: {row['error']}" if row["error"] else ""),
            flush=True,
        )
    results = save(output, "notebooks", results, markdown)
    print(f"Copies with pictures in {folder}")
    failed = [f"{row['notebook']}: {row['error']}" for row in results["rows"] if row["error"]]
    if failed:
        raise RuntimeError("; ".join(failed))
    return results


def _execute(name: str, folder: Path) -> dict[str, Any]:
    """Runs one notebook, and keeps its copy and its pictures whatever comes of it."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    path = SOURCES / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    # The package that runs this command, installed or not; and nothing small.
    paths = [str(SOURCES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment.pop(_QUICK, None)
    client = NotebookClient(
        book, timeout=_CELL_SECONDS, resources={"metadata": {"path": str(path.parent)}}
    )
    begin, error = time.perf_counter(), None
    try:
        client.execute(env=environment)
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except CellTimeoutError:
        error = f"a cell took longer than {_CELL_SECONDS} seconds"
    seconds = time.perf_counter() - begin
    nbformat.write(book, folder / f"{name}.ipynb")
    pictures = [
        output.data["image/png"]
        for cell in book.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    for i, picture in enumerate(pictures, start=1):
        (folder / f"{name}-{i}.png").write_bytes(base64.b64decode(picture))
    return {
        "notebook": name,
        "seconds": seconds,
        "num_pictures": len(pictures),
        "error": error,
    }


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    cores = "" if results["num_cores"] is None else f", {results['num_cores']} core(s)"
    text = [
        "# The notebooks in full",
        "",
        f"Made by `{results['command']}` on {results['device']}{cores}; {versions}. Seconds from "
        "the start of the kernel to its last cell, compilation included.",
        "",
        "| notebook | seconds | pictures |",
        "|---|---|---|",
    ]
    for row in results["rows"]:
        seconds = f"{row['seconds']:.0f}" + (f" (failed: {row['error']})" if row["error"] else "")
        text.append(f"| {row['notebook']} | {seconds} | {row['num_pictures']} |")
    return "\n".join(text) + "\n"
