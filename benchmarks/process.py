"""Functions called in processes of their own, under a time limit."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# A child imports what its function needs and no more: imports are part of what is timed.


def importing() -> dict[str, str]:
    """This process's environment, in which another one finds the package that runs here."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def isolated(
    function: str,
    given: Mapping[str, Any],
    limit: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What ``module:function`` returns in a process of its own, and its seconds.

    They count from before the process starts to the time ``"end"`` that the function returns, else
    to the end of the process. A function that fails leaves ``"error"`` instead, the last line that
    names one; one that is not done in time ``"hung"`` as well.

    Args:
      function: as ``"benchmarks.field:answer"``; what it returns must be JSON.
      given: its arguments.
      limit: seconds, or None.
      variables: of the environment, beside those of this process; "" takes one away.
    """
    changed = dict(variables or {})
    environment = {k: v for k, v in (importing() | changed).items() if changed.get(k) != ""}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/found.json"
        command = [sys.executable, "-m", "benchmarks.process", function, json.dumps(given), path]
        settings: dict[str, Any] = {"cwd": folder, "env": environment, "timeout": limit}
        begin = time.time()
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
        except subprocess.TimeoutExpired:
            seconds = time.time() - begin
            return {"error": f"not done after {limit:.0f} s", "seconds": seconds, "hung": True}
        end = time.time()
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "Error" in line.split(":")[0]]
            return {"error": (errors or ["killed"])[-1], "seconds": end - begin}
        found = json.loads(Path(path).read_text()) or {}
        return found | {"seconds": found.pop("end", end) - begin}


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    returned = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(returned))
