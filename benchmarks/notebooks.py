"""The notebooks in full: that they run, and seconds from the start of a kernel to its last cell."""

import base64
import time
from typing import Any

from benchmarks.case import Benchmark, Case
from benchmarks.process import ROOT, importing
from benchmarks.report import Report, Row

SOURCES = ROOT / "notebooks"
_QUICK = "CONSISTENT_SAMPLERS_QUICK"
_CELL_SECONDS = 1_200


def measure(case: Case) -> list[Row]:
    """Runs one notebook, and keeps its copy and its pictures whatever comes of it."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    name, folder = case.target, case.settings["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    path = SOURCES / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    environment = importing()
    environment.pop(_QUICK, None)  # nothing small
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(book, timeout=_CELL_SECONDS, resources=resources)
    begin, row = time.perf_counter(), dict[str, Any]()
    try:
        client.execute(env=environment)
    except CellExecutionError as failure:
        row["error"] = f"{failure.ename}: {failure.evalue}"
    except CellTimeoutError:
        row["error"] = f"a cell took longer than {_CELL_SECONDS} seconds"
    row["seconds"] = time.perf_counter() - begin
    nbformat.write(book, folder / f"{name}.ipynb")
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    for i, picture in enumerate(pictures, start=1):
        (folder / f"{name}-{i}.png").write_bytes(base64.b64decode(picture))
    return [row | {"pictures": len(pictures)}]


BENCHMARK = Benchmark(
    name="notebooks",
    names=lambda settings: sorted(path.stem for path in SOURCES.glob("*.ipynb")),
    measure=measure,
    options={"--folder": (ROOT / "build" / "notebooks", "for executed copies and pictures")},
    strict=True,
    report=Report(
        __doc__,
        "notebook: {target} | seconds: {seconds:.0f} | pictures: {pictures} | error: {error}",
    ),
)
