"""Figures from the literature, as stored in published.json."""

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def load() -> dict[str, Any]:
    """The whole file: notes, sources and figures."""
    return json.loads((Path(__file__).parent / "published.json").read_text())


def find(target: str, method: str, num_steps: int) -> dict[str, Any] | None:
    """The published figure of a method on a target, or None.

    Args:
      target: name in the registry.
      method: name of ours.
      num_steps: network evaluations a draw; a figure whose number is not stated does not match.
    """
    matches = [
        figure
        for figure in load()["figures"]
        if (figure["target"], figure["method"], figure["num_steps"]) == (target, method, num_steps)
    ]
    return matches[0] if matches else None


def unmatched(target: str, methods: set[str]) -> list[dict[str, Any]]:
    """Figures on a target that stand beside no row: other methods, or steps not stated."""
    return [
        figure
        for figure in load()["figures"]
        if figure["target"] == target
        and (figure["method"] not in methods or figure["num_steps"] is None)
    ]
