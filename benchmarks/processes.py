"""Measurements in processes of their own, under a time limit."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a process ended."""

    seconds: float
    error: str | None  # its last line that names one
    hung: bool = False


def run_module(
    arguments: Sequence[str], environment: Mapping[str, str], limit: float, folder: Path | None
) -> Ended:
    """Runs ``python -m ARGUMENTS`` in a folder (this one if None), from before it starts."""
    begin = time.time()
    command = [sys.executable, "-m", *arguments]
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
        return Ended(time.time() - begin, f"not done after {limit:.0f} s", True)
    seconds = time.time() - begin
    if not done.returncode:
        return Ended(seconds, None)
    lines = [line for line in done.stderr.splitlines() if "Error" in line.split(":")[0]]
    return Ended(seconds, (lines or ["killed"])[-1])
