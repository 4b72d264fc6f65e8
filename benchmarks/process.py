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
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(variables or {})
    for name, value in (variables or {}).items():
        if value == "":
            del environment[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.process",
            function,
            json.dumps(given),
            str(path),
        ]
        begin = time.time()
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            seconds = time.time() - begin
            return {"error": f"not done after {limit:.0f} s", "seconds": seconds, "hung": True}
        end = time.time()
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "Error" in line.split(":")[0]]
            return {"error": (errors or ["killed"])[-1], "seconds": end - begin}
        found = json.loads(path.read_text()) or {}
        return found | {"seconds": found.pop("end", end) - begin}


def _call(function: str, given: str, path: str) -> None:
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(**json.loads(given))
    Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    _call(*sys.argv[1:])
